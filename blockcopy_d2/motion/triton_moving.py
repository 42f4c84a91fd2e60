"""
Moving all maps of a stream as Triton kernels: two launches, whatever the number of maps.

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

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.tf32 import lift_tf32, round_tf32, unlift_tf32

__all__ = ["MoveLaunch", "staging_bytes"]

# Columns of the table of maps, int64 each, see _table().
_FIELDS = 13
# How float32 values are kept for TF32 products, see kernels/tf32.py.
_AS_IS, _ROUNDED, _LIFTED = range(3)
_ALIGNMENT = 16
_BM, _BC = 64, 32


@triton.jit
def _motion(
    stream, y, x, valid, field_ptr, active_ptr, stride, cells, blocks, FH, FW, GH, GW,
    CELL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(moves, dy, dx) of pixels (BM,), in pixels of their map: the mean over `cells` x `cells`
    cells. Pixels of blocks that run do not move; a pixel may cover `blocks` x `blocks` of them."""
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
        active = tl.load(active_ptr + (stream * GH + row) * GW + column, mask=exists, other=0)
        runs = runs | active.to(tl.int32)
    moves = valid & (runs == 0) & ((dx != 0) | (dy != 0))
    return moves, dy, dx


@triton.jit
def _interpolate(source, first, second, third, fourth, wy, wx, mask, kept):
    """The values (BM, BC) of a map at `source` plus four offsets (BM, 1) to rows of it."""
    a = tl.load(source + first, mask=mask, other=0.0)
    # A shift by whole pixels copies bits. For all others, what is kept is no value as it stands.
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
    maps_ptr, staging_ptr, pixel, staged, moves, first, second, third, fourth, wy, wx, map_offset,
    map_row, C, kept, GATHER: tl.constexpr, ALIGNED: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """All channels of the pixels (BM,) of a tile that move, to the staging memory or back."""
    if ALIGNED:
        # tl.multiple_of() would be lost with the call, or hold for other tiles, too.
        map_offset, map_row = map_offset // 16 * 16, map_row // 16 * 16
        staged, C = staged // 16 * 16, C // 16 * 16
    for start in range(0, C, BC):
        channel = start + tl.arange(0, BC)
        mask = moves[:, None] & (channel < C)[None, :]
        source = maps_ptr + map_offset + channel[None, :]
        staging = staging_ptr + staged + (pixel * C)[:, None] + channel[None, :]
        if GATHER:
            value = _interpolate(
                source, (first * map_row)[:, None], (second * map_row)[:, None],
                (third * map_row)[:, None], (fourth * map_row)[:, None], wy[:, None], wx[:, None],
                mask, kept,
            )  # fmt: skip
            tl.store(staging, value, mask=mask)
        else:
            tl.store(source + (pixel * map_row)[:, None], tl.load(staging, mask=mask), mask=mask)


@triton.jit
def move_kernel(
    maps_ptr, staging_ptr, table_ptr, map_of_tile_ptr, field_ptr, active_ptr, num_tiles,
    FH, FW, GH, GW, CELL: tl.constexpr, BLOCK: tl.constexpr, GATHER: tl.constexpr,
    FIELDS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """
    GATHER: staging = what moves, from where it was. Otherwise: map = staging, for what moves. A
    tile is BM pixels of one map with all of its channels; one without motion ends after it has
    read its vectors and blocks.

    With all cells moving, each of the two launches reads and writes the maps once, their halos
    from the L2 cache: four times their size in all. P2 to P4 and the outputs of the RPN, R50-FPN
    at 1024x2048 in fp16: 93 MB of maps, 372 MB, 0.09 ms at 4.2 TB/s, plus two launches.
    """
    begin(PDL)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        row = table_ptr + tl.load(map_of_tile_ptr + tile) * FIELDS
        map_offset = tl.load(row)
        map_row = tl.load(row + 1)
        staged = tl.load(row + 2)
        C = tl.load(row + 3).to(tl.int32)
        H = tl.load(row + 4).to(tl.int32)
        W = tl.load(row + 5).to(tl.int32)
        stride = tl.load(row + 6).to(tl.int32)
        cells = tl.load(row + 7).to(tl.int32)
        blocks = tl.load(row + 8).to(tl.int32)
        num_pixels = tl.load(row + 9).to(tl.int32)
        first_tile = tl.load(row + 10).to(tl.int32)
        kept = tl.load(row + 11).to(tl.int32)
        is_aligned = tl.load(row + 12)
        pixel = (tile - first_tile) * BM + tl.arange(0, BM)
        stream = pixel // (H * W)
        y = pixel // W % H
        x = pixel % W
        moves, dy, dx = _motion(
            stream, y, x, pixel < num_pixels, field_ptr, active_ptr, stride, cells, blocks,
            FH, FW, GH, GW, CELL, BLOCK,
        )  # fmt: skip
        if tl.max(moves.to(tl.int32), 0) > 0:
            position_y = tl.minimum(tl.maximum(y + dy, 0.0), (H - 1).to(tl.float32))
            position_x = tl.minimum(tl.maximum(x + dx, 0.0), (W - 1).to(tl.float32))
            top, left = position_y.to(tl.int32), position_x.to(tl.int32)
            wy, wx = position_y - top, position_x - left
            bottom, right = tl.minimum(top + 1, H - 1), tl.minimum(left + 1, W - 1)
            top, bottom = (stream * H + top) * W, (stream * H + bottom) * W
            target = pixel.to(tl.int64)
            first, second = (top + left).to(tl.int64), (top + right).to(tl.int64)
            third, fourth = (bottom + left).to(tl.int64), (bottom + right).to(tl.int64)
            if is_aligned != 0:
                _move_tile(
                    maps_ptr, staging_ptr, target, staged, moves, first, second, third, fourth,
                    wy, wx, map_offset, map_row, C, kept, GATHER, True, BC,
                )  # fmt: skip
            else:
                _move_tile(
                    maps_ptr, staging_ptr, target, staged, moves, first, second, third, fourth,
                    wy, wx, map_offset, map_row, C, kept, GATHER, False, BC,
                )  # fmt: skip


def staging_bytes(maps):
    """
    Args:
        maps (list[MovedMap]): those of a stream, of one dtype.

    Returns:
        int: the memory that moving them needs: as much as they take.
    """
    return sum(_staged_elements(moved) * moved.rows.element_size() for moved in maps)


class MoveLaunch:
    """
    Maps of one dtype, to be moved together. The memory stays in place and nothing waits for the
    host, so that a CUDA graph can record a call.
    """

    def __init__(self, maps, staging, *, cell_size, block_size, precision, device):
        """
        Args:
            maps (list[MovedMap]): of equal dtype.
            staging (Tensor): uint8 (at least ``staging_bytes(maps)``,), for the time of a call.
            cell_size (int): c, a power of two.
            block_size (int): B, a power of two and at least c.
            precision (str): "tf32" if convolutions that read float32 maps multiply so, or "ieee".
            device (Device): of the kernels.
        """
        self._maps = [moved.rows for moved in maps]  # the table holds addresses only
        first = self._maps[0]
        self._staging = staging[: staging_bytes(maps)].view(first.dtype)
        table, map_of_tile = _table(maps, cell_size, block_size, precision)
        self._table = torch.tensor(table, dtype=torch.int64, device=first.device)
        self._map_of_tile = torch.tensor(map_of_tile, dtype=torch.int32, device=first.device)
        self._programs = device.programs(len(map_of_tile), 1)
        self._options = dict(
            CELL=cell_size, BLOCK=block_size, FIELDS=_FIELDS, BM=_BM, BC=_BC, num_warps=4,
            **device.launch_options,
        )  # fmt: skip

    def __call__(self, field, active):
        """
        Args:
            field (Tensor): float32 (N, 2, FH, FW), contiguous.
            active (Tensor): bool (N, GH, GW), contiguous: the blocks that will run.
        """
        for gather in (True, False):
            move_kernel[(self._programs,)](
                self._maps[0], self._staging, self._table, self._map_of_tile, field,
                active.view(torch.uint8), len(self._map_of_tile), *field.shape[-2:],
                *active.shape[-2:], GATHER=gather, **self._options,
            )  # fmt: skip


def _table(maps, cell_size, block_size, precision):
    """
    Returns:
        tuple[list, list]: a row of _FIELDS numbers per map, and the map of every tile.
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
        table.append(
            [
                offset, rows.stride(0), staged, channels, *moved.size, moved.stride,
                max(moved.stride // cell_size, 1), max(moved.stride // block_size, 1),
                moved.num_pixels, len(map_of_tile), kept, aligned,
            ]
        )  # fmt: skip
        map_of_tile += [number] * triton.cdiv(moved.num_pixels, _BM)
        staged += _staged_elements(moved)
    return table, map_of_tile


def _staged_elements(moved):
    elements = moved.num_pixels * moved.rows.shape[1]
    return -(-elements // _ALIGNMENT) * _ALIGNMENT
