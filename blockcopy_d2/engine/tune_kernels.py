"""
Measure the Triton kernels of a network on this machine's GPU and keep the fastest configurations:

    python -m blockcopy_d2.engine.tune_kernels --config-file FILE --size 1024 2048 --dtype fp16

The table is written into the package (blockcopy_d2/sparse/triton_ops/tables/GPU.json), where every
model finds it from then on; layers of the same shape in other networks benefit, too. Frames are
random: only sizes matter.
"""

import argparse
import logging
import pathlib

import torch
from detectron2.modeling import build_model
from tqdm.contrib.logging import logging_redirect_tqdm

import blockcopy_d2.modeling  # noqa: F401  registers the model
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, StreamState, block_sparse

from .arguments import add_config_arguments, errors_end_the_program, fraction, positive
from .defaults import load_config
from .outputs import check_output

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def argument_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m blockcopy_d2.engine.tune_kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, default="COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    size = dict(
        default=(1024, 2048), metavar=("H", "W"), help="size of the frames in pixels (1024 2048)"
    )
    parser.add_argument("--size", type=positive, nargs=2, **size)
    parser.add_argument(
        "--block-size", type=positive, default=128, metavar="B", help="side in pixels (%(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="fp16", help="precision of the networks (%(default)s)"
    )
    shares = dict(
        default=(0.01, 0.3, 1.0), help="shares of the blocks to measure at (0.01 0.3 1.0)"
    )
    parser.add_argument("--shares", type=fraction, nargs="+", **shares)
    only = dict(metavar="TEXT", help="measure layers whose key contains one of these texts")
    parser.add_argument("--only", nargs="+", default=("",), **only)
    parser.add_argument("--workers", type=positive, help="processes that compile (all cores)")
    parser.add_argument("--output", type=pathlib.Path, help="write the table here instead")
    return parser


@torch.no_grad()
def launches(config_file, size, block_size, dtype, *, opts=(), device="cuda"):
    """
    Returns:
        list: every launch of convolutions of a config's block-sparse modules, on the current GPU.
    """
    own = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device]
    own += ["MODEL.BLOCKCOPY.ENABLED", True, "MODEL.BLOCKCOPY.BACKEND", "triton"]
    own += ["MODEL.BLOCKCOPY.BLOCK_SIZE", block_size]
    model = build_model(load_config(config_path(config_file), [*opts, *own])).to(dtype)
    state = StreamState()
    grid = BlockGrid.full(block_size=block_size, image_size=size, device=device)
    image = torch.randn(1, 3, *size, device=device, dtype=dtype)
    with block_sparse(model.base, grid, state):
        features = model.base.backbone(image)
        generator = getattr(model.base, "proposal_generator", None)
        if generator is not None:
            generator.rpn_head([features[name] for name in generator.in_features])
        for name in ("head", "sem_seg_head"):
            head = getattr(model.base, name, None)
            if isinstance(head, BlockSparseModule):
                names = getattr(model.base, "head_in_features", None)
                head(features) if names is None else head([features[key] for key in names])
    return [launch for caches in state.all_caches() for launch in caches.bound.convolutions]


def main():
    """Writes the table of this machine's GPU."""
    args = argument_parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not torch.cuda.is_available():
        raise SystemExit("error: kernels are measured on an NVIDIA GPU, and there is none.")
    from blockcopy_d2.kernels.device import Device
    from blockcopy_d2.sparse.triton_ops import search

    dtype = _DTYPES[args.dtype]
    with errors_end_the_program():
        if args.output:
            check_output(args.output)
            search.read_entries(args.output)
        found = launches(args.config_file, tuple(args.size), args.block_size, dtype, opts=args.opts)
    device, number = Device("cuda"), 0
    with logging_redirect_tqdm():
        for entries in search.search(found, args.shares, only=args.only, workers=args.workers):
            # Saved layer by layer, so that measurements stay if a later one fails.
            path = search.save(entries, device, args.output)
            number += len(entries)
    if not number:
        raise SystemExit(f"error: --only {' '.join(args.only)}: no layer's key contains it.")
    print(f"{number} entries in {path}")


if __name__ == "__main__":
    main()
