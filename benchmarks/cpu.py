"""
Time of whole frames on a CPU: BlockCopy next to Detectron2 in fp32 and under bf16 autocast.

    python -m benchmarks.cpu --clips 2

Runs the clips of a config, all models interleaved frame by frame, and writes
benchmarks/results/cpu_CONFIG_fp32.json. Nothing else should run meanwhile.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch
from detectron2.modeling import build_model
from tqdm import tqdm

from blockcopy_d2.config import base_config
from blockcopy_d2.data import build_clip_loader
from blockcopy_d2.engine.checkpoint import WeightsCheckpointer
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.engine.runs import build_video_model
from blockcopy_d2.modeling import VideoStream
from blockcopy_d2.modeling.learning import learn
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import BlockGrid

_RESULTS = pathlib.Path(__file__).parent / "results"


def main():
    args = _parser().parse_args()
    options = ["MODEL.DEVICE", "cpu", "INPUT.CLIP.NUM_CLIPS", args.clips]
    cfg = load_config(config_path(args.config_file), options)
    frames = Frames(cfg)
    times = {name: [] for name in ("stock", "stock_bf16", "dense", "blockcopy")}
    stages, executed = {}, []
    loader = build_clip_loader(cfg, cfg.DATASETS.TEST[0])
    for (inputs,) in tqdm(loader, desc="timing", unit="frame"):
        if not times["stock"]:
            frames.warm_up(inputs)
        frames.start(inputs)
        for name, values in times.items():
            start = time.perf_counter()
            result = getattr(frames, name)(inputs)
            values.append(1000 * (time.perf_counter() - start))
        for stage, seconds in result.seconds.items():
            stages.setdefault(stage, []).append(1000 * seconds)
        if not result.is_first:
            executed.append(result.executed)
    means = {name: round(statistics.mean(values), 1) for name, values in times.items()}
    results = {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "config": args.config_file,
        "frames": len(times["stock"]),
        "target": cfg.MODEL.BLOCKCOPY.TARGET,
        "executed": round(statistics.mean(executed), 4),
        "mean_ms": means,
        "quartiles_ms": {
            name: [round(x, 1) for x in statistics.quantiles(values, n=4)]
            for name, values in times.items()
        },
        "stages_ms": {name: round(statistics.mean(values), 1) for name, values in stages.items()},
        "speedup_against_stock": round(means["stock"] / means["blockcopy"], 2),
        "speedup_against_stock_bf16": round(means["stock_bf16"] / means["blockcopy"], 2),
    }
    path = _RESULTS / f"cpu_{args.name}_fp32.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    print(f"results in {path}")


class Frames:
    """The models of the comparison, each a method that runs one frame."""

    def __init__(self, cfg):
        self._model, self._learner = build_video_model(cfg)
        self._stock = build_model(base_config(cfg)).eval()
        WeightsCheckpointer(self._stock).load(cfg.MODEL.WEIGHTS)

    def warm_up(self, inputs):
        """Capturing the network, and a library's first calls, are no cost of a frame."""
        self.start({**inputs, "frame_index": 0})
        for _ in range(2):
            for run in (self.stock, self.stock_bf16, self.dense):
                run(inputs)
            self._model.step(inputs, self._stream)
        self.start({**inputs, "frame_index": 0})

    def start(self, inputs):
        if inputs["frame_index"] == 0:
            self._stream, self._dense_stream = VideoStream(), VideoStream()

    @torch.no_grad()
    def stock(self, inputs):
        return self._stock([inputs])

    @torch.no_grad()
    def stock_bf16(self, inputs):
        with torch.autocast("cpu", torch.bfloat16):
            return self._stock([inputs])

    def dense(self, inputs):
        grid = None
        if self._dense_stream.started:
            size = self._dense_stream.canvas_size
            grid = BlockGrid.full(block_size=self._model.block_size, image_size=size)
        return self._model.step(inputs, self._dense_stream, grid=grid)

    def blockcopy(self, inputs):
        result = self._model.step(inputs, self._stream, learning=self._learner.wants_graph())
        learn(self._learner, self._model, [result])
        return result


def _cpu_name():
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--config-file", default="maskrcnn_blockcopy.yaml", metavar="FILE")
    parser.add_argument("--name", default="maskrcnn_R18_FPN", help="in the name of the results")
    parser.add_argument("--clips", type=int, default=2, metavar="N", help="clips to run")
    return parser


if __name__ == "__main__":
    main()
