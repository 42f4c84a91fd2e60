"""Kernels of :mod:`..mask_selection`, whose shape shorthand is used here."""

import math

import torch
import triton
import triton.language as tl

# Pixels of a mask that a program writes.
_PIXELS = 1024


@triton.jit
def mask_kernel(logits_ptr, classes_ptr, out_ptr, P, K, BLOCK: tl.constexpr):
    """A program writes BLOCK pixels of the mask of a region."""
    region, M = tl.program_id(0).to(tl.int64), 2 * P
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists, y, x = pixel < M * M, pixel // M, pixel % M
    label = 0
    if K > 1:
        label = tl.load(classes_ptr + region).to(tl.int32)
    source = (y // 2 * P + x // 2) * 4 + y % 2 * 2 + x % 2
    source = (region * M * M + source) * K + label
    logit = tl.load(logits_ptr + source, mask=exists, other=0.0).to(tl.float32)
    value = tl.math.div_rn(1.0, 1.0 + tl.exp(-logit))
    tl.store(out_ptr + region * M * M + pixel, value, mask=exists)


def select_masks_triton(logits, classes):
    """Runs :func:`select_masks` on a GPU."""
    regions, pixels, num_classes = logits.shape
    side = math.isqrt(pixels // 4)
    out = torch.empty(regions, 2 * side, 2 * side, dtype=torch.float32, device=logits.device)
    grid = (regions, triton.cdiv(pixels, _PIXELS))
    tensors = (logits.contiguous(), classes.contiguous(), out)
    mask_kernel[grid](*tensors, side, num_classes, BLOCK=_PIXELS, num_warps=4)
    return out
