import copy

import pytest
import torch
from detectron2.layers import ROIAlign

from blockcopy_d2.modeling.conversion.roi_align import ChannelsLastROIAlign, convert_roi_align
from blockcopy_d2.modeling.fixed_shape import StaticRCNN
from tests.sparse.networks import build

SIZE = (24, 40)  # of the map, at a stride of 4


def regions():
    """Boxes of two images: ordinary ones, and all that can be wrong with a box."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(20, 2, generator=generator) * torch.tensor([160.0, 96.0]) - 10
    boxes = torch.cat([corner, corner + torch.rand(20, 2, generator=generator) * 90], 1)
    odd = torch.tensor(
        [
            [0, 0, 160, 96],
            [10, 10, 10, 10],  # empty
            [20, 30, 10, 25],  # inside out
            [-200, -90, -100, -50],  # beyond the border
            [150, 90, 900, 800],
            [-3.9, -3.9, 0.2, 0.2],
        ]
    )
    boxes = torch.cat([boxes, odd])
    return torch.cat([torch.arange(len(boxes))[:, None] % 2, boxes], 1)


def maps(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, *SIZE, generator=generator).to(dtype)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("output_size", [(7, 7), (3, 5)])
def test_is_torchvisions(output_size, sampling_ratio, aligned):
    options = (output_size, 0.25, sampling_ratio, aligned)
    expected = ROIAlign(*options)(maps(), regions())
    x = maps().contiguous(memory_format=torch.channels_last)
    found = ChannelsLastROIAlign(*options)(x, regions())
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_bf16_stays_bf16():
    x = maps(torch.bfloat16)
    expected = ROIAlign((7, 7), 0.25, 0)(x.float(), regions())
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu"):
        found = ChannelsLastROIAlign((7, 7), 0.25, 0)(x, regions())
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 4e-3 * expected.norm()


def test_maps_in_planes_and_no_regions_are_left_to_torchvision():
    pool = ChannelsLastROIAlign((7, 7), 0.25, 0)
    assert torch.equal(pool(maps(), regions()), ROIAlign((7, 7), 0.25, 0)(maps(), regions()))
    x = maps().contiguous(memory_format=torch.channels_last)
    assert pool(x, regions()[:0]).shape == (0, 5, 7, 7)


def test_every_pooler_of_a_model_is_converted():
    model = build("R18-FPN")
    names = list(model.state_dict())
    fast = copy.deepcopy(model)
    convert_roi_align(fast)
    assert list(fast.state_dict()) == names
    assert not any(type(module) is ROIAlign for module in fast.modules())
    assert sum(isinstance(module, ChannelsLastROIAlign) for module in fast.modules()) == 8
    assert StaticRCNN.supports(model) and StaticRCNN.supports(fast)
    old, new = model.roi_heads.box_pooler, fast.roi_heads.box_pooler
    assert [p.spatial_scale for p in new.level_poolers] == [
        p.spatial_scale for p in old.level_poolers
    ]
