"""
Moves maps at policy resolution by Triton kernels: one launch for maps, and one for masks. The host
never waits.

Shape shorthand in this module:

    N: streams
    C: channels
    n: masks of a stream
    h, w: policy resolution, in pixels of s x s pixels of the network's input
    c: side of a cell, in pixels of the network's input
    FH, FW: rows and columns of cells
    BM: pixels of a program; BC: channels or masks of a program
"""

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.device import device_of

__all__ = ["move_maps_launch", "move_masks_launch"]

_BM, _BC = 256, 16


@triton.jit
def _sources(
    stream,
    size,
    field,
    scale,
    PIXELS: tl.constexpr,
    CELLS: tl.constexpr,
    BM: tl.constexpr,
):
    """(pixel, valid, (y, x, dy, dx)) of the pixels (BM,) of a program, in pixels of the map: the
    vector of the cell, of PIXELS x PIXELS pixels, that a pixel lies in, or the mean of the CELLS x
    CELLS cells that it covers. Pixels that the field does not cover stand still."""
    h, w = size
    field_ptr, FH, FW = field
    field_ptr += stream * 2 * FH * FW
    pixel = tl.program_id(0) * BM + tl.arange(0, BM)
    valid = pixel < h * w
    y, x = pixel // w, pixel % w
    dy = tl.zeros(pixel.shape, tl.float32)
    dx = tl.zeros(pixel.shape, tl.float32)
    for i in range(CELLS * CELLS):
        row = y // PIXELS * CELLS + i // CELLS
        column = x // PIXELS * CELLS + i % CELLS
        exists = valid & (row < FH) & (column < FW)
        cell_dx = tl.load(field_ptr + row * FW + column, mask=exists, other=0.0)
        cell_dy = tl.load(field_ptr + (FH + row) * FW + column, mask=exists, other=0.0)
        # Comparisons with NaN are false.
        dx += tl.where(tl.abs(cell_dx) < float("inf"), cell_dx, 0.0)
        dy += tl.where(tl.abs(cell_dy) < float("inf"), cell_dy, 0.0)
    return pixel, valid, (y, x, dy * scale, dx * scale)


@triton.jit
def move_maps_kernel(
    source_ptr,
    target_ptr,
    C,
    size,
    field,
    scale,
    PIXELS: tl.constexpr,
    CELLS: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    PDL: tl.constexpr,
):
    """target[n, c, p] = source[n, c, p + shift], bilinear; the same bits where nothing moved.

    Reads and writes every map once, neighbours from the L1 cache: frame state and one class at
    256 x 512 are 4 MB, 1 us of an H200's bandwidth.
    """
    begin(PDL)
    h, w = size
    stream = tl.program_id(1).to(tl.int64)
    pixel, valid, sources = _sources(stream, size, field, scale, PIXELS, CELLS, BM)
    y, x, dy, dx = sources
    position_y = tl.minimum(tl.maximum(y + dy, 0.0), (h - 1).to(tl.float32))
    position_x = tl.minimum(tl.maximum(x + dx, 0.0), (w - 1).to(tl.float32))
    top, left = position_y.to(tl.int32), position_x.to(tl.int32)
    wy, wx = position_y - top, position_x - left
    bottom, right = tl.minimum(top + 1, h - 1), tl.minimum(left + 1, w - 1)
    whole = (wy == 0) & (wx == 0)
    others = valid & (whole == 0)
    for channel in range(tl.program_id(2) * BC, tl.minimum(tl.program_id(2) * BC + BC, C)):
        plane = (stream * C + channel) * h * w
        source = source_ptr + plane
        a = tl.load(source + top * w + left, mask=valid, other=0.0)
        b = tl.load(source + top * w + right, mask=others, other=0.0).to(tl.float32)
        c = tl.load(source + bottom * w + left, mask=others, other=0.0).to(tl.float32)
        d = tl.load(source + bottom * w + right, mask=others, other=0.0).to(tl.float32)
        value = (a.to(tl.float32) * (1 - wx) + b * wx) * (1 - wy) + (c * (1 - wx) + d * wx) * wy
        value = tl.where(whole, a, value.to(a.dtype))
        tl.store(target_ptr + plane + pixel, value, mask=valid)


@triton.jit
def move_masks_kernel(
    source_ptr,
    target_ptr,
    n,
    size,
    field,
    scale,
    PIXELS: tl.constexpr,
    CELLS: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    PDL: tl.constexpr,
):
    """target[n, i, p] = source[n, i, p + shift], rounded to the nearest pixel.

    Reads and writes every mask once: 100 of 256 x 512 are 26 MB, 6 us of an H200's bandwidth.
    """
    begin(PDL)
    h, w = size
    stream = tl.program_id(2).to(tl.int64)
    pixel, valid, sources = _sources(stream, size, field, scale, PIXELS, CELLS, BM)
    y, x, dy, dx = sources
    # Floats, since a vector may lead beyond the range of integers.
    row = tl.minimum(tl.maximum(y + tl.floor(dy + 0.5), 0.0), (h - 1).to(tl.float32))
    column = tl.minimum(tl.maximum(x + tl.floor(dx + 0.5), 0.0), (w - 1).to(tl.float32))
    origin = row.to(tl.int32) * w + column.to(tl.int32)
    first = tl.program_id(1).to(tl.int64) * BC
    for index in range(0, tl.minimum(n - first, BC)):
        plane = (stream * n + first + index) * h * w
        value = tl.load(source_ptr + plane + origin, mask=valid, other=0)
        tl.store(target_ptr + plane + pixel, value, mask=valid)


def move_maps_launch(x, field, *, cell_size, stride, device=None):
    """
    Args:
        x (Tensor): float (N, C, h, w), contiguous.
        field (Tensor): float32 (N, 2, FH, FW), contiguous. Components that are not finite count as
            0.
        cell_size (int): c, a power of two.
        stride (float): s, a power of two, such as 0.5.
        device (Device or None): device of the kernels; None for that of ``x``.

    Returns:
        Tensor: like ``x``, in memory of its own.
    """
    moved = torch.empty_like(x)
    streams, channels, height, width = x.shape
    grid = triton.cdiv(height * width, _BM), streams, triton.cdiv(channels, _BC)
    options = _options(cell_size, stride, device or device_of(x.device))
    field = (field, *field.shape[2:])
    move_maps_kernel[grid](x, moved, channels, (height, width), field, **options)
    return moved


def move_masks_launch(masks, field, *, cell_size, stride, device=None):
    """
    Args:
        masks (Tensor): bool (N, n, h, w), or (n, h, w) of a single stream, contiguous.
        field (Tensor): float32 (N, 2, FH, FW), contiguous.
        cell_size, stride, device: see :func:`move_maps_launch`.

    Returns:
        Tensor: bool, like ``masks``.
    """
    moved = torch.empty_like(masks)
    number, height, width = masks.shape[-3:]
    if not number:
        return moved
    grid = triton.cdiv(height * width, _BM), triton.cdiv(number, _BC), len(field)
    options = _options(cell_size, stride, device or device_of(masks.device))
    field, bytes_ = (field, *field.shape[2:]), [x.view(torch.uint8) for x in (masks, moved)]
    move_masks_kernel[grid](*bytes_, number, (height, width), field, **options)
    return moved


def _options(cell_size, stride, device):
    cells = max(int(stride / cell_size), 1)
    covered = dict(scale=1 / (stride * cells**2), PIXELS=max(int(cell_size / stride), 1))
    return covered | dict(CELLS=cells, BM=_BM, BC=_BC, num_warps=4, **device.launch_options)
