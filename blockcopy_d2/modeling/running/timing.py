"""Times the stages of a frame, on the CPU and on CUDA."""

import time
from contextlib import contextmanager

import torch


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
        self._cuda = torch.device(device).type == "cuda"
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
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

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
