"""
Measures estimators of motion without a network: every so many frames of a video data set, the
last frame is moved to this one, and so are its masks.

    python -m benchmarks.motion_quality --dataset davis_video_val
    python -m benchmarks.motion_quality --dataset streetclips_val --every 7

Prints, per estimator and cell size, the mean difference of the moved picture to this one in grey
levels; the intersection over union of the moved masks with those of this frame, all instances of
a frame together, where both frames have masks; and the share of cells that moved. "none" leaves
everything in place. Writes benchmarks/results/motion_quality_DATASET.json.
"""

import argparse
import collections
import statistics

import torch
from detectron2.config import get_cfg
from detectron2.data import detection_utils
from tqdm import tqdm

from blockcopy_d2 import add_blockcopy_config
from blockcopy_d2.data import read_picture
from blockcopy_d2.data.videos import load_videos
from blockcopy_d2.engine.arguments import errors_end_the_program, positive
from blockcopy_d2.motion import CELL_SIZES, build_motion, move, moved_cells, zero_field

from .measure import RESULTS, environment, write_results

ESTIMATORS = ("none", "DISFlow", "BlockMatching")


def main():
    args = _parser().parse_args()
    with errors_end_the_program():
        pairs = [
            pair
            for video in load_videos(args.dataset)
            for pair in list(zip(video, video[1:]))[:: args.every]
        ]
    variants = {
        (name, cell_size): build(name, cell_size, args.device)
        for name in args.estimators
        for cell_size in (args.cell_sizes if name != "none" else args.cell_sizes[:1])
    }
    scores = collections.defaultdict(lambda: collections.defaultdict(list))
    with torch.no_grad():
        for pair in tqdm(pairs, desc=args.dataset, unit="frame"):
            for variant, estimator in variants.items():
                for key, value in score(pair, estimator, variant[1], args.device).items():
                    scores[variant][key].append(value)
    results = {
        f"{name}, cells of {cell_size}": {
            key: round(statistics.fmean(values), 3) for key, values in of_variant.items()
        }
        for (name, cell_size), of_variant in scores.items()
    }
    for name, of_variant in results.items():
        print(f"{name:>26}  " + "  ".join(f"{k} {value:.2f}" for k, value in of_variant.items()))
    path = RESULTS / f"motion_quality_{args.dataset}.json"
    shared = {**environment(args.device), "every": args.every, "pairs": len(pairs)}
    write_results(path, "estimators", {"shared": shared, **results})
    print(f"results in {path}")


def build(name, cell_size, device):
    """MotionEstimator or None: the one of MODEL.BLOCKCOPY.MOTION."""
    cfg = get_cfg()
    add_blockcopy_config(cfg)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.BLOCKCOPY.MOTION.NAME = name
    cfg.MODEL.BLOCKCOPY.MOTION.CELL_SIZE = cell_size
    return build_motion(cfg)


def score(pair, estimator, cell_size, device):
    """
    Args:
        pair (tuple[dict, dict]): frames in a row.
        estimator (MotionEstimator or None): None leaves everything in place.
        cell_size (int): in pixels.
        device (str): device to estimate motion on.

    Returns:
        dict[str, float]: the scores that could be measured.
    """
    pictures = [
        torch.from_numpy(read_picture(frame["file_name"]).transpose(2, 0, 1).copy())[None]
        for frame in pair
    ]
    before, now = (picture.to(device) for picture in pictures)
    size = tuple(now.shape[-2:])
    field = zero_field(size, cell_size, device=device)
    if estimator is not None:
        field = estimator.estimate(estimator.features(now), estimator.features(before))
    layout = {"cell_size": cell_size, "stride": 1}
    moved = move(before.float(), field, **layout)
    scores = {
        "difference": (moved - now.float()).abs().mean().item(),
        "moved": moved_cells(field).float().mean().item(),
    }
    masks = [mask_of(frame, size) for frame in pair]
    if all(mask is not None for mask in masks):
        was, is_now = masks
        moved = move(was.to(device).float()[None, None], field, **layout)[0, 0].cpu() > 0.5
        union = (moved | is_now).sum().item()
        scores["IoU"] = 100 * (moved & is_now).sum().item() / max(union, 1)
    return scores


def mask_of(frame, size):
    """Tensor or None: bool (H, W), union of all masks; None for a frame without any."""
    annotations = frame.get("annotations")
    if not annotations or not all("segmentation" in x for x in annotations):
        return None
    instances = detection_utils.annotations_to_instances(annotations, size, mask_format="bitmask")
    return instances.gt_masks.tensor.any(0)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.motion_quality",
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
        "--every",
        type=positive,
        default=14,
        metavar="N",
        help="frames from one pair to the next (%(default)s)",
    )
    parser.add_argument(
        "--estimators",
        nargs="+",
        default=list(ESTIMATORS),
        metavar="NAME",
        help=f"values of MODEL.BLOCKCOPY.MOTION.NAME ({' '.join(ESTIMATORS)})",
    )
    parser.add_argument(
        "--cell-sizes",
        nargs="+",
        type=int,
        choices=CELL_SIZES,
        default=list(CELL_SIZES),
        help=f"sides in pixels ({' '.join(map(str, CELL_SIZES))})",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device to run on (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    main()
