"""Command line of PETS09: turns video and boxes into the folder of the data set."""

import argparse
import hashlib
import os
import shutil

from PIL import Image
from tqdm import tqdm

from blockcopy_d2.atomic import atomic_write

from ..video_files import VideoFrames
from . import NAME, NUM_FRAMES, frame_file, gt_file, read_boxes

# Hash of vtest.avi as OpenCV has shipped it since version 3: the boxes belong to its frames.
_SHA256 = "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf"

_ORIGIN = (
    "vtest.avi is a sample of OpenCV: samples/data/vtest.avi in its source (and in the source"
    " archive of opencv-python-headless 4.10.0.84), or in the Debian package opencv-doc."
)


def parser():
    """The command line's arguments."""
    datasets = os.getenv("DETECTRON2_DATASETS", "datasets")
    result = argparse.ArgumentParser(
        prog="python -m blockcopy_d2.data.pets09",
        description=f"Extracts the {NUM_FRAMES} frames of PETS2009 S2.L1 from OpenCV's sample video"
        " and puts the boxes of MOTChallenge 2015 beside them.",
        epilog=_ORIGIN + " gt.txt: 2DMOT2015/train/PETS09-S2L1/gt/gt.txt of"
        " https://motchallenge.net/data/2D_MOT_2015, CC BY-NC-SA 3.0.",
    )
    result.add_argument("--video", required=True, metavar="FILE", help="path of vtest.avi")
    result.add_argument("--boxes", required=True, metavar="FILE", help="gt.txt of PETS09-S2L1")
    result.add_argument(
        "--output",
        default=os.path.join(datasets, NAME),
        metavar="DIR",
        help="folder of the data set (%(default)s)",
    )
    quality = "quality of the JPEG images, 1 to 95; 90 takes 83 MiB, 30 takes 23 MiB (%(default)s)"
    qualities = dict(type=int, choices=range(1, 96), default=90, metavar="Q")
    result.add_argument("--quality", help=quality, **qualities)
    return result


def write_frames(video, boxes, output, *, quality=90):
    """
    Args:
        video (str): path of vtest.avi.
        boxes (str): path of gt.txt.
        output (str): folder of the data set.
        quality (int): quality of the JPEG images, 1 to 95.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the video is another one, or gt.txt holds no boxes of it.
    """
    for path in (video, boxes):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path} is not a file.")
    _check_video(video)
    frames = read_boxes(boxes)
    if sorted(frames) != list(range(1, NUM_FRAMES + 1)):
        raise ValueError(
            f"{boxes} has boxes in {len(frames)} frames, {min(frames, default=None)} to"
            f" {max(frames, default=None)}; expected boxes in each of the frames 1 to {NUM_FRAMES}."
        )
    for file in (frame_file(output, 1), gt_file(output)):
        os.makedirs(os.path.dirname(file), exist_ok=True)
    bar = tqdm(VideoFrames(video), desc=f"Extracting to {output}", total=NUM_FRAMES, unit="frame")
    count = 0
    for count, image in enumerate(bar, start=1):
        with atomic_write(frame_file(output, count)) as temporary:
            Image.fromarray(image[:, :, ::-1]).save(temporary, quality=quality)
    if count != NUM_FRAMES:
        raise ValueError(f"{video} has {count} frames that can be decoded; expected {NUM_FRAMES}.")
    if not os.path.exists(gt_file(output)) or not os.path.samefile(boxes, gt_file(output)):
        with atomic_write(gt_file(output)) as temporary:
            shutil.copyfile(boxes, temporary)


def _check_video(path):
    with open(path, "rb") as f:
        found = hashlib.sha256(f.read()).hexdigest()
    if found != _SHA256:
        raise ValueError(
            f"{path} has the SHA-256 {found}, expected {_SHA256}: it is another video, or not all"
            f" of it. {_ORIGIN}"
        )


def main(arguments=None):
    """Runs the command line."""
    options = parser()
    args = options.parse_args(arguments)
    try:
        write_frames(args.video, args.boxes, args.output, quality=args.quality)
    except (ValueError, OSError) as error:
        options.error(str(error))


if __name__ == "__main__":
    main()
