"""Convolution of the active blocks from boxes: Hopper's tensor memory accelerator fetches pixels.

A tile of output pixels is a box of TH x TW pixels within one active block. For each tap of the
kernel, its input is a box of the same size, shifted: one bulk copy to shared memory, zeros beyond
the border included. No program computes addresses, and since weights are the first factor of the
product, neither factor passes through registers. Where blocks have many pixels this takes about
half the time of conv.py, which gathers pixels one by one. conv.py handles tiles of several small
blocks, strides and groups.

Shape shorthand: N streams, C channels, H x W pixels of a map, T x T pixels of a block, KH x KW
taps.
"""

import dataclasses
import math

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from blockcopy_d2.kernels.dependent_launch import begin_with, count_blocks, prefetch
from blockcopy_d2.kernels.table import read_int

from .block_launch import BlockLaunch
from .conv_levels import LEVEL_COLUMNS, level_table, outputs_aligned
from .conv_output import Epilogue, write_tile
from .partial_sums import add_parts, number_of_splits, split_programs

MAX_LEVELS = 5
# The least rows of a product's second factor, which are pixels here.
_FEWEST_PIXELS = 16


@triton.jit
def box_convolution_kernel(
    blocks_ptr,
    count_ptr,
    x0_desc,
    x1_desc,
    x2_desc,
    x3_desc,
    x4_desc,
    weight0_desc,
    weight1_desc,
    weight2_desc,
    weight3_desc,
    weight4_desc,
    grid,
    size,  # of the output
    maps,  # see Epilogue
    weights,
    levels_ptr,
    workspace,
    splitting,  # most splits, and programs that share them
    SHAPE: tl.constexpr,
    EPILOGUE: tl.constexpr,
    LEVEL: tl.constexpr,  # columns of the table
    SIDES: tl.constexpr,  # T of each level
    BOXES: tl.constexpr,  # (TH, TW) of each level
    OUT_ALIGNED: tl.constexpr,
    TILE: tl.constexpr,  # pixels of the largest box, channels, reduction
    FLATTEN: tl.constexpr,
    SPLIT: tl.constexpr,  # reductions may be split, so that as many programs are busy
    SETTLED: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[active] = activation(conv(x) + bias + residual), on one or several levels.

    Programs take the tiles of all levels in strides of the launch grid, level after level.
    """
    BN: tl.constexpr = TILE[1]
    weight_ptr, bias_ptr, weight_bytes = weights
    residual_ptr, residual_row, out_ptr, out_row, second_ptr, second_row = maps
    prefetch(weight_ptr, weight_bytes, PDL)
    count = count_blocks(count_ptr, SETTLED, PDL)
    LEVELS: tl.constexpr = len(SIDES)
    N_TILES: tl.constexpr = (SHAPE.out_channels + BN - 1) // BN
    tiles = 0
    for i in tl.static_range(LEVELS):
        tiles += count * (_boxes_of_a_block(SIDES[i], BOXES[i][0], BOXES[i][1]) * N_TILES)
    splits = 1
    if SPLIT:
        splits = number_of_splits(tiles, splitting[0], splitting[1])
    begin_with(tl.program_id(0) < tiles * splits, SETTLED, PDL)
    # Tiles of the levels before.
    start = 0
    for i in tl.static_range(LEVELS):
        if LEVELS > 1:
            level = levels_ptr + i * len(LEVEL)
            out_offset, bias_offset = (
                tl.load(level + LEVEL.out_offset),
                tl.load(level + LEVEL.bias_offset),
            )
            oh = read_int(level + LEVEL.out_height)
            ow = read_int(level + LEVEL.out_width)
            row = read_int(level + LEVEL.out_row)
            other_row = read_int(level + LEVEL.second_row)
            other_offset = tl.load(level + LEVEL.second_offset)
            if OUT_ALIGNED:
                # Hints go here: cutting numbers to 32 bits loses earlier ones.
                out_offset, row = tl.multiple_of(out_offset, 16), row // 16 * 16
                other_offset = tl.multiple_of(other_offset, 16)
                other_row = other_row // 16 * 16
            out, second = out_ptr + out_offset, second_ptr + other_offset
            bias = bias_ptr + bias_offset
        else:
            out, second, bias, row, other_row = out_ptr, second_ptr, bias_ptr, out_row, second_row
            oh, ow = size
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
            (blocks_ptr, count, start, splits),
            grid,
            x_desc,
            weight_desc,
            bias,
            (oh, ow),
            (residual_ptr, residual_row, out, row, second, other_row),
            workspace,
            SHAPE,
            EPILOGUE,
            SIDES,
            BOXES,
            i,
            TILE,
            FLATTEN,
            SPLIT,
        )


@triton.constexpr_function
def _boxes_of_a_block(side, rows, columns):
    return -(-side // rows) * -(-side // columns)


@triton.jit
def _level(
    work,  # blocks_ptr, count, start, splits
    grid,
    x_desc,
    weight_desc,
    bias_ptr,
    size,
    maps,
    workspace,
    SHAPE: tl.constexpr,
    EPILOGUE: tl.constexpr,
    SIDES: tl.constexpr,
    BOXES: tl.constexpr,
    INDEX: tl.constexpr,  # of the level
    TILE: tl.constexpr,
    FLATTEN: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """
    Computes this program's tiles of one level, or parts of them. Returns `start` and the level's
    number of tiles.
    """
    T: tl.constexpr = SIDES[INDEX]
    TH: tl.constexpr = BOXES[INDEX][0]
    TW: tl.constexpr = BOXES[INDEX][1]
    BM: tl.constexpr = TILE[0]
    BN: tl.constexpr = TILE[1]
    BK: tl.constexpr = TILE[2]
    KW: tl.constexpr = SHAPE.kernel[1]
    PRECISION: tl.constexpr = EPILOGUE.precision
    blocks_ptr, count, start, splits = work
    GH, GW = grid
    ACROSS: tl.constexpr = (T + TW - 1) // TW
    PER_BLOCK: tl.constexpr = _boxes_of_a_block(T, TH, TW)
    N_TILES: tl.constexpr = (SHAPE.out_channels + BN - 1) // BN
    STEPS_PER_TAP: tl.constexpr = SHAPE.in_channels // BK
    STEPS: tl.constexpr = SHAPE.kernel[0] * KW * STEPS_PER_TAP
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
            iy = y0 - SHAPE.padding[0] + tap // KW * SHAPE.dilation[0]
            ix = x0 - SHAPE.padding[1] + tap % KW * SHAPE.dilation[1]
            x = x_desc.load([stream, iy, ix, (step % STEPS_PER_TAP) * BK])
            weight = weight_desc.load([n_tile * BN, step * BK])
            acc = tl.dot(weight, x.reshape(TH * TW, BK).T, acc, input_precision=PRECISION)
        complete = True
        if SPLIT:
            complete, acc = add_parts(acc, workspace, start + tile, split, splits, BN * BM)
        if complete:
            m = tl.arange(0, TH * TW)
            oy = y0 + m // TW
            ox = x0 + m % TW
            valid = (oy < size[0]) & (ox < size[1])
            if T < TH:  # the box is larger than the block
                valid = valid & (m // TW < T) & (m % TW < T)
            column = n_tile * BN + tl.arange(0, BN)
            write_tile(
                acc.T,
                (stream, oy, ox, valid),
                n_tile * BN,
                (column, column),
                size,
                bias_ptr + column,
                maps,
                SHAPE,
                EPILOGUE,
                BN,
            )
    return start + tiles


@dataclasses.dataclass(frozen=True)
class BoxConfig:
    """Division of the work of a launch. See tuning.py for where the values come from.

    Attributes:
        bm, bn, bk: pixels (at most; those of a block, if it has fewer), channels and reduction of
            a tile.
        num_warps, num_stages: warps and pipeline stages of a program.
        per_sm: programs per multiprocessor that share all tiles; 0 gives each tile its own.
        flatten: whether the next tile is copied while one is written, see can_flatten().
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


class BoxConvolutionLaunch(BlockLaunch):
    """A convolution bound to its operands; calling it with a BlockList runs the active blocks."""

    def __init__(self, shape, config, levels, *, precision, workspace, device):
        """
        Args:
            shape: ConvolutionShape for which :func:`takes_boxes` holds.
            config: BoxConfig; its bk divides the input channels.
            levels: at most MAX_LEVELS conv.ConvolutionLevels of one selection of blocks. Several
                must not have residuals.
            precision: precision of float32 products.
            workspace: Workspace of at least workspace_size(), shared between launches.
            device: Device.
        """
        first = levels[0]
        self.shape, self.config, self.levels = shape, config, levels
        taps, length = shape.reduction(config.bk)
        splits = min(config.max_splits, taps * length // config.bk)
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
        descriptors = (*pixels, *pixels[:1] * missing, *weights, *weights[:1] * missing)
        maps, epilogue = Epilogue.of(levels, precision)
        operands = (first.tiling.sides[1:], first.out.size, maps, first.packed.operand)
        splitting = splits, split_programs(config, device.num_sms)
        flatten = config.flatten and splits == 1 and can_flatten(shape, config.bk, len(levels))
        super().__init__(
            box_convolution_kernel,
            (self._programs(device, splits),),
            (*descriptors, *operands, level_table(levels), workspace.operand, splitting),
            dict(
                SHAPE=shape,
                EPILOGUE=epilogue,
                LEVEL=LEVEL_COLUMNS,
                SIDES=tuple(level.tiling.tile for level in levels),
                BOXES=boxes,
                OUT_ALIGNED=outputs_aligned(levels),
                TILE=(max(map(math.prod, boxes)), config.bn, config.bk),
                FLATTEN=flatten,
                SPLIT=splits > 1,
                **dict(num_warps=config.num_warps, num_stages=config.num_stages),
                **device.launch_options,
            ),
        )

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


def can_flatten(shape, bk, num_levels):
    """Returns whether Triton (3.6 to 3.8) compiles the loop over tiles of a ConvolutionShape,
    flattened: it fails at some loops over several levels, and at those that end in a branch, as
    they do where a tile belongs to one of two convolutions."""
    one_step = math.prod(shape.kernel) * shape.in_channels == bk
    return num_levels == 1 and (one_step or shape.first_out is None)


def takes_boxes(shape, levels, device):
    """Returns whether BoxConvolutionLaunch can run a convolution.

    Args:
        shape: ConvolutionShape.
        levels: (input FeatureMap, side T of its blocks) for each.
        device: Device.
    """
    plain = shape.stride == 1 and shape.groups == 1 and shape.out_step == 1
    # A product takes 16 channels at a time, a box at least 32 bytes per pixel.
    channels = shape.in_channels % 16 == 0
    if not (device.bulk_copies and plain and channels and len(levels) <= MAX_LEVELS):
        return False
    return all(_describable(x) and tile & (tile - 1) == 0 for x, tile in levels)


def _describable(x):
    """Returns whether bulk copies can read a map: they want multiples of 16 bytes."""
    itemsize = x.rows.element_size()
    return x.rows.data_ptr() % 16 == 0 and x.rows.stride(0) * itemsize % 16 == 0
