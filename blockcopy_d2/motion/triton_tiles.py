"""
Tiles of a level of maps, and how their pixels move, in Triton: see move.py.

Shape shorthand as in triton_moving.py.
"""

import triton
import triton.language as tl

from blockcopy_d2.kernels.table import read_int

__all__ = ["sources_of", "tile_of"]


@triton.jit
def tile_of(level_ptr, tile_number, LEVEL: tl.constexpr, TILE: tl.constexpr):
    """((stream, first row, first column), (H, W, stride, cells, blocks)) of a tile of a level."""
    H, W = read_int(level_ptr + LEVEL.height), read_int(level_ptr + LEVEL.width)
    cells, blocks = read_int(level_ptr + LEVEL.cells), read_int(level_ptr + LEVEL.blocks)
    rows, columns = tl.cdiv(H, TILE[0]), tl.cdiv(W, TILE[1])
    row, column = tile_number // columns % rows, tile_number % columns
    level = (H, W, read_int(level_ptr + LEVEL.stride), cells, blocks)
    return (tile_number // (rows * columns), row * TILE[0], column * TILE[1]), level


@triton.jit
def _motion(place, field, active, stride, cells, blocks, CELL: tl.constexpr, BLOCK: tl.constexpr):
    """(moves, dy, dx) of pixels (BM,), in pixels of their map: the mean over `cells` x `cells`
    cells. Pixels of blocks that run do not move; a pixel may cover `blocks` x `blocks` of them."""
    stream, y, x, valid = place
    field_ptr, FH, FW = field
    active_ptr, GH, GW = active
    dx = tl.zeros(y.shape, tl.float32)
    dy = tl.zeros(y.shape, tl.float32)
    number = tl.zeros(y.shape, tl.float32)
    for i in range(cells * cells):
        row = y * stride // CELL + i // cells
        column = x * stride // CELL + i % cells
        exists = valid & (row < FH) & (column < FW)
        vector = field_ptr + (stream * 2 * FH + row) * FW + column
        cell_dx = tl.load(vector, mask=exists, other=0.0)
        cell_dy = tl.load(vector + FH * FW, mask=exists, other=0.0)
        # Comparisons with NaN are false.
        dx += tl.where(tl.abs(cell_dx) < float("inf"), cell_dx, 0.0)
        dy += tl.where(tl.abs(cell_dy) < float("inf"), cell_dy, 0.0)
        number += exists.to(tl.float32)
    scale = 1.0 / (tl.maximum(number, 1.0) * stride)
    dx, dy = dx * scale, dy * scale
    runs = tl.zeros(y.shape, tl.int32)
    for i in range(blocks * blocks):
        row = y * stride // BLOCK + i // blocks
        column = x * stride // BLOCK + i % blocks
        exists = valid & (row < GH) & (column < GW)
        is_active = tl.load(active_ptr + (stream * GH + row) * GW + column, mask=exists, other=0)
        runs = runs | is_active.to(tl.int32)
    moves = valid & (runs == 0) & ((dx != 0) | (dy != 0))
    return moves, dy, dx


@triton.jit
def sources_of(
    number, tile, level, field, active, CELL: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr
):
    """(moves, inside, (target, first, wy, wx)) of pixels (BM,) of a tile: whether they move, and
    that from within the tile; their places and those of the first pixels that they read, in the map
    of a stream; the weights of the lower and of the right pixels."""
    stream, first_y, first_x = tile
    H, W, stride, cells, blocks = level
    y, x = first_y + number // TILE[1], first_x + number % TILE[1]
    position = (stream, y, x, (y < H) & (x < W))
    moves, dy, dx = _motion(position, field, active, stride, cells, blocks, CELL, BLOCK)
    source_y = tl.minimum(tl.maximum(y + dy, 0.0), (H - 1).to(tl.float32))
    source_x = tl.minimum(tl.maximum(x + dx, 0.0), (W - 1).to(tl.float32))
    top, left = source_y.to(tl.int32), source_x.to(tl.int32)
    wy, wx = source_y - top, source_x - left
    bottom, right = top + (wy > 0).to(tl.int32), left + (wx > 0).to(tl.int32)
    inside = (top >= first_y) & (bottom < first_y + TILE[0])
    inside = inside & (left >= first_x) & (right < first_x + TILE[1])
    return moves, inside, (y * W + x, top * W + left, wy, wx)
