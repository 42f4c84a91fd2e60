"""The maps that one launch of a convolution works on, and how they differ.

Shape shorthand: N streams, C channels, H x W pixels of a map, T x T pixels of a block.
"""

import dataclasses
from typing import Any

import torch

from .conv_shape import PackedWeight
from .geometry import Tiling

# Columns of the table of levels, int64 each: where the operands of a level start, in elements from
# those of the first level, and what differs between levels.
LEVEL_FIELDS = 13


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
    """int64 (levels, LEVEL_FIELDS) as the kernels read it."""
    first = levels[0]
    table = []
    for level in levels:
        pairs = (
            (level.x.rows, first.x.rows),
            (level.out.rows, first.out.rows),
            (level.packed.matrix, first.packed.matrix),
            (level.packed.bias, first.packed.bias),
        )
        offsets = [_distance(own, base) for own, base in pairs]
        sizes = [level.tiling.tile, *level.x.size, *level.out.size]
        second = [0, 0]
        if level.second is not None:
            second = [_distance(level.second.rows, first.second.rows), level.second.rows.stride(0)]
        strides = [level.x.rows.stride(0), level.out.rows.stride(0)]
        table.append([*offsets, *sizes, *strides, *second])
    return torch.tensor(table, dtype=torch.int64, device=first.x.rows.device)
