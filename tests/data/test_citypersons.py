import json
import os

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from torch import tensor

from blockcopy_d2.data import (
    ClipMapper,
    load_citypersons,
    load_citypersons_video,
    register_citypersons,
    register_citypersons_video,
)
from blockcopy_d2.evaluation import MissRateEvaluator
from tests.data.cityscapes_tree import HEIGHT, WIDTH, make_folder, write_clip

# As cityscapesscripts' CsBbox2d reads and writes them.
PEOPLE = [
    {"label": "pedestrian", "bbox": [10, 2, 20, 50], "bboxVis": [10, 2, 20, 25]},
    {"label": "pedestrian", "bbox": [-2, 5, 10, 24], "bboxVis": [0, 5, 8, 24]},
    {"label": "rider", "bbox": [40, 5, 20, 50], "bboxVis": [40, 5, 20, 50]},
    {"label": "sitting person", "bbox": [70, 5, 9, 9], "bboxVis": [70, 5, 9, 9]},
    {"label": "person (other)", "bbox": [80, 5, 9, 9], "bboxVis": [80, 5, 9, 9]},
    {"label": "person group", "bbox": [90, 5, 30, 20], "bboxVis": [90, 5, 30, 20]},
    {"label": "ignore", "bbox": [90, 30, 0, 20], "bboxVis": [90, 30, 0, 20]},
]


def write_boxes(root, video_id, people=PEOPLE, split="val"):
    city = video_id.split("_")[0]
    folder = make_folder(root, "gtBboxCityPersons", split, city)
    objects = [{"instanceId": 24000 + index, **person} for index, person in enumerate(people)]
    content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
    file = folder / f"{video_id}_gtBboxCityPersons.json"
    file.write_text(json.dumps(content))
    return file


@pytest.fixture
def root(tmp_path):
    """Two clips, of which the second shows nobody."""
    write_boxes(tmp_path, write_clip(tmp_path, "ulm_000003", first=100))
    write_boxes(tmp_path, write_clip(tmp_path, "ulm_000004", num_frames=5), people=[])
    return tmp_path


def test_labelled_frames(root):
    first, second = load_citypersons(str(root), "val")
    assert first["image_id"] == "ulm_000003_000119_leftImg8bit.png"
    assert first["file_name"] == f"{root}/leftImg8bit/val/ulm/{first['image_id']}"
    assert os.path.isfile(first["file_name"]) and os.path.isfile(second["file_name"])
    assert (first["height"], first["width"]) == (HEIGHT, WIDTH)
    assert second["annotations"] == []


def test_only_pedestrians_are_to_be_found(root):
    annotations = load_citypersons(str(root), "val")[0]["annotations"]
    assert [a["iscrowd"] for a in annotations] == [0, 0, 1, 1, 1, 1, 1]
    assert [a["bbox"] for a in annotations] == [person["bbox"] for person in PEOPLE]
    assert {a["category_id"] for a in annotations} == {0}
    assert {a["bbox_mode"] for a in annotations} == {BoxMode.XYWH_ABS}


def test_visibility_is_the_visible_share_of_the_box(root):
    annotations = load_citypersons(str(root), "val")[0]["annotations"]
    assert [a["visibility"] for a in annotations] == [0.5, 0.8, 1, 1, 1, 1, 0]


def test_a_detector_trains_on_pedestrians_within_the_image(root):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    cfg.INPUT.RANDOM_FLIP = "none"
    instances = DatasetMapper(cfg, is_train=True)(load_citypersons(str(root), "val")[0])[
        "instances"
    ]
    assert instances.gt_boxes.tensor.tolist() == [[10, 2, 30, 52], [0, 5, 8, 29]]
    assert instances.gt_classes.tolist() == [0, 0]


def test_clips_end_with_the_labelled_frame(root):
    dataset = load_citypersons_video(str(root), "val")
    assert [d["frame_index"] for d in dataset] == [*range(20), *range(5)]
    assert [d["labelled"] for d in dataset] == [False] * 19 + [True] + [False] * 4 + [True]
    labelled = [d for d in dataset if d["labelled"]]
    frames = load_citypersons(str(root), "val")
    assert [d["annotations"] for d in labelled] == [f["annotations"] for f in frames]
    assert [d["image_id"] for d in labelled] == [f["image_id"] for f in frames]
    assert not any("annotations" in d for d in dataset if not d["labelled"])
    assert not any("sem_seg_file_name" in d for d in dataset)
    assert "leftImg8bit_sequence" in dataset[0]["file_name"]
    cfg = get_cfg()
    inputs = ClipMapper(cfg)(dataset[19])
    assert inputs["labelled"] and inputs["video_id"] == "ulm_000003_000119"


def test_clips_need_no_other_annotations(root):
    (root / "gtFine").rename(root / "elsewhere")
    labelled = [d for d in load_citypersons_video(str(root), "val") if d["labelled"]]
    assert [len(d["annotations"]) for d in labelled] == [len(PEOPLE), 0]


def test_clips_without_boxes_are_left_out(root):
    write_clip(root, "ulm_000005", num_frames=3)
    assert len(load_citypersons_video(str(root), "val")) == 25


def test_boxes_without_a_clip_are_an_error(root):
    write_boxes(root, "ulm_000009_000019")
    with pytest.raises(FileNotFoundError, match="1 files.*ulm_000009_000019.*example.org"):
        load_citypersons_video(str(root), "val", "It comes from example.org.")


@pytest.mark.parametrize("folder", ["leftImg8bit", "gtBboxCityPersons"])
def test_missing_folders_are_named(root, folder):
    (root / folder).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        load_citypersons(str(root), "val", "It comes from example.org.")
    assert f"{root}/{folder}/val is missing. It comes from example.org." in str(error.value)


@pytest.mark.parametrize("folder", ["leftImg8bit_sequence", "gtBboxCityPersons"])
def test_missing_folders_of_clips_are_named(root, folder):
    (root / folder).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        load_citypersons_video(str(root), "val", "It comes from example.org.")
    assert f"{root}/{folder}/val is missing. It comes from example.org." in str(error.value)


def test_registering_touches_no_file_and_keeps_what_is_there(tmp_path):
    root = str(tmp_path / "missing")
    register_citypersons("test_people", root, "val")
    register_citypersons_video("test_people_video", root, "val")
    load = DatasetCatalog["test_people"]
    register_citypersons("test_people", str(tmp_path / "other"), "val")
    try:
        assert DatasetCatalog["test_people"] is load
        assert MetadataCatalog.get("test_people").image_dir == f"{root}/leftImg8bit/val"
        video = MetadataCatalog.get("test_people_video")
        assert video.image_dir == f"{root}/leftImg8bit_sequence/val"
        for name in ("test_people", "test_people_video"):
            with pytest.raises(FileNotFoundError, match="val is missing"):
                DatasetCatalog.get(name)
    finally:
        for name in ("test_people", "test_people_video"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("kind", ["citypersons", "citypersons_video"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_builtin_data_sets_are_registered(kind, split):
    name = f"{kind}_{split}"
    assert name in DatasetCatalog.list()
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["pedestrian"]
    assert metadata.evaluator_type == "citypersons"
    assert metadata.gt_dir.endswith(f"cityscapes/gtBboxCityPersons/{split}")


def test_the_evaluator_finds_the_annotations_of_the_clips(root):
    """Only one of the two pedestrians is tall enough, and it is half hidden: Heavy."""
    register_citypersons_video("test_people_video", str(root), "val")
    try:
        evaluator = MissRateEvaluator("test_people_video")
        ground_truth = DatasetCatalog.get("test_people_video")
        for frame in ground_truth:
            found = [[10.0, 2.0, 30.0, 52.0]] if frame["image_id"].startswith("ulm_000003") else []
            instances = Instances((HEIGHT, WIDTH))
            instances.pred_boxes = Boxes(tensor(found).reshape(-1, 4))
            instances.scores = tensor([0.9] * len(found))
            instances.pred_classes = tensor([0] * len(found)).long()
            evaluator.process([frame], [{"instances": instances}])
        rates = evaluator.evaluate()["miss_rate"]
        assert rates["Heavy"] == 0
        assert rates["Reasonable"] != rates["Reasonable"]  # nobody to be found
    finally:
        DatasetCatalog.remove("test_people_video")
        MetadataCatalog.remove("test_people_video")
