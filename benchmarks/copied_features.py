"""
Measures how wrong features become that are copied for several frames, by how they move:

    python -m benchmarks.copied_features --config-file configs/maskrcnn_blockcopy.yaml --video 3

No block runs after the first frame, and frames keep the size of their files. Prints, for each
output of the backbone, how far it is from that of the dense network after 1, 3, 6 and 12 frames:
the root of the mean square, in deviations of the dense output. Writes
benchmarks/results/copied_features_CONFIG.json.

Shape shorthand in this module: N streams, C channels, H x W pixels of a map.
"""

import argparse
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch.nn import functional as F

from blockcopy_d2.data import read_picture
from blockcopy_d2.data.videos import load_videos
from blockcopy_d2.engine.arguments import add_config_arguments, count, errors_end_the_program
from blockcopy_d2.engine.checkpoint import WeightsCheckpointer
from blockcopy_d2.engine.defaults import load_config
from blockcopy_d2.motion import build_motion
from blockcopy_d2.motion.move import displacements

from .measure import RESULTS, environment, write_results

FRAMES = (1, 3, 6, 12)


class Copy:
    """A map that is copied from frame to frame."""

    def __init__(self, first):
        """
        Args:
            first (Tensor): float (N, C, H, W), the map of the frame that was executed.
        """
        self.now = first

    def move(self, shift):
        """
        Args:
            shift (Tensor): float32 (N, 2, H, W), see :func:`displacements`.
        """


class Bilinear(Copy):
    mode = "bilinear"

    def move(self, shift):
        self.now = sample(self.now, shift, self.mode)


class Bicubic(Bilinear):
    mode = "bicubic"


class WholePixels(Copy):
    """Moves by whole pixels, and keeps what is missing for the next frame: nothing blurs."""

    def __init__(self, first):
        super().__init__(first)
        self.rest = torch.zeros_like(first[:, :2])

    def move(self, shift):
        wanted = shift + moved_vectors(self.rest, shift)
        whole = torch.where(_moves(shift), wanted.round(), 0.0)
        self.now, self.rest = sample(self.now, whole, "nearest"), wanted - whole


class Composed(Copy):
    """Adds up the vectors of all frames, and reads the first map once: nothing blurs twice."""

    def __init__(self, first):
        super().__init__(first)
        self.first, self.total = first, torch.zeros_like(first[:, :2])

    def move(self, shift):
        self.total = shift + moved_vectors(self.total, shift)
        self.now = sample(self.first, self.total, "bilinear")


COPIES = {
    "in place": Copy,
    "bilinear": Bilinear,
    "bicubic": Bicubic,
    "whole pixels": WholePixels,
    "composed vectors": Composed,
}


def sample(x, shift, mode):
    """
    Args:
        x (Tensor): float (N, C, H, W).
        shift (Tensor): float32 (N, 2, H, W), see :func:`displacements`.
        mode (str): interpolation, see ``grid_sample``.

    Returns:
        Tensor: like ``x``.
    """
    height, width = x.shape[-2:]
    rows = (torch.arange(height, device=x.device)[:, None] + shift[:, 1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + shift[:, 0]).clamp(0, width - 1)
    positions = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    moved = F.grid_sample(x, positions, mode=mode, padding_mode="border", align_corners=False)
    return torch.where(_moves(shift), moved, x)


def moved_vectors(vectors, shift):
    """Vectors (N, 2, H, W) that move with the picture."""
    return sample(vectors, shift, "bilinear")


def _moves(shift):
    return (shift != 0).any(dim=1, keepdim=True)


@torch.no_grad()
def distances(frames, features, estimator):
    """
    Args:
        frames (list[Tensor]): uint8 (3, H, W), frames in a row; the first is executed.
        features (callable): returns the maps of a frame, dict[str, Tensor], float (1, C, H, W).
        estimator (MotionEstimator):

    Returns:
        dict[str, dict[str, dict[str, float]]]: distances by number of frames, map and copy.
    """
    copies, found = None, {}
    for number, frame in enumerate(frames):
        dense, picture = features(frame), estimator.features(frame[None])
        if copies is None:
            copies = {
                name: {kind: make(x) for kind, make in COPIES.items()} for name, x in dense.items()
            }
            last = picture
            continue
        field, last = estimator.estimate(picture, last), picture
        for name, x in dense.items():
            layout = dict(cell_size=estimator.cell_size, size=tuple(x.shape[-2:]))
            # Strides are powers of two; the last row of a map may be cut off.
            stride = 2 ** round(torch.tensor(frame.shape[1] / x.shape[2]).log2().item())
            shift = displacements(field, stride=stride, **layout)
            for copy in copies[name].values():
                copy.move(shift)
            if number in FRAMES:
                unit = x.var(dim=(2, 3), correction=0).mean()
                found.setdefault(str(number), {})[name] = {
                    kind: ((copy.now - x).square().mean() / unit).sqrt().item()
                    for kind, copy in copies[name].items()
                }
    return found


def main():
    args = _parser().parse_args()
    with errors_end_the_program():
        keys = ["MODEL.DEVICE", "cpu", "MODEL.BLOCKCOPY.ENABLED", False]
        keys += ["MODEL.BLOCKCOPY.MOTION.NAME", args.estimator]
        cfg = load_config(args.config_file, [*args.opts, *keys])
        videos = load_videos(cfg.DATASETS.TEST[0])
        if args.video >= len(videos):
            raise ValueError(f"--video is {args.video}; there are {len(videos)}, from 0 on.")
        model = build_model(cfg).eval()
        WeightsCheckpointer(model).load(cfg.MODEL.WEIGHTS)

    def features(frame):
        image = (frame.float() - model.pixel_mean) / model.pixel_std
        images = ImageList.from_tensors([image], model.backbone.size_divisibility)
        return model.backbone(images.tensor)

    paths = [frame["file_name"] for frame in videos[args.video][: FRAMES[-1] + 1]]
    frames = [torch.from_numpy(read_picture(x).transpose(2, 0, 1).copy()) for x in paths]
    found = distances(frames, features, build_motion(cfg))
    for number, maps in found.items():
        print(f"after {number} frames")
        for name, row in maps.items():
            print(f"  {name:>5}  " + "  ".join(f"{kind} {x:.2f}" for kind, x in row.items()))
    path = RESULTS / f"copied_features_{Path(args.config_file).stem}.json"
    shared = {**environment("cpu"), "estimator": args.estimator, "video": args.video}
    rounded = {
        number: {name: {kind: round(x, 3) for kind, x in row.items()} for name, row in maps.items()}
        for number, maps in found.items()
    }
    write_results(path, "after_frames", {"shared": shared, **rounded})
    print(f"results in {path}")


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.copied_features",
        description=__doc__.split("Shape shorthand")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, default="maskrcnn_blockcopy.yaml")
    parser.add_argument(
        "--video",
        type=count,
        default=0,
        metavar="N",
        help="video of DATASETS.TEST (%(default)s)",
    )
    parser.add_argument(
        "--estimator",
        default="BlockMatching",
        metavar="NAME",
        help="value of MODEL.BLOCKCOPY.MOTION.NAME (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    main()
