"""Draws tiny data sets in the layout of Cityscapes."""

import json
from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import name2label
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image

HEIGHT, WIDTH = 64, 128


def rectangle(label, x0, y0, x1, y1):
    """An object that covers the pixels [x0, x1) x [y0, y1)."""
    # Pillow's polygons include their end points.
    polygon = [[x0, y0], [x1 - 1, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]]
    return {"label": label, "polygon": polygon}


# The far car is hidden in part by the person, the last object is too small to be scored.
OBJECTS = (
    rectangle("road", 0, 0, WIDTH, HEIGHT),
    rectangle("car", 10, 10, 60, 40),
    rectangle("person", 30, 12, 44, 50),
    rectangle("cargroup", 70, 4, 110, 20),
    rectangle("bus", 80, 30, 120, 60),
    rectangle("person", 2, 50, 7, 60),
)


def write_clip(root, name, *, split="val", first=0, num_frames=20, objects=OBJECTS):
    """
    Args:
        root (Path): root of the data set.
        name (str): ``<city>_<sequence>``.
        first (int): number of the first frame; the last one is labelled.
    """
    city = name.rsplit("_", 1)[0]
    frames = make_folder(root, "leftImg8bit_sequence", split, city)
    for number in range(first, first + num_frames):
        write_frame(frames / f"{name}_{number:06d}_leftImg8bit.png", number)
    video_id = f"{name}_{first + num_frames - 1:06d}"
    images = make_folder(root, "leftImg8bit", split, city)
    write_frame(images / f"{video_id}_leftImg8bit.png", number)
    if objects is not None:
        write_ground_truth(make_folder(root, "gtFine", split, city), video_id, objects)
    return video_id


def write_frame(file, number, height=HEIGHT, width=WIDTH):
    image = np.full((height, width, 3), 10 * (number % 20), np.uint8)
    image[:, :, 0] = 255  # red
    Image.fromarray(image).save(file)


def write_ground_truth(folder, video_id, objects):
    content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": list(objects)}
    stem = str(folder / f"{video_id}_gtFine_")
    Path(stem + "polygons.json").write_text(json.dumps(content))
    annotation = Annotation()
    annotation.fromJsonText(json.dumps(content))
    instances = np.asarray(createInstanceImage(annotation, "ids"))
    Image.fromarray(instances.astype(np.uint16)).save(stem + "instanceIds.png")
    for encoding, file in (("ids", "labelIds.png"), ("trainIds", "labelTrainIds.png")):
        createLabelImage(annotation, encoding).save(stem + file)


def make_folder(root, *parts):
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def instance_masks(root, video_id, split="val"):
    """
    Returns:
        list[(str, ndarray)]: class and bool mask (H, W) of every instance, groups left out.
    """
    city = video_id.split("_")[0]
    file = root / "gtFine" / split / city / f"{video_id}_gtFine_instanceIds.png"
    ids = np.asarray(Image.open(file))
    names = {label.id: name for name, label in name2label.items()}
    return [(names[i // 1000], ids == i) for i in np.unique(ids) if i >= 1000]
