"""
Motion in a frame: the history of a stream moves with the picture, before the policy is asked.

Shape shorthand in this module:

    N: streams of a batch
    FH, FW: rows and columns of cells of the motion field
    h, w: policy resolution
"""

import dataclasses

import torch

from blockcopy_d2.motion import PolicyMotion, clear_field

from .arrival import without_motion
from .batch_task import move_outputs
from .history import flags, where_present
from .steps import pad

__all__ = ["estimate_motion", "motion_features", "move_history"]


def motion_features(model, images, streams, *, codec=None):
    """
    Args:
        model (BlockCopyVideoModel): with an estimator.
        images (list[Tensor] or Tensor): N pictures (3, height, width) on the model's device, pixel
            values.
        streams (StreamBatch): streams of frames of that size.
        codec (list or None): vectors of every stream, see :meth:`MotionEstimator.features`.

    Returns:
        MotionFeatures: the estimator's features of these frames.
    """
    canvas, sizes = pad(model, images).tensor, None
    if tuple(streams.image_size) != tuple(streams.canvas_size):
        # Filled on the device: the host does not wait.
        sizes = torch.empty(len(images), 2, dtype=torch.int32, device=canvas.device)
        sizes[:, 0], sizes[:, 1] = streams.image_size
    return model.motion.features(canvas, sizes, codec=codec)


def estimate_motion(model, arrival, streams, features, *, present=None):
    """
    Estimates where the content of the frames was in the last frames of their streams.

    Args:
        model (BlockCopyVideoModel): with an estimator.
        arrival (Arrival): the frames.
        streams (StreamBatch): streams that have had a frame.
        features (MotionFeatures): from :func:`motion_features`; streams without a frame get their
            last ones.
        present (sequence[bool] or Tensor or None): the streams that have a frame; None: all.

    Returns:
        tuple[Arrival, Tensor]: the frames without the cuts that are fast motion, see
        :func:`without_motion`; and the field, float32 (N, 2, FH, FW), see
        :mod:`blockcopy_d2.motion.field`; 0 for streams without a frame, in first frames, at cuts
        and around frames that are not finite.
    """
    history = streams.history
    field = model.motion.estimate(features, history.motion_features)
    cleared = arrival.new
    if present is not None:
        cleared = cleared | ~flags(present, cleared)
        _keep_absent(features, history.motion_features, present)
    field = clear_field(field, cleared)
    if model.options.scene_cut:
        moved = _policy_motion(model, history, field).move_maps(history.frame)
        arrival = without_motion(model, arrival, streams, moved)
        field = clear_field(field, arrival.cut)
    return arrival, field


def _keep_absent(current, previous, present):
    """Streams without a frame keep the last one, in place."""
    for level, before in zip(current.levels, previous.levels, strict=True):
        level.copy_(where_present(present, level, before))


def move_history(model, history, field):
    """
    Move the history that the policy and the information gain see: frame state, painted output and
    last output.

    Args:
        model (BlockCopyVideoModel):
        history (StreamHistory):
        field (Tensor): float32 (N, 2, FH, FW).

    Returns:
        StreamHistory: the moved history.
    """
    motion = _policy_motion(model, history, field)
    if isinstance(history.outputs, list):
        outputs = [
            None if output is None else model.task.move(output, one)
            for output, one in zip(history.outputs, motion.split(), strict=True)
        ]
    else:
        outputs = move_outputs(model.task, history.outputs, motion)
    return dataclasses.replace(
        history,
        frame_state=motion.move_maps(history.frame_state),
        painted=motion.move_maps(history.painted),
        outputs=outputs,
    )


def _policy_motion(model, history, field):
    return PolicyMotion(
        field,
        cell_size=model.motion.cell_size,
        stride=model.block_size / model.task.pixels_per_block,
        size=tuple(history.painted.shape[-2:]),
    )
