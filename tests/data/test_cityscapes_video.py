import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode

from blockcopy_d2.data import (
    load_cityscapes_video,
    load_labelled_frames,
    register_cityscapes_video,
    register_labelled_frames,
)
from tests.data.cityscapes_tree import HEIGHT, WIDTH, instance_masks, write_clip

NAMES = [
    *(f"cityscapes_video_fine_instance_seg_{split}" for split in ("train", "val", "test")),
    *(f"cityscapes_video_fine_sem_seg_{split}" for split in ("train", "val", "test")),
    *(f"streetclips_{split}" for split in ("train", "val")),
    *(f"streetclips_full_{split}" for split in ("train", "val")),
]
FRAME_NAMES = [
    "streetclips_train_frames",
    "streetclips_val_frames",
    "streetclips_full_train_frames",
    "streetclips_full_val_frames",
]


def test_a_clip_is_the_twenty_frames_up_to_the_labelled_one(tmp_path):
    # As in Cityscapes: a snippet of 30 frames, the 20th labelled, numbers that do not start at 0.
    video_id = write_clip(tmp_path, "ulm_000003", first=100)
    assert video_id == "ulm_000003_000119"
    dataset = load_cityscapes_video(str(tmp_path), "val")
    assert [d["frame_index"] for d in dataset] == list(range(20))
    assert {d["video_id"] for d in dataset} == {video_id}
    assert [d["labelled"] for d in dataset] == [False] * 19 + [True]
    assert [os.path.basename(d["file_name"]) for d in dataset] == [
        f"ulm_000003_{number:06d}_leftImg8bit.png" for number in range(100, 120)
    ]
    assert all(os.path.isfile(d["file_name"]) for d in dataset)
    assert len({d["image_id"] for d in dataset}) == 20
    assert {(d["height"], d["width"]) for d in dataset} == {(HEIGHT, WIDTH)}
    assert os.path.isfile(dataset[-1]["sem_seg_file_name"])
    assert not any("sem_seg_file_name" in d for d in dataset[:-1])


def test_clips_come_one_after_the_other_by_name(tmp_path):
    for name in ("b_000000", "a_000001", "a_000000"):
        write_clip(tmp_path, name)
    dataset = load_cityscapes_video(str(tmp_path), "val")
    ids = [d["video_id"] for d in dataset]
    expected = ["a_000000_000019", "a_000001_000019", "b_000000_000019"]
    assert ids == [video_id for video_id in expected for _ in range(20)]


def test_a_clip_that_starts_late_is_shorter(tmp_path):
    write_clip(tmp_path, "a_000000", num_frames=5)
    dataset = load_cityscapes_video(str(tmp_path), "val")
    assert [d["frame_index"] for d in dataset] == list(range(5))


def test_without_ground_truth_clips_are_found_by_their_images(tmp_path):
    video_id = write_clip(tmp_path, "a_000000", split="test", objects=None)
    dataset = load_cityscapes_video(str(tmp_path), "test")
    assert len(dataset) == 20
    assert dataset[-1]["video_id"] == video_id
    assert not any(d["labelled"] or "sem_seg_file_name" in d for d in dataset)


def test_missing_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path.parent))
    root, origin = str(tmp_path), "It comes from example.org."

    def message(load):
        with pytest.raises(FileNotFoundError) as error:
            load(root, "val", origin)
        assert origin in str(error.value)
        assert f"DETECTRON2_DATASETS names the folder above it (now {tmp_path.parent})" in str(
            error.value
        )
        return str(error.value)

    assert f"{root}/leftImg8bit_sequence/val is missing" in message(load_cityscapes_video)
    assert f"{root}/leftImg8bit/val is missing" in message(load_labelled_frames)
    (tmp_path / "leftImg8bit_sequence/val").mkdir(parents=True)
    (tmp_path / "leftImg8bit/val").mkdir(parents=True)
    assert f"{root}/gtFine/val is missing" in message(load_labelled_frames)
    assert f"{root}/leftImg8bit/val/<city>" in message(load_cityscapes_video)
    write_clip(tmp_path, "a_000000")
    (tmp_path / "leftImg8bit_sequence/val/a").rename(tmp_path / "elsewhere")
    assert f"{root}/leftImg8bit_sequence/val/a is missing" in message(load_cityscapes_video)


def test_labelled_frames_have_exact_masks_and_boxes(tmp_path):
    video_id = write_clip(tmp_path, "a_000000")
    (record,) = load_labelled_frames(str(tmp_path), "val")
    assert record["file_name"].endswith(f"leftImg8bit/val/a/{video_id}_leftImg8bit.png")
    classes = MetadataCatalog.get("streetclips_train_frames").thing_classes
    expected = dict(instance_masks(tmp_path, video_id))  # by class; the last person is the small
    found = {}
    for annotation in record["annotations"]:
        if annotation["iscrowd"]:
            continue
        mask = mask_util.decode(annotation["segmentation"]).astype(bool)
        found[classes[annotation["category_id"]]] = mask
        x0, y0, x1, y1 = BoxMode.convert(
            annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS
        )
        rows, columns = np.nonzero(mask)
        assert (x0, x1) == (columns.min(), columns.max() + 1)
        assert (y0, y1) == (rows.min(), rows.max() + 1)
    assert found.keys() == expected.keys() == {"car", "person", "bus"}
    assert all((found[name] == expected[name]).all() for name in expected)
    assert sum(annotation["iscrowd"] for annotation in record["annotations"]) == 1


def test_labelled_frames_train_with_bitmasks(tmp_path):
    write_clip(tmp_path, "a_000000")
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    (record,) = load_labelled_frames(str(tmp_path), "val")
    instances = DatasetMapper(cfg, is_train=True)(record)["instances"]
    assert len(instances) == 4
    boxes = instances.gt_masks.get_bounding_boxes().tensor
    assert (boxes - instances.gt_boxes.tensor).abs().max() == 0


def test_registering_touches_no_file_and_keeps_what_is_there(tmp_path):
    root = str(tmp_path / "missing")
    register_cityscapes_video("test_video_a", root, "val")
    register_labelled_frames("test_video_a_frames", root, "val")
    load = DatasetCatalog["test_video_a"]
    register_cityscapes_video("test_video_a", str(tmp_path / "other"), "val")
    try:
        assert DatasetCatalog["test_video_a"] is load
        metadata = MetadataCatalog.get("test_video_a")
        assert metadata.gt_dir == os.path.join(root, "gtFine", "val")
        assert metadata.evaluator_type == "cityscapes_video_instance"
        assert metadata.thing_classes[:3] == ["person", "rider", "car"]
        assert MetadataCatalog.get("test_video_a_frames").evaluator_type == "cityscapes_instance"
        with pytest.raises(FileNotFoundError, match="leftImg8bit_sequence"):
            DatasetCatalog.get("test_video_a")
    finally:
        for name in ("test_video_a", "test_video_a_frames"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("name", NAMES + FRAME_NAMES)
def test_builtin_data_sets_are_registered(name):
    metadata = MetadataCatalog.get(name)
    assert name in DatasetCatalog.list()
    assert len(metadata.thing_classes) == 8
    assert metadata.gt_dir and metadata.image_dir
    kind = "cityscapes" if name.endswith("_frames") else "cityscapes_video"
    task = "sem_seg" if "sem_seg" in name else "instance"
    suffix = "_submission" if name.endswith("_test") else ""
    assert metadata.evaluator_type == f"{kind}_{task}{suffix}"
