"""
Kernels of :func:`..proposals.top_anchors`, whose shape shorthand is used here.

Logits become integer keys of the same order. The k-th largest key of a level is found digit by
digit: all programs count the digits of their keys, then know the digit in which the k-th is and how
many of it are wanted, and go on with the next digit of the keys that agree so far. Keys above the
k-th are wanted, and of equal ones the first. Each program counts both, and its places follow from
the counts before it, so that the result is the same every time.
"""

import torch
import triton
import triton.language as tl

from ..ranking import best_values
from .proposals import map_strides, pixel_rows

# First bit of each digit, from the highest on; half precision needs no more than two.
_DIGITS = ((21, 11), (10, 11), (0, 10))
_BLOCK = 4096


@triton.jit
def _digit(key, SHIFT: tl.constexpr, BITS: tl.constexpr):
    """The digit of keys; that with the sign starts at half its range."""
    if SHIFT + BITS == 32:
        return (key >> SHIFT) + (1 << (BITS - 1))
    return (key >> SHIFT) & ((1 << BITS) - 1)


@triton.jit
def _narrow(state_ptr, counts_ptr, SHIFT: tl.constexpr, BITS: tl.constexpr):
    """
    Returns the least key with the digits so far, one more digit that ``counts`` are of included,
    and how many keys with these digits are wanted.
    """
    key, wanted = tl.load(state_ptr), tl.load(state_ptr + 1)
    value = tl.arange(0, 1 << BITS)
    counts = tl.load(counts_ptr + value)
    from_top = tl.cumsum(counts, 0, reverse=True)
    # None if there are fewer keys than are wanted: all of them are above the least one.
    digit = tl.maximum(tl.sum((from_top >= wanted).to(tl.int32), 0) - 1, 0)
    wanted -= tl.sum(tl.where(value > digit, counts, 0), 0)
    if SHIFT + BITS == 32:
        return (digit - (1 << (BITS - 1))) << SHIFT, wanted
    return key | (digit << SHIFT), wanted


@triton.jit
def _count(counts_ptr, key, counted, SHIFT: tl.constexpr, BITS: tl.constexpr):
    counts = tl.histogram(_digit(key, SHIFT, BITS), 1 << BITS, mask=counted)
    place = counts_ptr + tl.arange(0, 1 << BITS)
    tl.atomic_add(place, counts, mask=counts > 0, sem="relaxed")


@triton.jit
def anchor_keys_kernel(
    logits,
    sizes,
    pixel_strides,
    image_strides,
    keys_ptr,
    states_ptr,
    counts_ptr,
    A,
    width,
    k,
    L: tl.constexpr,
    DIGITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the keys of BLOCK anchors of a level of an image, and counts their highest digit."""
    row = tl.program_id(1)
    level = row % L
    source, size, pixel, image = logits[0], sizes[0], pixel_strides[0], image_strides[0]
    for other in tl.static_range(1, L):
        source = tl.where(level == other, logits[other], source)
        size = tl.where(level == other, sizes[other], size)
        pixel = tl.where(level == other, pixel_strides[other], pixel)
        image = tl.where(level == other, image_strides[other], image)
    if tl.program_id(0) == 0:
        tl.store(states_ptr + row * (DIGITS + 1) * 2, 0)
        tl.store(states_ptr + row * (DIGITS + 1) * 2 + 1, k)
    if tl.program_id(0) * BLOCK >= size:
        return
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = column < size
    source += row // L * image + column // A * pixel + column % A
    value = tl.load(source, mask=exists, other=0.0).to(tl.float32)
    # Adding makes -0 the same as 0.
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    # As in PyTorch, NaN is above all other values.
    key = tl.where(value != value, 0x7FFFFFFF, key)
    tl.store(keys_ptr + row * width + column, key, mask=exists)
    _count(counts_ptr + row * DIGITS * 2048, key, exists, 21, 11)


@triton.jit
def count_digit_kernel(
    keys_ptr,
    sizes,
    states_ptr,
    counts_ptr,
    width,
    DIGIT: tl.constexpr,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    LAST_SHIFT: tl.constexpr,
    LAST_BITS: tl.constexpr,
    L: tl.constexpr,
    DIGITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Counts a digit of the keys that agree with the k-th one in all digits before it."""
    row = tl.program_id(1)
    size = sizes[0]
    for other in tl.static_range(1, L):
        size = tl.where(row % L == other, sizes[other], size)
    if tl.program_id(0) * BLOCK >= size:
        return
    states_ptr += (row * (DIGITS + 1) + DIGIT) * 2
    counts_ptr += (row * DIGITS + DIGIT) * 2048
    least, wanted = _narrow(states_ptr - 2, counts_ptr - 2048, LAST_SHIFT, LAST_BITS)
    if tl.program_id(0) == 0:
        tl.store(states_ptr, least)
        tl.store(states_ptr + 1, wanted)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys_ptr + row * width + column, mask=column < size, other=0)
    agrees = (column < size) & ((key >> LAST_SHIFT) == (least >> LAST_SHIFT))
    _count(counts_ptr, key, agrees, SHIFT, BITS)


@triton.jit
def count_chosen_kernel(
    keys_ptr,
    sizes,
    states_ptr,
    counts_ptr,
    chosen_ptr,
    width,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    L: tl.constexpr,
    DIGITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """chosen[row, program]: how many keys are above the k-th one, and how many equal it."""
    row = tl.program_id(1)
    size = sizes[0]
    for other in tl.static_range(1, L):
        size = tl.where(row % L == other, sizes[other], size)
    chosen_ptr += (row * tl.num_programs(0) + tl.program_id(0)) * 2
    if tl.program_id(0) * BLOCK >= size:
        tl.store(chosen_ptr, 0)
        tl.store(chosen_ptr + 1, 0)
        return
    states_ptr += (row * (DIGITS + 1) + DIGITS) * 2
    counts_ptr += (row * DIGITS + DIGITS - 1) * 2048
    least, wanted = _narrow(states_ptr - 2, counts_ptr, SHIFT, BITS)
    if tl.program_id(0) == 0:
        tl.store(states_ptr, least)
        tl.store(states_ptr + 1, wanted)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = column < size
    key = tl.load(keys_ptr + row * width + column, mask=exists, other=0) >> SHIFT
    tl.store(chosen_ptr, tl.sum((exists & (key > least >> SHIFT)).to(tl.int32), 0))
    tl.store(chosen_ptr + 1, tl.sum((exists & (key == least >> SHIFT)).to(tl.int32), 0))


@triton.jit
def collect_anchors_kernel(
    keys_ptr,
    sizes,
    states_ptr,
    chosen_ptr,
    values_ptr,
    index_ptr,
    width,
    k,
    programs,
    SHIFT: tl.constexpr,
    L: tl.constexpr,
    DIGITS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """
    Writes the values and indices of a program's chosen keys, those above the k-th one before those
    that equal it. The first program fills the places that are left.
    """
    row = tl.program_id(1)
    size = sizes[0]
    for other in tl.static_range(1, L):
        size = tl.where(row % L == other, sizes[other], size)
    values_ptr += row * k
    index_ptr += row * k
    states_ptr += (row * (DIGITS + 1) + DIGITS) * 2
    least, wanted = tl.load(states_ptr) >> SHIFT, tl.load(states_ptr + 1)
    other = tl.arange(0, PROGRAMS)
    chosen_ptr += (row * programs + other) * 2
    above = tl.load(chosen_ptr, mask=other < programs, other=0)
    equal = tl.load(chosen_ptr + 1, mask=other < programs, other=0)
    before = other < tl.program_id(0)
    all_above = tl.sum(above, 0)
    if tl.program_id(0) == 0:
        found = all_above + tl.minimum(tl.sum(equal, 0), wanted)
        for first in range(found, k, BLOCK):
            slot = first + tl.arange(0, BLOCK)
            tl.store(values_ptr + slot, tl.zeros((BLOCK,), tl.float32) - float("inf"), slot < k)
            tl.store(index_ptr + slot, tl.zeros((BLOCK,), tl.int64), slot < k)
    if tl.program_id(0) * BLOCK >= size:
        return
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = column < size
    key = tl.load(keys_ptr + row * width + column, mask=exists, other=0)
    is_above = (exists & (key >> SHIFT > least)).to(tl.int32)
    is_equal = (exists & (key >> SHIFT == least)).to(tl.int32)
    place = tl.sum(tl.where(before, above, 0), 0) + tl.cumsum(is_above, 0) - is_above
    rank = tl.sum(tl.where(before, equal, 0), 0) + tl.cumsum(is_equal, 0) - is_equal
    is_equal = tl.where(rank < wanted, is_equal, 0)
    place = tl.where(is_equal > 0, all_above + rank, place)
    value = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    value = tl.where(key == 0x7FFFFFFF, float("-inf"), value)
    taken = (is_above | is_equal) > 0
    tl.store(values_ptr + place, value, mask=taken)
    tl.store(index_ptr + place, column.to(tl.int64), mask=taken)


def top_anchors_triton(logits, k, *, block=_BLOCK):
    """Runs :func:`top_anchors` on a GPU."""
    digits = _DIGITS if logits[0].dtype == torch.float32 else _DIGITS[:2]
    logits = [pixel_rows(x) for x in logits]
    sizes, (images, num_anchors) = tuple(x[0].numel() for x in logits), logits[0].shape[:2]
    levels, width, device = len(logits), max(sizes), logits[0].device
    rows, programs = images * levels, triton.cdiv(width, block)

    def integers(*shape):
        return torch.empty(shape, dtype=torch.int32, device=device)

    keys, states = integers(rows, width), integers(rows, len(digits) + 1, 2)
    counts = torch.zeros(rows, len(digits), 2048, dtype=torch.int32, device=device)
    chosen, values = integers(rows, programs, 2), torch.empty(rows, k, device=device)
    index = torch.empty(rows, k, dtype=torch.int64, device=device)
    grid, constants = (programs, rows), {"L": levels, "DIGITS": len(digits), "BLOCK": block}
    constants["num_warps"] = 8
    maps = tuple(logits), sizes, *map_strides(logits)
    anchor_keys_kernel[grid](*maps, keys, states, counts, num_anchors, width, k, **constants)
    for number, (last, (shift, bits)) in enumerate(zip(digits, digits[1:]), start=1):
        of_digit = {"DIGIT": number, "SHIFT": shift, "BITS": bits}
        of_digit |= {"LAST_SHIFT": last[0], "LAST_BITS": last[1]}
        count_digit_kernel[grid](keys, sizes, states, counts, width, **of_digit, **constants)
    shift, bits = digits[-1]
    last = {"SHIFT": shift, **constants}
    count_chosen_kernel[grid](keys, sizes, states, counts, chosen, width, BITS=bits, **last)
    last["PROGRAMS"] = triton.next_power_of_2(programs)
    tensors = keys, sizes, states, chosen, values, index
    collect_anchors_kernel[grid](*tensors, width, k, programs, **last)
    # They are in the order of their levels: equal ones keep it.
    best, place = best_values(values, k)
    return best.view(images, levels, k), index.gather(1, place).view(images, levels, k)
