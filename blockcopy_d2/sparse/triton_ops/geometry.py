"""Where the pixels of the active blocks are.

Shape shorthand: N streams, GH x GW blocks of T x T pixels in a map of H x W pixels; blocks at the
lower and right border may reach beyond the map.
"""

import dataclasses

import torch
import triton
import triton.language as tl


@dataclasses.dataclass
class BlockList:
    """The active blocks of a frame, on the device.

    Attributes:
        blocks: int32 (N * GH * GW,), flat indices of the active blocks in (N, GH, GW), ascending;
            what follows the first `count` of them is undefined.
        count: int32 (1,).
        settled: whether another launch separates whatever made the list from the next one. A kernel
            may then read it before those in front have ended, see :func:`count_blocks`.
    """

    blocks: torch.Tensor
    count: torch.Tensor
    settled: bool = False


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How blocks cover the maps of one stride.

    Attributes:
        tile: T.
        rows, columns: GH, GW.
        num_blocks: N * GH * GW.
    """

    tile: int
    rows: int
    columns: int
    num_blocks: int

    @property
    def num_pixels(self):
        """Pixels of all blocks, those beyond the border included."""
        return self.num_blocks * self.tile**2


@triton.jit
def locate(m, blocks_ptr, num_pixels, T, GH, GW):
    """(stream, y, x, valid) of the m-th active pixels, counted block by block, row by row.

    `num_pixels` is the number of active ones; y and x may lie beyond the border of the map.
    """
    valid = m < num_pixels
    block = tl.load(blocks_ptr + m // (T * T), mask=valid, other=0)
    inside = m % (T * T)
    row = block // GW
    y = (row % GH) * T + inside // T
    x = (block % GW) * T + inside % T
    return row // GH, y, x, valid


@triton.jit
def prefetch(ptr, num_bytes, PDL: tl.constexpr):
    """Before begin(): all programs together ask for the weights at `ptr` to be brought to the L2
    cache, which takes place while the kernels before still run."""
    if PDL:
        LINES: tl.constexpr = 128
        line = tl.arange(0, LINES)
        for first in range(tl.program_id(0) * LINES, num_bytes // 128, tl.num_programs(0) * LINES):
            address = ptr.to(tl.int64) + tl.minimum(first + line, num_bytes // 128 - 1) * 128
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32,
                is_pure=False, pack=1,
            )  # fmt: skip


@triton.jit
def begin(PDL: tl.constexpr):
    """First statement of a kernel: with programmatic dependent launch, waits for the results of the
    kernels before, and lets the next one start up meanwhile.

    So when a kernel starts up, the one before it has begun, and all before that one have ended.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def count_blocks(count_ptr, SETTLED: tl.constexpr, PDL: tl.constexpr):
    """The number of active blocks, read before the kernel begins where the list is SETTLED.

    First statement of a kernel, with :func:`begin_with` to follow. It is read past the L1
    cache, where a value of an earlier frame may be left until the kernel has begun.
    """
    if not SETTLED:
        begin(PDL)
    return tl.load(count_ptr, cache_modifier=".cg")


@triton.jit
def begin_with(busy, SETTLED: tl.constexpr, PDL: tl.constexpr):
    """begin() behind count_blocks(): where the list is SETTLED, programs that are not `busy` do not
    wait. The first one always does, so that a kernel never ends before those in front."""
    if SETTLED and PDL:
        if busy | (tl.program_id(0) == 0):
            tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
