"""
Mean and variance of the channels that a launch writes. Every program keeps those of its own pixels.
The next launch combines them, always in the same order, as in Chan, Golub & LeVeque (1983).

Shape shorthand in this module:

    BO: channels of a program
    ROW: channels of the map
"""

import triton
import triton.language as tl

__all__ = ["add_tile", "combine"]


@triton.jit
def add_tile(count, mean, deviation, tile, mask, area, MASKED: tl.constexpr):
    """
    Args:
        count, mean, deviation: number of earlier pixels, their mean and their sum of squares around
            it; mean and deviation are floats (BO,).
        tile: float (pixels, BO).
        mask: bool (pixels, BO), true for the `area` existing pixels; all exist unless MASKED.

    Returns:
        The first three, with these pixels added.
    """
    if MASKED:
        tile = tl.where(mask, tile, 0.0)
    tile_mean = tl.sum(tile, 0) / area
    distance = tile - tile_mean[None, :]
    if MASKED:
        distance = tl.where(mask, distance, 0.0)
    step = tile_mean - mean
    share = area / (count + area)
    deviation += tl.sum(distance * distance, 0) + step * step * (count * share)
    return count + area, mean + step * share, deviation


@triton.jit
def combine(
    partials, counts, number, size, ROW: tl.constexpr, BO: tl.constexpr, PARTS: tl.constexpr
):
    """
    Combines parts. Distances are taken from the mean of the first part, whose own distance to the
    mean of all is part of the variance, so that few digits cancel.

    Args:
        partials: pointer to mean and deviation of the first of `number` parts, floats (number, 2,
            ROW).
        counts: pointer to the pixels of each part, floats (number,); `size` is their sum.

    Returns:
        mean, variance: (BO,).
    """
    origin = tl.load(partials, cache_modifier=".cg")
    total, spread = tl.zeros((PARTS, BO), tl.float32), tl.zeros((PARTS, BO), tl.float32)
    for first in range(0, number, PARTS):
        part = first + tl.arange(0, PARTS)
        exists = part < number
        area = tl.load(counts + part, mask=exists, other=0.0, cache_modifier=".cg")[:, None]
        source = partials[None, :] + (part * 2 * ROW)[:, None]
        exists = exists[:, None]
        mean = tl.load(source, mask=exists, other=0.0, cache_modifier=".cg")
        deviation = tl.load(source + ROW, mask=exists, other=0.0, cache_modifier=".cg")
        distance = tl.where(exists, mean - origin[None, :], 0.0)
        total += distance * area
        spread += deviation + distance * distance * area
    distance = tl.sum(total, 0) / size
    variance = tl.sum(spread, 0) / size - distance * distance
    return origin + distance, tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL)
