"""
Measures by how much of the picture consecutive frames differ, and frames of different scenes, for
MODEL.BLOCKCOPY.SCENE_CUT.

    python -m benchmarks.scene_cuts --dataset davis_video_val

For the frames of a data set of videos, and for the first frames of each two of its videos, prints
the share of the picture that changed as BlockCopy measures it, with the last frame in place and
moved by the estimated motion. A cut should lie above the largest of the first and below the
smallest of the second. Writes benchmarks/results/scene_cuts_DATASET.json.
"""

import argparse
import itertools

import torch
from torch.nn import functional as F
from tqdm import tqdm

from blockcopy_d2.data import read_picture
from blockcopy_d2.data.videos import load_videos
from blockcopy_d2.engine.arguments import errors_end_the_program, positive
from blockcopy_d2.modeling.running.scene_cut import changed_share
from blockcopy_d2.motion import move

from .measure import RESULTS, environment, write_results
from .motion_quality import build

# Policy pixels of a block, and pixels of the picture per policy pixel.
_PIXELS_PER_BLOCK, _SCALE = 32, 4
_CELL_SIZE = 8


def main():
    args = _parser().parse_args()
    videos = load_videos(args.dataset)
    frames = [pair for video in videos for pair in itertools.pairwise(video)]
    scenes = list(itertools.combinations([video[0] for video in videos], 2))
    estimator = build(args.estimator, _CELL_SIZE, "cpu")
    results = {}
    for name, pairs in (("frames", frames), ("scenes", scenes)):
        pairs = pairs[:: args.every] if name == "frames" else pairs
        shares = [changed(pair, estimator) for pair in tqdm(pairs, desc=name, unit="pair")]
        if shares:
            results[name] = {"pairs": len(shares), **summary(shares)}
            print(f"{name}: {results[name]}")
    path = RESULTS / f"scene_cuts_{args.dataset}.json"
    shared = {**environment("cpu"), "estimator": args.estimator, "every": args.every}
    write_results(path, "changed", {"shared": shared, **results})
    print(f"results in {path}")


@torch.no_grad()
def changed(pair, estimator):
    """
    Args:
        pair (tuple[dict, dict]): frames of one size.
        estimator (MotionEstimator):

    Returns:
        dict[str, float]: share of the picture that changed from the first frame, "in place" and
        "moved".
    """
    before, now = (
        torch.from_numpy(read_picture(frame["file_name"]).transpose(2, 0, 1).copy())[None]
        for frame in pair
    )
    if before.shape != now.shape:
        before = F.interpolate(before.float(), now.shape[-2:]).to(now.dtype)
    field = estimator.estimate(estimator.features(now), estimator.features(before))
    before, now = before.float(), now.float()
    moved = move(before, field, cell_size=_CELL_SIZE, stride=1)
    options = {"pixels_per_block": _PIXELS_PER_BLOCK, "pixel_std": torch.ones(3, 1, 1)}
    return {
        name: changed_share(F.avg_pool2d(now, _SCALE), F.avg_pool2d(last, _SCALE), **options).item()
        for name, last in (("in place", before), ("moved", moved))
    }


def summary(shares):
    """dict[str, list[float]]: smallest and largest of each share."""
    return {
        name: [round(choose(x[name] for x in shares), 3) for choose in (min, max)]
        for name in shares[0]
    }


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scene_cuts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dataset",
        default="davis_video_val",
        metavar="NAME",
        help="data set of videos (%(default)s)",
    )
    parser.add_argument(
        "--estimator",
        default="BlockMatching",
        metavar="NAME",
        help="value of MODEL.BLOCKCOPY.MOTION.NAME (%(default)s)",
    )
    parser.add_argument(
        "--every",
        type=positive,
        default=1,
        metavar="N",
        help="frames from one pair to the next (%(default)s)",
    )
    return parser


if __name__ == "__main__":
    with errors_end_the_program():
        main()
