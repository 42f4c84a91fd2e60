"""Kernels of :mod:`..ranking`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl

from .boxes import load_boxes, store_boxes

# Values of a program, those that it compares them with at a time, and its warps.
_BLOCKS = (8, 1024, 4)
# Values, or places, that the last program looks at together.
_COUNTED = 4096
# Kinds of results: indices of the values, numbers that come with them, boxes, or boxes and classes
# of candidates, and whether there is one.
_INDICES, _NUMBERS, _BOXES, _CANDIDATES = map(tl.constexpr, range(4))


@triton.jit
def _load(values_ptr, keep_ptr, j, exists, nothing, KIND: tl.constexpr):
    """Values, "nothing" for those that are not kept."""
    value = tl.load(values_ptr + j, mask=exists, other=nothing).to(tl.float32)
    if KIND == _BOXES:
        value = tl.where(tl.load(keep_ptr + j, mask=exists, other=0) != 0, value, nothing)
    return value


@triton.jit
def _write(out, payload, image, place, i, mask, M, K, FILL: tl.constexpr, KIND: tl.constexpr):
    """Writes what belongs to the values `i` in their places; zeros if they FILL what is left."""
    target = image * K + place
    if KIND == _BOXES or KIND == _CANDIDATES:
        payload_ptr, sets, num_classes = payload
        # The boxes of a candidate are those of all classes, or one for all.
        box = i // (num_classes // sets)
        read = mask
        if FILL:
            read = mask & (i < 0)
        x0, y0, x1, y1 = load_boxes(
            payload_ptr + (image * (M // num_classes * sets) + box) * 4, read
        )
        store_boxes(out[0], target, x0, y0, x1, y1, mask)
        if KIND == _CANDIDATES:
            found = tl.zeros_like(i) + (0 if FILL else 1)
            tl.store(out[1] + target, (found * (i % num_classes)).to(tl.int64), mask=mask)
            tl.store(out[2] + target, found.to(tl.uint8), mask=mask)
    else:
        number = tl.zeros_like(i)
        if not FILL:
            number = i
            if KIND == _NUMBERS:
                number = tl.load(payload[0] + image * M + i, mask=mask, other=0)
        tl.store(out[0] + target, number.to(tl.int64), mask=mask)


@triton.jit
def rank_kernel(
    values_ptr,
    keep_ptr,
    payload,  # boxes, those of a proposal and classes; or numbers, 1 and 1
    best_ptr,
    out,
    M,
    K,
    nothing,
    KIND: tl.constexpr,
    BI: tl.constexpr,
    BJ: tl.constexpr,
    BK: tl.constexpr,
):
    """
    A program places BI values. BJ is a multiple of it, so that of all runs of BJ values one holds
    them, and those before and after need no look at the order. "Nothing" gets no place. The last
    program fills the places that are left. With boxes of a KIND to keep, other values than those
    count as "nothing".
    """
    image = tl.program_id(1)
    values_ptr += image * M
    keep_ptr += image * M
    best_ptr += image * K
    if tl.program_id(0) == tl.num_programs(0) - 1:
        number = 0
        for first in range(0, M, BK):
            j = first + tl.arange(0, BK)
            other = _load(values_ptr, keep_ptr, j, j < M, nothing, KIND)
            number += tl.sum((other > nothing).to(tl.int32), 0)
        for first in range(0, K, BK):
            slot = first + tl.arange(0, BK)
            left = (slot >= number) & (slot < K)
            tl.store(best_ptr + slot, tl.zeros((BK,), tl.float32) + nothing, mask=left)
            _write(out, payload, image, slot, slot, left, M, K, True, KIND)
        return
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    value = _load(values_ptr, keep_ptr, i, i < M, nothing, KIND)
    if tl.max(value, 0) <= nothing:
        return
    # Values of "nothing" come before no value that gets a place. One count per pair of lanes, since
    # a sum over lanes takes longer than many comparisons.
    counts = tl.zeros((BI, BJ), tl.int32)
    own = tl.program_id(0) * BI // BJ * BJ
    for first in range(0, own, BJ):
        j = first + tl.arange(0, BJ)
        other = _load(values_ptr, keep_ptr, j, j < M, nothing, KIND)
        counts += (other[None, :] >= value[:, None]).to(tl.int32)
    j = own + tl.arange(0, BJ)
    other = _load(values_ptr, keep_ptr, j, j < M, nothing, KIND)
    equal = (other[None, :] == value[:, None]) & (j[None, :] < i[:, None])
    counts += ((other[None, :] > value[:, None]) | equal).to(tl.int32)
    for first in range(own + BJ, M, BJ):
        j = first + tl.arange(0, BJ)
        other = _load(values_ptr, keep_ptr, j, j < M, nothing, KIND)
        counts += (other[None, :] > value[:, None]).to(tl.int32)
    place = tl.sum(counts, axis=1)
    wanted = (value > nothing) & (place < K)
    tl.store(best_ptr + place, value, mask=wanted)
    _write(out, payload, image, place, i, wanted, M, K, False, KIND)


def best_values_triton(values, k, nothing=-torch.inf, *, numbers=None):
    """
    Runs :func:`best_values` on a GPU. With `numbers`, int32 (N, M), these are returned for the
    values in place of their indices.
    """
    out = torch.empty(len(values), k, dtype=torch.int64, device=values.device)
    kind, numbers = (_INDICES, values) if numbers is None else (_NUMBERS, numbers.contiguous())
    return _rank(kind, values, None, (numbers, 1, 1), (out,), k, nothing), out


def best_boxes_triton(values, boxes, keep, k):
    """Runs :func:`best_boxes` on a GPU."""
    out = torch.empty(len(values), k, 4, dtype=torch.float32, device=values.device)
    keep = keep.contiguous().view(torch.uint8)
    boxes = (boxes.contiguous(), 1, 1)
    return out, _rank(_BOXES, values, keep, boxes, (out,), k, -torch.inf)


def best_candidates_triton(scores, boxes, k, nothing):
    """Runs :func:`best_candidates` on a GPU."""
    images, proposals, sets = boxes.shape[:3]
    size, device = (images, k), scores.device
    out_boxes = torch.empty(*size, 4, dtype=torch.float32, device=device)
    classes = torch.empty(size, dtype=torch.int64, device=device)
    valid = torch.empty(size, dtype=torch.uint8, device=device)
    boxes, out = (
        (boxes.contiguous(), sets, scores.shape[1] // proposals),
        (out_boxes, classes, valid),
    )
    best = _rank(_CANDIDATES, scores, None, boxes, out, k, nothing)
    return best, out_boxes, classes, valid.view(torch.bool)


def _rank(kind, values, keep, payload, out, k, nothing):
    images, size = values.shape
    values = values.contiguous()
    best = torch.empty(images, k, dtype=torch.float32, device=values.device)
    own, compared, warps = _BLOCKS
    constants = {"KIND": kind.value, "BI": own, "BJ": compared, "BK": _COUNTED, "num_warps": warps}
    launch = rank_kernel[triton.cdiv(size, own) + 1, images]
    keep = values if keep is None else keep
    launch(values, keep, payload, best, out, size, k, float(nothing), **constants)
    return best
