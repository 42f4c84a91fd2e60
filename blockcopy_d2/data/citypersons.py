"""
CityPersons (Zhang et al., CVPR 2017): boxes of the people on the labelled frames of Cityscapes.

    gtBboxCityPersons/<split>/<city>/<city>_<sequence>_<frame>_gtBboxCityPersons.json
    leftImg8bit/<split>/<city>/...                  the labelled frames
    leftImg8bit_sequence/<split>/<city>/...         the frames of their clips

A box spans the whole person, hidden parts included; a second one spans the visible part. Only
pedestrians are scored. Riders, sitting and other persons, groups and regions to ignore count
neither as missed nor as false: their annotations have iscrowd 1.
"""

import math
import os

from detectron2.structures import BoxMode

from .cityscapes_video import load_cityscapes_video
from .files import AnnotationError, find_files, read_json, require_folder
from .registration import register_dataset

_SUFFIX = "_gtBboxCityPersons.json"


def load_citypersons(root, split, origin=""):
    """
    The labelled frames alone, to train a detector on.

    Args:
        root (str): folder that holds ``leftImg8bit`` and ``gtBboxCityPersons``.
        split (str): "train" or "val".
        origin (str): where the data set comes from, a sentence for the error message.

    Returns:
        list[dict]: dicts of Detectron2's detection format. Annotations also have visible_bbox, the
        box of the visible part, and visibility (float), its share of the box.

    Raises:
        FileNotFoundError: names the missing folder, and where the data set comes from.
        AnnotationError: names a file of annotations that cannot be used.
    """
    image_dir = os.path.join(root, "leftImg8bit", split)
    gt_dir = os.path.join(root, "gtBboxCityPersons", split)
    for folder in (image_dir, gt_dir):
        require_folder(folder, root, origin)
    dataset = []
    for file in find_files(gt_dir, f"<city>/*{_SUFFIX}", root, origin):
        height, width, annotations = _read(file)
        city = os.path.basename(os.path.dirname(file))
        image_id = os.path.basename(file).replace(_SUFFIX, "_leftImg8bit.png")
        dataset.append(
            {
                "file_name": os.path.join(image_dir, city, image_id),
                "image_id": image_id,
                "height": height,
                "width": width,
                "annotations": annotations,
            }
        )
    return dataset


def load_citypersons_video(root, split, origin=""):
    """
    The clips of :func:`load_cityscapes_video`, with the annotations of :func:`load_citypersons` on
    the last frame of each; those of "test" are not public.

    Args:
        root, split, origin: as in :func:`load_citypersons`, or "test"; ``root`` holds
            ``leftImg8bit_sequence`` as well.

    Returns:
        list[dict]:

    Raises:
        FileNotFoundError: names the missing file or folder, and where the data set comes from.
        AnnotationError: names a file of annotations that cannot be used.
    """
    if split == "test":
        frames = load_cityscapes_video(root, split, origin)
        for frame in frames:
            frame.pop("sem_seg_file_name", None)
            frame["labelled"] = False
        return frames
    gt_dir = os.path.join(root, "gtBboxCityPersons", split)
    require_folder(gt_dir, root, origin)
    files = {
        os.path.basename(file).removesuffix(_SUFFIX): file
        for file in find_files(gt_dir, f"<city>/*{_SUFFIX}", root, origin)
    }
    # Clips are found by their images, and another package may have more or fewer.
    frames = load_cityscapes_video(root, split, origin)
    dataset = [frame for frame in frames if frame["video_id"] in files]
    missing = sorted(files.keys() - {frame["video_id"] for frame in dataset})
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} files of {gt_dir} belong to no clip of"
            f" {os.path.join(root, 'gtFine', split)} or, without that folder,"
            f" {os.path.join(root, 'leftImg8bit', split)}, such as {missing[0]}. {origin}"
        )
    for frame in dataset:
        video_id = frame["video_id"]
        frame.pop("sem_seg_file_name", None)
        frame["labelled"] = frame["image_id"] == f"{video_id}_leftImg8bit.png"
        if frame["labelled"]:
            height, width, frame["annotations"] = _read(files[video_id])
            if (height, width) != (frame["height"], frame["width"]):
                raise AnnotationError(
                    f"The annotations {files[video_id]} belong to a frame of {width}x{height}"
                    f" pixels; their frame has {frame['width']}x{frame['height']}."
                )
    return dataset


def register_citypersons(name, root, split, *, origin=""):
    """
    Register :func:`load_citypersons`. A name that is registered already is left alone. No file is
    accessed.

    Args:
        name (str): name of the data set.
    """
    _register(name, lambda: load_citypersons(root, split, origin), root, split, "leftImg8bit")


def register_citypersons_video(name, root, split, *, origin=""):
    """:func:`register_citypersons` for :func:`load_citypersons_video`."""
    _register(
        name,
        lambda: load_citypersons_video(root, split, origin),
        root,
        split,
        "leftImg8bit_sequence",
    )


def _register(name, load, root, split, images):
    register_dataset(
        name,
        load,
        image_dir=os.path.join(root, images, split),
        gt_dir=os.path.join(root, "gtBboxCityPersons", split),
        evaluator_type="citypersons_submission" if split == "test" else "citypersons",
        thing_classes=["pedestrian"],
    )


def _read(file):
    content = read_json(file)
    try:
        annotations = [_annotation(person) for person in content["objects"]]
        return int(content["imgHeight"]), int(content["imgWidth"]), annotations
    except (KeyError, TypeError, ValueError) as error:
        raise AnnotationError(
            f"The annotations {file} are not those of CityPersons: {type(error).__name__}: {error}."
            " Expected imgHeight, imgWidth and objects, each with label, bbox and bboxVis."
        ) from error


def _annotation(person):
    box, visible = (_box(person, key) for key in ("bbox", "bboxVis"))
    area = box[2] * box[3]
    if not isinstance(person["label"], str):
        raise ValueError(f"label is {person['label']}; expected a word such as pedestrian")
    return {
        "bbox": box,
        "visible_bbox": visible,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": int(person["label"] != "pedestrian"),
        "visibility": visible[2] * visible[3] / area if area else 0.0,
    }


def _box(person, key):
    box = person[key]
    if len(box) != 4 or not all(math.isfinite(value) for value in box) or min(box[2:]) < 0:
        raise ValueError(f"{key} is {box}; expected left, top, and a width and height of 0 or more")
    return box
