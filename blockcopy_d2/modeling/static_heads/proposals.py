"""
From the RPN head's outputs to a fixed number of proposals: Detectron2's
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
import triton
import triton.language as tl

from .boxes import decode, store_boxes
from .nms import nms
from .ranking import best_values

__all__ = ["find_proposals"]


@triton.jit
def align_levels_kernel(
    logits, sizes, pixel_strides, image_strides, out_ptr, A, width,
    L: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[n, l] = logits of level l, then -inf."""
    row = tl.program_id(1)
    level = row % L
    source, size, pixel, image = logits[0], sizes[0], pixel_strides[0], image_strides[0]
    for other in tl.static_range(1, L):
        source = tl.where(level == other, logits[other], source)
        size = tl.where(level == other, sizes[other], size)
        pixel = tl.where(level == other, pixel_strides[other], pixel)
        image = tl.where(level == other, image_strides[other], image)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source += row // L * image + column // A * pixel + column % A
    value = tl.load(source, mask=column < size, other=float("-inf"))
    tl.store(out_ptr + row * width + column, value, mask=column < width)


@triton.jit
def decode_proposals_kernel(
    deltas, anchors, sizes, pixel_strides, image_strides, index_ptr, logits_ptr, out_ptr, valid_ptr,
    A, k,
    weight_x, weight_y, weight_w, weight_h, scale_clamp, image_height, image_width, least_side,
    L: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program decodes BLOCK of the k candidates of a level of an image."""
    row = tl.program_id(1)
    level = row % L
    delta, anchor, size = deltas[0], anchors[0], sizes[0]
    pixel, image = pixel_strides[0], image_strides[0]
    for other in tl.static_range(1, L):
        delta = tl.where(level == other, deltas[other], delta)
        anchor = tl.where(level == other, anchors[other], anchor)
        size = tl.where(level == other, sizes[other], size)
        pixel = tl.where(level == other, pixel_strides[other], pixel)
        image = tl.where(level == other, image_strides[other], image)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < k
    candidate = row * k + column
    index = tl.load(index_ptr + candidate, mask=mask, other=0).to(tl.int32)
    exists = mask & (index < size)
    delta += row // L * image + index // A * pixel + index % A * 4
    anchor += index * 4
    x0, y0, x1, y1, finite = decode(
        tl.load(delta, mask=exists, other=0.0), tl.load(delta + 1, mask=exists, other=0.0),
        tl.load(delta + 2, mask=exists, other=0.0), tl.load(delta + 3, mask=exists, other=0.0),
        tl.load(anchor, mask=exists, other=0.0), tl.load(anchor + 1, mask=exists, other=0.0),
        tl.load(anchor + 2, mask=exists, other=0.0), tl.load(anchor + 3, mask=exists, other=0.0),
        weight_x, weight_y, weight_w, weight_h, scale_clamp, image_height, image_width,
    )  # fmt: skip
    logit = tl.load(logits_ptr + candidate, mask=mask, other=0.0).to(tl.float32)
    valid = exists & finite & (tl.abs(logit) < float("inf"))
    valid &= (x1 - x0 > least_side) & (y1 - y0 > least_side)
    store_boxes(out_ptr, candidate, x0, y0, x1, y1, mask)
    tl.store(valid_ptr + candidate, valid.to(tl.uint8), mask=mask)


def find_proposals(
    logits, deltas, anchors, *, transform, image_size, nms_threshold, pre_nms_topk, post_nms_topk,
    least_side,
):  # fmt: skip
    """
    Detectron2's ``find_top_rpn_proposals`` for inference. Which of several anchors of the same
    logit are taken is undefined, as there.

    Args:
        logits (list[Tensor]): objectness of every level, (N, A, H_l, W_l).
        deltas (list[Tensor]): of every level, (N, 4 A, H_l, W_l).
        anchors (list[Tensor]): of every level, float32 (M_l, 4).
        transform (Box2BoxTransform): of the RPN.
        image_size (tuple[int, int]): height, width without padding.
        nms_threshold (float): intersection over union.
        pre_nms_topk, post_nms_topk (int): k and R; fewer where there are fewer anchors.
        least_side (float): in pixels; smaller boxes go.

    Returns:
        tuple[Tensor, Tensor]: boxes, float32 (N, R, 4), in descending order of their logits,
        float32 (N, R). Slots without a proposal come last and hold zeros and a logit of -inf.
    """
    is_cuda = logits[0].is_cuda
    align = align_levels_triton if is_cuda else align_levels_reference
    aligned = align(logits)
    top_logits, index = aligned.topk(min(pre_nms_topk, aligned.shape[2]), dim=2)
    decode_candidates = decode_candidates_triton if is_cuda else decode_candidates_reference
    boxes, valid = decode_candidates(
        deltas, anchors, index, top_logits, transform, image_size, least_side
    )
    keep = nms(boxes.flatten(0, 1), valid.flatten(0, 1), nms_threshold).view_as(valid)
    kept_logits = torch.where(keep, top_logits.float(), -torch.inf).flatten(1)
    best_logits, best = best_values(kept_logits, post_nms_topk)
    best_boxes = boxes.flatten(1, 2).gather(1, best[..., None].expand(-1, -1, 4))
    found = best_logits > -torch.inf
    return torch.where(found[..., None], best_boxes, 0.0), best_logits


def _per_anchor(x, channels):
    """(N, H W A, channels) of (N, A channels, H, W)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, channels)


def _pixel_rows(x):
    """The same map with the channels of a pixel together, and pixels at a fixed distance."""
    if x.stride(1) == 1 and x.stride(2) == x.shape[3] * x.stride(3):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _layout(maps):
    """What a kernel needs to find pixels: strides of a pixel and of an image, for every level."""
    # The stride of a dimension of size 1 says nothing.
    pixels = tuple(x.stride(3) if x.shape[3] > 1 else x.stride(2) for x in maps)
    return pixels, tuple(x.stride(0) for x in maps)


def align_levels_triton(logits):
    """
    Args:
        logits (list[Tensor]): (N, A, H_l, W_l), best channels-last.

    Returns:
        Tensor: (N, L, max M_l), the shorter levels followed by -inf.
    """
    logits = [_pixel_rows(x) for x in logits]
    sizes = tuple(x[0].numel() for x in logits)
    (images, num_anchors), levels, width = logits[0].shape[:2], len(logits), max(sizes)
    out = torch.empty(images, levels, width, dtype=logits[0].dtype, device=logits[0].device)
    align_levels_kernel[triton.cdiv(width, 2048), images * levels](
        tuple(logits), sizes, *_layout(logits), out, num_anchors, width,
        L=levels, BLOCK=2048, num_warps=4,
    )  # fmt: skip
    return out


def align_levels_reference(logits):
    """As :func:`align_levels_triton`, in plain PyTorch."""
    logits = [_per_anchor(x, 1)[..., 0] for x in logits]
    width = max(x.shape[1] for x in logits)
    pad = torch.nn.functional.pad
    return torch.stack([pad(x, (0, width - x.shape[1]), value=-torch.inf) for x in logits], dim=1)


def decode_candidates_triton(deltas, anchors, index, logits, transform, image_size, least_side):
    """
    Args:
        deltas (list[Tensor]): (N, 4 A, H_l, W_l), best channels-last.
        anchors (list[Tensor]): float32 (M_l, 4), contiguous.
        index (Tensor): int64 (N, L, k), anchors of their level.
        logits (Tensor): (N, L, k).
        transform, image_size, least_side: as in :func:`find_proposals`.

    Returns:
        tuple[Tensor, Tensor]: boxes, float32 (N, L, k, 4), clipped to the image, and which of
        them are finite and large enough, bool (N, L, k).
    """
    deltas = [_pixel_rows(x) for x in deltas]
    sizes = tuple(len(x) for x in anchors)
    images, levels, k = index.shape
    boxes = torch.empty(images, levels, k, 4, dtype=torch.float32, device=index.device)
    valid = torch.empty(images, levels, k, dtype=torch.uint8, device=index.device)
    decode_proposals_kernel[triton.cdiv(k, 128), images * levels](
        tuple(deltas), tuple(anchors), sizes, *_layout(deltas), index, logits, boxes, valid,
        deltas[0].shape[1] // 4, k, *map(float, transform.weights), transform.scale_clamp,
        *map(float, image_size), float(least_side), L=levels, BLOCK=128, num_warps=4,
    )  # fmt: skip
    return boxes, valid.view(torch.bool)


def decode_candidates_reference(deltas, anchors, index, logits, transform, image_size, least_side):
    """As :func:`decode_candidates_triton`, in plain PyTorch."""
    height, width = image_size
    limit = torch.tensor([width, height, width, height], dtype=torch.float32, device=index.device)
    boxes, valid = [], []
    for level, (deltas_l, anchors_l) in enumerate(zip(deltas, anchors, strict=True)):
        deltas_l = _per_anchor(deltas_l, 4)
        exists = index[:, level] < len(anchors_l)
        index_l = torch.where(exists, index[:, level], 0)
        deltas_l = deltas_l.gather(1, index_l[..., None].expand(-1, -1, 4))
        boxes_l = transform.apply_deltas(deltas_l.flatten(0, 1), anchors_l[index_l.flatten()])
        boxes_l = boxes_l.view_as(deltas_l)
        valid.append(exists & torch.isfinite(boxes_l).all(dim=-1))
        boxes.append(boxes_l.clamp(min=0).minimum(limit))
    boxes, valid = torch.stack(boxes, dim=1), torch.stack(valid, dim=1)
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes, valid & torch.isfinite(logits) & (sides > least_side).all(dim=-1)
