"""The memory of streams, and the error if they do not fit."""

import pytest
import torch

from blockcopy_d2.modeling import VideoStream
from blockcopy_d2.modeling.running import footprint
from blockcopy_d2.modeling.running.graph import FrameGraph
from tests.modeling.running.sides import Side, clip

MOVED = ("MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching")


@pytest.fixture
def side(folder, built, device):
    return Side(folder, built, device, *MOVED, graph=True)


def test_what_a_stream_takes(side, device):
    (image,) = clip(device, 1)
    number = side.model.memory_per_stream({"image": image})
    stream = VideoStream()
    side.model.step({"image": image}, stream)
    # Features, and eight pictures of the policy with five masks at least.
    assert number > stream.features.nbytes + 5 * 64 * 128
    if device == "cuda":
        batch = side.model.init_state(4)
        before = footprint.free_bytes(side.model.device)
        side.model.step_batch([{"image": image}] * 4, batch)
        assert before - footprint.free_bytes(side.model.device) < 4.2 * number + 2**25


@pytest.mark.parametrize("free, fits", [(10.5, 10), (1.5, 1), (0.5, 0), (100, 31)])
def test_what_is_said_where_streams_do_not_fit(side, device, monkeypatch, free, fits):
    (image,) = clip(device, 1)
    size = side.model.memory_per_stream({"image": image})
    step = FrameGraph.step

    def step_of_few(self, model, inputs, streams, **options):
        if streams.num_streams > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, model, inputs, streams, **options)

    monkeypatch.setattr(FrameGraph, "step", step_of_few)
    monkeypatch.setattr(footprint, "stream_bytes", lambda model, inputs: size)
    monkeypatch.setattr(footprint, "free_bytes", lambda device: int(free * size))
    batch = side.model.init_state(32)
    message = rf"32 streams of 128x256 pixels do not fit: .* {size / 1e6:.0f} MB.*for {fits}\. "
    message += rf"Run {fits} of them in a batch" if fits else "Free some"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        side.model.step_batch([{"image": image}, *[None] * 31], batch)
    assert batch.graph is None and not batch.started and not batch.features.nbytes
    # A single stream is not checked.
    side.model.step({"image": image}, VideoStream())


def test_a_shortage_while_graphs_are_captured_is_one(side, device, monkeypatch):
    def capture(*args, **options):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        finally:
            raise RuntimeError("the capture was invalidated")

    def nothing(model, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(FrameGraph, "step", capture)
    monkeypatch.setattr(footprint, "stream_bytes", nothing)
    (image,) = clip(device, 1)
    with pytest.raises(torch.OutOfMemoryError, match="Not even one stream of 128x256"):
        side.model.step_batch([{"image": image}] * 2, side.model.init_state(2))
    with pytest.raises(RuntimeError, match="the capture was invalidated"):
        side.model.step({"image": image}, VideoStream())


def test_other_errors_stay_what_they_are(side, device, monkeypatch):
    monkeypatch.setattr(FrameGraph, "step", lambda *args, **options: 1 / 0)
    (image,) = clip(device, 1)
    with pytest.raises(ZeroDivisionError):
        side.model.step_batch([{"image": image}] * 2, side.model.init_state(2))
