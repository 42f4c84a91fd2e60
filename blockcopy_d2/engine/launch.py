"""One process per GPU, started by this program or by torchrun."""

import os

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

__all__ = ["launch"]


def launch(main, args):
    """
    Run ``main(args)`` in every process of the job. Under torchrun this process is one of them;
    otherwise Detectron2 starts ``args.num_gpus`` of them. Without a GPU they talk through gloo.

    Args:
        main (callable): of a module, not a closure.
        args (Namespace): of Detectron2's ``default_argument_parser``.
    """
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return detectron2_launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        comm.synchronize()
        main(args)
    finally:
        dist.destroy_process_group()
