"""
From class scores and boxes of all proposals to a fixed number of detections: Detectron2's
``fast_rcnn_inference`` and the boxes' part of ``detector_postprocess``.

Shape shorthand in this module:

    N: images of a batch
    R: proposals of an image
    K: classes
    D: detections of an image at most
    T: candidates, pairs of a proposal and a class
"""

import torch

from .nms import nms

__all__ = ["select_detections"]


def select_detections(
    probabilities, boxes, usable, *, output_scale, output_size, score_threshold, nms_threshold,
    max_candidates, max_detections,
):  # fmt: skip
    """
    Suppression among the boxes of a class, then the best D, then those that are not empty in the
    output, as Detectron2 does it.

    Suppression sees the max_candidates best of the pairs above the score threshold. Where no more
    than these are above it, results are exact. Otherwise they still are if suppression leaves D of
    the candidates, as all that is left out has lower scores; if it leaves fewer, detections with
    scores below the last candidate's are missing.

    Args:
        probabilities (Tensor): float32 (N, R, K + 1), background last.
        boxes (Tensor): float32 (N, R, K, 4), or (N, R, 1, 4) where all classes share a box,
            within the image.
        usable (Tensor): bool (N, R), proposals that take part.
        output_scale (tuple[float, float]): output pixels per pixel of the image, x and y.
        output_size (tuple[int, int]): height, width.
        score_threshold (float): detections need more.
        nms_threshold (float): intersection over union.
        max_candidates (int): T, at most.
        max_detections (int): D.

    Returns:
        tuple: in descending order of the scores, followed by empty slots, which hold zeros:
        boxes, float32 (N, D, 4); the same in pixels of the output; scores, float32 (N, D);
        classes, int64 (N, D); and the number of detections, int32 (N,).
    """
    num_classes = probabilities.shape[2] - 1
    usable = usable & torch.isfinite(probabilities).all(dim=2)
    scores = probabilities[..., :-1]
    taken = usable[..., None] & (scores > score_threshold)
    scores = torch.where(taken, scores, -1.0).flatten(1)
    scores, pair = scores.topk(min(max_candidates, scores.shape[1]), dim=1)
    classes = pair % num_classes
    box = pair if boxes.shape[2] == num_classes else pair // num_classes
    boxes = _select(boxes.flatten(1, 2), box)
    keep = nms(boxes, scores >= 0, nms_threshold, labels=classes)
    output_boxes = _rescale(boxes, output_scale, output_size)
    # Detectron2 takes the best first and drops what is empty then, instead of filling up.
    keep &= keep.cumsum(dim=1) <= max_detections
    keep &= (output_boxes[..., 2:] > output_boxes[..., :2]).all(dim=2)
    slots = torch.where(keep, keep.cumsum(dim=1) - 1, max_detections)
    candidates = torch.arange(keep.shape[1], device=keep.device).expand_as(slots)
    source = torch.zeros(len(keep), max_detections + 1, dtype=torch.int64, device=keep.device)
    source = source.scatter_(1, slots, candidates)[:, :-1]
    count = keep.sum(dim=1, dtype=torch.int32)
    filled = torch.arange(max_detections, device=keep.device) < count[:, None]
    return (
        torch.where(filled[..., None], _select(boxes, source), 0.0),
        torch.where(filled[..., None], _select(output_boxes, source), 0.0),
        torch.where(filled, scores.gather(1, source), 0.0),
        torch.where(filled, classes.gather(1, source), 0),
        count,
    )


def _select(boxes, index):
    """(N, n, 4) of (N, m, 4), by (N, n)."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))


def _rescale(boxes, scale, size):
    """Boxes.scale and Boxes.clip, in place on a copy; numbers stay on the host."""
    boxes = boxes.clone()
    for axis in (0, 1):
        boxes[..., axis::2].mul_(scale[axis]).clamp_(0, size[1 - axis])
    return boxes
