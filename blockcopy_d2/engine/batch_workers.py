"""
Processes that run videos, each with a model of its own. A process that dies costs the video that it
had, which is reported, and is replaced by a new one.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
import traceback

import torch

from blockcopy_d2.data import redact

__all__ = ["WorkerError", "run_in_workers"]

_PROGRESS_SECONDS = 0.2


class WorkerError(ValueError):
    """A process that could not even build its model."""


def run_in_workers(tasks, build_job, count, *, on_ready, on_frames, on_record, write_record):
    """
    Args:
        tasks (sequence[VideoTask]):
        build_job (callable): takes the number of a process and returns its :class:`VideoJob`. It is
            pickled and called in a process that was started anew.
        count (int): number of processes.
        on_ready (callable): called when a process has built its job.
        on_frames (callable): called now and then with a task and the number of its frames so far.
        on_record (callable): called with a task and its record, see :class:`VideoJob`.
        write_record (callable): called with a task and a record, for videos whose process died.

    Raises:
        WorkerError: a process cannot build its job; says why.
        ResultsWriteError: see :class:`VideoJob`.
    """
    waiting = list(reversed(tasks))
    workers = {}
    with contextlib.ExitStack() as stack:

        def start(number):
            worker = _Worker(number, build_job, count)
            stack.callback(worker.stop)
            workers[worker.connection] = worker
            worker.give(waiting.pop())

        for number in range(min(count, len(waiting))):
            start(number)
        while workers:
            for connection in multiprocessing.connection.wait(list(workers)):
                worker = workers[connection]
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):
                    kind, value = "died", worker.ended()
                if kind == "ready":
                    on_ready()
                    continue
                if kind == "frames":
                    on_frames(worker.task, value)
                    continue
                if kind == "failed":
                    raise value if isinstance(value, OSError) else WorkerError(value)
                if kind == "died":
                    value = {**worker.task_record(), "error": value}
                    write_record(worker.task, value)
                    del workers[connection]
                on_record(worker.task, value)
                if kind == "died" and waiting:
                    start(worker.number)
                elif waiting:
                    worker.give(waiting.pop())
                elif kind != "died":
                    del workers[connection]


class _Worker:
    """A process, seen from the one that started it."""

    def __init__(self, number, build_job, count):
        self.number, self.task = number, None
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, build_job, number, count), daemon=True
        )
        self._process.start()
        theirs.close()

    def give(self, task):
        self.task = task
        with contextlib.suppress(OSError):  # The death of a process is read next.
            self.connection.send(task)

    def task_record(self):
        return {"video": redact(self.task.source), "results": self.task.results}

    def ended(self):
        """str: how the process did."""
        self._process.join()
        code = self._process.exitcode
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        memory = "; is there too little memory?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"

    def stop(self):
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _work(connection, build_job, number, count):
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))
    try:
        job = build_job(number)
    except Exception as error:
        trace = "" if isinstance(error, (OSError, ValueError)) else f"\n{traceback.format_exc()}"
        connection.send(("failed", f"{error}{trace}"))
        return
    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send(("ready", None))
        while True:
            task = connection.recv()
            progress = _Progress(connection)
            try:
                connection.send(("record", job(task, progress)))
            except BrokenPipeError:
                raise
            except OSError as error:
                connection.send(("failed", error))
                return


class _Progress:
    """Reports how far a video is, not too often."""

    def __init__(self, connection):
        self._connection, self._next = connection, 0.0

    def __call__(self, frames):
        if time.monotonic() < self._next:
            return
        try:
            self._connection.send(("frames", frames))
        except OSError:
            raise SystemExit("The program that started this process is gone.") from None
        self._next = time.monotonic() + _PROGRESS_SECONDS
