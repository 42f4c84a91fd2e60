"""
PETS2009 S2.L1, view 001: people on foot before a static camera, 795 frames of 768x576, all of them
labelled. The video is OpenCV's sample vtest.avi. The boxes are those of MOTChallenge 2015, and so
is the layout:

    img1/<frame, 6 digits, from 1>.jpg
    gt/gt.txt       frame, person, left, top, width, height, 1 or 0 for a box to ignore, ...

``python -m blockcopy_d2.data.pets09`` makes it from the video and the boxes. The first 400 frames
are for training.
"""

import collections
import csv
import math
import os

from detectron2.structures import BoxMode

from ..files import AnnotationError, require_folder
from ..registration import register_dataset

NAME = "PETS09-S2L1"
HEIGHT, WIDTH = 576, 768
# Numbers of the frames, from 1.
SPLITS = {"train": range(1, 401), "val": range(401, 796)}
NUM_FRAMES = 795
CLIP_LENGTH = 20


def frame_file(root, number):
    """
    Args:
        root (str): folder that holds ``img1`` and ``gt``.
        number (int): number of the frame, from 1.

    Returns:
        str: path of its image.
    """
    return os.path.join(root, "img1", f"{number:06d}.jpg")


def gt_file(root):
    """
    Returns:
        str: path of the boxes in the data set's folder ``root``.
    """
    return os.path.join(root, "gt", "gt.txt")


def load_pets09(root, split, origin=""):
    """
    The frames as single images, to train a detector on.

    Args:
        root (str): folder that holds ``img1`` and ``gt``.
        split (str): "train" or "val".
        origin (str): where the data set comes from, a sentence for the error message.

    Returns:
        list[dict]: dicts of Detectron2's detection format; image_id is the number of the frame.

    Raises:
        FileNotFoundError: names the missing folder, and where the data set comes from.
        AnnotationError: a line of gt.txt is not a box, or its boxes end too early.
    """
    for folder in ("img1", "gt"):
        require_folder(os.path.join(root, folder), root, origin)
    boxes = read_boxes(gt_file(root))
    if max(boxes) < SPLITS[split][-1]:
        raise AnnotationError(
            f"The boxes {gt_file(root)} end at frame {max(boxes)}; expected boxes up to frame"
            f" {NUM_FRAMES}: the file is truncated. {origin}"
        )
    return [
        {
            "file_name": frame_file(root, number),
            "image_id": number,
            "height": HEIGHT,
            "width": WIDTH,
            "annotations": boxes[number],
        }
        for number in SPLITS[split]
    ]


def load_pets09_video(root, split, origin="", *, clip_length=CLIP_LENGTH):
    """
    The frames as clips; every frame is labelled.

    For "val" clips follow each other; the last one may be shorter. For "train", to warm a policy
    on, there is a clip from every frame on: first those that follow each other from the first frame
    on, then those from the second on, and so forth.

    Args:
        root, split, origin: as in :func:`load_pets09`.
        clip_length (int or None): frames of a clip. None: one clip, the whole split.

    Returns:
        list[dict]: dicts of Detectron2's detection format with video_id, frame_index and labelled;
        image_id is 1000 times the number of the clip's first frame plus that of the frame.

    Raises: as :func:`load_pets09`.
    """
    frames = load_pets09(root, split, origin)
    length = clip_length or len(frames)
    if split == "train":
        fitting = len(frames) - length + 1
        starts = [s for offset in range(length) for s in range(offset, fitting, length)]
    else:
        starts = range(0, len(frames), length)
    dataset = []
    for start in starts:
        first = frames[start]["image_id"]
        for frame_index, frame in enumerate(frames[start : start + length]):
            dataset.append(
                {
                    **frame,
                    "image_id": 1000 * first + frame["image_id"],
                    "video_id": f"{NAME}_{first:06d}",
                    "frame_index": frame_index,
                    "labelled": True,
                }
            )
    return dataset


def read_boxes(path):
    """
    Args:
        path (str): path of gt.txt.

    Returns:
        dict[int, list[dict]]: annotations by the number of the frame; an empty list for frames
        without any.

    Raises:
        FileNotFoundError: there is no such file.
        AnnotationError: the file is empty or not text, or a line is not a box.
    """
    frames = collections.defaultdict(list)
    try:
        with open(path, newline="") as f:
            rows = list(csv.reader(f))
    except (UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError(f"The boxes {path} are not a table of text: {error}") from error
    if not rows:
        raise AnnotationError(f"The boxes {path} are empty.")
    for line, row in enumerate(rows, start=1):
        try:
            number, counts = int(row[0]), float(row[6])
            box = [float(value) for value in row[2:6]]
            if not all(map(math.isfinite, box)) or min(box[2:]) < 0:
                raise ValueError(f"{box} is not a box")
        except (IndexError, ValueError) as error:
            raise AnnotationError(
                f"{path}, line {line} is {','.join(row)!r}; expected frame, person, left, top,"
                " width, height and 1, or 0 for a box to ignore, as MOTChallenge writes them."
            ) from error
        # Pixels count from 1 there.
        box[0] -= 1
        box[1] -= 1
        frames[number].append(
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "iscrowd": int(counts == 0),
            }
        )
    return frames


def register_pets09(name, root, split, *, origin=""):
    """
    Register :func:`load_pets09`. A name that is registered already is left alone. No file is
    accessed.

    Args:
        name (str): name of the data set.
    """
    _register(name, lambda: load_pets09(root, split, origin), root)


def register_pets09_video(name, root, split, *, origin="", clip_length=CLIP_LENGTH):
    """:func:`register_pets09` for :func:`load_pets09_video`."""
    _register(
        name,
        lambda: load_pets09_video(root, split, origin, clip_length=clip_length),
        root,
    )


def _register(name, load, root):
    register_dataset(
        name,
        load,
        image_dir=os.path.join(root, "img1"),
        gt_dir=os.path.join(root, "gt"),
        evaluator_type="pets09",
        thing_classes=["pedestrian"],
    )
