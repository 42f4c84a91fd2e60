"""
Running a frame operator by operator: any network, any device, any number of streams.

Shape shorthand: N streams of a batch.
"""

import functools

import torch

from blockcopy_d2.policy import Decision
from blockcopy_d2.sparse import BlockGrid, block_sparse

from .motion import estimate_motion, move_history
from .precision import inference_autocast
from .result import FrameResult
from .steps import (
    all_blocks,
    at_policy_resolution,
    choose_blocks,
    find_cuts,
    normalize,
    remember,
)
from .timing import StageTimer

__all__ = ["run_frame"]


def run_frame(model, inputs, streams, *, present, learning=False, grid=None):
    """
    Args:
        model (BlockCopyVideoModel):
        inputs (list[dict]): N of Detectron2's input dicts, for streams of that size.
        streams (StreamBatch): brought up to date by this call.
        present (list[bool]): the streams that do have a frame.
        learning, grid: as of :meth:`BlockCopyVideoModel.step_batch`.

    Returns:
        list[FrameResult or None]: of every stream.
    """
    timer = StageTimer(model.device)
    with timer.stage("preprocess"):
        images = normalize(model, [x["image"] for x in inputs])
        frame = at_policy_resolution(model, images)
    field = None
    if model.motion is not None:
        with timer.stage("motion"):
            field = estimate_motion(model, inputs, frame, streams, present)
            if field is not None:
                move_history(model, streams, field)
    observations, decisions = [None] * len(inputs), [None] * len(inputs)
    cut = torch.zeros(len(inputs), dtype=torch.bool, device=frame.device)
    if grid is None:
        with timer.stage("policy"):
            if streams.started:
                cut = find_cuts(model, frame, streams)
                observations, decisions, grid = choose_blocks(
                    model, frame, streams, cut, learning=learning, present=present
                )
            else:
                grid = all_blocks(model, streams)
                decisions = Decision(active=grid.active).split()
    if field is not None:
        with timer.stage("motion"):
            model.cache_mover(streams.features, grid, field)
    timed = functools.partial(timer.stage, "network")
    with (
        timer.stage("inference"),
        inference_autocast(model.device, model.amp),
        block_sparse(model.base, grid, streams.features, timed=timed) as work,
    ):
        outputs = model.base(inputs)
    last_seen, was_broken = list(streams.outputs), streams.broken
    with timer.stage("observe"):
        remember(model, streams, frame, outputs, work.refreshed, present=present)
    broken = streams.broken if was_broken is None else streams.broken | was_broken
    grids = _split(work.executed)
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
            cut=cut[n],
            broken=broken[n],
            timer=timer,
            is_first=last_seen[n] is None,
            field=None if field is None else field[n : n + 1],
        )
        if present[n]
        else None
        for n in range(len(inputs))
    ]


def _split(grid):
    """list[BlockGrid]: of each stream."""
    if len(grid.active) == 1:
        return [grid]
    layout = {"block_size": grid.block_size, "image_size": grid.image_size}
    return [BlockGrid(active, **layout) for active in grid.active.split(1)]
