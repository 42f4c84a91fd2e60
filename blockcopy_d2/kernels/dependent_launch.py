"""
Programmatic dependent launch: a kernel starts up while earlier ones still run. The constant PDL
says whether the GPU supports it, see Device.pdl.
"""

import triton
import triton.language as tl

__all__ = ["begin", "begin_with", "count_blocks", "prefetch"]


@triton.jit
def prefetch(ptr, num_bytes, PDL: tl.constexpr):
    """
    Called before begin(): all programs together request the weights at `ptr` into the L2 cache,
    while earlier kernels still run.
    """
    if PDL:
        LINES: tl.constexpr = 128
        line = tl.arange(0, LINES)
        for first in range(tl.program_id(0) * LINES, num_bytes // 128, tl.num_programs(0) * LINES):
            address = ptr.to(tl.int64) + tl.minimum(first + line, num_bytes // 128 - 1) * 128
            code: tl.constexpr = "prefetch.global.L2 [$1]; mov.u32 $0, 0;"
            tl.inline_asm_elementwise(code, "=r,l", [address], tl.int32, is_pure=False, pack=1)


@triton.jit
def begin(PDL: tl.constexpr):
    """First statement of a kernel: with programmatic dependent launch, waits for the results of the
    kernels before, and lets the next one start up meanwhile.

    So when a kernel starts up, the previous one has begun, and all earlier ones have ended.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def count_blocks(count_ptr, SETTLED: tl.constexpr, PDL: tl.constexpr):
    """Returns the number of active blocks. Where the list is SETTLED, it is read before begin().

    The first statement of a kernel, followed by :func:`begin_with`. The read bypasses the L1 cache,
    which may hold the value of an earlier frame until the kernel has begun.
    """
    if not SETTLED:
        begin(PDL)
    return tl.load(count_ptr, cache_modifier=".cg")


@triton.jit
def begin_with(busy, SETTLED: tl.constexpr, PDL: tl.constexpr):
    """
    begin() after count_blocks(): where the list is SETTLED, programs that are not `busy` do not
    wait. The first program always waits, so that a kernel never ends before earlier ones.
    """
    if SETTLED and PDL:
        if busy | (tl.program_id(0) == 0):
            tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
