"""The kernels of the policy's part of a frame: on the GPU if there is one, else interpreted."""

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.policy.information_gain import (  # noqa: E402
    _count_in_half,
    common_pixels_reference,
)
from blockcopy_d2.policy.observation import paint_maximum_reference  # noqa: E402
from blockcopy_d2.policy.overlap_kernels import common_pixels_triton  # noqa: E402
from blockcopy_d2.policy.painting import paint_maximum_triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("number", [0, 1, 9])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_painting(number, num_channels):
    masks = torch.rand(number, 32, 48) > 0.6
    values = torch.rand(number)
    values[number // 2 :][:1] = 0
    channels = torch.randint(num_channels, (number,))
    want = paint_maximum_reference(masks, values, channels, num_channels)
    arguments = (x.to(DEVICE) for x in (masks, values, channels))
    assert paint_maximum_triton(*arguments, num_channels).cpu().equal(want)


def test_painting_several_streams():
    masks, values = torch.rand(3, 5, 32, 48) > 0.6, torch.rand(3, 5)
    channels = torch.randint(2, (3, 5))
    want = [paint_maximum_reference(*one, 2) for one in zip(masks, values, channels)]
    arguments = [masks, values, channels]
    assert paint_maximum_reference(*arguments, 2).equal(torch.stack(want))
    painted = paint_maximum_triton(*(x.to(DEVICE) for x in arguments), 2)
    assert painted.cpu().equal(torch.stack(want))


def test_painting_shows_what_is_not_a_number():
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, :8] = masks[1, 4:] = True
    arguments = (masks, torch.tensor([torch.nan, 0.5]), torch.zeros(2, dtype=torch.int64))
    painted = paint_maximum_triton(*(x.to(DEVICE) for x in arguments), 1)[0].cpu()
    assert painted[:8].isnan().all() and (painted[8:] == 0.5).all()


@pytest.mark.parametrize("n, m, pixels", [(5, 3, 16 * 16), (1, 140, 1000), (2, 4, 96 * 160)])
def test_counting_pixels_in_common(n, m, pixels):
    """Covers more masks than a program multiplies at a time, several programs, and two streams."""
    current, previous = (torch.rand(2, x, pixels, device=DEVICE) > 0.02 for x in (n, m))
    want = common_pixels_reference(current, previous)
    assert common_pixels_triton(current, previous).equal(want)
    assert common_pixels_triton(current[1], previous[1]).equal(want[1])
    assert pixels < 2000 or want.max() > 2048


@pytest.mark.parametrize("n, m", [(0, 3), (3, 0)])
def test_nothing_is_in_common_without_masks(n, m):
    found = common_pixels_triton(*(torch.ones(2, x, 64, dtype=torch.bool) for x in (n, m)))
    assert found.shape == (2, n, m)


@pytest.mark.parametrize("size", [(16, 16), (64, 96), (96, 160)])
def test_counting_in_half_precision_is_exact(size):
    current, previous = (torch.rand(n, size[0] * size[1], device=DEVICE) > 0.02 for n in (5, 3))
    want = current.double() @ previous.double().T
    assert _count_in_half(current, previous).double().equal(want)
    pairs = [torch.stack([x, x.flip(0)]) for x in (current, previous)]
    assert _count_in_half(*pairs).double().equal(torch.stack([want, want.flip(0, 1)]))
    assert size == (16, 16) or want.max() > 2048
