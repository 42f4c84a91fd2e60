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
    P: side of a patch, in pixels of the network's input
    BM: pixels of a tile; BC: channels that a program moves at a time
"""

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.launch import Launch
from blockcopy_d2.kernels.table import column_numbers, read_int, table_of
from blockcopy_d2.kernels.tf32 import lift_tf32, round_tf32, unlift_tf32

from .move_tables import GroupRow, MapRow, group_maps, map_tables, staging_bytes

__all__ = ["MoveLaunch"]

# Pixels of a tile and channels that are moved at a time, of wide maps and of others.
_WIDE, _NARROW = (64, 64), (256, 16)
# Side of a patch.
_PATCH = 128

_GROUP, _MAP = column_numbers(GroupRow), column_numbers(MapRow)


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
        if kept == 2:  # LIFTED
            value, b, c, d = unlift_tf32(value), unlift_tf32(b), unlift_tf32(c), unlift_tf32(d)
    value = (value * (1 - wx) + b * wx) * (1 - wy) + (c * (1 - wx) + d * wx) * wy
    if a.dtype == tl.float32:
        if kept == 1:  # ROUNDED
            value = round_tf32(value)
        elif kept == 2:
            value = lift_tf32(value)
    return tl.where(whole, a, value.to(a.dtype))


@triton.jit
def _patch_moves(
    patch, field, active, CELL: tl.constexpr, BLOCK: tl.constexpr, PATCH: tl.constexpr
):
    """Returns 0 for a patch where nothing moves: its cells are still, or its block runs."""
    stream, row, column = patch
    field_ptr, FH, FW = field
    active_ptr, GH, GW = active
    SIDE: tl.constexpr = PATCH // CELL
    cell = tl.arange(0, SIDE * SIDE)
    cell_row, cell_column = row * SIDE + cell // SIDE, column * SIDE + cell % SIDE
    exists = (cell_row < FH) & (cell_column < FW)
    vector = field_ptr + (stream * 2 * FH + cell_row) * FW + cell_column
    dx = tl.load(vector, mask=exists, other=0.0)
    dy = tl.load(vector + FH * FW, mask=exists, other=0.0)
    moves = tl.max(((dx != 0) | (dy != 0)).to(tl.int32), 0)
    if PATCH <= BLOCK:
        block = (stream * GH + row * PATCH // BLOCK) * GW + column * PATCH // BLOCK
        moves = moves & (tl.load(active_ptr + block).to(tl.int32) == 0).to(tl.int32)
    return moves


@triton.jit
def _move_channels(
    one_map,  # pointers to the maps and the staging memory; offset, row, staged, channels, kept
    moves,
    pixels,  # of the target, and the four around the source
    weights,
    GATHER: tl.constexpr,
    WIDE: tl.constexpr,
    BC: tl.constexpr,
):
    """All channels of the pixels (BM,) of a tile that move, to the staging memory or back."""
    maps_ptr, staging_ptr, map_offset, map_row, staged, C, kept = one_map
    target, first, second, third, fourth = pixels
    if WIDE:
        # tl.multiple_of() would be lost with the call, or hold for other maps, too.
        map_offset, map_row = map_offset // 16 * 16, map_row // 16 * 16
        staged, C = staged // 16 * 16, C // 16 * 16
    for start_channel in range(0, C, BC):
        channel = start_channel + tl.arange(0, BC)
        mask = moves[:, None] & (channel < C)[None, :]
        source = maps_ptr + map_offset + channel[None, :]
        staging = staging_ptr + staged + (target * C)[:, None] + channel[None, :]
        if GATHER:
            offsets = (first, second, third, fourth)
            value = _interpolate(source, offsets, map_row, weights, mask, kept)
            tl.store(staging, value, mask=mask)
        else:
            value = tl.load(staging, mask=mask)
            tl.store(source + (target * map_row)[:, None], value, mask=mask)


@triton.jit
def _move_group(
    patch,
    group_ptr,
    maps,  # pointers to the maps, the staging memory and the table
    field,
    active,
    GROUP: tl.constexpr,
    MAP: tl.constexpr,
    CELL: tl.constexpr,
    BLOCK: tl.constexpr,
    PATCH: tl.constexpr,
    GATHER: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """All pixels of the maps of a group that begin in a patch and move. The motion of a tile of BM
    pixels is found once for all of them."""
    stream, patch_row, patch_column = patch
    maps_ptr, staging_ptr, table_ptr = maps
    H, W = read_int(group_ptr + GROUP.height), read_int(group_ptr + GROUP.width)
    stride = read_int(group_ptr + GROUP.stride)
    cells, blocks = read_int(group_ptr + GROUP.cells), read_int(group_ptr + GROUP.blocks)
    first_map, end_map = read_int(group_ptr + GROUP.first), read_int(group_ptr + GROUP.end)
    first_y, first_x = tl.cdiv(patch_row * PATCH, stride), tl.cdiv(patch_column * PATCH, stride)
    rows = tl.minimum(tl.cdiv((patch_row + 1) * PATCH, stride), H) - first_y
    columns = tl.minimum(tl.cdiv((patch_column + 1) * PATCH, stride), W) - first_x
    # A patch beyond the border of the map divides by it all the same.
    columns = tl.maximum(columns, 1)
    for start in range(0, rows * columns, BM):
        number = start + tl.arange(0, BM)
        y, x = first_y + number // columns, first_x + number % columns
        position = (stream, y, x, (number < rows * columns) & (x < W))
        moves, dy, dx = _motion(position, field, active, stride, cells, blocks, CELL, BLOCK)
        if tl.max(moves.to(tl.int32), 0) > 0:
            position_y = tl.minimum(tl.maximum(y + dy, 0.0), (H - 1).to(tl.float32))
            position_x = tl.minimum(tl.maximum(x + dx, 0.0), (W - 1).to(tl.float32))
            top, left = position_y.to(tl.int32), position_x.to(tl.int32)
            weights = (position_y - top, position_x - left)
            bottom, right = tl.minimum(top + 1, H - 1), tl.minimum(left + 1, W - 1)
            top, bottom = (stream * H + top) * W, (stream * H + bottom) * W
            target = ((stream * H + y) * W + x).to(tl.int64)
            first, second = (top + left).to(tl.int64), (top + right).to(tl.int64)
            third, fourth = (bottom + left).to(tl.int64), (bottom + right).to(tl.int64)
            pixels = (target, first, second, third, fourth)
            for map_number in range(first_map, end_map):
                row = table_ptr + map_number * len(MAP)
                map_offset, map_row = tl.load(row + MAP.offset), tl.load(row + MAP.row)
                staged, C = tl.load(row + MAP.staged), read_int(row + MAP.channels)
                kept = read_int(row + MAP.kept)
                one_map = (maps_ptr, staging_ptr, map_offset, map_row, staged, C, kept)
                _move_channels(one_map, moves, pixels, weights, GATHER, WIDE, BC)


@triton.jit
def move_kernel(
    field,
    active,
    maps_ptr,
    staging_ptr,
    groups_ptr,
    table_ptr,
    GROUP: tl.constexpr,
    MAP: tl.constexpr,
    GROUPS: tl.constexpr,
    CELL: tl.constexpr,
    BLOCK: tl.constexpr,
    PATCH: tl.constexpr,
    GATHER: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    NARROW_BM: tl.constexpr,
    NARROW_BC: tl.constexpr,
    PDL: tl.constexpr,
):
    """
    GATHER: staging = what moves, from where it was. Otherwise: map = staging, for what moves. A
    program takes one patch of one group of maps, and ends at once if nothing moves there: still
    pictures cost one look at the field.

    With all cells moving, each of the two launches reads and writes the maps once, their halos
    from the L2 cache: four times their size in all. P2 to P4 and the outputs of the RPN, R50-FPN
    at 1024x2048 in fp16: 93 MB of maps, 372 MB, 0.09 ms at 4.2 TB/s, plus two launches.
    """
    begin(PDL)
    group, patch = tl.program_id(0) % GROUPS, tl.program_id(0) // GROUPS
    CELLS: tl.constexpr = PATCH // CELL
    patch_rows, patch_columns = tl.cdiv(field[1], CELLS), tl.cdiv(field[2], CELLS)
    stream = patch // (patch_rows * patch_columns)
    patch = (stream, patch // patch_columns % patch_rows, patch % patch_columns)
    if _patch_moves(patch, field, active, CELL, BLOCK, PATCH) != 0:
        group_ptr = groups_ptr + group * len(GROUP)
        maps = (maps_ptr, staging_ptr, table_ptr)
        where = (patch, group_ptr, maps, field, active)
        if tl.load(group_ptr + GROUP.wide) != 0:
            _move_group(*where, GROUP, MAP, CELL, BLOCK, PATCH, GATHER, True, BM, BC)
        else:
            _move_group(*where, GROUP, MAP, CELL, BLOCK, PATCH, GATHER, False, NARROW_BM, NARROW_BC)


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
        staging = staging[: staging_bytes(maps)].view(first.dtype)
        groups = group_maps(maps)
        tables = map_tables(maps, groups, cell_size, block_size, precision)
        tables = [table_of(table, first.device) for table in tables]
        self._arguments = (first, staging, *tables)
        coarsest = triton.next_power_of_2(max(moved.stride for moved in maps))
        self._patch, self._num_groups = max(_PATCH, coarsest, cell_size), len(groups)
        constants = dict(GROUP=_GROUP, MAP=_MAP, GROUPS=len(groups), CELL=cell_size)
        constants |= dict(BLOCK=block_size, PATCH=self._patch, num_warps=8)
        names = "BM", "BC", "NARROW_BM", "NARROW_BC"
        constants |= dict(zip(names, _WIDE + _NARROW, strict=True))
        self._constants = {**constants, **device.launch_options}

    def __call__(self, field, active):
        """
        Args:
            field (Tensor): float32 (N, 2, FH, FW), contiguous.
            active (Tensor): bool (N, GH, GW), contiguous: the blocks that will run.
        """
        streams, _, rows, columns = field.shape
        cells = self._patch // self._constants["CELL"]
        patches = streams * triton.cdiv(rows, cells) * triton.cdiv(columns, cells)
        first = (field, rows, columns), (active.view(torch.uint8), *active.shape[-2:])
        for gather in (True, False):
            constants = {**self._constants, "GATHER": gather}
            launch = Launch(move_kernel, (patches * self._num_groups,), self._arguments, constants)
            launch(*first)
