"""What convolutions do with a finished tile: bias, residual, activation, and the only write.

Shape shorthand: BM pixels and BN channels of a tile.
"""

import triton
import triton.language as tl

from blockcopy_d2.kernels.tf32 import lift_tf32, round_tf32, unlift_tf32

from .activation import activate


@triton.jit
def write_tile(
    acc, stream, oy, ox, valid, first_packed, column, channel, oh, ow, bias_ptrs, residual_ptr,
    residual_row, out_ptr, out_row, second_ptr, second_row,
    activation_first, activation_second, second_activation_first, second_activation_second,
    UNIT_OUT: tl.constexpr, FIRST_OUT: tl.constexpr, RESIDUAL_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr, SECOND_ACTIVATION: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr, OUT_LIFTED: tl.constexpr, SECOND_LIFTED: tl.constexpr,
    RESIDUAL_LIFTED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out = activation(acc + bias + residual), the sums of a tile (BM, BN) in float32.

    `stream`, `oy`, `ox`, `valid` (BM,) tell the output pixels in maps of `oh` x `ow`; `column`
    (BN,) the channels among the UNIT_OUT of their unit, `channel` among all. Of two convolutions
    that run as one, channels from FIRST_OUT on go to the map `second`. Which maps are LIFTED: see
    kernels/tf32.py.
    """
    mask = valid[:, None]
    if UNIT_OUT % BN != 0:
        mask = mask & (column < UNIT_OUT)[None, :]
    out = acc + tl.load(bias_ptrs)[None, :]
    if RESIDUAL_SCALE > 0:
        pixel = stream * (oh // RESIDUAL_SCALE) + oy // RESIDUAL_SCALE
        pixel = pixel * (ow // RESIDUAL_SCALE) + ox // RESIDUAL_SCALE
        if WIDE:
            pixel = pixel.to(tl.int64)
        residual = residual_ptr + (pixel * residual_row)[:, None] + channel[None, :]
        value = tl.load(residual, mask=mask, other=0.0).to(tl.float32)
        out += unlift_tf32(value) if RESIDUAL_LIFTED else value
    pixel = (stream * oh + oy) * ow + ox
    if WIDE:
        pixel = pixel.to(tl.int64)
    second_base = second_ptr - FIRST_OUT
    if FIRST_OUT == UNIT_OUT:
        _activate_and_store(
            out, out_ptr, pixel, out_row, channel, mask, activation_first, activation_second,
            ACTIVATION, PRECISION, OUT_LIFTED,
        )  # fmt: skip
    elif FIRST_OUT % BN == 0:  # a tile belongs to one of the two
        if first_packed < FIRST_OUT:
            _activate_and_store(
                out, out_ptr, pixel, out_row, channel, mask, activation_first, activation_second,
                ACTIVATION, PRECISION, OUT_LIFTED,
            )  # fmt: skip
        else:
            _activate_and_store(
                out, second_base, pixel, second_row, channel, mask, second_activation_first,
                second_activation_second, SECOND_ACTIVATION, PRECISION, SECOND_LIFTED,
            )  # fmt: skip
    else:
        _activate_and_store(
            out, out_ptr, pixel, out_row, channel, mask & (column < FIRST_OUT)[None, :],
            activation_first, activation_second, ACTIVATION, PRECISION, OUT_LIFTED,
        )  # fmt: skip
        _activate_and_store(
            out, second_base, pixel, second_row, channel, mask & (column >= FIRST_OUT)[None, :],
            second_activation_first, second_activation_second, SECOND_ACTIVATION, PRECISION,
            SECOND_LIFTED,
        )  # fmt: skip


@triton.jit
def _activate_and_store(
    out, out_ptr, pixel, row, channel, mask, activation_first, activation_second,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, LIFTED: tl.constexpr,
):  # fmt: skip
    out = activate(out, activation_first, activation_second, ACTIVATION)
    if PRECISION == "tf32" and out_ptr.dtype.element_ty == tl.float32:
        out = lift_tf32(out) if LIFTED else round_tf32(out)
    target = out_ptr + (pixel * row)[:, None] + channel[None, :]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=mask)
