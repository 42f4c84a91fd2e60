import hashlib
import os

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from blockcopy_d2.config import base_config
from blockcopy_d2.data import (
    build_clip_loader,
    load_pets09,
    load_pets09_video,
    register_pets09,
    register_pets09_video,
)
from blockcopy_d2.data.pets09 import __main__ as command
from blockcopy_d2.data.pets09 import frame_file, read_boxes
from blockcopy_d2.engine import load_config
from blockcopy_d2.evaluation import build_evaluator
from blockcopy_d2.resources import config_path
from blockcopy_d2.visualization import VideoWriter


def boxes_of(frames=795):
    """
    gt.txt: a person who walks to the right; from frame 10 on a second one, who is to be ignored.
    """
    lines = []
    for number in range(1, frames + 1):
        lines.append(f"{number},1,{1 + number % 50},101,30.5,75.25,1,-4.1,-7.3,0")
        if number >= 10:
            lines.append(f"{number},2,401,101,20,60,0,1.5,2.5,0")
    return "\n".join(lines) + "\n"


@pytest.fixture
def root(tmp_path):
    """The data set without most of its images."""
    for folder in ("img1", "gt"):
        (tmp_path / folder).mkdir()
    (tmp_path / "gt" / "gt.txt").write_text(boxes_of())
    return tmp_path


def test_frames(root):
    train, val = (load_pets09(str(root), split) for split in ("train", "val"))
    assert [d["image_id"] for d in train] == list(range(1, 401))
    assert [d["image_id"] for d in val] == list(range(401, 796))
    assert train[0]["file_name"] == f"{root}/img1/000001.jpg"
    assert {(d["height"], d["width"]) for d in train} == {(576, 768)}
    assert not any("video_id" in d for d in train)


def test_boxes_count_pixels_from_zero_and_some_are_ignored(root):
    train = load_pets09(str(root), "train")
    assert len(train[8]["annotations"]) == 1
    person, ignored = train[9]["annotations"]
    assert person == {
        "bbox": [10.0, 100.0, 30.5, 75.25],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": 0,
    }
    assert ignored["iscrowd"] == 1


def test_val_clips_tile_the_sequence(root):
    dataset = load_pets09_video(str(root), "val")
    assert [d["file_name"] for d in dataset] == [
        d["file_name"] for d in load_pets09(str(root), "val")
    ]
    clips = list(dict.fromkeys(d["video_id"] for d in dataset))
    assert len(clips) == 20
    assert clips[:2] == ["PETS09-S2L1_000401", "PETS09-S2L1_000421"]
    assert [d["frame_index"] for d in dataset] == [*range(20)] * 19 + [*range(15)]
    assert all(d["labelled"] and d["annotations"] for d in dataset)
    assert len({d["image_id"] for d in dataset}) == 395


def test_train_clips_start_at_every_frame(root):
    dataset = load_pets09_video(str(root), "train")
    assert len(dataset) == 381 * 20
    assert [d["frame_index"] for d in dataset] == [*range(20)] * 381
    names = [os.path.basename(d["file_name"]) for d in dataset]
    assert names[:400] == [f"{number:06d}.jpg" for number in range(1, 401)]
    assert names[400:402] == ["000002.jpg", "000003.jpg"]
    assert len({d["video_id"] for d in dataset}) == 381
    assert len({d["image_id"] for d in dataset}) == len(dataset)


@pytest.mark.parametrize("split, frames", [("train", 400), ("val", 395)])
def test_a_split_as_one_stream(root, split, frames):
    dataset = load_pets09_video(str(root), split, clip_length=None)
    assert [d["frame_index"] for d in dataset] == list(range(frames))
    assert len({d["video_id"] for d in dataset}) == 1


@pytest.mark.parametrize("folder", ["img1", "gt"])
def test_missing_folders_are_named(root, folder):
    (root / folder).rename(root / "elsewhere")
    for load in (load_pets09, load_pets09_video):
        with pytest.raises(FileNotFoundError) as error:
            load(str(root), "val", "It comes from example.org.")
        assert f"{root}/{folder} is missing. It comes from example.org." in str(error.value)


@pytest.mark.parametrize("line", ["1,2,3", "1,2,3,4,5,wide,1", ""])
def test_lines_that_are_no_boxes_are_named(tmp_path, line):
    file = tmp_path / "gt.txt"
    file.write_text(f"{boxes_of(1)}{line}\n{boxes_of(1)}")
    with pytest.raises(ValueError, match="gt.txt, line 2 is"):
        read_boxes(str(file))


def test_registering_touches_no_file_and_keeps_what_is_there(tmp_path):
    root = str(tmp_path / "missing")
    register_pets09("test_pets", root, "val")
    register_pets09_video("test_pets_video", root, "val")
    load = DatasetCatalog["test_pets"]
    register_pets09("test_pets", str(tmp_path / "other"), "val")
    try:
        assert DatasetCatalog["test_pets"] is load
        for name in ("test_pets", "test_pets_video"):
            with pytest.raises(FileNotFoundError, match=f"{root}/img1 is missing"):
                DatasetCatalog.get(name)
    finally:
        for name in ("test_pets", "test_pets_video"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("kind", ["pets09", "pets09_video", "pets09_stream"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_builtin_data_sets_are_registered(kind, split):
    name = f"{kind}_{split}"
    assert name in DatasetCatalog.list()
    assert MetadataCatalog.get(name).thing_classes == ["pedestrian"]
    assert MetadataCatalog.get(name).evaluator_type == "pets09"


NAME = "test_pets_evaluation"


@pytest.fixture
def evaluated(root):
    register_pets09_video(NAME, str(root), "val")
    yield DatasetCatalog.get(NAME)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def detections(frame, share=1.0):
    """The output of a detector that finds the persons of a ``share`` of the frames."""
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in frame["annotations"]
        if frame["image_id"] % 100 < 100 * share
    ]
    instances = Instances((576, 768))
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.scores = torch.full((len(boxes),), 0.9)
    instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    return {"instances": instances}


def score(evaluator, frames, share=1.0):
    evaluator.reset()
    for frame in frames:
        evaluator.process([frame], [detections(frame, share)])
    return evaluator.evaluate()


def test_scores_are_ap_and_miss_rate(evaluated, tmp_path, capsys):
    evaluator = build_evaluator(get_cfg(), NAME, str(tmp_path / "output"))
    perfect = score(evaluator, evaluated)
    assert perfect["bbox"]["AP"] == perfect["bbox"]["AP50"] == pytest.approx(100)
    assert perfect["miss_rate"] == {"Reasonable": 0}
    # Half of the frames: 395 persons, 200 found. COCO reads precision at 101 recall levels.
    half = score(evaluator, evaluated, share=0.5)
    found = sum(frame["image_id"] % 100 < 50 for frame in evaluated)
    assert half["miss_rate"]["Reasonable"] == pytest.approx(100 * (1 - found / 395))
    assert half["bbox"]["AP50"] == pytest.approx(100 * (int(100 * found / 395) + 1) / 101)
    assert capsys.readouterr().out == ""


def test_only_the_frames_that_ran_are_scored(evaluated, tmp_path):
    evaluator = build_evaluator(get_cfg(), NAME, str(tmp_path / "output"))
    result = score(evaluator, evaluated[20:60])
    assert result["bbox"]["AP50"] == pytest.approx(100)
    assert result["miss_rate"]["Reasonable"] == 0


def test_frames_that_are_not_labelled_are_passed_over(evaluated, tmp_path):
    evaluator = build_evaluator(get_cfg(), NAME, str(tmp_path / "output"))
    frames = [{**frame, "labelled": frame["frame_index"] == 0} for frame in evaluated]
    evaluator.reset()
    for frame in frames:
        evaluator.process([frame], [detections(frame) if frame["labelled"] else None])
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100)


# The command line, on a video of four frames.


@pytest.fixture
def sources(tmp_path, monkeypatch):
    video, boxes = tmp_path / "vtest.avi", tmp_path / "gt.txt"
    with VideoWriter(str(video), 10) as writer:
        for number in range(4):
            writer.write(np.full((576, 768, 3), (255, 20 * number, 0), np.uint8))  # BGR
    boxes.write_text(boxes_of(4))
    digest = hashlib.sha256(video.read_bytes()).hexdigest()
    monkeypatch.setattr(command, "_SHA256", digest)
    monkeypatch.setattr(command, "NUM_FRAMES", 4)
    return ["--video", str(video), "--boxes", str(boxes), "--output", str(tmp_path / "data")]


def test_the_command_writes_frames_and_boxes(sources, tmp_path, capsys):
    command.main(sources)
    root = tmp_path / "data"
    assert sorted(os.listdir(root / "img1")) == [f"{n:06d}.jpg" for n in range(1, 5)]
    assert (root / "gt" / "gt.txt").read_text() == boxes_of(4)
    image = np.asarray(Image.open(frame_file(str(root), 3))).astype(int)
    assert image.shape == (576, 768, 3)
    assert abs(image - (0, 40, 255)).max() < 12
    captured = capsys.readouterr()
    assert captured.out == "" and "4/4" in captured.err
    # Once more, with boxes that exist already.
    command.main([*sources, "--boxes", str(root / "gt" / "gt.txt"), "--quality", "50"])
    assert (root / "gt" / "gt.txt").read_text() == boxes_of(4)


def test_the_command_s_frames_are_what_the_loader_reads(sources, tmp_path):
    command.main(sources)
    (tmp_path / "data" / "gt" / "gt.txt").write_text(boxes_of())
    register_pets09_video("test_pets_video", str(tmp_path / "data"), "train")
    cfg = get_cfg()
    cfg.INPUT.CLIP = CfgNode({"NUM_FRAMES": 20, "NUM_CLIPS": 1})
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 1024, 2048
    try:
        frame = next(iter(build_clip_loader(cfg, "test_pets_video")))[0]
        assert frame["image"].shape == (3, 1024, 1365)
        assert (frame["height"], frame["width"]) == (576, 768)
        assert frame["image"][:, 500, 500].tolist() == pytest.approx([255, 0, 0], abs=12)
    finally:
        DatasetCatalog.remove("test_pets_video")
        MetadataCatalog.remove("test_pets_video")


def fails(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_another_video_is_refused(sources, tmp_path, capsys, monkeypatch):
    found = command._SHA256
    monkeypatch.setattr(command, "_SHA256", "0" * 64)
    message = fails(capsys, sources)
    assert f"vtest.avi has the SHA-256 {found}, expected {'0' * 64}" in message
    assert "opencv-doc" in message
    assert not (tmp_path / "data").exists()


def test_missing_files_are_named(sources, tmp_path, capsys):
    assert "nowhere.avi is not a file" in fails(capsys, [*sources, "--video", "nowhere.avi"])
    assert "nowhere.txt is not a file" in fails(capsys, [*sources, "--boxes", "nowhere.txt"])
    assert "required: --video, --boxes" in fails(capsys, [])
    assert not (tmp_path / "data").exists()


def test_boxes_of_another_sequence_are_refused(sources, tmp_path, capsys):
    (tmp_path / "gt.txt").write_text(boxes_of(3))
    message = fails(capsys, sources)
    assert "boxes in 3 frames, 1 to 3; expected boxes in each of the frames 1 to 4" in message


def test_the_command_tells_where_its_sources_come_from():
    text = command.parser().format_help()
    assert "python -m blockcopy_d2.data.pets09" in text
    assert "motchallenge.net" in text and "opencv-doc" in text


@pytest.mark.parametrize("detector", ["faster_rcnn_R_50_FPN", "csp_R_50"])
def test_the_blockcopy_config_runs_what_the_detector_s_config_trains(detector):
    trained = load_config(config_path(f"PETS09/{detector}.yaml"))
    run = load_config(config_path(f"PETS09/{detector}_blockcopy.yaml"))
    assert run.MODEL.WEIGHTS == f"{trained.OUTPUT_DIR}/model_final.pth"
    for cfg in (trained, run):
        assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= set(DatasetCatalog.list())
    assert base_config(run).INPUT.dump() == trained.INPUT.dump()
    trained.MODEL.WEIGHTS = run.MODEL.WEIGHTS
    # Keys of BlockCopy are left to the run.
    blocks, policy = trained.MODEL.BLOCKCOPY, run.MODEL.BLOCKCOPY.POLICY
    blocks.BLOCK_SIZE = run.MODEL.BLOCKCOPY.BLOCK_SIZE
    blocks.POLICY.PIXELS_PER_BLOCK = policy.PIXELS_PER_BLOCK
    blocks.POLICY.NAME = policy.NAME
    blocks.MOTION.NAME = run.MODEL.BLOCKCOPY.MOTION.NAME
    assert base_config(run).MODEL.dump() == base_config(trained).MODEL.dump()
