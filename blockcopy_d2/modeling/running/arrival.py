"""
Looks at the pictures of frames before anything is decided: are they finite, and do they show the
scene of the last ones?

Shape shorthand in this module:

    N: streams of a batch
    h, w: policy resolution
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blockcopy_d2.kernels import triton_runs_on
from blockcopy_d2.sparse import num_blocks

from .scene_cut import LEAST_UNEXPLAINED, scene_cuts

__all__ = ["Arrival", "is_finite", "look_at", "without_motion"]


@dataclass(eq=False)
class Arrival:
    """
    The pictures of new frames, and how they follow the last ones.

    Attributes:
        picture (Tensor): float (N, 3, h, w), the frame with finite numbers only.
        finite (Tensor): bool (N,), whether the frame had no others.
        cut (Tensor): bool (N,), whether it shows another scene than the last one of its video; see
            :func:`scene_cuts`.
        new (Tensor): bool (N,), whether it is the first of a video, is not finite, or follows one
            that left features that are not.
    """

    picture: Tensor
    finite: Tensor
    cut: Tensor
    new: Tensor

    @property
    def follows_nothing(self):
        """
        Tensor: bool (N,), the frames that cannot use anything of the last one. Features that are
        not finite must be replaced, and a frame that is not finite spoils every block.
        """
        return self.cut | self.new

    def without_cuts(self):
        """Returns the same frames as parts of one scene."""
        return dataclasses.replace(self, cut=torch.zeros_like(self.cut))


def look_at(model, frame, streams):
    """
    Args:
        model (BlockCopyVideoModel):
        frame (Tensor): float (N, 3, h, w), new frames.
        streams (StreamBatch): their streams.

    Returns:
        Arrival: without cuts before the first frame of a stream, or where the model looks for none.
    """
    history = streams.history
    if history is None:
        finite = is_finite(frame)
        flags = torch.zeros_like(finite), torch.ones_like(finite)
        return Arrival(frame.nan_to_num(), finite, *flags)
    return _compare_with(history.frame, model, frame, streams)


def without_motion(model, arrival, streams, moved):
    """
    Keep cuts apart from a picture that moves fast: a camera that is shaken, or follows an animal,
    may change as much of the picture as a cut does. Its motion explains that, and the next scene's
    does not.

    Args:
        model (BlockCopyVideoModel):
        arrival (Arrival): from :func:`look_at`.
        streams (StreamBatch):
        moved (Tensor): float (N, 3, h, w), the last frames as they moved.

    Returns:
        Arrival: cut only where the moved frame differs, too.
    """
    compared = _compare_with(moved, model, arrival.picture, streams, least=LEAST_UNEXPLAINED)
    return dataclasses.replace(arrival, cut=arrival.cut & compared.cut)


def _compare_with(previous, model, frame, streams, least=1.0):
    """See :func:`compare_frames`; at a cut, ``least`` times the share of the options changed."""
    canvas = math.prod(num_blocks(model.block_size, streams.canvas_size)) * model.block_size**2
    history = streams.history
    return compare_frames(
        frame,
        previous,
        history.frame_index,
        history.broken,
        share=least * model.options.scene_cut,
        pixels_per_block=model.task.pixels_per_block,
        pixel_std=model.base.pixel_std,
        coverage=math.prod(streams.image_size) / canvas,
    )


def compare_frames(frame, previous, index, broken, **settings):
    """
    Args:
        frame, previous (Tensor): float (N, 3, h, w); the previous one is finite.
        index (Tensor): int64 (N,), number of the frame in its video, from 0.
        broken (Tensor): bool (N,), whether the last frame left features that are not finite.
        settings: of :func:`scene_cuts`; a share of 0 finds no cuts.

    Returns:
        Arrival:
    """
    if triton_runs_on(frame.device):
        from .triton_arrival import compare_frames_triton

        return Arrival(*compare_frames_triton(frame, previous, index, broken, **settings))
    return compare_frames_reference(frame, previous, index, broken, **settings)


def compare_frames_reference(frame, previous, index, broken, *, share, **settings):
    """:func:`compare_frames` in plain PyTorch."""
    finite = is_finite(frame)
    cut = torch.zeros_like(finite)
    if share:
        cut = scene_cuts(frame, previous, share=share, **settings) & (index > 0)
    return Arrival(frame.nan_to_num(), finite, cut, broken | ~finite | (index == 0))


def is_finite(x):
    """
    Returns:
        Tensor: bool (N,), whether all numbers of ``x`` are finite, for each stream.
    """
    return torch.linalg.vector_norm(x.flatten(1), torch.inf, dim=1) < torch.inf
