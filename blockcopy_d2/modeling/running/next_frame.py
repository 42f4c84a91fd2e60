"""
Runs the next frame of streams. Streams whose features are lost, or belong to other weights, go on
with a whole frame.

Shape shorthand: N streams of a batch.
"""

import functools

import torch

from blockcopy_d2.kernels.device import on_device
from blockcopy_d2.sparse import MissingFeatures

from .eager import run_frame
from .footprint import explain_shortage
from .graph import FrameGraph, WeightsChanged
from .inputs import (
    check_first_frames,
    check_inputs,
    check_precision,
    given_blocks,
    warn_of_range,
)
from .learning import learn
from .region import place_regions
from .steps import fit_to_size

__all__ = ["run_and_learn", "run_next_frame"]


def run_and_learn(model, inputs, streams, learner, *, grid=None):
    """
    Run a frame, and teach the policies from it.

    Args:
        model, inputs, streams, learner, grid: see :meth:`BlockCopyVideoModel.step_batch`.

    Returns:
        list[FrameResult or None]: one for every stream.

    Raises:
        ValueError: there is not one learner for every policy, or see :func:`run_next_frame`.
    """
    shared = streams.policies is None
    learners = learner if isinstance(learner, list) else [learner]
    if len(learners) != (1 if shared else streams.num_streams):
        raise ValueError(
            f"{len(learners)} learners for {streams.num_streams} streams that"
            f" {'share a policy' if shared else 'have a policy each'}; expected one for every"
            " policy."
        )
    # No other frame must come between a decision and learning from it.
    with model.lock:
        learning = [one is not None and one.wants_graph() for one in learners]
        learning = learning[0] if shared else learning
        results = run_next_frame(model, inputs, streams, learning=learning, grid=grid)
        for one, group in zip(learners, [results] if shared else zip(results), strict=True):
            if one is not None:
                learn(one, model, [result for result in group if result is not None])
    return results


@torch.inference_mode(False)
@torch.no_grad()
def run_next_frame(model, inputs, streams, *, learning=False, grid=None):
    """
    Args:
        model, inputs, streams, learning, grid: see :meth:`BlockCopyVideoModel.step_batch`.

    Returns:
        list[FrameResult or None]: one for every stream. All blocks are executed where the weights
        of the task network are others than in the last frame, or features are missing.

    Raises:
        ValueError: the number of inputs or the sizes of images do not fit.
        OutOfMemoryError: there is too little memory; it says how many streams fit.
    """
    present = [x is not None for x in inputs]
    image_size = check_inputs(inputs, streams, model.channels)
    with model.lock, on_device(model.device):
        if streams.image_size is None:
            warn_of_range(inputs)
        fit_to_size(model, streams, image_size)
        # A replayed frame looks at the weights while the device works.
        verify = None
        if streams.graph is not None and grid is None:
            verify = functools.partial(_verify_weights, model, streams)
        changed = verify is None and _weights_changed(model, streams)
        if streams.lost or changed:
            streams.lose()
        started = streams.started
        if grid is not None and not streams.lost:
            check_first_frames(grid, streams, present)
        options = {"present": present, "learning": learning, "grid": grid, "verify": verify}
        try:
            results = _run(model, inputs, streams, **options)
        except MissingFeatures:
            streams.lose()
            if not started:
                raise
            # For example, features of another precision, which was set since the last frame.
            results = _run(model, inputs, streams, **options)
        except BaseException as error:
            # Features may belong to two frames, and the memory of graphs may be gone.
            streams.lose()
            if streams.num_streams > 1 and _is_shortage(error):
                message = explain_shortage(model, inputs, streams)
                raise torch.OutOfMemoryError(message) from error
            raise
        # A module that could not be traced now may be traced later, in a whole frame.
        streams.lost = any(x.work.may_improve for x in results if x is not None)
        return results


def _weights_changed(model, streams):
    """bool: whether the task network has other weights than in the last frame of streams."""
    before, streams.weights_version = streams.weights_version, model.weights_version
    return before not in (None, streams.weights_version)


def _verify_weights(model, streams):
    if _weights_changed(model, streams):
        raise WeightsChanged


def _run(model, inputs, streams, **options):
    """Runs a frame; once more, with all blocks, if it finds other weights while it runs."""
    try:
        return _run_once(model, inputs, streams, **options)
    except WeightsChanged:
        streams.lose()
        return _run_once(model, inputs, streams, **options)


def _run_once(model, inputs, streams, *, present, learning, grid, verify):
    """Runs a frame as a graph where there is one, else operator by operator."""
    place_regions(model, inputs, streams)
    if grid is not None:
        grid = given_blocks(model, grid, streams, present)
    options = {"present": present, "learning": learning, "grid": grid}
    graph = FrameGraph.of(model, streams, inputs)
    if graph is not None:
        return graph.step(model, inputs, streams, verify=verify, **options)
    if verify is not None:
        verify()
    check_precision(model)
    return run_frame(model, inputs, streams, **options)


def _is_shortage(error):
    """Returns whether an error was caused by too little memory."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error is not None
