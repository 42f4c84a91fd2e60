"""Kernels of :mod:`..box_inference`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl

from .. import constants
from .boxes import load_boxes, store_boxes

_NO_SCORE = tl.constexpr(constants.NO_SCORE)


@triton.jit
def score_kernel(
    logits,
    usable_ptr,
    finite_ptr,
    scores_ptr,
    logits_row,
    num_classes,
    num_boxes,
    threshold,
    share,
    S: tl.constexpr,
    SIGMOID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """
    A program scores a proposal: a softmax over its classes, background last; the mean over S.
    """
    proposal = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    exists = column <= num_classes
    score = tl.zeros((BLOCK,), tl.float32)
    for stage in tl.static_range(S):
        source = logits[stage] + proposal * logits_row + column
        logit = tl.load(source, mask=exists, other=float("-inf")).to(tl.float32)
        if SIGMOID:
            score += tl.math.div_rn(1.0, 1.0 + tl.exp(-logit))
        else:
            power = tl.exp(logit - tl.max(logit, 0))
            score += tl.math.div_rn(power, tl.sum(power, 0))
    score *= share
    broken = tl.sum((exists & (score != score)).to(tl.int32), 0)
    finite = tl.load(finite_ptr + proposal * num_boxes + column, mask=column < num_boxes, other=1)
    broken += tl.sum((finite == 0).to(tl.int32), 0)
    usable = (broken == 0) & (tl.load(usable_ptr + proposal) != 0)
    score = tl.where(usable & (score > threshold), score, _NO_SCORE)
    tl.store(scores_ptr + proposal * num_classes + column, score, mask=column < num_classes)


@triton.jit
def fill_kernel(
    candidates,
    slots,
    T,
    D,
    scale,
    size,
    BLOCK: tl.constexpr,
    BD: tl.constexpr,
):
    """One program per image moves the candidates that stay to the front."""
    keep_ptr, boxes_ptr, scores_ptr, classes_ptr = candidates
    out_boxes_ptr, out_scaled_ptr, out_scores_ptr, out_classes_ptr, count_ptr = slots
    scale_x, scale_y = scale
    height, width = size
    image = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    exists = column < T
    source = image * T + column
    keep = tl.load(keep_ptr + source, mask=exists, other=0).to(tl.int32)
    keep = tl.where(tl.cumsum(keep, 0) <= D, keep, 0)
    x0, y0, x1, y1 = load_boxes(boxes_ptr + source * 4, exists)
    scaled_x0 = tl.minimum(tl.maximum(x0 * scale_x, 0.0), width)
    scaled_y0 = tl.minimum(tl.maximum(y0 * scale_y, 0.0), height)
    scaled_x1 = tl.minimum(tl.maximum(x1 * scale_x, 0.0), width)
    scaled_y1 = tl.minimum(tl.maximum(y1 * scale_y, 0.0), height)
    keep = tl.where((scaled_x1 > scaled_x0) & (scaled_y1 > scaled_y0), keep, 0)
    target = image * D + tl.cumsum(keep, 0) - keep
    kept = keep > 0
    store_boxes(out_boxes_ptr, target, x0, y0, x1, y1, kept)
    store_boxes(out_scaled_ptr, target, scaled_x0, scaled_y0, scaled_x1, scaled_y1, kept)
    tl.store(out_scores_ptr + target, tl.load(scores_ptr + source, mask=kept), mask=kept)
    tl.store(out_classes_ptr + target, tl.load(classes_ptr + source, mask=kept), mask=kept)
    count = tl.sum(keep, 0)
    tl.store(count_ptr + image, count)
    slot = tl.arange(0, BD)
    empty = (slot >= count) & (slot < D)
    zeros = tl.zeros((BD,), tl.float32)
    slot += image * D
    store_boxes(out_boxes_ptr, slot, zeros, zeros, zeros, zeros, empty)
    store_boxes(out_scaled_ptr, slot, zeros, zeros, zeros, zeros, empty)
    tl.store(out_scores_ptr + slot, zeros, mask=empty)
    tl.store(out_classes_ptr + slot, tl.zeros((BD,), tl.int64), mask=empty)


def candidate_scores_triton(logits, usable, finite, threshold, *, sigmoid=False):
    """Runs :func:`candidate_scores` on a GPU."""
    images, proposals, num_classes = *usable.shape, logits[0].shape[2] - 1
    scores = torch.empty(images, proposals * num_classes, dtype=torch.float32, device=usable.device)
    logits = tuple(x.flatten(0, 1) for x in logits)
    masks = [mask.contiguous().view(torch.uint8) for mask in (usable, finite)]
    sizes = (logits[0].stride(0), num_classes, finite.shape[2])
    constants = dict(S=len(logits), SIGMOID=sigmoid, BLOCK=triton.next_power_of_2(num_classes + 1))
    numbers = threshold, 1 / len(logits)
    grid = (images * proposals,)
    score_kernel[grid](logits, *masks, scores, *sizes, *numbers, **constants, num_warps=1)
    return scores


def fill_slots_triton(keep, boxes, scores, classes, scale, size, num_slots):
    """Runs :func:`fill_slots` on a GPU."""
    images, candidates = keep.shape
    slots, device = (images, num_slots), keep.device
    out_boxes = torch.empty(*slots, 4, dtype=torch.float32, device=device)
    out_scaled = torch.empty_like(out_boxes)
    out_scores = torch.empty(slots, dtype=torch.float32, device=device)
    out_classes = torch.empty(slots, dtype=torch.int64, device=device)
    count = torch.empty(images, dtype=torch.int32, device=device)
    out = (out_boxes, out_scaled, out_scores, out_classes, count)
    scale, size = (tuple(map(float, pair)) for pair in (scale, size))
    kept = [x.contiguous() for x in (keep, boxes, scores, classes)]
    kept = (kept[0].view(torch.uint8), *kept[1:])
    blocks = dict(BLOCK=triton.next_power_of_2(candidates), BD=triton.next_power_of_2(num_slots))
    fill_kernel[(images,)](kept, out, candidates, num_slots, scale, size, **blocks, num_warps=8)
    return out
