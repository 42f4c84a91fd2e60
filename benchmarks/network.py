"""
Times the modules that run in blocks, with the policy, against Detectron2 and the best dense
network: backbone, FPN and RPN head of a Faster or Mask R-CNN, all of a semantic segmentor or of
CSP.

    python -m benchmarks.network --dtype fp16
    python -m benchmarks.network --config-file Cityscapes/swiftnet_R_50.yaml --name swiftnet_R50

All variants run interleaved on one image of the given size; each is the median of many rounds. The
best dense network is the fastest of cuDNN and of torch.compile in the modes that are asked for,
each captured in a CUDA graph, see benchmarks/dense.py; --batch-sizes times it for batches, too.
Blocks are random, or those that the demo's model chose with its policy on a StreetClips clip.
Writes benchmarks/results/GPU_CONFIG_DTYPE.json, section "network", and a plot beside it.
"""

import itertools

import torch
from detectron2.modeling import build_model

import blockcopy_d2.modeling  # noqa: F401  registers the model
from blockcopy_d2.config import base_config
from blockcopy_d2.engine.arguments import errors_end_the_program
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.modeling.fixed_shape import find_static_heads
from blockcopy_d2.policy import Observation
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import BlockGrid, StreamState, block_sparse, num_blocks

from .dense import BestDense
from .frame import DEMO_CONFIG, DEMO_WEIGHTS, BlockCopy, read_clip
from .measure import (
    DTYPES,
    SHARES,
    add_batch_sizes,
    add_size,
    argument_parser,
    captured,
    environment,
    interleaved,
    matrix_product,
    prepare_gpu,
    results_path,
    write_results,
)
from .plots import plot_shares


def main():
    args = _parser().parse_args()
    prepare_gpu()
    dtype = DTYPES[args.dtype]
    with torch.no_grad():
        decided = decided_blocks(args.frames, tuple(args.size), args.block_size)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        network = Network(args.config_file, args.opts, tuple(args.size), args.block_size, dtype)
        sparse, chosen = network.blockcopy()
        # Memory of BlockCopy alone: cuDNN tries algorithms that take far more.
        memory = network.memory()
        dense = {
            "stock": network.stock(),
            "stock_amp": network.stock(autocast=torch.float16),
        }
        best = network.dense(args.compile_modes)
        shares = {str(share): network.random_blocks(share) for share in SHARES}
        variants = {**dense, "best_dense": best.network}
        variants.update(dict.fromkeys((*shares, "decided"), sparse))
        variants["policy"] = network.policy_only()
        before = {share: lambda a=active: chosen.copy_(a) for share, active in shares.items()}
        clip = itertools.cycle(decided)
        before["decided"] = lambda: chosen.copy_(next(clip))
        times = interleaved(variants, rounds=args.rounds, before=before)
        product, product_flops = matrix_product(dtype)
        product_ms = interleaved({"product": product}, rounds=args.rounds)["product"]["median"]
        batches = {
            number: network.dense(args.compile_modes, number).measure_network(args.rounds)
            for number in args.batch_sizes
        }
    medians = {share: times[share]["median"] for share in shares}
    best_dense = times["best_dense"]["median"]
    peak = product_flops / product_ms / 1e9
    tflops = {share: 2 * network.gmacs * float(share) / t for share, t in medians.items()}
    results = {
        "shared": {
            **environment(),
            "dtype": args.dtype,
            "config": args.config_file,
            "opts": args.opts,
            "size": args.size,
            "block_size": args.block_size,
            "policy_ms": times["policy"]["median"],
            **memory,
        },
        "stock_ms": times["stock"]["median"],
        "stock_fp16_autocast_ms": times["stock_amp"]["median"],
        "dense_ms": best.network_ms,
        "best_dense": {"network_ms": best_dense, "how": best.how},
        "best_dense_batches": batches,
        "blockcopy_ms": medians,
        "learned_policy_ms": times["decided"]["median"],
        "learned_policy_executed": round(torch.cat(decided).float().mean().item(), 4),
        "speedup_against_best_dense": {s: round(best_dense / t, 2) for s, t in medians.items()},
        "break_even_share": _break_even(medians, best_dense),
        "gmacs": network.gmacs,
        "tflops": {share: round(rate, 1) for share, rate in tflops.items()},
        "peak_tflops": round(peak, 1),
        "fraction_of_peak": {share: round(rate / peak, 3) for share, rate in tflops.items()},
        "quartiles_ms": times,
    }
    path = results_path(args.name, args.dtype)
    write_results(path, "network", results)
    rival = {f"best dense: {best.how}": best_dense}
    plot_shares(path.with_suffix(".png"), medians, rival, title=f"{args.name}, {args.dtype}")
    for name, time in times.items():
        speedup = best_dense / time["median"]
        print(f"{name:>34} {time['median']:8.3f} ms   {speedup:5.2f} x against the best dense")
    print(f"best dense: {best.how}; batches: {batches}")
    print(f"results in {path}")


def decided_blocks(folder, size, block_size):
    """
    Args:
        folder (str or None): folder of a clip; None draws one.
        size (tuple[int, int]): size to scale its frames to.
        block_size (int):

    Returns:
        list[Tensor]: bool (1, GH, GW) on the GPU, the choices of the demo's policy frame by frame,
        when it sees the clip for the second time.
    """
    options = ["MODEL.WEIGHTS", DEMO_WEIGHTS, "MODEL.BLOCKCOPY.ENABLED", True]
    options += ["MODEL.BLOCKCOPY.BLOCK_SIZE", block_size, "MODEL.BLOCKCOPY.TARGET", 0.3]
    cfg = load_config(config_path(DEMO_CONFIG), options)
    stream = BlockCopy(cfg, read_clip(folder, size), torch.float16)
    stream.clip(None)
    return stream.decided


class Network:
    """The part of a config's model that runs in blocks, with random weights, in its variants."""

    def __init__(self, config_file, opts, size, block_size, dtype):
        options = ["MODEL.BLOCKCOPY.ENABLED", True, "MODEL.WEIGHTS", ""]
        options += ["MODEL.BLOCKCOPY.BLOCK_SIZE", block_size]
        cfg = load_config(config_path(config_file), [*opts, *options])
        torch.manual_seed(0)
        self.base = build_model(base_config(cfg)).eval()
        if find_static_heads(self.base) is None:
            raise SystemExit(f"{type(self.base).__name__} does not run as a CUDA graph.")
        give_statistics(self.base)
        self.model = build_model(cfg)
        self.model.load_state_dict(self.base.state_dict(), strict=False)
        self.size, self.block_size, self.dtype = size, block_size, dtype
        self.image = torch.randn(1, 3, *size, device="cuda")
        self.state = StreamState()
        self.gmacs = None

    def stock(self, autocast=None):
        network = _network(self.base)

        def run():
            with torch.autocast("cuda", autocast, enabled=autocast is not None):
                return network(self.image)

        return run

    def dense(self, modes, number=1):
        """BestDense: for batches of ``number`` pictures."""
        # Pictures near the mean: in untrained weights large activations would grow without bounds.
        pictures = torch.randint(110, 122, (number, 3, *self.size), device="cuda")
        return BestDense(self.base, pictures.to(torch.uint8), self.dtype, modes=modes)

    def blockcopy(self):
        """(replay, bool (1, GH, GW) tensor of the blocks that the replay executes)."""
        model = self.model.to(self.dtype)
        policy = model.policy.float()
        shape = num_blocks(self.block_size, self.size)
        layout = {"block_size": self.block_size, "image_size": self.size}
        self.observation = _observation(shape, model.task.num_classes)
        chosen = torch.ones(1, *shape, dtype=torch.bool, device="cuda")
        never = torch.zeros(1, dtype=torch.bool, device="cuda")
        image = self.image.to(self.dtype)
        network = _network(model.base)

        def run(grid):
            with block_sparse(model, grid, self.state) as frame:
                network(image)
            return frame

        self.gmacs = run(BlockGrid.full(**layout, device="cuda")).dense_macs / 1e9

        def frame():
            # The policy decides, and is overruled on the device, so that every time includes its
            # cost.
            active = torch.where(never, policy(self.observation).active, chosen)
            run(BlockGrid(active, **layout))

        frame()
        return captured(frame, generators=_generators(policy)), chosen

    def policy_only(self):
        policy, observation = self.model.policy, self.observation
        return captured(lambda: policy(observation), generators=_generators(policy))

    def random_blocks(self, share):
        shape = num_blocks(self.block_size, self.size)
        count = max(round(share * shape[0] * shape[1]), 1)
        active = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
        active[torch.randperm(len(active), generator=torch.Generator().manual_seed(1))[:count]] = 1
        return active.view(1, *shape).cuda()

    def memory(self):
        return {
            "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6),
            "cache_mb": round(self.state.nbytes / 1e6),
        }


def _network(model):
    """The modules of a meta-architecture that run in blocks, as one function of its input."""
    return find_static_heads(model)(model).network


def give_statistics(model):
    """Random batch norms like those of a trained network, so that no activation explodes."""
    generator = torch.Generator(device=model.device).manual_seed(0)
    for name, tensor in model.named_buffers():
        if name.endswith("running_var"):
            tensor.uniform_(1.0, 2.0, generator=generator)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=generator)


def _observation(shape, num_classes):
    size = (32 * shape[0], 32 * shape[1])
    maps = [torch.rand(1, channels, *size, device="cuda") for channels in (3, 3, num_classes)]
    return Observation(*maps, grid=torch.ones(1, 1, *shape, device="cuda"), frame_index=1)


def _generators(policy):
    return policy.generators(torch.device("cuda", torch.cuda.current_device()))


def _break_even(medians, best_dense):
    """Returns the largest measured share that is faster than dense, None if none is."""
    return max((float(share) for share, t in medians.items() if t < best_dense), default=None)


def _parser():
    parser = argument_parser(
        "network",
        __doc__,
        config="Cityscapes/mask_rcnn_R_50_FPN.yaml",
        name="maskrcnn_R50_FPN",
        rounds=30,
    )
    add_size(parser, 1024, 2048)
    add_batch_sizes(parser)
    return parser


if __name__ == "__main__":
    with errors_end_the_program():
        main()
