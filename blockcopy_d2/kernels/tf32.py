"""float32 values that tensor cores take as they are.

TF32 products cut off the last 13 bits of their factors, always towards zero. The error adds up over
the layers of a network: 1 % in a ResNet-50, against 0.1 % with rounded factors. So inputs of
convolutions are rounded where they are written, and weights once.

A map that is also added to the result of a later convolution would lose those bits in every
residual block. Such maps are lifted instead: half of the unit that is cut off is added to a value's
bits, so that cutting off rounds to nearest. The addition subtracts it again and has the exact
value.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def round_tf32(y):
    """Rounds to the nearest value of 10 fraction bits, ties to even. Infinities and NaN stay."""
    bits = y.to(tl.int32, bitcast=True)
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & -8192
    return tl.where(y == y, rounded.to(tl.float32, bitcast=True), y)


@triton.jit
def lift_tf32(y):
    """Rounds to the nearest value of 10 fraction bits, ties away from zero.
    Infinities become NaN."""
    lifted = (y.to(tl.int32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True)
    return tl.where(y == y, lifted, y)


@triton.jit
def unlift_tf32(y):
    """Inverts lift_tf32()."""
    value = (y.to(tl.int32, bitcast=True) - 0x1000).to(tl.float32, bitcast=True)
    return tl.where(y == y, value, y)


def round_tf32_reference(y):
    """round_tf32() of a tensor. Types other than float32 are returned as they are."""
    if y.dtype != torch.float32:
        return y
    bits = y.view(torch.int32)
    rounded = ((bits + 0xFFF + ((bits >> 13) & 1)) & -8192).view(torch.float32)
    return torch.where(y.isnan(), y, rounded)
