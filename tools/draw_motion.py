#!/usr/bin/env python3
"""
Draws the motion of a video by each estimator, in one picture. No model is run.

    python tools/draw_motion.py video.mp4 --frame 12 --output motion.png
"""

import blockcopy_d2.quiet_imports  # noqa: F401  isort:skip  comes before all others

import argparse
import itertools

import numpy as np
import torch
from detectron2.config import get_cfg
from PIL import Image, ImageDraw, ImageFont

from blockcopy_d2 import add_blockcopy_config
from blockcopy_d2.config_key import check_registered
from blockcopy_d2.data import VideoFrames
from blockcopy_d2.engine.arguments import errors_end_the_program, positive
from blockcopy_d2.motion import CELL_SIZES, MOTION_REGISTRY, build_motion, moved_cells
from blockcopy_d2.visualization import draw_motion


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", metavar="FILE", help="a video file, or a folder of frames")
    parser.add_argument(
        "--frame",
        type=positive,
        default=1,
        metavar="N",
        help="frame to draw, against the one before (%(default)s)",
    )
    parser.add_argument(
        "--estimators",
        nargs="+",
        default=["DISFlow", "BlockMatching", "CodecVectors"],
        metavar="NAME",
        help="values of MODEL.BLOCKCOPY.MOTION.NAME (%(default)s)",
    )
    parser.add_argument(
        "--cell-size", type=int, choices=CELL_SIZES, default=16, help="side in pixels (%(default)s)"
    )
    parser.add_argument(
        "--output", default="motion.png", metavar="FILE", help="picture to write (%(default)s)"
    )
    return parser


def main():
    args = get_parser().parse_args()
    with errors_end_the_program():
        frames = VideoFrames(args.video).read(vectors=True)
        pair = list(itertools.islice(frames, args.frame - 1, args.frame + 1))
        if len(pair) < 2:
            raise ValueError(f"{args.video} has no frame {args.frame}.")
        pictures = [draw_field(name, pair, args.cell_size) for name in args.estimators]
        Image.fromarray(np.concatenate(pictures)[:, :, ::-1]).save(args.output)


def draw_field(name, pair, cell_size):
    """
    Args:
        name (str): name of the estimator.
        pair (list): two frames in a row, of :meth:`VideoFrames.read`.
        cell_size (int): in pixels.

    Returns:
        ndarray: uint8, BGR, with a caption above the picture.
    """
    cfg = get_cfg()
    add_blockcopy_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BLOCKCOPY.MOTION.CELL_SIZE = cell_size
    check_registered("--estimators", name, MOTION_REGISTRY, also=("auto",))
    cfg.MODEL.BLOCKCOPY.MOTION.NAME = name
    estimator = build_motion(cfg)
    features = []
    for image, _, vectors in pair:
        codec = None
        if vectors is not None and estimator.reads_vectors:
            codec = [vectors.field(image.shape[:2], cell_size)]
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        features.append(estimator.features(tensor[None], codec=codec))
    previous, current = features
    field = estimator.estimate(current, previous)
    moved = moved_cells(field).float().mean()
    picture = draw_motion(pair[1][0], field[0], cell_size=cell_size)
    strip = Image.new("RGB", (picture.shape[1], max(20, picture.shape[0] // 16)), (24, 24, 24))
    ImageDraw.Draw(strip).text(
        (strip.height // 2, strip.height // 2),
        f"{name}: {moved:.0%} of the cells moved",
        anchor="lm",
        fill=(235, 235, 235),
        font=ImageFont.load_default(round(strip.height * 0.6)),
    )
    return np.concatenate([np.asarray(strip), picture])


if __name__ == "__main__":
    main()
