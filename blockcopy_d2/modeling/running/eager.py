"""
Runs a frame operator by operator: any network, any device, any number of streams.

Shape shorthand: N streams of a batch.
"""

import functools
from dataclasses import dataclass

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
        arrival = look_at(model, frame, streams)
    features = field = None
    if model.motion is not None:
        with timer.stage("motion"):
            arrival, features, field = _follow_motion(model, inputs, arrival, streams, only)
    # As the policy sees it: moved with the picture.
    history = streams.history
    if grid is None:
        with timer.stage("policy"):
            choice = _choose(model, arrival, streams, is_first, learning=learning, **only)
    else:
        arrival, choice = arrival.without_cuts(), _Choice.given(grid)
    if model.motion is not None:
        with timer.stage("move_caches"):
            if field is not None:
                model.cache_mover(streams.features, choice.grid, field)
    outputs, work, heads_macs = _run_network(model, inputs, choice.grid, streams, timer)
    with timer.stage("observe"):
        told = {"decisions": choice.asked, "motion_features": features, **only}
        remember(model, streams, arrival, outputs, work.refreshed, **told)
        streams.advance(present)
    last_seen = [None] * len(inputs) if history is None else history.outputs
    broken = streams.broken.clone() if history is None else streams.broken | history.broken
    grids, policies = _split(work.executed), policies_of(model, streams)
    return [
        FrameResult(
            output=outputs[n],
            frame=frame[n : n + 1],
            observation=choice.observations[n],
            decision=choice.decisions[n],
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
            heads_macs=heads_macs,
            field=None if field is None else field[n : n + 1],
            gain=streams.gain[n : n + 1] if policies[n].wants_gain else None,
        )
        if present[n]
        else None
        for n in range(len(inputs))
    ]


@dataclass
class _Choice:
    """
    The blocks of a frame to execute.

    Attributes:
        grid (BlockGrid):
        asked (list[Decision] or None): decisions of the policies; None where none was asked.
        observations, decisions (list): Observation and Decision of every stream; None where its
            policy was not asked, except for the decision of a first frame to execute all blocks.
    """

    grid: BlockGrid
    asked: list | None
    observations: list
    decisions: list

    @classmethod
    def given(cls, grid):
        """Returns the choice of a caller."""
        nothing = [None] * len(grid.active)
        return cls(grid, None, nothing, nothing)


def _follow_motion(model, inputs, arrival, streams, only):
    """
    Moves the history of streams with the picture.

    Returns:
        tuple[Arrival, MotionFeatures, Tensor or None]: the frames without the cuts that are fast
        motion, the features of their pictures, and the motion field; see :func:`estimate_motion`.
    """
    pictures = [move_device_like(x["image"], arrival.picture) for x in inputs]
    codec = [x.get("motion_vectors") for x in inputs]
    features, field = motion_features(model, pictures, streams, codec=codec), None
    # There are none in the history if the model had no motion until now.
    if streams.started and streams.history.motion_features is not None:
        arrival, field = estimate_motion(model, arrival, streams, features, **only)
        streams.history = move_history(model, streams.history, field)
    return arrival, features, field


def _choose(model, arrival, streams, is_first, *, learning, present):
    """
    Returns:
        _Choice: the policies', or all blocks where no stream has had a frame.
    """
    if streams.started:
        observation, asked, grid = choose_blocks(
            model, arrival, streams, learning=learning, present=present
        )
        observations = observation.split()
        decisions = [one for decision in asked for one in decision.split()]
    else:
        asked, grid = None, all_blocks(model, streams)
        observations, decisions = [None] * len(is_first), [None] * len(is_first)
    for n, first in enumerate(is_first):
        if first:
            # The decision of a batch's policy does not count for an absent stream.
            observations[n], decisions[n] = None, Decision(active=grid.active[n : n + 1])
    return _Choice(grid, asked, observations, decisions)


def _run_network(model, inputs, grid, streams, timer):
    """
    Returns:
        tuple[list[dict], SparseFrame, int]: outputs of the task network, the work of its
        block-sparse modules, and the multiply-accumulates of the others.
    """
    timed = functools.partial(timer.stage, "network")
    with (
        timer.stage("inference"),
        inference_autocast(model.device, model.amp),
        block_sparse(model.base, grid, streams.features, timed=timed) as work,
        MacCounter(model.base, outside_blocks=True) as heads,
    ):
        outputs = model.base(inputs)
    return outputs, work, heads.macs


def _split(grid):
    """list[BlockGrid]: one for each stream."""
    if len(grid.active) == 1:
        return [grid]
    layout = {"block_size": grid.block_size, "image_size": grid.image_size}
    return [BlockGrid(active, **layout) for active in grid.active.split(1)]
