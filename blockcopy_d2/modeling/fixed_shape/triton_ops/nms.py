"""Kernels of :mod:`..nms`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl

from .boxes import load_boxes

# Boxes that a program compares with those of a word.
_BOXES = 64


@triton.jit
def overlap_kernel(
    boxes_ptr,
    valid_ptr,
    labels_ptr,
    bits_ptr,
    M,
    W,
    threshold,
    LABELS: tl.constexpr,
    BJ: tl.constexpr,
):
    """
    bits[g, j, w]: the boxes of word w that come before j and overlap it by more than threshold. A
    program compares BJ boxes with those of one word.
    """
    group, word = tl.program_id(2).to(tl.int64), tl.program_id(1)
    boxes_ptr += group * M * 4
    j = tl.program_id(0) * BJ + tl.arange(0, BJ)
    exists = j < M
    # Rows of invalid boxes are never read.
    if tl.max(tl.load(valid_ptr + group * M + j, mask=exists, other=0).to(tl.int32), 0) == 0:
        return
    bits = tl.zeros((BJ,), tl.int32)
    if word * 32 < tl.program_id(0) * BJ + BJ:
        bit = tl.arange(0, 32)
        i = word * 32 + bit
        x0, y0, x1, y1 = load_boxes(boxes_ptr + j * 4, exists)
        x0, y0, x1, y1 = x0[:, None], y0[:, None], x1[:, None], y1[:, None]
        ox0, oy0, ox1, oy1 = load_boxes(boxes_ptr + i * 4, i < M)
        ox0, oy0, ox1, oy1 = ox0[None, :], oy0[None, :], ox1[None, :], oy1[None, :]
        width = tl.maximum(tl.minimum(x1, ox1) - tl.maximum(x0, ox0), 0.0)
        height = tl.maximum(tl.minimum(y1, oy1) - tl.maximum(y0, oy0), 0.0)
        common = width * height
        union = (ox1 - ox0) * (oy1 - oy0) + (x1 - x0) * (y1 - y0) - common
        # 0 / 0 of two empty boxes is NaN, which overlaps nothing.
        hit = (tl.math.div_rn(common, union) > threshold) & (i[None, :] < j[:, None])
        if LABELS:
            label = tl.load(labels_ptr + group * M + j, mask=exists, other=-1)
            other_label = tl.load(labels_ptr + group * M + i, mask=i < M, other=-1)
            hit &= label[:, None] == other_label[None, :]
        bits = tl.sum(hit.to(tl.int32) << bit[None, :], axis=1)
    target = bits_ptr + (group * W * 32 + j) * W + word
    tl.store(target, bits, mask=j < W * 32)


@triton.jit
def pack(keep, BLOCK: tl.constexpr):
    """int32 (BLOCK / 32,): a bit for each of BLOCK zeros and ones."""
    lanes = tl.reshape(keep, (BLOCK // 32, 32)) << tl.arange(0, 32)[None, :]
    return tl.sum(lanes, axis=1)


@triton.jit
def keep_kernel(valid_ptr, bits_ptr, keep_ptr, M, W, BLOCK: tl.constexpr):
    """
    One program per group. BLOCK boxes at a time reach their fixed point in registers, given the
    earlier boxes that are kept.
    """
    group = tl.program_id(0).to(tl.int64)
    valid_ptr += group * M
    keep_ptr += group * M
    bits_ptr += group * W * 32 * W
    lane = tl.arange(0, BLOCK)
    words = tl.arange(0, BLOCK // 32)
    for first in range(0, M, BLOCK):
        j = first + lane
        candidates = tl.load(valid_ptr + j, mask=j < M, other=0).to(tl.int32)
        keep = candidates
        if tl.max(candidates, 0) > 0:
            row = bits_ptr + j[:, None] * W + words[None, :]
            for before in range(0, first, BLOCK):
                bits = tl.load(row + before // 32, mask=(candidates > 0)[:, None], other=0)
                kept = tl.load(keep_ptr + before + lane).to(tl.int32)
                suppressed = tl.max(((bits & pack(kept, BLOCK)[None, :]) != 0).to(tl.int32), 1)
                candidates = tl.where(suppressed > 0, 0, candidates)
            bits = tl.load(row + first // 32, mask=(candidates > 0)[:, None], other=0)
            keep = candidates
            changed = 1
            while changed > 0:
                kept = pack(keep, BLOCK)
                suppressed = tl.max(((bits & kept[None, :]) != 0).to(tl.int32), 1)
                after = tl.where(suppressed > 0, 0, candidates)
                changed = tl.max((after != keep).to(tl.int32), 0)
                keep = after
        tl.store(keep_ptr + j, keep.to(tl.uint8), mask=j < M)
        # The next boxes read this from memory, including other threads' parts.
        tl.debug_barrier()


def nms_triton(boxes, valid, threshold, labels=None, *, largest_block=512):
    """Runs :func:`nms` on a GPU. A program holds all bits of `largest_block` boxes in registers."""
    groups, size = valid.shape
    block = min(max(triton.next_power_of_2(size), 32), largest_block)
    words = triton.cdiv(size, block) * block // 32
    boxes, valid = boxes.contiguous(), valid.contiguous().view(torch.uint8)
    labels = None if labels is None else labels.contiguous()
    bits = torch.empty(groups, words * 32, words, dtype=torch.int32, device=boxes.device)
    keep = torch.empty(groups, size, dtype=torch.uint8, device=boxes.device)
    labelled = labels is not None
    tensors = (boxes, valid, labels if labelled else valid, bits)
    overlap_kernel[triton.cdiv(words * 32, _BOXES), words, groups](
        *tensors, size, words, threshold, LABELS=labelled, BJ=_BOXES, num_warps=4
    )
    keep_kernel[(groups,)](
        valid, bits, keep, size, words, BLOCK=block, num_warps=max(block // 32, 1)
    )
    return keep.view(torch.bool)
