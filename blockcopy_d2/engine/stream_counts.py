"""Frames that passed between the results of a stream, and the clock of a result."""

import time
from typing import NamedTuple

from blockcopy_d2.modeling import FrameClock

__all__ = ["StreamCounts"]


class _Count(NamedTuple):
    dropped: int = 0
    skipped: int = 0
    reconnects: int = 0


class StreamCounts:
    """
    Counts the frames of one stream.

    Attributes:
        dropped, skipped, reconnects (int): numbers between its last two frames, see
            :class:`FrameClock`.
    """

    def __init__(self):
        self._total = _Count()
        self.dropped = self.skipped = self.reconnects = 0

    def advance(self, frame, dropped):
        """
        Args:
            frame (FeedFrame): the next one.
            dropped (int): frames of the feed that were passed over so far.
        """
        total = _Count(dropped, frame.skipped, frame.reconnects)
        new = (now - before for now, before in zip(total, self._total, strict=True))
        self.dropped, self.skipped, self.reconnects = new
        self._total = total

    def stamp(self, result, frame):
        """
        Write times and counts of a result that is ready to be handed out.

        Args:
            result (FrameResult):
            frame (FeedFrame): the one of the last :meth:`advance`.
        """
        result.dropped, result.time = self.dropped, frame.seconds
        result.clock = FrameClock(
            captured=frame.captured,
            latency=time.perf_counter() - frame.arrived,
            dropped=self.dropped,
            skipped=self.skipped,
            reconnects=frame.reconnects,
        )
