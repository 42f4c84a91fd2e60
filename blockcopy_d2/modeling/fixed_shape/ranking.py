"""
The best of a few thousand values, in one launch.

The place of a value is the number of values before it. Counting them is quicker on a GPU than the
passes of a radix selection and a sort. Most values are "nothing", and are not counted.

Shape shorthand in this module:

    N: images of a batch
    M: values of an image
    k: number of values wanted
"""

import torch

from blockcopy_d2.kernels import triton_runs_on

__all__ = ["best_boxes", "best_candidates", "best_values", "select_boxes"]

# Counting is quadratic.
MOST_COUNTED = 16384


def best_values(values, k, nothing=-torch.inf):
    """
    Args:
        values (Tensor): float32 (N, M), none of them NaN.
        k (int): number of values; all of them if there are fewer.
        nothing (float): the least possible value, of entries that are not wanted.

    Returns:
        tuple[Tensor, Tensor]: the k largest in descending order, float32 (N, k), and their
        indices, int64 (N, k). Entries of "nothing" have some valid index. Equal values keep their
        order, unless M is large.
    """
    k = min(k, values.shape[1])
    if values.shape[1] > MOST_COUNTED:
        return values.topk(k, dim=1)
    if triton_runs_on(values.device):
        from .triton_ops.ranking import best_values_triton

        return best_values_triton(values, k, nothing)
    return best_values_reference(values, k, nothing)


def best_boxes(values, boxes, keep, k):
    """
    Args:
        values (Tensor): float (N, M); those to choose from are not NaN.
        boxes (Tensor): float32 (N, M, 4), of the values.
        keep (Tensor): bool (N, M), the boxes to choose from.
        k (int): number of boxes; all of them if there are fewer.

    Returns:
        tuple[Tensor, Tensor]: the boxes of the k largest values in descending order, float32
        (N, k, 4), and their values, float32 (N, k). Slots without a box come last and hold zeros
        and a value of -inf. The order of equal values is that of :func:`best_values`.
    """
    k = min(k, values.shape[1])
    if values.shape[1] <= MOST_COUNTED and triton_runs_on(values.device):
        from .triton_ops.ranking import best_boxes_triton

        return best_boxes_triton(values, boxes, keep, k)
    return best_boxes_reference(values, boxes, keep, k)


def best_candidates(scores, boxes, k, nothing):
    """
    Args:
        scores (Tensor): float32 (N, R C), of the pairs of R proposals and C classes, not NaN.
        boxes (Tensor): float32 (N, R, C, 4), or (N, R, 1, 4) if all classes share a box.
        k (int): number of pairs; all of them if there are fewer.
        nothing (float): score of pairs that are not candidates, the least possible.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor]: the k largest scores in descending order, float32
        (N, k); the boxes of these pairs, float32 (N, k, 4), and their classes, int64 (N, k), zeros
        where there is none; and where there is one, bool (N, k).
    """
    k = min(k, scores.shape[1])
    if scores.shape[1] <= MOST_COUNTED and triton_runs_on(scores.device):
        from .triton_ops.ranking import best_candidates_triton

        return best_candidates_triton(scores, boxes, k, nothing)
    return best_candidates_reference(scores, boxes, k, nothing)


def best_candidates_reference(scores, boxes, k, nothing):
    """:func:`best_candidates` in plain PyTorch."""
    num_classes = scores.shape[1] // boxes.shape[1]
    scores, pair = best_values(scores, k, nothing)
    valid = scores > nothing
    box = pair if boxes.shape[2] == num_classes else pair // num_classes
    boxes = torch.where(valid[..., None], select_boxes(boxes.flatten(1, 2), box), 0.0)
    return scores, boxes, torch.where(valid, pair % num_classes, 0), valid


def best_boxes_reference(values, boxes, keep, k):
    """:func:`best_boxes` in plain PyTorch."""
    best, order = best_values(torch.where(keep, values.float(), -torch.inf), k)
    found = (best > -torch.inf)[..., None]
    return torch.where(found, select_boxes(boxes, order), 0.0), best


def best_values_reference(values, k, nothing=-torch.inf):
    """:func:`best_values` in plain PyTorch."""
    ranked, order = values.sort(dim=1, descending=True, stable=True)
    ranked, order = ranked[:, :k], order[:, :k]
    return ranked, torch.where(ranked > nothing, order, 0)


def select_boxes(boxes, index):
    """
    Args:
        boxes (Tensor): (N, m, 4).
        index (Tensor): int64 (N, n).

    Returns:
        Tensor: (N, n, 4), the boxes at these indices of their image.
    """
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))
