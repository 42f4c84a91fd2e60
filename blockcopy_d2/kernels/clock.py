"""
Reads a GPU's clock inside a CUDA graph, between the stages to time. Needs Triton.

CUDA events in a graph hold its latest replay only. These times can be copied for every frame.
"""

import torch
import triton
import triton.language as tl

__all__ = ["DeviceClock"]


# One variant of the kernel for all marks.
@triton.jit(do_not_specialize=["index"])
def clock_kernel(times_ptr, index):
    """Runs once everything launched before it is done."""
    tl.store(times_ptr + index, tl.extra.cuda.globaltimer())


class DeviceClock:
    """
    Marks on the timeline of a GPU.

    Attributes:
        times (Tensor): int64 (number,), in nanoseconds, in one place over all replays of a graph.
    """

    def __init__(self, number, device):
        """
        Args:
            number (int): number of marks.
            device (torch.device):
        """
        self.times = torch.zeros(number, dtype=torch.int64, device=device)

    def mark(self, index):
        """Set a mark after everything launched so far on the current stream."""
        clock_kernel[(1,)](self.times, index, num_warps=1)
