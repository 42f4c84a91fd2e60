"""Runs one process per GPU, started by this program or by torchrun."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

from blockcopy_d2.evaluation.gathering import leave, resign

from .stopping import RunStopped

__all__ = ["STEP_LIMIT", "launch"]

# Limit for waiting in a step that processes take together. torch.distributed does not handle longer
# waits, such as for the slowest process's last clip.
STEP_LIMIT = timedelta(minutes=10)


def launch(main, args):
    """
    Run ``main(args)`` in every process of the job. Under torchrun this process is one of them;
    otherwise Detectron2 starts ``args.num_gpus`` of them. Without a GPU they talk through gloo.

    A process that is done waits until all are. One that fails or is stopped ends at once, and the
    others do not wait for it.

    Args:
        main (callable): a function at the top of a module, not a closure.
        args (Namespace): arguments of Detectron2's ``default_argument_parser``.

    Raises:
        SystemExit: a signal ended the run; with the code that a shell expects.
    """
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return detectron2_launch(
            _run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
            timeout=STEP_LIMIT,
        )
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=STEP_LIMIT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    comm.synchronize()
    _run(main, args)
    # Skipped after a failure: NCCL may wait for the other processes here.
    dist.destroy_process_group()


def _run(main, args):
    try:
        main(args)
    except BaseException as error:
        resign()
        if isinstance(error, RunStopped):
            raise SystemExit(error.exit_code) from error
        raise
    leave()
