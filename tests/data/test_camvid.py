from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from blockcopy_d2.data import (
    build_clip_loader,
    build_sem_seg_train_mapper,
    load_camvid,
    register_camvid,
)
from blockcopy_d2.data.files import AnnotationError
from blockcopy_d2.data.videos import load_videos
from blockcopy_d2.engine import load_config
from blockcopy_d2.evaluation import VideoSemSegEvaluator, build_evaluator
from blockcopy_d2.resources import config_path

NAME = "test_camvid"
HEIGHT, WIDTH = 36, 48


def write_camvid(root, split="val", sequences=("0016E5", "Seq05VD"), num_frames=3):
    """Frames whose upper half is sky and whose lower half is road, void in the last column."""
    for folder in ("images", "labels"):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[HEIGHT // 2 :] = 3
    labels[:, -1] = 11
    for sequence in sequences:
        for number in range(num_frames):
            stem = f"{sequence}_{7959 + 2 * number:05d}"
            image = np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{stem}.jpg")
            Image.fromarray(labels).save(root / split / "labels" / f"{stem}.png")
    return labels


@pytest.fixture
def root(tmp_path):
    write_camvid(tmp_path)
    register_camvid(NAME, str(tmp_path), "val")
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_a_sequence_is_a_clip_with_all_frames_labelled(root):
    dataset = load_camvid(str(root), "val")
    assert [d["video_id"] for d in dataset] == ["0016E5"] * 3 + ["Seq05VD"] * 3
    assert [d["frame_index"] for d in dataset] == [0, 1, 2] * 2
    assert all(d["labelled"] for d in dataset)
    assert {(d["height"], d["width"]) for d in dataset} == {(HEIGHT, WIDTH)}
    assert len({d["image_id"] for d in dataset}) == 6


def test_the_clip_loader_yields_its_frames_in_order(root):
    cfg = load_config(opts=["DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TEST", str(HEIGHT)])
    frames = [inputs for (inputs,) in build_clip_loader(cfg, NAME, 1)]
    assert [f["frame_index"] for f in frames] == [0, 1, 2]
    assert frames[0]["image"].shape == (3, HEIGHT, WIDTH)


def test_missing_files_are_named(root):
    with pytest.raises(FileNotFoundError, match="images/.*From there.*DETECTRON2_DATASETS"):
        load_camvid(str(root), "train", "From there.")
    next((root / "val" / "labels").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/\w+.png.*is missing"):
        load_camvid(str(root), "val")


@pytest.mark.parametrize("split", ["train", "val"])
def test_registered(split):
    assert f"camvid_{split}" in DatasetCatalog.list()
    metadata = MetadataCatalog.get(f"camvid_{split}")
    assert len(metadata.stuff_classes) == len(metadata.stuff_colors) == metadata.ignore_label == 11
    assert metadata.evaluator_type == "sem_seg"


def test_training_crops_have_the_size_of_the_config(root):
    cfg = load_config(config_path("CamVid/swiftnet_R_50.yaml"))
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 60)
    cfg.INPUT.CROP.SIZE = (32, 40)
    mapper = build_sem_seg_train_mapper(cfg)
    for frame in load_camvid(str(root), "val"):
        mapped = mapper(frame)
        assert mapped["image"].shape == (3, 32, 40) and mapped["sem_seg"].shape == (32, 40)
        assert set(mapped["sem_seg"].unique().tolist()) <= {0, 3, 11}


def predictions(frame):
    """Sky everywhere in the second frame of a clip, right in the others."""
    labels = np.asarray(Image.open(frame["sem_seg_file_name"])).astype(np.int64)
    if frame["frame_index"] == 1:
        labels = np.zeros_like(labels)
    labels = torch.from_numpy(labels).clamp(max=10)
    return {"sem_seg": torch.nn.functional.one_hot(labels, 11).permute(2, 0, 1).float()}


def test_every_frame_counts_in_the_score(root, tmp_path):
    evaluator = build_evaluator(load_config(), NAME, str(tmp_path / "out"))
    assert isinstance(evaluator, VideoSemSegEvaluator)
    evaluator.reset()
    for frame in load_camvid(str(root), "val"):
        evaluator.process([frame], [predictions(frame)])
    scores = evaluator.evaluate()["sem_seg"]
    # One frame of three calls the road sky: 3/4 of that is sky, and 2/3 of the road is found.
    assert scores["IoU-sky"] == pytest.approx(75)
    assert scores["IoU-road"] == pytest.approx(100 * 2 / 3)
    assert scores["mIoU"] == pytest.approx((75 + 100 * 2 / 3) / 2)
    assert scores["pACC"] == pytest.approx(100 * 5 / 6)


def test_frames_without_labels_do_not_count(root):
    evaluator = VideoSemSegEvaluator(NAME)
    evaluator.reset()
    for frame in load_camvid(str(root), "val"):
        frame["labelled"] = frame["frame_index"] != 1
        output = predictions(frame) if frame["labelled"] else None
        evaluator.process([frame], [output])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)


def test_frames_that_name_no_labels_are_not_asked_for_any(root):
    dataset = load_camvid(str(root), "val")
    for frame in dataset:
        if frame["frame_index"] == 1:
            del frame["sem_seg_file_name"], frame["labelled"]
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: dataset)
    labelled = [f["labelled"] for video in load_videos(NAME) for f in video]
    assert labelled == [frame["frame_index"] != 1 for frame in dataset]
    evaluator = VideoSemSegEvaluator(NAME)
    evaluator.reset()
    for frame in dataset:
        if frame["frame_index"] != 1:
            evaluator.process([frame], [predictions(frame)])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)
    with pytest.raises(AnnotationError, match=f"{dataset[1]['file_name']}.*no sem_seg_file_name"):
        evaluator.process([dataset[1]], [predictions(dataset[0])])


@pytest.mark.parametrize("damage", ["cut", "colours", "class", "size", "missing"])
def test_labels_that_cannot_be_scored_are_named(root, damage):
    frame = load_camvid(str(root), "val")[0]
    output, file = predictions(frame), Path(frame["sem_seg_file_name"])
    labels = np.asarray(Image.open(file))
    evaluator = VideoSemSegEvaluator(NAME)
    evaluator.reset()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:60])
    elif damage == "missing":
        file.unlink()
    else:
        spoilt = {
            "colours": np.stack([labels] * 3, axis=2),
            "class": np.full_like(labels, 200),
            "size": labels[1:],
        }
        Image.fromarray(spoilt[damage]).save(file)
    with pytest.raises((AnnotationError, FileNotFoundError), match=file.name):
        evaluator.process([frame], [output])
