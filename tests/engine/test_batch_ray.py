"""Batches on a Ray cluster of this machine: actors die, no video is lost, none is run twice."""

import functools
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from blockcopy_d2 import batch
from tests.engine.test_batch import FRAMES, write_video
from tests.small_model import CONFIG, small_model_opts

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
ROOT = Path(__file__).resolve().parents[2]
BUILD = batch.build_job


def _results(name):
    return name if name == "head" else f"{name}.mp4.json"


class DeadlyJob:
    """Notes every video that it begins; its process dies in the middle of some."""

    def __init__(self, job, folder, deaths):
        self._job, self._folder, self._deaths = job, Path(folder), deaths
        self.policy = job.policy

    def __call__(self, task, progress):
        with open(self._folder / "begun.txt", "a") as f:
            f.write(f"{task.results} {os.getpid()}\n")

        def note(frames):
            progress(frames)
            died = len(list(self._folder.glob(f"{task.results}.died*")))
            if frames == 2 and died < self._deaths.get(task.results, 0):
                (self._folder / f"{task.results}.died{died}").touch()
                os.kill(os.getpid(), signal.SIGKILL)

        return self._job(task, note)


def build_deadly(folder, deaths, *arguments):
    return DeadlyJob(BUILD(*arguments), folder, deaths)


class NodeKillerJob(DeadlyJob):
    """Kills the whole machine, once, unless it is the program's own."""

    def __call__(self, task, progress):
        import ray

        node = ray.get_runtime_context().get_node_id()
        if node != self._deaths["head"] and not (self._folder / "node.died").exists():
            (self._folder / "node.died").write_text(task.results)
            # The parent of an actor is what runs the node.
            os.kill(os.getppid(), signal.SIGKILL)
        return super().__call__(task, progress)


def build_node_killer(folder, deaths, *arguments):
    return NodeKillerJob(BUILD(*arguments), folder, deaths)


@pytest.fixture
def run(tmp_path, tmp_path_factory, monkeypatch):
    """The command line on two actors; returns exit code, summary and the begun videos."""

    def run(*arguments, names, deaths, build=build_deadly, address="local"):
        for index, name in enumerate(names):
            write_video(tmp_path / "videos" / f"{name}.mp4", shift=6 + index)
        deaths = {_results(name): count for name, count in deaths.items()}
        build = functools.partial(build, str(tmp_path), deaths)
        monkeypatch.setattr(batch, "build_job", build)
        monkeypatch.chdir(tmp_path)
        # Actors import these tests, from another folder.
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        command = ["batch", "--config-file", CONFIG, "--input", "videos/*.mp4"]
        command += ["--output", "results", "--ray", address, "--workers", "2", *arguments]
        opts = small_model_opts(tmp_path_factory.mktemp("weights"))
        monkeypatch.setattr(sys, "argv", [*command, "--opts", *opts])
        code = 0
        try:
            batch.main()
        except SystemExit as error:
            code = error.code
        summary = json.loads((tmp_path / "results" / "summary.json").read_text())
        begun = [line.split() for line in (tmp_path / "begun.txt").read_text().splitlines()]
        return code, summary, begun

    return run


@needs_ray
@pytest.mark.slow
def test_a_worker_is_killed_and_no_video_is_lost_or_run_twice(run, tmp_path):
    names = [f"v{index}" for index in range(6)]
    code, summary, begun = run(names=names, deaths={"v1": 1})
    assert code == 0 and summary["done"] == summary["videos"] == 6 and not summary["failures"]
    assert summary["frames"] == 6 * FRAMES
    files = sorted(path.name for path in (tmp_path / "results").glob("*.json"))
    assert files == sorted([*(f"{name}.mp4.json" for name in names), "summary.json"])
    for name in names:
        rows = json.loads((tmp_path / "results" / f"{name}.mp4.json").read_text())
        assert len({row["image_id"] for row in rows}) <= FRAMES
    counts = {name: sum(row[0] == f"{name}.mp4.json" for row in begun) for name in names}
    assert counts == {**dict.fromkeys(names, 1), "v1": 2}
    of_v1 = [process for results, process in begun if results == "v1.mp4.json"]
    assert len(set(of_v1)) == 2, "by another process"
    assert len({process for _, process in begun}) >= 2


@needs_ray
@pytest.mark.slow
def test_a_video_that_kills_every_worker_is_reported(run):
    """Policies become the mean of both meanwhile."""
    names = [f"v{index}" for index in range(4)]
    arguments = ["--keep-learning", "--share-policy", "1"]
    code, summary, begun = run(*arguments, names=names, deaths={"v0": 9})
    assert code == 1 and summary["done"] == 3
    (failure,) = summary["failures"]
    assert failure["video"].endswith("v0.mp4")
    assert "its actor died 3 times" in failure["error"]
    assert sum(results == "v0.mp4.json" for results, _ in begun) == 3


@needs_ray
@pytest.mark.slow
def test_a_machine_is_killed_and_its_video_runs_on_another(run, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1)
        names = [f"v{index}" for index in range(4)]
        deaths = {"head": cluster.head_node.node_id}
        options = {"build": build_node_killer, "address": cluster.address}
        code, summary, begun = run(names=names, deaths=deaths, **options)
    finally:
        cluster.shutdown()
    assert code == 0 and summary["done"] == 4 and not summary["failures"]
    lost = (tmp_path / "node.died").read_text()
    counts = {name: sum(row[0] == _results(name) for row in begun) for name in names}
    assert lost in map(_results, names) and set(counts.values()) == {1}
