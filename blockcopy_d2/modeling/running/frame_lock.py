"""Runs one frame of a model at a time, for any number of threads."""

import threading

__all__ = ["FrameLock"]


class FrameLock:
    """
    Held by a thread during a frame: frames of one model share its policy, its learner, its streams
    by video id and the kernels' scratch memory. The thread that holds it may acquire it again. A
    copied or unpickled model has a lock of its own.
    """

    def __init__(self):
        self._lock = threading.RLock()

    def __enter__(self):
        self._lock.acquire()
        return self

    def __exit__(self, *exc):
        self._lock.release()

    def __reduce__(self):
        return FrameLock, ()
