"""The history of streams is copied as a whole, and each part has one name."""

import dataclasses

import pytest
import torch

from blockcopy_d2.modeling import StreamBatch, StreamHistory
from blockcopy_d2.modeling.running.advance import advance
from blockcopy_d2.modeling.running.arrival import Arrival
from blockcopy_d2.modeling.running.history import tensors_of
from blockcopy_d2.motion import MotionFeatures
from blockcopy_d2.policy import DetectionMasks

BLOCKS, PIXELS = (2, 3), (16, 24)


def some_history(streams=1):
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    masks = rand(4, *PIXELS) < 0.5
    detections = DetectionMasks(
        masks, rand(4), torch.arange(4), rand(4, 4), pixels_per_block=8, box_scale=(2.0, 1.0)
    )
    features = MotionFeatures.empty((64, 96), streams=streams)
    for level in features.levels:
        level.random_(0, 200, generator=generator)
    active = (torch.arange(6).view(BLOCKS) % 2 == 0).repeat(streams, 1, 1)
    return StreamHistory(
        frame=rand(streams, 3, *PIXELS),
        frame_state=rand(streams, 3, *PIXELS),
        painted=rand(streams, 5, *PIXELS),
        active=active,
        age=torch.ones_like(active, dtype=torch.int32),
        gain=rand(streams, *BLOCKS),
        account=rand(streams, 2),
        broken=torch.ones(streams, dtype=torch.bool),
        frame_index=torch.full((streams,), 3),
        outputs=[(detections, rand(5, *PIXELS)) for _ in range(streams)],
        motion_features=features,
    )


def test_a_copy_has_all_of_it_in_memory_of_its_own():
    history = some_history()
    copied = history.clone()
    for field in dataclasses.fields(StreamHistory):
        own = list(tensors_of(getattr(history, field.name)))
        others = list(tensors_of(getattr(copied, field.name)))
        assert len(own) == len(others) > 0, field.name
        for one, other in zip(own, others):
            assert torch.equal(one, other) and one.data_ptr() != other.data_ptr(), field.name
    # Masks, scores, classes, boxes and probabilities; four levels of a pyramid.
    assert len(list(tensors_of(history))) == 9 + 5 + 4
    assert copied.outputs[0][0].box_scale == (2.0, 1.0) and copied.motion_features.size == (64, 96)


def test_overwriting_is_in_place_and_of_everything():
    history, other = some_history(), some_history()
    for tensor in tensors_of(other):
        tensor.copy_(~tensor if tensor.dtype == torch.bool else tensor + 1)
    before = [x.data_ptr() for x in tensors_of(history)]
    history.copy_(other)
    assert [x.data_ptr() for x in tensors_of(history)] == before
    for one, two in zip(tensors_of(history), tensors_of(other), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="shorter"):
        history.copy_(dataclasses.replace(other, motion_features=None))


def test_what_detections_computed_is_not_kept_with_a_copy():
    history = some_history()
    detections = history.outputs[0][0]
    detections.areas  # noqa: B018  computed once, from the masks as they are
    copied = history.clone()
    copied.outputs[0][0].masks.zero_()
    assert detections.areas.sum() > 0 and copied.outputs[0][0].areas.sum() == 0


def test_streams_tell_their_history():
    batch = StreamBatch(2)
    assert batch.history is None and batch.age is None and batch.outputs == [None, None]
    batch.history = some_history(2)
    for field in dataclasses.fields(StreamHistory):
        assert getattr(batch, field.name) is getattr(batch.history, field.name)
    batch.counts, batch.canvas_size = [3, 3], (64, 96)
    batch.reset(1)
    assert batch.counts == [3, 0] and batch.frame_index.tolist() == [3, 0]
    assert batch.outputs[0] is not None and batch.outputs[1] is None
    batch.reset()
    assert batch.history is None and not batch.started


def test_absent_streams_stay_as_they_are():
    history = some_history(2)
    history.broken[:] = True
    frame, flags = torch.zeros_like(history.frame), torch.zeros(2, dtype=torch.bool)
    arrival = Arrival(frame, ~flags, cut=flags, new=flags)
    active, painted = torch.ones_like(history.active), torch.zeros_like(history.painted)
    history.active[:], history.gain[:] = False, 1
    advanced = advance(history, arrival, painted, active, torch.full_like(history.gain, 2))
    after = history.after(
        advanced,
        frame=frame,
        active=active,
        account=history.account + 1,
        outputs=["now", "now"],
        motion_features=None,
        present=[True, False],
    )
    for field in dataclasses.fields(StreamHistory):
        if isinstance(value := getattr(after, field.name), torch.Tensor):
            assert torch.equal(value[1], getattr(history, field.name)[1]), field.name
            assert not torch.equal(value[0], getattr(history, field.name)[0]), field.name
    assert after.outputs == ["now", history.outputs[1]]
    assert after.frame_index.tolist() == [4, 3]
