"""The processes of test_distributed.py. A module of its own, so that they can import it."""

import json
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from detectron2.utils import comm
from torch import multiprocessing

from blockcopy_d2.engine import (
    EvaluationLoop,
    evaluate_clips,
    launch,
    load_config,
    warm_policy,
)
from blockcopy_d2.policy import Decision, OnlineLearner, Policy
from tests.policy.test_reinforce import GRID, observation

TICKS = 8


def run_job(tasks, num_processes=2, step_limit=None):
    """
    Run ``tasks`` as torchrun would, one after the other in every process.

    Args:
        tasks (list[tuple[str, dict]]): name of a function of this module, and its arguments.
        step_limit (float or None): for collectives, in seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(
        _process,
        args=(num_processes, port, tasks, step_limit),
        nprocs=num_processes,
        start_method="spawn",
    )


def _process(rank, num_processes, port, tasks, step_limit):
    if step_limit is not None:
        sys.modules[launch.__module__].STEP_LIMIT = timedelta(seconds=step_limit)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(num_processes),
        LOCAL_WORLD_SIZE=str(num_processes),
    )
    torch.set_num_threads(1)
    launch(_main, tasks)


def _main(tasks):
    for name, arguments in tasks:
        globals()[name](**arguments)


class LinearPolicy(Policy):
    """A policy network without ReLU, at which rounding may change gradients a lot."""

    learns = True

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 32, stride=32)

    def forward(self, observation):
        logits = self.layer(observation.frame)[:, 0]
        return Decision(active=logits > 0, logits=logits)


def gain_of(seed):
    return torch.rand(1, *GRID, generator=torch.Generator().manual_seed(100 + seed))


def actions_of(seed):
    return torch.rand(1, *GRID, generator=torch.Generator().manual_seed(200 + seed)) > 0.5


def has_frame(rank, tick):
    """The first process has a frame in every tick; the second misses some, and ends early."""
    return rank == 0 or tick not in (2, 3, 7)


def teach(learner, policy, seeds):
    """Gives the learner the frames of these seeds, in one tick."""
    if not seeds:
        learner.sit_out()
        return
    seen = [observation(seed) for seed in seeds]
    batch = seen[0]
    for name in ("frame", "frame_state", "output", "grid"):
        setattr(batch, name, torch.cat([getattr(x, name) for x in seen]))
    with torch.set_grad_enabled(learner.wants_graph()):
        decision = policy(batch)
    decision.active = torch.cat([actions_of(seed) for seed in seeds])
    learner.learn(decision, torch.cat([gain_of(seed) for seed in seeds]))


def learn_together(output_dir):
    rank = comm.get_rank()
    # Otherwise each process would start from its own weights.
    torch.manual_seed(rank)
    policy = LinearPolicy()
    learner = OnlineLearner(policy, target=0.3, update_every=2, sync=True)
    for tick in range(TICKS):
        teach(learner, policy, [10 * rank + tick] if has_frame(rank, tick) else [])
    state = {"policy": policy.state_dict(), "learner": learner.state_dict()}
    torch.save(state, os.path.join(output_dir, f"learned_{rank}.pth"))


def evaluate(dataset, opts, result=None):
    """Evaluate on a data set that every process has to register."""
    register(dataset)
    results = evaluate_clips(load_config(*opts))
    if result and comm.is_main_process():
        with open(result, "w") as f:
            json.dump(results, f)


def warm(dataset, opts, output_dir):
    register(dataset)
    torch.manual_seed(comm.get_rank())
    learner = warm_policy(load_config(*opts))
    weights = [parameter.detach() for parameter in learner.updates.parameters]
    state = {"weights": weights, **learner.state_dict()}
    torch.save(state, os.path.join(output_dir, f"warmed_{comm.get_rank()}.pth"))


def evaluate_with_a_slow_process(dataset, opts, seconds):
    """Slows down one frame of the second process."""
    disturb(lambda: time.sleep(seconds))
    evaluate(dataset, opts)


def evaluate_until_killed(dataset, opts, summary):
    """Kills the second process once the first one has written its summary."""

    def die():
        while not Path(summary).exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    disturb(die)
    evaluate(dataset, opts)


def evaluate_until_an_error(dataset, opts):
    def fail():
        raise RuntimeError("of the model")

    disturb(fail)
    evaluate(dataset, opts)


def warm_until_stopped(dataset, opts, output_dir):
    """Sends a signal to the second process only."""
    disturb(lambda: os.kill(os.getpid(), signal.SIGTERM))
    warm(dataset, opts, output_dir)


def disturb(happen, frame=2):
    """Makes something happen within a frame of the second process, once."""
    run_step = EvaluationLoop.run_step

    def step(loop):
        if comm.get_rank() == 1 and loop.iter == frame:
            EvaluationLoop.run_step = run_step
            happen()
        run_step(loop)

    EvaluationLoop.run_step = step


def register(dataset):
    from detectron2.data import DatasetCatalog

    from blockcopy_d2.data import register_cityscapes_video

    name, root = dataset
    if name not in DatasetCatalog.list():
        register_cityscapes_video(name, root, "val")
