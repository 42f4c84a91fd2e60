import torch
from detectron2.layers import ShapeSpec
from torch import nn

from blockcopy_d2.modeling.roi_features import PlanarFeatures, planar_features
from blockcopy_d2.sparse import BlockGrid

STRIDES = {"p2": 4, "p5": 32, "p6": 64}


def features(value=None):
    """As the engine gives them: channels last, for an image of 96 x 160."""
    maps = {}
    for name, stride in STRIDES.items():
        size = (1, 6, -(-96 // stride), -(-160 // stride))
        x = torch.rand(size) if value is None else torch.full(size, value)
        maps[name] = x.contiguous(memory_format=torch.channels_last)
    return maps


def grid_of(*active):
    blocks = torch.zeros(1, 3, 5, dtype=torch.bool)
    for row, column in active:
        blocks[0, row, column] = True
    return BlockGrid(blocks, block_size=32, image_size=(96, 160))


FULL = BlockGrid.full(block_size=32, image_size=(96, 160))


def test_the_first_frame_is_copied_whole():
    planar = PlanarFeatures()
    maps = features()
    found = planar.update(maps, STRIDES, FULL)
    for name, x in maps.items():
        assert found[name].is_contiguous() and torch.equal(found[name], x)
        assert found[name].data_ptr() != x.data_ptr()


def test_only_executed_blocks_are_copied():
    planar = PlanarFeatures()
    planar.update(features(0.0), STRIDES, FULL)
    found = planar.update(features(1.0), STRIDES, grid_of((1, 2), (2, 4)))
    expected = torch.zeros(24, 40)
    expected[8:16, 16:24] = expected[16:24, 32:40] = 1
    assert torch.equal(found["p2"], expected.expand(1, 6, -1, -1))
    expected = torch.zeros(3, 5)
    expected[1, 2] = expected[2, 4] = 1
    assert torch.equal(found["p5"], expected.expand(1, 6, -1, -1))
    # One pixel of stride 64 covers 2 x 2 blocks and is executed with any of them.
    expected = torch.tensor([[0.0, 1, 0], [0, 0, 1]])
    assert torch.equal(found["p6"], expected.expand(1, 6, -1, -1))


def test_a_full_frame_replaces_everything():
    planar = PlanarFeatures()
    planar.update(features(), STRIDES, FULL)
    maps = features()
    found = planar.update(maps, STRIDES, FULL)
    assert all(torch.equal(found[name], maps[name]) for name in maps)


def test_maps_that_are_contiguous_pass_as_they_are():
    maps = {name: x.contiguous() for name, x in features().items()}
    planar = PlanarFeatures()
    assert planar.update(maps, STRIDES, FULL)["p2"] is maps["p2"]
    assert planar.update(maps, STRIDES, grid_of())["p2"] is maps["p2"]


def test_reset_forgets():
    planar = PlanarFeatures()
    planar.update(features(0.0), STRIDES, FULL)
    planar.reset()
    assert planar.update(features(1.0), STRIDES, grid_of())["p2"].all()


class Detector(nn.Module):
    """What planar_features looks at in a meta-architecture."""

    class Backbone(nn.Module):
        def output_shape(self):
            return {name: ShapeSpec(channels=6, stride=s) for name, s in STRIDES.items()}

    class RoIHeads(nn.Module):
        def forward(self, images, features, proposals, targets=None):
            return features

    def __init__(self):
        super().__init__()
        self.backbone = self.Backbone()
        self.roi_heads = self.RoIHeads()


def test_roi_heads_see_planes_while_open():
    model, maps = Detector(), features()
    with planar_features(model, PlanarFeatures(), FULL):
        seen = model.roi_heads(None, maps, [], None)
    assert all(x.is_contiguous() for x in seen.values())
    assert model.roi_heads(None, maps, [], None) is maps


def test_models_without_roi_heads_are_left_alone():
    model = nn.Module()
    with planar_features(model, PlanarFeatures(), FULL):
        assert not hasattr(model, "roi_heads")
