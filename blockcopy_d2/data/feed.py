"""Frames of a source, at a rate of their own, with reconnection to a lost camera."""

import logging
import math
import numbers
import random
import threading
import time
from typing import NamedTuple

from blockcopy_d2.config_key import number

from .addresses import redact_words
from .clips import FrameReadError
from .video_files import FrameSizeError, OwnFrames

__all__ = ["FeedFrame", "FrameFeed"]

# Seconds between tries to reach a lost source; each pause is twice as long as the one before.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_RATE = number(None, most=1e6, open_ends=True)
# Seconds by which the clock of a file may be early.
_TOLERANCE = 1e-3

_logger = logging.getLogger(__name__)


class FeedFrame(NamedTuple):
    """
    Attributes:
        image (ndarray or Tensor): uint8 (H, W, 3), BGR.
        picture: ``send(image)`` of the feed; the image where there is no ``send``.
        vectors (FrameVectors or None): see :meth:`VideoFrames.read`; None also where the frame
            before was left out.
        seconds (float or None): from the first frame of the video to when this one is shown; None
            where the source has no times. After a loss of the source they continue by the time that
            has passed.
        captured (float): when the frame was there, decoded: seconds since 1970.
        arrived (float): the same by time.perf_counter().
        skipped (int): frames left out for the rate, so far.
        reconnects (int): times that the source was lost and found again, so far.
    """

    image: object
    picture: object
    vectors: object
    seconds: float | None
    captured: float
    arrived: float
    skipped: int
    reconnects: int


class FrameFeed:
    """
    Iterates over the frames of a source, on the thread of a :func:`read_ahead`.

    A live source that breaks, goes silent or ends is lost. It is opened again, after waits of 0.5,
    1, 2, ... to 10 seconds, each up to a fifth longer by chance, so that the cameras behind one
    switch do not all come at once. Warnings name the source, without secrets, and the reason.

    Attributes:
        live (bool): whether the source is live.
    """

    def __init__(self, frames, *, vectors=False, fps=None, reconnect=math.inf, send=None):
        """
        Args:
            frames (VideoFrames or OwnFrames): the source.
            vectors (bool): read the motion that the encoder found.
            fps (float or None): most frames per second: of a file by its own clock, of a live
                source by the time at which its frames come. None: all of them.
            reconnect (float): seconds for which a live source that was lost is tried again; after
                them the loss is an error. ``math.inf``: without an end; 0: not at all.
            send (callable or None): called with each image, on the thread that iterates.

        Raises:
            ValueError: a setting is out of range, or ``fps`` is for pictures without times.
        """
        if fps is not None and isinstance(frames, OwnFrames):
            raise ValueError(
                f"fps is {fps}, but an iterable of pictures has no times. Give a file, an address"
                " or a camera, or leave pictures out yourself."
            )
        is_number = isinstance(reconnect, numbers.Real) and not isinstance(reconnect, bool)
        if not is_number or not reconnect >= 0:
            raise ValueError(
                f"reconnect is {reconnect!r}; it must be seconds, at least 0, math.inf for no end."
            )
        self.live = frames.live
        self._frames, self._vectors, self._send = frames, vectors, send
        self._pace = None if fps is None else _Pace(_RATE.check("fps", fps))
        self._loss = _Loss(frames, reconnect) if frames.live and reconnect else None

    @property
    def connected(self):
        """bool: False while a live source is lost."""
        return self._loss is None or self._loss.since is None

    @property
    def reconnects(self):
        """int: times that the source was lost and found again."""
        return 0 if self._loss is None else self._loss.ended

    def stop(self):
        """End the wait for a lost source, from another thread."""
        if self._loss is not None:
            self._loss.stopped.set()

    def __iter__(self):
        """
        Yields:
            FeedFrame: frames of all connections.

        Raises:
            FrameReadError: the source is broken, or was not found again in time.
        """
        skipped, follows = 0, False
        frames = self._read_once() if self._loss is None else self._read_on()
        for image, seconds, vectors in frames:
            captured, arrived = time.time(), time.perf_counter()
            if self._pace and not self._pace.takes(arrived if self.live else seconds):
                skipped, follows = skipped + 1, False
                continue
            picture = image if self._send is None else self._send(image)
            # Vectors lead to the frame before this one.
            vectors = vectors if follows else None
            times = (seconds, captured, arrived)
            yield FeedFrame(image, picture, vectors, *times, skipped, self.reconnects)
            follows = True
            # Free this frame's memory before the next one is read.
            del image, picture, vectors

    def _read_once(self):
        return self._frames.read(vectors=self._vectors)

    def _read_on(self):
        """Yields the frames of the source, one connection after the other."""
        loss, index, start, shown = self._loss, 0, None, 0.0
        while not loss.stopped.is_set():
            opened, reason = None, "it ended"
            try:
                for image, seconds, vectors in self._read_once():
                    if opened is None:
                        opened = time.perf_counter()
                        start = opened if start is None else start
                        offset = max(opened - start, shown) if index else 0.0
                        loss.end()
                    if seconds is not None:
                        seconds = shown = offset + seconds
                    yield image, seconds, vectors
                    index += 1
                    del image, vectors
            except FrameSizeError:
                raise
            except (FrameReadError, OSError, ValueError) as error:
                reason = redact_words(getattr(error, "reason", error))
                reason = reason.removeprefix(f"{self._frames.source} ").rstrip(".")
            lived = 0.0 if opened is None else time.perf_counter() - opened
            if not loss.wait(reason, lived):
                raise FrameReadError(
                    *(self._frames.source, self._frames.name, index),
                    f"{reason}; for {loss.patience:g} seconds it was not found again",
                )


class _Loss:
    """
    The times at which a live source is lost.

    Attributes:
        patience (float): seconds that it may last.
        since (float or None): when it began, by time.perf_counter(); None while there is none.
        ended (int): those that are over.
        stopped (Event): ends the waiting.
    """

    def __init__(self, frames, patience):
        self._frames = frames
        self.patience, self.since, self.ended = patience, None, 0
        self.stopped = threading.Event()
        self._pause = _SHORTEST_PAUSE

    def wait(self, reason, lived):
        """
        Args:
            reason (str): reason of this failure.
            lived (float): seconds that the connection held.

        Returns:
            bool: whether to try it again, now.
        """
        if self.stopped.is_set():
            return True
        now = time.perf_counter()
        self.since = now if self.since is None else self.since
        left = self.since + self.patience - now
        if left <= 0:
            return False
        # Pauses become short again only after the source has lasted for a while.
        if lived > _LONGEST_PAUSE:
            self._pause = _SHORTEST_PAUSE
        pause = min(self._pause * random.uniform(1, 1.2), left)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        _logger.warning(
            "%s is lost: %s. It is tried again in %.1f s.", self._frames.source, reason, pause
        )
        self.stopped.wait(pause)
        return True

    def end(self):
        """Note that there is a frame."""
        if self.since is not None:
            lasted = time.perf_counter() - self.since
            _logger.warning("%s is back after %.1f s.", self._frames.source, lasted)
            self.since = None
            self.ended += 1


class _Pace:
    """Takes so many frames per second, evenly."""

    def __init__(self, fps):
        self._period, self._due = 1 / fps, None

    def takes(self, seconds):
        """
        Args:
            seconds (float): time of the next frame.

        Returns:
            bool: whether to take it.
        """
        if self._due is None:
            self._due = seconds
        if seconds < self._due - _TOLERANCE:
            return False
        # Times lie on a grid from the first frame on, but no two frames come at once after a gap.
        self._due += self._period
        if self._due <= seconds:
            self._due = seconds + self._period
        return True
