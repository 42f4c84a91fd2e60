"""float32 values that tensor cores take as they are.

TF32 products cut off the last 13 bits of their factors, always towards zero, which adds up over
the layers of a network: 1 % in a ResNet-50, where rounded factors leave 0.1 %. So what a
convolution will read is rounded where it is written, and weights once.

What is also added to the result of a later convolution would lose those bits with every residual
block. Such maps are lifted instead: half of what is cut off is added to a value's bits, so that the
product cuts off to the nearest, and who adds it takes that back and has the value itself.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def round_tf32(y):
    """Nearest value of 10 fraction bits, ties to even; infinities and NaN stay."""
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
    """The value that lift_tf32() was given."""
    value = (y.to(tl.int32, bitcast=True) - 0x1000).to(tl.float32, bitcast=True)
    return tl.where(y == y, value, y)


def round_tf32_reference(y):
    """round_tf32() of a tensor; other types than float32 as they are."""
    if y.dtype != torch.float32:
        return y
    bits = y.view(torch.int32)
    rounded = ((bits + 0xFFF + ((bits >> 13) & 1)) & -8192).view(torch.float32)
    return torch.where(y.isnan(), y, rounded)
