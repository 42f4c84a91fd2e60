"""Copies the active blocks of a tensor of any strides into a map.

Shape shorthand: N streams, C channels, H x W pixels of a map, T x T pixels of a block.
"""

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.launch import Launch
from blockcopy_d2.kernels.tf32 import round_tf32, round_tf32_reference

from .activation import activate, parameters
from .geometry import locate


@triton.jit
def copy_kernel(
    x_ptr,
    strides,
    affine,  # scale and shift, and elements from those of a stream to the next
    blocks_ptr,
    count_ptr,
    tiling,
    out_map,
    C,
    ACTIVATION: tl.constexpr,
    AFFINE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[active] = activation(x * scale + shift); a program copies BM pixels of BC channels."""
    begin(PDL)
    out_ptr, H, W, out_row = out_map
    stride_n, stride_c, stride_y, stride_x = strides
    scale_ptr, shift_ptr, affine_row = affine
    num_pixels = tl.load(count_ptr) * tiling[0] * tiling[0]
    for tile in range(tl.program_id(0), tl.cdiv(num_pixels, BM), tl.num_programs(0)):
        first = tile * BM
        stream, y, x, valid = locate(first + tl.arange(0, BM), blocks_ptr, num_pixels, tiling)
        valid = valid & (y < H) & (x < W)
        channel = tl.program_id(1) * BC + tl.arange(0, BC)
        mask = valid[:, None] & (channel < C)[None, :]
        plane = channel
        if WIDE:
            stream, y, x = stream.to(tl.int64), y.to(tl.int64), x.to(tl.int64)
            plane = plane.to(tl.int64)
        source = x_ptr + (stream * stride_n + y * stride_y + x * stride_x)[:, None]
        value = tl.load(source + (plane * stride_c)[None, :], mask=mask, other=0).to(tl.float32)
        if AFFINE:
            factor = (stream * affine_row)[:, None] + channel[None, :]
            value = value * tl.load(scale_ptr + factor, mask=mask, other=0.0)
            value += tl.load(shift_ptr + factor, mask=mask, other=0.0)
        value = activate(value, ACTIVATION)
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
        channels = out.rows.shape[1]
        bc = min(triton.next_power_of_2(channels), 64)
        bm = 64 if bc > 8 else 256
        grid = (device.programs(tiling.num_pixels, bm), triton.cdiv(channels, bc))
        arguments = (tiling.sides, out.operand, channels)
        constants = dict(ACTIVATION=parameters(activation), AFFINE=scale is not None)
        constants |= dict(PRECISION=precision, BM=bm, BC=bc, num_warps=4, **device.launch_options)
        # The tensor decides whether offsets fit into 32 bits.
        self._launches = [
            Launch(copy_kernel, grid, arguments, {**constants, "WIDE": wide})
            for wide in (False, True)
        ]
        self._wide = out.wide
        self._affine = None
        if scale is not None:
            self._affine = (scale, shift, scale.shape[1] if scale.dim() > 1 else 0)

    def __call__(self, x, blocks):
        """
        Args:
            x: (N, C, H, W) of any strides.
            blocks: BlockList.
        """
        strides = x.stride()
        wide = self._wide or sum(n * s for n, s in zip(x.shape, strides)) >= 2**31
        affine = self._affine or (x, x, 0)
        self._launches[wide](x, strides, affine, blocks.blocks, blocks.count)


def copy_reference(x, *, scale=None, shift=None, activation=None, precision="ieee"):
    """The whole map that the kernel copies in parts, (N, C, H, W), in plain PyTorch."""
    if scale is not None:
        x = x.float() * scale[..., None, None] + shift[..., None, None]
    x = x.clone() if activation is None else activation(x.clone())
    return round_tf32_reference(x) if precision == "tf32" else x
