"""
Reading a GPU's clock as part of a CUDA graph, between stages that are timed: needs Triton.

Events in a graph would be those of its latest replay only; times are copied for every frame.
"""

import torch
import triton
import triton.language as tl

__all__ = ["DeviceClock"]


# One variant of the kernel for all marks.
@triton.jit(do_not_specialize=["index"])
def clock_kernel(times_ptr, index):
    """Runs when all that was launched before it is done."""
    tl.store(times_ptr + index, tl.extra.cuda.globaltimer())


class DeviceClock:
    """Marks on the timeline of a GPU, in one place for all replays of what sets them."""

    def __init__(self, number, device):
        """
        Args:
            number (int): number of marks.
            device (torch.device):
        """
        self._times = torch.zeros(number, dtype=torch.int64, device=device)

    def mark(self, index):
        """Set a mark behind what was launched on the current stream."""
        clock_kernel[(1,)](self._times, index, num_warps=1)

    def marks(self):
        """
        Returns:
            list[_Mark]: as they were set last by what has been launched so far.
        """
        times = self._times.clone()
        copied = torch.cuda.current_stream().record_event()
        return [_Mark(time, copied) for time in times]


class _Mark:
    """To be read like a ``torch.cuda.Event``."""

    def __init__(self, time, copied):
        self._time, self._copied = time, copied

    def synchronize(self):
        self._copied.synchronize()

    def elapsed_time(self, end):
        """float: milliseconds."""
        return (end._time - self._time).item() / 1e6
