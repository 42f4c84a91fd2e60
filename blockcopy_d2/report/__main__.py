"""
Runs a model on a video, densely and with BlockCopy, and writes one HTML page about it:

    python -m blockcopy_d2.report --config-file maskrcnn_blockcopy.yaml \\
        --video-input street.mp4 --output report.html

The page shows both results side by side as a clip, executed blocks, time, agreement with dense and
block age over time, where the policy looks, several targets with a recommendation, and the
multiply-accumulates per stage. It holds all its pictures and needs no network. The policy learns on
the video itself, from the same start at every target. Ctrl-C ends the recording early and leaves a
page of the frames so far.
"""

import argparse
import logging
import os
import platform
import shlex
import sys
import tempfile
import time

import detectron2
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger

import blockcopy_d2
from blockcopy_d2.data import FrameReadError, VideoFrames
from blockcopy_d2.engine import load_config
from blockcopy_d2.resources import config_path

from .clip import ComparisonClip
from .page import render_page
from .recording import record_video


def get_parser():
    parser = argparse.ArgumentParser(
        prog="python -m blockcopy_d2.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file",
        default="maskrcnn_blockcopy.yaml",
        metavar="FILE",
        help="a file, a config of this project or of Detectron2's model zoo (%(default)s)",
    )
    parser.add_argument(
        "--video-input",
        required=True,
        metavar="FILE",
        help="a video file, an address, or a folder of frames",
    )
    parser.add_argument(
        "--output", default="report.html", metavar="FILE", help="the page to write (%(default)s)"
    )
    parser.add_argument(
        "--max-frames",
        type=_positive,
        default=200,
        metavar="N",
        help="stop after that many frames (%(default)s)",
    )
    parser.add_argument(
        "--target",
        type=_fraction,
        metavar="TAU",
        help="the target that clip and plots show (MODEL.BLOCKCOPY.TARGET)",
    )
    parser.add_argument(
        "--targets",
        type=_fraction,
        nargs="*",
        default=[0.2, 0.3, 0.5, 0.7],
        metavar="TAU",
        help="targets to compare; each runs on every frame and keeps features of its own in memory;"
        " none for no comparison (0.2 0.3 0.5 0.7)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=5,
        metavar="POINTS",
        help="the recommended target is the fastest one whose agreement (AP50 or mIoU, dense has"
        " 100) loses at most that many points (%(default)s)",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=_fraction,
        default=0.5,
        metavar="SCORE",
        help="minimum score of instances: of those shown, and of the dense ones that agreement"
        " is measured on (%(default)s)",
    )
    parser.add_argument(
        "--clip-width",
        type=_positive,
        default=1280,
        metavar="PIXELS",
        help="width of the clip, both results together (%(default)s)",
    )
    parser.add_argument(
        "--opts",
        default=[],
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="override config keys; comes last",
    )
    return parser


def _fraction(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not within [0, 1]")
    return value


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def main():
    args = get_parser().parse_args()
    setup_logger(name="blockcopy_d2")
    setup_logger(name="fvcore")
    try:
        # Checked before the minutes that recording takes.
        folder = os.path.dirname(os.path.abspath(args.output))
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"There is no folder {folder} to write {args.output} to.")
        cfg = _build_config(args)
        video = VideoFrames(args.video_input)
        page, recording = _report(args, cfg, video)
        with open(args.output, "w", encoding="utf-8") as f:
            f.write(page)
    except (FrameReadError, OSError, ValueError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        raise SystemExit(f"error: {message}") from error
    logging.getLogger("blockcopy_d2.report").info(
        "%s: %.2fx as fast as dense over %d frames, %.1f%% of the blocks executed, %.1f %s against"
        " dense. Wrote %s (%.1f MB).",
        video.name,
        recording.speed_up,
        recording.frames,
        100 * recording.executed,
        recording.main.scores[recording.metrics[0]],
        recording.metrics[0],
        args.output,
        len(page) / 1e6,
    )
    if recording.failure:
        raise SystemExit(f"error: {recording.failure}")


def _build_config(args):
    opts = ["MODEL.BLOCKCOPY.ENABLED", "True", *args.opts]
    if args.target is not None:
        opts += ["MODEL.BLOCKCOPY.TARGET", str(args.target)]
    cfg = load_config(config_path(args.config_file), opts)
    cfg.freeze()
    return cfg


def _report(args, cfg, video):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "clip.mp4")
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else None
        options = {"width": args.clip_width, "threshold": args.confidence_threshold}
        with ComparisonClip(path, video.fps, metadata=metadata, **options) as clip:
            recording = record_video(
                cfg,
                video,
                targets=args.targets,
                max_frames=args.max_frames,
                score_threshold=args.confidence_threshold,
                draw=clip.add,
            )
        with open(path, "rb") as f:
            data = f.read()
    page = render_page(
        recording,
        title=video.name,
        environment=_environment(args, cfg, video),
        clip=data,
        poster=clip.poster,
        clip_frames=clip.frames,
        margin=args.margin,
    )
    return page, recording


def _environment(args, cfg, video):
    device = torch.device(cfg.MODEL.DEVICE)
    options = cfg.MODEL.BLOCKCOPY
    machine = f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores used"
    if device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(device)}; {machine}"
    return {
        "command": shlex.join(["python", "-m", "blockcopy_d2.report", *sys.argv[1:]]),
        "video": f"{video.source}, {video.width}x{video.height}, {video.fps:g} frames per second",
        "config": f"{args.config_file}; weights {cfg.MODEL.WEIGHTS or 'as initialized'}",
        "policy": f"{options.POLICY.NAME}, blocks of {options.BLOCK_SIZE} pixels, weights"
        f" {options.POLICY.WEIGHTS or 'as initialized'}",
        "machine": machine,
        "versions": f"blockcopy_d2 {blockcopy_d2.__version__}, detectron2"
        f" {detectron2.__version__}, torch {torch.__version__}, Python"
        f" {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _processor():
    if os.path.isfile("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
