"""
Tables of the maps that move together, for the kernel of triton_moving.py. They need no Triton.

Shape shorthand as in triton_moving.py.
"""

from typing import NamedTuple

import torch

__all__ = [
    "ChunkRow",
    "LevelRow",
    "TILING",
    "Tiling",
    "chunk_channels",
    "move_tables",
    "staging_bytes",
]

# How float32 values are kept for TF32 products, see kernels/tf32.py.
AS_IS, ROUNDED, LIFTED = range(3)
# Elements that offsets of wide maps are multiples of, and channels that they have at least.
_ALIGNMENT, _WIDE_CHANNELS = 16, 32
# Bytes of the channels of a pixel that move at a time, in wide maps; channels, in others.
_WIDE_BYTES, _NARROW_CHANNELS = 64, 16


class Tiling(NamedTuple):
    """Rows and columns of tiles of wide maps and of others, in pixels: powers of two."""

    wide: tuple[int, int]
    narrow: tuple[int, int]

    def pixels(self, wide):
        """int: pixels of a tile."""
        rows, columns = self.wide if wide else self.narrow
        return rows * columns


TILING = Tiling(wide=(16, 32), narrow=(16, 16))


class LevelRow(NamedTuple):
    """A row of the table of levels: maps of one size, either wide ones or others.

    Attributes:
        height, width, stride: size and stride of the maps.
        cells, blocks: numbers that a pixel covers along an axis, at least 1.
        tiles: number of tiles of all streams.
        first_tile, first_entry: tiles, and pixels of tiles, of the levels before.
        first, end: rows of the level in the table of chunks.
        wide: whether 16 bytes are read at a time, of many channels.
    """

    height: int
    width: int
    stride: int
    cells: int
    blocks: int
    tiles: int
    first_tile: int
    first_entry: int
    first: int
    end: int
    wide: int


class ChunkRow(NamedTuple):
    """A row of the table of chunks: channels of a map.

    Attributes:
        offset, row: where the chunk starts, in elements from the first map, and from one pixel to
            the next.
        staged: where pixels are kept meanwhile, in elements.
        channels: number of channels.
        kept: how float32 values are kept.
    """

    offset: int
    row: int
    staged: int
    channels: int
    kept: int


def staging_bytes(maps, tiling=TILING):
    """
    Args:
        maps (list[MovedMap]): those of a stream, of one dtype.
        tiling (Tiling):

    Returns:
        int: bytes of staging memory, in which every pixel of every tile has a place.
    """
    return (
        sum(
            len(_chunks(moved, maps[0])) * _staged_elements(moved, maps[0], tiling)
            for moved in maps
        )
        * maps[0].rows.element_size()
    )


def move_tables(maps, *, cell_size, block_size, precision, tiling=TILING):
    """
    Args:
        maps (list[MovedMap]): those of a stream, of one dtype.
        cell_size, block_size (int): c, B.
        precision (str): see ``MoveLaunch``.
        tiling (Tiling):

    Returns:
        tuple[list[LevelRow], list[ChunkRow]]:
    """
    kinds, first = {}, maps[0]
    for moved in maps:
        kinds.setdefault((moved.size, moved.stride, _is_wide(moved, first)), []).append(moved)
    levels, chunks, staged, tiles_before, entries = [], [], 0, 0, 0
    for (size, stride, wide), members in kinds.items():
        begin = len(chunks)
        for moved in members:
            rows, kept = moved.rows, AS_IS
            if precision == "tf32" and rows.dtype == torch.float32:
                kept = LIFTED if moved.lifted else ROUNDED
            for channel, number in _chunks(moved, first):
                place = _offset(moved, first) + channel, rows.stride(0), staged
                chunks.append(ChunkRow(*place, number, kept))
                staged += _staged_elements(moved, first, tiling)
        covered = max(stride // cell_size, 1), max(stride // block_size, 1)
        tiles = _num_tiles(members[0], wide, tiling)
        place = tiles, tiles_before, entries, begin, len(chunks), int(wide)
        levels.append(LevelRow(*size, stride, *covered, *place))
        tiles_before += tiles
        entries += tiles * tiling.pixels(wide)
    return levels, chunks


def chunk_channels(dtype):
    """
    Returns:
        tuple[int, int]: channels of a chunk of wide maps, and of others.
    """
    return _WIDE_BYTES // dtype.itemsize, _NARROW_CHANNELS


def _offset(moved, first):
    """int: from the first map to this one, in elements."""
    return (moved.rows.data_ptr() - first.rows.data_ptr()) // first.rows.element_size()


def _is_wide(moved, first):
    channels = moved.rows.shape[1]
    layout = _offset(moved, first), moved.rows.stride(0), channels
    return channels >= _WIDE_CHANNELS and not any(x % _ALIGNMENT for x in layout)


def _chunks(moved, first):
    """list[tuple[int, int]]: first channel and number of channels of each chunk."""
    channels, size = moved.rows.shape[1], chunk_channels(moved.rows.dtype)
    size = size[0] if _is_wide(moved, first) else size[1]
    return [(start, min(size, channels - start)) for start in range(0, channels, size)]


def _num_tiles(moved, wide, tiling):
    """int: tiles of a map of all streams."""
    rows, columns = tiling.wide if wide else tiling.narrow
    height, width = moved.size
    return moved.num_pixels // (height * width) * -(-height // rows) * -(-width // columns)


def _staged_elements(moved, first, tiling):
    """int: places of a chunk in the staging memory."""
    wide = _is_wide(moved, first)
    channels = chunk_channels(moved.rows.dtype)[0 if wide else 1]
    return _num_tiles(moved, wide, tiling) * tiling.pixels(wide) * channels
