"""Decoding frames on a thread, while the last ones are being run."""

import os
import queue
import threading

from .video_files import VideoFrames

__all__ = ["open_frames", "read_ahead"]


def open_frames(source):
    """
    Args:
        source (str, int or iterable): what :class:`VideoFrames` takes, the number of a camera, or
            any iterable of frames, uint8 (H, W, 3), BGR, which stays as it is.

    Returns:
        iterable[ndarray]:

    Raises:
        TypeError: something else. For errors of a source see :class:`VideoFrames`.
    """
    if isinstance(source, int):
        source = f"/dev/video{source}"
    if isinstance(source, (str, os.PathLike)):
        return VideoFrames(source)
    if not hasattr(source, "__iter__"):
        raise TypeError(
            f"A video is a path, an address, the number of a camera, or an iterable of frames; not"
            f" {type(source).__name__}."
        )
    return source


def read_ahead(items, depth=2):
    """
    Iterate on another thread. An exception there is raised here, after the items before it.
    Closing the generator, or leaving it to the garbage collector, stops the thread and closes
    ``items``.

    Args:
        items (iterable):
        depth (int): most items that wait to be taken; one more is in the thread's hands.

    Yields:
        the items, in order.
    """
    waiting = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    thread = threading.Thread(
        target=_read, args=(items, waiting, stopped), name="read-ahead", daemon=True
    )
    thread.start()
    try:
        while True:
            kind, item = waiting.get()
            if kind is _END:
                return
            if kind is _ERROR:
                raise item
            yield item
            # Not held while waiting for the next one.
            del item
    finally:
        stopped.set()
        thread.join()


_ITEM, _ERROR, _END = object(), object(), object()


def _read(items, waiting, stopped):
    iterator = None
    try:
        iterator = iter(items)
        for item in iterator:
            if not _put((_ITEM, item), waiting, stopped):
                return
            del item
        _put((_END, None), waiting, stopped)
    except BaseException as error:  # all of it is the consumer's, an interrupt included
        _put((_ERROR, error), waiting, stopped)
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


def _put(entry, waiting, stopped):
    """Waits for room. False: nobody will take it any more."""
    while not stopped.is_set():
        try:
            waiting.put(entry, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
