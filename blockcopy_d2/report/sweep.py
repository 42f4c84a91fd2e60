"""Agreement and speed against the target, and the recommended target."""

import math
import statistics
from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

from .recording import mean

__all__ = ["BreakEven", "Point", "break_even", "recommend", "sweep_points"]


@dataclass(frozen=True)
class Point:
    """
    The means of one run.

    Attributes:
        target (float or None): tau.
        executed (float): share of the blocks.
        milliseconds (float): per frame.
        speed_up (float): dense time divided by this one's.
        scores (dict[str, float]): agreement with dense, in percent.
    """

    target: float | None
    executed: float
    milliseconds: float
    speed_up: float
    scores: dict


@dataclass(frozen=True)
class BreakEven:
    """
    The line through the times of frames: base + slope * executed share.

    Attributes:
        base, slope (float): milliseconds with no block, and additional ones with all blocks.
        dense (float): milliseconds of the median dense frame.
        executed (float): the share at which a frame takes as long as a dense one. Above 1 if
            BlockCopy is faster even with all blocks, 0 or below if it never is.
    """

    base: float
    slope: float
    dense: float
    executed: float


def sweep_points(recording):
    """
    Args:
        recording (Recording):

    Returns:
        list[Point]: by target.
    """
    return [
        Point(
            target=run.target,
            executed=mean(run.executed),
            milliseconds=1000 * mean(run.seconds),
            speed_up=mean(recording.dense_seconds) / mean(run.seconds),
            scores=run.scores,
        )
        for run in recording.runs
    ]


def break_even(recording):
    """
    Fit the time of a frame to its executed share, over all frames of all runs but the first ones.
    It uses medians (Theil and Sen), which a busy machine disturbs little.

    Args:
        recording (Recording):

    Returns:
        BreakEven or None: None if the shares differ too little, or if more blocks did not take more
        time.
    """
    executed = np.concatenate([run.executed[1:] for run in recording.runs])
    milliseconds = 1000 * np.concatenate([run.seconds[1:] for run in recording.runs])
    if len(executed) < 3 or np.ptp(executed) < 0.05:
        return None
    slope, base, *_ = map(float, theilslopes(milliseconds, executed, method="joint"))
    if not slope > 0:
        return None
    dense = 1000 * statistics.median(recording.dense_seconds[1:])
    return BreakEven(base=base, slope=slope, dense=dense, executed=(dense - base) / slope)


def recommend(points, metric, margin):
    """
    Returns the fastest target that loses at most ``margin`` points of agreement, among those faster
    than dense. If there is none, the one of these that agrees most.

    Args:
        points (list[Point]):
        metric (str): the score to use. Dense has 100.
        margin (float): points.

    Returns:
        tuple[Point or None, bool]: the recommended target, None if dense is the better choice; and
        whether it is within the margin.
    """
    faster = [
        point
        for point in points
        if point.target is not None and point.speed_up > 1 and not math.isnan(point.scores[metric])
    ]
    within = [point for point in faster if point.scores[metric] >= 100 - margin]
    if within:
        return min(within, key=lambda point: point.milliseconds), True
    return max(faster, key=lambda point: point.scores[metric], default=None), False
