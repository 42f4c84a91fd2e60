"""
Counts what a GPU is asked to do for a frame: launches of kernels and copies, by name and with their
time, and the time of every stage.

    python -m benchmarks.launches --dtype fp16
    python -m benchmarks.launches --dtype fp16 --streams 1 8 --motion BlockMatching

Frames are those of benchmarks/streams.py at one executed share of the blocks: N streams as one CUDA
graph, policy ExpectedGain unless --opts says otherwise. A frame that updates the policy has more
launches, so both kinds are counted, by PyTorch's profiler. Stages are timed without it, by the
stream's own clock. Kernels overlap, so their times add up to more than those of stages. The second
stage is timed as graphs of its own, too: until the number of detections is known, and as a whole.
Writes benchmarks/results/GPU_launches_CONFIG_DTYPE.json.
"""

from collections import Counter

import torch

from blockcopy_d2.engine.arguments import errors_end_the_program, positive
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.modeling import read_whole
from blockcopy_d2.resources import config_path

from .dense import BestDense
from .frame import read_clip, stage_medians
from .measure import (
    DTYPES,
    argument_parser,
    environment,
    interleaved,
    prepare_gpu,
    results_path,
    write_results,
)
from .streams import MOTIONS, Streams, build_dense, share_of_blocks

# Kernels that the results name, those that take longest.
_NAMED = 20


def main():
    args = _parser().parse_args()
    prepare_gpu()
    images, dtype = read_clip(args.frames), DTYPES[args.dtype]
    path = results_path(f"launches_{args.name}", args.dtype)
    shared = {
        **environment(),
        "dtype": args.dtype,
        "config": args.config_file,
        "size": list(images[0].shape[1:]),
        "block_size": args.block_size,
        "share": args.share,
    }
    for number in args.streams:
        for motion in args.motion:
            cfg = _config(args, motion)
            results = measure(cfg, images, number, dtype, share=args.share)
            policy = cfg.MODEL.BLOCKCOPY.POLICY.NAME
            section = f"streams {number}, motion {motion}"
            write_results(path, section, {**results, "shared": {**shared, "policy": policy}})
            print(
                f"{section}: {results['launches']} launches a frame,"
                f" {results['launches_with_update']} with an update"
            )
            print(f"   stages, ms: {results['stages_ms']}")
            for kernel in results["kernels"]:
                print(f"   {kernel['launches']:4} x, {kernel['us']:7.1f} us: {kernel['name']}")
        stage = measure_second_stage(cfg, images, number, dtype, rounds=args.rounds)
        write_results(path, f"second stage, images {number}", stage)
        print(f"second stage, images {number}: {stage}", flush=True)
    print(f"results in {path}")


def _config(args, motion):
    options = {
        "MODEL.WEIGHTS": args.weights,
        "MODEL.BLOCKCOPY.ENABLED": True,
        "MODEL.BLOCKCOPY.BLOCK_SIZE": args.block_size,
        "MODEL.BLOCKCOPY.MOTION.NAME": motion,
    }
    opts = ["MODEL.BLOCKCOPY.POLICY.NAME", "ExpectedGain", *args.opts]
    opts += [x for pair in options.items() for x in pair]
    return load_config(config_path(args.config_file), opts)


def measure(cfg, images, number, dtype, *, share, device="cuda"):
    """
    Args:
        cfg (CfgNode): config of the video model.
        images (list[Tensor]): uint8 (3, H, W) on the device, of a clip.
        number (int): N, streams.
        dtype (torch.dtype): type of the network.
        share (str): executed share of the blocks.
        device (str): "cpu" is for tests.

    Returns:
        dict: "launches", "launches_with_update" and "kernels" of a tick, which is a frame of every
        stream, see :func:`count_launches`; milliseconds of its stages as "stages_ms", medians.
    """
    streams = Streams(cfg, images, number, dtype, device, shares=(share,))
    for _ in range(2):
        streams.clip(share)

    def tick(inputs):
        results = streams.model.step_batch(inputs, streams.streams, learner=streams.learner)
        read_whole(*results)
        return results[0]

    stages = stage_medians(tick, streams.ticks)
    # Two updates of the policy or more are among them.
    frames = [_launches_of(tick, inputs) for inputs in streams.ticks[:8]]
    return {**count_launches(frames), "stages_ms": stages}


def measure_second_stage(cfg, images, number, dtype, *, rounds):
    """
    Args:
        cfg, images, number, dtype: see :func:`measure`.
        rounds (int): measurements.

    Returns:
        dict[str, float]: microseconds of a batch, "until_count": until the number of detections is
        known, and "whole".
    """
    batch = [images[n % len(images)] for n in range(number)]
    dense = BestDense(build_dense(cfg, images[0]), batch, dtype, modes=(), rounds=1)
    variants = {"until_count": dense.detect, "whole": dense.heads}
    times = interleaved(variants, rounds=rounds, device=images[0].device)
    return {f"{name}_us": round(1000 * x["median"], 1) for name, x in times.items()}


def count_launches(frames):
    """
    Args:
        frames (list[list[tuple[str, float]]]): for every frame its launches, each with the name of
            the kernel or copy and its time in microseconds.

    Returns:
        dict: "launches", those of a frame that does not update the policy, "launches_with_update",
        those of the longest frame, and "kernels" of the first: name, number and microseconds in
        all, the longest ones.
    """
    shortest = min(frames, key=len)
    numbers, microseconds = Counter(name for name, _ in shortest), Counter()
    for name, time in shortest:
        microseconds[name] += time
    return {
        "launches": len(shortest),
        "launches_with_update": max(map(len, frames)),
        "kernels": [
            {"name": name, "launches": numbers[name], "us": round(time, 1)}
            for name, time in microseconds.most_common(_NAMED)
        ],
    }


def _launches_of(tick, inputs):
    """list[tuple[str, float]]: names and microseconds of the launches of a frame."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        tick(inputs)
        torch.cuda.synchronize()
    return [
        (event.name[:80], event.time_range.elapsed_us())
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]


def _parser():
    parser = argument_parser(
        "launches",
        __doc__,
        config="StreetClips/mask_rcnn_R_50_FPN.yaml",
        name="maskrcnn_R50_FPN",
        rounds=30,
        compiles=False,
    )
    parser.add_argument(
        "--streams",
        type=positive,
        nargs="+",
        default=[1],
        metavar="N",
        help="numbers of streams (1)",
    )
    parser.add_argument(
        "--motion",
        nargs="+",
        default=list(MOTIONS),
        choices=MOTIONS,
        help=f"estimators of motion, one after the other ({' '.join(MOTIONS)})",
    )
    parser.add_argument(
        "--share",
        type=share_of_blocks,
        default="0.15",
        help="executed share of the blocks (%(default)s)",
    )
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="weights of the model; random if left out"
    )
    return parser


if __name__ == "__main__":
    with errors_end_the_program():
        main()
