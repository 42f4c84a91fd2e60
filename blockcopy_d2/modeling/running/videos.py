"""
Runs frames of videos that a model gets by their id: groups them into batches and finds their slots.

Shape shorthand: N streams of a batch.
"""

import torch

from .graph import FrameGraph
from .inputs import check_images
from .learning import learn
from .stream import VideoStream

__all__ = ["run_videos"]


def run_videos(model, batched_inputs):
    """
    Run frames of videos, and teach the policy from each as if it came alone. If frames are graphs,
    those of different videos run as one batch; otherwise they run one by one.

    Args:
        model (BlockCopyVideoModel):
        batched_inputs (list[dict]): Detectron2's input dicts with "video_id" and "frame_index";
            frames of one video in their order.

    Returns:
        list[FrameResult]: one for every input.
    """
    results = [None] * len(batched_inputs)
    for tick in _ticks(model, batched_inputs):
        with model.lock:
            frames = _run_tick(model, [batched_inputs[n] for n in tick])
        for n, result in zip(tick, frames, strict=True):
            results[n] = result
    return results


def _ticks(model, inputs):
    """Yields the numbers of the inputs that run together."""
    if not FrameGraph.serves(model, VideoStream()):
        yield from ([n] for n in range(len(inputs)))
        return
    start, videos = 0, []
    for n, one in enumerate(inputs):
        if one["video_id"] in videos or len(videos) == model.streams.max_streams:
            yield from _by_size(inputs, range(start, n))
            start, videos = n, []
        videos.append(one["video_id"])
    yield from _by_size(inputs, range(start, len(inputs)))


def _by_size(inputs, numbers):
    """list[list[int]]: the numbers of the inputs whose images and outputs have one size."""
    groups = {}
    for n in numbers:
        size = getattr(inputs[n].get("image"), "shape", None)
        key = size, inputs[n].get("height"), inputs[n].get("width")
        groups.setdefault(key, []).append(n)
    return list(groups.values())


def _run_tick(model, frames):
    """Runs frames of different videos, all of one size. Returns list[FrameResult]."""
    learner = model.learner
    ids = [(inputs["video_id"], inputs.get("frame_index")) for inputs in frames]
    if len(frames) == 1 and not model.streams.is_in_batch(ids[0][0]):
        stream = model.streams.get(*ids[0])
        return [model.step(frames[0], stream, learner=learner)]
    streams, slots, moved = model.streams.get_batch(ids, check_images(frames, model.channels))
    inputs = [None] * streams.num_streams
    for slot, one in zip(slots, frames, strict=True):
        inputs[slot] = one
    if moved:
        _take_over(model, inputs, streams, moved)
    results = model.step_batch(inputs, streams, learning=learner is not None)
    results = [results[slot] for slot in slots]
    if learner is not None:
        # Outside a graph all decisions are learned from as one.
        lessons = [results] if streams.graph is None else [[result] for result in results]
        for lesson in lessons:
            learn(learner, model, lesson)
    return results


@torch.inference_mode(False)
@torch.no_grad()
def _take_over(model, inputs, streams, moved):
    """Continues videos of other streams, see :meth:`StreamBatch.take_over`."""
    if not streams.started:
        # Their contents are overwritten: a first frame allocates everything.
        model.step_batch(inputs, streams)
        for slot in range(streams.num_streams):
            streams.reset(slot)
    for move in moved:
        streams.take_over(*move)
