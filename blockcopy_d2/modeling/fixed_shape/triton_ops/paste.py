"""Kernels of :mod:`..paste`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl

from ..paste import THRESHOLD


@triton.jit
def mask_coordinate(pixel, low, high, M):
    """The centre of an output pixel in the mask of a box, in mask pixels; rounded as
    paste_masks_in_image and grid_sample do."""
    grid = tl.math.div_rn(pixel.to(tl.float32) + 0.5 - low, high - low) * 2.0 - 1.0
    return ((grid + 1.0) * M - 1.0) * 0.5


# Not specialized: the number of detections must not make a new variant of the kernel.
@triton.jit(do_not_specialize=["D"])
def paste_kernel(
    masks_ptr,
    boxes_ptr,
    count_ptr,
    rows_ptr,
    columns_ptr,
    out_ptr,
    D,
    H,
    W,
    M,
    threshold,
    SAMPLED: tl.constexpr,
    BLANK: tl.constexpr,
    BY: tl.constexpr,
    BX: tl.constexpr,
):
    """
    A program writes BY x BX pixels of a mask. With SAMPLED they are the pixels of the output that
    rows and columns name, -1 for one beyond it. With BLANK all are False already, and most programs
    write nothing.
    """
    slot = tl.program_id(2)
    filled = slot % D < tl.load(count_ptr + slot // D)
    if BLANK or not SAMPLED:
        if filled == 0:
            return
    i = tl.program_id(1) * BY + tl.arange(0, BY)
    j = tl.program_id(0) * BX + tl.arange(0, BX)
    if SAMPLED:
        y = tl.load(rows_ptr + i, mask=i < H, other=-1)
        x = tl.load(columns_ptr + j, mask=j < W, other=-1)
    else:
        y, x = i, j
    x0, y0 = tl.load(boxes_ptr + slot * 4), tl.load(boxes_ptr + slot * 4 + 1)
    x1, y1 = tl.load(boxes_ptr + slot * 4 + 2), tl.load(boxes_ptr + slot * 4 + 3)
    my = mask_coordinate(y, y0, y1, M)
    mx = mask_coordinate(x, x0, x1, M)
    in_rows = filled & (y >= 0) & (my > -1.0) & (my < M)
    in_columns = (x >= 0) & (mx > -1.0) & (mx < M)
    target = out_ptr + slot.to(tl.int64) * H * W + i[:, None] * W + j[None, :]
    exists = (i < H)[:, None] & (j < W)[None, :]
    if (tl.max(in_rows.to(tl.int32), 0) > 0) & (tl.max(in_columns.to(tl.int32), 0) > 0):
        inside = in_rows[:, None] & in_columns[None, :]
        top, left = tl.floor(my), tl.floor(mx)
        below, right = my - top, mx - left
        top, left = top.to(tl.int32), left.to(tl.int32)
        value = tl.zeros((BY, BX), tl.float32)
        for corner in tl.static_range(4):
            row, column = top + corner // 2, left + corner % 2
            share_y = below if corner // 2 == 1 else 1.0 - below
            share_x = right if corner % 2 == 1 else 1.0 - right
            known = inside & ((row >= 0) & (row < M))[:, None]
            known &= ((column >= 0) & (column < M))[None, :]
            pixel = (slot * M + row)[:, None] * M + column[None, :]
            probability = tl.load(masks_ptr + pixel, mask=known, other=0.0)
            value += probability * (share_y[:, None] * share_x[None, :])
        tl.store(target, (inside & (value >= threshold)).to(tl.uint8), mask=exists)
    elif not BLANK:
        tl.store(target, tl.zeros((BY, BX), tl.uint8), mask=exists)


def paste_masks_triton(masks, boxes, count, out, *, blank=False):
    """Runs :func:`paste_masks` on a GPU."""
    _launch(masks, boxes, count, None, None, out, block=(8, 256), blank=blank)


def sample_masks_triton(masks, boxes, count, rows, columns):
    """Runs :func:`sample_masks` on a GPU."""
    size = (*masks.shape[:2], len(rows), len(columns))
    out = torch.zeros(size, dtype=torch.bool, device=masks.device)
    _launch(masks, boxes, count, rows, columns, out, block=(8, 128), blank=True)
    return out


def _launch(masks, boxes, count, rows, columns, out, block, blank):
    images, detections, height, width = out.shape
    grid = (triton.cdiv(width, block[1]), triton.cdiv(height, block[0]), images * detections)
    masks, boxes, sampled = masks.contiguous(), boxes.contiguous(), rows is not None
    pixels = (rows, columns) if sampled else (count, count)
    sizes = (detections, height, width, masks.shape[-1])
    blocks = dict(BLANK=blank, BY=block[0], BX=block[1], num_warps=4)
    tensors = (masks, boxes, count, *pixels, out.view(torch.uint8))
    paste_kernel[grid](*tensors, *sizes, THRESHOLD, SAMPLED=sampled, **blocks)
