"""Reads on a thread of its own, while earlier items are in use."""

import contextlib
import logging
import threading
import time
import weakref
from collections import deque

from blockcopy_d2.config_key import whole

__all__ = ["ENDED", "ReadAhead", "call_aside", "close_all", "next_of_each", "read_ahead"]

# Seconds after which a silent source is left behind, for all readers of a caller together.
_CLOSE_SECONDS = 1.0
_WAKE_SECONDS = 0.2
# Live sources of one rate come within a period; waiting that long for all costs too much delay.
_TOGETHER_SECONDS, _POLL_SECONDS = 0.02, 0.002


def read_ahead(items, depth=2, *, latest=False):
    """
    Iterate on another thread.

    Args:
        items (iterable): its method ``stop``, if it has one, is called when the reader stops.
        depth (int): most items that wait to be taken, at least 1. The thread holds one more.
        latest (bool): for live sources, which never wait. An item that was not taken when the next
            one comes is dropped, so that the newest one is taken.

    Returns:
        ReadAhead: an iterator over the items, in order.
    """
    return ReadAhead(items, whole(2, least=1).check("depth", depth), latest)


class ReadAhead:
    """
    Iterates on another thread. An exception there is raised here, after the items before it.

    Closing it, or garbage collection, stops the thread and closes ``items``. This waits at most a
    second for a silent source. Its thread is then left behind, drops further items, and closes the
    source when that answers. It does not keep the program from ending.

    Attributes:
        latest (bool): see :func:`read_ahead`.
        dropped (int): items before the last taken one that were skipped for newer ones.
        ended (bool): whether there are no more items.
    """

    def __init__(self, items, depth, latest):
        self.latest, self.dropped, self.ended = latest, 0, False
        # The thread refers to the shelf alone, so that it does not keep this object alive.
        self._shelf = _Shelf(1 if latest else depth, latest, getattr(items, "stop", None))
        weakref.finalize(self, self._shelf.stop)
        self._thread = threading.Thread(
            target=_read, args=(items, self._shelf), name="read-ahead", daemon=True
        )
        self._thread.start()

    def __iter__(self):
        return self

    def __next__(self):
        kind, item, self.dropped = self._shelf.take()
        if kind is _ITEM:
            return item
        self.ended = True
        self.close()
        raise StopIteration if kind is _END else item

    @property
    def ready(self):
        """bool: whether the next item, or the end, is there."""
        return self._shelf.ready

    def stop(self):
        """Ask the thread to end, without waiting for it."""
        self._shelf.stop()

    def close(self):
        """Stop the thread, and wait for it for at most a second."""
        close_all([self])


def close_all(readers):
    """
    Args:
        readers (iterable[ReadAhead]): readers to close, within a second for all of them.
    """
    readers = list(readers)
    for reader in readers:
        reader.stop()
    end = time.monotonic() + _CLOSE_SECONDS
    for reader in readers:
        reader._thread.join(max(0, end - time.monotonic()))
        if reader._thread.is_alive():
            logging.getLogger(__name__).warning(
                "A source of frames did not answer within %g s of being closed. Its thread is left"
                " behind; it closes the source when that answers.",
                _CLOSE_SECONDS,
            )


def next_of_each(readers):
    """
    Take an item of every reader. Live sources do not wait for each other: once one of them has an
    item, the others have 20 ms to come along. Other sources are waited for.

    Args:
        readers (list[ReadAhead]): those with ``latest`` are live.

    Returns:
        list: for every reader its item, None if a live source has nothing new, or ``ENDED``.
    """
    if len(readers) == 1:
        return [next(readers[0], ENDED)]
    going = [reader for reader in readers if not reader.ended]
    if going and all(reader.latest for reader in going):
        while not any(reader.ready for reader in going):
            time.sleep(_POLL_SECONDS)
        end = time.monotonic() + _TOGETHER_SECONDS
        while time.monotonic() < end and not all(reader.ready for reader in going):
            time.sleep(_POLL_SECONDS)
    return [
        next(reader, ENDED) if reader.ready or not reader.latest else None for reader in readers
    ]


def call_aside(function):
    """
    Call a function on another thread. An interrupt does not wait for it.

    Args:
        function (callable): without arguments.

    Returns:
        its result.
    """
    with contextlib.closing(read_ahead(f() for f in (function,))) as results:
        return next(results)


_ITEM, _ERROR, _END = object(), object(), object()
ENDED = object()


class _Shelf:
    """Passes items from the thread that reads to the one that takes."""

    def __init__(self, depth, latest, on_stop):
        self._depth, self._latest, self._on_stop = depth, latest, on_stop
        self._entries = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._dropped = 0

    def put(self, kind, item):
        """Waits for room. Returns False if the item is no longer wanted."""
        with self._changed:
            if self._latest and kind is _ITEM and self._entries:
                self._entries.clear()
                self._dropped += 1
            while len(self._entries) >= self._depth and not self._stopped:
                self._changed.wait()
            if not self._stopped:
                self._entries.append((kind, item, self._dropped))
                self._changed.notify_all()
            return not self._stopped

    def take(self):
        with self._changed:
            while not self._entries:
                if self._stopped:
                    return _END, None, self._dropped
                # Waits in short turns, since not every interrupt wakes a waiting thread.
                self._changed.wait(_WAKE_SECONDS)
            self._changed.notify_all()
            return self._entries.popleft()

    @property
    def ready(self):
        return self._stopped or bool(self._entries)

    def stop(self):
        with self._changed:
            self._stopped = True
            self._entries.clear()
            self._changed.notify_all()
        if self._on_stop is not None:
            self._on_stop()


def _read(items, shelf):
    iterator = None
    try:
        iterator = iter(items)
        del items
        for item in iterator:
            if not shelf.put(_ITEM, item):
                return
            # Free this item's memory before the next one is read.
            del item
        shelf.put(_END, None)
    except BaseException as error:  # raised for the consumer, even an interrupt
        shelf.put(_ERROR, error)
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
