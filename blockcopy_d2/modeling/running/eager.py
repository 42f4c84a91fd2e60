"""
Runs a frame operator by operator: any network, any device, any number of streams.

Shape shorthand: N streams of a batch.
"""

import functools

from detectron2.layers import move_device_like

from blockcopy_d2.policy import Decision
from blockcopy_d2.sparse import BlockGrid, block_sparse

from .arrival import look_at
from .inputs import fill_slots
from .mac_counter import MacCounter
from .motion import estimate_motion, motion_features, move_history
from .precision import inference_autocast
from .result import FrameResult
from .steps import (
    all_blocks,
    at_policy_resolution,
    choose_blocks,
    normalize,
    policies_of,
    remember,
)
from .timing import StageTimer

__all__ = ["run_frame"]


def run_frame(model, inputs, streams, *, present, learning=False, grid=None):
    """
    Args:
        model (BlockCopyVideoModel):
        inputs (list[dict or None]): N of Detectron2's input dicts, for streams of that size.
        streams (StreamBatch): updated by this call.
        present (list[bool]): the streams that have a frame.
        learning, grid: see :meth:`BlockCopyVideoModel.step_batch`.

    Returns:
        list[FrameResult or None]: one for every stream.
    """
    timer = StageTimer(model.device)
    inputs, is_first = fill_slots(inputs), [count == 0 for count in streams.counts]
    only = {"present": None if all(present) else present}
    with timer.stage("preprocess"):
        images = normalize(model, [x["image"] for x in inputs])
        frame = at_policy_resolution(model, images)
        arrival, history = look_at(model, frame, streams), streams.history
    features = field = None
    if model.motion is not None:
        with timer.stage("motion"):
            pictures = [move_device_like(x["image"], frame) for x in inputs]
            codec = [x.get("motion_vectors") for x in inputs]
            features = motion_features(model, pictures, streams, codec=codec)
            # There are none if the model had no motion until now.
            if streams.started and history.motion_features is not None:
                arrival, field = estimate_motion(model, arrival, streams, features, **only)
                streams.history = history = move_history(model, history, field)
    observations, decisions = [None] * len(inputs), [None] * len(inputs)
    asked = None
    if grid is not None:
        arrival = arrival.without_cuts()
    else:
        with timer.stage("policy"):
            if streams.started:
                observation, decisions, grid = choose_blocks(
                    model, arrival, streams, learning=learning, **only
                )
                observations = observation.split()
                asked = decisions
                decisions = [one for decision in decisions for one in decision.split()]
            else:
                grid = all_blocks(model, streams)
                decisions = Decision(active=grid.active).split()
            for n in range(len(inputs)):
                if is_first[n]:
                    # The decision of a batch's policy does not count for an absent stream.
                    observations[n], decisions[n] = None, Decision(active=grid.active[n : n + 1])
    if model.motion is not None:
        with timer.stage("move_caches"):
            if field is not None:
                model.cache_mover(streams.features, grid, field)
    timed = functools.partial(timer.stage, "network")
    with (
        timer.stage("inference"),
        inference_autocast(model.device, model.amp),
        block_sparse(model.base, grid, streams.features, timed=timed) as work,
        MacCounter(model.base, outside_blocks=True) as heads,
    ):
        outputs = model.base(inputs)
    with timer.stage("observe"):
        remember(
            model,
            streams,
            arrival,
            outputs,
            work.refreshed,
            decisions=asked,
            motion_features=features,
            **only,
        )
        streams.advance(present)
    last_seen = [None] * len(inputs) if history is None else history.outputs
    broken = streams.broken.clone() if history is None else streams.broken | history.broken
    grids = _split(work.executed)
    policies = policies_of(model, streams)
    return [
        FrameResult(
            output=outputs[n],
            frame=frame[n : n + 1],
            observation=observations[n],
            decision=decisions[n],
            grid=grids[n],
            age=streams.age[n : n + 1],
            work=work,
            detections=streams.outputs[n],
            previous_detections=last_seen[n],
            cut=arrival.cut[n],
            broken=broken[n],
            timer=timer,
            is_first=is_first[n],
            policy=policies[n],
            heads_macs=heads.macs,
            field=None if field is None else field[n : n + 1],
            gain=streams.gain[n : n + 1] if policies[n].wants_gain else None,
        )
        if present[n]
        else None
        for n in range(len(inputs))
    ]


def _split(grid):
    """list[BlockGrid]: one for each stream."""
    if len(grid.active) == 1:
        return [grid]
    layout = {"block_size": grid.block_size, "image_size": grid.image_size}
    return [BlockGrid(active, **layout) for active in grid.active.split(1)]
