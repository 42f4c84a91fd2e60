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

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin_with, count_blocks, prefetch
from blockcopy_d2.kernels.table import read_int

from .block_launch import BlockLaunch
from .conv_levels import LEVEL_COLUMNS, aligned, level_table, outputs_aligned
from .conv_output import Epilogue, write_tile
from .geometry import locate
from .partial_sums import add_parts, number_of_splits


@triton.jit
def convolution_kernel(
    blocks_ptr,
    count_ptr,
    tiling,
    x_map,
    size,  # of the output
    maps,  # see Epilogue
    weights,
    levels_ptr,
    workspace,
    max_splits,
    SHAPE: tl.constexpr,
    EPILOGUE: tl.constexpr,
    LEVEL: tl.constexpr,  # columns of the table
    ROW_CONTIGUOUS: tl.constexpr,  # packed channels are contiguous in memory, zero beyond C_in
    LEVELS: tl.constexpr,
    X_ALIGNED: tl.constexpr,
    OUT_ALIGNED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SWAP: tl.constexpr,  # weights are the first factor of the product
    SPLIT: tl.constexpr,  # reductions may be split, so that PROGRAMS are busy
    PROGRAMS: tl.constexpr,
    SETTLED: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[active] = activation(conv(x) + bias + residual), on one or several levels.

    A work item is (tile of pixels, tile of channels, part of the reduction). Programs take items
    in strides of the launch grid, which may have fewer programs than there are items.
    """
    UNITS: tl.constexpr = SHAPE.units[0]
    UNIT_IN: tl.constexpr = SHAPE.units[1]
    UNIT_OUT: tl.constexpr = SHAPE.units[2]
    KH: tl.constexpr = SHAPE.kernel[0]
    KW: tl.constexpr = SHAPE.kernel[1]
    # Channels per pixel in the reduction over a kernel row, 0 for taps.
    ROW_PACK: tl.constexpr = SHAPE.row_pack
    PRECISION: tl.constexpr = EPILOGUE.precision
    T = tiling[0]
    x_ptr, H, W, x_row = x_map
    weight_ptr, bias_ptr, weight_bytes = weights
    residual_ptr, residual_row, out_ptr, out_row, second_ptr, second_row = maps
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
            side = read_int(levels_ptr + i * len(LEVEL) + LEVEL.tile)
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
            row, first = _level_of(tile, count, levels_ptr, N_TILES, LEVEL, LEVELS, BM)
            x_offset, out_offset = tl.load(row + LEVEL.x_offset), tl.load(row + LEVEL.out_offset)
            weight_offset = tl.load(row + LEVEL.weight_offset)
            bias_offset = tl.load(row + LEVEL.bias_offset)
            second_offset = tl.load(row + LEVEL.second_offset)
            side = read_int(row + LEVEL.tile)
            h, w = read_int(row + LEVEL.x_height), read_int(row + LEVEL.x_width)
            oh, ow = read_int(row + LEVEL.out_height), read_int(row + LEVEL.out_width)
            x_step = read_int(row + LEVEL.x_row)
            out_step = read_int(row + LEVEL.out_row)
            second_step = read_int(row + LEVEL.second_row)
            weight_offset = tl.multiple_of(weight_offset, 16)
            # Hints go here: cutting 64-bit numbers to 32 bits loses earlier ones.
            if X_ALIGNED:
                x_offset, x_step = tl.multiple_of(x_offset, 16), x_step // 16 * 16
            if OUT_ALIGNED:
                out_offset, out_step = tl.multiple_of(out_offset, 16), out_step // 16 * 16
                second_offset = tl.multiple_of(second_offset, 16)
                second_step = second_step // 16 * 16
            in_tile = tile - first
        else:
            x_offset, out_offset, weight_offset, bias_offset = 0, 0, 0, 0
            second_offset, second_step = 0, second_row
            side, h, w, x_step, out_step = T, H, W, x_row, out_row
            oh, ow = size
            in_tile = tile

        # ---- rows: output pixels
        m = (in_tile // N_TILES) * BM + tl.arange(0, BM)
        stream, y, x, valid = locate(
            m, blocks_ptr, count * side * side, (side, tiling[1], tiling[2])
        )
        oy = y * SHAPE.out_step + SHAPE.out_offset[0]
        ox = x * SHAPE.out_step + SHAPE.out_offset[1]
        valid = valid & (oy < oh) & (ox < ow)
        iy0 = y * SHAPE.stride - SHAPE.padding[0]
        ix0 = x * SHAPE.stride - SHAPE.padding[1]
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
            tap, start = step // STEPS_PER_TAP, step % STEPS_PER_TAP * BK
            source = (x_tile, x_step, image, h, w)
            if ROW_PACK > 0:
                places, mask = _of_kernel_row(
                    tap, start + k, source, iy0, ix0, valid, SHAPE, ROW_CONTIGUOUS, EPILOGUE.wide
                )
            else:
                places, mask = _of_tap(
                    tap, start + k, source, iy0, ix0, valid, SHAPE, EPILOGUE.wide, BK
                )
            a = tl.load(places, mask=mask, other=0.0)
            b = tl.load(weight_tile + step * BK)
            if SWAP:
                acc = tl.dot(b, a.T, acc, input_precision=PRECISION)
            else:
                acc = tl.dot(a, b.T, acc, input_precision=PRECISION)
        if SWAP:
            acc = acc.T

        complete = True
        if SPLIT:
            complete, acc = add_parts(acc, workspace, tile, split, splits, BM * BN)
        if complete:
            out, second = out_ptr + out_offset, second_ptr + second_offset
            write_tile(
                acc,
                (stream, oy, ox, valid),
                n_tile * BN,
                (column, channel),
                (oh, ow),
                bias_ptr + bias_offset + packed,
                (residual_ptr, residual_row, out, out_step, second, second_step),
                SHAPE,
                EPILOGUE,
                BN,
            )


@triton.jit
def _level_of(
    tile,
    count,
    levels_ptr,
    N_TILES: tl.constexpr,
    LEVEL: tl.constexpr,
    LEVELS: tl.constexpr,
    BM: tl.constexpr,
):
    """(row of the table, first tile) of the level that a tile belongs to."""
    level, first, start = 0, 0, 0
    for i in tl.static_range(LEVELS):
        side = read_int(levels_ptr + i * len(LEVEL) + LEVEL.tile)
        level = tl.where(tile >= start, i, level)
        first = tl.where(tile >= start, start, first)
        start += tl.cdiv(count * side * side, BM) * N_TILES
    return levels_ptr + level * len(LEVEL), first


@triton.jit
def _of_tap(
    tap, c, source, iy0, ix0, valid, SHAPE: tl.constexpr, WIDE: tl.constexpr, BK: tl.constexpr
):
    """
    Pointers (BM, BK) to channels c of the pixels that a tap of the kernel reads, and a mask of
    those that exist. `source` is (channels of the unit, elements from a pixel to the next, first
    row of the stream, height, width); the first tap reads pixels (iy0, ix0).
    """
    x_ptr, x_row, image, h, w = source
    KW: tl.constexpr = SHAPE.kernel[1]
    UNIT_IN: tl.constexpr = SHAPE.units[1]
    iy = iy0 + tap // KW * SHAPE.dilation[0]
    ix = ix0 + tap % KW * SHAPE.dilation[1]
    inside = valid
    if SHAPE.reads_beyond_border:
        inside = valid & (iy >= 0) & (iy < h) & (ix >= 0) & (ix < w)
    pixel = (image + iy) * w + ix
    if WIDE:
        pixel = pixel.to(tl.int64)
    places = x_ptr + (pixel * x_row)[:, None] + c[None, :]
    mask = inside[:, None]
    if UNIT_IN % BK != 0:
        mask = mask & (c < UNIT_IN)[None, :]
    return places, mask


@triton.jit
def _of_kernel_row(
    row,
    e,
    source,
    iy0,
    ix0,
    valid,
    SHAPE: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The same for values e of a row of the kernel: row_pack channels of each of its taps."""
    x_ptr, x_row, image, h, w = source
    KW: tl.constexpr = SHAPE.kernel[1]
    PACK: tl.constexpr = SHAPE.row_pack
    tap_x, c = e // PACK, e % PACK
    iy = iy0 + row * SHAPE.dilation[0]
    ix = ix0[:, None] + (tap_x * SHAPE.dilation[1])[None, :]
    row_inside = valid & (iy >= 0) & (iy < h)
    mask = row_inside[:, None] & (ix >= 0) & (ix < w) & (tap_x < KW)[None, :]
    pixel = (image + iy) * w + ix0
    if WIDE:
        pixel = pixel.to(tl.int64)
    if CONTIGUOUS:
        places = x_ptr + (pixel * PACK)[:, None] + e[None, :]
    else:
        mask = mask & (c < SHAPE.units[1])[None, :]
        places = x_ptr + (pixel * x_row)[:, None]
        places += (tap_x * SHAPE.dilation[1] * x_row + c)[None, :]
    return places, mask


class ConvolutionLaunch(BlockLaunch):
    """A convolution bound to its operands; calling it with a BlockList runs the active blocks."""

    def __init__(self, shape, config, levels, *, precision, workspace, device):
        """
        Args:
            shape: ConvolutionShape.
            config: ConvolutionConfig.
            levels: ConvolutionLevels of one selection of blocks. Several must not have residuals.
            precision: precision of float32 products, "tf32" or "ieee".
            workspace: Workspace of at least workspace_size(), shared between launches.
            device: Device.
        """
        first = levels[0]
        units, _, unit_out = shape.units
        taps, length = shape.reduction(config.bk)
        splits = min(config.max_splits, taps * length // config.bk)
        n_tiles = units * -(-unit_out // config.bn)
        tiles = sum(-(-level.tiling.num_pixels // config.bm) for level in levels) * n_tiles
        programs = max(tiles, device.num_sms) if splits > 1 else tiles
        if config.per_sm:
            programs = min(programs, config.per_sm * device.num_sms)
        # Tensors of other levels are only pointed to; self.levels keeps them.
        table = level_table(levels) if len(levels) > 1 else workspace.arrivals
        maps, epilogue = Epilogue.of(levels, precision)
        operands = (first.tiling.sides, first.x.operand, first.out.size, maps)
        self.shape, self.config, self.levels = shape, config, levels
        super().__init__(
            convolution_kernel,
            (max(programs, 1),),
            (*operands, first.packed.operand, table, workspace.operand, splits),
            dict(
                SHAPE=shape,
                EPILOGUE=epilogue,
                LEVEL=LEVEL_COLUMNS,
                ROW_CONTIGUOUS=_contiguous_rows(first.x, shape),
                LEVELS=len(levels),
                X_ALIGNED=all(aligned(level.x.rows, first.x.rows) for level in levels),
                OUT_ALIGNED=outputs_aligned(levels),
                **dict(BM=config.bm, BN=config.bn, BK=config.bk, SWAP=config.swap),
                **dict(SPLIT=splits > 1, PROGRAMS=device.num_sms),
                **dict(num_warps=config.num_warps, num_stages=config.num_stages),
                **device.launch_options,
            ),
        )


def _contiguous_rows(x, shape):
    readable = x.zero_padded or shape.row_pack == shape.in_channels
    return readable and x.rows.stride(0) == shape.row_pack and shape.dilation[1] == 1
