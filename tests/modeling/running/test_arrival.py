"""The kernels that look at new frames: on the GPU if there is one, else interpreted."""

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.modeling.running.arrival import Arrival, compare_frames_reference  # noqa: E402
from blockcopy_d2.modeling.running.triton_arrival import compare_frames_triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STD = torch.tensor([57.0, 58.0, 59.0, 60.0]).view(4, 1, 1)


def assert_alike(frame, previous, index, broken, **settings):
    settings = {"share": 0.3, "pixels_per_block": 8, "coverage": 1.0, **settings}
    tensors, std = (frame, previous, index, broken), STD[: frame.shape[1]]
    want = compare_frames_reference(*tensors, pixel_std=std, **settings)
    on_device = [x.to(DEVICE) for x in tensors]
    found = Arrival(*compare_frames_triton(*on_device, pixel_std=std.to(DEVICE), **settings))
    for name, value in vars(want).items():
        assert torch.equal(getattr(found, name).cpu(), value), name
    return want


def frames(streams, grid_shape, side, channels=3):
    generator = torch.Generator().manual_seed(0)
    size = (streams, channels, side * grid_shape[0], side * grid_shape[1])
    return torch.randn(size, generator=generator), torch.randn(size, generator=generator)


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize(
    "side, grid_shape, channels", [(8, (1, 2), 3), (32, (2, 3), 3), (8, (1, 2), 1), (8, (1, 2), 4)]
)
def test_cuts_and_first_frames(side, grid_shape, share, channels):
    frame, previous = frames(4, grid_shape, side, channels)
    frame[1] = previous[1]
    frame[0] += 9
    frame[2] += 9
    index, broken = torch.tensor([3, 4, 0, 5]), torch.tensor([False, False, False, True])
    settings = {"pixels_per_block": side, "share": share}
    seen = assert_alike(frame, previous, index, broken, **settings)
    assert seen.finite.all() and seen.new.tolist() == [False, False, True, True]
    assert seen.cut[:3].tolist() == [share > 0, False, False]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite(bad):
    frame, previous = frames(2, (2, 3), 8)
    frame[1, 2, 3, 4] = bad
    seen = assert_alike(frame, previous, torch.tensor([3, 3]), torch.zeros(2, dtype=torch.bool))
    assert seen.finite.tolist() == [True, False] and seen.picture.isfinite().all()


def test_padding_does_not_count():
    frame, previous = frames(1, (2, 2), 8)
    frame[:] = previous
    frame[..., :8, :8] += 9
    index, broken = torch.tensor([3]), torch.zeros(1, dtype=torch.bool)
    assert not assert_alike(frame, previous, index, broken).cut
    assert assert_alike(frame, previous, index, broken, coverage=0.25).cut
