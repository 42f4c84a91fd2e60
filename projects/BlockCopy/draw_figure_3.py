#!/usr/bin/env python3
"""
Draws Figure 3 of the paper for any video: frames in a row, and below each of them its executed
blocks, the frame state, the output and the information gain of its blocks.

    python projects/BlockCopy/draw_figure_3.py --video-input street.mp4 --first 8 --frames 4

The policy has seen the video from its start, and learns on the way.
"""

import blockcopy_d2.quiet_imports  # noqa: F401  isort:skip  comes before all others

import argparse

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.data import VideoFrames
from blockcopy_d2.engine import VideoPredictor
from blockcopy_d2.engine.acceleration import load_video_config, metadata_of
from blockcopy_d2.engine.arguments import (
    add_config_arguments,
    count,
    errors_end_the_program,
    fraction,
    positive,
)
from blockcopy_d2.engine.outputs import check_plot, refuse_overwriting
from blockcopy_d2.visualization import draw_frame, found_instances, pixel_classes

_ROWS = ("frame", "execution grid", "frame state", "output", "information gain")


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--video-input", required=True, metavar="FILE", help="a video file, or a folder of frames"
    )
    parser.add_argument(
        "--first",
        type=count,
        default=1,
        metavar="N",
        help="first frame to draw, from 0 (%(default)s)",
    )
    parser.add_argument(
        "--frames",
        type=positive,
        default=4,
        metavar="N",
        help="frames to draw, in a row (%(default)s)",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=fraction,
        default=0.5,
        metavar="SCORE",
        help="minimum score of detections that are drawn; gains count all (%(default)s)",
    )
    parser.add_argument(
        "--output",
        default="figure_3.png",
        metavar="FILE",
        help="the picture to write (%(default)s)",
    )
    return parser


def columns(predictor, path, args, metadata):
    """
    Yields:
        dict: for every frame that is wanted, its number, its executed share, and by the names of
        the rows pictures (H, W, 3), uint8, RGB, and the gain of the blocks, float (GH, GW), whose
        side is given in pixels of the picture.

    Raises:
        ValueError: the video has fewer frames.
    """
    end, number = args.first + args.frames, -1
    for number, (image, result) in enumerate(predictor.stream(VideoFrames(path))):
        if number >= end:
            return
        if number < args.first:
            continue
        instances = found_instances(result.output)
        if instances is not None:
            instances = instances[instances.scores >= args.confidence_threshold]
        layout = {"block_size": result.grid.block_size, "scale": result.scale}
        output = draw_frame(image, instances, None, metadata, classes=pixel_classes(result.output))
        gain = torch.zeros(result.grid.shape)
        if not result.is_first:
            gain = predictor.model.information_gain(result)[0].cpu()
        yield {
            "number": number,
            "executed": result.grid.fraction,
            "frame": image[:, :, ::-1],
            "execution grid": draw_frame(image, None, result.grid.active[0].cpu(), **layout)[
                :, :, ::-1
            ],
            "frame state": frame_state(predictor, result, image.shape[:2]),
            "output": output[:, :, ::-1],
            "information gain": gain.numpy(),
            "side": result.grid.block_size / result.scale,
        }
    if number + 1 < end:
        raise ValueError(
            f"{path} has {number + 1} frames; --first {args.first} --frames {args.frames} asks for"
            f" {end}."
        )


def frame_state(predictor, result, size):
    """
    Args:
        predictor (VideoPredictor): the predictor that ran the frame last.
        result (FrameResult):
        size (tuple[int, int]): size of the picture.

    Returns:
        ndarray: uint8 (h, w, 3), RGB: for each block the pixels of its last execution, at the
        resolution of the policy and without padding.
    """
    model, state = predictor.model, result.frame
    if result.observation is not None:
        executed = F.interpolate(result.grid.active[:, None].float(), size=state.shape[-2:]) > 0
        state = torch.where(executed, state, result.observation.frame_state)
    pixels = state[0] * model.base.pixel_std + model.base.pixel_mean
    step = result.grid.block_size / model.task.pixels_per_block
    height, width = (round(length * result.scale / step) for length in size)
    pixels = pixels[:, :height, :width].clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    return pixels[:, :, ::-1] if predictor.mapper.image_format == "BGR" else pixels


def draw(frames, path):
    """
    Args:
        frames (list[dict]): from :func:`columns`.
        path (str): path of the PNG file.
    """
    height, width = frames[0]["frame"].shape[:2]
    size = (3 * len(frames) + 0.6, 3 * len(_ROWS) * height / width + 0.4)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(len(_ROWS), len(frames), squeeze=False)
    most = max(float(frame["information gain"].max()) for frame in frames) or 1.0
    for column, frame in zip(axes.T, frames):
        column[0].set_title(f"frame {frame['number']}, {frame['executed']:.0%} executed")
        for cell, row in zip(column, _ROWS):
            cell.set_xticks([])
            cell.set_yticks([])
            if row == "information gain":
                rows, columns = (frame["side"] * count for count in frame[row].shape)
                options = {"cmap": "viridis", "vmin": 0, "vmax": most}
                shown = cell.imshow(frame[row], extent=(0, columns, rows, 0), **options)
                # Blocks may reach beyond the picture.
                cell.set(xlim=(0, width), ylim=(height, 0))
            else:
                cell.imshow(frame[row])
    for cell, row in zip(axes[:, 0], _ROWS):
        cell.set_ylabel(row)
    figure.colorbar(shown, ax=axes[-1], fraction=0.02, pad=0.01)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def main(argv=None):
    args = get_parser().parse_args(argv)
    with errors_end_the_program():
        refuse_overwriting(args.output, [args.video_input, args.config_file])
        check_plot(args.output)
        cfg = load_video_config(args.config_file, args.opts)
        predictor = VideoPredictor(cfg)
        frames = list(columns(predictor, args.video_input, args, metadata_of(cfg)))
        draw(frames, args.output)


if __name__ == "__main__":
    main()
