"""
The kernel of :mod:`.block_means`, whose shape shorthand is used here. Needs Triton.
"""

import torch
import triton
import triton.language as tl

from .gain_constants import EDGE_FLOOR

__all__ = ["block_means_triton"]

_NUM_MEANS = 6


@triton.jit
def _steps(pixel, value, stride_row, has_right, has_below, exists):
    """Returns the larger of the steps from pixels to their neighbours on the right and below."""
    right = tl.load(pixel + 1, mask=exists & has_right, other=0.0).to(tl.float32)
    below = tl.load(pixel + stride_row, mask=exists & has_below, other=0.0).to(tl.float32)
    across = tl.where(has_right, tl.abs(right - value), 0.0)
    down = tl.where(has_below, tl.abs(below - value), 0.0)
    return tl.maximum(across, down, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def block_means_kernel(
    frame_ptr,
    state_ptr,
    output_ptr,
    scale_ptr,
    out_ptr,
    K,
    rows,
    columns,
    CHANNELS: tl.constexpr,  # of a frame
    P: tl.constexpr,
    EDGE_FLOOR: tl.constexpr,
    NUM_MEANS: tl.constexpr,
):
    """A program takes the pixels of one block of one stream."""
    column, row, stream = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    height, width = rows * P, columns * P
    pixels = height * width
    y = row * P + tl.arange(0, P)[:, None]
    x = column * P + tl.arange(0, P)[None, :]
    has_right, has_below, exists = x + 1 < width, y + 1 < height, y < height
    here = y * width + x
    difference = tl.zeros((P, P), tl.float32)
    grey = tl.zeros((P, P), tl.float32)
    right = tl.zeros((P, P), tl.float32)
    below = tl.zeros((P, P), tl.float32)
    for channel in tl.static_range(CHANNELS):
        scale = tl.load(scale_ptr + channel)
        plane = (stream * CHANNELS + channel) * pixels
        pixel = frame_ptr + plane + here
        value = tl.load(pixel)
        state = tl.load(state_ptr + plane + here)
        difference += tl.abs(value - state) * scale
        grey += value * scale
        right += tl.load(pixel + 1, mask=exists & has_right, other=0.0) * scale
        below += tl.load(pixel + width, mask=exists & has_below, other=0.0) * scale
    difference = difference / CHANNELS
    across = tl.where(has_right, tl.abs(right - grey), 0.0)
    down = tl.where(has_below, tl.abs(below - grey), 0.0)
    texture = tl.maximum(across, down) / CHANNELS
    edge = tl.zeros((P, P), tl.float32)
    sure = tl.zeros((P, P), tl.float32)
    for k in range(0, K):
        pixel = output_ptr + (stream * K + k) * pixels + here
        value = tl.load(pixel)
        step = _steps(pixel, value, width, has_right, has_below, exists)
        sure = tl.maximum(sure, value, propagate_nan=tl.PropagateNan.ALL)
        edge = tl.maximum(edge, step, propagate_nan=tl.PropagateNan.ALL)
    cells = tl.reshape(difference, (P // 4, 4, P // 4, 4))
    cells = tl.sum(tl.sum(cells, 3), 1) / 16
    peak = tl.max(tl.max(cells, 1), 0)
    blocks = rows * columns
    out = out_ptr + stream * NUM_MEANS * blocks + row * columns + column
    at_edges = (edge + EDGE_FLOOR) * difference
    tl.store(out, tl.sum(tl.sum(at_edges, 1), 0) / (P * P))
    tl.store(out + blocks, tl.sum(tl.sum(difference, 1), 0) / (P * P))
    tl.store(out + 2 * blocks, peak)
    tl.store(out + 3 * blocks, tl.sum(tl.sum(edge, 1), 0) / (P * P))
    tl.store(out + 4 * blocks, tl.sum(tl.sum(texture, 1), 0) / (P * P))
    doubt = tl.maximum(1 - sure, 0.0)
    tl.store(out + 5 * blocks, tl.sum(tl.sum(doubt, 1), 0) / (P * P))


def block_means_triton(frame, frame_state, output, pixel_scale, grid_shape):
    """:func:`blockcopy_d2.policy.block_means.block_means`, by Triton."""
    rows, columns = grid_shape
    streams, classes = len(frame), output.shape[1]
    out = torch.empty(streams, _NUM_MEANS, rows, columns, device=frame.device)
    maps = (x.float().contiguous() for x in (frame, frame_state, output, pixel_scale))
    launch = block_means_kernel[(columns, rows, streams)]
    constants = {"P": frame.shape[-2] // rows, "EDGE_FLOOR": EDGE_FLOOR}
    constants |= {"CHANNELS": frame.shape[1], "NUM_MEANS": _NUM_MEANS}
    launch(*maps, out, classes, rows, columns, **constants, num_warps=4)
    return out
