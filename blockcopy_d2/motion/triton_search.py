"""
Searches the vectors of cells by Triton launches, one for each level, see matching.py.

Shape shorthand in this module:

    N: streams
    h, w: height and width of a level
    C: side of a cell, in pixels of a level; S = 2C, of the window around it
    GH, GW: rows and columns of cells of a level; PH, PW: of the coarser level before
"""

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.device import device_of

from . import matching
from .triton_cells import NOWHERE, OUTSIDE, STEPS, median_at, vector_at
from .triton_words import add_cost, dot, row_of_words, shifted

__all__ = ["search_launch"]

_DAMPING = tl.constexpr(matching.DAMPING)
_FURTHEST = tl.constexpr(matching.FURTHEST)
# Warps of a program, and words of a window, at most, that each of its threads compares. With more
# words a kernel takes minutes to compile.
WARPS, MOST_WORDS = 1, 4
# Warps per multiprocessor, at least, before a thread compares more than one row.
LEAST_WARPS = 8


@triton.jit
def _cost(
    current,
    previous,
    y,
    x,
    dy,
    dx,
    valid,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Returns int32 (cells,): matching._cost for one vector per cell."""
    total = tl.zeros(y.shape, tl.int32)
    for row in tl.static_range(ROWS):
        source = row_of_words(
            previous, y + row + dy[:, None], x + dx[:, None], valid, WORDS, ASSEMBLY
        )
        total = add_cost(current[row], source, 0, total, WORDS, ASSEMBLY)
    return tl.sum(total, 1)


@triton.jit
def _to_steps(numerator, determinant):
    steps = tl.floor(numerator / determinant * STEPS + 0.5)
    return tl.minimum(tl.maximum(steps, -_FURTHEST), _FURTHEST).to(tl.int32)


@triton.jit
def _add_products(
    sums, current, previous, y, x, valid, WORDS: tl.constexpr, ASSEMBLY: tl.constexpr
):
    """Adds the products of gradients and changes of a row: xx, xy, yy, xt and yt."""
    xx, xy, yy, xt, yt = sums
    words, exist = current
    above, above_exist = row_of_words(previous, y - 1, x, valid, WORDS, ASSEMBLY)
    below, below_exist = row_of_words(previous, y + 1, x, valid, WORDS, ASSEMBLY)
    row, row_exist = row_of_words(previous, y, x - 1, valid, WORDS + 1, ASSEMBLY)
    for number in tl.static_range(WORDS):
        left_exist, right_exist = row_exist[number], shifted(row_exist, number, 2, ASSEMBLY)
        # Where both are missing the gradient is 0.
        good = ~(left_exist ^ right_exist) & ~(above_exist[number] ^ below_exist[number])
        good = good & exist[number] & shifted(row_exist, number, 1, ASSEMBLY)
        left, right = row[number] & good, shifted(row, number, 2, ASSEMBLY) & good
        up, down = above[number] & good, below[number] & good
        before, now = shifted(row, number, 1, ASSEMBLY) & good, words[number] & good
        # (right - left)^2, (right - left) (down - up), ... of unsigned bytes.
        xx = dot(right, right, dot(left, left, xx, ASSEMBLY), ASSEMBLY)
        xx -= 2 * dot(left, right, xx * 0, ASSEMBLY)
        yy = dot(down, down, dot(up, up, yy, ASSEMBLY), ASSEMBLY)
        yy -= 2 * dot(up, down, yy * 0, ASSEMBLY)
        xy = dot(right, down, dot(left, up, xy, ASSEMBLY), ASSEMBLY)
        xy -= dot(right, up, dot(left, down, xy * 0, ASSEMBLY), ASSEMBLY)
        xt = dot(right, now, dot(left, before, xt, ASSEMBLY), ASSEMBLY)
        xt -= dot(right, before, dot(left, now, xt * 0, ASSEMBLY), ASSEMBLY)
        yt = dot(down, now, dot(up, before, yt, ASSEMBLY), ASSEMBLY)
        yt -= dot(down, before, dot(up, now, yt * 0, ASSEMBLY), ASSEMBLY)
    return xx, xy, yy, xt, yt


@triton.jit
def _lucas_kanade(
    current,
    previous,
    y,
    x,
    valid,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """int32 (cells,), dx and dy in steps, as matching._lucas_kanade."""
    xx = tl.zeros(y.shape, tl.int32)
    xy, yy, xt, yt = xx, xx, xx, xx
    for row in tl.static_range(ROWS):
        sums = (xx, xy, yy, xt, yt)
        there = y + row
        xx, xy, yy, xt, yt = _add_products(
            sums, current[row], previous, there, x, valid, WORDS, ASSEMBLY
        )
    xx = (tl.sum(xx, 1) + S * S * _DAMPING).to(tl.float64)
    xy = tl.sum(xy, 1).to(tl.float64)
    yy = (tl.sum(yy, 1) + S * S * _DAMPING).to(tl.float64)
    xt = tl.sum(xt, 1).to(tl.float64)
    yt = tl.sum(yt, 1).to(tl.float64)
    determinant = xx * yy - xy * xy
    dx = _to_steps(2 * (yy * xt - xy * yt), determinant)
    dy = _to_steps(2 * (xx * yt - xy * xt), determinant)
    return dx, dy


@triton.jit
def _start(
    pixels,
    previous,
    planes,  # x and y of the parents' vectors, rows and columns
    up,
    left,
    y,
    x,
    valid,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """int32 (cells,), dy and dx: the best of the vectors that a cell takes from its parent at
    (up, left), and from the neighbours of that."""
    x_plane, y_plane, PH, PW = planes
    exist = valid[:, None]
    # The parent of a cell outside of the image may lie outside, too.
    own_x = vector_at(x_plane, up, left, PH, PW, 0, valid)
    own_y = vector_at(y_plane, up, left, PH, PW, 0, valid)
    start_x = 2 * median_at(x_plane, up, left, PH, PW, own_x, valid)
    start_y = 2 * median_at(y_plane, up, left, PH, PW, own_y, valid)
    least = _cost(pixels, previous, y, x, start_y, start_x, exist, ROWS, WORDS, ASSEMBLY)
    # The parent's own vector, none, and those above, below, to the left and to the right of it.
    for other in range(6):
        near_y = up + tl.where(other == 2, -1, tl.where(other == 3, 1, 0))
        near_x = left + tl.where(other == 4, -1, tl.where(other == 5, 1, 0))
        times = tl.where(other == 1, 0, 2)
        dy = times * vector_at(y_plane, near_y, near_x, PH, PW, own_y, valid)
        dx = times * vector_at(x_plane, near_y, near_x, PH, PW, own_x, valid)
        total = _cost(pixels, previous, y, x, dy, dx, exist, ROWS, WORDS, ASSEMBLY)
        start_y = tl.where(total < least, dy, start_y)
        start_x = tl.where(total < least, dx, start_x)
        least = tl.minimum(total, least)
    return start_y, start_x


@triton.jit
def _best_nearby(
    pixels,
    previous,
    window,  # first column, row in the middle, and which exist
    S: tl.constexpr,
    RADIUS: tl.constexpr,
    CELLS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """int32 (CELLS,): the number of the best of SIDE x SIDE whole pixels, row by row."""
    first_x, y, exist = window
    SIDE: tl.constexpr = 2 * RADIUS + 1
    best = tl.zeros((CELLS,), tl.int32)
    least = tl.full((CELLS,), 2**30, tl.int32)
    for dy in range(-RADIUS, RADIUS + 1):
        there = y + dy
        sources = ()
        for number in tl.static_range(ROWS):
            place = (there + number, first_x, exist)
            sources += (row_of_words(previous, *place, WORDS + 2 * RADIUS // 4, ASSEMBLY),)
        for dx in tl.static_range(SIDE):
            total = tl.zeros(y.shape, tl.int32)
            for number in tl.static_range(ROWS):
                total = add_cost(pixels[number], sources[number], dx, total, WORDS, ASSEMBLY)
            total = tl.sum(total, 1)
            aside = dx - RADIUS if dx > RADIUS else RADIUS - dx
            total += (tl.abs(dy) + aside) * (S * S // 8)
            best = tl.where(total < least, (dy + RADIUS) * SIDE + dx, best)
            least = tl.minimum(total, least)
    return best


@triton.jit
def search_kernel(
    current_ptr,
    previous_ptr,
    size,  # of the level
    parents,  # a pointer, rows and columns, like the next
    vectors,
    num_cells,
    num_pixels,
    COARSEST: tl.constexpr,
    FINEST: tl.constexpr,
    RADIUS: tl.constexpr,
    C: tl.constexpr,
    CELLS: tl.constexpr,
    ROWS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program finds the vectors of CELLS cells of one level. A thread compares ROWS rows of a
    window, four pixels at a time.

    Compares 7 + (2 RADIUS + 1)^2 windows of 4 C C pixels per cell: 67 million pixels at the finest
    level of 1024 x 2048 pixels, by 3 instructions for 4 of them.
    """
    begin(PDL)
    h, w = size
    parents_ptr, PH, PW = parents
    vectors_ptr, GH, GW = vectors
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    valid = cell < num_cells
    stream = cell // (GH * GW)
    row, column = cell // GW % GH, cell % GW
    S: tl.constexpr = 2 * C
    # Words of a row that a thread compares, and threads that share a row.
    WORDS: tl.constexpr = S // 4 if S < 16 else 4
    SHARE: tl.constexpr = S // 4 // WORDS
    first = (stream * h * w)[:, None]
    exist = valid[:, None]
    pixel = tl.arange(0, C * C)
    y, x = (row * C)[:, None] + (pixel // C)[None, :], (column * C)[:, None] + (pixel % C)[None, :]
    inside = exist & (y < h) & (x < w)
    value = tl.load(current_ptr + first + y * w + x, mask=inside, other=OUTSIDE)
    in_image = tl.max((value != OUTSIDE).to(tl.int32), 1) != 0

    part = tl.arange(0, S // ROWS * SHARE)[None, :]
    y = (row * C - C // 2)[:, None] + part // SHARE * ROWS
    x = (column * C - C // 2)[:, None] + part % SHARE * (4 * WORDS)
    current = (current_ptr, num_pixels, h, w, first)
    previous = (previous_ptr, num_pixels, h, w, first)
    pixels = ()
    for number in tl.static_range(ROWS):
        pixels += (row_of_words(current, y + number, x, exist, WORDS, ASSEMBLY),)

    start_y = tl.zeros((CELLS,), tl.int32)
    start_x = tl.zeros((CELLS,), tl.int32)
    if not COARSEST:
        x_plane = parents_ptr + stream * (2 * PH * PW)
        planes = (x_plane, x_plane + PH * PW, PH, PW)
        start_y, start_x = _start(
            pixels, previous, planes, row // 2, column // 2, y, x, valid, ROWS, WORDS, ASSEMBLY
        )
    SIDE: tl.constexpr = 2 * RADIUS + 1
    window = (x + start_x[:, None] - RADIUS, y + start_y[:, None], exist)
    best = _best_nearby(pixels, previous, window, S, RADIUS, CELLS, ROWS, WORDS, ASSEMBLY)
    vector_y, vector_x = start_y + best // SIDE - RADIUS, start_x + best % SIDE - RADIUS
    if FINEST:
        there_y, there_x = y + vector_y[:, None], x + vector_x[:, None]
        where = (pixels, previous, there_y, there_x, exist)
        step_x, step_y = _lucas_kanade(*where, S, ROWS, WORDS, ASSEMBLY)
        vector_x = vector_x * STEPS + step_x
        vector_y = vector_y * STEPS + step_y
    target = vectors_ptr + stream * (2 * GH * GW) + row * GW + column
    tl.store(target, tl.where(in_image, vector_x, NOWHERE), mask=valid)
    tl.store(target + GH * GW, tl.where(in_image, vector_y, NOWHERE), mask=valid)


def _rows(num_cells, side, device):
    """int: rows of a window of `side` x `side` pixels that a thread compares."""
    rows, most = 1, 4 * MOST_WORDS // side
    while 2 * rows <= most and num_cells * side >= 64 * rows * LEAST_WARPS * device.num_sms:
        rows *= 2
    return rows


def search_launch(current, previous, cell, vectors):
    """
    Fills the vectors that :func:`matching.search` finds in each level, from the coarsest on.

    Args:
        current, previous (list[Tensor]): levels of two frames, uint8 (N, h, w), finest first.
        cell (int): C.
        vectors (list[Tensor]): int32 (N, 2, GH, GW) of each level, overwritten.
    """
    device = device_of(vectors[0].device)
    options = {"C": cell, "num_warps": WARPS, **device.launch_options}
    options["ASSEMBLY"] = device.assembly
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
        rows = _rows(num_cells, 2 * cell, device)
        kind |= dict(ROWS=rows, CELLS=max(32 * WARPS * rows // (2 * cell), 1))
        grid = (triton.cdiv(num_cells, kind["CELLS"]),)
        counts = num_cells, current[level].numel()
        search_kernel[grid](*levels, *planes, *counts, **kind, **options)
