"""
Paints masks on maps, on a GPU. Needs Triton.

Shape shorthand in this module:

    N: streams
    n: masks of a stream
    K: maps of a stream
    h, w: policy resolution
"""

import torch
import triton
import triton.language as tl

__all__ = ["paint_maximum_triton"]

# Pixels that a program paints.
_PIXELS = 1024


# do_not_specialize: the number of masks must not make a new variant of the kernel.
@triton.jit(do_not_specialize=["n"])
def paint_kernel(masks_ptr, values_ptr, channels_ptr, out_ptr, n, pixels, BLOCK: tl.constexpr):
    """A program paints BLOCK pixels of one map, and reads the masks of that map only."""
    channel, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    masks_ptr += stream * n * pixels
    values_ptr += stream * n
    channels_ptr += stream * n
    out_ptr += stream * tl.num_programs(1) * pixels
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = pixel < pixels
    painted = tl.zeros((BLOCK,), tl.float32)
    for index in range(0, n):
        if tl.load(channels_ptr + index) == channel:
            value = tl.load(values_ptr + index)
            mask = tl.load(masks_ptr + index * pixels + pixel, mask=exists, other=0)
            value = tl.where(mask != 0, value, 0.0)
            painted = tl.maximum(painted, value, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + channel * pixels + pixel, painted, mask=exists)


def paint_maximum_triton(masks, values, channels, num_channels):
    """
    :func:`blockcopy_d2.policy.observation.paint_maximum` by Triton. Masks of value 0 change
    nothing.
    """
    masks = masks.contiguous()
    *streams, number, height, width = masks.shape
    size, pixels = (*streams, num_channels, height, width), height * width
    out = torch.empty(size, dtype=torch.float32, device=masks.device)
    tensors = (masks.view(torch.uint8), values.float().contiguous(), channels.contiguous(), out)
    grid = (triton.cdiv(pixels, _PIXELS), num_channels, *(streams or [1]))
    paint_kernel[grid](*tensors, number, pixels, BLOCK=_PIXELS, num_warps=4)
    return out
