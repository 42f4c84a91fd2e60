"""
Four pixels of a level at a time, as the bytes of a word, in Triton.

Shape shorthand in this module:

    h, w: height and width of a level
"""

import triton
import triton.language as tl

from . import matching

__all__ = ["add_cost", "dot", "row_of_words", "shifted"]

_ONES = tl.constexpr(0x01010101)
_SEVEN_BITS = tl.constexpr(0x7F7F7F7F)
# Flips a bit of every byte: the result differs by BEYOND.
_FLIP = tl.constexpr(matching.BEYOND * 0x01010101)


@triton.jit
def _from_byte(low, high, byte, ASSEMBLY: tl.constexpr):
    """Four bytes of a pair of words, from byte 0 to 3 on."""
    if ASSEMBLY:
        code: tl.constexpr = "prmt.b32 $0, $1, $2, $3;"
        order = 0x3210 + 0x1111 * byte
        return tl.inline_asm_elementwise(
            code, "=r,r,r,r", [low, high, order], tl.int32, is_pure=True, pack=1
        )
    else:
        pair = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
        return (pair >> (8 * byte)).to(tl.int32)


@triton.jit
def _bytes_valid(words, ASSEMBLY: tl.constexpr):
    """0xFF for every byte that is a pixel, 0 for OUTSIDE and NOT_FINITE, the two largest."""
    unlike = ~(words | _ONES)
    # The highest bit of every byte that is not 0. No carry leaves a byte.
    high = ((unlike & _SEVEN_BITS) + _SEVEN_BITS) | unlike
    if ASSEMBLY:
        # The sign of each byte, eight times.
        code: tl.constexpr = "prmt.b32 $0, $1, $1, 0xBA98;"
        return tl.inline_asm_elementwise(code, "=r,r", [high], tl.int32, is_pure=True, pack=1)
    else:
        return ((high >> 7) & _ONES) * 255


@triton.jit
def row_of_words(level, y, x, valid, WORDS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Tuples of words and of masks of their bytes that are pixels, WORDS in all, from (y, x) on.

    A level is (pointer, number of pixels, h, w, first pixel of a stream).
    """
    level_ptr, num_pixels, h, w, first = level
    address = level_ptr.to(tl.int64)
    before = (address & 3).to(tl.int32)
    words_ptr = (address & -4).to(tl.pointer_type(tl.int32))
    position = before + first + y * w + x
    word, byte = position >> 2, position & 3
    exists = valid & (y >= 0) & (y < h)
    end = ((before + num_pixels + 3) >> 2).to(tl.uint32)
    low = tl.load(words_ptr + word, mask=exists & (word.to(tl.uint32) < end), other=-1)
    words, masks = (), ()
    for number in tl.static_range(WORDS):
        word += 1
        high = tl.load(words_ptr + word, mask=exists & (word.to(tl.uint32) < end), other=-1)
        found = _from_byte(low, high, byte, ASSEMBLY)
        low = high
        # Bytes to the left and to the right of the level. No shift is by 32 bits.
        left = 4 * tl.minimum(tl.maximum(-x - 4 * number, 0), 4)
        right = 4 * tl.minimum(tl.maximum(w - x - 4 * number, 0), 4)
        one = tl.full(x.shape, 1, tl.int32)
        found |= (((one << left) << left) - 1) | (((-one) << right) << right)
        mask = _bytes_valid(found, ASSEMBLY)
        words += (found & mask,)
        masks += (mask,)
    return words, masks


@triton.jit
def shifted(words, number: tl.constexpr, byte: tl.constexpr, ASSEMBLY: tl.constexpr):
    """The word that begins `byte` bytes after a word of a tuple."""
    first: tl.constexpr = number + byte // 4
    if byte % 4 == 0:
        return words[first]
    else:
        return _from_byte(words[first], words[first + 1], byte % 4, ASSEMBLY)


@triton.jit
def _bytes(words):
    """The four bytes of words (cells, rows), in a dimension of their own."""
    return (words[:, :, None] >> (8 * tl.arange(0, 4))[None, None, :]) & 255


@triton.jit
def differences_of(one, other, total, ASSEMBLY: tl.constexpr):
    """Adds the absolute differences of four bytes."""
    if ASSEMBLY:
        code: tl.constexpr = "vabsdiff4.u32.u32.u32.add $0, $1, $2, $3;"
        return tl.inline_asm_elementwise(
            code, "=r,r,r,r", [one, other, total], tl.int32, is_pure=True, pack=1
        )
    else:
        return total + tl.sum(tl.abs(_bytes(one) - _bytes(other)), 2)


@triton.jit
def dot(one, other, total, ASSEMBLY: tl.constexpr):
    """Adds the products of four bytes."""
    if ASSEMBLY:
        code: tl.constexpr = "dp4a.u32.u32 $0, $1, $2, $3;"
        return tl.inline_asm_elementwise(
            code, "=r,r,r,r", [one, other, total], tl.int32, is_pure=True, pack=1
        )
    else:
        return total + tl.sum(_bytes(one) * _bytes(other), 2)


@triton.jit
def add_cost(
    current, source, byte: tl.constexpr, total, WORDS: tl.constexpr, ASSEMBLY: tl.constexpr
):
    """Adds the cost of comparing a row of words with another one, from a byte of that on. Where one
    of two pixels is missing, they differ by BEYOND."""
    words, masks = current
    for number in tl.static_range(WORDS):
        both = masks[number] & shifted(source[1], number, byte, ASSEMBLY)
        there = shifted(source[0], number, byte, ASSEMBLY)
        there = (there & both) | ((words[number] ^ _FLIP) & ~both)
        total = differences_of(words[number], there, total, ASSEMBLY)
    return total
