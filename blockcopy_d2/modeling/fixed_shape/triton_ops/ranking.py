"""Kernels of :mod:`..ranking`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl

from .boxes import load_boxes, store_boxes


@triton.jit
def _load(values_ptr, keep_ptr, j, exists, nothing, KEEP: tl.constexpr):
    """Values, "nothing" for those that are not kept."""
    value = tl.load(values_ptr + j, mask=exists, other=nothing).to(tl.float32)
    if KEEP:
        value = tl.where(tl.load(keep_ptr + j, mask=exists, other=0) != 0, value, nothing)
    return value


@triton.jit
def rank_kernel(
    values_ptr,
    keep_ptr,
    boxes_ptr,
    best_ptr,
    index_ptr,
    M,
    K,
    nothing,
    KEEP: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
):
    """
    A program places BI values. BJ is a multiple of it, so that of all runs of BJ values one holds
    them, and those before and after need no look at the order. "Nothing" gets no place. The last
    program fills the places that are left. With KEEP, other values than those count as "nothing",
    and boxes are written in place of indices.
    """
    image = tl.program_id(1)
    values_ptr += image * M
    keep_ptr += image * M
    best_ptr += image * K
    index_ptr += image * K * (4 if KEEP else 1)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        number = 0
        for first in range(0, M, BK):
            j = first + tl.arange(0, BK)
            other = _load(values_ptr, keep_ptr, j, j < M, nothing, KEEP)
            number += tl.sum((other > nothing).to(tl.int32), 0)
        for first in range(0, K, BK):
            slot = first + tl.arange(0, BK)
            left = (slot >= number) & (slot < K)
            tl.store(best_ptr + slot, tl.zeros((BK,), tl.float32) + nothing, mask=left)
            if KEEP:
                zero = tl.zeros((BK,), tl.float32)
                store_boxes(index_ptr, slot, zero, zero, zero, zero, left)
            else:
                tl.store(index_ptr + slot, tl.zeros((BK,), tl.int64), mask=left)
        return
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    value = _load(values_ptr, keep_ptr, i, i < M, nothing, KEEP)
    if tl.max(value, 0) <= nothing:
        return
    # Values of "nothing" come before no value that gets a place. One count per pair of lanes, since
    # a sum over lanes takes longer than many comparisons.
    counts = tl.zeros((BI, BJ), tl.int32)
    own = tl.program_id(0) * BI // BJ * BJ
    for first in range(0, own, BJ):
        j = first + tl.arange(0, BJ)
        other = _load(values_ptr, keep_ptr, j, j < M, nothing, KEEP)
        counts += (other[None, :] >= value[:, None]).to(tl.int32)
    j = own + tl.arange(0, BJ)
    other = _load(values_ptr, keep_ptr, j, j < M, nothing, KEEP)
    equal = (other[None, :] == value[:, None]) & (j[None, :] < i[:, None])
    counts += ((other[None, :] > value[:, None]) | equal).to(tl.int32)
    for first in range(own + BJ, M, BJ):
        j = first + tl.arange(0, BJ)
        other = _load(values_ptr, keep_ptr, j, j < M, nothing, KEEP)
        counts += (other[None, :] > value[:, None]).to(tl.int32)
    place = tl.sum(counts, axis=1)
    wanted = (value > nothing) & (place < K)
    tl.store(best_ptr + place, value, mask=wanted)
    if KEEP:
        x0, y0, x1, y1 = load_boxes(boxes_ptr + (image * M + i) * 4, wanted)
        store_boxes(index_ptr, place, x0, y0, x1, y1, wanted)
    else:
        tl.store(index_ptr + place, i.to(tl.int64), mask=wanted)


def best_values_triton(values, k, nothing=-torch.inf):
    """Runs :func:`best_values` on a GPU."""
    index = torch.empty(len(values), k, dtype=torch.int64, device=values.device)
    return _rank(values, None, None, index, k, nothing), index


def best_boxes_triton(values, boxes, keep, k):
    """Runs :func:`best_boxes` on a GPU."""
    out = torch.empty(len(values), k, 4, dtype=torch.float32, device=values.device)
    keep = keep.contiguous().view(torch.uint8)
    return out, _rank(values, keep, boxes.contiguous(), out, k, -torch.inf)


def _rank(values, keep, boxes, index, k, nothing):
    images, size = values.shape
    values = values.contiguous()
    best = torch.empty(images, k, dtype=torch.float32, device=values.device)
    keep, boxes, keeps = (values, values, False) if keep is None else (keep, boxes, True)
    launch = rank_kernel[triton.cdiv(size, 32) + 1, images]
    tensors = values, keep, boxes, best, index
    constants = {"KEEP": keeps, "BI": 32, "BJ": 128, "BK": 1024, "num_warps": 4}
    launch(*tensors, size, k, float(nothing), **constants)
    return best
