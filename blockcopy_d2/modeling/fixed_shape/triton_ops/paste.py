"""Kernels of :mod:`..paste`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl

from ..constants import MASK_THRESHOLD

# Programs that share the tiles of a mask: enough for one that covers the picture.
_PROGRAMS_PER_MASK = 32
# Rows and columns of a tile: whole lines of 128 bytes of the output.
_TILE = {"BY": 8, "BX": 128}


@triton.jit
def mask_coordinate(pixel, low, high, M):
    """The centre of an output pixel in the mask of a box, in mask pixels; rounded as
    paste_masks_in_image and grid_sample do."""
    grid = tl.math.div_rn(pixel.to(tl.float32) + 0.5 - low, high - low) * 2.0 - 1.0
    return ((grid + 1.0) * M - 1.0) * 0.5


@triton.jit
def _sample(mask_ptr, my, mx, inside, M, BY: tl.constexpr, BX: tl.constexpr):
    """Returns the probabilities (BY, BX) of a mask at rows my and columns mx, 0 beyond it."""
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
        probability = tl.load(mask_ptr + row[:, None] * M + column[None, :], mask=known, other=0.0)
        value += probability * (share_y[:, None] * share_x[None, :])
    return value


@triton.jit
def _reach(low, high, size, M):
    """Returns first and end of the pixels that a mask of a box may reach, within the output."""
    margin = (high - low) / M + 1.0
    first = tl.maximum(tl.floor(low - margin), 0.0).to(tl.int32)
    end = tl.minimum(tl.ceil(high + margin), size.to(tl.float32)).to(tl.int32)
    return first, end


# do_not_specialize: the number of detections must not make a new variant of a kernel.
@triton.jit(do_not_specialize=["D", "most"])
def paste_kernel(
    masks_ptr,
    boxes_ptr,
    count_ptr,
    out_ptr,
    D,
    most,
    H,
    W,
    M,
    threshold,
    BY: tl.constexpr,
    BX: tl.constexpr,
):
    """
    Writes the pixels of masks around their boxes, of an output that is all False. The programs of a
    mask share its tiles of BY x BX pixels, so that small boxes cost little.
    """
    place = tl.program_id(0)
    image, detection = place // most, place % most
    if detection < tl.load(count_ptr + image):
        slot = image * D + detection
        x0, y0 = tl.load(boxes_ptr + slot * 4), tl.load(boxes_ptr + slot * 4 + 1)
        x1, y1 = tl.load(boxes_ptr + slot * 4 + 2), tl.load(boxes_ptr + slot * 4 + 3)
        first_y, end_y = _reach(y0, y1, H, M)
        first_x, end_x = _reach(x0, x1, W, M)
        # Tiles begin where a row of the output has a multiple of their width.
        first_x = first_x // BX * BX
        columns = tl.cdiv(end_x - first_x, BX)
        tiles = tl.maximum(columns, 0) * tl.maximum(tl.cdiv(end_y - first_y, BY), 0)
        for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
            y = first_y + tile // columns * BY + tl.arange(0, BY)
            x = first_x + tile % columns * BX + tl.arange(0, BX)
            my, mx = mask_coordinate(y, y0, y1, M), mask_coordinate(x, x0, x1, M)
            inside = ((my > -1.0) & (my < M))[:, None] & ((mx > -1.0) & (mx < M))[None, :]
            value = _sample(masks_ptr + slot * M * M, my, mx, inside, M, BY, BX)
            target = out_ptr + place.to(tl.int64) * H * W + y[:, None] * W + x[None, :]
            exists = (y < end_y)[:, None] & (x < W)[None, :]
            tl.store(target, (inside & (value >= threshold)).to(tl.uint8), mask=exists)


@triton.jit(do_not_specialize=["D"])
def sample_kernel(
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
    BY: tl.constexpr,
    BX: tl.constexpr,
):
    """
    A program writes BY x BX pixels of a mask, those of the output that rows and columns name, -1
    for one beyond it. All are False already, and most programs write nothing.
    """
    slot = tl.program_id(0)
    if slot % D >= tl.load(count_ptr + slot // D):
        return
    i = tl.program_id(1) * BY + tl.arange(0, BY)
    j = tl.program_id(2) * BX + tl.arange(0, BX)
    y = tl.load(rows_ptr + i, mask=i < H, other=-1)
    x = tl.load(columns_ptr + j, mask=j < W, other=-1)
    x0, y0 = tl.load(boxes_ptr + slot * 4), tl.load(boxes_ptr + slot * 4 + 1)
    x1, y1 = tl.load(boxes_ptr + slot * 4 + 2), tl.load(boxes_ptr + slot * 4 + 3)
    my, mx = mask_coordinate(y, y0, y1, M), mask_coordinate(x, x0, x1, M)
    in_rows = (y >= 0) & (my > -1.0) & (my < M)
    in_columns = (x >= 0) & (mx > -1.0) & (mx < M)
    if (tl.max(in_rows.to(tl.int32), 0) > 0) & (tl.max(in_columns.to(tl.int32), 0) > 0):
        inside = in_rows[:, None] & in_columns[None, :]
        value = _sample(masks_ptr + slot * M * M, my, mx, inside, M, BY, BX)
        target = out_ptr + slot.to(tl.int64) * H * W + i[:, None] * W + j[None, :]
        exists = (i < H)[:, None] & (j < W)[None, :]
        tl.store(target, (inside & (value >= threshold)).to(tl.uint8), mask=exists)


def paste_masks_triton(masks, boxes, count, out):
    """Runs :func:`paste_masks` on a GPU."""
    images, most, height, width = out.shape
    # The first axis takes more than 65,535 programs.
    grid = (images * most, _PROGRAMS_PER_MASK)
    tensors = [x.contiguous() for x in (masks, boxes, count)]
    sizes = (masks.shape[1], most, height, width, masks.shape[-1], MASK_THRESHOLD)
    paste_kernel[grid](*tensors, out.view(torch.uint8), *sizes, **_TILE, num_warps=4)


def sample_masks_triton(masks, boxes, count, rows, columns):
    """Runs :func:`sample_masks` on a GPU."""
    size = images, detections, height, width = (*masks.shape[:2], len(rows), len(columns))
    out = torch.zeros(size, dtype=torch.bool, device=masks.device)
    rows_of_tiles, tiles_of_row = triton.cdiv(height, _TILE["BY"]), triton.cdiv(width, _TILE["BX"])
    grid = (images * detections, rows_of_tiles, tiles_of_row)
    tensors = [x.contiguous() for x in (masks, boxes, count, rows, columns)]
    sizes = (detections, height, width, masks.shape[-1], MASK_THRESHOLD)
    sample_kernel[grid](*tensors, out.view(torch.uint8), *sizes, **_TILE, num_warps=4)
    return out
