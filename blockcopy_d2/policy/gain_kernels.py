"""
The information gain of detections with masks per block, on a GPU: Algorithm 1 in two launches,
besides the count of common pixels. Needs Triton.

Shape shorthand in this module:

    N: streams
    n, m: detections of the current and of the previous frame
    GH, GW: rows and columns of the block grid
    P: side of a block in policy pixels
"""

import torch
import triton
import triton.language as tl

from .overlap_kernels import common_pixels_triton

__all__ = ["mask_block_gain_triton", "serves"]

# One program compares all detections of a stream.
MOST_DETECTIONS, MOST_BLOCKS = 256, 4096


# do_not_specialize: the number of detections must not make a new variant of the kernel.
@triton.jit(do_not_specialize=["n", "m"])
def extents_kernel(
    current_ptr,
    previous_ptr,
    areas_ptr,
    touched_ptr,
    n,
    m,
    rows,
    columns,
    P: tl.constexpr,
    BX: tl.constexpr,
):
    """A program counts the pixels of a mask in one row of blocks, and names those it touches."""
    row, stream = tl.program_id(1), tl.program_id(2).to(tl.int64)
    detection = tl.program_id(0)
    width = columns * P
    pixels = rows * P * width
    mask_ptr = current_ptr + (stream * n + detection) * pixels
    if detection >= n:
        mask_ptr = previous_ptr + (stream * m + detection - n) * pixels
    out = (stream * (n + m) + detection) * rows + row
    y = row * P + tl.arange(0, P)
    total = 0
    for first in range(0, columns, BX):
        x = first * P + tl.arange(0, BX * P)
        exists = (x < width)[None, :] & (y >= 0)[:, None]
        mask = tl.load(mask_ptr + y[:, None] * width + x[None, :], mask=exists, other=0)
        counts = tl.sum(mask.to(tl.int32), 0)
        total += tl.sum(counts, 0)
        counts = tl.sum(tl.reshape(counts, (BX, P)), 1)
        column = first + tl.arange(0, BX)
        there = touched_ptr + out * columns + column
        tl.store(there, (counts > 0).to(tl.uint8), mask=column < columns)
    tl.store(areas_ptr + out, total.to(tl.float32))


@triton.jit
def _areas(areas_ptr, first, detection, exists, rows):
    """Pixels of masks: the sum over the rows of blocks."""
    total = tl.zeros(detection.shape, tl.float32)
    for row in range(0, rows):
        total += tl.load(areas_ptr + (first + detection) * rows + row, mask=exists, other=0.0)
    return total


@triton.jit(do_not_specialize=["n", "m"])
def gain_kernel(
    common_ptr,
    areas_ptr,
    touched_ptr,
    current,
    previous,
    weights_ptr,
    gain_ptr,
    n,
    m,
    rows,
    columns,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BLOCKS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """
    A program per stream: each detection takes the previous one of its class that it overlaps most,
    and a block the largest gain of the detections that touch it.
    """
    scores_ptr, classes_ptr = current
    old_scores_ptr, old_classes_ptr = previous
    stream, both = tl.program_id(0).to(tl.int64), n + m
    weights_ptr += stream * both
    old = tl.arange(0, BM)
    old_exists = old < m
    old_class = tl.load(old_classes_ptr + stream * m + old, mask=old_exists, other=-1)
    old_area = _areas(areas_ptr, stream * both + n, old, old_exists, rows)
    change = tl.full((BM,), -1.0, tl.float32)
    for first in range(0, n, BN):
        new = first + tl.arange(0, BN)
        exists = new < n
        pair = exists[:, None] & old_exists[None, :]
        place = (stream * n + new)[:, None] * m + old[None, :]
        common = tl.load(common_ptr + place, mask=pair, other=0.0)
        area = _areas(areas_ptr, stream * both, new, exists, rows)
        union = tl.maximum(area[:, None] + old_area[None, :] - common, 1.0)
        label = tl.load(classes_ptr + stream * n + new, mask=exists, other=-2)
        alike = pair & (label[:, None] == old_class[None, :])
        iou = tl.where(alike, tl.math.div_rn(common, union), 0.0)
        best = tl.max(iou, 1)
        novelty = 1 - best
        # The first of the best; none where nothing overlaps.
        match = tl.where((iou == best[:, None]) & (best > 0)[:, None], old[None, :], BM)
        match = tl.min(match, 1)
        matched = (match[:, None] == old[None, :]) & exists[:, None]
        change = tl.maximum(change, tl.max(tl.where(matched, novelty[:, None], -1.0), 0))
        score = tl.load(scores_ptr + stream * n + new, mask=exists, other=0.0)
        tl.store(weights_ptr + new, novelty * score, mask=exists)
    change = tl.where(change < 0, 1.0, change)
    score = tl.load(old_scores_ptr + stream * m + old, mask=old_exists, other=0.0)
    tl.store(weights_ptr + n + old, change * score, mask=old_exists)
    tl.debug_barrier()
    blocks = rows * columns
    block = tl.arange(0, BLOCKS)
    gain = tl.zeros((BLOCKS,), tl.float32)
    for first in range(0, both, CHUNK):
        one = first + tl.arange(0, CHUNK)
        weight = tl.load(weights_ptr + one, mask=one < both, other=0.0)
        here = (stream * both + one)[:, None] * blocks + block[None, :]
        exists = (one < both)[:, None] & (block < blocks)[None, :]
        touched = tl.load(touched_ptr + here, mask=exists, other=0)
        gains = tl.where(touched != 0, weight[:, None], 0.0)
        # A maximum over an axis would lose values that are not numbers.
        broken = tl.max((gains != gains).to(tl.int32), 0)
        gains = tl.max(tl.where(gains != gains, 0.0, gains), 0)
        gain = tl.where((broken != 0) | (gain != gain), float("nan"), tl.maximum(gain, gains))
    tl.store(gain_ptr + stream * blocks + block, gain, mask=block < blocks)


def serves(current, previous):
    """
    Args:
        current, previous (DetectionMasks): detections of one stream or of N, without boxes.

    Returns:
        bool: whether there are as many detections and blocks as the kernels take.
    """
    n, (m, height, width) = current.masks.shape[-3], previous.masks.shape[-3:]
    blocks = height * width // current.pixels_per_block**2
    return 0 < n and 0 < m <= MOST_DETECTIONS and blocks <= MOST_BLOCKS


def mask_block_gain_triton(current, previous):
    """
    :func:`blockcopy_d2.policy.information_gain.instance_block_gain` by Triton, of detections
    without boxes.
    """
    *streams, n, height, width = current.masks.shape
    m, side, device = previous.masks.shape[-3], current.pixels_per_block, current.masks.device
    (rows, columns), number = (height // side, width // side), streams[0] if streams else 1
    new, old = (x.masks.contiguous().view(number, -1, height * width) for x in (current, previous))
    common = common_pixels_triton(new, old)
    areas = torch.empty(number, n + m, rows, device=device)
    touched = torch.empty(number, n + m, rows, columns, dtype=torch.uint8, device=device)
    masks, sizes = (new.view(torch.uint8), old.view(torch.uint8)), (n, m, rows, columns)
    constants = {"P": side, "BX": max(512 // side, 1), "num_warps": 4}
    extents_kernel[(n + m, rows, number)](*masks, areas, touched, *sizes, **constants)
    weights = torch.empty(number, n + m, device=device)
    gain = torch.empty(*streams, rows, columns, device=device)
    seen = [(x.scores.float().contiguous(), x.classes.contiguous()) for x in (current, previous)]
    blocks = max(triton.next_power_of_2(rows * columns), 16)
    constants = {"BN": 64, "BM": max(triton.next_power_of_2(m), 16), "BLOCKS": blocks}
    constants |= {"CHUNK": max(min(8192 // blocks, 64), 2), "num_warps": 8}
    gain_kernel[(number,)](common, areas, touched, *seen, weights, gain, *sizes, **constants)
    return gain
