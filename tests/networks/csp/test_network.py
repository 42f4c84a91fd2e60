"""CSP runs block-sparse by the engine's general rules."""

import pytest
import torch
from detectron2.modeling import build_model

from blockcopy_d2.config import base_config
from blockcopy_d2.engine import load_config
from blockcopy_d2.networks.csp.backbone import ChannelL2Norm
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule
from tests.networks.csp.small import CONFIG, small_csp
from tests.sparse.test_networks import check_model


@pytest.fixture(scope="module")
def model():
    return small_csp()


@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_matches_oracle(model, block_size):
    check_model(model, (205, 333), block_size)


def test_batch_of_two_streams(model):
    check_model(model, (112, 176), 64, batch=2)


def programs(model, size):
    """The programs of backbone and head for images of ``size``; nothing is computed."""
    grid = BlockGrid.full(block_size=128, image_size=size)
    channels = model.backbone.output_shape()["p2"].channels
    features = torch.empty(1, channels, size[0] // 4, size[1] // 4)
    return grid, [
        BlockSparseModule(model.backbone).program((torch.empty(1, 3, *size),), {}, grid),
        BlockSparseModule(model.head).program(([features],), {}, grid),
    ]


def test_every_operator_is_block_sparse(model):
    _, found = programs(model, (256, 384))
    for program in found:
        assert program.operators and not program.densified
        strides = [program.values[operator.output].stride for operator in program.operators]
        assert None not in strides


def test_multiply_accumulates_at_full_size():
    model = build_model(base_config(load_config(config_path(CONFIG), ["MODEL.DEVICE", "cpu"])))
    grid, found = programs(model.eval(), (1024, 2048))
    macs = sum(program.macs(grid)[1] for program in found)
    assert macs / 1e9 == pytest.approx(1128, rel=0.01)


def test_channel_norm_by_hand():
    norm = ChannelL2Norm(2, scale=10)
    x = torch.tensor([[3.0, 0.0], [4.0, 0.0]])[None, :, None]
    expected = torch.tensor([[6.0, 0.0], [8.0, 0.0]])[None, :, None]
    torch.testing.assert_close(norm(x), expected)
    x.requires_grad_()
    norm(x).sum().backward()
    assert x.grad.isfinite().all()


def test_backbone_shapes(model):
    features = model.backbone.bottom_up(torch.zeros(1, 3, 64, 96))
    sizes = {name: tuple(x.shape[-2:]) for name, x in features.items()}
    assert sizes == {"res3": (8, 12), "res4": (4, 6), "res5": (4, 6)}
    assert model.backbone(torch.zeros(1, 3, 64, 96))["p2"].shape == (1, 24, 16, 24)
    assert model.backbone.size_divisibility == 16
    assert model.head_in_features == ["p2"] and model.stride == 4
