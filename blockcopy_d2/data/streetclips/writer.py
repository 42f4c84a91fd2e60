"""
Writes splits in Cityscapes' own layout, polygons turned into id images by cityscapesscripts.

An interrupted run leaves no half-written file (a temporary name is renamed when the file is whole),
and a clip counts as complete once its label file, written last, is there.
"""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import cv2
from cityscapesscripts.helpers.annotation import Annotation as CityscapesAnnotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from tqdm import tqdm

from blockcopy_d2.atomic import atomic_write

from .annotation import Annotation
from .clip import SPLITS, Clip
from .motion import FRAMES, LABELLED

CITIES = {"train": "ahornstadt", "val": "buchenfeld", "test": "cedernfeld"}
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
ID_IMAGES = ("labelTrainIds", "labelIds", "instanceIds")  # the last one completes a clip


def clip_name(split: str, index: int, frame: int) -> str:
    """Stem that all files of a frame share, e.g. buchenfeld_000003_000019."""
    return f"{CITIES[split]}_{index:06d}_{frame:06d}"


def write_split(
    root: str,
    split: str,
    *,
    num_clips: int,
    height: int = 512,
    width: int = 1024,
    seed: int = 1,
    workers: int = 2,
    labelled_only: bool = False,
) -> None:
    """
    Draws clips 0 to `num_clips` - 1 of a split and writes them below `root`.

    Clips that are complete already are skipped; the settings they were drawn with are kept in
    `streetclips_<split>.json` and have to be the same.

    Args:
        root: folder of the data set, made if missing.
        split: "train", "val" or "test".
        num_clips: clips to be there in the end.
        height, width: picture size in pixels.
        seed: seed of the data set.
        workers: processes that draw; 1 draws in this process.
        labelled_only: write only the labelled last frame of each clip, without the sequence.

    Raises:
        ValueError: an argument is out of range, or `root` holds the split with other settings.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if num_clips < 1 or workers < 1:
        raise ValueError(
            f"num_clips and workers must be at least 1, but are {num_clips} and {workers}"
        )
    if width != 2 * height or height < 64:
        raise ValueError(f"size {height}x{width} is not possible; use e.g. 512x1024 or 1024x2048")
    _check_settings(Path(root), split, {"height": height, "width": width, "seed": seed})
    missing = [i for i in range(num_clips) if not _complete(root, split, i, labelled_only)]
    jobs = [(root, split, i, height, width, seed, labelled_only) for i in missing]
    with tqdm(
        total=num_clips, initial=num_clips - len(jobs), unit="clip", desc=f"StreetClips {split}"
    ) as progress:
        if workers == 1:
            for job in jobs:
                _write_clip(*job)
                progress.update()
            return
        with ProcessPoolExecutor(min(workers, max(len(jobs), 1)), initializer=_one_thread) as pool:
            futures = [pool.submit(_write_clip, *job) for job in jobs]
            try:
                for future in as_completed(futures):
                    future.result()
                    progress.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _one_thread() -> None:
    """Several processes draw at a time; OpenCV's own threads would only get in their way."""
    cv2.setNumThreads(1)


def _check_settings(root: Path, split: str, settings: dict) -> None:
    path = root / f"streetclips_{split}.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found != settings:
            raise ValueError(
                f"{path} says that this split was drawn with {found}, but {settings} is asked for; "
                "choose another output folder or delete the split"
            )
        return
    root.mkdir(parents=True, exist_ok=True)
    _atomically(path, lambda name: Path(name).write_text(json.dumps(settings)))


def _complete(root: str, split: str, index: int, labelled_only: bool) -> bool:
    """Returns whether all files of a clip are there."""
    labelled = _files(root, split, index)
    frames = (
        [] if labelled_only else [_sequence(root, split, index, frame) for frame in range(FRAMES)]
    )
    return all(path.exists() for path in [*labelled.values(), *frames])


def _files(root: str, split: str, index: int) -> dict:
    """Paths of the labelled frame's picture and annotation."""
    name, city = clip_name(split, index, LABELLED), CITIES[split]
    fine = Path(root, "gtFine", split, city)
    paths = {
        "image": Path(root, "leftImg8bit", split, city, f"{name}_leftImg8bit.png"),
        "polygons": fine / f"{name}_gtFine_polygons.json",
    }
    paths.update({kind: fine / f"{name}_gtFine_{kind}.png" for kind in ID_IMAGES})
    return paths


def _sequence(root: str, split: str, index: int, frame: int) -> Path:
    name = f"{clip_name(split, index, frame)}_leftImg8bit.png"
    return Path(root, "leftImg8bit_sequence", split, CITIES[split], name)


def _write_clip(
    root: str, split: str, index: int, height: int, width: int, seed: int, labelled_only: bool
) -> None:
    clip = Clip(seed, split, index, height, width)
    labelled = _files(root, split, index)
    frames: list[int] = [LABELLED] if labelled_only else list(range(FRAMES))
    for frame in frames:
        image, annotation = clip.render(frame)
        if not labelled_only:
            _write_image(_sequence(root, split, index, frame), image)
        if frame == LABELLED:
            _write_image(labelled["image"], image)
            _write_annotation(labelled, annotation)


def _write_image(path: Path, image) -> None:
    def write(name: str) -> None:
        if not cv2.imwrite(name, image, PNG):
            raise OSError(f"{path} could not be written; is the disk full?")

    _atomically(path, write)


def _write_annotation(paths: dict, annotation: Annotation) -> None:
    """Writes the polygons, and from them cityscapesscripts' id images."""
    _atomically(
        paths["polygons"],
        lambda name: Path(name).write_text(json.dumps(annotation.to_json(), separators=(",", ":"))),
    )
    read = CityscapesAnnotation()
    read.fromJsonFile(str(paths["polygons"]))
    images = {
        "labelTrainIds": createLabelImage(read, "trainIds"),
        "labelIds": createLabelImage(read, "ids"),
        # json2instanceImg saves mode "I" as it is, which Pillow refuses from version 13 on; saved
        # as 16 bits the file is the same.
        "instanceIds": createInstanceImage(read, "ids").convert("I;16"),
    }
    for kind in ID_IMAGES:
        _atomically(paths[kind], images[kind].save)


def _atomically(path: Path, write: Callable[[str], None]) -> None:
    """Calls `write` with a temporary name and renames the file once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        write(temporary)
