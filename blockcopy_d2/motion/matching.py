"""
Hierarchical block matching on luma pyramids, in plain PyTorch.

Levels go from coarse to fine. At each of them a cell of C x C pixels of the level starts from the
best of these vectors: the median of its parent and of the parent's neighbours, its parent's own,
none, and those of four neighbours of its parent. It then tries all whole pixels nearby. The cost of
a vector is the sum of absolute differences over the window of 2C x 2C pixels around the cell, plus
a little for each pixel away from the start. A pixel that comes from beyond the image costs
:data:`BEYOND`, so that content entering the view follows its neighbours.

At the finest level a Lucas-Kanade step gives eighths of a pixel, 3 x 3 medians remove outliers,
and :func:`keep_still` sets the cells to zero where the picture stands still. All values are whole
numbers, or rounded quotients of them, so triton_search.py and triton_field.py give the same bits.

Shape shorthand in this module:

    N: streams
    h, w: height and width of a level
    C: side of a cell, in pixels of the level
    S: side of the window around it, 2C
    GH, GW: rows and columns of cells of the level
    K: cells of all streams, N GH GW
"""

import torch
from torch.nn import functional as F

from .luma import BRIGHTEST, NOT_FINITE, OUTSIDE

__all__ = ["keep_still", "match"]

# Cost in grey levels of a pixel that one of the frames lacks.
BEYOND = 16
# Pixels searched in each direction: at the coarsest level, and at the others.
COARSEST_RADIUS = 4
RADIUS = 2
# Steps of a pixel of the finest level, which is two of the input.
STEPS = 8
# Largest Lucas-Kanade step to trust, in steps.
FURTHEST = 6
# Added to the squares of a pixel's gradients: more makes cells less likely to leave a pixel.
DAMPING = 4
# Cells in each direction whose savings decide whether a cell moves.
STILL_RADIUS = 4
# Vector of cells outside of the image, which their neighbours ignore.
NOWHERE = -(2**15)


def match(current, previous, cell):
    """
    Args:
        current, previous (list[Tensor]): levels of two frames, uint8 (N, h, w), finest first.
        cell (int): C, the same at all levels.

    Returns:
        Tensor: float32 (N, 2, GH, GW), dx and dy in pixels of the finest level.
    """
    vectors = None
    for level in reversed(range(len(current))):
        radius = COARSEST_RADIUS if vectors is None else RADIUS
        vectors = search(current[level], previous[level], vectors, cell, radius, finest=level == 0)
    return median(vectors).float() / STEPS


def search(current, previous, parents, cell, radius, finest=False):
    """
    Args:
        current, previous (Tensor): uint8 (N, h, w).
        parents (Tensor): int32 (N, 2, ceil(GH / 2), ceil(GW / 2)), the vectors of the level
            before, or None at the coarsest level.
        cell (int): C.
        radius (int): pixels to try in each direction.
        finest (bool): whether to return steps, ``STEPS`` to a pixel, instead of whole pixels.

    Returns:
        Tensor: int32 (N, 2, GH, GW), dx and dy; ``NOWHERE`` in cells outside of the image.
    """
    streams, height, width = current.shape
    rows, columns = -(-height // cell), -(-width // cell)
    shape = (streams, rows, columns)
    side = 2 * cell
    y = torch.arange(rows, device=current.device).view(1, rows, 1) * cell - cell // 2
    x = torch.arange(columns, device=current.device).view(1, 1, columns) * cell - cell // 2
    y, x = y.expand(shape), x.expand(shape)
    pixels = _Pixels(current, side, NO_CURRENT).windows(y, x, side)
    source = _Pixels(previous, side + 2 * radius, NO_PREVIOUS)
    start = torch.zeros(2, *shape, dtype=torch.int32, device=current.device)
    if parents is not None:
        middle = _children(median(parents), rows, columns)
        own = _children(parents, rows, columns)
        near = (_children(x, rows, columns) for x in _neighbours(parents))
        candidates = [middle, own, torch.zeros_like(own), *near]
        costs = torch.stack(
            [_cost(pixels, source.windows(y + v[1], x + v[0], side)) for v in candidates]
        )
        # Ties go to the first, as everywhere in this module.
        best = costs.argmin(0).view(1, *shape)
        start = torch.stack(candidates).gather(0, best[None].expand(1, 2, *shape))[0]
    windows = source.windows(y + start[1] - radius, x + start[0] - radius, side + 2 * radius)
    costs = torch.cat([_costs_of_row(pixels, windows, side, row) for row in range(2 * radius + 1)])
    offset = torch.arange(-radius, radius + 1, device=current.device)
    away = (offset.abs()[:, None] + offset.abs()).view(-1, 1)
    best = (costs + away * (side * side // 8)).argmin(0)
    tried = 2 * radius + 1
    dy, dx = best // tried - radius, best % tried - radius
    vectors = start + torch.stack([dx, dy]).view(2, *shape)
    if finest:
        y, x = y + vectors[1], x + vectors[0]
        windows = source.windows(y - 1, x - 1, side + 2)
        vectors = STEPS * vectors + _lucas_kanade(pixels, windows).view(2, *shape)
    vectors = vectors.to(torch.int32).where(_exists(current, cell), NOWHERE)
    return vectors.transpose(0, 1).contiguous()


def median(vectors):
    """
    Returns the median of each component over 3 x 3 cells. Where there is no cell, or none in the
    image, the vector in the middle counts instead.

    Args:
        vectors (Tensor): int32 (N, 2, GH, GW).

    Returns:
        Tensor: the same; 0 in cells outside of the image.
    """
    rows, columns = vectors.shape[-2:]
    padded = F.pad(vectors, (1, 1, 1, 1), value=NOWHERE)
    near = torch.stack(
        [padded[..., y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    )
    near = near.where(near != NOWHERE, vectors)
    return near.median(0).values.where(vectors != NOWHERE, 0)


def keep_still(field, current, previous, cell, radius=STILL_RADIUS):
    """
    Sets vectors to zero, in place, where the picture stands still: unless moving all cells that are
    at most ``radius`` cells away by their vectors saves an eighth of the cost of staying, and a
    quarter of a grey level per pixel. A smooth cell shows nothing by itself and moves with its
    surroundings. The noise of a still camera saves less than that. A cell also stays if that costs
    nothing, or if moving costs over two grey levels per pixel more, as beside an object; and if one
    of its pixels is not finite in either frame. Pixels that would come from beyond the image save
    nothing: where the light changes, all of them would.

    Args:
        field (Tensor): float32 (N, 2, GH, GW), dx and dy in pixels of the level.
        current, previous (Tensor): uint8 (N, h, w), the finest level of two frames.
        cell (int): C.
        radius (int): 0 lets every cell decide for itself.

    Returns:
        Tensor: ``field``.
    """
    rows, columns = field.shape[-2:]
    shape = (len(field), rows, columns)
    y = torch.arange(rows, device=field.device).view(1, rows, 1) * cell
    x = torch.arange(columns, device=field.device).view(1, 1, columns) * cell
    pixels = _cells(current, cell, NO_CURRENT)
    staying = _differences(pixels, _cells(previous, cell, NO_PREVIOUS))
    # Infinite and undefined vectors become zero, too.
    finite = field.isfinite().all(1)
    steps = (field.nan_to_num(0, 0, 0) * STEPS + 0.5).floor().long()
    whole, part = steps // STEPS, (steps % STEPS).int()
    windows = _Pixels(previous, cell + 1, NO_PREVIOUS).windows(
        y + whole[:, 1], x + whole[:, 0], cell + 1
    )
    blend = _bilinear(windows, part[:, 0].flatten(), part[:, 1].flatten())
    moving = _differences(pixels, blend, beyond=staying.clamp_min(BEYOND))
    staying, moving = _sum(staying), _sum(moving)
    broken = _highest(torch.maximum(current, previous), cell) == NOT_FINITE
    counts = _exists(current, cell) & finite & ~broken
    staying, moving = staying.view(shape), moving.view(shape)
    keep = counts & (staying > 0) & (moving <= staying + 2 * cell**2)
    sums = torch.stack([staying, moving, torch.ones_like(counts)], dim=1)
    sums = (sums * counts[:, None]).double()
    sums = F.avg_pool2d(sums, 2 * radius + 1, 1, radius, divisor_override=1)
    staying, moving, cells = sums.unbind(1)
    keep &= 8 * moving + 2 * cell**2 * cells < 7 * staying
    return field.masked_fill_(~keep[:, None], 0)


def _exists(current, cell):
    """bool (N, GH, GW), whether a cell has a pixel in the image."""
    return _highest((current != OUTSIDE).to(torch.uint8), cell) > 0


def _neighbours(vectors):
    """
    Returns the vectors above, below, to the left and to the right. Where there is no cell, or none
    in the image, the vector in the middle counts instead.

    Args:
        vectors (Tensor): int32 (N, 2, GH, GW).

    Returns:
        list[Tensor]: four of the same.
    """
    rows, columns = vectors.shape[-2:]
    padded = F.pad(vectors, (1, 1, 1, 1), value=NOWHERE)
    near = [padded[..., y : y + rows, x : x + columns] for y, x in ((0, 1), (2, 1), (1, 0), (1, 2))]
    return [x.where(x != NOWHERE, vectors) for x in near]


def _children(vectors, rows, columns):
    """int32 (2, N, rows, columns): vectors of parents, in pixels of the next level."""
    vectors = (2 * vectors).where(vectors != NOWHERE, 0).transpose(0, 1)
    return vectors.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :rows, :columns]


# Pixels to compare are int16. Where a frame has none, differences are larger than any of pixels,
# and so is every blend of pixels that has a share of it.
NO_CURRENT, NO_PREVIOUS = -1000, 20000


def _cells(level, cell, missing):
    """int16 (C, C, K), the pixels of each cell, or ``missing`` where there is none."""
    streams, height, width = level.shape
    pixels = level.to(torch.int16).masked_fill_(level >= OUTSIDE, missing)
    if height % cell or width % cell:
        pixels = F.pad(pixels, (0, -width % cell, 0, -height % cell), value=missing)
    rows, columns = pixels.shape[1] // cell, pixels.shape[2] // cell
    pixels = pixels.view(streams, rows, cell, columns, cell).permute(2, 4, 0, 1, 3).flatten(2)
    return pixels.contiguous()


def _highest(level, cell):
    """float (N, GH, GW), the largest value of each cell."""
    return F.max_pool2d(level.float()[:, None], cell, ceil_mode=True)[:, 0]


class _Pixels:
    """A level, to read windows of it that may lie beyond its border."""

    def __init__(self, level, margin, missing):
        self.margin, (self.height, self.width) = margin, level.shape[1:]
        pixels = level.to(torch.int16).masked_fill_(level >= OUTSIDE, missing)
        self.pixels = F.pad(pixels, (margin,) * 4, value=missing)

    def windows(self, y, x, size):
        """int16 (size, size, K): windows with their upper left at (y, x) of (N, GH, GW)."""
        margin = self.margin
        streams, rows, columns = self.pixels.shape
        y = y.clamp(-margin, self.height) + margin
        x = x.clamp(-margin, self.width) + margin
        stream = torch.arange(streams, device=y.device).view(-1, 1, 1)
        first = ((stream * rows + y) * columns + x).flatten()
        every = self.pixels.as_strided(
            (self.pixels.numel() - (size - 1) * (columns + 1), size, size), (1, columns, 1)
        )
        return every.index_select(0, first).permute(1, 2, 0).contiguous()


def _cost(pixels, windows):
    """int32 (K,)."""
    return _sum(_differences(pixels, windows))


def _costs_of_row(pixels, windows, cell, row):
    """int32 (side, K): costs of the windows that start in a row of the searched ones."""
    side = windows.shape[0] - cell + 1
    height, width, along = windows.stride()
    shifted = windows[row:].as_strided(
        (side, cell, cell, windows.shape[2]),
        (width, height, width, along),
        windows.storage_offset() + row * height,
    )
    return _sum(_differences(shifted, pixels))


def _differences(pixels, others, beyond=BEYOND):
    """int16 (..., C, C, K), that of a pixel which one of the two lacks being ``beyond``."""
    difference = (pixels - others).abs_()
    lacking = difference > BRIGHTEST
    if isinstance(beyond, int):
        return difference.masked_fill_(lacking, beyond)
    return torch.where(lacking, beyond, difference)


def _sum(difference):
    """Returns int32 (..., K), the sums of (..., C, C, K)."""
    pixels = difference.flatten(-3, -2)
    # 16-bit sums are much faster, and hold 8 x 8 pixels.
    dtype = torch.int16 if pixels.shape[-2] <= 64 else torch.int32
    return pixels.sum(-2, dtype=dtype).int()


def _bilinear(windows, dx, dy):
    """int16 (C, C, K) of int16 (C + 1, C + 1, K), moved right and down by int32 (K,) steps."""
    windows = windows.int()
    rows = windows[:, :-1] * (STEPS - dx)
    rows += windows[:, 1:] * dx
    blend = rows[:-1] * (STEPS - dy)
    blend += rows[1:] * dy
    blend = blend.add_(STEPS**2 // 2) // STEPS**2
    return blend.masked_fill_(blend > BRIGHTEST, NO_PREVIOUS).to(torch.int16)


def _lucas_kanade(pixels, windows):
    """
    Returns the step, dx and dy, from the gradients of the previous frame: the least squares of
    ``current - previous - gradient step``, damped. Sums fit into int32, and products of two into
    float64, without rounding.

    Args:
        pixels (Tensor): int16 (S, S, K), of the current frame.
        windows (Tensor): int16 (S + 2, S + 2, K), of the previous one with a pixel around it.

    Returns:
        Tensor: int64 (2, K), in steps.
    """
    right = (windows[1:-1, 2:] - windows[1:-1, :-2]).int()
    down = (windows[2:, 1:-1] - windows[:-2, 1:-1]).int()
    change = (pixels - windows[1:-1, 1:-1]).int()
    largest = torch.maximum(torch.maximum(right.abs(), down.abs()), change.abs())
    right, down, change = (x.masked_fill(largest > BRIGHTEST, 0) for x in (right, down, change))
    damping = DAMPING * pixels.shape[0] ** 2
    xx, xy, yy, xt, yt = (
        product.sum((0, 1), dtype=torch.int32).double()
        for product in (right * right, right * down, down * down, right * change, down * change)
    )
    xx, yy = xx + damping, yy + damping
    # Differences of neighbours on both sides are twice the gradient.
    step = 2 * torch.stack([yy * xt - xy * yt, xx * yt - xy * xt]) / (xx * yy - xy * xy)
    return (step * STEPS + 0.5).floor().clamp(-FURTHEST, FURTHEST).long()
