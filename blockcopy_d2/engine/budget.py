"""Holds the time of a frame by moving the target."""

import statistics
from collections import deque

__all__ = ["FrameBudget"]


class FrameBudget:
    """
    Finds the target at which the median frame meets the budget. The law, over the last ``window``
    frames:

        target = median executed fraction * budget / median time, within [least, 1]

    A frame takes a + b * f for an executed fraction f, with a >= 0, and so does the median frame.
    Around the fixed point, where a + b * f is the budget, a step multiplies the distance by
    a / budget, which is at least 0 and below 1 wherever the budget can be met at all: the target
    approaches its value from one side and does not oscillate. The law reads the executed fraction,
    not the target, so a policy that follows slowly does not wind it up. Where the median frame
    executes nothing, as few blocks do at a low target, the mean fraction takes its place.
    """

    def __init__(self, seconds, *, window=16, least=0.02):
        """
        Args:
            seconds (float): budget of the median frame.
            window (int): number of frames for the medians. The target moves once half of them are
                there.
            least (float): the smallest target.
        """
        if not seconds > 0:
            raise ValueError(f"A budget of {seconds} seconds; it must be positive.")
        self.seconds = seconds
        self.least = least
        self._frames = deque(maxlen=window)

    def update(self, seconds, executed):
        """
        Args:
            seconds (float): time of a frame.
            executed (float): fraction of its blocks that was executed.

        Returns:
            float or None: the target from now on; None while there are too few frames.
        """
        self._frames.append((seconds, executed))
        if 2 * len(self._frames) < self._frames.maxlen:
            return None
        seconds, executed = zip(*self._frames)
        typical = statistics.median(executed) or statistics.fmean(executed)
        target = typical * self.seconds / statistics.median(seconds)
        return min(max(target, self.least), 1.0)
