"""
Pastes masks of detections onto an output: Detectron2's ``paste_masks_in_image``, for all pixels or
for some rows and columns.

Shape shorthand in this module:

    N: images of a batch
    D: detections of an image at most
    M: side of a predicted mask
    H, W: rows and columns of pixels
"""

import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from torch.nn import functional as F

from blockcopy_d2.kernels import triton_runs_on

from .constants import MASK_THRESHOLD

__all__ = ["paste_masks", "sample_masks"]


def paste_masks(masks, boxes, count, out):
    """
    Pastes the masks of detections as ``paste_masks_in_image`` does with its threshold of 0.5.

    Args:
        masks (Tensor): probabilities, float32 (N, D, M, M).
        boxes (Tensor): float32 (N, D, 4) in pixels of the output, not empty.
        count (Tensor): int32 (N,), detections of each image.
        out (Tensor): bool (N, d, H, W), contiguous, at the size of the output, of the first d
            detections. It is False in the masks of the first ``count`` of them, which are written.
            The others stay.
    """
    if triton_runs_on(masks.device):
        from .triton_ops.paste import paste_masks_triton

        paste_masks_triton(masks, boxes, count, out)
    else:
        paste_masks_reference(masks, boxes, count, out)


def paste_masks_reference(masks, boxes, count, out):
    """:func:`paste_masks` by Detectron2's own function, one image at a time."""
    for image, filled in enumerate(count.clamp(max=out.shape[1]).tolist()):
        out[image, :filled] = paste_masks_in_image(
            masks[image, :filled], boxes[image, :filled], out.shape[2:], MASK_THRESHOLD
        )


def sample_masks(masks, boxes, count, rows, columns):
    """
    Returns :func:`paste_masks` of some rows and columns of the output.

    Args:
        masks, boxes, count: as in :func:`paste_masks`.
        rows, columns (Tensor): int64 (H,) and (W,), pixels of the output; -1 for one beyond it.

    Returns:
        Tensor: bool (N, D, H, W); False beyond the output and beyond ``count``.
    """
    if triton_runs_on(masks.device):
        from .triton_ops.paste import sample_masks_triton

        return sample_masks_triton(masks, boxes, count, rows, columns)
    return sample_masks_reference(masks, boxes, count, rows, columns)


def sample_masks_reference(masks, boxes, count, rows, columns):
    """:func:`sample_masks` in plain PyTorch, one detection at a time."""
    images, detections = masks.shape[:2]
    size = (images, detections, len(rows), len(columns))
    out = torch.zeros(size, dtype=torch.bool, device=masks.device)
    exists = (rows >= 0)[:, None] & (columns >= 0)
    for image, number in enumerate(count.tolist()):
        for slot in range(number):
            x0, y0, x1, y1 = boxes[image, slot]
            y = (rows.float() + 0.5 - y0) / (y1 - y0) * 2 - 1
            x = (columns.float() + 0.5 - x0) / (x1 - x0) * 2 - 1
            grid = torch.stack(torch.broadcast_tensors(x, y[:, None]), dim=2)
            value = F.grid_sample(masks[None, image, slot, None], grid[None], align_corners=False)
            out[image, slot] = exists & (value[0, 0] >= MASK_THRESHOLD)
    return out
