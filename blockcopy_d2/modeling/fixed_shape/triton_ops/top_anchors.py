"""
Kernels of :func:`..proposals.top_anchors`, whose shape shorthand is used here.

Logits become integer keys of the same order. The k-th largest key of a level is found digit by
digit: every program counts the digits of its keys, then all know the digit in which the k-th is and
how many of it are wanted, and go on with the next digit of the keys that agree so far. Digits are
small, since the time to count one grows with the number of its values. Keys above the k-th are
wanted, and of equal ones the first. A program writes its own counts, so that nothing has to be
zero at first, places follow from the counts of programs before, and the result is the same every
time.
"""

import torch
import triton
import triton.language as tl

from .levels import of_level
from .proposals import map_strides, pixel_rows
from .ranking import best_values_triton

# (first bit, bits) of each digit, from the highest on.
_DIGITS = {
    16: ((10, 6), (5, 5), (0, 5)),
    32: ((26, 6), (20, 6), (15, 5), (10, 5), (5, 5), (0, 5)),
}
_BINS = tl.constexpr(64)
# Anchors of a program, and its warps: for one image, for several.
_ONE, _SEVERAL = (2048, 4), (8192, 8)


@triton.jit
def _digit(key, SHIFT: tl.constexpr, BITS: tl.constexpr, KEY: tl.constexpr):
    """The digit of keys; that with the sign starts at half its range."""
    if SHIFT + BITS == KEY:
        return (key >> SHIFT) + (1 << (BITS - 1))
    return (key >> SHIFT) & ((1 << BITS) - 1)


@triton.jit
def _digit_of_kth(counts, wanted):
    """
    Returns the digit in which the k-th key is, from the counts (PROGRAMS, BINS) of all programs,
    and how many of its keys are wanted.
    """
    value = tl.arange(0, _BINS)
    counts = tl.sum(counts, 0)
    from_top = tl.sum(tl.where(value[:, None] >= value[None, :], counts[:, None], 0), 0)
    # None if there are fewer keys than are wanted: all of them are above the least one.
    digit = tl.maximum(tl.sum((from_top >= wanted).to(tl.int32), 0) - 1, 0)
    return digit, wanted - tl.sum(tl.where(value > digit, counts, 0), 0)


@triton.jit
def _load_counts(counts_ptr, programs, PROGRAMS: tl.constexpr):
    """int32 (PROGRAMS, BINS): counts of a digit, of the programs that a level has."""
    program = tl.arange(0, PROGRAMS)[:, None]
    place = counts_ptr + program * _BINS + tl.arange(0, _BINS)[None, :]
    return tl.load(place, mask=(program < programs), other=0)


@triton.jit
def anchor_keys_kernel(
    logits,
    sizes,
    pixel_strides,
    image_strides,
    keys_ptr,
    counts_ptr,
    above_ptr,
    width,
    A: tl.constexpr,
    L: tl.constexpr,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    KEY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the keys of BLOCK anchors of a level of an image, and counts their highest digit."""
    row = tl.program_id(1)
    level = row % L
    source, size = of_level(logits, level, L), of_level(sizes, level, L)
    pixel, image = of_level(pixel_strides, level, L), of_level(image_strides, level, L)
    if tl.program_id(0) * BLOCK >= size:
        return
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = column < size
    source += (row // L).to(tl.int64) * image + column // A * pixel + column % A
    value = tl.load(source, mask=exists, other=0.0)
    TOP: tl.constexpr = (1 << (KEY - 1)) - 1
    if KEY == 16:
        bits = value.to(tl.int16, bitcast=True).to(tl.int32)
    else:
        bits = value.to(tl.int32, bitcast=True)
    # -0 is 0, and as in PyTorch, NaN is above all other values.
    value = value.to(tl.float32)
    key = tl.where(value == 0, 0, bits ^ ((bits >> 31) & TOP))
    key = tl.where(value != value, TOP, key)
    tl.store(keys_ptr + row.to(tl.int64) * width + column, key, mask=exists)
    program = row * tl.num_programs(0) + tl.program_id(0)
    counts = tl.histogram(_digit(key, SHIFT, BITS, KEY), _BINS, mask=exists)
    tl.store(counts_ptr + program * _BINS + tl.arange(0, _BINS), counts)
    tl.store(above_ptr + program, 0)


@triton.jit
def count_digit_kernel(
    keys_ptr,
    sizes,
    states,  # (least key, number of keys wanted) of every row, before this launch and after it
    counts,  # of the digit before, and of this one
    above,  # keys of each program above the least one, before and after
    width,
    k,
    DIGIT: tl.constexpr,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    LAST_SHIFT: tl.constexpr,
    LAST_BITS: tl.constexpr,
    KEY: tl.constexpr,
    L: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Counts a digit of the keys that agree with the k-th one in all digits before it."""
    row = tl.program_id(1)
    size = of_level(sizes, row % L, L)
    if tl.program_id(0) * BLOCK >= size:
        return
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys_ptr + row.to(tl.int64) * width + column, mask=column < size, other=0)
    least, wanted = 0, k
    if DIGIT > 1:
        least, wanted = tl.load(states[0] + row * 2), tl.load(states[0] + row * 2 + 1)
    first = row * tl.num_programs(0)
    all_counts = _load_counts(counts[0] + first * _BINS, tl.cdiv(size, BLOCK), PROGRAMS)
    digit, wanted = _digit_of_kth(all_counts, wanted)
    if LAST_SHIFT + LAST_BITS == KEY:
        least = (digit - (1 << (LAST_BITS - 1))) << LAST_SHIFT
    else:
        least = least | (digit << LAST_SHIFT)
    if tl.program_id(0) == 0:
        tl.store(states[1] + row * 2, least)
        tl.store(states[1] + row * 2 + 1, wanted)
    program, value = first + tl.program_id(0), tl.arange(0, _BINS)
    own = tl.load(counts[0] + program * _BINS + value)
    own_above = tl.load(above[0] + program) + tl.sum(tl.where(value > digit, own, 0), 0)
    tl.store(above[1] + program, own_above)
    agrees = (column < size) & ((key >> LAST_SHIFT) == (least >> LAST_SHIFT))
    found = tl.histogram(_digit(key, SHIFT, BITS, KEY), _BINS, mask=agrees)
    tl.store(counts[1] + program * _BINS + value, found)


@triton.jit
def collect_anchors_kernel(
    keys_ptr,
    sizes,
    states_ptr,
    counts_ptr,
    above_ptr,
    values_ptr,
    index_ptr,
    width,
    k,
    KEY: tl.constexpr,
    L: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """
    Writes the values and indices of a program's chosen keys, those above the k-th one before those
    that equal it. The first program fills the places that are left.
    """
    row = tl.program_id(1)
    size = of_level(sizes, row % L, L)
    if tl.program_id(0) * BLOCK >= size:
        return
    values_ptr += row * k
    index_ptr += row * k
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = column < size
    key = tl.load(keys_ptr + row.to(tl.int64) * width + column, mask=exists, other=0)
    least, wanted = tl.load(states_ptr + row * 2), tl.load(states_ptr + row * 2 + 1)
    first, programs = row * tl.num_programs(0), tl.cdiv(size, BLOCK)
    counts = _load_counts(counts_ptr + first * _BINS, programs, PROGRAMS)
    digit, wanted = _digit_of_kth(counts, wanted)
    least = least | digit
    value, program = tl.arange(0, _BINS)[None, :], tl.arange(0, PROGRAMS)
    equal = tl.sum(tl.where(value == digit, counts, 0), 1)
    above = tl.load(above_ptr + first + program, mask=program < programs, other=0)
    above += tl.sum(tl.where(value > digit, counts, 0), 1)
    before = program < tl.program_id(0)
    all_above = tl.sum(above, 0)
    if tl.program_id(0) == 0:
        found = all_above + tl.minimum(tl.sum(equal, 0), wanted)
        for start in range(found, k, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            tl.store(values_ptr + slot, tl.zeros((BLOCK,), tl.float32) - float("inf"), slot < k)
            tl.store(index_ptr + slot, tl.zeros((BLOCK,), tl.int32), slot < k)
    is_above = (exists & (key > least)).to(tl.int32)
    is_equal = (exists & (key == least)).to(tl.int32)
    # Both running counts at once: there are fewer than 2^15 keys of a program.
    both = is_above | (is_equal << 16)
    running = tl.cumsum(both, 0) - both
    place = tl.sum(tl.where(before, above, 0), 0) + (running & 0xFFFF)
    rank = tl.sum(tl.where(before, equal, 0), 0) + (running >> 16)
    is_equal = tl.where(rank < wanted, is_equal, 0)
    place = tl.where(is_equal > 0, all_above + rank, place)
    TOP: tl.constexpr = (1 << (KEY - 1)) - 1
    bits = key ^ ((key >> 31) & TOP)
    if KEY == 16:
        number = bits.to(tl.int16).to(values_ptr.dtype.element_ty, bitcast=True)
    else:
        number = bits.to(tl.float32, bitcast=True)
    number = tl.where(key == TOP, float("-inf"), number.to(tl.float32))
    taken = (is_above | is_equal) > 0
    tl.store(values_ptr + place, number, mask=taken)
    tl.store(index_ptr + place, column, mask=taken)


def top_anchors_triton(logits, k, *, block=None):
    """Runs :func:`top_anchors` on a GPU."""
    block, warps = (_ONE if len(logits[0]) == 1 else _SEVERAL) if block is None else (block, 4)
    bits = 8 * logits[0].element_size()
    digits = _DIGITS[bits]
    logits = [pixel_rows(x) for x in logits]
    sizes, (images, num_anchors) = tuple(x[0].numel() for x in logits), logits[0].shape[:2]
    levels, width, device = len(logits), max(sizes), logits[0].device
    rows, programs = images * levels, triton.cdiv(width, block)

    def integers(*shape):
        return torch.empty(shape, dtype=torch.int32, device=device)

    keys, index = integers(rows, width), integers(rows, k)
    counts = integers(len(digits), rows, programs, _BINS.value)
    above, states = integers(len(digits), rows, programs), integers(len(digits), rows, 2)
    values = torch.empty(rows, k, dtype=logits[0].dtype, device=device)
    grid, constants = (
        (programs, rows),
        {"L": levels, "KEY": bits, "BLOCK": block, "num_warps": warps},
    )
    maps = tuple(logits), sizes, *map_strides(logits)
    first = {"A": num_anchors, "SHIFT": digits[0][0], "BITS": digits[0][1]}
    anchor_keys_kernel[grid](*maps, keys, counts[0], above[0], width, **first, **constants)
    constants["PROGRAMS"] = max(triton.next_power_of_2(programs), 16)
    for number, (last, digit) in enumerate(zip(digits, digits[1:]), start=1):
        of_digit = {"DIGIT": number, "SHIFT": digit[0], "BITS": digit[1]}
        of_digit |= {"LAST_SHIFT": last[0], "LAST_BITS": last[1]}
        both = [(x[number - 1], x[number]) for x in (states, counts, above)]
        count_digit_kernel[grid](keys, sizes, *both, width, k, **of_digit, **constants)
    found = states[-1], counts[-1], above[-1], values, index
    collect_anchors_kernel[grid](keys, sizes, *found, width, k, **constants)
    # They are in the order of their levels: equal ones keep it.
    best, index = best_values_triton(values, k, numbers=index)
    return best.view(images, levels, k), index.view(images, levels, k)
