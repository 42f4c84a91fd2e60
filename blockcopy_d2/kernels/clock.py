"""
Reads a GPU's clock inside a CUDA graph, between the stages to time. Needs Triton.

CUDA events in a graph hold its latest replay only. These times are copied for every frame.
"""

import functools

import torch
import triton
import triton.language as tl

from .device import current_stream

__all__ = ["DeviceClock"]


# One variant of the kernel for all marks.
@triton.jit(do_not_specialize=["index"])
def clock_kernel(times_ptr, index):
    """Runs once everything launched before it is done."""
    tl.store(times_ptr + index, tl.extra.cuda.globaltimer())


class DeviceClock:
    """Marks on the timeline of a GPU. They stay in one place over all replays of a graph."""

    def __init__(self, number, device):
        """
        Args:
            number (int): number of marks.
            device (torch.device):
        """
        self._times = torch.zeros(number, dtype=torch.int64, device=device)

    def mark(self, index):
        """Set a mark after everything launched so far on the current stream."""
        clock_kernel[(1,)](self._times, index, num_warps=1)

    def marks(self):
        """
        Returns:
            list[_Mark]: the marks as last set by the launches so far.
        """
        reading = _Reading(self._times)
        return [_Mark(reading, index) for index in range(len(self._times))]


class _Reading:
    """The times of all marks at some moment."""

    def __init__(self, times):
        self._times = times.clone()
        self.copied = current_stream(times.device).record_event()

    @functools.cached_property
    def nanoseconds(self):
        """list[int]: waits for the device."""
        return self._times.tolist()


class _Mark:
    """Reads like a ``torch.cuda.Event``."""

    def __init__(self, reading, index):
        self._reading, self._index = reading, index

    def synchronize(self):
        self._reading.copied.synchronize()

    def elapsed_time(self, end):
        """float: milliseconds."""
        return (end._nanoseconds - self._nanoseconds) / 1e6

    @property
    def _nanoseconds(self):
        return self._reading.nanoseconds[self._index]
