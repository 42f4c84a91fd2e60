"""
Computes the levels of a frame by one Triton launch, see pyramid.py.

Shape shorthand in this module:

    N: streams
    H, W: height and width of the canvas; h, w: of a level
"""

import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.device import device_of

from . import luma

__all__ = ["pyramid_launch"]

_OUTSIDE = tl.constexpr(luma.OUTSIDE)
_NOT_FINITE = tl.constexpr(luma.NOT_FINITE)
_BRIGHTEST = tl.constexpr(luma.BRIGHTEST)

# Side of the tile of level 0 that a program makes. At the last level it still has a pixel or more.
_TILE = 32


@triton.jit
def _store_level(level, value, stream, row, column, T: tl.constexpr):
    level_ptr, h, w = level
    y = (row * T + tl.arange(0, T))[:, None]
    x = (column * T + tl.arange(0, T))[None, :]
    target = level_ptr + stream.to(tl.int64) * h * w + y * w + x
    tl.store(target, value.to(tl.uint8), mask=(y < h) & (x < w))


@triton.jit
def _halve(value, T: tl.constexpr):
    """int32 (T / 2, T / 2): rounded means of the usable ones of 2 x 2 pixels."""
    value = tl.reshape(value, (T // 2, 2, T // 2, 2))
    usable = (value < _OUTSIDE).to(tl.int32)
    total = tl.sum(tl.sum(value * usable, 3), 1)
    count = tl.sum(tl.sum(usable, 3), 1)
    largest = tl.max(tl.max(value, 3), 1)
    mean = (2 * total + count) // tl.maximum(2 * count, 1)
    mean = tl.where(count == 0, _OUTSIDE, mean)
    return tl.where(largest == _NOT_FINITE, _NOT_FINITE, mean)


@triton.jit
def pyramid_kernel(
    images_ptr,
    strides,
    size,
    sizes_ptr,
    first,  # a level: pointer, height, width
    second,
    third,
    fourth,
    SIZED: tl.constexpr,
    T: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program makes T x T pixels of the first level, and the pixels of other levels below them.

    Reads the frame once, 3 H W values, and writes a third of H W bytes: 26 MB for one of
    1024 x 2048 in float32, 6 us of an H200's bandwidth, and a quarter of that for uint8.
    """
    begin(PDL)
    column, row, stream = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    stride_n, stride_c, stride_y, stride_x = strides
    height, width = size
    if SIZED:
        height = tl.minimum(tl.load(sizes_ptr + 2 * stream), height)
        width = tl.minimum(tl.load(sizes_ptr + 2 * stream + 1), width)
    y = 2 * (row * T + tl.arange(0, T))[:, None]
    x = (2 * column * T + tl.arange(0, 2 * T))[None, :]
    total = tl.zeros((T, T), tl.float32)
    count = tl.zeros((T, T), tl.int32)
    image_ptr = images_ptr + stream.to(tl.int64) * stride_n
    for dy in tl.static_range(2):
        inside = (y + dy < height) & (x < width)
        pixel = image_ptr + (y + dy) * stride_y + x * stride_x
        red = tl.load(pixel, mask=inside, other=0).to(tl.float32)
        green = tl.load(pixel + stride_c, mask=inside, other=0).to(tl.float32)
        blue = tl.load(pixel + 2 * stride_c, mask=inside, other=0).to(tl.float32)
        even, odd = tl.split(tl.reshape((red + 2 * green + blue) / 4, (T, T, 2)))
        total = total + even + odd
        even, odd = tl.split(tl.reshape(inside.to(tl.int32), (T, T, 2)))
        count = count + even + odd
    broken = total - total != 0
    mean = tl.where(broken, 0.0, total) / tl.maximum(count, 1).to(tl.float32)
    value = tl.minimum(tl.maximum(tl.floor(mean + 0.5), 0.0), _BRIGHTEST).to(tl.int32)
    value = tl.where(broken, _NOT_FINITE, tl.where(count == 0, _OUTSIDE, value))
    _store_level(first, value, stream, row, column, T)
    value = _halve(value, T)
    _store_level(second, value, stream, row, column, T // 2)
    value = _halve(value, T // 2)
    _store_level(third, value, stream, row, column, T // 4)
    value = _halve(value, T // 4)
    _store_level(fourth, value, stream, row, column, T // 8)


def pyramid_launch(images, image_sizes, levels):
    """
    Fills the levels of :func:`pyramid.luma_pyramid`.

    Args:
        images (Tensor): (N, 3, H, W) of any strides.
        image_sizes (Tensor): int32 (N, 2), contiguous, or None.
        levels (list[Tensor]): uint8 (N, h, w) each, overwritten.
    """
    streams, _, height, width = images.shape
    rows, columns = levels[0].shape[1:]
    grid = triton.cdiv(columns, _TILE), triton.cdiv(rows, _TILE), streams
    sized, options = image_sizes is not None, device_of(images.device).launch_options
    arguments = (images, images.stride(), (height, width), image_sizes if sized else images)
    levels = [(level, *level.shape[1:]) for level in levels]
    pyramid_kernel[grid](*arguments, *levels, SIZED=sized, T=_TILE, num_warps=4, **options)
