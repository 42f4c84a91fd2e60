"""
Times video as users run it, from pictures on the host to results: VideoPredictor.stream against
pictures that are on the GPU already, and against Detectron2's DefaultPredictor.

    python -m benchmarks.predictor --dtype fp16
    python -m benchmarks.predictor --device cpu --dtype fp32 --size 256 512 --rounds 3

Runs the demo's Mask R-CNN, or other weights, on a StreetClips clip of 1024x2048, which it draws;
instances are read with their masks. All variants run interleaved, clip by clip; those of
VideoPredictor are streams that go on from clip to clip. Times are the host's, per frame:

    stream              VideoPredictor.stream of NumPy arrays
    on_gpu              VideoPredictor of tensors on the GPU, one call a frame; on a CPU of arrays
    call                VideoPredictor of NumPy arrays, one call a frame
    file                VideoPredictor.stream of a file; without PyAV OpenCV decodes it, on the
                        thread that reads
    default_predictor   Detectron2's, also under fp16 autocast: default_predictor_amp

Writes benchmarks/results/DEVICE_predictor_CONFIG_DTYPE.json, with "stream_ms" and so on.
"""

import argparse
import importlib.util
import itertools
import os
import tempfile

import cv2
import torch
from detectron2.engine import DefaultPredictor

from blockcopy_d2 import VideoPredictor
from blockcopy_d2.config import base_config
from blockcopy_d2.engine.arguments import add_config_arguments, errors_end_the_program, positive
from blockcopy_d2.engine.checkpoint import WeightsCheckpointer
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.modeling import read_whole
from blockcopy_d2.modeling.fixed_shape import find_static_heads
from blockcopy_d2.resources import config_path

from .frame import DEMO_CONFIG, DEMO_WEIGHTS, read_clip
from .measure import DTYPES, add_size, clip_by_clip, environment, results_path, write_results

_DTYPES = {**DTYPES, "fp32": torch.float32}
_HAS_PYAV = importlib.util.find_spec("av") is not None


def main():
    args = _parser().parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("Found no NVIDIA GPU. On a CPU: --device cpu --dtype fp32")
    if args.device == "cpu" and args.dtype != "fp32":
        raise SystemExit(f"--dtype {args.dtype} is for GPUs. On a CPU: --dtype fp32")
    torch.backends.cudnn.benchmark = True
    tf32 = args.dtype != "fp32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    cfg = _config(args)
    pictures = [
        image.permute(1, 2, 0).contiguous().numpy()
        for image in read_clip(args.frames, tuple(args.size), device="cpu")
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "clip.mp4")
        _write(file, pictures, times=args.rounds + 3)
        videos = _videos(cfg, _DTYPES[args.dtype], pictures, file)
        variants = {name: video.clip for name, video in videos.items()}
        stock = _stock(cfg)
        variants["default_predictor"] = lambda: _count(map(stock, pictures))
        if device.type == "cuda":
            variants["default_predictor_amp"] = lambda: _count_with_autocast(stock, pictures)
        times, counts = clip_by_clip(variants, len(pictures), rounds=args.rounds, device=device)
        for video in videos.values():
            video.close()
    medians = {f"{name}_ms": time["median"] for name, time in times.items()}
    shared = {
        **environment(device),
        "dtype": args.dtype,
        "config": args.config_file,
        "opts": args.opts,
        "size": list(pictures[0].shape[:2]),
        "scale": videos["stream"].predictor.scale,
        "block_size": args.block_size,
        "decoder": "PyAV" if _HAS_PYAV else "OpenCV",
        **medians,
        "stream_over_on_gpu_ms": round(medians["stream_ms"] - medians["on_gpu_ms"], 4),
        "executed": {name: round(video.executed, 4) for name, video in videos.items()},
        "detections": {name: round(count, 1) for name, count in counts.items()},
    }
    path = results_path(f"predictor_{args.name}", args.dtype, device)
    write_results(path, "quartiles_ms", {"shared": shared, **times})
    for name, time in times.items():
        print(f"{name:>22} {time['median']:8.3f} ms   {counts[name]:5.1f} detections")
    print(f"stream takes {shared['stream_over_on_gpu_ms']:.3f} ms more than on_gpu")
    print(f"results in {path}")


def _config(args):
    options = {
        "MODEL.WEIGHTS": args.weights,
        "MODEL.DEVICE": args.device,
        "MODEL.BLOCKCOPY.BLOCK_SIZE": args.block_size,
        "MODEL.BLOCKCOPY.TARGET": 0.3,
        # Frames keep their size, unless --opts says otherwise.
        "INPUT.MIN_SIZE_TEST": min(args.size),
        "INPUT.MAX_SIZE_TEST": max(args.size),
    }
    options = [x for pair in options.items() for x in pair]
    return load_config(config_path(args.config_file), [*options, *args.opts])


def _videos(cfg, dtype, pictures, file):
    """dict[str, _Video]: the variants of VideoPredictor."""
    device = cfg.MODEL.DEVICE
    on_gpu = [torch.from_numpy(x).to(device) for x in pictures] if device == "cuda" else pictures
    sources = {
        "stream": itertools.cycle(pictures),
        "on_gpu": itertools.cycle(on_gpu),
        "call": itertools.cycle(pictures),
        "file": file if _HAS_PYAV else _read(file),
    }
    calls = ("on_gpu", "call")
    return {
        name: _Video(cfg, dtype, source, len(pictures), calls=name in calls)
        for name, source in sources.items()
    }


class _Video:
    """
    A stream that goes on from clip to clip.

    Attributes:
        predictor (VideoPredictor):
    """

    def __init__(self, cfg, dtype, source, num_frames, *, calls):
        torch.manual_seed(0)
        self.predictor = VideoPredictor(cfg)
        base = self.predictor.model.base
        for module in find_static_heads(base).sparse_modules(base):
            module.to(dtype)
        if calls:
            self._results = (self.predictor(image) for image in source)
        else:
            self._results = (result for _, result in self.predictor.stream(source))
        self._num_frames, self._active = num_frames, []

    def clip(self):
        return _count(map(self._noted, itertools.islice(self._results, self._num_frames)))

    def _noted(self, result):
        # Read after the clock has stopped.
        self._active.append(result.grid.active)
        return result

    @property
    def executed(self):
        """float: mean share of the blocks."""
        return torch.stack(self._active).float().mean().item()

    def close(self):
        self._results.close()


def _count(results):
    count = 0
    for result in results:
        read_whole(result)
        count += len(result["instances"])
    return count


def _stock(cfg):
    cfg = base_config(cfg)
    weights, cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS, ""
    predictor = DefaultPredictor(cfg)
    WeightsCheckpointer(predictor.model).load(weights)
    return predictor


def _count_with_autocast(predictor, pictures):
    with torch.autocast("cuda", torch.float16):
        return _count(map(predictor, pictures))


def _write(file, pictures, *, times):
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(file, cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (width, height))
    if not writer.isOpened():
        raise SystemExit("OpenCV cannot write the video that 'file' reads: it has no MPEG-4.")
    for image in times * pictures:
        writer.write(image)
    writer.release()


def _read(file):
    capture = cv2.VideoCapture(file)
    while True:
        read, image = capture.read()
        if not read:
            return
        yield image


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predictor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, default=DEMO_CONFIG)
    parser.add_argument(
        "--weights", default=DEMO_WEIGHTS, metavar="FILE", help="weights of the model (%(default)s)"
    )
    parser.add_argument(
        "--name", default="maskrcnn_R18_FPN", help="part of the name of the results (%(default)s)"
    )
    parser.add_argument("--frames", metavar="DIR", help="a clip's pictures; drawn if left out")
    add_size(parser, 1024, 2048)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda", help="device to run on (%(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="fp16", help="precision of the network (%(default)s)"
    )
    parser.add_argument(
        "--block-size", type=positive, default=128, metavar="B", help="side in pixels (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=positive, default=10, help="measurements of each (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    with errors_end_the_program():
        main()
