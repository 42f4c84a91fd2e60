"""
Tables of the maps that move together, for the kernel of triton_moving.py. They need no Triton.

Shape shorthand as in triton_moving.py.
"""

from typing import NamedTuple

import torch

__all__ = ["GroupRow", "MapRow", "group_maps", "map_tables", "staging_bytes"]

# How float32 values are kept for TF32 products, see kernels/tf32.py.
AS_IS, ROUNDED, LIFTED = range(3)
_ALIGNMENT = 16
# Channels from which on a map is wide.
_WIDE_CHANNELS = 32
# Groups of maps, at least, that different programs move.
_GROUPS = 6


class GroupRow(NamedTuple):
    """A row of the table of groups: maps of one size, which share the motion of their pixels.

    Attributes:
        height, width, stride: size and stride of the maps.
        cells, blocks: numbers that a pixel covers along an axis, at least 1.
        first, end: rows of the group in the table of maps.
        wide: whether 16 bytes are read at a time, of many channels.
    """

    height: int
    width: int
    stride: int
    cells: int
    blocks: int
    first: int
    end: int
    wide: int


class MapRow(NamedTuple):
    """A row of the table of maps.

    Attributes:
        offset, row: where the map starts, in elements from the first map, and from one of its
            pixels to the next.
        staged: where what moves is kept meanwhile, in elements.
        channels: number of channels of the map.
        kept: how float32 values are kept.
    """

    offset: int
    row: int
    staged: int
    channels: int
    kept: int


def staging_bytes(maps):
    """
    Args:
        maps (list[MovedMap]): those of a stream, of one dtype.

    Returns:
        int: bytes of staging memory: as many as the maps have.
    """
    return sum(_staged_elements(moved) * moved.rows.element_size() for moved in maps)


def group_maps(maps):
    """
    Returns:
        list[list[int]]: numbers of the maps in groups of about equal size, each of one level and of
        either wide maps or others: the next largest map goes to the smallest group.
    """
    kinds, all_elements = {}, sum(map(_staged_elements, maps))
    for number, moved in enumerate(maps):
        kind = moved.size, moved.stride, _is_wide(moved, maps[0])
        kinds.setdefault(kind, []).append(number)
    result = []
    for numbers in kinds.values():
        elements = sum(_staged_elements(maps[number]) for number in numbers)
        count = min(-(-elements * _GROUPS // all_elements), len(numbers))
        groups, sizes = [[] for _ in range(count)], [0] * count
        for number in sorted(numbers, key=lambda n: -_staged_elements(maps[n])):
            least = sizes.index(min(sizes))
            groups[least].append(number)
            sizes[least] += _staged_elements(maps[number])
        result += groups
    return result


def _offset(moved, first):
    """int: from the first map to this one, in elements."""
    return (moved.rows.data_ptr() - first.rows.data_ptr()) // first.rows.element_size()


def _is_wide(moved, first):
    channels = moved.rows.shape[1]
    layout = _offset(moved, first), moved.rows.stride(0), channels
    return channels >= _WIDE_CHANNELS and not any(x % _ALIGNMENT for x in layout)


def map_tables(maps, groups, cell_size, block_size, precision):
    """
    Returns:
        tuple[list[GroupRow], list[MapRow]]: a row per group, and a row per map.
    """
    group_rows, map_rows, staged = [], [], 0
    for numbers in groups:
        moved = maps[numbers[0]]
        covered = max(moved.stride // cell_size, 1), max(moved.stride // block_size, 1)
        part = len(map_rows), len(map_rows) + len(numbers), int(_is_wide(moved, maps[0]))
        group_rows.append(GroupRow(*moved.size, moved.stride, *covered, *part))
        for moved in (maps[number] for number in numbers):
            rows, kept = moved.rows, AS_IS
            if precision == "tf32" and rows.dtype == torch.float32:
                kept = LIFTED if moved.lifted else ROUNDED
            layout = _offset(moved, maps[0]), rows.stride(0), staged, rows.shape[1]
            map_rows.append(MapRow(*layout, kept))
            staged += _staged_elements(moved)
    return group_rows, map_rows


def _staged_elements(moved):
    elements = moved.num_pixels * moved.rows.shape[1]
    return -(-elements // _ALIGNMENT) * _ALIGNMENT
