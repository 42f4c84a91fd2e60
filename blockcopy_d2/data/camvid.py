"""
CamVid (Brostow et al., "Semantic Object Classes in Video", 2009): driving video with a class for
every pixel, in the layout

    <split>/images/<sequence>_<frame>.jpg
    <split>/labels/<sequence>_<frame>.png      8 bit, the index of the class, 11 where there is none

Every frame is labelled. Frames of "train" are a second apart, those of "val" a fifteenth of a
second: a video in which every frame is scored.
"""

import itertools
import os
import re

from .files import AnnotationError, find_files, image_size, require_file
from .registration import register_dataset

__all__ = ["CLASSES", "load_camvid", "register_camvid"]

CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)

_COLORS = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)

# Label of the pixels that have no class.
IGNORE_LABEL = len(CLASSES)


def load_camvid(root, split, origin=""):
    """
    Args:
        root (str): folder that holds a folder per split.
        split (str): "train" or "val".
        origin (str): where the data set comes from, a sentence for the error message.

    Returns:
        list[dict]: dicts in Detectron2's format for semantic segmentation, one per frame, and for
        clips: each sequence is one, with video_id (str), frame_index (int) and labelled (True).

    Raises:
        FileNotFoundError: names the missing folder or file, and where the data set comes from.
    """
    image_dir, label_dir = (os.path.join(root, split, name) for name in ("images", "labels"))
    files = find_files(image_dir, "*.jpg", root, origin)
    width, height = image_size(files[0])
    dataset = []
    for sequence, frames in itertools.groupby(files, key=_sequence):
        for frame_index, file in enumerate(frames):
            stem = os.path.splitext(os.path.basename(file))[0]
            labels = os.path.join(label_dir, f"{stem}.png")
            require_file(labels, f"the classes of {file}", root, origin)
            dataset.append(
                {
                    "file_name": file,
                    "sem_seg_file_name": labels,
                    "image_id": stem,
                    "height": height,
                    "width": width,
                    "video_id": sequence,
                    "frame_index": frame_index,
                    "labelled": True,
                }
            )
    return dataset


def register_camvid(name, root, split, *, origin=""):
    """
    Register the frames of :func:`load_camvid`, to train on and to run as clips. A name that is
    registered already is left alone. No file is accessed.

    Args:
        name (str): name of the data set.
        root, split, origin: as in :func:`load_camvid`.
    """
    register_dataset(
        name,
        lambda: load_camvid(root, split, origin),
        stuff_classes=list(CLASSES),
        stuff_colors=[list(color) for color in _COLORS],
        ignore_label=IGNORE_LABEL,
        evaluator_type="sem_seg",
    )


def _sequence(file):
    """The name of a frame's sequence: 0016E5 of 0016E5_07959.jpg."""
    match = re.match(r"(.+)_[^_]+$", os.path.basename(file))
    if match is None:
        raise AnnotationError(f"{file} is not named <sequence>_<frame>.jpg, as CamVid names files.")
    return match.group(1)
