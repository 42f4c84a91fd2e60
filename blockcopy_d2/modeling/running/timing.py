"""Times the stages of a frame, on the CPU and on CUDA."""

import functools
import time
from contextlib import contextmanager

import torch

from blockcopy_d2.kernels.device import current_stream


class StageTimer:
    """
    Times named stages of one frame. On CUDA a stage is two marks in the stream, so timing never
    makes the host wait; only :meth:`seconds` waits. The times of a stage that is entered several
    times add up. Stages of graphs are timed by a clock, see :func:`clock_of`.
    """

    def __init__(self, device):
        """
        Args:
            device (torch.device or str): where the timed work runs.
        """
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"
        self._intervals = []

    @contextmanager
    def stage(self, name):
        start = self.now()
        try:
            yield
        finally:
            self.add(name, start)

    def now(self):
        """A mark on the device's timeline, for :meth:`add`."""
        if not self._cuda:
            return time.perf_counter()
        return current_stream(self._device).record_event(torch.cuda.Event(enable_timing=True))

    def add(self, name, start, end=None):
        """Count the time from mark ``start`` until ``end``, or now, to stage ``name``."""
        self._intervals.append((name, start, self.now() if end is None else end))

    def add_times(self, stages, times):
        """
        Count the times between the marks of a clock.

        Args:
            stages (sequence[sequence[str]]): for every interval, the stages that it counts to.
            times (callable): returns a copy of the marks, int64 in nanoseconds, that was launched
                on the current stream. Called when they are read.
        """
        reading = _Reading(times, current_stream(self._device) if self._cuda else None)
        for index, names in enumerate(stages):
            for name in names:
                self._intervals.append((name, (reading, index), (reading, index + 1)))

    def seconds(self):
        """
        Returns:
            dict[str, float]: seconds per stage, in order of first use.
        """
        total = {}
        for name, start, end in self._intervals:
            total[name] = total.get(name, 0.0) + self._between(start, end)
        return total

    def _between(self, start, end):
        if isinstance(start, tuple):
            reading, index = start
            return (reading.nanoseconds[index + 1] - reading.nanoseconds[index]) / 1e9
        if not self._cuda:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


class _Reading:
    """The marks of a clock at some moment."""

    def __init__(self, times, stream):
        self._times, self._stream = times, stream

    @functools.cached_property
    def nanoseconds(self):
        """list[int]: waits for the stream that wrote them."""
        with torch.cuda.stream(self._stream):
            return self._times().tolist()


class HostClock:
    """
    Marks of the host, where there is no :class:`.clock.DeviceClock`.

    Attributes:
        times (Tensor): int64 (number,), in nanoseconds.
    """

    def __init__(self, number):
        """
        Args:
            number (int): number of marks.
        """
        self.times = torch.zeros(number, dtype=torch.int64)

    def mark(self, index):
        """Set a mark."""
        self.times[index] = time.perf_counter_ns()


def clock_of(device, number):
    """
    Args:
        device (torch.device): where stages run as graphs, if it has any.
        number (int): number of stages.

    Returns:
        DeviceClock or HostClock: clock for the marks before, between and after them.
    """
    if device.type != "cuda":
        return HostClock(number + 1)
    from blockcopy_d2.kernels.clock import DeviceClock

    return DeviceClock(number + 1, device)
