"""The choice of a level of a feature pyramid within a kernel."""

import triton
import triton.language as tl


@triton.jit
def of_level(items, level, L: tl.constexpr):
    """
    The item of a level, from a tuple of L numbers or pointers of one type. Tuples take no index
    that is only known when the kernel runs.
    """
    item = items[0]
    for other in tl.static_range(1, L):
        item = tl.where(level == other, items[other], item)
    return item
