"""The kernels that advance a history: on the GPU if there is one, else interpreted."""

import types

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.modeling.running.advance import advance_reference  # noqa: E402
from blockcopy_d2.modeling.running.arrival import Arrival  # noqa: E402
from blockcopy_d2.modeling.running.triton_advance import advance_triton  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def some_frames(streams=3, grid_shape=(2, 3), side=8, classes=2, channels=3):
    generator = torch.Generator().manual_seed(0)
    size = (side * grid_shape[0], side * grid_shape[1])

    def draw(*shape):
        return torch.rand(streams, *shape, generator=generator)

    flags = torch.zeros(streams, dtype=torch.bool)
    history = types.SimpleNamespace(
        frame_state=draw(channels, *size),
        age=(9 * draw(*grid_shape)).int(),
        gain=draw(*grid_shape) - 0.5,
        frame_index=torch.arange(streams),
    )
    arrival = Arrival(draw(channels, *size), ~flags, cut=flags.clone(), new=flags.clone())
    return history, arrival, draw(classes, *size), draw(*grid_shape) < 0.5, draw(*grid_shape)


def assert_alike(history, arrival, *maps):
    want = advance_reference(history, arrival, *maps)
    history, arrival = (
        type(part)(**{name: value.to(DEVICE) for name, value in vars(part).items()})
        for part in (history, arrival)
    )
    found = advance_triton(history, arrival, *(x if x is None else x.to(DEVICE) for x in maps))
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name].cpu(), value), name
    return want


@pytest.mark.parametrize("grid_shape, side, classes", [((1, 1), 32, 1), ((2, 3), 8, 4)])
@pytest.mark.parametrize("wants_gain", [True, False])
def test_every_part(grid_shape, side, classes, wants_gain):
    *frames, gain = some_frames(3, grid_shape, side, classes)
    after = assert_alike(*frames, gain if wants_gain else None)
    assert not after["broken"].any() and after["frame_index"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels):
    assert_alike(*some_frames(channels=channels))


def test_frames_that_follow_nothing_have_no_gain():
    history, arrival, painted, active, gain = some_frames()
    active[:] = True
    arrival.cut[0], arrival.new[1] = True, True
    gain[2, 1, 1] = torch.nan
    assert (assert_alike(history, arrival, painted, active, gain)["gain"] == -1).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite(bad):
    history, arrival, painted, *others = some_frames()
    painted[1, 1, 3, 4], arrival.finite[2] = bad, False
    after = assert_alike(history, arrival, painted, *others)
    assert after["broken"].tolist() == [False, True, True] and after["painted"].isfinite().all()
