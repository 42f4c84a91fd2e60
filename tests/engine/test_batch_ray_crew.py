"""Batches with actors that die, on a stand-in for Ray that runs each call at once."""

import signal
import socket
import sys
import types

import pytest
import torch

from blockcopy_d2.engine import batch_ray
from blockcopy_d2.engine.batch_tasks import VideoTask
from blockcopy_d2.engine.batch_workers import WorkerError

TASKS = [VideoTask(f"{name}.mp4", f"{name}.json") for name in "abcd"]


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class Death(BaseException):
    """Raised in an actor: its process dies."""


class Reference:
    def __init__(self, value=None, error=None):
        self.value, self.error = value, error


class StandIn:
    """Stands for the module ray, as far as it is used."""

    exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, resources=None, nodes=1):
        self.killed, self.options_given, self.started = [], None, 0
        self._resources, self._nodes = resources or {"CPU": 8.0}, nodes

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return self._resources

    def nodes(self):
        return [{"Alive": True}] * self._nodes + [{"Alive": False}]

    def remote(self, cls):
        def options(**given):
            self.options_given = given
            return types.SimpleNamespace(remote=lambda *args: self._start(cls(*args)))

        return types.SimpleNamespace(options=options)

    def _start(self, actor):
        self.started += 1
        state = types.SimpleNamespace(dead=False)

        def method(name):
            def remote(*args):
                if state.dead:
                    return Reference(error=RayError("it is dead."))
                try:
                    return Reference(getattr(actor, name)(*args))
                except Death as death:
                    state.dead = True
                    return Reference(error=RayError(f"{death}\nmore"))
                except Exception as error:
                    return Reference(error=RayTaskError(error))

            return types.SimpleNamespace(remote=remote)

        return types.SimpleNamespace(**{name: method(name) for name in ("build", "run", "frames")})

    def wait(self, references, num_returns=1, timeout=None):
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        if reference.error is not None:
            raise reference.error
        return reference.value

    def kill(self, actor):
        self.killed.append(actor)


class Folder:
    def __init__(self):
        self.records = {}

    def is_done(self, task):
        return self.records.get(task, {"error": "none"})["error"] is None

    def record(self, task):
        return self.records[task]

    def write_record(self, task, record):
        self.records[task] = record


class Jobs:
    """Builds jobs; each has a policy with its number for a weight, and runs by a script."""

    def __init__(self, folder, script=None):
        self.folder, self.script, self.ran, self.begins = folder, script or {}, [], []

    def __call__(self, number):
        policy = torch.nn.BatchNorm1d(1)
        torch.nn.init.constant_(policy.weight, number)

        def job(task, progress):
            self.ran.append((task, number))
            self.begins.append(float(policy.weight))
            progress(1)
            act = self.script.get(task)
            if act is not None:
                act(self.folder, task)
            record = {"error": None, "frames": 2}
            self.folder.write_record(task, record)
            return record

        job.policy = policy
        return job


@pytest.fixture
def run(monkeypatch):
    def run(script=None, *, build=None, tasks=TASKS, ray=None, **options):
        ray, folder, done = ray or StandIn(), Folder(), []
        monkeypatch.setattr(batch_ray, "import_ray", lambda: ray)
        jobs = Jobs(folder, script)
        batch_ray.run_with_ray(
            tasks,
            build or jobs,
            folder,
            address="auto",
            on_ready=lambda: None,
            on_frames=lambda task, frames: None,
            on_record=lambda task, record: done.append((task, record)),
            **{"workers": 2, **options},
        )
        return types.SimpleNamespace(ray=ray, folder=folder, done=dict(done), all=done, jobs=jobs)

    return run


def dies(times, after=False):
    left = [times]

    def act(folder, task):
        if left[0]:
            left[0] -= 1
            if after:
                folder.write_record(task, {"error": None, "frames": 2})
            raise Death("killed by SIGKILL.")

    return act


def test_every_video_has_one_record(run):
    result = run()
    assert len(result.all) == len(TASKS) == len(result.done)
    assert sorted(task.source for task, _ in result.jobs.ran) == [
        "a.mp4",
        "b.mp4",
        "c.mp4",
        "d.mp4",
    ]
    assert len(result.ray.killed) == 2, "actors end with the run"


def test_a_video_whose_actor_died_is_run_again(run, caplog):
    result = run({TASKS[1]: dies(1)})
    assert len(result.all) == 4 and all(r["error"] is None for _, r in result.all)
    assert [task for task, _ in result.jobs.ran].count(TASKS[1]) == 2 and result.ray.started == 3
    assert "The actor that ran b.mp4 died (killed by SIGKILL); the video is run" in caplog.text


def test_a_video_that_had_its_results_is_not_run_again(run):
    result = run({TASKS[0]: dies(1, after=True)})
    assert len(result.all) == 4 and result.done[TASKS[0]]["error"] is None
    assert [task for task, _ in result.jobs.ran].count(TASKS[0]) == 1


def test_a_video_that_three_actors_died_of_is_given_up(run):
    result = run({TASKS[0]: dies(9)})
    assert result.done[TASKS[0]]["error"] == "its actor died 3 times: killed by SIGKILL"
    assert result.folder.records[TASKS[0]]["error"] and len(result.all) == 4
    assert [task for task, _ in result.jobs.ran].count(TASKS[0]) == 3


def test_what_no_actor_can_build_ends_the_run(run):
    def broken(number):
        raise ValueError("MODEL.WEIGHTS names no file")

    with pytest.raises(WorkerError, match="^MODEL.WEIGHTS names no file$"):
        run(build=broken)

    def deadly(number):
        raise Death("out of memory.")

    with pytest.raises(WorkerError, match="Actors die while they build their model: out of memory"):
        run(build=deadly)


def test_a_cluster_that_is_gone_ends_the_run(run, monkeypatch):
    ray = StandIn()
    monkeypatch.setattr(batch_ray, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(ray, "wait", lambda references, **options: ([], references))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": not ray.started}])
    with pytest.raises(ConnectionError, match="All machines of the Ray cluster are gone"):
        run(ray=ray)


def test_waiting_for_room_is_reported(run, monkeypatch, caplog):
    ray = StandIn()
    monkeypatch.setattr(batch_ray, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(batch_ray, "_PATIENCE_SECONDS", 0.0)
    wait, silent = ray.wait, iter(range(2))

    def late(references, **options):
        return wait(references, **options) if next(silent, None) is None else ([], references)

    monkeypatch.setattr(ray, "wait", late)
    result = run(ray=ray)
    assert len(result.all) == 4
    assert "No actor has started for" in caplog.text and "'num_cpus': 4.0" in caplog.text


def test_signals_stay_those_of_the_program(monkeypatch):
    """Ray's own handler of SIGTERM would end the program without a summary."""
    before = signal.getsignal(signal.SIGTERM)
    ray = types.SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **options: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        shutdown=lambda: None,
    )
    with batch_ray._connected(ray, "auto"):
        assert signal.getsignal(signal.SIGTERM) is before


def test_an_address_where_nothing_listens_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        ray = types.SimpleNamespace(is_initialized=lambda: False)
        with pytest.raises(ConnectionError, match=f"no Ray cluster at --ray {address}: .*refused"):
            with batch_ray._connected(ray, address):
                pass


def test_a_full_disk_ends_the_run_as_what_it_is(run):
    def full(folder, task):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        run({TASKS[2]: full})
    assert not isinstance(caught.value, WorkerError)


def test_policies_become_the_mean_of_all(run):
    """Means are over what each actor sent last; without the option each keeps its own policy."""
    tasks = [VideoTask(f"{index}.mp4", f"{index}.json") for index in range(8)]
    alone = run(tasks=tasks)
    assert all(weight == number for (_, number), weight in zip(alone.jobs.ran, alone.jobs.begins))
    shared = run(tasks=tasks, share_policy=1)
    assert shared.jobs.begins[:2] == [0, 1] and shared.jobs.begins[-1] == pytest.approx(
        0.5, abs=0.3
    )
    assert len(set(shared.jobs.begins)) > 2


def test_a_mean_leaves_counters_alone():
    own = {"weight": torch.tensor([1.0]), "count": torch.tensor(3)}
    other = {"weight": torch.tensor([3.0]), "count": torch.tensor(9)}
    mean = batch_ray._mean(own, [own, other])
    assert mean["weight"].item() == 2 and mean["count"].item() == 3


@pytest.mark.parametrize(
    "resources, nodes, workers, most, count, each",
    [
        ({"CPU": 64.0, "GPU": 4.0}, 2, None, 99, 4, {"num_gpus": 1.0, "num_cpus": 1.0}),
        ({"CPU": 64.0, "GPU": 4.0}, 2, 2, 99, 2, {"num_gpus": 1.0, "num_cpus": 1.0}),
        ({"CPU": 64.0, "GPU": 4.0}, 2, 8, 99, 8, {"num_gpus": 0.5, "num_cpus": 1.0}),
        ({"CPU": 64.0, "GPU": 3.0}, 2, 8, 99, 8, {"num_gpus": 0.3333, "num_cpus": 1.0}),
        ({"CPU": 2.0, "GPU": 4.0}, 1, None, 99, 4, {"num_gpus": 1.0, "num_cpus": 0.5}),
        ({"CPU": 16.0}, 2, None, 99, 2, {"num_cpus": 8.0}),
        ({"CPU": 16.0}, 2, 5, 99, 5, {"num_cpus": 3.0}),
        ({"CPU": 2.0}, 1, 2, 1, 1, {"num_cpus": 1.0}),
    ],
)
def test_actors_share_the_cluster(resources, nodes, workers, most, count, each):
    assert batch_ray._share_out(StandIn(resources, nodes), workers, most) == (count, each)


def test_a_machine_that_does_not_see_the_files_is_named(tmp_path):
    with pytest.raises(WorkerError, match="does not see the folder .*missing, in which"):
        batch_ray._Actor(str(tmp_path / "missing")).build(None, 0)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'blockcopy-d2\[ray\]'"):
        batch_ray.import_ray()
