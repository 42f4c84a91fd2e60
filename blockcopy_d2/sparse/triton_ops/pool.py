"""Max and average pooling of the active blocks, in place on dense maps.

Shape shorthand: C channels, H x W pixels of a map, T x T pixels of a block, KH x KW taps.
"""

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin_with, count_blocks

from .geometry import locate

# Of a program, for all of its threads.
_VALUES = 1024


@triton.jit
def pool_kernel(
    x_ptr, out_ptr, blocks_ptr, count_ptr,
    T, GH, GW, H, W, OH, OW, C, x_row, out_row, pad_y, pad_x, scale,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr, DILATION_Y: tl.constexpr,
    DILATION_X: tl.constexpr, MAX: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, SETTLED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program computes BM pixels of BC channels; reads each input KH * KW / STRIDE^2 times, from
    cache but for the first."""
    num_pixels = count_blocks(count_ptr, SETTLED, PDL) * T * T
    tiles = tl.cdiv(num_pixels, BM)
    begin_with(tl.program_id(0) < tiles, SETTLED, PDL)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first = tile * BM
        stream, y, x, valid = locate(first + tl.arange(0, BM), blocks_ptr, num_pixels, T, GH, GW)
        valid = valid & (y < OH) & (x < OW)
        channel = tl.program_id(1) * BC + tl.arange(0, BC)
        within = (channel < C)[None, :]
        if MAX:
            result = tl.full((BM, BC), float("-inf"), x_ptr.dtype.element_ty)
        else:
            result = tl.zeros((BM, BC), tl.float32)
        for tap in tl.range(0, KH * KW, loop_unroll_factor=UNROLL):
            iy = y * STRIDE - pad_y + tap // KW * DILATION_Y
            ix = x * STRIDE - pad_x + tap % KW * DILATION_X
            inside = valid & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
            pixel = (stream * H + iy) * W + ix
            if WIDE:
                pixel = pixel.to(tl.int64)
            source = x_ptr + (pixel * x_row)[:, None] + channel[None, :]
            if MAX:
                value = tl.load(source, mask=inside[:, None] & within, other=float("-inf"))
                result = tl.maximum(result, value, propagate_nan=tl.PropagateNan.ALL)
                result = result.to(value.dtype)  # bfloat16 is compared as float32
            else:
                result += tl.load(source, mask=inside[:, None] & within, other=0.0).to(tl.float32)
        if not MAX:
            result = result * scale
        pixel = (stream * OH + y) * OW + x
        if WIDE:
            pixel = pixel.to(tl.int64)
        target = out_ptr + (pixel * out_row)[:, None] + channel[None, :]
        tl.store(target, result.to(out_ptr.dtype.element_ty), mask=valid[:, None] & within)


class PoolLaunch:
    """A pool bound to its maps; calling it with a BlockList runs the active blocks."""

    def __init__(self, x, out, tiling, *, kind, kernel, stride, padding, dilation, device):
        """
        Args:
            x, out: state.FeatureMaps.
            tiling: Tiling of the output.
            kind: "max", or "avg" with the padding counted as zeros.
            kernel, padding, dilation: pairs (y, x); stride: int.
            device: Device.
        """
        channels = x.rows.shape[1]
        bc = min(triton.next_power_of_2(channels), 64)
        # With few values per thread, few active blocks are shared by many.
        bm = max(_VALUES // bc, 1)
        self.grid = (device.programs(tiling.num_pixels, bm), triton.cdiv(channels, bc))
        self.maps = (x.rows, out.rows)
        self.sizes = (
            tiling.tile, tiling.rows, tiling.columns, *x.size, *out.size, channels,
            x.rows.stride(0), out.rows.stride(0), *padding, 1 / (kernel[0] * kernel[1]),
        )  # fmt: skip
        self.constants = dict(
            KH=kernel[0], KW=kernel[1], STRIDE=stride, DILATION_Y=dilation[0],
            DILATION_X=dilation[1], MAX=kind == "max", UNROLL=min(kernel[0] * kernel[1], 9),
            WIDE=x.wide or out.wide, BM=bm, BC=bc, num_warps=4,
            **device.launch_options,
        )  # fmt: skip

    def __call__(self, blocks):
        pool_kernel[self.grid](
            *self.maps, blocks.blocks, blocks.count, *self.sizes, **self.constants,
            SETTLED=blocks.settled,
        )  # fmt: skip
