"""
The log-average miss rate of pedestrian detection, as the evaluation code of CityPersons computes
it (after Dollar et al., Pedestrian Detection: An Evaluation of the State of the Art, TPAMI 2012).

Shape shorthand in this module:

    D: detections of a frame
    G: ground truth boxes of a frame
"""

from dataclasses import dataclass

import numpy as np

__all__ = [
    "HEAVILY_OCCLUDED",
    "SETTINGS",
    "MissRateSetting",
    "PedestrianFrame",
    "log_average_miss_rate",
]

# False positives per image at which the miss rate is read off, as rounded in the official code.
_FPPI = np.array([0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000])
_OVERLAP = 0.5
_MAX_DETECTIONS = 1000
# Detections may leave the range of heights by this factor, since they fit a person less exactly.
_EXPANSION = 1.25


@dataclass(frozen=True)
class MissRateSetting:
    """
    The persons that must be found; the others are ignored. All bounds are inclusive.

    Attributes:
        name (str):
        min_height (float): least height of the box, in pixels of the original image.
        min_visibility, max_visibility (float): share of the box that is visible.
    """

    name: str
    min_height: float = 50
    min_visibility: float = 0.0
    max_visibility: float = float("inf")


SETTINGS = (
    MissRateSetting("Reasonable", min_visibility=0.65),
    MissRateSetting("Bare", min_visibility=0.9),
    MissRateSetting("Partial", min_visibility=0.65, max_visibility=0.9),
    MissRateSetting("Heavy", max_visibility=0.65),
)
# Heavy as MGAN's authors and Pedestron score it, without persons who are all but hidden.
HEAVILY_OCCLUDED = MissRateSetting("HO", min_visibility=0.2, max_visibility=0.65)


@dataclass
class PedestrianFrame:
    """
    Ground truth and detections of a frame; boxes are x0, y0, x1, y1 in pixels of the image.

    Attributes:
        gt_boxes (ndarray): float (G, 4).
        gt_visibility (ndarray): float (G,).
        gt_ignored (ndarray): bool (G,), in every setting.
        boxes (ndarray): float (D, 4).
        scores (ndarray): float (D,).
    """

    gt_boxes: np.ndarray
    gt_visibility: np.ndarray
    gt_ignored: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def log_average_miss_rate(frames, setting):
    """
    Returns the geometric mean of the miss rates at nine rates of false positives per image, evenly
    spaced on a logarithmic scale from 0.01 to 1. Each miss rate is that of the lowest score
    threshold with at most so many false positives; 1 if there is none.

    (Where the very best detection is false and 1 / frames above the rate, the official code takes
    the miss rate of all detections instead. From 100 frames on there is no difference.)

    Args:
        frames (list[PedestrianFrame]):
        setting (MissRateSetting):

    Returns:
        float: in [0, 1]; NaN if there is no person to find.
    """
    matches = [_match(frame, setting) for frame in frames]
    persons = sum(count for _, _, count in matches)
    if persons == 0:
        return float("nan")
    scores = np.concatenate([scores for scores, _, _ in matches])
    hits = np.concatenate([hits for _, hits, _ in matches])[np.argsort(-scores, kind="stable")]
    # The first entry is a threshold above all scores.
    recall = np.concatenate([[0.0], np.cumsum(hits) / persons])
    fppi = np.concatenate([[0.0], np.cumsum(~hits) / len(frames)])
    miss_rates = 1 - recall[np.searchsorted(fppi, _FPPI, side="right") - 1]
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(miss_rates).mean()))


def _match(frame, setting):
    """
    Assigns detections, best score first, to the free person of largest overlap. Detections without
    a person do not count if half of them lies in an ignored box.

    Returns:
        tuple: scores of the detections that count; bool, whether each found a person; the number of
        persons to find.
    """
    lowest = setting.min_height / _EXPANSION
    order = np.argsort(-frame.scores, kind="stable")[:_MAX_DETECTIONS]
    order = order[_heights(frame.boxes[order]) >= lowest]
    boxes, scores = frame.boxes[order], frame.scores[order]

    ignored = (
        frame.gt_ignored
        | (_heights(frame.gt_boxes) < setting.min_height)
        | (frame.gt_visibility < setting.min_visibility)
        | (frame.gt_visibility > setting.max_visibility)
    )
    persons, others = frame.gt_boxes[~ignored], frame.gt_boxes[ignored]
    # Boxes may have no width, and then overlap nothing.
    areas = np.maximum(_areas(boxes), np.finfo(float).tiny)[:, None]
    inside = _intersections(boxes, others) / areas
    absorbed = (inside >= _OVERLAP).any(axis=1)
    intersections = _intersections(boxes, persons)
    overlaps = intersections / (areas + _areas(persons) - intersections)

    hits = np.zeros(len(boxes), dtype=bool)
    for detection, overlap in enumerate(overlaps):
        best = overlap.max(initial=0)
        if best >= _OVERLAP:
            hits[detection] = True
            # The last of several equal ones, as in the official code; it is no longer free.
            overlaps[:, np.flatnonzero(overlap == best)[-1]] = 0
    counts = hits | ~absorbed
    return scores[counts], hits[counts], len(persons)


def _heights(boxes):
    return boxes[:, 3] - boxes[:, 1]


def _areas(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * _heights(boxes)


def _intersections(boxes, others):
    """Areas (D, G) of the intersections of two sets of boxes."""
    sides = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - np.maximum(
        boxes[:, None, :2], others[None, :, :2]
    )
    return sides.clip(min=0).prod(axis=2)
