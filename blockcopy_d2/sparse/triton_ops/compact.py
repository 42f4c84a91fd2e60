"""Active blocks as a list, made and kept on the device.

Shape shorthand: N streams, GH x GW blocks, F x F blocks that count as one.
"""

import torch
import triton
import triton.language as tl

from blockcopy_d2.kernels.dependent_launch import begin
from blockcopy_d2.kernels.device import device_of

from .geometry import BlockList


@triton.jit
def compact_kernel(
    active_ptr,
    blocks_ptr,
    count_ptr,
    total,
    grid,
    pooled,
    F: tl.constexpr,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program: a running count over chunks of the (N, ROWS, COLUMNS) pooled blocks."""
    begin(PDL)
    GH, GW = grid
    ROWS, COLUMNS = pooled
    count = 0
    for first in range(0, total, CHUNK):
        block = first + tl.arange(0, CHUNK)
        stream = block // (ROWS * COLUMNS)
        row = block // COLUMNS % ROWS
        column = block % COLUMNS
        active = tl.zeros((CHUNK,), tl.int32)
        for dy in range(F):
            for dx in range(F):
                y, x = row * F + dy, column * F + dx
                exists = (block < total) & (y < GH) & (x < GW)
                one = tl.load(active_ptr + (stream * GH + y) * GW + x, mask=exists, other=0)
                active = active | (one != 0).to(tl.int32)
        place = count + tl.cumsum(active, 0) - active
        tl.store(blocks_ptr + place, block, mask=active != 0)
        count += tl.sum(active, 0)
    tl.store(count_ptr, count)
    # The other entries name a block that exists.
    for first in range(0, total, CHUNK):
        place = first + tl.arange(0, CHUNK)
        left = (place >= count) & (place < total)
        tl.store(blocks_ptr + place, tl.zeros((CHUNK,), tl.int32), mask=left)


def allocate_list(active, factor):
    """An unfilled BlockList for compact(active, factor)."""
    streams, rows, columns = active.shape
    size = streams * -(-rows // factor) * -(-columns // factor)
    return BlockList(
        blocks=torch.empty(size, dtype=torch.int32, device=active.device),
        count=torch.empty(1, dtype=torch.int32, device=active.device),
    )


def compact(active, factor, out):
    """Lists the active blocks in ascending order.

    Args:
        active: bool (N, GH, GW), contiguous.
        factor: F; a block of F x F counts as active when any of them is.
        out: BlockList from allocate_list, overwritten.
    """
    _, rows, columns = active.shape
    total = out.blocks.numel()
    pooled = -(-rows // factor), -(-columns // factor)
    chunk = min(max(triton.next_power_of_2(total), 32), 1024)
    arguments = (active.view(torch.uint8), out.blocks, out.count, total, (rows, columns), pooled)
    options = device_of(active.device).launch_options
    compact_kernel[(1,)](*arguments, F=factor, CHUNK=chunk, num_warps=4, **options)


def compact_reference(active, factor):
    """The int64 block indices that compact() lists, in plain PyTorch."""
    padded = torch.nn.functional.pad(
        active.float(), (0, -active.shape[2] % factor, 0, -active.shape[1] % factor)
    )
    return torch.nonzero(torch.nn.functional.max_pool2d(padded, factor).flatten()).flatten()
