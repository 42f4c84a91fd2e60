"""
Painting masks on maps, on a GPU: needs Triton.

Shape shorthand in this module:

    n: masks
    K: maps
    h, w: policy resolution
"""

import torch
import triton
import triton.language as tl

__all__ = ["paint_maximum_triton"]


# The number of masks must not make a new variant of the kernel.
@triton.jit(do_not_specialize=["n"])
def paint_kernel(masks_ptr, values_ptr, channels_ptr, out_ptr, n, pixels, BLOCK: tl.constexpr):
    """A program paints BLOCK pixels of one map, and reads the masks of that map only."""
    channel = tl.program_id(1)
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
    """As :func:`blockcopy_d2.policy.observation.paint_maximum`; masks of value 0 change nothing."""
    masks = masks.contiguous()
    number, *size = masks.shape
    out = torch.empty(num_channels, *size, dtype=torch.float32, device=masks.device)
    pixels = out[0].numel()
    tensors = (masks.view(torch.uint8), values.float().contiguous(), channels.contiguous(), out)
    grid = (triton.cdiv(pixels, 1024), num_channels)
    paint_kernel[grid](*tensors, number, pixels, BLOCK=1024, num_warps=4)
    return out
