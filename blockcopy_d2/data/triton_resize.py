"""Kernel of :mod:`.device_resize`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl

from .resize_filter import BITS


# Sizes differ by video: one variant serves all.
@triton.jit(do_not_specialize=["TAPS", "ROWS", "COLUMNS", "PLANE_STRIDE", "ROW_STRIDE"])
def resample_kernel(
    picture_ptr,
    out_ptr,
    index_ptr,
    weights_ptr,
    TAPS,
    ROWS,
    COLUMNS,
    PLANE_STRIDE,
    ROW_STRIDE,
    COLUMN_STRIDE,
    ALONG_ROWS: tl.constexpr,
    BITS: tl.constexpr,
    BY: tl.constexpr,
    BX: tl.constexpr,
):
    """A program writes BY x BX pixels of a plane. Each is read TAPS times, mostly from the cache: a
    picture of 1024 x 2048 is 6 MB, 2 us of an H200's bandwidth, as what is written."""
    plane = tl.program_id(2)
    i = tl.program_id(1) * BY + tl.arange(0, BY)
    j = tl.program_id(0) * BX + tl.arange(0, BX)
    exists = (i < ROWS)[:, None] & (j < COLUMNS)[None, :]
    source = picture_ptr + plane * PLANE_STRIDE
    total = tl.full((BY, BX), 1 << (BITS - 1), tl.int32)
    for tap in range(TAPS):
        if ALONG_ROWS:
            at = tap * COLUMNS + j
            pixel = tl.load(index_ptr + at, mask=j < COLUMNS, other=0)
            weight = tl.load(weights_ptr + at, mask=j < COLUMNS, other=0)[None, :]
            places = (i * ROW_STRIDE)[:, None] + (pixel * COLUMN_STRIDE)[None, :]
        else:
            at = tap * ROWS + i
            pixel = tl.load(index_ptr + at, mask=i < ROWS, other=0)
            weight = tl.load(weights_ptr + at, mask=i < ROWS, other=0)[:, None]
            places = (pixel * ROW_STRIDE)[:, None] + (j * COLUMN_STRIDE)[None, :]
        total += tl.load(source + places, mask=exists, other=0).to(tl.int32) * weight
    target = out_ptr + (plane * ROWS + i)[:, None] * COLUMNS + j[None, :]
    tl.store(target, (total >> BITS).to(tl.uint8), mask=exists)


def resample_triton(picture, index, weights, dim):
    """Runs :func:`resample_reference` on a GPU."""
    size = list(picture.shape)
    size[dim] = index.shape[1]
    out = torch.empty(size, dtype=torch.uint8, device=picture.device)
    planes, rows, columns = size
    blocks = dict(BY=4, BX=256, num_warps=4)
    grid = (triton.cdiv(columns, blocks["BX"]), triton.cdiv(rows, blocks["BY"]), planes)
    resample_kernel[grid](
        picture,
        out,
        index,
        weights,
        len(index),
        rows,
        columns,
        *picture.stride(),
        ALONG_ROWS=dim == 2,
        BITS=BITS,
        **blocks,
    )
    return out
