"""Annotation files that are missing, empty, truncated or of another type: each is named."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blockcopy_d2.data import (
    load_camvid,
    load_citypersons,
    load_citypersons_video,
    load_cityscapes_video,
    load_pets09,
)
from blockcopy_d2.data.files import AnnotationError, read_json, read_labels
from tests.data.cityscapes_tree import write_clip
from tests.data.test_camvid import write_camvid
from tests.data.test_pets09 import boxes_of

CLIP = "ulm_000000_000002"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """One clip of each data set."""
    root = tmp_path_factory.mktemp("tree")
    write_clip(root, "ulm_000000", num_frames=3)
    people = root / "gtBboxCityPersons" / "val" / "ulm"
    people.mkdir(parents=True)
    person = {"label": "pedestrian", "bbox": [1, 2, 20, 60], "bboxVis": [1, 2, 10, 60]}
    content = {"imgHeight": 64, "imgWidth": 128, "objects": [person]}
    (people / f"{CLIP}_gtBboxCityPersons.json").write_text(json.dumps(content))
    write_camvid(root / "camvid")
    for folder in ("img1", "gt"):
        (root / "pets09" / folder).mkdir(parents=True)
    (root / "pets09" / "gt" / "gt.txt").write_text(boxes_of())
    return root


LOADERS = {
    "gtBboxCityPersons.json": lambda root: load_citypersons(str(root), "val"),
    "CityPersons.json": lambda root: load_citypersons_video(str(root), "val"),
    "gtFine_instanceIds.png": lambda root: load_cityscapes_video(str(root), "val"),
    "gt.txt": lambda root: load_pets09(str(root / "pets09"), "val"),
    "labels/*.png": lambda root: [
        read_labels(frame["sem_seg_file_name"])
        for frame in load_camvid(str(root / "camvid"), "val")
    ],
}


def find(tree, name):
    folder, _, pattern = name.rpartition("/")
    files = tree.rglob(f"*{pattern.removeprefix('*')}")
    return min(file for file in files if folder in str(file.parent))


@pytest.fixture
def damaged(tree):
    """Replaces the content of a file during a test."""
    before = {}

    def damage(file, content):
        before.setdefault(file, file.read_bytes())
        if content is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(content)

    yield damage
    for file, content in before.items():
        file.write_bytes(content)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("damage", ["empty", "cut", "binary", "null", "list", "missing"])
def test_files_are_named(tree, damaged, kind, damage):
    file = find(tree, kind)
    whole = file.read_bytes()
    content = {
        "empty": b"",
        "cut": whole[:12],
        "binary": b"\x00\xff\xfe" * 20,
        "null": b"null",
        "list": b"[1, 2]",
        "missing": None,
    }[damage]
    damaged(file, content)
    expected = "missing|No such file" if damage == "missing" else file.name
    with pytest.raises((AnnotationError, FileNotFoundError), match=expected):
        LOADERS[kind](tree)


@pytest.mark.parametrize(
    "change",
    [
        {"objects": None},
        {"objects": [{"label": "pedestrian"}]},
        {"objects": [{"label": "pedestrian", "bbox": [1, 2, 3], "bboxVis": [1, 2, 3, 4]}]},
        {"objects": [{"label": "pedestrian", "bbox": [1, 2, 3, "4"], "bboxVis": [1, 2, 3, 4]}]},
        {"objects": [{"label": "pedestrian", "bbox": [1, 2, float("nan"), 4], "bboxVis": []}]},
        {"objects": [{"label": "pedestrian", "bbox": [1, 2, -3, 4], "bboxVis": [1, 2, 3, 4]}]},
        {"objects": [{"label": None, "bbox": [1, 2, 3, 4], "bboxVis": [1, 2, 3, 4]}]},
        {"objects": ["person"]},
        {"imgHeight": None},
    ],
)
def test_people_of_another_form_are_named(tree, damaged, change):
    file = find(tree, "CityPersons.json")
    damaged(file, json.dumps({**json.loads(file.read_text()), **change}).encode())
    with pytest.raises(AnnotationError, match=rf"{file.name} are not those of CityPersons"):
        load_citypersons(str(tree), "val")


def test_people_of_frames_of_another_size_are_named(tree, damaged):
    file = find(tree, "CityPersons.json")
    other = {**json.loads(file.read_text()), "imgHeight": 1024, "imgWidth": 2048}
    damaged(file, json.dumps(other).encode())
    with pytest.raises(
        AnnotationError, match=f"{file.name} belong to a frame of 2048x1024.*128x64"
    ):
        load_citypersons_video(str(tree), "val")


@pytest.mark.parametrize(
    "line",
    ["401,1,nan,2,3,4,1", "401,1,1,2,3,4,x", "401,1,1,2,-3,4,1", "401", "x,1,1,2,3,4,1"],
)
def test_lines_that_are_no_boxes_are_named(tree, damaged, line):
    file = find(tree, "gt.txt")
    damaged(file, (boxes_of() + line + "\n").encode())
    count = len(boxes_of().splitlines()) + 1
    with pytest.raises(AnnotationError, match=rf"gt.txt, line {count} is"):
        load_pets09(str(tree / "pets09"), "val")


def test_boxes_that_end_early_are_no_empty_frames(tree, damaged):
    damaged(find(tree, "gt.txt"), boxes_of(700).encode())
    with pytest.raises(AnnotationError, match="gt.txt end at frame 700.*truncated"):
        load_pets09(str(tree / "pets09"), "val")
    assert len(load_pets09(str(tree / "pets09"), "train")) == 400


def test_labels_must_be_one_number_per_pixel_of_the_frame(tmp_path):
    file = tmp_path / "labels.png"
    Image.new("RGB", (8, 4)).save(file)
    with pytest.raises(AnnotationError, match=r"labels.png are an image of shape \(4, 8, 3\)"):
        read_labels(file)
    Image.fromarray(np.ones((4, 8), np.uint16)).save(file)
    assert read_labels(file, size=(4, 8)).sum() == 32
    with pytest.raises(AnnotationError, match="labels.png are 8x4, their frame is 8x5"):
        read_labels(file, size=(5, 8))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_is_named_or_harmless(tree, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["CityPersons.json", "gt.txt", "labels/*.png"]))
    file = find(tree, kind)
    whole = file.read_bytes()
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        file.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            LOADERS[kind](tree)
    except AnnotationError as error:
        assert file.name in str(error)
    finally:
        file.write_bytes(whole)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_json_is_read_or_named(tmp_path, content):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    try:
        read_json(file)
    except AnnotationError as error:
        assert "x.json" in str(error)
