"""
The candidates of one-stage detectors in a fixed number of slots: Detectron2's
``DenseDetector._decode_multi_level_predictions``, with marks where it selects by boolean indices.

The best k pairs of an anchor and a class belong to the k anchors with the best class. So the logits
of all anchors are read once, and pairs are ranked for k anchors only.

Shape shorthand in this module:

    N: images of a batch
    L: feature levels
    A: anchors of a pixel
    M_l: anchors of level l, H_l x W_l x A
    K: classes
    k: candidates of a level at most
"""

import torch
from torch.nn import functional as F

from blockcopy_d2.kernels import triton_runs_on

from .constants import NO_SCORE
from .proposals import decode_candidates, per_anchor

__all__ = ["find_candidates", "pair_scores", "peak_scores"]


def find_candidates(logits, deltas, centerness, anchors, *, transform, threshold, topk):
    """
    Among pairs of equal scores the choice is undefined, as in Detectron2. A pair whose box is not
    finite is not a candidate; Detectron2 raises an error for these.

    Args:
        logits (list[Tensor]): class logits of every level, (N, A K, H_l, W_l).
        deltas (list[Tensor]): (N, 4 A, H_l, W_l).
        centerness (list[Tensor] or None): logits (N, A, H_l, W_l) of detectors that score a pair
            by the root of its probability times the centerness.
        anchors (list[Tensor]): float32 (M_l, 4), contiguous.
        transform (Box2BoxTransform or Box2BoxTransformLinear):
        threshold (float): candidates need a higher score.
        topk (int): k; fewer where there are fewer pairs.

    Returns:
        tuple[Tensor, Tensor, Tensor]: scores, float32 (N, L k), -1 for slots without a candidate;
        boxes, float32 (N, L k, 4), not clipped; classes, int64 (N, L k).
    """
    num_classes = logits[0].shape[1] // (deltas[0].shape[1] // 4)
    peaks = peak_scores(logits, centerness, num_classes, threshold)
    index = peaks.topk(min(topk, peaks.shape[2]), dim=2).indices
    scores = pair_scores(logits, centerness, index, num_classes, threshold).flatten(2)
    scores, pair = scores.topk(min(topk, scores.shape[2]), dim=2)
    index = index.gather(2, pair // num_classes)
    boxes, finite = decode_candidates(deltas, anchors, index, scores, transform, None, -torch.inf)
    scores = torch.where(finite, scores, NO_SCORE)
    return scores.flatten(1), boxes.flatten(1, 2), (pair % num_classes).flatten(1)


def peak_scores(logits, centerness, num_classes, threshold):
    """
    Args:
        logits, centerness, threshold: as in :func:`find_candidates`.
        num_classes (int): K.

    Returns:
        Tensor: float32 (N, L, max M_l), the score of each anchor's best class; -1 where it is not
        above the threshold, and after the end of a level.
    """
    if triton_runs_on(logits[0].device):
        from .triton_ops.dense_candidates import peak_scores_triton

        return peak_scores_triton(logits, centerness, num_classes, threshold)
    return peak_scores_reference(logits, centerness, num_classes, threshold)


def peak_scores_reference(logits, centerness, num_classes, threshold):
    """:func:`peak_scores` in plain PyTorch."""
    peaks = []
    for level, logits_l in enumerate(logits):
        logits_l = per_anchor(logits_l, num_classes)
        centerness_l = None if centerness is None else per_anchor(centerness[level], 1)
        peaks.append(_scores(logits_l, centerness_l, threshold).amax(dim=2))
    width = max(x.shape[1] for x in peaks)
    padded = [F.pad(x, (0, width - x.shape[1]), value=NO_SCORE) for x in peaks]
    return torch.stack(padded, dim=1)


def pair_scores(logits, centerness, index, num_classes, threshold):
    """
    Args:
        logits, centerness, threshold: as in :func:`find_candidates`.
        index (Tensor): int64 (N, L, k), anchors of their level; those after its end have no
            candidates.
        num_classes (int): K.

    Returns:
        Tensor: float32 (N, L, k, K), the score of every class of these anchors; -1 where it is not
        above the threshold.
    """
    if triton_runs_on(index.device):
        from .triton_ops.dense_candidates import pair_scores_triton

        return pair_scores_triton(logits, centerness, index, num_classes, threshold)
    return pair_scores_reference(logits, centerness, index, num_classes, threshold)


def pair_scores_reference(logits, centerness, index, num_classes, threshold):
    """:func:`pair_scores` in plain PyTorch."""
    scores = []
    for level, logits_l in enumerate(logits):
        logits_l = per_anchor(logits_l, num_classes)
        exists = index[:, level] < logits_l.shape[1]
        index_l = torch.where(exists, index[:, level], 0)[..., None]
        centerness_l = None
        if centerness is not None:
            centerness_l = per_anchor(centerness[level], 1).gather(1, index_l)
        logits_l = logits_l.gather(1, index_l.expand(-1, -1, num_classes))
        scores_l = _scores(logits_l, centerness_l, threshold)
        scores.append(torch.where(exists[..., None], scores_l, NO_SCORE))
    return torch.stack(scores, dim=1)


def _scores(logits, centerness, threshold):
    scores = logits.float().sigmoid()
    if centerness is not None:
        scores = torch.sqrt(scores * centerness.float().sigmoid())
    return torch.where(scores > threshold, scores, NO_SCORE)
