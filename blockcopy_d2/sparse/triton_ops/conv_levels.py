"""The maps that one launch of a convolution works on, and how they differ.

Shape shorthand: N streams, C channels, H x W pixels of a map, T x T pixels of a block.
"""

import dataclasses
from typing import Any, NamedTuple

from blockcopy_d2.kernels.table import column_numbers, table_of

from .conv_shape import PackedWeight
from .geometry import Tiling


class LevelRow(NamedTuple):
    """
    A row of the table of levels: the start of operands, in elements from those of the first level,
    and the sizes and strides of the level. An `x_row` is the elements from a pixel to the next.
    """

    x_offset: int
    out_offset: int
    weight_offset: int
    bias_offset: int
    tile: int
    x_height: int
    x_width: int
    out_height: int
    out_width: int
    x_row: int
    out_row: int
    second_offset: int
    second_row: int


LEVEL_COLUMNS = column_numbers(LevelRow)


@dataclasses.dataclass
class ConvolutionLevel:
    """One map that a launch works on: state.FeatureMaps, and how blocks tile the output.

    `second` takes the output channels of the second of two convolutions.
    """

    x: Any
    out: Any
    packed: PackedWeight
    tiling: Tiling
    residual: Any = None
    second: Any = None


def _distance(tensor, base):
    """Elements from the start of one tensor to that of another."""
    return (tensor.data_ptr() - base.data_ptr()) // tensor.element_size()


def aligned(rows, base):
    """Returns whether rows of a map lie at multiples of 16 elements from the start of another."""
    return _distance(rows, base) % 16 == 0 and rows.stride(0) % 16 == 0


def outputs_aligned(levels):
    """Returns whether the outputs of all levels are aligned with those of the first."""
    first = levels[0]
    return all(aligned(level.out.rows, first.out.rows) for level in levels) and all(
        aligned(level.second.rows, first.second.rows) for level in levels if level.second
    )


def level_table(levels):
    """int64 (levels, columns of a LevelRow)."""
    first = levels[0]
    rows = [
        LevelRow(
            _distance(level.x.rows, first.x.rows),
            _distance(level.out.rows, first.out.rows),
            _distance(level.packed.matrix, first.packed.matrix),
            _distance(level.packed.bias, first.packed.bias),
            level.tiling.tile,
            *level.x.size,
            *level.out.size,
            level.x.rows.stride(0),
            level.out.rows.stride(0),
            *_second(level, first),
        )
        for level in levels
    ]
    return table_of(rows, first.x.rows.device)


def _second(level, first):
    if level.second is None:
        return 0, 0
    return _distance(level.second.rows, first.second.rows), level.second.rows.stride(0)
