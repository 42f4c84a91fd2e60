"""
Times motion: estimating it, and moving the state of a stream: frame state and outputs at policy
resolution, and the feature maps of blocks that are not executed.

    python -m benchmarks.motion --size 512 1024
    python -m benchmarks.motion --device cuda --size 1024 2048 --dtype fp16 --opts \\
        MODEL.BLOCKCOPY.BLOCK_SIZE 128 MODEL.BLOCKCOPY.POLICY.PIXELS_PER_BLOCK 32

All variants run interleaved, on two frames of a StreetClips clip or of --frames; each is the median
of many rounds. Estimating includes the luma pyramid of the frame. The feature maps are moved by
fields in which a share of the cells moves, the upper ones, while a share of the blocks, the upper
ones, is executed: pixels of those blocks do not move. On a GPU everything that can be captured runs
as a CUDA graph. A config without weights gets random ones; times do not depend on them. Writes
benchmarks/results/DEVICE_motion_CONFIG_DTYPE.json.
"""

import argparse
import time

import numpy as np
import torch
from detectron2.modeling import build_model

from blockcopy_d2.engine.arguments import add_config_arguments, errors_end_the_program, positive
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.engine.runs import build_video_model
from blockcopy_d2.modeling import VideoStream
from blockcopy_d2.modeling.fixed_shape import find_static_heads
from blockcopy_d2.modeling.running.motion import move_history
from blockcopy_d2.modeling.running.steps import pad
from blockcopy_d2.motion import (
    MOTION_REGISTRY,
    MOVED_MAPS,
    CacheMover,
    MotionFeatures,
    field_size,
    zero_field,
)
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import BlockGrid

from .frame import read_clip
from .measure import (
    add_size,
    captured,
    environment,
    interleaved,
    results_path,
    write_results,
)
from .network import give_statistics

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ESTIMATORS = ("DISFlow", "BlockMatching", "CodecVectors")
# Shares of the cells that move, and of the blocks that are executed.
MOVING = (1.0, 0.3, 0.0)
EXECUTED = (0.0, 0.3)
# Motion of cells, dx and dy in pixels: between pixels at every stride.
SHIFT = (-5.3, 2.7)


def main():
    args = _parser().parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: found no NVIDIA GPU.")
    options = ["MODEL.DEVICE", args.device, "MODEL.BLOCKCOPY.ENABLED", True]
    options += ["MODEL.BLOCKCOPY.MOTION.NAME", "BlockMatching"]
    cfg = load_config(config_path(args.config_file), [*args.opts, *options])
    images = read_clip(args.frames, tuple(args.size), device=device)[:2]
    with torch.no_grad():
        stream = Stream(cfg, images, DTYPES[args.dtype])
        variants = stream.variants()
        repeats = 5 if device.type == "cuda" else 1
        times = interleaved(
            variants,
            rounds=args.rounds,
            repeats=repeats,
            device=device,
            clock=time.process_time if args.processor_time else time.perf_counter,
        )
    medians = {name: quartiles["median"] for name, quartiles in times.items()}
    results = {
        "shared": {
            **environment(device),
            "processor_time": args.processor_time,
            "dtype": args.dtype,
            "config": args.config_file,
            "opts": args.opts,
            "size": args.size,
            "block_size": stream.model.block_size,
            "cell_size": stream.model.motion.cell_size,
        },
        "moved_mb": stream.moved_mb,
        "median_ms": medians,
        "all_cells_moving_ms": _sums(medians),
        "quartiles_ms": times,
    }
    path = results_path(f"motion_{args.name}", args.dtype, device)
    write_results(path, "motion", results)
    for name, quartiles in times.items():
        values = (quartiles[key] for key in ("lower", "median", "upper"))
        print(f"{name:>42}" + "".join(f" {value:9.3f}" for value in values) + " ms")
    for name, milliseconds in results["all_cells_moving_ms"].items():
        print(f"{name:>42} {milliseconds:19.3f} ms in all, all cells moving")
    print(f"results in {path}")


class Stream:
    """
    A stream after its first frame, with the steps of the next frame's motion.

    Attributes:
        model (BlockCopyVideoModel):
        moved_mb (dict[str, float]): megabytes of the maps that move, per ``MOVED_MAPS``.
    """

    def __init__(self, cfg, images, dtype):
        """
        Args:
            cfg (CfgNode):
            images (list[Tensor]): uint8 (3, H, W), two frames in a row.
            dtype (torch.dtype): type of the modules that run in blocks.
        """
        self.cfg, self.images = cfg, images
        self.model = random_model(cfg) if not cfg.MODEL.WEIGHTS else build_video_model(cfg)[0]
        for module in find_static_heads(self.model.base).sparse_modules(self.model.base):
            module.to(dtype)
        self.stream = VideoStream()
        height, width = images[0].shape[1:]
        inputs = {"image": images[0], "height": height, "width": width}
        self.model.step(inputs, self.stream)
        # After the second frame, everything that moves is allocated.
        self.model.step(inputs, self.stream)
        options = cfg.MODEL.BLOCKCOPY.MOTION
        self.movers = {
            maps: CacheMover(cell_size=options.CELL_SIZE, maps=maps, max_stride=options.MAX_STRIDE)
            for maps in MOVED_MAPS
        }
        self.moved_mb = {
            maps: round(mover.nbytes(self.stream.features) / 1e6, 1)
            for maps, mover in self.movers.items()
        }

    def variants(self):
        """dict[str, callable]: everything that is timed."""
        variants = {f"estimate {name}": self._estimate(name) for name in ESTIMATORS}
        for moving in MOVING:
            field = self._field(moving)
            variants[f"history, moving {moving:g}"] = self._history(field)
            for executed in EXECUTED:
                for maps in MOVED_MAPS:
                    name = f"caches {maps}, executed {executed:g}, moving {moving:g}"
                    variants[name] = self._caches(maps, self._grid(executed), field)
        return variants

    def _estimate(self, name):
        estimator = MOTION_REGISTRY.get(name)(self.cfg)
        before, now = (pad(self.model, [image]).tensor for image in self.images)
        codec = None
        if name == "CodecVectors":
            codec = [np.full((2, *field_size(now.shape[-2:], estimator.cell_size)), 2.0, "f4")]
        previous = estimator.features(before, codec=codec)
        current = MotionFeatures.empty(previous.size, device=now.device)
        out = zero_field(previous.size, estimator.cell_size, device=now.device)
        workspace = estimator.workspace(previous)

        def run():
            features = estimator.features(now, codec=codec, out=current)
            estimator.estimate(features, previous, out=out, workspace=workspace)

        return self._captured(run, capturable=estimator.capturable)

    def _history(self, field):
        history = self.stream.history
        return self._captured(lambda: move_history(self.model, history, field))

    def _caches(self, maps, grid, field):
        mover, features = self.movers[maps], self.stream.features
        return self._captured(lambda: mover(features, grid, field))

    def _captured(self, run, capturable=True):
        return captured(run) if capturable and self.model.device.type == "cuda" else run

    def _field(self, share):
        field = zero_field(
            self.stream.canvas_size, self.model.motion.cell_size, device=self.model.device
        )
        rows = round(share * field.shape[2])
        field[:, :, :rows] = torch.tensor(SHIFT, device=field.device).view(1, 2, 1, 1)
        return field

    def _grid(self, share):
        grid = BlockGrid.empty(
            block_size=self.model.block_size,
            image_size=self.stream.canvas_size,
            device=self.model.device,
        )
        grid.active[:, : round(share * grid.active.shape[1])] = True
        return grid


def random_model(cfg):
    """BlockCopyVideoModel: with random weights."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    give_statistics(model)
    return model


def _sums(medians):
    """dict[str, float]: times of an estimator and everything that moves, with all cells moving."""
    history = medians["history, moving 1"]
    return {
        f"{name}, {maps}, executed {executed:g}": round(
            medians[f"estimate {name}"]
            + history
            + medians[f"caches {maps}, executed {executed:g}, moving 1"],
            4,
        )
        for name in ESTIMATORS
        for maps in MOVED_MAPS
        for executed in EXECUTED
    }


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.motion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--name", default="maskrcnn_R18_FPN", help="part of the name of the results (%(default)s)"
    )
    parser.add_argument("--frames", metavar="DIR", help="a clip's pictures; drawn if left out")
    add_size(parser, 512, 1024)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device to run on (%(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="type of the feature maps (%(default)s)"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="on a CPU that does other things, too: the time of its cores, all together, instead of"
        " the clock's",
    )
    parser.add_argument(
        "--rounds", type=positive, default=30, help="measurements of each (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    with errors_end_the_program():
        main()
