"""
Runs a model on a video, densely and with BlockCopy, and writes one HTML page about it:

    python -m blockcopy_d2.report --config-file maskrcnn_blockcopy.yaml \\
        --video-input street.mp4 --output report.html

The page shows both results side by side as a clip, executed blocks, time, agreement with dense and
block age over time, a heat map of the policy, several targets with a recommendation, and the
multiply-accumulates per stage. It holds all its pictures and needs no network. The policy learns on
the video itself, from the same start at every target. Ctrl-C ends the recording early and leaves a
page of the frames so far.
"""

import argparse
import logging
import math
import os
import platform
import shlex
import sys
import tempfile
import time

import detectron2
import torch
from tabulate import tabulate

import blockcopy_d2
from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.data import VideoFrames, redact
from blockcopy_d2.engine import VideoPredictor
from blockcopy_d2.engine.acceleration import load_video_config, metadata_of
from blockcopy_d2.engine.arguments import (
    add_config_arguments,
    add_motion_argument,
    drawn_cell_size,
    errors_end_the_program,
    fraction,
    points,
    positive,
    without_secrets,
)
from blockcopy_d2.engine.logs import set_up_logs
from blockcopy_d2.engine.machine import processor_name
from blockcopy_d2.engine.outputs import check_output, refuse_overwriting, weight_files

from .clip import ComparisonClip
from .page import mac_table, render_page
from .recording import record_video


def get_parser():
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m blockcopy_d2.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, lazy=True)
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
        type=positive,
        default=200,
        metavar="N",
        help="stop after that many frames (%(default)s)",
    )
    parser.add_argument(
        "--target",
        type=fraction,
        metavar="TAU",
        help="the target that clip and plots show (MODEL.BLOCKCOPY.TARGET)",
    )
    parser.add_argument(
        "--targets",
        type=fraction,
        nargs="*",
        default=[0.2, 0.3, 0.5, 0.7],
        metavar="TAU",
        help="targets to compare; each runs on every frame and keeps features of its own in memory;"
        " none for no comparison, nor with plain differences (0.2 0.3 0.5 0.7)",
    )
    parser.add_argument(
        "--margin",
        type=points,
        default=5,
        metavar="POINTS",
        help="the recommended target is the fastest one whose agreement (AP50 or mIoU, dense has"
        " 100) loses at most that many points (%(default)s)",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=fraction,
        default=0.5,
        metavar="SCORE",
        help="minimum score of instances: of those shown, and of the dense ones that agreement"
        " is measured on (%(default)s)",
    )
    parser.add_argument(
        "--clip-width",
        type=positive,
        default=1280,
        metavar="PIXELS",
        help="width of the clip, both results together (%(default)s)",
    )
    add_motion_argument(parser)
    return without_secrets(parser)


def main():
    """Runs the command line."""
    args = get_parser().parse_args()
    set_up_logs()
    with errors_end_the_program():
        check_output(args.output, expected="a page, such as a.html")
        refuse_overwriting(args.output, [args.video_input, args.config_file])
        cfg = load_video_config(args.config_file, args.opts, target=args.target)
        refuse_overwriting(args.output, weight_files(cfg))
        video = VideoFrames(args.video_input)
        page, recording = _report(args, cfg, video)
        with atomic_write(args.output) as temporary:
            with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as f:
                f.write(page)
    headers = ("stage", "dense GMACs", "executed GMACs")
    metric = recording.metrics[0]
    score = recording.main.scores[metric]
    agreement = f"{score:.1f} {metric} against dense"
    if math.isnan(score):
        agreement = "nothing above the confidence threshold to measure agreement by"
    logging.getLogger("blockcopy_d2.report").info(
        "Multiply-accumulates per frame:\n%s\n"
        "%s: %.2fx as fast as dense over %d frames, %.1f%% of the blocks executed, %s. Wrote %s"
        " (%.1f MB).",
        tabulate(mac_table(recording), headers=headers, tablefmt="pipe", floatfmt=".2f"),
        video.name,
        recording.speed_up,
        recording.frames,
        100 * recording.executed,
        agreement,
        args.output,
        len(page) / 1e6,
    )
    if recording.failure:
        raise SystemExit(f"error: {recording.failure}")


def _report(args, cfg, video):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "clip.mp4")
        options = {"width": args.clip_width, "threshold": args.confidence_threshold}
        predictor = VideoPredictor(cfg)
        options["cell_size"] = drawn_cell_size(args, predictor.model)
        options |= {"format": video.video_format, "metadata": metadata_of(cfg)}
        with ComparisonClip(path, video.fps, **options) as clip:
            recording = record_video(
                predictor,
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
        environment=_environment(args, cfg, predictor.model, video),
        clip=data,
        poster=clip.poster,
        clip_frames=clip.frames,
        margin=args.margin,
    )
    return page, recording


def _environment(args, cfg, model, video):
    weights, policy_weights = weight_files(cfg)
    machine = f"{processor_name()}, {torch.get_num_threads()} of {os.cpu_count()} cores used"
    if model.device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(model.device)}; {machine}"
    return {
        "command": shlex.join(["python", "-m", "blockcopy_d2.report", *map(redact, sys.argv[1:])]),
        "video": f"{video.source}, {video.width}x{video.height}, {video.fps:g} frames per second",
        "config": f"{args.config_file}; weights {redact(weights)}",
        "policy": f"{type(model.policy).__name__}, blocks of {model.block_size} pixels, weights"
        f" {redact(policy_weights or 'as initialized')}",
        "machine": machine,
        "versions": f"blockcopy_d2 {blockcopy_d2.__version__}, detectron2"
        f" {detectron2.__version__}, torch {torch.__version__}, Python"
        f" {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


if __name__ == "__main__":
    main()
