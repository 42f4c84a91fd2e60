"""The kernels that move maps and masks at policy resolution move them as defined."""

import math

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.kernels.device import Device  # noqa: E402
from blockcopy_d2.motion import PolicyMotion, move  # noqa: E402
from blockcopy_d2.motion.triton_policy_maps import (  # noqa: E402
    move_maps_launch,
    move_masks_launch,
)
from tests.motion.moving import some_field  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = (8, 56)


def layout(stride, cell_size):
    return {"cell_size": cell_size, "stride": stride, "device": Device(DEVICE)}


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr("blockcopy_d2.motion.policy_maps.triton_runs_on", lambda device: False)


def field_of(stride, cell_size, streams=1):
    """A canvas that ends before the last blocks do, with components that are not finite."""
    image = tuple(math.ceil(0.8 * length * stride) for length in SIZE)
    field = some_field(image, cell_size, streams, DEVICE)
    field[0, 0, 0, 0], field[0, 1, 0, -1] = torch.nan, torch.inf
    return field


def covering(field, stride, cell_size):
    rows, columns = (math.ceil(length * stride / cell_size) for length in SIZE)
    padding = (0, columns - field.shape[-1], 0, rows - field.shape[-2])
    return torch.nn.functional.pad(field, padding)


@pytest.mark.parametrize("stride, cell_size", [(0.5, 8), (1, 8), (4, 16), (8, 8), (16, 8)])
def test_maps(stride, cell_size):
    torch.manual_seed(0)
    x = torch.randn(2, 17, *SIZE, device=DEVICE)
    field = field_of(stride, cell_size, streams=2)
    found = move_maps_launch(x, field, **layout(stride, cell_size))
    whole = covering(field, stride, cell_size)
    expected = move(x, whole, cell_size=cell_size, stride=stride)
    # Positions are float32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-5)
    assert (found != x).any()
    still = move_maps_launch(x, torch.zeros_like(field), **layout(stride, cell_size))
    assert torch.equal(still, x) and still.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("stride, cell_size", [(1, 8), (4, 16), (16, 8)])
@pytest.mark.usefixtures("plain")
def test_masks(stride, cell_size):
    torch.manual_seed(0)
    masks = torch.rand(17, *SIZE, device=DEVICE) < 0.5
    field = field_of(stride, cell_size)
    found = move_masks_launch(masks, field, **layout(stride, cell_size))
    motion = PolicyMotion(field, cell_size=cell_size, stride=stride, size=SIZE)
    assert torch.equal(found, motion.move_masks(masks))
    assert (found != masks).any()
    assert move_masks_launch(masks[:0], field, **layout(stride, cell_size)).shape == (0, *SIZE)


@pytest.mark.usefixtures("plain")
def test_masks_of_several_streams():
    masks = torch.rand(2, 17, *SIZE, device=DEVICE) < 0.5
    field = field_of(4, 16, streams=2)
    motion = PolicyMotion(field, cell_size=16, stride=4, size=SIZE)
    expected = [one.move_masks(x) for one, x in zip(motion.split(), masks, strict=True)]
    assert not torch.equal(*expected)
    assert torch.equal(move_masks_launch(masks, field, **layout(4, 16)), torch.stack(expected))
    assert torch.equal(motion.move_masks(masks), torch.stack(expected))
    means = [one.mean_vectors(x) for one, x in zip(motion.split(), masks, strict=True)]
    torch.testing.assert_close(motion.mean_vectors(masks), torch.stack(means))


def test_policy_motion_takes_them_where_they_run(plain, monkeypatch):
    """The work of a captured frame on a GPU, on any device."""
    field = field_of(4, 16)
    x, masks = torch.randn(1, 3, *SIZE, device=DEVICE), torch.rand(2, *SIZE, device=DEVICE) < 0.5
    options = {"cell_size": 16, "stride": 4.0, "size": SIZE}
    reference = PolicyMotion(field, **options)
    expected = reference.move_maps(x), reference.move_masks(masks)
    monkeypatch.setattr("blockcopy_d2.motion.policy_maps.triton_runs_on", lambda device: True)
    motion = PolicyMotion(field, **options)
    torch.testing.assert_close(motion.move_maps(x), expected[0], rtol=1e-5, atol=3e-5)
    assert torch.equal(motion.move_masks(masks), expected[1])
