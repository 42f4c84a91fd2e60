"""
From class logits and boxes of all proposals to a fixed number of detections: Detectron2's
``fast_rcnn_inference`` and the boxes' part of ``detector_postprocess``.

Shape shorthand in this module:

    N: images of a batch
    R: proposals of an image
    K: classes
    D: detections of an image at most
    T: candidates, pairs of a proposal and a class
"""

import torch
import triton
import triton.language as tl

from .boxes import store_boxes
from .nms import nms
from .ranking import best_values

__all__ = ["NO_SCORE", "candidate_scores", "fill_slots", "select_detections"]

# The score of a pair that is no candidate.
NO_SCORE = -1.0


@triton.jit
def score_kernel(
    logits_ptr, usable_ptr, finite_ptr, scores_ptr, logits_row, num_classes, num_boxes, threshold,
    SIGMOID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program scores a proposal: a softmax over its classes, background last."""
    proposal = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    exists = column <= num_classes
    logit = tl.load(logits_ptr + proposal * logits_row + column, mask=exists, other=float("-inf"))
    logit = logit.to(tl.float32)
    if SIGMOID:
        score = tl.math.div_rn(1.0, 1.0 + tl.exp(-logit))
    else:
        power = tl.exp(logit - tl.max(logit, 0))
        score = tl.math.div_rn(power, tl.sum(power, 0))
    broken = tl.sum((exists & (score != score)).to(tl.int32), 0)
    finite = tl.load(finite_ptr + proposal * num_boxes + column, mask=column < num_boxes, other=1)
    broken += tl.sum((finite == 0).to(tl.int32), 0)
    usable = (broken == 0) & (tl.load(usable_ptr + proposal) != 0)
    score = tl.where(usable & (score > threshold), score, -1.0)
    tl.store(scores_ptr + proposal * num_classes + column, score, mask=column < num_classes)


@triton.jit
def fill_kernel(
    keep_ptr, boxes_ptr, scores_ptr, classes_ptr,
    out_boxes_ptr, out_scaled_ptr, out_scores_ptr, out_classes_ptr, count_ptr,
    T, D, scale_x, scale_y, height, width, BLOCK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program per image moves the candidates that stay to the front."""
    image = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    exists = column < T
    source = image * T + column
    keep = tl.load(keep_ptr + source, mask=exists, other=0).to(tl.int32)
    keep = tl.where(tl.cumsum(keep, 0) <= D, keep, 0)
    x0 = tl.load(boxes_ptr + source * 4, mask=exists, other=0.0)
    y0 = tl.load(boxes_ptr + source * 4 + 1, mask=exists, other=0.0)
    x1 = tl.load(boxes_ptr + source * 4 + 2, mask=exists, other=0.0)
    y1 = tl.load(boxes_ptr + source * 4 + 3, mask=exists, other=0.0)
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


def candidate_scores(logits, usable, finite, threshold, *, sigmoid=False):
    """
    Args:
        logits (Tensor): (N, R, K + 1), background last, the last dimension contiguous.
        usable (Tensor): bool (N, R), which proposals take part.
        finite (Tensor): bool (N, R, K) or (N, R, 1), of the boxes; a proposal with one that is
            not takes no part, as in Detectron2.
        threshold (float): candidates need a higher score.
        sigmoid (bool): instead of a softmax.

    Returns:
        Tensor: float32 (N, R K), the probability of each candidate, -1 for all other pairs.
    """
    run = candidate_scores_triton if logits.is_cuda else candidate_scores_reference
    return run(logits, usable, finite, threshold, sigmoid=sigmoid)


def candidate_scores_triton(logits, usable, finite, threshold, *, sigmoid=False):
    """As :func:`candidate_scores`."""
    images, proposals, num_classes = *logits.shape[:2], logits.shape[2] - 1
    scores = torch.empty(images, proposals * num_classes, dtype=torch.float32, device=logits.device)
    logits = logits.flatten(0, 1)
    score_kernel[(len(logits),)](
        logits, usable.contiguous().view(torch.uint8), finite.contiguous().view(torch.uint8),
        scores, logits.stride(0), num_classes, finite.shape[2], threshold,
        SIGMOID=sigmoid, BLOCK=triton.next_power_of_2(num_classes + 1), num_warps=1,
    )  # fmt: skip
    return scores


def candidate_scores_reference(logits, usable, finite, threshold, *, sigmoid=False):
    """As :func:`candidate_scores`, in plain PyTorch."""
    logits = logits.float()
    scores = logits.sigmoid() if sigmoid else logits.softmax(dim=2)
    usable = usable & finite.all(dim=2) & torch.isfinite(scores).all(dim=2)
    scores = scores[..., :-1]
    return torch.where(usable[..., None] & (scores > threshold), scores, NO_SCORE).flatten(1)


def select_detections(
    scores, boxes, *, output_scale, output_size, nms_threshold, max_candidates, max_detections
):
    """
    Suppression among the boxes of a class, then the best D, then those that are not empty in the
    output, as Detectron2 does it.

    Suppression sees the max_candidates best of the candidates. Where there are no more, results
    are exact. Otherwise they still are if suppression leaves D of these, as all that is left out
    has lower scores; if it leaves fewer, detections with scores below the last one's are missing.

    Args:
        scores (Tensor): float32 (N, R K), of :func:`candidate_scores`.
        boxes (Tensor): float32 (N, R, K, 4), or (N, R, 1, 4) where all classes share a box,
            within the image.
        output_scale (tuple[float, float]): output pixels per pixel of the image, x and y.
        output_size (tuple[int, int]): height, width.
        nms_threshold (float): intersection over union.
        max_candidates (int): T, at most.
        max_detections (int): D.

    Returns:
        tuple: in descending order of the scores, followed by empty slots, which hold zeros:
        boxes, float32 (N, D, 4); the same in pixels of the output; scores, float32 (N, D);
        classes, int64 (N, D); and the number of detections, int32 (N,).
    """
    num_classes = scores.shape[1] // boxes.shape[1]
    scores, pair = best_values(scores, max_candidates)
    classes = pair % num_classes
    box = pair if boxes.shape[2] == num_classes else pair // num_classes
    boxes = _select(boxes.flatten(1, 2), box)
    keep = nms(boxes, scores > NO_SCORE, nms_threshold, labels=classes)
    return fill_slots(keep, boxes, scores, classes, output_scale, output_size, max_detections)


def fill_slots(keep, boxes, scores, classes, scale, size, num_slots):
    """
    Moves the first D of the candidates that stay to the front, but for those that are empty in the
    output.

    Args:
        keep (Tensor): bool (N, T), the candidates that suppression left.
        boxes, scores, classes (Tensor): float32 (N, T, 4), float32 (N, T) and int64 (N, T).
        scale, size: of the output, as in :func:`select_detections`.
        num_slots (int): D.

    Returns:
        tuple: as :func:`select_detections`.
    """
    fill = fill_slots_triton if boxes.is_cuda else fill_slots_reference
    return fill(keep, boxes, scores, classes, scale, size, num_slots)


def fill_slots_triton(keep, boxes, scores, classes, scale, size, num_slots):
    """As :func:`fill_slots`."""
    images, candidates = keep.shape
    slots, device = (images, num_slots), keep.device
    out_boxes = torch.empty(*slots, 4, dtype=torch.float32, device=device)
    out_scaled = torch.empty_like(out_boxes)
    out_scores = torch.empty(slots, dtype=torch.float32, device=device)
    out_classes = torch.empty(slots, dtype=torch.int64, device=device)
    count = torch.empty(images, dtype=torch.int32, device=device)
    fill_kernel[(images,)](
        keep.view(torch.uint8), boxes, scores, classes,
        out_boxes, out_scaled, out_scores, out_classes, count,
        candidates, num_slots, *map(float, scale), *map(float, size),
        BLOCK=triton.next_power_of_2(candidates), BD=triton.next_power_of_2(num_slots), num_warps=8,
    )  # fmt: skip
    return out_boxes, out_scaled, out_scores, out_classes, count


def fill_slots_reference(keep, boxes, scores, classes, scale, size, num_slots):
    """As :func:`fill_slots`, in plain PyTorch."""
    scaled = boxes.clone()
    for axis in (0, 1):
        scaled[..., axis::2].mul_(scale[axis]).clamp_(0, size[1 - axis])
    # Detectron2 takes the best first and drops what is empty then, instead of filling up.
    keep = keep & (keep.cumsum(dim=1) <= num_slots)
    keep &= (scaled[..., 2:] > scaled[..., :2]).all(dim=2)
    slots = torch.where(keep, keep.cumsum(dim=1) - 1, num_slots)
    candidates = torch.arange(keep.shape[1], device=keep.device).expand_as(slots)
    source = torch.zeros(len(keep), num_slots + 1, dtype=torch.int64, device=keep.device)
    source = source.scatter_(1, slots, candidates)[:, :-1]
    count = keep.sum(dim=1, dtype=torch.int32)
    filled = torch.arange(num_slots, device=keep.device) < count[:, None]
    return (
        torch.where(filled[..., None], _select(boxes, source), 0.0),
        torch.where(filled[..., None], _select(scaled, source), 0.0),
        torch.where(filled, scores.gather(1, source), 0.0),
        torch.where(filled, classes.gather(1, source), 0),
        count,
    )


def _select(boxes, index):
    """(N, n, 4) of (N, m, 4), by (N, n)."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))
