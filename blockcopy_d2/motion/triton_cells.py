"""
Pixels and vectors of cells, as the kernels of block matching read and compare them.

All costs are whole numbers, so the vectors are those of matching.py, bit for bit.

Shape shorthand in this module:

    h, w: height and width of a level
    C: side of a cell, in pixels of a level; P: pixels of a cell, or of the window around it
    PH, PW: rows and columns of cells
"""

import triton
import triton.language as tl

from . import luma, matching

__all__ = ["cells_per_program", "differences", "median_at", "pixels_at", "vector_at"]

OUTSIDE = tl.constexpr(luma.OUTSIDE)
BRIGHTEST = tl.constexpr(luma.BRIGHTEST)
STEPS = tl.constexpr(matching.STEPS)
NOWHERE = tl.constexpr(matching.NOWHERE)
NO_CURRENT = tl.constexpr(matching.NO_CURRENT)
NO_PREVIOUS = tl.constexpr(matching.NO_PREVIOUS)
BEYOND = tl.constexpr(matching.BEYOND)

# Pixels of cells that a program of one warp compares at a time.
PIXELS = 256


def cells_per_program(pixels):
    """
    Args:
        pixels (int): P, a power of two.

    Returns:
        int: cells of a program.
    """
    return max(PIXELS // pixels, 1)


@triton.jit
def vector_at(plane_ptr, y, x, PH, PW, instead, valid):
    """Reads a component of vectors; `instead` where there is no cell in the image."""
    exists = valid & (y >= 0) & (y < PH) & (x >= 0) & (x < PW)
    vector = tl.load(plane_ptr + y * PW + x, mask=exists, other=NOWHERE)
    return tl.where(vector == NOWHERE, instead, vector)


@triton.jit
def _median_of_3(first, second, third):
    smaller, larger = tl.minimum(first, second), tl.maximum(first, second)
    return tl.maximum(smaller, tl.minimum(larger, third))


@triton.jit
def _row_of_3(plane_ptr, y, x, PH, PW, own, valid):
    """Least, median and largest of three neighbours."""
    left = vector_at(plane_ptr, y, x - 1, PH, PW, own, valid)
    middle = vector_at(plane_ptr, y, x, PH, PW, own, valid)
    right = vector_at(plane_ptr, y, x + 1, PH, PW, own, valid)
    least = tl.minimum(tl.minimum(left, middle), right)
    largest = tl.maximum(tl.maximum(left, middle), right)
    return least, _median_of_3(left, middle, right), largest


@triton.jit
def median_at(plane_ptr, y, x, PH, PW, own, valid):
    """The median of 3 x 3 neighbours: of the largest least, median median and least largest."""
    least_0, median_0, largest_0 = _row_of_3(plane_ptr, y - 1, x, PH, PW, own, valid)
    least_1, median_1, largest_1 = _row_of_3(plane_ptr, y, x, PH, PW, own, valid)
    least_2, median_2, largest_2 = _row_of_3(plane_ptr, y + 1, x, PH, PW, own, valid)
    least = tl.maximum(tl.maximum(least_0, least_1), least_2)
    largest = tl.minimum(tl.minimum(largest_0, largest_1), largest_2)
    return _median_of_3(least, _median_of_3(median_0, median_1, median_2), largest)


@triton.jit
def pixels_at(level_ptr, y, x, h, w, valid, missing):
    """int32, a window of a level; `missing` where there is no pixel in the image."""
    inside = valid & (y >= 0) & (y < h) & (x >= 0) & (x < w)
    value = tl.load(level_ptr + y * w + x, mask=inside, other=OUTSIDE).to(tl.int32)
    return tl.where(value < OUTSIDE, value, missing)


@triton.jit
def differences(cell, source):
    """int32 (cells, P): the costs of comparing pixels."""
    difference = tl.abs(cell - source)
    return tl.where(difference > BRIGHTEST, BEYOND, difference)
