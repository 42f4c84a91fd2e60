"""
Greedy non-maximum suppression in which the host never waits.

A box is dropped if a better one that is kept overlaps it. With boxes in order of their scores,

    keep[j] = valid[j] and not any(keep[i] and overlaps[i, j] for i < j)

has exactly one solution, the greedy one: the first box is decided, hence the second, and so on.
Starting from keep = valid and computing all boxes at once, every round decides at least one more;
in practice a handful of rounds reaches the fixed point.

Shape shorthand in this module:

    G: groups that do not suppress each other
    M: boxes of a group, in the order of their scores
    W: words of 32 boxes, a bit each, box 32 w + b in bit b of word w
"""

import torch

from blockcopy_d2.kernels import triton_runs_on

__all__ = ["nms"]


def nms(boxes, valid, threshold, labels=None):
    """
    Returns the boxes that greedy suppression keeps: those that no better kept box of their group
    overlaps with an intersection over union above the threshold. The arithmetic is torchvision's,
    on the coordinates as they are (its ``batched_nms`` may add offsets first, which rounds them).

    Args:
        boxes (Tensor): float32 (G, M, 4), x0 y0 x1 y1, in descending order of their scores.
        valid (Tensor): bool (G, M), the boxes that take part; others may hold anything, even NaN.
        threshold (float):
        labels (Tensor or None): int64 (G, M); only boxes of the same label suppress each other.

    Returns:
        Tensor: bool (G, M).
    """
    if triton_runs_on(boxes.device):
        from .triton_ops.nms import nms_triton

        return nms_triton(boxes, valid, threshold, labels)
    return nms_reference(boxes, valid, threshold, labels)


def nms_reference(boxes, valid, threshold, labels=None):
    """:func:`nms` in plain PyTorch."""
    x0, y0, x1, y1 = torch.where(valid[..., None], boxes, 0.0).unbind(-1)
    area = (x1 - x0) * (y1 - y0)
    width = torch.minimum(x1[:, :, None], x1[:, None]) - torch.maximum(x0[:, :, None], x0[:, None])
    height = torch.minimum(y1[:, :, None], y1[:, None]) - torch.maximum(y0[:, :, None], y0[:, None])
    common = width.clamp_(min=0).mul_(height.clamp_(min=0))
    overlaps = common / (area[:, :, None] + area[:, None] - common) > threshold
    if labels is not None:
        overlaps &= labels[:, :, None] == labels[:, None]
    # float (G, i, j): whether i comes before j and would suppress it.
    overlaps = overlaps.triu_(diagonal=1).float()
    keep, before = valid, None
    while before is None or not torch.equal(keep, before):
        before = keep
        suppressed = torch.matmul(before[:, None].float(), overlaps)[:, 0] > 0
        keep = valid & ~suppressed
    return keep
