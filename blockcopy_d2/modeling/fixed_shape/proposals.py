"""
Turns the RPN head's outputs into a fixed number of proposals: Detectron2's
``find_top_rpn_proposals``, with masks where it selects by boolean indices.

Shape shorthand in this module:

    N: images of a batch
    L: feature levels
    A: anchors of a pixel
    M_l: anchors of level l, H_l x W_l x A
    k: candidates of a level before suppression, pre_nms_topk
    R: proposals of an image, post_nms_topk
"""

import torch

from blockcopy_d2.kernels import triton_runs_on

from .nms import nms
from .ranking import best_boxes

__all__ = ["decode_candidates", "find_proposals", "per_anchor"]


def find_proposals(
    logits,
    deltas,
    anchors,
    *,
    transform,
    image_size,
    nms_threshold,
    pre_nms_topk,
    post_nms_topk,
    least_side,
):
    """
    Detectron2's ``find_top_rpn_proposals`` for inference. Among anchors of equal logits the choice
    is undefined, as in Detectron2.

    Args:
        logits (list[Tensor]): objectness of every level, (N, A, H_l, W_l).
        deltas (list[Tensor]): deltas of every level, (N, 4 A, H_l, W_l).
        anchors (list[Tensor]): anchors of every level, float32 (M_l, 4).
        transform (Box2BoxTransform): transform of the RPN.
        image_size (tuple[int, int]): height, width without padding.
        nms_threshold (float): intersection over union.
        pre_nms_topk, post_nms_topk (int): k and R; fewer where there are fewer anchors.
        least_side (float): in pixels; smaller boxes are dropped.

    Returns:
        tuple[Tensor, Tensor]: boxes, float32 (N, R, 4), in descending order of their logits,
        float32 (N, R). Slots without a proposal come last and hold zeros and a logit of -inf.
    """
    top_logits, index = top_anchors(logits, pre_nms_topk)
    boxes, valid = decode_candidates(
        deltas, anchors, index, top_logits, transform, image_size, least_side
    )
    keep = nms(boxes.flatten(0, 1), valid.flatten(0, 1), nms_threshold).view_as(valid)
    return best_boxes(top_logits.flatten(1), boxes.flatten(1, 2), keep.flatten(1), post_nms_topk)


def per_anchor(x, channels):
    """
    Args:
        x (Tensor): (N, A channels, H, W).
        channels (int): number of channels of an anchor.

    Returns:
        Tensor: (N, H W A, channels).
    """
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, channels)


def top_anchors(logits, k):
    """
    Args:
        logits (list[Tensor]): (N, A, H_l, W_l), best channels-last.
        k (int): number of anchors of each level, at most that of the largest level.

    Returns:
        tuple[Tensor, Tensor]: the k largest logits of every level in descending order, float32
        (N, L, k), and the indices of their anchors, int64 (N, L, k). Levels with fewer anchors end
        with logits of -inf and any index. NaN counts as the largest value; it may come first, or
        be a logit of -inf at the end.
    """
    k = min(k, max(x[0].numel() for x in logits))
    if triton_runs_on(logits[0].device):
        from .triton_ops.top_anchors import top_anchors_triton

        return top_anchors_triton(logits, k)
    return top_anchors_reference(logits, k)


def top_anchors_reference(logits, k):
    """:func:`top_anchors` in plain PyTorch."""
    top_logits, index = align_levels(logits).topk(k, dim=2)
    return top_logits.float(), index


def align_levels(logits):
    """
    Args:
        logits (list[Tensor]): (N, A, H_l, W_l).

    Returns:
        Tensor: (N, L, max M_l), the shorter levels followed by -inf.
    """
    logits = [per_anchor(x, 1)[..., 0] for x in logits]
    width = max(x.shape[1] for x in logits)
    pad = torch.nn.functional.pad
    return torch.stack([pad(x, (0, width - x.shape[1]), value=-torch.inf) for x in logits], dim=1)


def decode_candidates(deltas, anchors, index, logits, transform, image_size, least_side):
    """
    Args:
        deltas (list[Tensor]): (N, 4 A, H_l, W_l), best channels-last.
        anchors (list[Tensor]): float32 (M_l, 4), contiguous.
        index (Tensor): int64 (N, L, k), anchors of their level; those after its end have no box.
        logits (Tensor): (N, L, k).
        transform (Box2BoxTransform or Box2BoxTransformLinear):
        image_size (tuple[int, int] or None): height, width, that boxes are clipped to; None: they
            are not clipped.
        least_side: as in :func:`find_proposals`.

    Returns:
        tuple[Tensor, Tensor]: boxes, float32 (N, L, k, 4), and which of them are finite and large
        enough, of finite logits, bool (N, L, k).
    """
    arguments = (deltas, anchors, index, logits, transform, image_size, least_side)
    if triton_runs_on(index.device):
        from .triton_ops.proposals import decode_candidates_triton

        return decode_candidates_triton(*arguments)
    return decode_candidates_reference(*arguments)


def decode_candidates_reference(deltas, anchors, index, logits, transform, image_size, least_side):
    """:func:`decode_candidates` in plain PyTorch."""
    boxes, valid = [], []
    for level, (deltas_l, anchors_l) in enumerate(zip(deltas, anchors, strict=True)):
        deltas_l = per_anchor(deltas_l, 4)
        exists = index[:, level] < len(anchors_l)
        index_l = torch.where(exists, index[:, level], 0)
        deltas_l = deltas_l.gather(1, index_l[..., None].expand(-1, -1, 4)).float()
        boxes_l = transform.apply_deltas(deltas_l.flatten(0, 1), anchors_l[index_l.flatten()])
        boxes_l = boxes_l.view_as(deltas_l)
        valid.append(exists & torch.isfinite(boxes_l).all(dim=-1))
        boxes.append(boxes_l)
    boxes, valid = torch.stack(boxes, dim=1), torch.stack(valid, dim=1)
    if image_size is not None:
        height, width = image_size
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes, valid & torch.isfinite(logits) & (sides > least_side).all(dim=-1)
