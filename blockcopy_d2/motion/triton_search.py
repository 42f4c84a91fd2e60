"""
Searches the vectors of cells by Triton launches, one for each level, see matching.py.

Shape shorthand in this module:

    N: streams
    h, w: height and width of a level
    C: side of a cell, in pixels of a level; S = 2C, of the window around it, and P = S S
    GH, GW: rows and columns of cells of a level; PH, PW: of the coarser level before
"""

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.device import device_of

from . import matching
from .triton_cells import (
    BRIGHTEST,
    NO_CURRENT,
    NO_PREVIOUS,
    NOWHERE,
    OUTSIDE,
    STEPS,
    cells_per_program,
    differences,
    median_at,
    pixels_at,
    vector_at,
)

__all__ = ["search_launch"]

_DAMPING = tl.constexpr(matching.DAMPING)
_FURTHEST = tl.constexpr(matching.FURTHEST)


@triton.jit
def _cost(cell, previous_ptr, y, x, dy, dx, h, w, valid):
    """Returns int32 (cells,): matching._cost for one vector per cell."""
    source = pixels_at(previous_ptr, y + dy[:, None], x + dx[:, None], h, w, valid, NO_PREVIOUS)
    return differences(cell, source)


@triton.jit
def _better(pixels, previous_ptr, y, x, dy, dx, h, w, valid, start_y, start_x, least):
    """Returns the better of a start and another vector; the start if they are equal."""
    cost = _cost(pixels, previous_ptr, y, x, dy, dx, h, w, valid)
    start_y = tl.where(cost < least, dy, start_y)
    start_x = tl.where(cost < least, dx, start_x)
    return start_y, start_x, tl.minimum(cost, least)


@triton.jit
def _to_steps(numerator, determinant):
    steps = tl.floor(numerator / determinant * STEPS + 0.5)
    return tl.minimum(tl.maximum(steps, -_FURTHEST), _FURTHEST).to(tl.int32)


@triton.jit
def _lucas_kanade(cell, previous_ptr, y, x, h, w, valid, P: tl.constexpr):
    """int32 (cells,), dx and dy in steps, as matching._lucas_kanade."""
    right = pixels_at(previous_ptr, y, x + 1, h, w, valid, NO_PREVIOUS)
    right -= pixels_at(previous_ptr, y, x - 1, h, w, valid, NO_PREVIOUS)
    down = pixels_at(previous_ptr, y + 1, x, h, w, valid, NO_PREVIOUS)
    down -= pixels_at(previous_ptr, y - 1, x, h, w, valid, NO_PREVIOUS)
    change = cell - pixels_at(previous_ptr, y, x, h, w, valid, NO_PREVIOUS)
    largest = tl.maximum(tl.maximum(tl.abs(right), tl.abs(down)), tl.abs(change))
    right = tl.where(largest > BRIGHTEST, 0, right)
    down = tl.where(largest > BRIGHTEST, 0, down)
    change = tl.where(largest > BRIGHTEST, 0, change)
    xx = (tl.sum(right * right, 1) + P * _DAMPING).to(tl.float64)
    xy = tl.sum(right * down, 1).to(tl.float64)
    yy = (tl.sum(down * down, 1) + P * _DAMPING).to(tl.float64)
    xt = tl.sum(right * change, 1).to(tl.float64)
    yt = tl.sum(down * change, 1).to(tl.float64)
    determinant = xx * yy - xy * xy
    dx = _to_steps(2 * (yy * xt - xy * yt), determinant)
    dy = _to_steps(2 * (xx * yt - xy * xt), determinant)
    return dx, dy


@triton.jit
def search_kernel(
    current_ptr,
    previous_ptr,
    size,  # of the level
    parents,  # a pointer, rows and columns, like the next
    vectors,
    num_cells,
    COARSEST: tl.constexpr,
    FINEST: tl.constexpr,
    RADIUS: tl.constexpr,
    C: tl.constexpr,
    CELLS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program finds the vectors of CELLS cells of one level.

    Reads 4 (8 + (2 RADIUS + 1)^2) bytes per pixel of the level, nearly all of them from the L1
    cache: 70 MB and 140 million operations for the finest level of 1024 x 2048 pixels.
    """
    begin(PDL)
    h, w = size
    parents_ptr, PH, PW = parents
    vectors_ptr, GH, GW = vectors
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    valid = cell < num_cells
    stream = (cell // (GH * GW)).to(tl.int64)
    row, column = cell // GW % GH, cell % GW
    S: tl.constexpr = 2 * C
    pixel = tl.arange(0, S * S)
    below, right = (pixel // S - C // 2)[None, :], (pixel % S - C // 2)[None, :]
    y, x = (row * C)[:, None] + below, (column * C)[:, None] + right
    level = (stream * h * w)[:, None]
    current_ptr += level
    previous_ptr += level
    exist = valid[:, None] & (y >= 0) & (y < h) & (x >= 0) & (x < w)
    value = tl.load(current_ptr + y * w + x, mask=exist, other=OUTSIDE).to(tl.int32)
    in_cell = (below >= 0) & (below < C) & (right >= 0) & (right < C)
    in_image = tl.max((in_cell & (value != OUTSIDE)).to(tl.int32), 1) != 0
    pixels = tl.where(value < OUTSIDE, value, NO_CURRENT)
    exist = valid[:, None]

    start_y = tl.zeros((CELLS,), tl.int32)
    start_x = tl.zeros((CELLS,), tl.int32)
    if not COARSEST:
        x_plane = parents_ptr + stream * (2 * PH * PW)
        y_plane = x_plane + PH * PW
        up, left = row // 2, column // 2
        # The parent of a cell outside of the image may lie outside, too.
        own_x = vector_at(x_plane, up, left, PH, PW, 0, valid)
        own_y = vector_at(y_plane, up, left, PH, PW, 0, valid)
        start_x = 2 * median_at(x_plane, up, left, PH, PW, own_x, valid)
        start_y = 2 * median_at(y_plane, up, left, PH, PW, own_y, valid)
        least = _cost(pixels, previous_ptr, y, x, start_y, start_x, h, w, exist)
        start_y, start_x, least = _better(
            pixels, previous_ptr, y, x, 2 * own_y, 2 * own_x, h, w, exist, start_y, start_x, least
        )
        none = tl.zeros((CELLS,), tl.int32)
        start_y, start_x, least = _better(
            pixels, previous_ptr, y, x, none, none, h, w, exist, start_y, start_x, least
        )
        for beside in tl.static_range(4):
            near_y, near_x = up, left
            if beside < 2:
                near_y += 2 * beside - 1
            else:
                near_x += 2 * beside - 5
            vector_y = 2 * vector_at(y_plane, near_y, near_x, PH, PW, own_y, valid)
            vector_x = 2 * vector_at(x_plane, near_y, near_x, PH, PW, own_x, valid)
            start_y, start_x, least = _better(
                pixels, previous_ptr, y, x, vector_y, vector_x, h, w, exist, start_y, start_x, least
            )

    SIDE: tl.constexpr = 2 * RADIUS + 1
    best = tl.zeros((CELLS,), tl.int32)
    least = tl.full((CELLS,), 2**30, tl.int32)
    for candidate in range(SIDE * SIDE):
        dy, dx = candidate // SIDE - RADIUS, candidate % SIDE - RADIUS
        cost = _cost(pixels, previous_ptr, y, x, start_y + dy, start_x + dx, h, w, exist)
        cost += (tl.abs(dy) + tl.abs(dx)) * (S * S // 8)
        best = tl.where(cost < least, candidate, best)
        least = tl.minimum(cost, least)
    dy, dx = best // SIDE - RADIUS, best % SIDE - RADIUS
    vector_y, vector_x = start_y + dy, start_x + dx
    if FINEST:
        there_y, there_x = y + vector_y[:, None], x + vector_x[:, None]
        step_x, step_y = _lucas_kanade(pixels, previous_ptr, there_y, there_x, h, w, exist, S * S)
        vector_x = vector_x * STEPS + step_x
        vector_y = vector_y * STEPS + step_y
    target = vectors_ptr + stream * (2 * GH * GW) + row * GW + column
    tl.store(target, tl.where(in_image, vector_x, NOWHERE), mask=valid)
    tl.store(target + GH * GW, tl.where(in_image, vector_y, NOWHERE), mask=valid)


def search_launch(current, previous, cell, vectors):
    """
    Fills the vectors that :func:`matching.search` finds in each level, from the coarsest on.

    Args:
        current, previous (list[Tensor]): levels of two frames, uint8 (N, h, w), finest first.
        cell (int): C.
        vectors (list[Tensor]): int32 (N, 2, GH, GW) of each level, overwritten.
    """
    options = {"C": cell, "num_warps": 1, **device_of(vectors[0].device).launch_options}
    options["CELLS"] = cells = cells_per_program((2 * cell) ** 2)
    for level in reversed(range(len(current))):
        coarsest = level + 1 == len(current)
        found = vectors[level]
        parents = found if coarsest else vectors[level + 1]
        streams, _, rows, columns = found.shape
        num_cells = streams * rows * columns
        levels = (current[level], previous[level], tuple(current[level].shape[1:]))
        planes = [(x, *x.shape[2:]) for x in (parents, found)]
        kind = dict(COARSEST=coarsest, FINEST=level == 0)
        kind["RADIUS"] = matching.COARSEST_RADIUS if coarsest else matching.RADIUS
        grid = (triton.cdiv(num_cells, cells),)
        search_kernel[grid](*levels, *planes, num_cells, **kind, **options)
