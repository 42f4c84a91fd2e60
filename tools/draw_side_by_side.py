#!/usr/bin/env python3
"""
Draws a video as an animation of four pictures: the dense result, the executed blocks, the motion
field and the result of BlockCopy.

    python tools/draw_side_by_side.py street.mp4 --first 0 --frames 20 --output side_by_side.webp
"""

import blockcopy_d2.quiet_imports  # noqa: F401  isort:skip  comes before all others

import argparse
import itertools

import cv2
import numpy as np
from PIL import Image

from blockcopy_d2 import VideoPredictor
from blockcopy_d2.engine.acceleration import load_video_config, metadata_of
from blockcopy_d2.engine.arguments import add_config_arguments, fraction, positive
from blockcopy_d2.visualization import draw_frame, draw_motion


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", help="a video file, or a folder of frames")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="first frame to draw")
    parser.add_argument("--frames", type=positive, default=20, metavar="N", help="frames to draw")
    parser.add_argument("--target", type=fraction, metavar="TAU", help="share of executed blocks")
    parser.add_argument("--threshold", type=fraction, default=0.5, help="minimum score to draw")
    parser.add_argument("--width", type=positive, default=480, help="width of each picture")
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second")
    parser.add_argument("--quality", type=positive, default=60, help="quality of the WebP pictures")
    parser.add_argument(
        "--output", default="side_by_side.webp", metavar="FILE", help="picture to write"
    )
    add_config_arguments(parser)
    return parser


def draw(predictor, image, outputs, metadata, threshold):
    """
    Returns:
        list[tuple[str, ndarray]]: title and picture, uint8 (H, W, 3), BGR, of all four.
    """
    (dense,) = predictor.model([predictor.mapper(image)])

    def found(output):
        instances = output["instances"].to("cpu")
        return draw_frame(image, instances[instances.scores > threshold], None, metadata)

    scale, grid, motion = outputs.scale, outputs.grid, predictor.model.motion
    blocks = draw_frame(
        image, None, grid.active[0], metadata, block_size=grid.block_size, scale=scale
    )
    field = outputs.field
    moved = np.array(image)
    if field is not None:
        moved = draw_motion(image, field[0], cell_size=motion.cell_size, scale=scale)
    return [
        ("dense: all blocks of every frame", found(dense)),
        (f"executed blocks: {outputs.executed:.0%}", blocks),
        ("motion field", moved),
        ("BlockCopy", found(outputs)),
    ]


def panel(title, picture, width):
    """ndarray: uint8, BGR, the picture at a width with its title above."""
    height = round(width * picture.shape[0] / picture.shape[1])
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    strip = np.full((24, width, 3), 32, np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(strip, title, (8, 17), font, 0.5, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([strip, picture])


def main(argv=None):
    args = get_parser().parse_args(argv)
    cfg = load_video_config(args.config_file, args.opts, target=args.target)
    predictor, metadata = VideoPredictor(cfg), metadata_of(cfg)
    frames = []
    stream = predictor.stream(args.video)
    for image, outputs in itertools.islice(stream, args.first, args.first + args.frames):
        drawn = draw(predictor, image, outputs, metadata, args.threshold)
        a, b, c, d = [panel(title, picture, args.width) for title, picture in drawn]
        picture = np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)])
        frames.append(Image.fromarray(np.ascontiguousarray(picture[..., ::-1])))
    stream.close()
    frames[0].save(
        args.output,
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / args.fps),
        loop=0,
        quality=args.quality,
        method=6,
    )
    print(f"Wrote {len(frames)} frames to {args.output}")


if __name__ == "__main__":
    main()
