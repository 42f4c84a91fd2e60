"""
Motion in a frame: what is known of a stream moves with the picture, before the policy looks at it.

Shape shorthand in this module:

    N: streams of a batch
    FH, FW: rows and columns of cells of the motion field
    h, w: policy resolution
"""

import torch
from detectron2.layers import move_device_like

from blockcopy_d2.motion import PolicyMotion, clear_field

from .steps import find_cuts, is_finite, pad

__all__ = ["estimate_motion", "move_history"]


def estimate_motion(model, inputs, frame, streams, present):
    """
    Where the content of the frames was in the last frames of their streams. What is needed of this
    frame to estimate the next motion is kept in the streams.

    Args:
        model (BlockCopyVideoModel): with an estimator.
        inputs (list[dict]): N of Detectron2's input dicts.
        frame (Tensor): float (N, 3, h, w).
        streams (StreamBatch):
        present (list[bool]): the streams that do have a frame.

    Returns:
        Tensor or None: float32 (N, 2, FH, FW), see :mod:`blockcopy_d2.motion.field`; 0 for streams
        without a frame, in first frames, at cuts and around frames that are not finite. None where
        no stream has had a frame.
    """
    images = [move_device_like(x["image"], model.base.pixel_mean) for x in inputs]
    sizes = None
    if tuple(streams.image_size) != tuple(streams.canvas_size):
        sizes = torch.tensor([streams.image_size] * len(images), dtype=torch.int32)
        sizes = sizes.to(frame.device)
    canvas = pad(model, images).tensor
    codec = [x.get("motion_vectors") for x in inputs]
    current = model.motion.features(canvas, sizes, codec=codec)
    previous, streams.motion_features = streams.motion_features, current
    if previous is None:
        return None
    field = model.motion.estimate(current, previous)
    cleared = find_cuts(model, frame, streams) | streams.broken | ~is_finite(frame)
    cleared |= streams.frame_index == 0
    if not all(present):
        cleared |= ~streams.mask(present, cleared)
        _keep_absent(current, previous, streams.mask(present, current.levels[0]))
    return clear_field(field, cleared)


def _keep_absent(current, previous, present):
    """Streams without a frame keep the last one, in place."""
    for level, before in zip(current.levels, previous.levels, strict=True):
        level.copy_(torch.where(present, level, before))


def move_history(model, streams, field):
    """
    Move what the policy and the information gain see of the past: frame state, painted output and
    last output.

    Args:
        model (BlockCopyVideoModel):
        streams (StreamBatch): that have had a frame.
        field (Tensor): float32 (N, 2, FH, FW).
    """
    motion = PolicyMotion(
        field,
        cell_size=model.motion.cell_size,
        stride=model.block_size / model.task.pixels_per_block,
        size=tuple(streams.painted.shape[-2:]),
    )
    seen = torch.cat([streams.frame_state, streams.painted.to(streams.frame_state.dtype)], dim=1)
    moved = motion.move_maps(seen)
    streams.frame_state = moved[:, :3]
    streams.painted = moved[:, 3:].to(streams.painted.dtype)
    streams.outputs = [
        None if output is None else model.task.move(output, one)
        for output, one in zip(streams.outputs, motion.split(), strict=True)
    ]
