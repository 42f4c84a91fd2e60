"""The gain of detections by kernels: on the GPU if there is one, else interpreted."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton")

from blockcopy_d2.policy import DetectionMasks, information_gain  # noqa: E402
from blockcopy_d2.policy.gain_kernels import mask_block_gain_triton, serves  # noqa: E402
from blockcopy_d2.policy.information_gain import instance_block_gain_reference  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def counted_in_half(monkeypatch):
    """For a batch on a CPU."""
    monkeypatch.setattr(information_gain, "triton_runs_on", lambda device: False)


def detections(streams, number, seed, side=8, grid_shape=(3, 5)):
    """Rectangles; each stream's last one is empty."""
    generator = torch.Generator().manual_seed(seed)
    size = (side * grid_shape[0], side * grid_shape[1])
    masks = torch.zeros(streams, number, *size, dtype=torch.bool)
    for stream in range(streams):
        for mask in masks[stream, :-1]:
            y, x = (int(torch.randint(0, s - 2, (), generator=generator)) for s in size)
            mask[y : y + size[0] // 2, x : x + size[1] // 2] = True
    scores = torch.rand(streams, number, generator=generator)
    classes = torch.randint(0, 2, (streams, number), generator=generator)
    seen = DetectionMasks(masks, scores, classes, pixels_per_block=side)
    return seen


def on_device(seen, device):
    parts = {name: getattr(seen, name).to(device) for name in ("masks", "scores", "classes")}
    return dataclasses.replace(seen, **parts)


def assert_alike(current, previous):
    want = instance_block_gain_reference(current, previous)
    found = mask_block_gain_triton(*(on_device(x, DEVICE) for x in (current, previous)))
    torch.testing.assert_close(found.cpu(), want, rtol=1e-6, atol=1e-6, equal_nan=True)
    return want


@pytest.mark.parametrize(
    "streams, n, m, side", [(1, 6, 9, 8), (2, 9, 4, 16), (1, 70, 20, 8), (1, 1, 1, 32)]
)
def test_gain_of_blocks(streams, n, m, side):
    current, previous = detections(streams, n, 0, side), detections(streams, m, 1, side)
    gain = assert_alike(current, previous)
    if n > 1 and m > 1:
        assert gain.max() > 0.1 and len(gain.unique()) > 3


def test_what_stays_gains_nothing():
    seen = detections(1, 5, 0)
    assert not assert_alike(seen, seen).any()


def test_a_stream_alone():
    current, previous = detections(2, 6, 0), detections(2, 7, 1)
    both = assert_alike(current, previous)
    for stream, gain in enumerate(both):
        one = [
            dataclasses.replace(
                x, masks=x.masks[stream], scores=x.scores[stream], classes=x.classes[stream]
            )
            for x in (current, previous)
        ]
        assert torch.equal(assert_alike(*one), gain)


@pytest.mark.parametrize("side", [0, 1])
def test_scores_that_are_no_numbers(side):
    both = [detections(2, 5, 0), detections(2, 6, 1)]
    both[side].scores[1, 2] = torch.nan
    gain = assert_alike(*both)
    assert gain[0].isfinite().all() and gain[1].isnan().any() and not gain[1].isnan().all()


def test_more_than_the_kernels_take():
    few, many, none = (
        DetectionMasks(
            torch.zeros(1, n, 8, 8, dtype=torch.bool),
            torch.zeros(1, n),
            torch.zeros(1, n, dtype=torch.int64),
            pixels_per_block=8,
        )
        for n in (3, 300, 0)
    )
    assert serves(few, few) and serves(many, few)
    assert not serves(few, many) and not serves(few, none) and not serves(none, few)
