"""Nearest and bilinear upsampling of the active blocks by an integer factor, in place.

Shape shorthand: C channels, H x W pixels of a map, T x T pixels of a block.
"""

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin

from .block_launch import BlockLaunch
from .geometry import locate, pixel_number


@triton.jit
def upsample_kernel(
    blocks_ptr,
    count_ptr,
    tiling,
    x_map,
    out_map,
    C,
    SCALE: tl.constexpr,
    BILINEAR: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program computes BM pixels of BC channels. Bilinear as in PyTorch with align_corners=False:
    output o samples the input at (o + 1/2) / SCALE - 1/2, clamped to the map."""
    begin(PDL)
    x_ptr, H, W, x_row = x_map
    out_ptr, OH, OW, out_row = out_map
    num_pixels = tl.load(count_ptr) * tiling[0] * tiling[0]
    for tile in range(tl.program_id(0), tl.cdiv(num_pixels, BM), tl.num_programs(0)):
        first = tile * BM
        stream, y, x, valid = locate(first + tl.arange(0, BM), blocks_ptr, num_pixels, tiling)
        valid = valid & (y < OH) & (x < OW)
        channel = tl.program_id(1) * BC + tl.arange(0, BC)
        mask = valid[:, None] & (channel < C)[None, :]
        if BILINEAR:
            sample_y = tl.maximum((y + 0.5) / SCALE - 0.5, 0.0)
            sample_x = tl.maximum((x + 0.5) / SCALE - 0.5, 0.0)
            top, left = sample_y.to(tl.int32), sample_x.to(tl.int32)
            weight_y, weight_x = sample_y - top, sample_x - left
            result = tl.zeros((BM, BC), tl.float32)
            for corner in tl.static_range(4):
                iy = tl.minimum(top + corner // 2, H - 1)
                ix = tl.minimum(left + corner % 2, W - 1)
                pixel = pixel_number(stream, iy, ix, H, W, WIDE)
                source = x_ptr + (pixel * x_row)[:, None] + channel[None, :]
                value = tl.load(source, mask=mask, other=0).to(tl.float32)
                share_y = weight_y if corner // 2 == 1 else 1 - weight_y
                share_x = weight_x if corner % 2 == 1 else 1 - weight_x
                result += value * (share_y * share_x)[:, None]
        else:
            pixel = pixel_number(stream, y // SCALE, x // SCALE, H, W, WIDE)
            source = x_ptr + (pixel * x_row)[:, None] + channel[None, :]
            result = tl.load(source, mask=mask, other=0)
        pixel = pixel_number(stream, y, x, OH, OW, WIDE)
        target = out_ptr + (pixel * out_row)[:, None] + channel[None, :]
        tl.store(target, result.to(out_ptr.dtype.element_ty), mask=mask)


class UpsampleLaunch(BlockLaunch):
    """An upsampling bound to its maps; calling it with a BlockList runs the active blocks."""

    def __init__(self, x, out, tiling, *, scale, mode, device):
        """
        Args:
            x, out: state.FeatureMaps.
            tiling: Tiling of the output.
            scale: output pixels per input pixel along an axis.
            mode: "nearest" or "bilinear".
            device: Device.
        """
        channels, bm = x.rows.shape[1], 64
        bc, wide = min(triton.next_power_of_2(channels), 64), x.wide or out.wide
        super().__init__(
            upsample_kernel,
            (device.programs(tiling.num_pixels, bm), triton.cdiv(channels, bc)),
            (tiling.sides, x.operand, out.operand, channels),
            dict(SCALE=scale, BILINEAR=mode == "bilinear", WIDE=wide, BM=bm, BC=bc, num_warps=4)
            | device.launch_options,
        )


def upsample_reference(x, *, scale, mode):
    """The whole map that the kernel computes in parts, (N, C, H, W), in plain PyTorch."""
    return torch.nn.functional.interpolate(x, scale_factor=scale, mode=mode)
