"""Estimators of motion: their base class, and their registry."""

import torch
from detectron2.utils.registry import Registry

from blockcopy_d2.config import check_arguments

from .field import field_size, zero_field
from .pyramid import luma_pyramid

__all__ = ["CELL_SIZES", "MOTION_REGISTRY", "MotionEstimator", "build_motion"]

CELL_SIZES = (8, 16, 32)

MOTION_REGISTRY = Registry("MOTION")
MOTION_REGISTRY.__doc__ = """
Registry for estimators of motion from one frame of a stream to the next.

The registered object is called with `obj(cfg)` and must return a
:class:`blockcopy_d2.motion.MotionEstimator`.
"""


class MotionEstimator:
    """
    Estimates the field between two frames of N streams, see field.py for the definition of a field.

    An estimator keeps no state. The :class:`MotionFeatures` of a stream's last frame are all that
    it needs, so streams may be interleaved, cloned and reset.

    Attributes:
        cell_size (int): c, the side of a cell of its fields.
        capturable (bool): whether ``features`` and ``estimate`` may be part of a CUDA graph. Given
            ``out`` and ``workspace`` they then allocate nothing, and the host never waits.
        reads_vectors (bool): whether it uses the vectors that come with the frames of a video.
    """

    capturable = False
    reads_vectors = False

    def __init__(self, *, cell_size=8):
        """
        Args:
            cell_size (int): side of a cell in pixels of the network's input, one of ``CELL_SIZES``.
        """
        check_arguments("MODEL.BLOCKCOPY.MOTION", cell_size=cell_size)
        self.cell_size = cell_size

    def features(self, images, image_sizes=None, *, codec=None, out=None):
        """
        Args:
            images (Tensor): uint8 or float (N, C, H, W), the pixels of the network's input before
                normalization, from 0 to 255. Pixels beyond an image are ignored.
            image_sizes (Tensor): int32 (N, 2) on the device of the images, height and width of each
                image on its canvas; None where images fill it.
            codec (list[ndarray or None]): for each stream the result of :meth:`FrameVectors.field`;
                for CodecVectors only.
            out (MotionFeatures): overwritten, if given.

        Returns:
            MotionFeatures: features of the frames.
        """
        return luma_pyramid(images, image_sizes, out=out)

    def workspace(self, features):
        """
        Returns:
            list[Tensor]: memory for ``estimate``, reusable for features of the same size.
        """
        return []

    def estimate(self, current, previous, *, out=None, workspace=None):
        """
        Args:
            current, previous (MotionFeatures): features of two frames in a row. A stream whose
                previous frame was reset gets zeros.
            out (Tensor): float32 (N, 2, GH, GW), contiguous, overwritten, if given.
            workspace (list[Tensor]): from :meth:`workspace`; allocated if left out.

        Returns:
            Tensor: the field, (N, 2, GH, GW).
        """
        raise NotImplementedError

    def _output(self, current, previous, out):
        """``out``, or a new field of zeros; checks that shapes fit."""
        level, before = current.levels[0], previous.levels[0]
        if current.size != previous.size or level.shape != before.shape:
            raise ValueError(
                f"the previous frame has {len(before)} canvases of {previous.size} pixels and "
                f"this one {len(level)} of {current.size}: reset the stream where its size changes"
            )
        shape = (len(level), 2, *field_size(current.size, self.cell_size))
        if out is None:
            return zero_field(current.size, self.cell_size, streams=len(level), device=level.device)
        if tuple(out.shape) != shape or out.dtype != torch.float32 or not out.is_contiguous():
            raise ValueError(
                f"out is {out.dtype} of shape {tuple(out.shape)}: expected contiguous "
                f"torch.float32 of {shape}"
            )
        return out


def build_motion(cfg):
    """
    Build the estimator that ``cfg.MODEL.BLOCKCOPY.MOTION.NAME`` names. "auto" is BlockMatching
    where ``cfg.MODEL.DEVICE`` is a CUDA device, or OpenCV is missing, and DISFlow elsewhere. Its
    cells are no larger than blocks.

    Args:
        cfg (CfgNode):

    Returns:
        MotionEstimator or None: None for "none", with which nothing moves.
    """
    options = cfg.MODEL.BLOCKCOPY
    name = options.MOTION.NAME
    if name == "none":
        return None
    if name == "auto":
        cfg = cfg.clone()
        cfg.defrost()
        own = cfg.MODEL.BLOCKCOPY.MOTION
        own.CELL_SIZE = min(own.CELL_SIZE, options.BLOCK_SIZE)
        name = best_estimator(cfg.MODEL.DEVICE)
    return MOTION_REGISTRY.get(name)(cfg)


def best_estimator(device):
    """
    Args:
        device (torch.device or str): where frames lie.

    Returns:
        str: name of the best estimator from pixels that this machine has.
    """
    on_gpu = torch.device(device).type == "cuda"
    return "DISFlow" if _has_opencv() and not on_gpu else "BlockMatching"


def _has_opencv():
    try:
        import cv2  # noqa: F401
    except ImportError:  # missing, or without libraries of the system
        return False
    return True
