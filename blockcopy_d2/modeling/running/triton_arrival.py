"""The kernels of :mod:`.arrival`, whose shape shorthand is used here."""

import torch
import triton
import triton.language as tl

from .scene_cut import CELLS, LEAST_CHANGE
from .triton_advance import finite_numbers

__all__ = ["compare_frames_triton"]

# A tile that is not finite adds this to its number of changed cells, which is far smaller.
_BROKEN = 1 << 16
# Tiles whose numbers a program adds up at a time.
_TILES = 256


@triton.jit
def look_kernel(
    frame_ptr,
    previous_ptr,
    std_ptr,
    picture_ptr,
    tiles_ptr,
    size,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    CELLS: tl.constexpr,
    LEAST: tl.constexpr,
    BROKEN: tl.constexpr,
):
    """A program counts the cells of P x P pixels that changed, and makes the pixels finite."""
    height, width = size
    stream, pixels = tl.program_id(2).to(tl.int64), height * width
    y = tl.program_id(1) * P + tl.arange(0, P)[:, None]
    x = tl.program_id(0) * P + tl.arange(0, P)[None, :]
    SIDE: tl.constexpr = P // CELLS
    change = tl.zeros((CELLS, CELLS), tl.float32)
    broken = tl.zeros((P, P), tl.int32)
    for channel in tl.static_range(CHANNELS):
        here = (stream * CHANNELS + channel) * pixels + y * width + x
        value = tl.load(frame_ptr + here)
        broken += (~(tl.abs(value) < float("inf"))).to(tl.int32)
        tl.store(picture_ptr + here, finite_numbers(value))
        difference = value - tl.load(previous_ptr + here)
        difference *= tl.load(std_ptr + channel) / 255
        cells = tl.reshape(difference, (CELLS, SIDE, CELLS, SIDE))
        change += tl.abs(tl.sum(tl.sum(cells, 3), 1) / (SIDE * SIDE))
    count = tl.sum(tl.sum((change / CHANNELS > LEAST).to(tl.int32), 1), 0)
    count += tl.where(tl.max(tl.max(broken, 1), 0) > 0, BROKEN, 0)
    tile = (stream * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0)
    tl.store(tiles_ptr + tile + tl.program_id(0), count)


@triton.jit
def judge_kernel(
    tiles_ptr,
    index_ptr,
    broken_ptr,
    flags,
    tiles,
    most,
    HAS_CUTS: tl.constexpr,
    BROKEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program judges a frame by its tiles."""
    finite_ptr, cut_ptr, new_ptr = flags
    stream = tl.program_id(0)
    total, unusable = 0, 0
    for first in range(0, tiles, BLOCK):
        tile = first + tl.arange(0, BLOCK)
        count = tl.load(tiles_ptr + stream * tiles + tile, mask=tile < tiles, other=0)
        total += tl.sum(count % BROKEN, 0)
        unusable += tl.sum(count // BROKEN, 0)
    finite, index = unusable == 0, tl.load(index_ptr + stream)
    cut = (total > most) & (index > 0) & HAS_CUTS
    new = (tl.load(broken_ptr + stream) != 0) | ~finite | (index == 0)
    tl.store(finite_ptr + stream, finite.to(tl.uint8))
    tl.store(cut_ptr + stream, cut.to(tl.uint8))
    tl.store(new_ptr + stream, new.to(tl.uint8))


def compare_frames_triton(
    frame, previous, index, broken, *, share, pixels_per_block, pixel_std, coverage
):
    """
    :func:`.arrival.compare_frames` by Triton.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor]: the parts of an Arrival, in its order.
    """
    streams, channels, height, width = frame.shape
    picture, device = torch.empty(frame.shape, device=frame.device), frame.device
    columns, rows = width // pixels_per_block, height // pixels_per_block
    tiles = torch.empty(streams, rows * columns, dtype=torch.int32, device=device)
    flags = torch.empty(3, streams, dtype=torch.bool, device=device)
    maps = (frame.contiguous(), previous.contiguous(), pixel_std.float().contiguous(), picture)
    constants = {"P": pixels_per_block, "CELLS": CELLS, "LEAST": LEAST_CHANGE}
    constants["CHANNELS"] = channels
    look_kernel[(columns, rows, streams)](
        *maps, tiles, (height, width), **constants, BROKEN=_BROKEN, num_warps=4
    )
    most = share * coverage * rows * columns * CELLS**2
    judge_kernel[(streams,)](
        *(tiles, index.contiguous(), broken.contiguous().view(torch.uint8)),
        *(tuple(flags.view(torch.uint8)), rows * columns, most),
        **{"HAS_CUTS": share > 0, "BROKEN": _BROKEN, "BLOCK": _TILES, "num_warps": 4},
    )
    return picture, *flags
