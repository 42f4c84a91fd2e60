"""The maps that one launch of a convolution works on, and how they differ.

Shape shorthand: N streams, C channels, H x W pixels of a map, T x T pixels of a block.
"""

import dataclasses
from typing import Any

import torch
import triton.language as tl

from .conv_shape import PackedWeight
from .geometry import Tiling

# Columns of the table of levels, int64 each: where the operands of a level start, in elements from
# those of the first level, and what differs between levels.
(
    X_OFFSET,
    OUT_OFFSET,
    WEIGHT_OFFSET,
    BIAS_OFFSET,
    SECOND_OFFSET,
    TILE,  # T
    X_HEIGHT,
    X_WIDTH,
    OUT_HEIGHT,
    OUT_WIDTH,
    X_ROW,  # elements from a pixel to the next one
    OUT_ROW,
    SECOND_ROW,
    NUM_COLUMNS,
) = map(tl.constexpr, range(14))


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
    """Whether rows of a map lie at multiples of 16 elements from the start of another."""
    return _distance(rows, base) % 16 == 0 and rows.stride(0) % 16 == 0


def level_table(levels):
    """int64 (levels, NUM_COLUMNS) as the kernels read it; zeros where there is no `second`."""
    table = torch.zeros(len(levels), NUM_COLUMNS.value, dtype=torch.int64)
    first = levels[0]
    for level, row in zip(levels, table):
        columns = [
            (X_OFFSET, _distance(level.x.rows, first.x.rows)),
            (OUT_OFFSET, _distance(level.out.rows, first.out.rows)),
            (WEIGHT_OFFSET, _distance(level.packed.matrix, first.packed.matrix)),
            (BIAS_OFFSET, _distance(level.packed.bias, first.packed.bias)),
            (TILE, level.tiling.tile),
            (X_HEIGHT, level.x.size[0]),
            (X_WIDTH, level.x.size[1]),
            (OUT_HEIGHT, level.out.size[0]),
            (OUT_WIDTH, level.out.size[1]),
            (X_ROW, level.x.rows.stride(0)),
            (OUT_ROW, level.out.rows.stride(0)),
        ]
        if level.second is not None:
            columns += [
                (SECOND_OFFSET, _distance(level.second.rows, first.second.rows)),
                (SECOND_ROW, level.second.rows.stride(0)),
            ]
        for column, value in columns:
            row[column.value] = value
    return table.to(first.x.rows.device)
