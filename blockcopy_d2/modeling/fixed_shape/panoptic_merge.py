"""
Merges instances and a segmentation into one picture: Detectron2's
``combine_semantic_and_instance_outputs``, in which the host waits twice instead of several times
for every segment.

Shape shorthand in this module:

    n: instances
    K: classes of the segmentation
    H, W: height and width of the output
"""

import torch

__all__ = ["merge_panoptic"]


def merge_panoptic(
    masks, scores, classes, labels, num_labels, *, overlap_threshold, least_area, least_score
):
    """
    Args:
        masks (Tensor): bool (n, H, W).
        scores, classes (Tensor): float and int64 (n,), in descending order of the scores.
        labels (Tensor): int64 (H, W), the class of every pixel; class 0 stands for all things.
        num_labels (int): K.
        overlap_threshold (float): an instance is left out if better ones cover a larger share.
        least_area (int): a class of the segmentation is left out if less pixels of it remain.
        least_score (float): instances of lower scores are left out.

    Returns:
        tuple[Tensor, list[dict]]: int32 (H, W), the segment of every pixel, 0 for none; and a dict
        for every segment, in Detectron2's format.
    """
    segments = torch.zeros_like(labels, dtype=torch.int32)
    count, flags = segments.new_zeros(()), []
    for mask in masks[: int((scores >= least_score).sum())]:
        free = segments == 0
        new, area = mask & free, mask.sum()
        hidden = (area - new.sum()).double() / area
        # 0 / 0 of an empty mask is NaN.
        kept = hidden <= overlap_threshold
        count = count + kept
        segments = torch.where(new & kept, count, segments)
        flags.append(kept)
    free = segments == 0
    exists, areas = (_count(x, num_labels) for x in (labels, torch.where(free, labels, 0)))
    wanted = (exists > 0) & (areas >= least_area)
    wanted[0] = False
    ids = torch.where(wanted, count + wanted.cumsum(0, dtype=torch.int32), 0)
    segments = torch.where(free, ids[labels], segments)
    things = torch.stack(flags) if flags else wanted[:0]
    numbers = torch.cat([things, wanted]).tolist(), areas.tolist()
    return segments, _describe(*numbers, scores.tolist(), classes.tolist(), len(things))


def _count(labels, num_labels):
    """int64 (K,): the number of pixels of each label."""
    ones = torch.ones_like(labels).flatten()
    return ones.new_zeros(num_labels).index_add_(0, labels.flatten(), ones)


def _describe(kept, areas, scores, classes, num_things):
    infos = []
    for index, is_kept in enumerate(kept):
        if not is_kept:
            continue
        info, label = {"id": len(infos) + 1}, index - num_things
        if label < 0:
            thing = {"score": scores[index], "category_id": classes[index], "instance_id": index}
            info |= {"isthing": True, **thing}
        else:
            info |= {"isthing": False, "category_id": label, "area": areas[label]}
        infos.append(info)
    return infos
