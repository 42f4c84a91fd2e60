"""The end of a tile of a convolution: bias, residual, activation, and the only write.

Shape shorthand: BM pixels and BN channels of a tile.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from blockcopy_d2.kernels.tf32 import lift_tf32, round_tf32, unlift_tf32

from .activation import activate
from .geometry import pixel_number


class Epilogue(NamedTuple):
    """Common to the writes of a launch.

    Attributes:
        precision: precision of float32 products, "tf32" or "ieee".
        out_lifted, second_lifted, residual_lifted: which maps are lifted, see kernels/tf32.py.
        wide: whether 32 bits do not hold the offset of every element of the maps.
    """

    precision: str
    out_lifted: bool
    second_lifted: bool
    residual_lifted: bool
    wide: bool

    @classmethod
    def of(cls, levels, precision):
        """Returns (kernel arguments for the maps of the first level, Epilogue)."""
        first = levels[0]
        # A launch without a residual or a second map passes another map in its place.
        residual, second = first.residual or first.x, first.second or first.out
        written = [x for level in levels for x in (level.x, level.out, level.second or level.out)]
        maps = (residual, first.out, second)
        operands = tuple(x for map_ in maps for x in (map_.rows, map_.rows.stride(0)))
        lifted = first.out.lifted, second.lifted, residual.lifted
        return operands, cls(precision, *lifted, any(x.wide for x in (*written, residual)))


@triton.jit
def write_tile(
    acc,
    place,
    first_packed,
    columns,
    size,
    bias_ptrs,
    maps,
    SHAPE: tl.constexpr,
    EPILOGUE: tl.constexpr,
    BN: tl.constexpr,
):
    """out = activation(acc + bias + residual), the sums of a tile (BM, BN) in float32.

    `place` is (stream, oy, ox, valid), (BM,) each, of output pixels in maps of `size`; `columns`
    the (BN,) channels among those of their unit, from `first_packed` on as weights are packed, and
    among all. Where two convolutions run as one, some channels go to the second map.
    """
    FIRST_OUT: tl.constexpr = SHAPE.first_outputs
    UNIT_OUT: tl.constexpr = SHAPE.units[2]
    SCALE: tl.constexpr = SHAPE.residual_scale
    FIRST: tl.constexpr = SHAPE.activations[0]
    SECOND: tl.constexpr = SHAPE.activations[1]
    stream, oy, ox, valid = place
    column, channel = columns
    oh, ow = size
    residual_ptr, residual_row, out_ptr, out_row, second_ptr, second_row = maps
    mask = valid[:, None]
    if UNIT_OUT % BN != 0:
        mask = mask & (column < UNIT_OUT)[None, :]
    y = acc + tl.load(bias_ptrs)[None, :]
    if SCALE > 0:
        small = (oh // SCALE, ow // SCALE)
        pixel = pixel_number(stream, oy // SCALE, ox // SCALE, *small, EPILOGUE.wide)
        residual = residual_ptr + (pixel * residual_row)[:, None] + channel[None, :]
        value = tl.load(residual, mask=mask, other=0.0).to(tl.float32)
        y += unlift_tf32(value) if EPILOGUE.residual_lifted else value
    pixel = pixel_number(stream, oy, ox, oh, ow, EPILOGUE.wide)
    place = (pixel, channel)
    out, second = (out_ptr, out_row), (second_ptr - FIRST_OUT, second_row)
    if FIRST_OUT == UNIT_OUT:
        _activate_and_store(y, out, place, mask, FIRST, EPILOGUE.out_lifted, EPILOGUE)
    elif FIRST_OUT % BN == 0:  # a tile belongs to one of the two
        if first_packed < FIRST_OUT:
            _activate_and_store(y, out, place, mask, FIRST, EPILOGUE.out_lifted, EPILOGUE)
        else:
            _activate_and_store(y, second, place, mask, SECOND, EPILOGUE.second_lifted, EPILOGUE)
    else:
        first_mask = mask & (column < FIRST_OUT)[None, :]
        _activate_and_store(y, out, place, first_mask, FIRST, EPILOGUE.out_lifted, EPILOGUE)
        mask = mask & (column >= FIRST_OUT)[None, :]
        _activate_and_store(y, second, place, mask, SECOND, EPILOGUE.second_lifted, EPILOGUE)


@triton.jit
def _activate_and_store(
    y,
    out,
    place,
    mask,
    ACTIVATION: tl.constexpr,
    LIFTED: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    out_ptr, row = out
    pixel, channel = place
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    y = activate(y, ACTIVATION)
    if EPILOGUE.precision == "tf32" and dtype == tl.float32:
        y = lift_tf32(y) if LIFTED else round_tf32(y)
    target = out_ptr + (pixel * row)[:, None] + channel[None, :]
    tl.store(target, y.to(dtype), mask=mask)
