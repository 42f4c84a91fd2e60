"""Processes that run videos: none is lost, whatever happens to a process."""

import pytest

from blockcopy_d2.engine.batch_tasks import VideoTask
from blockcopy_d2.engine.batch_workers import WorkerError, run_in_workers
from blockcopy_d2.results import ResultsWriteError
from tests.engine import batch_jobs

pytestmark = pytest.mark.slow  # A process takes seconds to start.


def run(*names, build=batch_jobs.build, count=2):
    told, frames, written = {}, set(), []

    def on_record(task, record):
        assert task.source not in told
        told[task.source] = record["error"]

    run_in_workers(
        [VideoTask(name, f"{name}.json") for name in names],
        build,
        count,
        on_ready=lambda: None,
        on_frames=lambda task, number: frames.add(task.source),
        on_record=on_record,
        write_record=lambda task, record: written.append((task.source, record)),
    )
    return told, frames, written


def test_a_process_that_dies_costs_its_video_alone():
    names = ["a", "kill", "b", "exit", "c", "d"]
    told, frames, written = run(*names)
    assert sorted(told) == sorted(names) and frames == set(names)
    assert [told[name] for name in "abcd"] == [None] * 4
    assert "ended by SIGKILL; is there too little memory?" in told["kill"]
    assert "exit code 3" in told["exit"]
    assert dict(written)["kill"]["results"] == "kill.json" and len(written) == 2


def test_a_full_disk_ends_all():
    with pytest.raises(ResultsWriteError, match="No space left"):
        run("full", "a", "b", count=1)


def test_a_model_that_cannot_be_built_says_why():
    with pytest.raises(WorkerError, match="process 0 has no weights"):
        run("a", build=batch_jobs.cannot_build, count=1)
