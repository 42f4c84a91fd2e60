"""
Moves all maps of a stream by Triton kernels: two launches, for any number of maps.

Shape shorthand in this module:

    N: streams
    C: channels
    H, W: height and width of a map of stride s
    c: side of a cell, in pixels of the network's input
    B: side of a block, in pixels of the network's input
    FH, FW: rows and columns of cells
    GH, GW: rows and columns of blocks
    BM: pixels of a tile; BC: channels that a program moves at a time
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.launch import Launch
from blockcopy_d2.kernels.table import column_numbers, read_int, table_of
from blockcopy_d2.kernels.tf32 import lift_tf32, round_tf32, unlift_tf32

__all__ = ["MoveLaunch", "staging_bytes"]

# Forms of float32 values for TF32 products, see kernels/tf32.py.
_AS_IS, _ROUNDED, _LIFTED = range(3)
_ALIGNMENT = 16
# Pixels and channels of a tile of a wide map, and of others.
_WIDE, _NARROW = (64, 64), (256, 16)


class MapRow(NamedTuple):
    """A row of the table of maps.

    Attributes:
        offset, row: elements from the first map to this one, and from one of its pixels to the
            next.
        staged: offset of its staging memory, in elements.
        channels, height, width, stride, num_pixels: size of the map; pixels of the input per pixel
            of the map; pixels of all images.
        cells, blocks: number that a pixel covers along an axis, at least 1.
        first_tile: first tile of the map, among those of all maps.
        kept: form of float32 values.
        wide: whether 16 bytes are read at a time, of many channels.
    """

    offset: int
    row: int
    staged: int
    channels: int
    height: int
    width: int
    stride: int
    cells: int
    blocks: int
    num_pixels: int
    first_tile: int
    kept: int
    wide: int


_COLUMNS = column_numbers(MapRow)


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
def _interpolate(source, offsets, map_row, weights, mask, kept):
    """The values (BM, BC) of a map at `source` plus four offsets (BM,) in rows of it."""
    first, second, third, fourth = offsets
    first, second = (first * map_row)[:, None], (second * map_row)[:, None]
    third, fourth = (third * map_row)[:, None], (fourth * map_row)[:, None]
    wy, wx = weights
    wy, wx = wy[:, None], wx[:, None]
    a = tl.load(source + first, mask=mask, other=0.0)
    # A shift by whole pixels copies bits. For all others, kept forms are converted to values first.
    whole = (wy == 0) & (wx == 0)
    others = mask & (whole == 0)
    b = tl.load(source + second, mask=others, other=0.0).to(tl.float32)
    c = tl.load(source + third, mask=others, other=0.0).to(tl.float32)
    d = tl.load(source + fourth, mask=others, other=0.0).to(tl.float32)
    value = a.to(tl.float32)
    if a.dtype == tl.float32:
        if kept == 2:  # _LIFTED
            value, b, c, d = unlift_tf32(value), unlift_tf32(b), unlift_tf32(c), unlift_tf32(d)
    value = (value * (1 - wx) + b * wx) * (1 - wy) + (c * (1 - wx) + d * wx) * wy
    if a.dtype == tl.float32:
        if kept == 1:  # _ROUNDED
            value = round_tf32(value)
        elif kept == 2:
            value = lift_tf32(value)
    return tl.where(whole, a, value.to(a.dtype))


@triton.jit
def _move_tile(
    place,  # of a tile, the first of its pixels, and how many its map has; of a MapRow:
    source_map,  # pointers to the maps and the staging memory; offset, row, staged, channels, kept
    shape,  # height, width, stride, cells, blocks
    field,
    active,
    CELL: tl.constexpr,
    BLOCK: tl.constexpr,
    GATHER: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """All channels of the BM pixels of a tile that move, to the staging memory or back."""
    start, num_pixels = place
    maps_ptr, staging_ptr, map_offset, map_row, staged, C, kept = source_map
    H, W, stride, cells, blocks = shape
    pixel = start + tl.arange(0, BM)
    stream = pixel // (H * W)
    y = pixel // W % H
    x = pixel % W
    position = (stream, y, x, pixel < num_pixels)
    moves, dy, dx = _motion(position, field, active, stride, cells, blocks, CELL, BLOCK)
    if tl.max(moves.to(tl.int32), 0) > 0:
        position_y = tl.minimum(tl.maximum(y + dy, 0.0), (H - 1).to(tl.float32))
        position_x = tl.minimum(tl.maximum(x + dx, 0.0), (W - 1).to(tl.float32))
        top, left = position_y.to(tl.int32), position_x.to(tl.int32)
        weights = (position_y - top, position_x - left)
        bottom, right = tl.minimum(top + 1, H - 1), tl.minimum(left + 1, W - 1)
        top, bottom = (stream * H + top) * W, (stream * H + bottom) * W
        target = pixel.to(tl.int64)
        first, second = (top + left).to(tl.int64), (top + right).to(tl.int64)
        third, fourth = (bottom + left).to(tl.int64), (bottom + right).to(tl.int64)
        offsets = (first, second, third, fourth)
        if WIDE:
            # tl.multiple_of() would be lost with the call, or hold for other tiles, too.
            map_offset, map_row = map_offset // 16 * 16, map_row // 16 * 16
            staged, C = staged // 16 * 16, C // 16 * 16
        for start_channel in range(0, C, BC):
            channel = start_channel + tl.arange(0, BC)
            mask = moves[:, None] & (channel < C)[None, :]
            source = maps_ptr + map_offset + channel[None, :]
            staging = staging_ptr + staged + (target * C)[:, None] + channel[None, :]
            if GATHER:
                value = _interpolate(source, offsets, map_row, weights, mask, kept)
                tl.store(staging, value, mask=mask)
            else:
                tl.store(source + (target * map_row)[:, None], tl.load(staging, mask=mask), mask)


@triton.jit
def move_kernel(
    field,
    active,
    maps_ptr,
    staging_ptr,
    table_ptr,
    map_of_tile_ptr,
    num_tiles,
    COLUMN: tl.constexpr,
    CELL: tl.constexpr,
    BLOCK: tl.constexpr,
    GATHER: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    NARROW_BM: tl.constexpr,
    NARROW_BC: tl.constexpr,
    PDL: tl.constexpr,
):
    """
    GATHER: staging = what moves, from where it was. Otherwise: map = staging, for what moves. A
    tile is some pixels of one map with all of its channels, more pixels of a map with few; one
    without motion ends after it has read its vectors and blocks.

    With all cells moving, each of the two launches reads and writes the maps once, their halos
    from the L2 cache: four times their size in all. P2 to P4 and the outputs of the RPN, R50-FPN
    at 1024x2048 in fp16: 93 MB of maps, 372 MB, 0.09 ms at 4.2 TB/s, plus two launches.
    """
    begin(PDL)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        row = table_ptr + tl.load(map_of_tile_ptr + tile) * len(COLUMN)
        map_offset, map_row = tl.load(row + COLUMN.offset), tl.load(row + COLUMN.row)
        staged, C = tl.load(row + COLUMN.staged), read_int(row + COLUMN.channels)
        H, W = read_int(row + COLUMN.height), read_int(row + COLUMN.width)
        stride, kept = read_int(row + COLUMN.stride), read_int(row + COLUMN.kept)
        cells, blocks = read_int(row + COLUMN.cells), read_int(row + COLUMN.blocks)
        num_pixels = read_int(row + COLUMN.num_pixels)
        tile_of_map = tile - read_int(row + COLUMN.first_tile)
        source = (maps_ptr, staging_ptr, map_offset, map_row, staged, C, kept)
        shape = (H, W, stride, cells, blocks)
        if tl.load(row + COLUMN.wide) != 0:
            place = (tile_of_map * BM, num_pixels)
            _move_tile(place, source, shape, field, active, CELL, BLOCK, GATHER, True, BM, BC)
        else:
            place = (tile_of_map * NARROW_BM, num_pixels)
            _move_tile(
                place,
                source,
                shape,
                field,
                active,
                CELL,
                BLOCK,
                GATHER,
                False,
                NARROW_BM,
                NARROW_BC,
            )


def staging_bytes(maps):
    """
    Args:
        maps (list[MovedMap]): those of a stream, of one dtype.

    Returns:
        int: bytes of staging memory: as many as the maps have.
    """
    return sum(_staged_elements(moved) * moved.rows.element_size() for moved in maps)


class MoveLaunch:
    """
    Moves maps of one dtype together. Memory stays in place and the host never waits, so that a CUDA
    graph can capture a call.
    """

    def __init__(self, maps, staging, *, cell_size, block_size, precision, device):
        """
        Args:
            maps (list[MovedMap]): maps of equal dtype.
            staging (Tensor): uint8 (at least ``staging_bytes(maps)``,), for the time of a call.
            cell_size (int): c, a power of two.
            block_size (int): B, a power of two and at least c.
            precision (str): "tf32" if convolutions that read float32 maps multiply so, or "ieee".
            device (Device): device of the kernels.
        """
        self._maps = [moved.rows for moved in maps]  # the table holds addresses only
        first = self._maps[0]
        table, map_of_tile = _table(maps, cell_size, block_size, precision)
        num_tiles, staging = len(map_of_tile), staging[: staging_bytes(maps)].view(first.dtype)
        map_of_tile = torch.tensor(map_of_tile, dtype=torch.int32, device=first.device)
        arguments = (first, staging, table_of(table, first.device), map_of_tile, num_tiles)
        constants = dict(COLUMN=_COLUMNS, CELL=cell_size, BLOCK=block_size, num_warps=8)
        constants |= dict(zip(("BM", "BC", "NARROW_BM", "NARROW_BC"), _WIDE + _NARROW, strict=True))
        constants |= device.launch_options
        grid = (device.programs(num_tiles, 1),)
        self._launches = [
            Launch(move_kernel, grid, arguments, {**constants, "GATHER": gather})
            for gather in (True, False)
        ]

    def __call__(self, field, active):
        """
        Args:
            field (Tensor): float32 (N, 2, FH, FW), contiguous.
            active (Tensor): bool (N, GH, GW), contiguous: the blocks that will run.
        """
        field = (field, *field.shape[-2:])
        active = (active.view(torch.uint8), *active.shape[-2:])
        for launch in self._launches:
            launch(field, active)


def _table(maps, cell_size, block_size, precision):
    """
    Returns:
        tuple[list[MapRow], list]: a row per map, and the map of every tile.
    """
    table, map_of_tile, staged = [], [], 0
    base = maps[0].rows
    for number, moved in enumerate(maps):
        rows = moved.rows
        channels = rows.shape[1]
        offset = (rows.data_ptr() - base.data_ptr()) // rows.element_size()
        kept = _AS_IS
        if precision == "tf32" and rows.dtype == torch.float32:
            kept = _LIFTED if moved.lifted else _ROUNDED
        aligned = not any(x % _ALIGNMENT for x in (offset, rows.stride(0), channels))
        wide = aligned and channels >= 2 * _NARROW[1]
        where = offset, rows.stride(0), staged, channels, *moved.size, moved.stride
        covered = max(moved.stride // cell_size, 1), max(moved.stride // block_size, 1)
        others = moved.num_pixels, len(map_of_tile), kept, int(wide)
        table.append(MapRow(*where, *covered, *others))
        map_of_tile += [number] * triton.cdiv(moved.num_pixels, (_WIDE if wide else _NARROW)[0])
        staged += _staged_elements(moved)
    return table, map_of_tile


def _staged_elements(moved):
    elements = moved.num_pixels * moved.rows.shape[1]
    return -(-elements // _ALIGNMENT) * _ALIGNMENT
