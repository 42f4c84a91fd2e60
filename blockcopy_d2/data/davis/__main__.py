"""Command line of DAVIS: turns videos with a mask per frame into the folder of the data set."""

import argparse
import os
import re
import shutil

from PIL import Image
from tqdm import tqdm

from blockcopy_d2.atomic import atomic_write

from ..video_files import VideoFrames
from . import NAME, image_file, mask_file, split_file

SPLITS = ("train", "val")


def parser():
    """The command line's arguments."""
    datasets = os.getenv("DETECTRON2_DATASETS", "datasets")
    result = argparse.ArgumentParser(
        prog="python -m blockcopy_d2.data.davis",
        description="Makes the folder of DAVIS 2016 from SOURCE/{train,val}/<sequence>/, which"
        " hold a video.mp4 and mask_00000.png, mask_00001.png, ..., one mask for every frame.",
        epilog="The data set itself (https://davischallenge.org, DAVIS 2016, 480p, CC BY 4.0) has"
        f" the layout already: unpack it as {NAME} and leave this command out.",
    )
    result.add_argument(
        "--source", required=True, metavar="DIR", help="folder with train and val, see above"
    )
    result.add_argument(
        "--output",
        default=os.path.join(datasets, NAME),
        metavar="DIR",
        help="folder of the data set (%(default)s)",
    )
    result.add_argument(
        "--quality",
        type=int,
        choices=range(1, 96),
        default=90,
        metavar="Q",
        help="quality of the JPEG images, 1 to 95 (%(default)s)",
    )
    return result


def write_davis(source, output, *, quality=90):
    """
    Args:
        source (str): folder with a folder per split, a folder per sequence in each.
        output (str): folder of the data set.
        quality (int): quality of the JPEG images, 1 to 95.

    Raises:
        FileNotFoundError: a folder, a video or masks are missing.
        ValueError: a video has another number of frames than there are masks.
    """
    for split in SPLITS:
        folder = os.path.join(source, split)
        if not os.path.isdir(folder):
            raise FileNotFoundError(
                f"The folder {folder} is missing; {source} needs the folders {', '.join(SPLITS)}."
            )
        names = sorted(x for x in os.listdir(folder) if os.path.isdir(os.path.join(folder, x)))
        if not names:
            raise FileNotFoundError(f"{folder} holds no sequence.")
        for name in tqdm(names, desc=f"Extracting {split} to {output}", unit="sequence"):
            _write_sequence(os.path.join(folder, name), output, name, quality)
        path = split_file(output, split)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with atomic_write(path) as temporary, open(temporary, "w") as f:
            f.writelines(f"{name}\n" for name in names)


def _write_sequence(folder, output, name, quality):
    masks = [x for x in os.listdir(folder) if re.fullmatch(r"mask_\d+\.png", x)]
    # By number: names may have no leading zeros.
    masks.sort(key=_number_of)
    for file in (image_file(output, name, 0), mask_file(output, name, 0)):
        os.makedirs(os.path.dirname(file), exist_ok=True)
    video = os.path.join(folder, "video.mp4")
    count = 0
    for count, image in enumerate(VideoFrames(video), start=1):
        with atomic_write(image_file(output, name, count - 1)) as temporary:
            Image.fromarray(image[:, :, ::-1]).save(temporary, quality=quality)
    if count != len(masks):
        raise ValueError(f"{video} has {count} frames, and there are {len(masks)} masks beside it.")
    for number, mask in enumerate(masks):
        with atomic_write(mask_file(output, name, number)) as temporary:
            shutil.copyfile(os.path.join(folder, mask), temporary)


def _number_of(mask):
    return int(mask.removeprefix("mask_").removesuffix(".png"))


def main(arguments=None):
    """Runs the command line."""
    options = parser()
    args = options.parse_args(arguments)
    try:
        write_davis(args.source, args.output, quality=args.quality)
    except (ValueError, OSError) as error:
        options.error(str(error))


if __name__ == "__main__":
    main()
