"""
Videos on the machines of a Ray cluster: an actor per GPU takes one whole video after the other, so
that the state of a stream never moves. A video whose actor dies is run again by another one.

All machines see the same files: videos, weights, the folder of results, and the folder in which the
program was started.
"""

import collections
import contextlib
import logging
import os
import signal
import socket
import threading
import time

import torch

from blockcopy_d2.data import redact

from .batch_workers import WorkerError

__all__ = ["import_ray", "run_with_ray"]

# After so many deaths of its actors a video is given up. After as many, before any actor has built
# its model, no further actor is started.
_MOST_DEATHS = 3
_PROGRESS_SECONDS = 1.0
# Seconds between looks at the machines of the cluster, and until a wait for room is reported.
_LOOK_SECONDS, _PATIENCE_SECONDS = 10.0, 60.0

_logger = logging.getLogger(__name__)


def import_ray():
    """
    Returns:
        module: ``ray``.

    Raises:
        ImportError: names the extra.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("--ray needs Ray: pip install 'blockcopy-d2[ray]'") from None
    return ray


def run_with_ray(
    tasks,
    build_job,
    folder,
    *,
    address,
    workers=None,
    share_policy=None,
    on_ready,
    on_frames,
    on_record,
):
    """
    Run the videos of a batch, and return when all have a record.

    Args:
        tasks (sequence[VideoTask]):
        build_job (callable): takes the number of an actor and returns its :class:`VideoJob`; it is
            pickled.
        folder (BatchFolder): open.
        address (str): the address of a cluster; "auto": the cluster of this machine; "local": one
            that is started for this run alone.
        workers (int or None): number of actors, which share GPUs evenly, or CPUs where there are no
            GPUs. Default: one per GPU; without GPUs one per machine.
        share_policy (int or None): after so many videos of an actor its policy becomes the mean of
            the policies of all actors. Default: each learns by itself.
        on_ready, on_frames, on_record: see :func:`run_in_workers`.

    Raises:
        ConnectionError: there is no cluster at the address, or all its machines are gone.
        WorkerError: an actor cannot build its job; says why.
        ResultsWriteError: see :class:`VideoJob`.
    """
    ray = import_ray()
    with _connected(ray, address):
        crew = _Crew(ray, tasks, build_job, folder, share_policy)
        count, resources = _share_out(ray, workers, len(tasks))
        _logger.info("%d actors with %s each.", count, resources)
        try:
            crew.run(count, resources, on_ready, on_frames, on_record)
        finally:
            crew.end()


@contextlib.contextmanager
def _connected(ray, address):
    if ray.is_initialized():
        yield
        return
    # Ray sends usage reports unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        _reach(address)
        with _signals_kept():
            ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise ConnectionError(
            f"There is no Ray cluster at --ray {redact(address)}: {said}. Start one with `ray start"
            " --head`, or give --ray local for this machine alone."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address):
    """Raises OSError at once where nothing listens: Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def _signals_kept():
    """Restores the handler of SIGTERM: that of Ray would end the program without a summary."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)


def _share_out(ray, workers, most):
    """
    Returns:
        tuple[int, dict[str, float]]: the number of actors, and what Ray reserves for each.
    """
    total = ray.cluster_resources()
    gpus, cpus = total.get("GPU", 0), total.get("CPU", 1)
    count = workers or int(gpus) or sum(node["Alive"] for node in ray.nodes())
    if gpus:
        # Several actors on a GPU reserve equal parts of it; Ray counts in units of 0.0001.
        each = 1.0 if count <= gpus else int(1e4 / -(-count // gpus)) / 1e4
        return min(count, most), {"num_gpus": each, "num_cpus": min(1.0, cpus / count)}
    return min(count, most), {"num_cpus": float(max(1, int(cpus // count)))}


class _Actor:
    """Runs videos, in a process that Ray starts on one of its machines."""

    def __init__(self, folder):
        self._folder, self._frames, self._job = folder, 0, None

    def build(self, build_job, number):
        try:
            os.chdir(self._folder)
        except OSError as error:
            raise WorkerError(
                f"The machine {socket.gethostname()} does not see the folder"
                f" {redact(self._folder)}, in which the program was started: {error.strerror}. All"
                " machines must see the same files."
            ) from None
        self._job = build_job(number)

    def run(self, task, policy, wants_policy):
        """
        Args:
            task (VideoTask):
            policy (dict or None): state to start from.
            wants_policy (bool): return the state of the policy, too.

        Returns:
            tuple[dict, dict or None]: the record of the video, and the state.
        """
        self._frames = 0
        if policy is not None:
            self._job.policy.load_state_dict(policy)
        record = self._job(task, self._note)
        state = self._job.policy.state_dict() if wants_policy else {}
        return record, {name: value.cpu() for name, value in state.items()} or None

    def _note(self, frames):
        self._frames = frames

    def frames(self):
        return self._frames


class _Member:
    """An actor, seen from the program that started it."""

    def __init__(self, actor, number):
        self.actor, self.number = actor, number
        self.task, self.videos, self.policy = None, 0, None


class _Crew:
    """The actors of a run, and the videos that are left for them."""

    def __init__(self, ray, tasks, build_job, folder, share_policy):
        self._ray, self._build_job, self._folder = ray, build_job, folder
        self._share_policy = share_policy
        self._waiting = collections.deque(tasks)
        self._deaths, self._deaths_at_start = collections.Counter(), 0
        # Reference to a running task -> its actor.
        self._members, self._policies = {}, {}
        self._asked = 0.0
        self._looked = self._seen = time.monotonic()

    def run(self, count, resources, on_ready, on_frames, on_record):
        """Run all videos; see :func:`run_with_ray` for the arguments."""
        # While an actor runs a video, it also reports its progress.
        kind = self._ray.remote(_Actor).options(max_concurrency=2, max_restarts=0, **resources)
        for number in range(count):
            self._start(kind, number)
        # When no video is left, actors that still start are not waited for.
        while self._waiting or any(member.task for member in self._members.values()):
            done, _ = self._ray.wait(list(self._members), timeout=_PROGRESS_SECONDS)
            self._tell_progress(on_frames)
            self._check_cluster(resources)
            for reference in done:
                member = self._members.pop(reference)
                try:
                    value = self._ray.get(reference)
                except self._ray.exceptions.RayTaskError as error:
                    raise _cause(error) from None
                except self._ray.exceptions.RayError as error:
                    self._bury(member, error, on_record)
                    if self._waiting:
                        self._start(kind, member.number)
                    continue
                if member.task is None:
                    self._deaths_at_start = 0
                    on_ready()
                else:
                    record, member.policy = value
                    on_record(member.task, record)
                    member.videos += 1
                self._next(member)

    def end(self):
        """End all actors, also in the middle of a video."""
        for member in self._members.values():
            self._ray.kill(member.actor)

    def _start(self, kind, number):
        actor = kind.remote(os.getcwd())
        reference = actor.build.remote(self._build_job, number)
        self._members[reference] = _Member(actor, number)

    def _next(self, member):
        if not self._waiting:
            self._ray.kill(member.actor)
            return
        member.task = self._waiting.popleft()
        policy, wants = None, False
        if self._share_policy:
            if member.policy is not None:
                self._policies[member.number] = member.policy
                policy = _mean(member.policy, list(self._policies.values()))
            wants = (member.videos + 1) % self._share_policy == 0
        self._members[member.actor.run.remote(member.task, policy, wants)] = member

    def _bury(self, member, error, on_record):
        """After the death of an actor: its video is run again, unless it has its results."""
        with contextlib.suppress(Exception):  # It may live on where only the connection broke.
            self._ray.kill(member.actor)
        task, reason = member.task, str(error).strip().splitlines()[0].rstrip(".")
        if task is None:
            self._deaths_at_start += 1
            if self._deaths_at_start >= _MOST_DEATHS:
                raise WorkerError(f"Actors die while they build their model: {reason}.")
            return
        self._deaths[task] += 1
        if self._folder.is_done(task):
            # The actor died after its video, before it answered.
            on_record(task, self._folder.record(task))
        elif self._deaths[task] < _MOST_DEATHS:
            _logger.warning(
                "The actor that ran %s died (%s); the video is run again.",
                redact(task.source),
                reason,
            )
            self._waiting.appendleft(task)
        else:
            record = {"video": redact(task.source), "results": task.results}
            record["error"] = f"its actor died {_MOST_DEATHS} times: {reason}"
            self._folder.write_record(task, record)
            on_record(task, record)

    def _check_cluster(self, resources):
        """Raises ConnectionError where nothing is left that could run a video."""
        now = time.monotonic()
        if any(member.task for member in self._members.values()):
            self._seen = now
        if now < self._looked + _LOOK_SECONDS:
            return
        self._looked = now
        if not any(node["Alive"] for node in self._ray.nodes()):
            raise ConnectionError(
                "All machines of the Ray cluster are gone. The same command goes on with the videos"
                " that are left, on another cluster."
            )
        if now > self._seen + _PATIENCE_SECONDS:
            self._seen = now
            _logger.warning(
                "No actor has started for %.0f seconds. Each needs %s, which no machine of the Ray"
                " cluster may have left: see `ray status`.",
                _PATIENCE_SECONDS,
                resources,
            )

    def _tell_progress(self, on_frames):
        if time.monotonic() < self._asked + _PROGRESS_SECONDS:
            return
        self._asked = time.monotonic()
        tasks = {m.actor.frames.remote(): m.task for m in self._members.values() if m.task}
        if not tasks:
            return
        number, timeout = len(tasks), _PROGRESS_SECONDS
        answers, _ = self._ray.wait(list(tasks), num_returns=number, timeout=timeout)
        for answer in answers:
            with contextlib.suppress(self._ray.exceptions.RayError):  # A death is seen elsewhere.
                on_frames(tasks[answer], self._ray.get(answer))


def _cause(error):
    """Exception: that of an actor, as the program itself would have raised it."""
    cause = error.cause
    if isinstance(cause, OSError):
        return cause
    if isinstance(cause, ValueError):
        return WorkerError(str(cause))
    return WorkerError(str(error))


def _mean(own, states):
    """dict[str, Tensor]: the mean of several states; ``own`` where they are not real numbers."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0)
        if value.is_floating_point()
        else value
        for name, value in own.items()
    }
