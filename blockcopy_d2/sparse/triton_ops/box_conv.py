"""Convolution of the active blocks from boxes: Hopper's tensor memory accelerator fetches pixels.

A tile of output pixels is a box of TH x TW pixels within one active block. For each tap of the
kernel, its input is a box of the same size, shifted: one bulk copy to shared memory, zeros beyond
the border included. No program computes addresses, and since weights are the first factor of the
product, neither factor passes through registers. Against conv.py, which gathers pixels one by one,
this takes about half the time where blocks have many pixels; there, tiles of several small
blocks, strides and groups have their place.

Shape shorthand: N streams, C channels, H x W pixels of a map, T x T pixels of a block, KH x KW
taps.
"""

import dataclasses
import math

import torch
import triton
import triton.language as tl
from triton.runtime.jit import MockTensor
from triton.tools.tensor_descriptor import TensorDescriptor

from blockcopy_d2.kernels.dependent_launch import begin_with, count_blocks, prefetch

from .activation import parameters
from .conv_levels import (
    BIAS_OFFSET,
    NUM_COLUMNS,
    OUT_HEIGHT,
    OUT_OFFSET,
    OUT_ROW,
    OUT_WIDTH,
    SECOND_OFFSET,
    SECOND_ROW,
    aligned,
    level_table,
)
from .conv_output import write_tile
from .geometry import BlockList
from .partial_sums import add_parts, number_of_splits, split_programs

MAX_LEVELS = 5
# Rows that a product's second factor has at least, which are pixels here.
_FEWEST_PIXELS = 16


@triton.jit
def box_convolution_kernel(
    x0_desc, x1_desc, x2_desc, x3_desc, x4_desc,
    weight0_desc, weight1_desc, weight2_desc, weight3_desc, weight4_desc,
    weight_ptr, bias_ptr, residual_ptr, out_ptr, second_ptr, blocks_ptr, count_ptr, levels_ptr,
    workspace_ptr, arrivals_ptr, weight_bytes, max_splits, split_programs,
    GH, GW, OH, OW, out_row, second_row, residual_row, pad_y, pad_x,
    activation_first, activation_second, second_activation_first, second_activation_second,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr,
    RESIDUAL_SCALE: tl.constexpr,  # output pixels per residual pixel along an axis, 0 for none
    FIRST_OUT: tl.constexpr,  # output channels that go to out, the others go to second
    ACTIVATION: tl.constexpr, SECOND_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    OUT_LIFTED: tl.constexpr, SECOND_LIFTED: tl.constexpr, RESIDUAL_LIFTED: tl.constexpr,
    SIDES: tl.constexpr,  # T of each level
    BOXES: tl.constexpr,  # (TH, TW) of each level
    OUT_ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr,  # pixels of the largest box
    BN: tl.constexpr, BK: tl.constexpr, FLATTEN: tl.constexpr,
    SPLIT: tl.constexpr,  # reductions may be split, so that split_programs are busy
    SETTLED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[active] = activation(conv(x) + bias + residual), on one or several levels.

    Programs take the tiles of all levels in strides of the launch grid, level after level.
    """
    prefetch(weight_ptr, weight_bytes, PDL)
    count = count_blocks(count_ptr, SETTLED, PDL)
    LEVELS: tl.constexpr = len(SIDES)
    N_TILES: tl.constexpr = (C_OUT + BN - 1) // BN
    tiles = 0
    for i in tl.static_range(LEVELS):
        tiles += count * (_boxes_of_a_block(SIDES[i], BOXES[i][0], BOXES[i][1]) * N_TILES)
    splits = 1
    if SPLIT:
        splits = number_of_splits(tiles, max_splits, split_programs)
    begin_with(tl.program_id(0) < tiles * splits, SETTLED, PDL)
    # Tiles of the levels before.
    start = 0
    for i in tl.static_range(LEVELS):
        if LEVELS > 1:
            level = levels_ptr + i * NUM_COLUMNS
            out_offset, bias_offset = tl.load(level + OUT_OFFSET), tl.load(level + BIAS_OFFSET)
            oh = tl.load(level + OUT_HEIGHT).to(tl.int32)
            ow = tl.load(level + OUT_WIDTH).to(tl.int32)
            row = tl.load(level + OUT_ROW).to(tl.int32)
            other_row = tl.load(level + SECOND_ROW).to(tl.int32)
            other_offset = tl.load(level + SECOND_OFFSET)
            if OUT_ALIGNED:
                out_offset, row = tl.multiple_of(out_offset, 16), tl.multiple_of(row, 16)
                other_offset = tl.multiple_of(other_offset, 16)
                other_row = tl.multiple_of(other_row, 16)
            out, second, bias = (
                out_ptr + out_offset,
                second_ptr + other_offset,
                bias_ptr + bias_offset,
            )
        else:
            out, second, bias, oh, ow = out_ptr, second_ptr, bias_ptr, OH, OW
            row, other_row = out_row, second_row
        if i == 0:
            x_desc, weight_desc = x0_desc, weight0_desc
        elif i == 1:
            x_desc, weight_desc = x1_desc, weight1_desc
        elif i == 2:
            x_desc, weight_desc = x2_desc, weight2_desc
        elif i == 3:
            x_desc, weight_desc = x3_desc, weight3_desc
        else:
            x_desc, weight_desc = x4_desc, weight4_desc
        start = _level(
            x_desc, weight_desc, bias, residual_ptr, out, second, blocks_ptr, count, start,
            workspace_ptr, arrivals_ptr, splits,
            GH, GW, oh, ow, row, other_row, residual_row, pad_y, pad_x,
            activation_first, activation_second, second_activation_first,
            second_activation_second, C_IN, C_OUT, KH, KW, DILATION_Y, DILATION_X,
            RESIDUAL_SCALE, FIRST_OUT, ACTIVATION, SECOND_ACTIVATION, PRECISION,
            OUT_LIFTED, SECOND_LIFTED, RESIDUAL_LIFTED, SIDES[i], BOXES[i][0], BOXES[i][1],
            WIDE, BM, BN, BK, FLATTEN, SPLIT,
        )  # fmt: skip


@triton.constexpr_function
def _boxes_of_a_block(side, rows, columns):
    return -(-side // rows) * -(-side // columns)


@triton.jit
def _level(
    x_desc, weight_desc, bias_ptr, residual_ptr, out_ptr, second_ptr, blocks_ptr, count, start,
    workspace_ptr, arrivals_ptr, splits,
    GH, GW, OH, OW, out_row, second_row, residual_row, pad_y, pad_x,
    activation_first, activation_second, second_activation_first, second_activation_second,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr, RESIDUAL_SCALE: tl.constexpr,
    FIRST_OUT: tl.constexpr, ACTIVATION: tl.constexpr, SECOND_ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, OUT_LIFTED: tl.constexpr, SECOND_LIFTED: tl.constexpr,
    RESIDUAL_LIFTED: tl.constexpr, T: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    FLATTEN: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """This program's tiles of one level, or parts of them; returns `start` and the number of all
    of its tiles."""
    ACROSS: tl.constexpr = (T + TW - 1) // TW
    PER_BLOCK: tl.constexpr = _boxes_of_a_block(T, TH, TW)
    N_TILES: tl.constexpr = (C_OUT + BN - 1) // BN
    STEPS_PER_TAP: tl.constexpr = C_IN // BK
    STEPS: tl.constexpr = KH * KW * STEPS_PER_TAP
    programs = tl.num_programs(0)
    tiles = count * (PER_BLOCK * N_TILES)
    first = (tl.program_id(0) + programs - start * splits % programs) % programs
    for work in tl.range(first, tiles * splits, programs, flatten=FLATTEN):
        tile, split = work, 0
        if SPLIT:
            tile, split = work % tiles, work // tiles
        n_tile = tile % N_TILES
        box = tile // N_TILES
        block = tl.load(blocks_ptr + box // PER_BLOCK)
        in_block = box % PER_BLOCK
        row = block // GW
        stream = row // GH
        in_y = in_block // ACROSS * TH
        in_x = in_block % ACROSS * TW
        y0 = (row % GH) * T + in_y
        x0 = (block % GW) * T + in_x
        acc = tl.zeros((BN, TH * TW), tl.float32)
        for step in range(split * STEPS // splits, (split + 1) * STEPS // splits):
            tap = step // STEPS_PER_TAP
            iy = y0 - pad_y + tap // KW * DILATION_Y
            ix = x0 - pad_x + tap % KW * DILATION_X
            x = x_desc.load([stream, iy, ix, (step % STEPS_PER_TAP) * BK])
            weight = weight_desc.load([n_tile * BN, step * BK])
            acc = tl.dot(weight, x.reshape(TH * TW, BK).T, acc, input_precision=PRECISION)
        complete = True
        if SPLIT:
            complete, acc = add_parts(
                acc, workspace_ptr, arrivals_ptr, start + tile, split, splits, BN, TH * TW,
                BN * BM,
            )  # fmt: skip
        if complete:
            m = tl.arange(0, TH * TW)
            oy = y0 + m // TW
            ox = x0 + m % TW
            valid = (oy < OH) & (ox < OW)
            if T < TH:  # the box is larger than the block
                valid = valid & (m // TW < T) & (m % TW < T)
            column = n_tile * BN + tl.arange(0, BN)
            write_tile(
                acc.T, stream, oy, ox, valid, n_tile * BN, column, column, OH, OW,
                bias_ptr + column, residual_ptr, residual_row, out_ptr, out_row, second_ptr,
                second_row,
                activation_first, activation_second, second_activation_first,
                second_activation_second, C_OUT, FIRST_OUT, RESIDUAL_SCALE, ACTIVATION,
                SECOND_ACTIVATION, BN, PRECISION, OUT_LIFTED, SECOND_LIFTED, RESIDUAL_LIFTED, WIDE,
            )  # fmt: skip
    return start + tiles


@dataclasses.dataclass(frozen=True)
class BoxConfig:
    """How a launch divides its work. See tuning.py for where the values come from.

    Attributes:
        bm, bn, bk: pixels (at most; those of a block, if it has fewer), channels and reduction of
            a tile.
        num_warps, num_stages: of a program.
        per_sm: programs per multiprocessor that share all tiles; 0 gives each tile its own.
        flatten: the copies of the next tile are under way while one is written, see can_flatten().
        max_splits: the reduction of a tile is split over up to so many programs.
    """

    bm: int
    bn: int
    bk: int
    num_warps: int = 8
    num_stages: int = 4
    per_sm: int = 1
    flatten: bool = False
    max_splits: int = 1

    def box(self, tile):
        """Rows and columns of pixels of the box of a tile, for blocks of `tile` x `tile`."""
        if tile**2 < _FEWEST_PIXELS:
            return 4, _FEWEST_PIXELS // 4
        columns = min(tile, self.bm)
        return min(self.bm // columns, tile), columns


class BoxConvolutionLaunch:
    """A convolution bound to its operands; calling it with a BlockList runs the active blocks."""

    kernel = box_convolution_kernel

    def __init__(self, shape, config, levels, *, precision, workspace, device):
        """
        Args:
            shape: ConvolutionShape for which :func:`takes_boxes` holds.
            config: BoxConfig; its bk divides the input channels.
            levels: at most MAX_LEVELS conv.ConvolutionLevels of one selection of blocks. Several
                must not have residuals.
            precision: of float32 products.
            workspace: Workspace of at least workspace_size(), shared between launches.
            device: Device.
        """
        first = levels[0]
        residual = first.residual if first.residual is not None else first.x
        second = first.second if first.second is not None else first.out
        name, *activation = parameters(shape.activation)
        second_name, *second_activation = parameters(shape.second_activation)
        maps = [
            map_ for level in levels for map_ in (level.x, level.out, level.second or level.out)
        ]
        self.shape, self.config, self.levels = shape, config, levels
        taps, length = shape.reduction(config.bk)
        splits = min(config.max_splits, taps * length // config.bk)
        self.grid = (self._programs(device, splits),)
        self.workspace = workspace
        boxes = tuple(config.box(level.tiling.tile) for level in levels)
        pixels = [
            TensorDescriptor.from_tensor(level.x.pixels, [1, *box, config.bk])
            for level, box in zip(levels, boxes)
        ]
        weights = [
            TensorDescriptor.from_tensor(level.packed.matrix, [config.bn, config.bk])
            for level in levels
        ]
        missing = MAX_LEVELS - len(levels)
        self.descriptors = (*pixels, *pixels[:1] * missing, *weights, *weights[:1] * missing)
        self.tensors = (
            first.packed.matrix,
            first.packed.bias,
            residual.rows,
            first.out.rows,
            second.rows,
        )
        self.table = level_table(levels)
        tiling = first.tiling
        self.sizes = (
            first.packed.matrix.nbytes, splits, split_programs(config, device.num_sms),
            tiling.rows, tiling.columns, *first.out.size, first.out.rows.stride(0),
            second.rows.stride(0), residual.rows.stride(0), *shape.padding, *activation,
            *second_activation,
        )  # fmt: skip
        self.constants = dict(
            C_IN=shape.in_channels, C_OUT=shape.out_channels, KH=shape.kernel[0],
            KW=shape.kernel[1], DILATION_Y=shape.dilation[0], DILATION_X=shape.dilation[1],
            RESIDUAL_SCALE=shape.residual_scale, FIRST_OUT=shape.first_out or shape.out_channels,
            ACTIVATION=name, SECOND_ACTIVATION=second_name, PRECISION=precision,
            OUT_LIFTED=first.out.lifted, SECOND_LIFTED=second.lifted,
            RESIDUAL_LIFTED=residual.lifted,
            SIDES=tuple(level.tiling.tile for level in levels), BOXES=boxes,
            OUT_ALIGNED=all(
                aligned(level.out.rows, first.out.rows)
                and (level.second is None or aligned(level.second.rows, second.rows))
                for level in levels
            ),
            WIDE=any(map_.wide for map_ in [*maps, residual]),
            BM=max(map(math.prod, boxes)), BN=config.bn, BK=config.bk, SPLIT=splits > 1,
            FLATTEN=config.flatten and splits == 1 and can_flatten(shape, config.bk, len(levels)),
            num_warps=config.num_warps, num_stages=config.num_stages,
            **device.launch_options,
        )  # fmt: skip

    def __call__(self, blocks):
        self.kernel[self.grid](*self._arguments(blocks), **self.constants, SETTLED=blocks.settled)

    def signature(self):
        """Positional and keyword arguments with dtypes for tensors, as Triton's warmup takes."""
        integer = torch.empty(0, dtype=torch.int32)
        descriptors = [
            dataclasses.replace(descriptor, base=MockTensor(descriptor.base.dtype))
            for descriptor in self.descriptors
        ]
        others = self._arguments(BlockList(integer, integer))[len(descriptors) :]
        others = [x.dtype if isinstance(x, torch.Tensor) else x for x in others]
        return [*descriptors, *others], {**self.constants, "SETTLED": True}

    def _programs(self, device, splits):
        tiles = 0
        for level in self.levels:
            rows, columns = self.config.box(level.tiling.tile)
            per_block = -(-level.tiling.tile // rows) * -(-level.tiling.tile // columns)
            tiles += level.tiling.num_blocks * per_block
        tiles *= -(-self.shape.out_channels // self.config.bn)
        if splits > 1:
            tiles = max(tiles, split_programs(self.config, device.num_sms))
        return min(tiles, self.config.per_sm * device.num_sms) if self.config.per_sm else tiles

    def _arguments(self, blocks):
        return (*self.descriptors, *self.tensors, blocks.blocks, blocks.count, self.table,
                self.workspace.sums, self.workspace.arrivals, *self.sizes)  # fmt: skip


def can_flatten(shape, bk, num_levels):
    """Whether Triton (3.6 to 3.8) compiles the loop over tiles of a ConvolutionShape, flattened: it
    fails at some loops over several levels, and at those that end in a branch, as they do where a
    tile belongs to one of two convolutions."""
    one_step = math.prod(shape.kernel) * shape.in_channels == bk
    return num_levels == 1 and (one_step or shape.first_out is None)


def takes_boxes(shape, levels, device):
    """Whether BoxConvolutionLaunch can run a convolution.

    Args:
        shape: ConvolutionShape.
        levels: (input FeatureMap, side T of its blocks) for each.
        device: Device.
    """
    plain = shape.stride == 1 and shape.groups == 1 and shape.out_step == 1
    # A product takes 16 channels at a time, a box at least 32 bytes per pixel.
    channels = shape.in_channels % 16 == 0
    return (
        device.bulk_copies and plain and channels and len(levels) <= MAX_LEVELS
        and all(_describable(x) and tile & (tile - 1) == 0 for x, tile in levels)
    )  # fmt: skip


def _describable(x):
    """Whether bulk copies can read a map: they want multiples of 16 bytes."""
    itemsize = x.rows.element_size()
    return x.rows.data_ptr() % 16 == 0 and x.rows.stride(0) * itemsize % 16 == 0
