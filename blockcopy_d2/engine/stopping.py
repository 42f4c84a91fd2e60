"""Ends a run early, between two frames, with everything in order."""

import contextlib
import logging
import os
import signal
import threading

__all__ = ["RunStopped", "StopSignals", "finishing"]


class RunStopped(KeyboardInterrupt):
    """
    A run that ended early, because it was asked to.

    Attributes:
        reason (str): signal that asked for it.
        exit_code (int): code of the program, as a shell expects it after this signal.
    """

    def __init__(self, reason, exit_code):
        super().__init__(reason)
        self.reason = reason
        self.exit_code = exit_code


class StopSignals:
    """
    A context in which Ctrl-C and SIGTERM are waited for. While ``deferring``, the first one is only
    noted in ``received``, so that the current frame can finish. The next one, and any while not
    ``deferring``, raises :class:`RunStopped` at once. Nothing changes outside the main thread,
    where Python allows no handlers, nor for signals that the program ignores.

    Attributes:
        deferring (bool): may be changed at any time.
        received (RunStopped or None): the first signal.
        insistent (bool): whether there was another one.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, task="this frame"):
        """
        Args:
            task (str): what is finished while ``deferring``, for the log.
        """
        self.deferring = False
        self.received = None
        self.insistent = False
        self._before = {}
        self._process = os.getpid()
        self._task = task

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in self._NUMBERS:
                before = signal.getsignal(number)
                # None: a handler that is not Python's and could not be restored.
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc):
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _handle(self, number, frame):
        if os.getpid() != self._process:
            return  # a worker of the data loader, which inherits this; its owner ends it
        stopped = RunStopped(signal.Signals(number).name, 128 + number)
        if self.received is None:
            self.received = stopped
            if self.deferring:
                logging.getLogger(__name__).warning(
                    "%s: stopping after %s; once more: at once.", stopped.reason, self._task
                )
                return
        else:
            self.insistent = True
        raise stopped


@contextlib.contextmanager
def finishing(task):
    """
    A context that a first Ctrl-C or SIGTERM does not cut short.

    Args:
        task (str): what is done in it, for the log.

    Raises:
        RunStopped: at the end, if there was a signal.
    """
    with StopSignals(task) as signals:
        signals.deferring = True
        yield
        signals.deferring = False
    if signals.received is not None:
        raise signals.received
