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
    A program places BI values. Values of "nothing" get no place and are not counted. The last
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
    place = tl.zeros((BI,), tl.int32)
    for first in range(0, M, BJ):
        j = first + tl.arange(0, BJ)
        other = tl.load(values_ptr + j, mask=j < M, other=nothing)
        if tl.max(other, 0) > nothing:
            before = (other[None, :] == value[:, None]) & (j[None, :] < i[:, None])
            before = before | (other[None, :] > value[:, None])
            place += tl.sum(before.to(tl.int32), axis=1)
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
