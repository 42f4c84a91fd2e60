"""
Turns the vectors of the finest level into the motion field, by two Triton launches, see
matching.py. The first takes the last medians and computes their costs, the second keeps still cells
still.

Shape shorthand in this module:

    N: streams
    h, w: height and width of the finest level
    C: side of a cell, in its pixels
    GH, GW: rows and columns of its cells
"""

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.device import device_of

from . import luma, matching
from .triton_cells import (
    BEYOND,
    BRIGHTEST,
    NO_CURRENT,
    NO_PREVIOUS,
    OUTSIDE,
    STEPS,
    cells_per_program,
    differences,
    median_at,
    pixels_at,
    vector_at,
)

__all__ = ["field_launch"]

_NOT_FINITE = tl.constexpr(luma.NOT_FINITE)
_SHIFT = tl.constexpr(matching.STEPS.bit_length() - 1)

# Cells of a program that keeps still ones.
_STILL_CELLS = 32


@triton.jit
def field_kernel(
    current_ptr,
    previous_ptr,
    size,
    vectors,
    field_ptr,
    costs_ptr,
    num_cells,
    C: tl.constexpr,
    CELLS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program computes CELLS cells of the field, medians, and the costs of staying and of moving.

    Reads 6 bytes per pixel of the finest level: 3 MB for 1024 x 2048 pixels.
    """
    begin(PDL)
    h, w = size
    vectors_ptr, GH, GW = vectors
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    valid = cell < num_cells
    stream = (cell // (GH * GW)).to(tl.int64)
    row, column = cell // GW % GH, cell % GW
    x_plane = vectors_ptr + stream * (2 * GH * GW)
    y_plane = x_plane + GH * GW
    own_x = vector_at(x_plane, row, column, GH, GW, 0, valid)
    own_y = vector_at(y_plane, row, column, GH, GW, 0, valid)
    vector_x = median_at(x_plane, row, column, GH, GW, own_x, valid)
    vector_y = median_at(y_plane, row, column, GH, GW, own_y, valid)

    pixel = tl.arange(0, C * C)
    y = (row * C)[:, None] + (pixel // C)[None, :]
    x = (column * C)[:, None] + (pixel % C)[None, :]
    level = (stream * h * w)[:, None]
    current_ptr += level
    previous_ptr += level
    exist = valid[:, None] & (y < h) & (x < w)
    now = tl.load(current_ptr + y * w + x, mask=exist, other=OUTSIDE).to(tl.int32)
    before = tl.load(previous_ptr + y * w + x, mask=exist, other=OUTSIDE).to(tl.int32)
    broken = tl.max((exist & ((now == _NOT_FINITE) | (before == _NOT_FINITE))).to(tl.int32), 1)
    counts = (tl.max((now != OUTSIDE).to(tl.int32), 1) != 0) & (broken == 0)
    pixels = tl.where(now < OUTSIDE, now, NO_CURRENT)
    source = tl.where(before < OUTSIDE, before, NO_PREVIOUS)
    staying = differences(pixels, source)
    # Steps are a power of two: the shift rounds down, and the mask is the remainder.
    there_y = y + (vector_y >> _SHIFT)[:, None]
    there_x = x + (vector_x >> _SHIFT)[:, None]
    part_y, part_x = (vector_y & (STEPS - 1))[:, None], (vector_x & (STEPS - 1))[:, None]
    exist = valid[:, None]
    above = pixels_at(previous_ptr, there_y, there_x, h, w, exist, NO_PREVIOUS) * (STEPS - part_x)
    above += pixels_at(previous_ptr, there_y, there_x + 1, h, w, exist, NO_PREVIOUS) * part_x
    there_y += 1
    below = pixels_at(previous_ptr, there_y, there_x, h, w, exist, NO_PREVIOUS) * (STEPS - part_x)
    below += pixels_at(previous_ptr, there_y, there_x + 1, h, w, exist, NO_PREVIOUS) * part_x
    blend = above * (STEPS - part_y) + below * part_y
    blend = (blend + STEPS * STEPS // 2) // (STEPS * STEPS)
    # Pixels from beyond the image save nothing.
    moving = tl.abs(pixels - tl.where(blend > BRIGHTEST, NO_PREVIOUS, blend))
    moving = tl.where(moving > BRIGHTEST, tl.maximum(staying, BEYOND), moving)
    staying, moving = tl.sum(staying, 1), tl.sum(moving, 1)
    plane = stream * (2 * GH * GW) + row * GW + column
    tl.store(costs_ptr + plane, tl.where(counts, staying, -1), mask=valid)
    tl.store(costs_ptr + plane + GH * GW, moving, mask=valid)
    # A pixel of the finest level is two of the input.
    tl.store(field_ptr + plane, vector_x.to(tl.float32) * 2 / STEPS, mask=valid)
    tl.store(field_ptr + plane + GH * GW, vector_y.to(tl.float32) * 2 / STEPS, mask=valid)


@triton.jit
def still_kernel(
    costs_ptr,
    field_ptr,
    num_cells,
    GH,
    GW,
    RADIUS: tl.constexpr,
    C: tl.constexpr,
    CELLS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program sets those of CELLS cells to zero that :func:`matching.keep_still` does.

    Reads 81 costs of each, from the L1 cache: 21 MB for 1024 x 2048 pixels and C = 4.
    """
    begin(PDL)
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    valid = cell < num_cells
    stream = (cell // (GH * GW)).to(tl.int64)
    row, column = cell // GW % GH, cell % GW
    plane = stream * (2 * GH * GW)
    own = costs_ptr + plane + row * GW + column
    own_staying = tl.load(own, mask=valid, other=-1)
    own_moving = tl.load(own + GH * GW, mask=valid, other=0)
    SIDE: tl.constexpr = 2 * RADIUS + 1
    # 8 times the cost of moving, and 2 C C for each cell, less 7 times the cost of staying.
    excess = tl.zeros((CELLS,), tl.int64)
    for dy in range(-RADIUS, RADIUS + 1):
        y = row + dy
        # A row of loads at a time.
        for number in tl.static_range(SIDE):
            x = column + number - RADIUS
            exists = valid & (y >= 0) & (y < GH) & (x >= 0) & (x < GW)
            costs = costs_ptr + plane + y * GW + x
            staying = tl.load(costs, mask=exists, other=-1)
            moving = tl.load(costs + GH * GW, mask=exists, other=0)
            here = 8 * moving + 2 * C * C - 7 * staying
            excess += tl.where(staying >= 0, here, 0).to(tl.int64)
    still = (own_staying <= 0) | (own_moving > own_staying + 2 * C * C) | (excess >= 0)
    target = field_ptr + plane + row * GW + column
    tl.store(target, tl.zeros((CELLS,), tl.float32), mask=still & valid)
    tl.store(target + GH * GW, tl.zeros((CELLS,), tl.float32), mask=still & valid)


def field_launch(current, previous, cell, vectors, costs, out):
    """
    Fills the field of :class:`block_matching.BlockMatching`.

    Args:
        current, previous (Tensor): finest levels of two frames, uint8 (N, h, w).
        cell (int): C.
        vectors (Tensor): int32 (N, 2, GH, GW), from :func:`triton_search.search_launch`.
        costs (Tensor): int32 (N, 2, GH, GW), overwritten.
        out (Tensor): float32 (N, 2, GH, GW), contiguous, overwritten.
    """
    options = {"C": cell, "num_warps": 1, **device_of(out.device).launch_options}
    streams, _, rows, columns = vectors.shape
    num_cells, size = streams * rows * columns, tuple(current.shape[1:])
    cells = cells_per_program(cell**2)
    field_kernel[(triton.cdiv(num_cells, cells),)](
        *(current, previous, size, (vectors, rows, columns), out, costs, num_cells),
        CELLS=cells,
        **options,
    )
    still_kernel[(triton.cdiv(num_cells, _STILL_CELLS),)](
        *(costs, out, num_cells, rows, columns),
        RADIUS=matching.STILL_RADIUS,
        CELLS=_STILL_CELLS,
        **options,
    )
