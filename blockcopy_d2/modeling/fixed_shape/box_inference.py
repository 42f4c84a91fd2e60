"""
Turns class logits and boxes of all proposals into a fixed number of detections: Detectron2's
``fast_rcnn_inference`` and the boxes' part of ``detector_postprocess``.

Shape shorthand in this module:

    N: images of a batch
    S: stages of a cascade, or 1
    R: proposals of an image
    K: classes
    D: detections of an image at most
    T: candidates, pairs of a proposal and a class
"""

import torch

from blockcopy_d2.kernels import triton_runs_on

from .constants import NO_SCORE
from .nms import nms
from .ranking import best_candidates, select_boxes

__all__ = ["candidate_scores", "fill_slots", "select_detections"]


def candidate_scores(logits, usable, finite, threshold, *, sigmoid=False):
    """
    Args:
        logits (list[Tensor]): (N, R, K + 1) of each of S stages, background last, the last
            dimension contiguous. All have the same strides.
        usable (Tensor): bool (N, R), which proposals take part.
        finite (Tensor): bool (N, R, K) or (N, R, 1), whether boxes are finite. A proposal with a
            box that is not takes no part, as in Detectron2.
        threshold (float): candidates need a higher score.
        sigmoid (bool): use a sigmoid instead of a softmax.

    Returns:
        Tensor: float32 (N, R K), the probability of each candidate, which is the mean over stages;
        -1 for all other pairs.
    """
    if triton_runs_on(logits[0].device):
        from .triton_ops.box_inference import candidate_scores_triton

        return candidate_scores_triton(logits, usable, finite, threshold, sigmoid=sigmoid)
    return candidate_scores_reference(logits, usable, finite, threshold, sigmoid=sigmoid)


def candidate_scores_reference(logits, usable, finite, threshold, *, sigmoid=False):
    """:func:`candidate_scores` in plain PyTorch."""
    logits = [x.float() for x in logits]
    scores = sum(x.sigmoid() if sigmoid else x.softmax(dim=2) for x in logits) * (1 / len(logits))
    usable = usable & finite.all(dim=2) & torch.isfinite(scores).all(dim=2)
    scores = scores[..., :-1]
    return torch.where(usable[..., None] & (scores > threshold), scores, NO_SCORE).flatten(1)


def select_detections(
    scores, boxes, *, output_scale, output_size, nms_threshold, max_candidates, max_detections
):
    """
    Suppresses boxes within each class, takes the best D, and drops those that are empty in the
    output, as Detectron2 does.

    Suppression sees the max_candidates best candidates. If there are no more, results are exact. If
    there are more, results are exact as long as suppression leaves D of these, since all others
    have lower scores. If it leaves fewer, detections with scores below the last one's are missing.

    Args:
        scores (Tensor): float32 (N, R K), from :func:`candidate_scores`.
        boxes (Tensor): float32 (N, R, K, 4), or (N, R, 1, 4) if all classes share a box, within the
            image.
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
    scores, boxes, classes, valid = best_candidates(scores, boxes, max_candidates, NO_SCORE)
    keep = nms(boxes, valid, nms_threshold, labels=classes)
    return fill_slots(keep, boxes, scores, classes, output_scale, output_size, max_detections)


def fill_slots(keep, boxes, scores, classes, scale, size, num_slots):
    """
    Moves the first D remaining candidates to the front, without those that are empty in the output.

    Args:
        keep (Tensor): bool (N, T), the candidates left by suppression.
        boxes, scores, classes (Tensor): float32 (N, T, 4), float32 (N, T) and int64 (N, T).
        scale, size: scale and size of the output, as in :func:`select_detections`.
        num_slots (int): D.

    Returns:
        tuple: see :func:`select_detections`.
    """
    if triton_runs_on(boxes.device):
        from .triton_ops.box_inference import fill_slots_triton

        return fill_slots_triton(keep, boxes, scores, classes, scale, size, num_slots)
    return fill_slots_reference(keep, boxes, scores, classes, scale, size, num_slots)


def fill_slots_reference(keep, boxes, scores, classes, scale, size, num_slots):
    """:func:`fill_slots` in plain PyTorch."""
    scaled = boxes.clone()
    for axis in (0, 1):
        scaled[..., axis::2].mul_(scale[axis]).clamp_(0, size[1 - axis])
    # Detectron2 takes the best first and then drops empty ones, without filling up.
    keep = keep & (keep.cumsum(dim=1) <= num_slots)
    keep &= (scaled[..., 2:] > scaled[..., :2]).all(dim=2)
    slots = torch.where(keep, keep.cumsum(dim=1) - 1, num_slots)
    candidates = torch.arange(keep.shape[1], device=keep.device).expand_as(slots)
    source = torch.zeros(len(keep), num_slots + 1, dtype=torch.int64, device=keep.device)
    source = source.scatter_(1, slots, candidates)[:, :-1]
    count = keep.sum(dim=1, dtype=torch.int32)
    filled = torch.arange(num_slots, device=keep.device) < count[:, None]
    return (
        torch.where(filled[..., None], select_boxes(boxes, source), 0.0),
        torch.where(filled[..., None], select_boxes(scaled, source), 0.0),
        torch.where(filled, scores.gather(1, source), 0.0),
        torch.where(filled, classes.gather(1, source), 0),
        count,
    )
