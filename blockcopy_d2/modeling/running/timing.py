"""Times the stages of a frame, on the CPU and on CUDA."""

import time
from contextlib import contextmanager

import torch

from blockcopy_d2.kernels.device import current_stream


class StageTimer:
    """
    Times named stages of one frame. On CUDA a stage is two marks in the stream, so timing never
    makes the host wait; only :meth:`seconds` waits. The times of a stage that is entered several
    times add up.
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

    def seconds(self):
        """
        Returns:
            dict[str, float]: seconds per stage, in order of first use.
        """
        total = {}
        for name, start, end in self._intervals:
            if self._cuda:
                end.synchronize()
                elapsed = start.elapsed_time(end) / 1000
            else:
                elapsed = end - start
            total[name] = total.get(name, 0.0) + elapsed
        return total


class HostClock:
    """Marks of the host, where there is no :class:`.clock.DeviceClock`."""

    def __init__(self, number):
        """
        Args:
            number (int): number of marks.
        """
        self._times = [0.0] * number

    def mark(self, index):
        """Set a mark."""
        self._times[index] = time.perf_counter()

    def marks(self):
        """Returns the marks, for :meth:`StageTimer.add`."""
        return list(self._times)


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
