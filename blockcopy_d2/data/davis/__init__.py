"""
DAVIS 2016 (Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation", 2016): short sequences, most of them from moving cameras, with a mask of the one
foreground object (or group of objects) on every frame. The layout is that of the data set:

    ImageSets/480p/{train,val}.txt             a line per frame, or ImageSets/2016: one per sequence
    JPEGImages/480p/<sequence>/00000.jpg
    Annotations/480p/<sequence>/00000.png      0 where there is background

``python -m blockcopy_d2.data.davis`` makes it from a video and a mask per frame.
"""

import os

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode
from PIL import Image

from ..files import find_files, image_size, require_file, require_folder
from ..registration import register_dataset

__all__ = ["image_file", "load_davis", "mask_file", "register_davis", "split_file"]

NAME = "DAVIS"
_RESOLUTION = "480p"


def split_file(root, split, year="2016"):
    """
    Returns:
        str: path of the list of a split's sequences in the data set's folder ``root``.
    """
    return os.path.join(root, "ImageSets", year, f"{split}.txt")


def image_file(root, sequence, number):
    """
    Returns:
        str: path of a frame; ``number`` counts from 0.
    """
    return os.path.join(root, "JPEGImages", _RESOLUTION, sequence, f"{number:05d}.jpg")


def mask_file(root, sequence, number):
    """
    Returns:
        str: path of a frame's mask.
    """
    return os.path.join(root, "Annotations", _RESOLUTION, sequence, f"{number:05d}.png")


def load_davis(root, split, origin="", *, video=True):
    """
    Args:
        root (str): folder that holds ``ImageSets``, ``JPEGImages`` and ``Annotations``.
        split (str): "train" or "val".
        origin (str): where the data set comes from, a sentence for the error message.
        video (bool): load sequences as clips: dicts with video_id, frame_index and labelled.
            Otherwise load single images, to train a detector on.

    Returns:
        list[dict]: dicts of Detectron2's instance segmentation format, a frame each, in order. A
        frame has one annotation, or none if the object is out of sight.

    Raises:
        FileNotFoundError: names the missing file or folder, and where the data set comes from.
        ValueError: a mask is not an image of the size of its frame, or a frame is not named by a
            number.
    """
    dataset = []
    for sequence in _read_split(root, split, origin):
        folder = os.path.dirname(image_file(root, sequence, 0))
        require_folder(folder, root, origin)
        files = find_files(folder, "*.jpg", root, origin)
        width, height = image_size(files[0])
        for frame_index, file in enumerate(files):
            number = _number_of(file, root)
            path = mask_file(root, sequence, number)
            require_file(path, f"the mask of {file}", root, origin)
            frame = {
                "file_name": file,
                "image_id": f"{sequence}_{number:05d}",
                "height": height,
                "width": width,
                "annotations": _read_mask(path, (height, width), file),
            }
            if video:
                frame.update(video_id=sequence, frame_index=frame_index, labelled=True)
            dataset.append(frame)
    return dataset


def register_davis(name, root, split, *, origin="", video=True):
    """
    Register the frames of :func:`load_davis`. A name that is registered already is left alone. No
    file is accessed.

    Args:
        name (str): name of the data set.
        root, split, origin, video: see :func:`load_davis`.
    """
    register_dataset(
        name,
        lambda: load_davis(root, split, origin, video=video),
        image_dir=os.path.join(root, "JPEGImages", _RESOLUTION),
        gt_dir=os.path.join(root, "Annotations", _RESOLUTION),
        evaluator_type="coco",
        thing_classes=["object"],
    )


def _read_split(root, split, origin):
    """list[str]: the sequences of a split, in the order of its file."""
    require_folder(os.path.join(root, "ImageSets"), root, origin)
    path = split_file(root, split)
    if not os.path.isfile(path):
        path = split_file(root, split, _RESOLUTION)
    require_file(path, "the list of the sequences", root, origin)
    try:
        with open(path, encoding="utf-8-sig") as f:
            firsts = [line.split()[0] for line in f if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, the list of the sequences, is not a text file: {error}"
        ) from error
    # A line names a sequence, or a frame as /JPEGImages/480p/<sequence>/<number>.jpg.
    names = [os.path.basename(os.path.dirname(x)) if "/" in x else x for x in firsts]
    if not names:
        raise ValueError(f"{path} names no sequence. {origin}")
    return list(dict.fromkeys(names))


def _number_of(file, root):
    name = os.path.splitext(os.path.basename(file))[0]
    if not (name.isascii() and name.isdigit()):
        raise ValueError(
            f"{file} is not a frame of DAVIS: the frames in {root} have numbers for names, such as"
            " 00000.jpg. Remove it."
        )
    return int(name)


def _read_mask(path, size, frame):
    """list[dict]: the annotation of the pixels that are not background, if there are any."""
    try:
        with Image.open(path) as image:
            mask = np.asarray(image)
    except OSError as error:
        raise ValueError(
            f"{path}, the mask of {frame}, is not a readable image: {error}"
        ) from error
    if mask.ndim == 3:
        # Colours of objects; the last channel of two or four is opacity.
        mask = mask[..., : 1 if mask.shape[2] < 3 else 3].any(axis=2)
    mask = mask > 0
    if mask.shape != size:
        raise ValueError(
            f"{path} has {mask.shape[1]}x{mask.shape[0]} pixels, its frame {frame} has"
            f" {size[1]}x{size[0]}."
        )
    if not mask.any():
        return []
    segmentation = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return [
        {
            "bbox": mask_util.toBbox(segmentation).tolist(),
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "iscrowd": 0,
            "segmentation": segmentation,
        }
    ]
