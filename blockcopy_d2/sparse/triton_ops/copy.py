"""Copies the active blocks of a tensor of any strides into a map.

Shape shorthand: N streams, C channels, H x W pixels of a map, T x T pixels of a block.
"""

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.tf32 import round_tf32

from .activation import activate, parameters
from .geometry import locate


@triton.jit
def copy_kernel(
    x_ptr, scale_ptr, shift_ptr, out_ptr, blocks_ptr, count_ptr, T, GH, GW, H, W, C,
    stride_n, stride_c, stride_y, stride_x, out_row, affine_row,
    activation_first, activation_second,
    AFFINE: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[active] = activation(x * scale + shift); a program copies BM pixels of BC channels."""
    begin(PDL)
    num_pixels = tl.load(count_ptr) * T * T
    for tile in range(tl.program_id(0), tl.cdiv(num_pixels, BM), tl.num_programs(0)):
        first = tile * BM
        stream, y, x, valid = locate(first + tl.arange(0, BM), blocks_ptr, num_pixels, T, GH, GW)
        valid = valid & (y < H) & (x < W)
        channel = tl.program_id(1) * BC + tl.arange(0, BC)
        mask = valid[:, None] & (channel < C)[None, :]
        if WIDE:
            stream, y, x = stream.to(tl.int64), y.to(tl.int64), x.to(tl.int64)
        source = x_ptr + (stream * stride_n + y * stride_y + x * stride_x)[:, None]
        value = tl.load(source + (channel * stride_c)[None, :], mask=mask, other=0).to(tl.float32)
        if AFFINE:
            factor = (stream * affine_row)[:, None] + channel[None, :]
            value = value * tl.load(scale_ptr + factor, mask=mask, other=0.0)
            value += tl.load(shift_ptr + factor, mask=mask, other=0.0)
        value = activate(value, activation_first, activation_second, ACTIVATION)
        if PRECISION == "tf32" and out_ptr.dtype.element_ty == tl.float32:
            value = round_tf32(value)
        target = out_ptr + (((stream * H + y) * W + x) * out_row)[:, None] + channel[None, :]
        tl.store(target, value.to(out_ptr.dtype.element_ty), mask=mask)


class CopyLaunch:
    """copy(x, blocks) writes the active blocks of x into the map; x may be another at every call.

    With scale and shift it is a batch norm that no convolution precedes, or applies a group norm.
    """

    def __init__(
        self, out, tiling, *, scale=None, shift=None, activation=None, precision="ieee", device
    ):
        """
        Args:
            out: state.FeatureMap.
            tiling: Tiling of its blocks.
            scale, shift: float32 (C,), or (N, C) to differ between streams; both or neither.
            activation: program.Activation or None.
            precision: "tf32" where convolutions that read float32 maps multiply so, or "ieee".
            device: Device.
        """
        self.out, self.tiling, self.device = out, tiling, device
        self.scale, self.shift, self.precision = scale, shift, precision
        self.activation, *self.parameters = parameters(activation)

    def __call__(self, x, blocks):
        """
        Args:
            x: (N, C, H, W) of any strides.
            blocks: BlockList.
        """
        out, tiling = self.out, self.tiling
        rows = out.rows
        channels = rows.shape[1]
        bc = min(triton.next_power_of_2(channels), 64)
        bm = 64 if bc > 8 else 256
        affine = self.scale is not None
        wide = out.wide or sum(n * s for n, s in zip(x.shape, x.stride())) >= 2**31
        programs = self.device.programs(tiling.num_pixels, bm)
        copy_kernel[programs, triton.cdiv(channels, bc)](
            x, self.scale if affine else x, self.shift if affine else x, rows,
            blocks.blocks, blocks.count, tiling.tile, tiling.rows, tiling.columns, *out.size,
            channels, *x.stride(), rows.stride(0),
            self.scale.shape[1] if affine and self.scale.dim() > 1 else 0,
            *self.parameters, AFFINE=affine,
            ACTIVATION=self.activation, PRECISION=self.precision, WIDE=wide, BM=bm, BC=bc,
            num_warps=4, **self.device.launch_options,
        )  # fmt: skip
