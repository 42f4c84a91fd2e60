"""Kernels of :mod:`..ranking`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl


@triton.jit
def rank_kernel(
    values_ptr,
    best_ptr,
    index_ptr,
    M,
    K,
    nothing,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
):
    """
    A program places BI values. BJ is a multiple of it, so that of all runs of BJ values one holds
    them, and those before and after need no look at the order. "Nothing" gets no place. The last
    program fills the places that are left.
    """
    image = tl.program_id(1)
    values_ptr += image * M
    best_ptr += image * K
    index_ptr += image * K
    if tl.program_id(0) == tl.num_programs(0) - 1:
        number = 0
        for first in range(0, M, BK):
            j = first + tl.arange(0, BK)
            other = tl.load(values_ptr + j, mask=j < M, other=nothing)
            number += tl.sum((other > nothing).to(tl.int32), 0)
        for first in range(0, K, BK):
            slot = first + tl.arange(0, BK)
            left = (slot >= number) & (slot < K)
            tl.store(best_ptr + slot, tl.zeros((BK,), tl.float32) + nothing, mask=left)
            tl.store(index_ptr + slot, tl.zeros((BK,), tl.int64), mask=left)
        return
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    value = tl.load(values_ptr + i, mask=i < M, other=nothing)
    if tl.max(value, 0) <= nothing:
        return
    # Values of "nothing" come before no value that gets a place. One count per pair of lanes, since
    # a sum over lanes takes longer than many comparisons.
    counts = tl.zeros((BI, BJ), tl.int32)
    own = tl.program_id(0) * BI // BJ * BJ
    for first in range(0, own, BJ):
        other = tl.load(values_ptr + first + tl.arange(0, BJ))
        counts += (other[None, :] >= value[:, None]).to(tl.int32)
    j = own + tl.arange(0, BJ)
    other = tl.load(values_ptr + j, mask=j < M, other=nothing)
    equal = (other[None, :] == value[:, None]) & (j[None, :] < i[:, None])
    counts += ((other[None, :] > value[:, None]) | equal).to(tl.int32)
    for first in range(own + BJ, M, BJ):
        j = first + tl.arange(0, BJ)
        other = tl.load(values_ptr + j, mask=j < M, other=nothing)
        counts += (other[None, :] > value[:, None]).to(tl.int32)
    place = tl.sum(counts, axis=1)
    wanted = (value > nothing) & (place < K)
    tl.store(best_ptr + place, value, mask=wanted)
    tl.store(index_ptr + place, i.to(tl.int64), mask=wanted)


def best_values_triton(values, k, nothing=-torch.inf):
    """Runs :func:`best_values` on a GPU."""
    images, size = values.shape
    best = torch.empty(images, k, dtype=torch.float32, device=values.device)
    index = torch.empty(images, k, dtype=torch.int64, device=values.device)
    arguments = (values.contiguous(), best, index, size, k, float(nothing))
    launch = rank_kernel[triton.cdiv(size, 32) + 1, images]
    launch(*arguments, BI=32, BJ=128, BK=1024, num_warps=4)
    return best, index
