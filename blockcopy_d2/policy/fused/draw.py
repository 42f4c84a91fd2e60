"""
Draws blocks from the probabilities given by logits, in one launch.

Shape shorthand in this module:

    N: streams
    GH, GW: rows and columns of the block grid
"""

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.device import device_of

__all__ = ["draw"]

# Blocks that a program draws at a time.
_BLOCKS = 1024


@triton.jit
def draw_kernel(
    logits_ptr, uniform_ptr, active_ptr, num_blocks, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """A program draws the blocks of a stream: all of them if any logit is not finite."""
    begin(PDL)
    start = tl.program_id(0) * num_blocks
    block = tl.arange(0, BLOCK)
    unusable = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, num_blocks, BLOCK):
        exists = first + block < num_blocks
        logits = tl.load(logits_ptr + start + first + block, mask=exists, other=0.0)
        # Zero if the logit is finite, else NaN.
        unusable |= (logits - logits != 0).to(tl.int32)
    everything = tl.max(unusable, 0) != 0
    for first in range(0, num_blocks, BLOCK):
        exists = first + block < num_blocks
        logits = tl.load(logits_ptr + start + first + block, mask=exists, other=0.0)
        uniform = tl.load(uniform_ptr + start + first + block, mask=exists, other=0.0)
        active = (uniform < 1 / (1 + tl.exp(-logits))) | everything
        tl.store(active_ptr + start + first + block, active.to(tl.uint8), mask=exists)


def draw(logits, uniform):
    """
    Args:
        logits (Tensor): float (N, GH, GW).
        uniform (Tensor): float (N, GH, GW), drawn from [0, 1).

    Returns:
        Tensor: bool (N, GH, GW), see :func:`blockcopy_d2.policy.learned.draw`.
    """
    active = torch.empty(logits.shape, dtype=torch.bool, device=logits.device)
    blocks, options = logits[0].numel(), device_of(logits.device).launch_options
    arguments = (logits.contiguous(), uniform.contiguous(), active.view(torch.uint8), blocks)
    draw_kernel[(len(logits),)](*arguments, BLOCK=_BLOCKS, num_warps=4, **options)
    return active
