"""
Several cameras on one GPU: N streams as one CUDA graph, against the best dense model of batches of
N frames.

    python -m benchmarks.streams --dtype fp16
    python -m benchmarks.streams --streams 16 32 --compile-modes  # cuDNN alone, which is quick
    python -m benchmarks.streams --name delay --no-dense --opts MODEL.BLOCKCOPY.LEARNER.DELAY 3

A frame is timed as in benchmarks/frame.py: from uint8 images on the GPU to Instances with full-size
masks, information gain and the policy's updates included; the network alone is one graph with the
policy. All times are milliseconds per frame: those of a tick, divided by N. Streams show one clip
of 1024x2048, which is drawn, each from another frame on. Without weights those of the task network
are random, and one in fifty of the pairs of a proposal and a class is a candidate.

Writes benchmarks/results/GPU_streams_CONFIG_DTYPE.json, and a plot beside it. Numbers of streams
that were measured before stay in it, so that they may be measured one call each.
"""

import argparse
import gc
import json
import statistics
import time
from dataclasses import replace

import torch
from detectron2.modeling import build_model

from blockcopy_d2.config import base_config
from blockcopy_d2.engine.arguments import errors_end_the_program, positive
from blockcopy_d2.engine.checkpoint import WeightsCheckpointer
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.modeling import read_whole
from blockcopy_d2.modeling.fixed_shape import find_static_heads
from blockcopy_d2.modeling.running.precision import inference_autocast
from blockcopy_d2.modeling.running.steps import normalize
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import BlockGrid, block_sparse, num_blocks

from .dense import BestDense
from .frame import Overruled, read_clip
from .measure import (
    DTYPES,
    argument_parser,
    captured,
    environment,
    interleaved,
    prepare_gpu,
    results_path,
    write_json,
)
from .network import give_statistics
from .plots import plot_streams

# Executed shares of the blocks. The policy's own choice is measured beside them.
SHARES = ("0.3", "0.15")
# Estimators of motion that run within a graph.
MOTIONS = ("none", "BlockMatching")
RATE = 25  # frames per second of a camera


def main():
    args = _parser().parse_args()
    prepare_gpu()
    dtype = DTYPES[args.dtype]
    images = read_clip(args.frames)
    options = ["MODEL.WEIGHTS", args.weights, "MODEL.BLOCKCOPY.ENABLED", True]
    options += ["MODEL.BLOCKCOPY.BLOCK_SIZE", args.block_size, "MODEL.BLOCKCOPY.TARGET", 0.3]
    options += ["MODEL.BLOCKCOPY.MOTION.NAME", args.motion]
    cfg = load_config(config_path(args.config_file), [*args.opts, *options])
    path = results_path(f"streams_{args.name}", args.dtype)
    results = json.loads(path.read_text()) if path.exists() else {}
    results |= {
        **environment(),
        "dtype": args.dtype,
        "config": args.config_file,
        "size": list(images[0].shape[1:]),
        "block_size": args.block_size,
        "motion": args.motion,
        "policy": cfg.MODEL.BLOCKCOPY.POLICY.NAME,
    }

    def keep(number, measured):
        results.update(merged(results, number, measured))
        write_json(path, results)
        plot_streams(path.with_suffix(".png"), results, title=f"{args.name}, {args.dtype}")
        print(f"{number} streams: {json.dumps(measured)}", flush=True)

    for number in args.streams:
        options = {"rounds": args.rounds, "shares": args.shares}
        keep(number, measure(cfg, images, number, dtype, **options))
    # Last, since compiling a large batch takes minutes.
    for number in args.streams if not args.no_dense else ():
        options = {"modes": args.compile_modes, "rounds": args.rounds}
        keep(number, {"best_dense": measure_dense(cfg, images, number, dtype, **options)})
    print(f"cameras at {RATE} frames per second: {results['cameras_at_25']}")
    print(f"results in {path}")


def measure(cfg, images, number, dtype, *, rounds, shares=SHARES, device="cuda"):
    """
    Args:
        cfg (CfgNode):
        images (list[Tensor]): uint8 (3, H, W) on the device, of a clip.
        number (int): N, streams.
        dtype (torch.dtype): type of the network.
        rounds (int): measurements of each.
        shares (sequence[str]): executed shares of the blocks.
        device (str): "cpu" is for tests.

    Returns:
        dict: "blockcopy", "executed" by share, and "memory_mb" of all streams.
    """
    free = _free_memory(device)
    streams = Streams(cfg, images, number, dtype, device, shares=shares)
    streams.clip("policy")
    streams.clip(shares[0])
    memory = free - _free_memory(device)
    shares = (*shares, "policy")
    times = {share: [] for share in shares}
    executed = {}
    for round_ in range(rounds + 1):
        for share in shares:
            took, executed[share] = streams.clip(share)
            # The first round includes everything that is slow the first time.
            times[share] += [took] if round_ else []
    networks = interleaved(
        {share: streams.network for share in shares},
        rounds=rounds,
        before={share: lambda share=share: streams.choose(share) for share in shares},
        device=device,
    )
    return {
        "blockcopy": {
            share: {
                "network_ms": round(networks[share]["median"] / number, 4),
                "frame_ms": round(1000 * statistics.median(times[share]) / number, 4),
            }
            for share in shares
        },
        "executed": {share: round(x, 4) for share, x in executed.items()},
        "memory_mb": round(memory / 1e6),
    }


def measure_dense(cfg, images, number, dtype, *, modes, rounds):
    """
    Args:
        cfg, images, number, dtype, rounds: see :func:`measure`.
        modes (sequence[str]): modes of torch.compile.

    Returns:
        dict: see :meth:`BestDense.measure`.
    """
    with torch.no_grad():
        model = build_dense(cfg, images[0])
        batch = [images[n % len(images)] for n in range(number)]
        dense = BestDense(model, batch, dtype, modes=modes)
        measured = dense.measure(batch, rounds=rounds)
    del dense
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return measured


def merged(results, number, measured):
    """
    Args:
        results (dict): results of other numbers of streams.
        number (int): N.
        measured (dict): from :func:`measure`, possibly with "best_dense".

    Returns:
        dict: all results, with the cameras that a GPU carries: how many frames it runs while a
        camera gives one, in batches of the number of streams that is best for it.
    """
    results = dict(results)
    for name, value in measured.items():
        section = {**results.get(name, {}), str(number): value}
        results[name] = dict(sorted(section.items(), key=lambda item: int(item[0])))
    frame_ms = {}
    for of_number in results["blockcopy"].values():
        for share, times in of_number.items():
            frame_ms.setdefault(share, []).append(times["frame_ms"])
    if "best_dense" in results:
        frame_ms["best_dense"] = [x["frame_ms"] for x in results["best_dense"].values()]
    results["cameras_at_25"] = {
        name: int(1000 / RATE / min(times)) for name, times in frame_ms.items()
    }
    results["frames_per_second"] = {
        name: round(1000 / min(times), 1) for name, times in frame_ms.items()
    }
    # With the most streams, weights, kernels and cuDNN count least.
    most = max(results["memory_mb"], key=int)
    results["memory_mb_per_stream"] = round(results["memory_mb"][most] / int(most))
    return results


class Streams:
    """N streams of a model as users run them, their blocks chosen by the policy or overruled."""

    @torch.no_grad()
    def __init__(self, cfg, images, number, dtype, device="cuda", *, shares=SHARES):
        """
        Args:
            cfg, images, number, dtype, device, shares: see :func:`measure`.

        Raises:
            SystemExit: the model does not run as a CUDA graph here.
        """
        self.number = number
        # A list per tick, of one frame per stream.
        self.ticks = [
            [{"image": images[(tick + 7 * n) % len(images)]} for n in range(number)]
            for tick in range(len(images))
        ]
        self.model = model = build_model(cfg)
        if cfg.MODEL.WEIGHTS:
            WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        else:
            dense = build_dense(cfg, images[0])
            model.load_state_dict(dense.state_dict(), strict=False)
            threshold = dense.roi_heads.box_predictor.test_score_thresh
            model.roi_heads.box_predictor.test_score_thresh = threshold
        self.policy = model.policy = Overruled(model.policy)
        self.learner = self.policy.learner_class(cfg, self.policy)
        model.backbone.to(dtype)
        model.proposal_generator.rpn_head.to(dtype)
        self.streams = model.init_state(number)
        canvas = tuple(normalize(model, images[:1]).tensor.shape[-2:])
        shape = (number, *num_blocks(model.block_size, canvas))
        self.policy.chosen = torch.ones(shape, dtype=torch.bool, device=device)
        self.policy.obeyed = torch.ones(1, dtype=torch.bool, device=device)
        generator = torch.Generator().manual_seed(1)
        order = torch.rand(number, shape[1] * shape[2], generator=generator).argsort().argsort()
        self.blocks = {
            share: (order < round(float(share) * order.shape[1])).view(shape).to(device)
            for share in shares
        }
        model.step_batch(self.ticks[0], self.streams)
        if self.streams.graph is None:
            raise SystemExit(f"{type(model.base).__name__} does not run as a CUDA graph here.")
        self.network = self._network(dtype)

    def choose(self, share):
        """Lets the policy decide, or overrules it by random blocks of a share."""
        self.policy.obeyed.fill_(share == "policy")
        if share != "policy":
            self.policy.chosen.copy_(self.blocks[share])

    def clip(self, share):
        """
        Run the frames as the continuation of the streams.

        Args:
            share (str): one of the shares, or "policy".

        Returns:
            tuple[float, float]: seconds of a tick, and the executed share.
        """
        self.choose(share)
        active = torch.zeros_like(self.policy.chosen, dtype=torch.float32)
        _synchronize(active.device)
        start = time.perf_counter()
        for inputs in self.ticks:
            results = self.model.step_batch(inputs, self.streams, learner=self.learner)
            read_whole(*results)  # Part of a frame.
            active += results[0].work.grid.active
        _synchronize(active.device)
        seconds = (time.perf_counter() - start) / len(self.ticks)
        return seconds, active.mean().item() / len(self.ticks)

    def _network(self, dtype):
        """The policy and the block-sparse modules, as a graph of their own on the same features."""
        model, policy, streams = self.model, self.policy, self.streams
        observation = replace(streams.graph.memory.observation(), age=streams.age)
        pictures = torch.stack([x["image"] for x in self.ticks[0]])
        images = normalize(model, pictures).tensor.to(dtype)
        network = find_static_heads(model.base)(model.base).network
        layout = {"block_size": model.block_size, "image_size": streams.canvas_size}

        def run():
            grid = BlockGrid(policy(observation).active, **layout)
            with (
                torch.no_grad(),
                inference_autocast(model.device, model.amp),
                block_sparse(model.base, grid, streams.features),
            ):
                network(images)

        with torch.no_grad():
            run()
            if model.device.type != "cuda":
                return run
            return captured(run, generators=policy.generators(model.device))


def build_dense(cfg, image):
    """
    Args:
        cfg (CfgNode): config of the video model.
        image (Tensor): uint8 (3, H, W), of the clip.

    Returns:
        nn.Module: its task network, with weights of the config, or random ones.
    """
    torch.manual_seed(0)
    model = build_model(base_config(cfg)).eval()
    if cfg.MODEL.WEIGHTS:
        WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        return model
    give_statistics(model)
    # Scaled as for pictures with a standard deviation of 1, or half precision overflows.
    first = next(m for m in model.backbone.modules() if isinstance(m, torch.nn.Conv2d))
    first.weight.data.mul_(model.pixel_std.mean() / 58)
    predictor = model.roi_heads.box_predictor
    predictor.test_score_thresh = _threshold(model, predictor, image)
    return model


@torch.no_grad()
def _threshold(model, predictor, image):
    """float: a score that one in fifty of the model's scores for an image exceed."""
    logits = []
    hook = predictor.register_forward_hook(lambda module, inputs, outputs: logits.append(outputs))
    model([{"image": image}])
    hook.remove()
    scores = logits[0][0].softmax(dim=1)[:, :-1].flatten()
    return scores.kthvalue(scores.numel() - scores.numel() // 50).values.item()


def _free_memory(device):
    """int: bytes; 0 on a CPU."""
    if device == "cpu":
        return 0
    gc.collect()  # The streams before, which hold their graphs in a circle.
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def _synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def share_of_blocks(text):
    """str: the text, if it is a share."""
    try:
        fits = 0 < float(text) <= 1
    except ValueError:
        fits = False
    if not fits:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and up to 1, not {text!r}")
    return text


def _parser():
    parser = argument_parser(
        "streams",
        __doc__,
        config="StreetClips/mask_rcnn_R_50_FPN.yaml",
        name="maskrcnn_R50_FPN",
        rounds=5,
    )
    parser.add_argument(
        "--streams",
        type=positive,
        nargs="+",
        default=[1, 2, 4, 8, 16, 32],
        metavar="N",
        help="numbers of streams (1 2 4 8 16 32)",
    )
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="weights of the model; random if left out"
    )
    parser.add_argument(
        "--motion",
        default="none",
        choices=MOTIONS,
        help="moves what is remembered (%(default)s)",
    )
    parser.add_argument(
        "--shares",
        type=share_of_blocks,
        nargs="+",
        default=list(SHARES),
        metavar="SHARE",
        help=f"executed shares of the blocks, beside the policy's own ({' '.join(SHARES)})",
    )
    parser.add_argument("--no-dense", action="store_true", help="leave out the dense rival")
    return parser


if __name__ == "__main__":
    with errors_end_the_program():
        main()
