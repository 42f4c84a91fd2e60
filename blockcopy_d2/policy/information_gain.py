"""
Information gain: how much an executed frame changed the output (section 3.4 of the paper).

Shape shorthand in this module:

    N: streams of a batch; detections of all of them, in as many slots each, are tensors (N, n, ...)
    n, m: detections of the current and of the previous frame
    GH, GW: rows and columns of the block grid
    P: side of a block in policy pixels
    h, w: policy resolution, P GH x P GW
    K: classes
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from blockcopy_d2.kernels import triton_runs_on

from .observation import PIXELS_PER_BLOCK, paint_maximum

__all__ = [
    "DetectionMasks",
    "block_information_gain",
    "instance_block_gain",
    "instance_information_gain",
    "move_detections",
    "semantic_information_gain",
]


@dataclass
class DetectionMasks:
    """
    The detections of one frame of one stream; or of N streams, with one more dimension in front of
    all tensors.

    Attributes:
        masks (Tensor): bool (n, h, w), the pixels of each detection.
        scores (Tensor): float (n,).
        classes (Tensor): int64 (n,).
        boxes (Tensor or None): float (n, 4), x0 y0 x1 y1 at any scale, for detectors without masks.
            The overlap of detections is then that of their boxes.
        pixels_per_block (int): P, at most 128.
        box_scale (tuple[float, float]): pixels of the boxes per pixel of the network's input, along
            x and along y.
    """

    masks: Tensor
    scores: Tensor
    classes: Tensor
    boxes: Tensor | None = None
    pixels_per_block: int = PIXELS_PER_BLOCK
    box_scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self):
        height, width = self.masks.shape[-2:]
        side = self.pixels_per_block
        if self.masks.dtype != torch.bool or height % side or width % side:
            raise ValueError(
                f"Detection masks are {self.masks.dtype} of shape {tuple(self.masks.shape)};"
                f" expected torch.bool (n, h, w) with h and w multiples of {side}."
            )

    def __len__(self):
        return len(self.masks)

    @cached_property
    def areas(self):
        """Tensor: float (n,), pixels."""
        return self._column_counts.sum(dim=(-2, -1), dtype=torch.float32)

    @cached_property
    def touched_blocks(self):
        """Tensor: bool (n, GH, GW), the blocks that a detection has a pixel in."""
        return self._column_counts.unflatten(-1, (-1, self.pixels_per_block)).amax(dim=-1) > 0

    @cached_property
    def _column_counts(self):
        # Within the rows of a block a count fits into a byte, which makes this fast.
        rows = self.masks.view(torch.uint8).unflatten(-2, (-1, self.pixels_per_block))
        return rows.sum(dim=-2, dtype=torch.uint8)


def move_detections(detections, motion):
    """
    Args:
        detections (DetectionMasks): n detections of a frame, of one stream or of N.
        motion (PolicyMotion): motion of these streams from that frame to the next.

    Returns:
        DetectionMasks: the moved detections. Pixels of masks move by their own vectors, and a box
        by the mean vector of its pixels.
    """
    masks, boxes = motion.move_masks(detections.masks), detections.boxes
    if boxes is not None:
        # A vector leads from a pixel's place to its source.
        dx, dy = motion.mean_vectors(masks).unbind(-1)
        shift = [vector * scale for vector, scale in zip((dx, dy), detections.box_scale)]
        boxes = boxes - torch.stack([*shift, *shift], dim=-1)
    return dataclasses.replace(detections, masks=masks, boxes=boxes)


def instance_information_gain(current, previous):
    """
    Algorithm 1 of the paper: every detection is compared with the previous detection of its class
    that overlaps it most.

    Args:
        current (DetectionMasks): n detections.
        previous (DetectionMasks): m detections.

    Returns:
        Tensor: float (h, w), information gain of every pixel.
    """
    masks = torch.cat([current.masks, previous.masks])
    weights = torch.cat(_detection_gains(current, previous))
    channels = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
    return paint_maximum(masks, weights, channels, num_channels=1)[0]


def instance_block_gain(current, previous, grid_shape):
    """
    :func:`block_information_gain` of :func:`instance_information_gain`, without painting: the
    gain of a block is the largest of the detections that touch it.

    Args:
        current, previous (DetectionMasks): n and m detections, of one stream or of N.
        grid_shape (tuple[int, int]): GH, GW.

    Returns:
        Tensor: float (GH, GW), or (N, GH, GW).
    """
    height, width = (length // current.pixels_per_block for length in current.masks.shape[-2:])
    if (height, width) != tuple(grid_shape):
        raise ValueError(f"The masks cover {(height, width)} blocks; the grid has {grid_shape}.")
    if current.boxes is None and triton_runs_on(current.masks.device):
        from .gain_kernels import mask_block_gain_triton, serves

        if serves(current, previous):
            return mask_block_gain_triton(current, previous)
    return instance_block_gain_reference(current, previous)


def instance_block_gain_reference(current, previous):
    """:func:`instance_block_gain` in plain PyTorch."""
    touched = torch.cat([current.touched_blocks, previous.touched_blocks], dim=-3)
    weights = torch.cat(_detection_gains(current, previous), dim=-1)
    if weights.shape[-1] == 0:
        return weights.new_zeros(*weights.shape[:-1], *touched.shape[-2:])
    return torch.where(touched, weights[..., None, None], 0.0).amax(dim=-3)


def semantic_information_gain(current, previous):
    """
    Pixelwise KL divergence of the current output from the previous one, in nats. (The authors'
    public code takes the opposite direction, and the mean over classes for the sum.)

    Args:
        current, previous (Tensor): float (K, h, w), probabilities of the classes; or
            (N, K, h, w).

    Returns:
        Tensor: float (h, w), or (N, h, w).
    """
    least = torch.finfo(current.dtype).eps
    log_ratio = current.clamp_min(least).log() - previous.clamp_min(least).log()
    return (current * log_ratio).sum(dim=-3).clamp_min(0)


def block_information_gain(gain, grid_shape):
    """
    Returns the largest gain of the pixels of each block, eq. 1.

    Args:
        gain (Tensor): float (h, w), or (N, h, w).
        grid_shape (tuple[int, int]): GH, GW.

    Returns:
        Tensor: float (GH, GW), or (N, GH, GW).
    """
    rows, columns = grid_shape
    return gain.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1)).amax(dim=(-3, -1))


def _detection_gains(current, previous):
    """
    Returns the gain that Algorithm 1 assigns to the pixels of each detection.

    Returns:
        tuple[Tensor, Tensor]: float (n,) and (m,), or (N, n) and (N, m).
    """
    overlap = _box_iou if current.boxes is not None else _mask_iou
    same_class = current.classes[..., :, None] == previous.classes[..., None, :]
    iou = torch.where(same_class, overlap(current, previous), 0.0)
    # Column 0 stands for no detection: it wins where nothing overlaps.
    best_iou, match = F.pad(iou, (1, 0)).max(dim=-1)
    novelty = 1 - best_iou
    # A previous detection takes the largest change of those matched with it. An unmatched one has
    # disappeared, and counts in full.
    matched = match[..., None] == torch.arange(1, iou.shape[-1] + 1, device=match.device)
    change = torch.where(matched, novelty[..., None], -1.0)
    change = F.pad(change, (0, 0, 0, 1), value=-1.0).amax(dim=-2)
    change = torch.where(change < 0, 1.0, change)
    return novelty * current.scores, change * previous.scores


def _box_iou(current, previous):
    """Detectron2's ``pairwise_iou`` for one or several streams."""
    boxes, others = current.boxes[..., :, None, :], previous.boxes[..., None, :, :]
    corners = torch.minimum(boxes[..., 2:], others[..., 2:])
    sides = corners - torch.maximum(boxes[..., :2], others[..., :2])
    common = sides.clamp_min(0).prod(dim=-1)
    area, other_area = ((x[..., 2:] - x[..., :2]).prod(dim=-1) for x in (boxes, others))
    return torch.where(common > 0, common / (area + other_area - common), 0.0)


def _mask_iou(current, previous):
    """
    Returns:
        Tensor: float (n, m), or (N, n, m); 0 for a pair of empty masks.
    """
    intersection = _intersections(current.masks.flatten(-2), previous.masks.flatten(-2))
    union = current.areas[..., :, None] + previous.areas[..., None, :] - intersection
    return intersection / union.clamp_min(1)


def _intersections(current, previous):
    """
    Args:
        current, previous (Tensor): bool (n, hw) and (m, hw), or (N, n, hw) and (N, m, hw).

    Returns:
        Tensor: float (n, m), or (N, n, m), number of pixels in common.
    """
    if triton_runs_on(current.device):
        from .overlap_kernels import common_pixels_triton

        return common_pixels_triton(current, previous)
    if current.is_cuda or current.dim() > 2:
        return _count_in_half(current, previous)
    if len(current) and len(previous):
        # Pixels that are empty on one side add nothing. Dropping them, eight at a time, saves most
        # of the product. (On CUDA the host would have to wait for their number.)
        common = current.view(torch.uint8).amax(0) & previous.view(torch.uint8).amax(0)
        common = common.view(torch.int64).nonzero()[:, 0]
        current, previous = (
            masks.view(torch.int64).index_select(1, common).view(torch.bool)
            for masks in (current, previous)
        )
    return common_pixels_reference(current, previous)


def common_pixels_reference(current, previous):
    """:func:`_intersections` in plain PyTorch. Single precision counts exactly up to 2^24."""
    return current.float() @ previous.float().mT


def _count_in_half(current, previous):
    """
    :func:`_intersections` on tensor cores. Half precision counts exactly up to 2048, so that each
    product covers as many pixels.
    """
    size = math.gcd(current.shape[-1], 2048)
    current, previous = (
        masks.half().unflatten(-1, (-1, size)).transpose(-3, -2) for masks in (current, previous)
    )
    return torch.matmul(current, previous.mT).sum(dim=-3, dtype=torch.float32)
