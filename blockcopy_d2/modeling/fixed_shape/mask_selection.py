"""
Turns the mask head's logits of all classes into the masks of one class each.

Shape shorthand in this module:

    R: regions of all images
    P: side of the pooled features of a region
    M: side of a mask, 2 P
    K: classes
"""

import math

from blockcopy_d2.kernels import triton_runs_on

__all__ = ["select_masks"]


def select_masks(logits, classes):
    """
    Args:
        logits (Tensor): (R, P P 4, K), four pixels of a mask, 2 x 2, for each of the features; K is
            1 if all classes share a mask.
        classes (Tensor): int64 (R,).

    Returns:
        Tensor: probabilities, float32 (R, M, M).
    """
    if triton_runs_on(logits.device):
        from .triton_ops.mask_selection import select_masks_triton

        return select_masks_triton(logits, classes)
    return select_masks_reference(logits, classes)


def select_masks_reference(logits, classes):
    """:func:`select_masks` in plain PyTorch."""
    regions, side = len(logits), math.isqrt(logits.shape[1] // 4)
    if logits.shape[2] > 1:
        logits = logits.gather(2, classes[:, None, None].expand(-1, logits.shape[1], 1))
    masks = logits.view(regions, side, side, 2, 2).transpose(2, 3)
    return masks.reshape(regions, 2 * side, 2 * side).float().sigmoid()
