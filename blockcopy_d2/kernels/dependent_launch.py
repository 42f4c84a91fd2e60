"""Programmatic dependent launch: a kernel starts up while the ones in front still run. PDL says
whether the GPU has it, see Device.pdl."""

import triton
import triton.language as tl

__all__ = ["begin", "begin_with", "count_blocks", "prefetch"]


@triton.jit
def prefetch(ptr, num_bytes, PDL: tl.constexpr):
    """Before begin(): all programs together ask for the weights at `ptr` to be brought to the L2
    cache, which takes place while the kernels before still run."""
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
