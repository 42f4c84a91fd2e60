"""Convolution of the active blocks, in place on dense maps: an implicit matrix product.

The rows of the product are the active output pixels, several small blocks packed into one tile;
its columns the output channels; its reduction runs over kernel taps and input channels. Weights
are (C_out, KH * KW * C_in) with the reduction contiguous, since TF32 on Hopper takes no other
operand. Bias, residual and activation are applied before the only write.

Grouped convolutions run as dense ones on units of a few groups each, the weights zero between
groups: tensor cores take no fewer than 16 channels anyway. A convolution of few input channels
(the stem) reduces over whole kernel rows instead of single taps, which are contiguous in memory.

When too few tiles are active to fill the GPU, the reduction of each is split, see partial_sums.py.

Shape shorthand: N streams, C channels, H x W pixels of a map, T x T pixels of a block, KH x KW
taps.
"""

import torch
import triton
import triton.language as tl

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
    TILE,
    WEIGHT_OFFSET,
    X_HEIGHT,
    X_OFFSET,
    X_ROW,
    X_WIDTH,
    aligned,
    level_table,
)
from .conv_output import write_tile
from .geometry import BlockList, locate
from .partial_sums import add_parts, number_of_splits


@triton.jit
def convolution_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, second_ptr,
    blocks_ptr, count_ptr, levels_ptr, workspace_ptr, arrivals_ptr,
    T, GH, GW, H, W, OH, OW, x_row, out_row, second_row, residual_row,
    weight_bytes, pad_y, pad_x, out_y, out_x, activation_first, activation_second,
    second_activation_first, second_activation_second, max_splits,
    UNITS: tl.constexpr, UNIT_IN: tl.constexpr, UNIT_OUT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr,
    DILATION_Y: tl.constexpr, DILATION_X: tl.constexpr, OUT_STEP: tl.constexpr,
    PADDED: tl.constexpr,  # whether taps may fall outside of the map
    ROW_PACK: tl.constexpr,  # channels per pixel in the reduction over a kernel row, 0 for taps
    ROW_CONTIGUOUS: tl.constexpr,  # those channels are contiguous in memory, zero beyond C_in
    RESIDUAL_SCALE: tl.constexpr,  # output pixels per residual pixel along an axis, 0 for none
    FIRST_OUT: tl.constexpr,  # output channels that go to out, the others go to second
    ACTIVATION: tl.constexpr, SECOND_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    OUT_LIFTED: tl.constexpr, SECOND_LIFTED: tl.constexpr, RESIDUAL_LIFTED: tl.constexpr,
    LEVELS: tl.constexpr, X_ALIGNED: tl.constexpr,
    OUT_ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    SWAP: tl.constexpr,  # weights are the first factor of the product
    SPLIT: tl.constexpr,  # reductions may be split, so that PROGRAMS are busy
    PROGRAMS: tl.constexpr, SETTLED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[active] = activation(conv(x) + bias + residual), on one or several levels.

    A work item is (tile of pixels, tile of channels, part of the reduction). Programs take items
    in strides of the launch grid, which may have fewer programs than there are items.
    """
    N_PER_UNIT: tl.constexpr = (UNIT_OUT + BN - 1) // BN
    N_TILES: tl.constexpr = UNITS * N_PER_UNIT
    if ROW_PACK > 0:
        STEPS_PER_TAP: tl.constexpr = (KW * ROW_PACK + BK - 1) // BK  # a tap is a kernel row here
        STEPS: tl.constexpr = KH * STEPS_PER_TAP
    else:
        STEPS_PER_TAP: tl.constexpr = (UNIT_IN + BK - 1) // BK
        STEPS: tl.constexpr = KH * KW * STEPS_PER_TAP
    prefetch(weight_ptr, weight_bytes, PDL)
    count = count_blocks(count_ptr, SETTLED, PDL)
    if LEVELS > 1:
        tiles = 0
        for i in tl.static_range(LEVELS):
            side = tl.load(levels_ptr + i * NUM_COLUMNS + TILE).to(tl.int32)
            tiles += tl.cdiv(count * side * side, BM) * N_TILES
    else:
        tiles = tl.cdiv(count * T * T, BM) * N_TILES
    splits = 1
    if SPLIT:
        splits = number_of_splits(tiles, max_splits, PROGRAMS)
    begin_with(tl.program_id(0) < tiles * splits, SETTLED, PDL)

    for work in range(tl.program_id(0), tiles * splits, tl.num_programs(0)):
        tile = work % tiles
        split = work // tiles
        if LEVELS > 1:
            level, first, start = 0, 0, 0
            for i in tl.static_range(LEVELS):
                side = tl.load(levels_ptr + i * NUM_COLUMNS + TILE).to(tl.int32)
                level = tl.where(tile >= start, i, level)
                first = tl.where(tile >= start, start, first)
                start += tl.cdiv(count * side * side, BM) * N_TILES
            row = levels_ptr + level * NUM_COLUMNS
            x_offset, out_offset = tl.load(row + X_OFFSET), tl.load(row + OUT_OFFSET)
            weight_offset, bias_offset = tl.load(row + WEIGHT_OFFSET), tl.load(row + BIAS_OFFSET)
            second_offset = tl.load(row + SECOND_OFFSET)
            side = tl.load(row + TILE).to(tl.int32)
            h, w = tl.load(row + X_HEIGHT).to(tl.int32), tl.load(row + X_WIDTH).to(tl.int32)
            oh, ow = tl.load(row + OUT_HEIGHT).to(tl.int32), tl.load(row + OUT_WIDTH).to(tl.int32)
            x_step = tl.load(row + X_ROW).to(tl.int32)
            out_step = tl.load(row + OUT_ROW).to(tl.int32)
            second_step = tl.load(row + SECOND_ROW).to(tl.int32)
            weight_offset = tl.multiple_of(weight_offset, 16)
            if X_ALIGNED:
                x_offset, x_step = tl.multiple_of(x_offset, 16), tl.multiple_of(x_step, 16)
            if OUT_ALIGNED:
                out_offset = tl.multiple_of(out_offset, 16)
                out_step = tl.multiple_of(out_step, 16)
                second_offset = tl.multiple_of(second_offset, 16)
                second_step = tl.multiple_of(second_step, 16)
            in_tile = tile - first
        else:
            x_offset, out_offset, weight_offset, bias_offset = 0, 0, 0, 0
            second_offset, second_step = 0, second_row
            side, h, w, oh, ow, x_step, out_step = T, H, W, OH, OW, x_row, out_row
            in_tile = tile

        # ---- rows: output pixels
        m = (in_tile // N_TILES) * BM + tl.arange(0, BM)
        stream, y, x, valid = locate(m, blocks_ptr, count * side * side, side, GH, GW)
        oy = y * OUT_STEP + out_y
        ox = x * OUT_STEP + out_x
        valid = valid & (oy < oh) & (ox < ow)
        iy0 = y * STRIDE - pad_y
        ix0 = x * STRIDE - pad_x
        image = stream * h
        # ---- columns: output channels, and the input channels that they read
        n_tile = in_tile % N_TILES
        unit = n_tile // N_PER_UNIT
        column = (n_tile % N_PER_UNIT) * BN + tl.arange(0, BN)
        channel = unit * UNIT_OUT + column
        packed = n_tile * BN + tl.arange(0, BN)

        k = tl.arange(0, BK)
        x_tile = x_ptr + x_offset + unit * UNIT_IN
        weight_tile = weight_ptr + weight_offset + packed[:, None] * (STEPS * BK) + k[None, :]
        if SWAP:
            acc = tl.zeros((BN, BM), tl.float32)
        else:
            acc = tl.zeros((BM, BN), tl.float32)
        for step in range(split * STEPS // splits, (split + 1) * STEPS // splits):
            tap = step // STEPS_PER_TAP
            if ROW_PACK > 0:
                e = (step % STEPS_PER_TAP) * BK + k
                tap_x = e // ROW_PACK
                c = e % ROW_PACK
                iy = iy0 + tap * DILATION_Y
                ix = ix0[:, None] + (tap_x * DILATION_X)[None, :]
                row_inside = valid & (iy >= 0) & (iy < h)
                mask = row_inside[:, None] & (ix >= 0) & (ix < w) & (tap_x < KW)[None, :]
                pixel = (image + iy) * w + ix0
                if WIDE:
                    pixel = pixel.to(tl.int64)
                if ROW_CONTIGUOUS:
                    a_ptr = x_tile + (pixel * ROW_PACK)[:, None] + e[None, :]
                else:
                    mask = mask & (c < UNIT_IN)[None, :]
                    a_ptr = x_tile + (pixel * x_step)[:, None]
                    a_ptr += (tap_x * DILATION_X * x_step + c)[None, :]
            else:
                c = (step % STEPS_PER_TAP) * BK + k
                iy = iy0 + tap // KW * DILATION_Y
                ix = ix0 + tap % KW * DILATION_X
                inside = valid
                if PADDED:
                    inside = valid & (iy >= 0) & (iy < h) & (ix >= 0) & (ix < w)
                pixel = (image + iy) * w + ix
                if WIDE:
                    pixel = pixel.to(tl.int64)
                a_ptr = x_tile + (pixel * x_step)[:, None] + c[None, :]
                mask = inside[:, None]
                if UNIT_IN % BK != 0:
                    mask = mask & (c < UNIT_IN)[None, :]
            a = tl.load(a_ptr, mask=mask, other=0.0)
            b = tl.load(weight_tile + step * BK)
            if SWAP:
                acc = tl.dot(b, a.T, acc, input_precision=PRECISION)
            else:
                acc = tl.dot(a, b.T, acc, input_precision=PRECISION)
        if SWAP:
            acc = acc.T

        complete = True
        if SPLIT:
            complete, acc = add_parts(
                acc, workspace_ptr, arrivals_ptr, tile, split, splits, BM, BN, BM * BN
            )  # fmt: skip
        if complete:
            write_tile(
                acc, stream, oy, ox, valid, n_tile * BN, column, channel, oh, ow,
                bias_ptr + bias_offset + packed, residual_ptr, residual_row,
                out_ptr + out_offset, out_step, second_ptr + second_offset, second_step,
                activation_first, activation_second, second_activation_first,
                second_activation_second, UNIT_OUT, FIRST_OUT, RESIDUAL_SCALE, ACTIVATION,
                SECOND_ACTIVATION, BN, PRECISION, OUT_LIFTED, SECOND_LIFTED, RESIDUAL_LIFTED, WIDE,
            )  # fmt: skip


class ConvolutionLaunch:
    """A convolution bound to its operands; calling it with a BlockList runs the active blocks."""

    kernel = convolution_kernel

    def __init__(self, shape, config, levels, *, precision, workspace, device):
        """
        Args:
            shape: ConvolutionShape.
            config: ConvolutionConfig.
            levels: ConvolutionLevels of one selection of blocks. Several must not have residuals.
            precision: of float32 products, "tf32" or "ieee".
            workspace: Workspace of at least workspace_size(), shared between launches.
            device: Device.
        """
        first = levels[0]
        units, unit_in, unit_out = shape.units
        name, activation_first, activation_second = parameters(shape.activation)
        taps, length = shape.reduction(config.bk)
        splits = min(config.max_splits, taps * length // config.bk)
        n_tiles = units * -(-unit_out // config.bn)
        tiles = sum(-(-level.tiling.num_pixels // config.bm) for level in levels) * n_tiles
        programs = max(tiles, device.num_sms) if splits > 1 else tiles
        if config.per_sm:
            programs = min(programs, config.per_sm * device.num_sms)
        residual = first.residual if first.residual is not None else first.x
        second = first.second if first.second is not None else first.out
        second_name, *second_activation = parameters(shape.second_activation)
        # Tensors of other levels are only pointed to; self.levels keeps them.
        table = level_table(levels) if len(levels) > 1 else None
        maps = [
            map_ for level in levels for map_ in (level.x, level.out, level.second or level.out)
        ]
        self.shape, self.config, self.levels = shape, config, levels
        self.grid = (max(programs, 1),)
        self.tensors = (
            first.x.rows, first.packed.matrix, first.packed.bias, residual.rows, first.out.rows,
            second.rows,
        )  # fmt: skip
        self.table = table if table is not None else workspace.arrivals
        self.workspace = workspace
        tiling = first.tiling
        self.sizes = (
            tiling.tile, tiling.rows, tiling.columns, *first.x.size, *first.out.size,
            first.x.rows.stride(0), first.out.rows.stride(0), second.rows.stride(0),
            residual.rows.stride(0), first.packed.matrix.nbytes, *shape.padding,
            *shape.out_offset, activation_first, activation_second, *second_activation, splits,
        )  # fmt: skip
        self.constants = dict(
            UNITS=units, UNIT_IN=unit_in, UNIT_OUT=unit_out, KH=shape.kernel[0],
            KW=shape.kernel[1], STRIDE=shape.stride, DILATION_Y=shape.dilation[0],
            DILATION_X=shape.dilation[1], OUT_STEP=shape.out_step,
            PADDED=shape.reads_beyond_border,
            ROW_PACK=shape.row_pack,
            ROW_CONTIGUOUS=_contiguous_rows(first.x, shape),
            RESIDUAL_SCALE=shape.residual_scale, FIRST_OUT=shape.first_out or unit_out,
            ACTIVATION=name, SECOND_ACTIVATION=second_name, PRECISION=precision,
            OUT_LIFTED=first.out.lifted, SECOND_LIFTED=second.lifted,
            RESIDUAL_LIFTED=residual.lifted,
            LEVELS=len(levels),
            X_ALIGNED=all(aligned(level.x.rows, first.x.rows) for level in levels),
            OUT_ALIGNED=all(
                aligned(level.out.rows, first.out.rows)
                and (level.second is None or aligned(level.second.rows, second.rows))
                for level in levels
            ),
            WIDE=any(map_.rows.stride(0) * len(map_.rows) >= 2**31 for map_ in [*maps, residual]),
            BM=config.bm, BN=config.bn, BK=config.bk, SWAP=config.swap,
            SPLIT=splits > 1, PROGRAMS=device.num_sms,
            num_warps=config.num_warps, num_stages=config.num_stages, **device.launch_options,
        )  # fmt: skip

    def __call__(self, blocks):
        self.kernel[self.grid](*self._arguments(blocks), **self.constants, SETTLED=blocks.settled)

    def signature(self):
        """Positional and keyword arguments with dtypes for tensors, as Triton's warmup takes."""
        integer = torch.empty(0, dtype=torch.int32)
        arguments = self._arguments(BlockList(integer, integer))
        return (
            [x.dtype if isinstance(x, torch.Tensor) else x for x in arguments],
            {**self.constants, "SETTLED": True},
        )

    def _arguments(self, blocks):
        return (
            *self.tensors, blocks.blocks, blocks.count, self.table, self.workspace.sums,
            self.workspace.arrivals, *self.sizes,
        )  # fmt: skip


def _contiguous_rows(x, shape):
    readable = x.zero_padded or shape.row_pack == shape.in_channels
    return readable and x.rows.stride(0) == shape.row_pack and shape.dilation[1] == 1
