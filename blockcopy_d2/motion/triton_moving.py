"""
Moves all maps of a stream by Triton kernels: three launches, for any number of maps.

Maps move in place, so a pixel must be read before it is overwritten. A program moves a tile at a
time: it reads all of it before it writes any of it. Pixels that move into a tile from its
surroundings are collected in staging memory before, while nothing is written. With all cells moving
that is a tenth of the pixels, so that maps are read and written little more than once.

Shape shorthand in this module:

    N: streams
    C: channels
    H, W: height and width of a map of stride s
    c: side of a cell, in pixels of the network's input
    B: side of a block, in pixels of the network's input
    FH, FW: rows and columns of cells
    GH, GW: rows and columns of blocks
    BM: pixels of a tile; BC: channels of a chunk, which move at a time
"""

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.launch import Launch
from blockcopy_d2.kernels.table import column_numbers, read_int, table_of
from blockcopy_d2.kernels.tf32 import lift_tf32, round_tf32, unlift_tf32

from .move_tables import (
    TILING,
    ChunkRow,
    LevelRow,
    chunk_channels,
    move_tables,
    staging_bytes,
)
from .triton_tiles import sources_of, tile_of

__all__ = ["MoveLaunch"]

_TILING = TILING
# Chunks that a program moves, at most: the motion of a tile is found once for all of them.
_CHUNKS = 4
# Programs per multiprocessor, and options, of the launch that collects and the one that moves.
_COLLECTING = 4, dict(PART=32, num_warps=4)
_MOVING = 2, dict(PART=128, num_warps=16, maxnreg=64)

_LEVEL, _CHUNK = column_numbers(LevelRow), column_numbers(ChunkRow)


@triton.jit
def _interpolate(source, first, row, W, weights, mask, kept):
    """The values (BM, BC) of a map between four pixels, the first of which are at `first`."""
    wy, wx = weights
    # Where the weight of a pixel is 0 the first one is read again. So a shift by whole pixels
    # copies the bits of all that is finite.
    to_right, down = (wx > 0).to(tl.int32) * row, (wy > 0).to(tl.int32) * (W * row)
    upper = source + first * row
    lower = upper + down
    a, b = tl.load(upper, mask=mask), tl.load(upper + to_right, mask=mask)
    c, d = tl.load(lower, mask=mask), tl.load(lower + to_right, mask=mask)
    dtype = a.dtype
    a, b, c, d = a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32)
    if dtype == tl.float32:
        if kept == 2:  # LIFTED
            a, b, c, d = unlift_tf32(a), unlift_tf32(b), unlift_tf32(c), unlift_tf32(d)
    both = wy * wx
    value = a * (1 - wy - wx + both) + b * (wx - both) + c * (wy - both) + d * both
    if dtype == tl.float32:
        if kept == 1:  # ROUNDED
            value = round_tf32(value)
        elif kept == 2:
            value = lift_tf32(value)
    return value.to(dtype)


@triton.jit
def _chunk(
    row_ptr, memory, CHUNK: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr
):
    """(pixels, row, staging, channels, kept) of a chunk: pointers (1, BC) to the first pixel of a
    stream and to the staging memory of a tile, and the mask (1, BC) of its channels."""
    maps_ptr, staging_ptr, first_pixel, tile_number = memory
    offset, row = tl.load(row_ptr + CHUNK.offset), read_int(row_ptr + CHUNK.row)
    staged, number = tl.load(row_ptr + CHUNK.staged), read_int(row_ptr + CHUNK.channels)
    if WIDE:
        # tl.multiple_of() would be lost with the call, or hold for other maps, too.
        offset, row, staged = offset // 16 * 16, row // 16 * 16, staged // 16 * 16
        number = number // 16 * 16
    channel = tl.arange(0, BC)[None, :]
    pixels = maps_ptr + offset + first_pixel * row + channel
    staging = staging_ptr + staged + tile_number.to(tl.int64) * (BM * BC) + channel
    channels = channel < number
    return pixels, row, staging, channels, read_int(row_ptr + CHUNK.kept)


@triton.jit
def _move_inside(
    stays,
    pixels,  # target, first, wy, wx
    W,
    memory,
    table,  # a pointer to the table of chunks, and the rows to move
    CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """Moves the pixels (BM,) of a tile that come from within it."""
    table_ptr, first_row, end_row = table
    stays, target = stays[:, None], pixels[0][:, None]
    first, wy, wx = pixels[1][:, None], pixels[2][:, None], pixels[3][:, None]
    for number in range(first_row, end_row):
        row_ptr = table_ptr + number * len(CHUNK)
        start, row, _, channels, kept = _chunk(row_ptr, memory, CHUNK, WIDE, BM, BC)
        value = _interpolate(start, first, row, W, (wy, wx), stays & channels, kept)
        # All of the tile is read before any of it is written.
        tl.debug_barrier()
        tl.store(start + target * row, value, mask=stays & channels)


@triton.jit
def _move_listed(
    listed,
    position,  # in the list
    pixels,  # target, first, wy, wx
    W,
    memory,
    table,
    CHUNK: tl.constexpr,
    COLLECT: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    """Moves listed pixels (PART,) to the staging memory, or from there to the map."""
    table_ptr, first_row, end_row = table
    listed, position, target = listed[:, None], position[:, None], pixels[0][:, None]
    first, wy, wx = pixels[1][:, None], pixels[2][:, None], pixels[3][:, None]
    for number in range(first_row, end_row):
        row_ptr = table_ptr + number * len(CHUNK)
        start, row, staging, channels, kept = _chunk(row_ptr, memory, CHUNK, WIDE, BM, BC)
        mask = listed & channels
        if COLLECT:
            value = _interpolate(start, first, row, W, (wy, wx), mask, kept)
            tl.store(staging + position * BC, value, mask=mask)
        else:
            value = tl.load(staging + position * BC, mask=mask)
            tl.store(start + target * row, value, mask=mask)


@triton.jit
def _list_tile(
    tile_number,
    level_ptr,
    field,
    active,
    tiles,  # pointers, see list_kernel
    count_ptr,
    LEVEL: tl.constexpr,
    CELL: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Adds a tile to those that move, if it does, and lists the pixels that enter it."""
    moving_ptr, entering_ptr, lists_ptr = tiles
    tile, level = tile_of(level_ptr, tile_number, LEVEL, TILE)
    BM: tl.constexpr = TILE[0] * TILE[1]
    number = tl.arange(0, BM)
    moves, inside, pixels = sources_of(number, tile, level, field, active, CELL, BLOCK, TILE)
    if tl.max(moves.to(tl.int32), 0) > 0:
        first = read_int(level_ptr + LEVEL.first_tile)
        enters = (moves & (inside == 0)).to(tl.int32)
        tl.store(entering_ptr + first + tile_number, tl.sum(enters, 0))
        entries = lists_ptr + tl.load(level_ptr + LEVEL.first_entry) + tile_number * BM
        tl.store(entries + tl.cumsum(enters, 0) - 1, number.to(tl.int16), mask=enters != 0)
        tl.store(moving_ptr + first + tl.atomic_add(count_ptr, 1), tile_number)


@triton.jit
def list_kernel(
    field,
    active,
    levels_ptr,
    level_of_ptr,
    counts_ptr,
    tiles,  # pointers: tiles that move, numbers of pixels that enter them, and these pixels
    LEVEL: tl.constexpr,
    CELL: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    NARROW_TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program looks at a tile of a level: whether something moves in it, and which of its pixels
    come from outside of it. Still pictures cost one look at the field.

    The order of the tiles that move differs between runs, the results do not.
    """
    begin(PDL)
    program = tl.program_id(0)
    number = tl.load(level_of_ptr + program)
    level_ptr = levels_ptr + number * len(LEVEL)
    tile_number = program - read_int(level_ptr + LEVEL.first_tile)
    where = (tile_number, level_ptr, field, active, tiles, counts_ptr + number)
    if tl.load(level_ptr + LEVEL.wide) != 0:
        _list_tile(*where, LEVEL, CELL, BLOCK, TILE)
    else:
        _list_tile(*where, LEVEL, CELL, BLOCK, NARROW_TILE)


@triton.jit
def _move_tile(
    tile_number,
    level_ptr,
    maps,  # pointers to the maps, the staging memory and the table of chunks
    rows,  # of the table
    field,
    active,
    tiles,
    LEVEL: tl.constexpr,
    CHUNK: tl.constexpr,
    CELL: tl.constexpr,
    BLOCK: tl.constexpr,
    COLLECT: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
    BC: tl.constexpr,
    PART: tl.constexpr,
):
    """Moves some chunks of a tile. Pixels that come from outside of it are listed, and move PART at
    a time."""
    _, entering_ptr, lists_ptr = tiles
    maps_ptr, staging_ptr, table_ptr = maps
    tile, level = tile_of(level_ptr, tile_number, LEVEL, TILE)
    W = level[1]
    BM: tl.constexpr = TILE[0] * TILE[1]
    memory = (maps_ptr, staging_ptr, tile[0].to(tl.int64) * level[0] * W, tile_number)
    table = (table_ptr, rows[0], rows[1])
    if not COLLECT:
        moves, inside, pixels = sources_of(
            tl.arange(0, BM), tile, level, field, active, CELL, BLOCK, TILE
        )
        _move_inside(moves & inside, pixels, W, memory, table, CHUNK, WIDE, BM, BC)
    entering = tl.load(entering_ptr + read_int(level_ptr + LEVEL.first_tile) + tile_number)
    entries = lists_ptr + tl.load(level_ptr + LEVEL.first_entry) + tile_number * BM
    for start in range(0, entering, PART):
        position = start + tl.arange(0, PART)
        listed = position < entering
        entry = tl.load(entries + position, mask=listed, other=0).to(tl.int32)
        entered = sources_of(entry, tile, level, field, active, CELL, BLOCK, TILE)
        part = (listed, position, entered[2], W, memory, table)
        _move_listed(*part, CHUNK, COLLECT, WIDE, BM, BC)


@triton.jit
def move_kernel(
    field,
    active,
    levels_ptr,
    counts_ptr,
    tiles,
    maps,  # pointers to the maps, the staging memory and the table of chunks
    LEVELS: tl.constexpr,
    LEVEL: tl.constexpr,
    CHUNK: tl.constexpr,
    CELL: tl.constexpr,
    BLOCK: tl.constexpr,
    COLLECT: tl.constexpr,
    TILE: tl.constexpr,
    BC: tl.constexpr,
    NARROW_TILE: tl.constexpr,
    NARROW_BC: tl.constexpr,
    CHUNKS: tl.constexpr,
    PART: tl.constexpr,
    PDL: tl.constexpr,
):
    """
    COLLECT: copies the pixels that move into a tile from outside of it to the staging memory.
    Otherwise: moves the pixels that come from within a tile, which is read before it is written,
    and takes the others from the staging memory. Programs share the tiles that move, CHUNKS of
    their chunks at a time.

    With all cells moving, maps are read and written once, and pixels that enter tiles twice. All
    maps of R50-FPN at 1024x2048 in fp16, 358 MB, by a pixel of tiles of 16 x 32: 0.85 GB, 0.2 ms at
    the 4.1 TB/s of a copy, plus three launches.
    """
    begin(PDL)
    # Each program takes one in num_programs of all items, over all levels.
    item = tl.program_id(0)
    for number in range(LEVELS):
        level_ptr = levels_ptr + number * len(LEVEL)
        moving = tl.load(counts_ptr + number)
        first_row, end_row = read_int(level_ptr + LEVEL.first), read_int(level_ptr + LEVEL.end)
        items = moving * tl.cdiv(end_row - first_row, CHUNKS)
        wide = tl.load(level_ptr + LEVEL.wide) != 0
        first_tile = read_int(level_ptr + LEVEL.first_tile)
        for this in range(item, items, tl.num_programs(0)):
            tile_number = tl.load(tiles[0] + first_tile + this % moving)
            start = first_row + this // moving * CHUNKS
            rows = (start, tl.minimum(start + CHUNKS, end_row))
            work = (tile_number, level_ptr, maps, rows, field, active, tiles)
            if wide:
                _move_tile(*work, LEVEL, CHUNK, CELL, BLOCK, COLLECT, True, TILE, BC, PART)
            else:
                _move_tile(
                    *work, LEVEL, CHUNK, CELL, BLOCK, COLLECT, False, NARROW_TILE, NARROW_BC, PART
                )
        taken = tl.maximum(tl.cdiv(items - item, tl.num_programs(0)), 0)
        item += taken * tl.num_programs(0) - items


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
        first, tiling = self._maps[0], _TILING
        levels, chunks = move_tables(
            maps, cell_size=cell_size, block_size=block_size, precision=precision, tiling=tiling
        )
        options = dict(dtype=torch.int32, device=first.device)
        counts = [level.tiles for level in levels]
        entries = levels[-1].first_entry + levels[-1].tiles * tiling.pixels(levels[-1].wide)
        self._counts = torch.zeros(len(levels), **options)
        tiles = (
            torch.full((sum(counts),), -1, **options),
            torch.full((sum(counts),), -1, **options),
            torch.full((entries,), -1, dtype=torch.int16, device=first.device),
        )
        level_of = [number for number, count in enumerate(counts) for _ in range(count)]
        level_table = table_of(levels, first.device)
        self._listing = (level_table, torch.tensor(level_of, **options), self._counts, tiles)
        staging = staging[: staging_bytes(maps, tiling)].view(first.dtype)
        maps = (first, staging, table_of(chunks, first.device))
        self._moving = (level_table, self._counts, tiles, maps)
        self._list_grid = (len(level_of),)
        items = sum(level.tiles * -(-(level.end - level.first) // _CHUNKS) for level in levels)
        self._num_sms, self._items = device.num_sms, items
        constants = dict(LEVEL=_LEVEL, CELL=cell_size, BLOCK=block_size, **device.launch_options)
        constants |= dict(TILE=tiling.wide, NARROW_TILE=tiling.narrow)
        self._list_constants = {**constants, "num_warps": 4}
        wide, narrow = chunk_channels(first.dtype)
        constants |= dict(BC=wide, NARROW_BC=narrow, LEVELS=len(levels), CHUNK=_CHUNK)
        self._constants = {**constants, "CHUNKS": _CHUNKS}

    def __call__(self, field, active):
        """
        Args:
            field (Tensor): float32 (N, 2, FH, FW), contiguous.
            active (Tensor): bool (N, GH, GW), contiguous: the blocks that will run.
        """
        first = (field, *field.shape[-2:]), (active.view(torch.uint8), *active.shape[-2:])
        self._counts.zero_()
        Launch(list_kernel, self._list_grid, self._listing, self._list_constants)(*first)
        for collect, (per_sm, options) in ((True, _COLLECTING), (False, _MOVING)):
            grid = (max(min(self._items, per_sm * self._num_sms), 1),)
            constants = {**self._constants, **options, "COLLECT": collect}
            Launch(move_kernel, grid, self._moving, constants)(*first)
