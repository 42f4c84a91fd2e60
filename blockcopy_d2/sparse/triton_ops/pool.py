"""Max and average pooling of the active blocks, in place on dense maps.

Shape shorthand: C channels, H x W pixels of a map, T x T pixels of a block, KH x KW taps.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin_with, count_blocks

from .block_launch import BlockLaunch
from .geometry import locate, pixel_number

# Values per program.
_VALUES = 1024


class Window(NamedTuple):
    """Common to the programs of a pool: see PoolLaunch."""

    kernel: tuple
    stride: int
    dilation: tuple
    is_max: bool
    unroll: int


@triton.jit
def pool_kernel(
    blocks_ptr,
    count_ptr,
    tiling,
    x_map,
    out_map,
    C,
    padding,
    scale,
    WINDOW: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    SETTLED: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program computes BM pixels of BC channels; reads each input KH * KW / STRIDE^2 times, from
    cache but for the first."""
    KH: tl.constexpr = WINDOW.kernel[0]
    KW: tl.constexpr = WINDOW.kernel[1]
    T = tiling[0]
    x_ptr, H, W, x_row = x_map
    out_ptr, OH, OW, out_row = out_map
    num_pixels = count_blocks(count_ptr, SETTLED, PDL) * T * T
    tiles = tl.cdiv(num_pixels, BM)
    begin_with(tl.program_id(0) < tiles, SETTLED, PDL)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first = tile * BM
        stream, y, x, valid = locate(first + tl.arange(0, BM), blocks_ptr, num_pixels, tiling)
        valid = valid & (y < OH) & (x < OW)
        channel = tl.program_id(1) * BC + tl.arange(0, BC)
        within = (channel < C)[None, :]
        if WINDOW.is_max:
            result = tl.full((BM, BC), float("-inf"), x_ptr.dtype.element_ty)
        else:
            result = tl.zeros((BM, BC), tl.float32)
        for tap in tl.range(0, KH * KW, loop_unroll_factor=WINDOW.unroll):
            iy = y * WINDOW.stride - padding[0] + tap // KW * WINDOW.dilation[0]
            ix = x * WINDOW.stride - padding[1] + tap % KW * WINDOW.dilation[1]
            inside = valid & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
            pixel = pixel_number(stream, iy, ix, H, W, WIDE)
            source = x_ptr + (pixel * x_row)[:, None] + channel[None, :]
            if WINDOW.is_max:
                value = tl.load(source, mask=inside[:, None] & within, other=float("-inf"))
                result = tl.maximum(result, value, propagate_nan=tl.PropagateNan.ALL)
                result = result.to(value.dtype)  # bfloat16 is compared as float32
            else:
                result += tl.load(source, mask=inside[:, None] & within, other=0.0).to(tl.float32)
        if not WINDOW.is_max:
            result = result * scale
        pixel = pixel_number(stream, y, x, OH, OW, WIDE)
        target = out_ptr + (pixel * out_row)[:, None] + channel[None, :]
        tl.store(target, result.to(out_ptr.dtype.element_ty), mask=valid[:, None] & within)


class PoolLaunch(BlockLaunch):
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
        channels, taps = x.rows.shape[1], kernel[0] * kernel[1]
        bc = min(triton.next_power_of_2(channels), 64)
        # With few values per thread, few active blocks are shared by many.
        bm = max(_VALUES // bc, 1)
        window = Window(kernel, stride, dilation, kind == "max", unroll=min(taps, 9))
        super().__init__(
            pool_kernel,
            (device.programs(tiling.num_pixels, bm), triton.cdiv(channels, bc)),
            (tiling.sides, x.operand, out.operand, channels, padding, 1 / taps),
            dict(WINDOW=window, WIDE=x.wide or out.wide, BM=bm, BC=bc, num_warps=4)
            | device.launch_options,
        )


def pool_reference(x, *, kind, kernel, stride, padding, dilation):
    """The whole map that the kernel computes in parts, (N, C, H, W), in plain PyTorch."""
    if kind == "max":
        return torch.nn.functional.max_pool2d(x, kernel, stride, padding, dilation)
    return torch.nn.functional.avg_pool2d(x, kernel, stride, padding)
