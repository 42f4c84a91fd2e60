"""Kernels of :mod:`..proposals`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl

from .boxes import (
    clip,
    clip_limits,
    decode,
    decode_linear,
    is_linear,
    load_boxes,
    store_boxes,
    transform_numbers,
)
from .levels import of_level

# Candidates that a program decodes.
_CANDIDATES = 128


@triton.jit
def decode_proposals_kernel(
    deltas,
    anchors,
    sizes,
    pixel_strides,
    image_strides,
    index_ptr,
    logits_ptr,
    out_ptr,
    valid_ptr,
    A,
    k,
    transform,
    limits,
    least_side,
    LINEAR: tl.constexpr,
    L: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program decodes BLOCK of the k candidates of a level of an image."""
    row = tl.program_id(1)
    level = row % L
    delta, anchor = of_level(deltas, level, L), of_level(anchors, level, L)
    pixel, image = of_level(pixel_strides, level, L), of_level(image_strides, level, L)
    size = of_level(sizes, level, L)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < k
    candidate = row * k + column
    index = tl.load(index_ptr + candidate, mask=mask, other=0).to(tl.int32)
    exists = mask & (index < size)
    delta += (row // L).to(tl.int64) * image + index // A * pixel + index % A * 4
    anchor += index * 4
    found, anchor = load_boxes(delta, exists), load_boxes(anchor, exists)
    if LINEAR:
        x0, y0, x1, y1, finite = decode_linear(found, anchor, transform)
    else:
        x0, y0, x1, y1, finite = decode(found, anchor, transform)
    x0, y0, x1, y1 = clip(x0, y0, x1, y1, limits)
    logit = tl.load(logits_ptr + candidate, mask=mask, other=0.0).to(tl.float32)
    valid = exists & finite & (tl.abs(logit) < float("inf"))
    valid &= (x1 - x0 > least_side) & (y1 - y0 > least_side)
    store_boxes(out_ptr, candidate, x0, y0, x1, y1, mask)
    tl.store(valid_ptr + candidate, valid.to(tl.uint8), mask=mask)


def pixel_rows(x):
    """
    Returns the same map with the channels of a pixel together, and pixels at a fixed distance.
    """
    if x.stride(1) == 1 and x.stride(2) == x.shape[3] * x.stride(3):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def map_strides(maps):
    """Returns the strides of a pixel and of an image, for every level."""
    # The stride of a dimension of size 1 is meaningless.
    pixels = tuple(x.stride(3) if x.shape[3] > 1 else x.stride(2) for x in maps)
    return pixels, tuple(x.stride(0) for x in maps)


def decode_candidates_triton(deltas, anchors, index, logits, transform, image_size, least_side):
    """Runs :func:`decode_candidates` on a GPU."""
    deltas = [pixel_rows(x) for x in deltas]
    sizes = tuple(len(x) for x in anchors)
    images, levels, k = index.shape
    boxes = torch.empty(images, levels, k, 4, dtype=torch.float32, device=index.device)
    valid = torch.empty(images, levels, k, dtype=torch.uint8, device=index.device)
    maps = (tuple(deltas), tuple(anchors), sizes, *map_strides(deltas))
    tensors = (index.contiguous(), logits.contiguous(), boxes, valid)
    num_anchors = deltas[0].shape[1] // 4
    numbers = transform_numbers(transform), clip_limits(image_size), float(least_side)
    constants = dict(LINEAR=is_linear(transform), L=levels, BLOCK=_CANDIDATES, num_warps=4)
    grid = triton.cdiv(k, _CANDIDATES), images * levels
    decode_proposals_kernel[grid](*maps, *tensors, num_anchors, k, *numbers, **constants)
    return boxes, valid.view(torch.bool)
