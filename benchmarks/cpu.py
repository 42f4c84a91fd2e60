"""
Time of whole frames on a CPU: BlockCopy in fp32 and bf16 next to Detectron2 in fp32 and under bf16
autocast, as it is and compiled.

    python -m benchmarks.cpu --clips 2

The compiled model is the dense rival: backbone and RPN head with their batch norm folded, channels
last, by torch.compile, which needs a C++ compiler. Runs the clips of a config, all models
interleaved frame by frame, and writes benchmarks/results/cpu_CONFIG.json. Nothing else should run
meanwhile.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch
from detectron2.modeling import build_model
from tqdm import tqdm

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.config import base_config
from blockcopy_d2.data import build_clip_loader
from blockcopy_d2.engine.arguments import add_config_arguments, errors_end_the_program, positive
from blockcopy_d2.engine.checkpoint import WeightsCheckpointer
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.engine.machine import processor_name
from blockcopy_d2.engine.runs import build_video_model
from blockcopy_d2.modeling import VideoStream
from blockcopy_d2.modeling.running.precision import cpu_has_bf16
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import BlockGrid

from .dense import fold_batch_norm

_RESULTS = pathlib.Path(__file__).parent / "results"


def main():
    args = _parser().parse_args()
    options = ["MODEL.DEVICE", "cpu", "INPUT.CLIP.NUM_CLIPS", args.clips]
    cfg = load_config(config_path(args.config_file), [*args.opts, *options])
    if not cpu_has_bf16():
        raise SystemExit(
            "This benchmark needs a CPU with AMX or AVX512-BF16, and this one has none."
        )
    models = {
        "stock": Stock(cfg),
        "stock_bf16": Stock(cfg, amp=True),
        "compiled": Compiled(cfg),
        "compiled_bf16": Compiled(cfg, amp=True),
        "dense": Video(cfg, dense=True),
        "dense_bf16": Video(cfg, dense=True, amp=True),
        "blockcopy": Video(cfg),
        "blockcopy_bf16": Video(cfg, amp=True),
    }
    times = {name: [] for name in models}
    stages, executed = {}, {}
    loader = build_clip_loader(cfg, cfg.DATASETS.TEST[0])
    for (inputs,) in tqdm(loader, desc="timing", unit="frame"):
        if not times["stock"]:
            for model in models.values():
                model.warm_up(inputs)
        for name, model in models.items():
            start = time.perf_counter()
            result = model(inputs)
            times[name].append(1000 * (time.perf_counter() - start))
            if name.startswith("blockcopy"):
                for stage, seconds in result.seconds.items():
                    of_stage = stages.setdefault(name, {}).setdefault(stage, [])
                    of_stage.append(1000 * seconds)
                if not result.is_first:
                    executed.setdefault(name, []).append(result.executed)
    means = {name: round(statistics.mean(values), 1) for name, values in times.items()}
    results = {
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "config": args.config_file,
        "frames": len(times["stock"]),
        "target": cfg.MODEL.BLOCKCOPY.TARGET,
        "executed": {name: round(statistics.mean(values), 4) for name, values in executed.items()},
        "mean_ms": means,
        "quartiles_ms": {
            name: [round(x, 1) for x in statistics.quantiles(values, n=4)]
            for name, values in times.items()
        },
        "stages_ms": {
            name: {stage: round(statistics.mean(values), 1) for stage, values in of_model.items()}
            for name, of_model in stages.items()
        },
        "speedup": {
            name: {
                f"against_{other}": round(means[other] / means[name], 2)
                for other in ("stock", "stock_bf16", "compiled", "compiled_bf16")
            }
            for name in ("blockcopy", "blockcopy_bf16")
        },
    }
    path = _RESULTS / f"cpu_{args.name}.json"
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        pathlib.Path(temporary).write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    print(f"results in {path}")


class Stock:
    """Detectron2's own model."""

    def __init__(self, cfg, amp=False):
        self._amp = amp
        self._model = build_model(base_config(cfg)).eval()
        WeightsCheckpointer(self._model).load(cfg.MODEL.WEIGHTS)

    @torch.no_grad()
    def __call__(self, inputs):
        with torch.autocast("cpu", enabled=self._amp):
            return self._model([inputs])

    def warm_up(self, inputs):
        for _ in range(2):
            self(inputs)


class Compiled(Stock):
    """Detectron2's own R-CNN, the part that BlockCopy runs in blocks compiled."""

    def __init__(self, cfg, amp=False):
        super().__init__(cfg, amp)
        model = fold_batch_norm(self._model).to(memory_format=torch.channels_last)
        model.backbone = torch.compile(model.backbone, dynamic=False)
        generator = model.proposal_generator
        generator.rpn_head = torch.compile(generator.rpn_head, dynamic=False)
        self._model = model


class Video:
    """The video model: with all blocks, or with those of a policy that learns."""

    def __init__(self, cfg, dense=False, amp=False):
        cfg = cfg.clone()
        cfg.TEST.AMP.ENABLED = amp
        self._model, self._learner = build_video_model(cfg)
        self._dense = dense
        self._stream = None

    def __call__(self, inputs):
        model = self._model
        if inputs["frame_index"] == 0:
            self._stream = VideoStream()
        if self._dense:
            grid = None
            if self._stream.started:
                size = self._stream.canvas_size
                grid = BlockGrid.full(block_size=model.block_size, image_size=size)
            return model.step(inputs, self._stream, grid=grid)
        return model.step(inputs, self._stream, learner=self._learner)

    def warm_up(self, inputs):
        """Tracing the network, and a library's first calls, do not count as the cost of a frame."""
        self._stream = VideoStream()
        for _ in range(3):
            self._model.step(inputs, self._stream)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--name", default="maskrcnn_R18_FPN", help="part of the name of the results"
    )
    parser.add_argument("--clips", type=positive, default=2, metavar="N", help="clips to run")
    return parser


if __name__ == "__main__":
    with errors_end_the_program():
        main()
