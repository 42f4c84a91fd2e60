"""Kernels of :mod:`..dense_candidates`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl

from .. import constants
from .levels import of_level
from .proposals import map_strides, pixel_rows

_NO_SCORE = tl.constexpr(constants.NO_SCORE)
# Scores that a program holds, and anchors at most.
_SCORES, _ANCHORS = 4096, 128


@triton.jit
def dense_score_kernel(
    logits,
    centerness,
    sizes,
    logit_strides,
    centre_strides,
    index_ptr,
    out_ptr,
    A,
    K,
    width,
    threshold,
    CENTERNESS: tl.constexpr,
    PEAKS: tl.constexpr,
    L: tl.constexpr,
    BLOCK: tl.constexpr,
    BK: tl.constexpr,
):
    """
    A program scores BLOCK anchors of a level of an image. PEAKS: out[n, l, m] is the best score of
    anchor m. Else out[n, l, j] are the K scores of the anchor that the index names. -1: no
    candidate.
    """
    row = tl.program_id(1)
    image, level = (row // L).to(tl.int64), row % L
    source, size = of_level(logits, level, L), of_level(sizes, level, L)
    pixels, images = logit_strides
    pixel, stride = of_level(pixels, level, L), of_level(images, level, L)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    anchor = column
    if not PEAKS:
        anchor = tl.load(index_ptr + row * width + column, mask=column < width, other=0)
        anchor = anchor.to(tl.int32)
    exists = (column < width) & (anchor < size)
    k = tl.arange(0, BK)
    source += image * stride
    source += (anchor // A * pixel + anchor % A * K)[:, None] + k[None, :]
    seen = exists[:, None] & (k < K)[None, :]
    score = sigmoid(tl.load(source, mask=seen, other=float("-inf")))
    if CENTERNESS:
        pixels, images = centre_strides
        source, pixel = of_level(centerness, level, L), of_level(pixels, level, L)
        source += image * of_level(images, level, L) + anchor // A * pixel + anchor % A
        centre = sigmoid(tl.load(source, mask=exists, other=0.0))
        score = tl.sqrt_rn(score * centre[:, None])
    # NaN is not above the threshold.
    score = tl.where(seen & (score > threshold), score, _NO_SCORE)
    out_ptr += row.to(tl.int64) * width * (1 if PEAKS else K)
    if PEAKS:
        tl.store(out_ptr + column, tl.max(score, 1), mask=column < width)
    else:
        target = out_ptr + column[:, None] * K + k[None, :]
        tl.store(target, score, mask=(column < width)[:, None] & (k < K)[None, :])


@triton.jit
def sigmoid(logit):
    """float32."""
    return tl.math.div_rn(1.0, 1.0 + tl.exp(-logit.to(tl.float32)))


def peak_scores_triton(logits, centerness, num_classes, threshold):
    """Runs :func:`peak_scores` on a GPU."""
    width = max(x[0].numel() // num_classes for x in logits)
    out = logits[0].new_empty(len(logits[0]), len(logits), width, dtype=torch.float32)
    _launch(logits, centerness, None, out, num_classes, width, threshold)
    return out


def pair_scores_triton(logits, centerness, index, num_classes, threshold):
    """Runs :func:`pair_scores` on a GPU."""
    out = torch.empty(*index.shape, num_classes, dtype=torch.float32, device=index.device)
    _launch(logits, centerness, index, out, num_classes, index.shape[2], threshold)
    return out


def _launch(logits, centerness, index, out, num_classes, width, threshold):
    logits = [pixel_rows(x) for x in logits]
    centres = logits if centerness is None else [pixel_rows(x) for x in centerness]
    sizes = tuple(x[0].numel() // num_classes for x in logits)
    num_anchors, images, levels = logits[0].shape[1] // num_classes, len(logits[0]), len(logits)
    block_k = triton.next_power_of_2(num_classes)
    block = max(min(_SCORES // block_k, _ANCHORS), 1)
    maps = (tuple(logits), tuple(centres), sizes, map_strides(logits), map_strides(centres))
    tensors = (out if index is None else index.contiguous(), out)
    numbers = (num_anchors, num_classes, width, float(threshold))
    kind = dict(CENTERNESS=centerness is not None, PEAKS=index is None)
    constants = dict(L=levels, BLOCK=block, BK=block_k, num_warps=4)
    grid = (triton.cdiv(width, block), images * levels)
    dense_score_kernel[grid](*maps, *tensors, *numbers, **kind, **constants)
