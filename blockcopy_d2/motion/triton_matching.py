"""
Block matching as Triton kernels: pyramid.py and matching.py in seven launches.

One launch makes all levels of a frame, one searches the cells of a level, one takes the last
medians and says what they cost, and one keeps still cells still. Nothing is read on the host and
nothing is allocated. All costs are whole numbers, so the vectors are those of matching.py, bit for
bit.

Shape shorthand in this module:

    N: streams
    H, W: height and width of the canvas; h, w: of a level
    C: side of a cell, in pixels of a level; S = 2C, of the window around it, and P = S S
    GH, GW: rows and columns of cells of a level; PH, PW: of the coarser level before
"""

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.device import device_of

from . import matching, pyramid

__all__ = ["match_launch", "pyramid_launch"]

_OUTSIDE = tl.constexpr(pyramid.OUTSIDE)
_NOT_FINITE = tl.constexpr(pyramid.NOT_FINITE)
_BRIGHTEST = tl.constexpr(pyramid.BRIGHTEST)
_BEYOND = tl.constexpr(matching.BEYOND)
_DAMPING = tl.constexpr(matching.DAMPING)
_FURTHEST = tl.constexpr(matching.FURTHEST)
_STEPS = tl.constexpr(matching.STEPS)
_SHIFT = tl.constexpr(matching.STEPS.bit_length() - 1)
_NOWHERE = tl.constexpr(matching.NOWHERE)
_NO_CURRENT = tl.constexpr(matching.NO_CURRENT)
_NO_PREVIOUS = tl.constexpr(matching.NO_PREVIOUS)

# Side of the tile of level 0 that a program of the pyramid makes. At the last level of it a pixel
# or more is left.
_TILE = 32
# Pixels of cells that a program of one warp compares at a time.
_PIXELS = 256


@triton.jit
def _store_level(level, value, stream, row, column, T: tl.constexpr):
    level_ptr, h, w = level
    y = (row * T + tl.arange(0, T))[:, None]
    x = (column * T + tl.arange(0, T))[None, :]
    target = level_ptr + stream.to(tl.int64) * h * w + y * w + x
    tl.store(target, value.to(tl.uint8), mask=(y < h) & (x < w))


@triton.jit
def _halve(value, T: tl.constexpr):
    """int32 (T / 2, T / 2): rounded means of the usable ones of 2 x 2 pixels."""
    value = tl.reshape(value, (T // 2, 2, T // 2, 2))
    usable = (value < _OUTSIDE).to(tl.int32)
    total = tl.sum(tl.sum(value * usable, 3), 1)
    count = tl.sum(tl.sum(usable, 3), 1)
    largest = tl.max(tl.max(value, 3), 1)
    mean = (2 * total + count) // tl.maximum(2 * count, 1)
    mean = tl.where(count == 0, _OUTSIDE, mean)
    return tl.where(largest == _NOT_FINITE, _NOT_FINITE, mean)


@triton.jit
def pyramid_kernel(
    images_ptr,
    strides,
    size,
    sizes_ptr,
    first,  # a level: pointer, height, width
    second,
    third,
    fourth,
    SIZED: tl.constexpr,
    T: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program makes T x T pixels of the first level, and what lies below them of the others.

    Reads the frame once, 3 H W values, and writes a third of H W bytes: 26 MB for one of
    1024 x 2048 in float32, 6 us of an H200's bandwidth, and a quarter of that for uint8.
    """
    begin(PDL)
    column, row, stream = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    stride_n, stride_c, stride_y, stride_x = strides
    height, width = size
    if SIZED:
        height = tl.minimum(tl.load(sizes_ptr + 2 * stream), height)
        width = tl.minimum(tl.load(sizes_ptr + 2 * stream + 1), width)
    y = 2 * (row * T + tl.arange(0, T))[:, None]
    x = 2 * (column * T + tl.arange(0, T))[None, :]
    total = tl.zeros((T, T), tl.float32)
    count = tl.zeros((T, T), tl.int32)
    image_ptr = images_ptr + stream.to(tl.int64) * stride_n
    for dy in tl.static_range(2):
        for dx in tl.static_range(2):
            inside = (y + dy < height) & (x + dx < width)
            pixel = image_ptr + (y + dy) * stride_y + (x + dx) * stride_x
            red = tl.load(pixel, mask=inside, other=0).to(tl.float32)
            green = tl.load(pixel + stride_c, mask=inside, other=0).to(tl.float32)
            blue = tl.load(pixel + 2 * stride_c, mask=inside, other=0).to(tl.float32)
            total += (red + 2 * green + blue) / 4
            count += inside.to(tl.int32)
    broken = total - total != 0
    mean = tl.where(broken, 0.0, total) / tl.maximum(count, 1).to(tl.float32)
    value = tl.minimum(tl.maximum(tl.floor(mean + 0.5), 0.0), _BRIGHTEST).to(tl.int32)
    value = tl.where(broken, _NOT_FINITE, tl.where(count == 0, _OUTSIDE, value))
    _store_level(first, value, stream, row, column, T)
    value = _halve(value, T)
    _store_level(second, value, stream, row, column, T // 2)
    value = _halve(value, T // 2)
    _store_level(third, value, stream, row, column, T // 4)
    value = _halve(value, T // 4)
    _store_level(fourth, value, stream, row, column, T // 8)


def pyramid_launch(images, image_sizes, levels):
    """
    Fills the levels of :func:`pyramid.luma_pyramid`.

    Args:
        images (Tensor): (N, 3, H, W) of any strides.
        image_sizes (Tensor): int32 (N, 2), contiguous, or None.
        levels (list[Tensor]): uint8 (N, h, w) each, overwritten.
    """
    streams, _, height, width = images.shape
    rows, columns = levels[0].shape[1:]
    grid = triton.cdiv(columns, _TILE), triton.cdiv(rows, _TILE), streams
    sized, options = image_sizes is not None, device_of(images.device).launch_options
    arguments = (images, images.stride(), (height, width), image_sizes if sized else images)
    levels = [(level, *level.shape[1:]) for level in levels]
    pyramid_kernel[grid](*arguments, *levels, SIZED=sized, T=_TILE, num_warps=4, **options)


@triton.jit
def _vector(plane_ptr, y, x, PH, PW, instead, valid):
    """A component of vectors; `instead` of it where there is no cell in the image."""
    exists = valid & (y >= 0) & (y < PH) & (x >= 0) & (x < PW)
    vector = tl.load(plane_ptr + y * PW + x, mask=exists, other=_NOWHERE)
    return tl.where(vector == _NOWHERE, instead, vector)


@triton.jit
def _median_of_3(first, second, third):
    smaller, larger = tl.minimum(first, second), tl.maximum(first, second)
    return tl.maximum(smaller, tl.minimum(larger, third))


@triton.jit
def _row_of_3(plane_ptr, y, x, PH, PW, own, valid):
    """Least, median and largest of three neighbours."""
    left = _vector(plane_ptr, y, x - 1, PH, PW, own, valid)
    middle = _vector(plane_ptr, y, x, PH, PW, own, valid)
    right = _vector(plane_ptr, y, x + 1, PH, PW, own, valid)
    least = tl.minimum(tl.minimum(left, middle), right)
    largest = tl.maximum(tl.maximum(left, middle), right)
    return least, _median_of_3(left, middle, right), largest


@triton.jit
def _median(plane_ptr, y, x, PH, PW, own, valid):
    """The median of 3 x 3 neighbours: of the largest least, median median and least largest."""
    least_0, median_0, largest_0 = _row_of_3(plane_ptr, y - 1, x, PH, PW, own, valid)
    least_1, median_1, largest_1 = _row_of_3(plane_ptr, y, x, PH, PW, own, valid)
    least_2, median_2, largest_2 = _row_of_3(plane_ptr, y + 1, x, PH, PW, own, valid)
    least = tl.maximum(tl.maximum(least_0, least_1), least_2)
    largest = tl.minimum(tl.minimum(largest_0, largest_1), largest_2)
    return _median_of_3(least, _median_of_3(median_0, median_1, median_2), largest)


@triton.jit
def _pixels(level_ptr, y, x, h, w, valid, missing):
    """int32, a window of a level; `missing` where there is no pixel in the image."""
    inside = valid & (y >= 0) & (y < h) & (x >= 0) & (x < w)
    value = tl.load(level_ptr + y * w + x, mask=inside, other=_OUTSIDE).to(tl.int32)
    return tl.where(value < _OUTSIDE, value, missing)


@triton.jit
def _differences(cell, source):
    """int32 (cells,): the cost of comparing (cells, P) pixels."""
    difference = tl.abs(cell - source)
    return tl.sum(tl.where(difference > _BRIGHTEST, _BEYOND, difference), 1)


@triton.jit
def _cost(cell, previous_ptr, y, x, dy, dx, h, w, valid):
    """int32 (cells,): what matching._cost gives for one vector per cell."""
    source = _pixels(previous_ptr, y + dy[:, None], x + dx[:, None], h, w, valid, _NO_PREVIOUS)
    return _differences(cell, source)


@triton.jit
def _better(pixels, previous_ptr, y, x, dy, dx, h, w, valid, start_y, start_x, least):
    """The better one of a start and another vector; the start, if they are equal."""
    cost = _cost(pixels, previous_ptr, y, x, dy, dx, h, w, valid)
    start_y = tl.where(cost < least, dy, start_y)
    start_x = tl.where(cost < least, dx, start_x)
    return start_y, start_x, tl.minimum(cost, least)


@triton.jit
def _to_steps(numerator, determinant):
    steps = tl.floor(numerator / determinant * _STEPS + 0.5)
    return tl.minimum(tl.maximum(steps, -_FURTHEST), _FURTHEST).to(tl.int32)


@triton.jit
def _lucas_kanade(cell, previous_ptr, y, x, h, w, valid, P: tl.constexpr):
    """int32 (cells,), dx and dy in steps, as matching._lucas_kanade."""
    right = _pixels(previous_ptr, y, x + 1, h, w, valid, _NO_PREVIOUS)
    right -= _pixels(previous_ptr, y, x - 1, h, w, valid, _NO_PREVIOUS)
    down = _pixels(previous_ptr, y + 1, x, h, w, valid, _NO_PREVIOUS)
    down -= _pixels(previous_ptr, y - 1, x, h, w, valid, _NO_PREVIOUS)
    change = cell - _pixels(previous_ptr, y, x, h, w, valid, _NO_PREVIOUS)
    largest = tl.maximum(tl.maximum(tl.abs(right), tl.abs(down)), tl.abs(change))
    right = tl.where(largest > _BRIGHTEST, 0, right)
    down = tl.where(largest > _BRIGHTEST, 0, down)
    change = tl.where(largest > _BRIGHTEST, 0, change)
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
    parents,  # a pointer, rows and columns, as of the next
    vectors,
    num_cells,
    COARSEST: tl.constexpr,
    FINEST: tl.constexpr,
    RADIUS: tl.constexpr,
    C: tl.constexpr,
    CELLS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program gives the vectors of CELLS cells of one level.

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
    value = tl.load(current_ptr + y * w + x, mask=exist, other=_OUTSIDE).to(tl.int32)
    in_cell = (below >= 0) & (below < C) & (right >= 0) & (right < C)
    in_image = tl.max((in_cell & (value != _OUTSIDE)).to(tl.int32), 1) != 0
    pixels = tl.where(value < _OUTSIDE, value, _NO_CURRENT)
    exist = valid[:, None]

    start_y = tl.zeros((CELLS,), tl.int32)
    start_x = tl.zeros((CELLS,), tl.int32)
    if not COARSEST:
        x_plane = parents_ptr + stream * (2 * PH * PW)
        y_plane = x_plane + PH * PW
        up, left = row // 2, column // 2
        # The parent of a cell outside of the image may lie outside, too.
        own_x = _vector(x_plane, up, left, PH, PW, 0, valid)
        own_y = _vector(y_plane, up, left, PH, PW, 0, valid)
        start_x = 2 * _median(x_plane, up, left, PH, PW, own_x, valid)
        start_y = 2 * _median(y_plane, up, left, PH, PW, own_y, valid)
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
            vector_y = 2 * _vector(y_plane, near_y, near_x, PH, PW, own_y, valid)
            vector_x = 2 * _vector(x_plane, near_y, near_x, PH, PW, own_x, valid)
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
        vector_x = vector_x * _STEPS + step_x
        vector_y = vector_y * _STEPS + step_y
    target = vectors_ptr + stream * (2 * GH * GW) + row * GW + column
    tl.store(target, tl.where(in_image, vector_x, _NOWHERE), mask=valid)
    tl.store(target + GH * GW, tl.where(in_image, vector_y, _NOWHERE), mask=valid)


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
    """A program gives CELLS cells of the field, medians, and the costs of staying and of moving.

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
    own_x = _vector(x_plane, row, column, GH, GW, 0, valid)
    own_y = _vector(y_plane, row, column, GH, GW, 0, valid)
    vector_x = _median(x_plane, row, column, GH, GW, own_x, valid)
    vector_y = _median(y_plane, row, column, GH, GW, own_y, valid)

    pixel = tl.arange(0, C * C)
    y = (row * C)[:, None] + (pixel // C)[None, :]
    x = (column * C)[:, None] + (pixel % C)[None, :]
    level = (stream * h * w)[:, None]
    current_ptr += level
    previous_ptr += level
    exist = valid[:, None] & (y < h) & (x < w)
    now = tl.load(current_ptr + y * w + x, mask=exist, other=_OUTSIDE).to(tl.int32)
    before = tl.load(previous_ptr + y * w + x, mask=exist, other=_OUTSIDE).to(tl.int32)
    broken = tl.max((exist & ((now == _NOT_FINITE) | (before == _NOT_FINITE))).to(tl.int32), 1)
    counts = (tl.max((now != _OUTSIDE).to(tl.int32), 1) != 0) & (broken == 0)
    pixels = tl.where(now < _OUTSIDE, now, _NO_CURRENT)
    source = tl.where(before < _OUTSIDE, before, _NO_PREVIOUS)
    staying = _differences(pixels, source)
    # Steps are a power of two: the shift rounds down, and the mask is what is left.
    there_y = y + (vector_y >> _SHIFT)[:, None]
    there_x = x + (vector_x >> _SHIFT)[:, None]
    part_y, part_x = (vector_y & (_STEPS - 1))[:, None], (vector_x & (_STEPS - 1))[:, None]
    exist = valid[:, None]
    above = _pixels(previous_ptr, there_y, there_x, h, w, exist, _NO_PREVIOUS) * (_STEPS - part_x)
    above += _pixels(previous_ptr, there_y, there_x + 1, h, w, exist, _NO_PREVIOUS) * part_x
    there_y += 1
    below = _pixels(previous_ptr, there_y, there_x, h, w, exist, _NO_PREVIOUS) * (_STEPS - part_x)
    below += _pixels(previous_ptr, there_y, there_x + 1, h, w, exist, _NO_PREVIOUS) * part_x
    blend = above * (_STEPS - part_y) + below * part_y
    blend = (blend + _STEPS * _STEPS // 2) // (_STEPS * _STEPS)
    moving = _differences(pixels, tl.where(blend > _BRIGHTEST, _NO_PREVIOUS, blend))
    plane = stream * (2 * GH * GW) + row * GW + column
    tl.store(costs_ptr + plane, tl.where(counts, staying, -1), mask=valid)
    tl.store(costs_ptr + plane + GH * GW, moving, mask=valid)
    # A pixel of the finest level is two of the input.
    tl.store(field_ptr + plane, vector_x.to(tl.float32) * 2 / _STEPS, mask=valid)
    tl.store(field_ptr + plane + GH * GW, vector_y.to(tl.float32) * 2 / _STEPS, mask=valid)


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
    # 8 times what moving costs, and 2 C C for each cell, less 7 times what staying costs.
    excess = tl.zeros((CELLS,), tl.int64)
    for beside in range(SIDE * SIDE):
        y, x = row + beside // SIDE - RADIUS, column + beside % SIDE - RADIUS
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


def match_launch(current, previous, cell, vectors, costs, out):
    """
    Fills the field of :class:`block_matching.BlockMatching`.

    Args:
        current, previous (list[Tensor]): levels of two frames, uint8 (N, h, w), finest first.
        cell (int): C.
        vectors (list[Tensor]): int32 (N, 2, GH, GW) of each level, overwritten.
        costs (Tensor): int32 (N, 2, GH, GW) of the finest level, overwritten.
        out (Tensor): float32 (N, 2, GH, GW) of the finest level, contiguous, overwritten.
    """
    options = {"C": cell, "num_warps": 1, **device_of(out.device).launch_options}
    cells = max(_PIXELS // (2 * cell) ** 2, 1)
    for level in reversed(range(len(current))):
        coarsest = level + 1 == len(current)
        found = vectors[level]
        parents = found if coarsest else vectors[level + 1]
        streams, _, rows, columns = found.shape
        num_cells = streams * rows * columns
        grid = (triton.cdiv(num_cells, cells),)
        levels = (current[level], previous[level], tuple(current[level].shape[1:]))
        planes = [(x, *x.shape[2:]) for x in (parents, found)]
        kind = dict(COARSEST=coarsest, FINEST=level == 0, CELLS=cells)
        kind["RADIUS"] = matching.COARSEST_RADIUS if coarsest else matching.RADIUS
        search_kernel[grid](*levels, *planes, num_cells, **kind, **options)
    cells = _PIXELS // cell**2
    field_kernel[(triton.cdiv(num_cells, cells),)](
        *levels, planes[1], out, costs, num_cells, CELLS=cells, **options
    )
    cells = 32
    still_kernel[(triton.cdiv(num_cells, cells),)](
        costs, out, num_cells, rows, columns, RADIUS=matching.STILL_RADIUS, CELLS=cells, **options
    )
