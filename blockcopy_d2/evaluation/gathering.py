"""
Gathers data of all processes of a job on the main process, although they end at different times,
and some never.

A collective of torch.distributed has one time limit for everything, and a single missing process
loses the data of all others. Here each process leaves its data in the job's store and goes on, and
the main process collects the data that is there.
"""

import itertools
import logging
import pickle
import time
from datetime import timedelta

import torch.distributed as dist
from detectron2.utils import comm

__all__ = [
    "FINAL_LIMIT",
    "STOPPED_LIMIT",
    "arrivals",
    "gather",
    "leave",
    "resign",
    "wait_for_all",
]

# Limit for waiting for processes that still run. Clips differ in length, so some processes may take
# many times as long as others.
FINAL_LIMIT = timedelta(hours=24)
# Limit for the waiting of a process that was stopped. Launchers kill after 30 seconds.
STOPPED_LIMIT = timedelta(seconds=10)
# Seconds between two queries of the store.
_INTERVAL = 0.05
# A store refuses values above 8 MiB.
_CHUNK = 4 << 20

_calls = itertools.count()
# Processes that resigned or missed a limit: they are not waited for again.
_lost = set()


def gather(data, *, limit=None):
    """
    Like Detectron2's ``comm.gather``, but without those that do not answer in time. All processes
    call it, in the same order; only the main one waits.

    Args:
        data (object): anything that can be pickled.
        limit (timedelta or None): for the slowest process; None: ``FINAL_LIMIT``.

    Returns:
        list: on the main process, the data of each process that answered, by rank; elsewhere empty.
    """
    if comm.get_world_size() == 1:
        return comm.gather(data)
    found = dict(arrivals(data, limit=limit))
    return [found[rank] for rank in sorted(found)]


def arrivals(data, *, limit=None):
    """
    :func:`gather` one by one.

    Yields:
        tuple[int, object]: on the main process, rank and data, in the order in which they come.
    """
    if comm.get_world_size() == 1:
        yield from enumerate(comm.gather(data))
        return
    store, call = _store(), next(_calls)
    if not comm.is_main_process():
        _put(store, f"{call}/{comm.get_rank()}", data)
        return
    yield comm.get_rank(), data
    for rank in _ready(store, call, limit):
        yield rank, _take(store, f"{call}/{rank}")


def wait_for_all(*, limit=None):
    """
    Wait until all processes are here. Unlike a barrier of torch.distributed, it waits until they
    have finished other work.

    Raises:
        RuntimeError: names the processes that did not come in time.
    """
    if comm.get_world_size() == 1:
        return
    store, call = _store(), next(_calls)
    _put(store, f"{call}/{comm.get_rank()}", None)
    for _ in _ready(store, call, limit):
        pass
    if _lost:
        raise RuntimeError(
            f"Process {_listed(_lost)} of {comm.get_world_size()} did not answer: it has ended, or"
            " hangs. The job cannot go on without it."
        )


def resign():
    """Ask the other processes not to wait for this one any more."""
    if comm.get_world_size() > 1:
        _store().set(f"resigned/{comm.get_rank()}", "")


def leave():
    """
    Wait until all processes are done, before this one ends. The main process goes last, since the
    others may need its store until then.

    Raises: as :func:`wait_for_all`.
    """
    wait_for_all()
    gather(None, limit=STOPPED_LIMIT)


def _ready(store, call, limit):
    """
    Yields the ranks of the other processes as they are done. Those left at the limit are lost.
    """
    limit = FINAL_LIMIT if limit is None else limit
    end = time.monotonic() + limit.total_seconds()
    waiting = set(range(comm.get_world_size())) - {comm.get_rank()} - _lost
    while waiting:
        for rank in sorted(waiting):
            # Asked first, since a process may have answered before it resigned.
            resigned = store.check([f"resigned/{rank}"])
            if store.check([f"{call}/{rank}"]):
                waiting.remove(rank)
                yield rank
            elif resigned:
                waiting.remove(rank)
                _lose({rank}, "has ended")
        if waiting and time.monotonic() > end:
            _lose(waiting, f"did not answer within {limit}")
            return
        # Waits here, not in the store, where an interrupt would have to wait.
        time.sleep(_INTERVAL)


def _lose(ranks, reason):
    _lost.update(ranks)
    logging.getLogger(__name__).error(
        "Process %s of %d %s; going on without it.", _listed(ranks), comm.get_world_size(), reason
    )


def _listed(ranks):
    return ", ".join(map(str, sorted(ranks)))


def _put(store, key, data):
    content = pickle.dumps(data)
    chunks = range(0, len(content), _CHUNK)
    for index, start in enumerate(chunks):
        store.set(f"{key}/{index}", content[start : start + _CHUNK])
    # The last key to arrive means that all of them are there.
    store.set(key, str(len(chunks)))


def _take(store, key):
    content = b""
    for index in range(int(store.get(key))):
        content += store.get(f"{key}/{index}")
        store.delete_key(f"{key}/{index}")
    return pickle.loads(content)


def _store():
    # torch.distributed has no public way to the store of a job.
    return dist.PrefixStore("blockcopy_d2", dist.distributed_c10d._get_default_store())
