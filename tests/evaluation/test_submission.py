"""
Results for the Cityscapes benchmark: the content of the zip files, which cityscapesscripts' own
command line scores as the evaluators do.
"""

import errno
import gc
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from cityscapesscripts.helpers.labels import name2label
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, Instances
from PIL import Image

from blockcopy_d2.data import (
    load_cityscapes_video,
    register_citypersons_video,
    register_cityscapes_video,
)
from blockcopy_d2.engine import load_config
from blockcopy_d2.evaluation import build_evaluator
from tests.data.cityscapes_tree import HEIGHT, WIDTH, instance_masks, write_clip
from tests.data.test_citypersons import write_boxes

TYPES = {"instance": "test_submission", "sem_seg": "test_submission_sem_seg"}


@pytest.fixture
def root(tmp_path):
    """Three labelled val clips, two test clips without ground truth, registered by TYPES."""
    data = tmp_path / "cityscapes"
    for index in range(3):
        write_clip(data, f"ulm_{index:06d}", num_frames=3)
    for index in range(2):
        write_clip(data, f"bonn_{index:06d}", split="test", num_frames=3, objects=None)
    for task, name in TYPES.items():
        for split, suffix in (("val", ""), ("test", "_submission")):
            evaluator_type = f"cityscapes_video_{task}{suffix}"
            register_cityscapes_video(
                f"{name}_{split}", str(data), split, evaluator_type=evaluator_type
            )
    yield data
    for name in TYPES.values():
        for split in ("val", "test"):
            DatasetCatalog.remove(f"{name}_{split}")
            MetadataCatalog.remove(f"{name}_{split}")


def shifted_instances(root, frame):
    """The ground truth moved a little to the right, with different scores."""
    classes = MetadataCatalog.get("test_submission_val").thing_classes
    found = instance_masks(root, frame["video_id"])
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_classes = torch.tensor([classes.index(name) for name, _ in found])
    instances.scores = torch.linspace(0.5, 0.9, len(found))
    masks = np.stack([np.roll(mask, 2, axis=1) for _, mask in found])
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_boxes = Boxes(torch.zeros(len(found), 4))
    return {"instances": instances}


def shifted_classes(root, frame):
    labels = np.asarray(Image.open(frame["sem_seg_file_name"])).astype(np.int64)
    labels[labels == 255] = 0
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(np.roll(labels, 3, axis=1)), 19)
    return {"sem_seg": one_hot.permute(2, 0, 1).float()}


def nothing():
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_classes = torch.zeros(0, dtype=torch.int64)
    instances.scores = torch.zeros(0)
    instances.pred_masks = torch.zeros(0, HEIGHT, WIDTH, dtype=torch.bool)
    return {"instances": instances, "sem_seg": torch.zeros(19, HEIGHT, WIDTH)}


def run(root, name, output, predict, split="val", frames=None):
    cfg = load_config(opts=["TEST.BLOCKCOPY.SUBMISSION", "True"])
    evaluator = build_evaluator(cfg, f"{name}_{split}", str(output))
    evaluator.reset()
    for frame in load_cityscapes_video(str(root), split)[:frames]:
        last = frame["frame_index"] == 2
        evaluator.process([frame], [predict(root, frame) if last else nothing()])
    return evaluator.evaluate()


def score_by_command_line(script, root, results, tmp_path):
    """Returns the scores that cityscapesscripts writes of the unpacked results."""
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(results) as archive:
        archive.extractall(folder)
    environment = {
        **os.environ,
        "CITYSCAPES_DATASET": str(root),
        "CITYSCAPES_RESULTS": str(folder),
        "CITYSCAPES_EXPORT_DIR": str(tmp_path),
    }
    # The tool runs without arguments. The option only avoids a cache among its own files.
    program = (
        f"import cityscapesscripts.evaluation.{script} as tool;"
        "tool.args.gtInstancesFile = 'gtInstances.json'; tool.main()"
    )
    job = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert job.returncode == 0, job.stderr
    (file,) = [f for f in tmp_path.glob("**/result*.json")]
    return json.loads(file.read_text())


def test_instances_score_the_same_by_the_official_command_line(root, tmp_path):
    scores = run(root, TYPES["instance"], tmp_path / "out", shifted_instances)["segm"]
    found = score_by_command_line(
        "evalInstanceLevelSemanticLabeling",
        root,
        tmp_path / "out" / "submission_instance.zip",
        tmp_path,
    )
    assert 10 < scores["AP"] < 90
    assert 100 * found["averages"]["allAp"] == pytest.approx(scores["AP"])
    assert 100 * found["averages"]["allAp50%"] == pytest.approx(scores["AP50"])


def test_classes_score_the_same_by_the_official_command_line(root, tmp_path):
    scores = run(root, TYPES["sem_seg"], tmp_path / "out", shifted_classes)["sem_seg"]
    found = score_by_command_line(
        "evalPixelLevelSemanticLabeling",
        root,
        tmp_path / "out" / "submission_sem_seg.zip",
        tmp_path,
    )
    assert 10 < scores["IoU"] < 95
    assert 100 * found["averageScoreClasses"] == pytest.approx(scores["IoU"])
    assert 100 * found["averageScoreInstClasses"] == pytest.approx(scores["iIoU"])


def test_the_test_split_is_written_and_not_scored(root, tmp_path):
    def predict(_, frame):
        output = nothing()
        output["sem_seg"][13] = 1  # train id of cars
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_classes = torch.tensor([2])
        instances.scores = torch.tensor([0.75])
        instances.pred_masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
        instances.pred_masks[0, 8:16, 8:16] = True
        output["instances"] = instances
        return output

    for name in TYPES.values():
        assert run(root, name, tmp_path, predict, split="test") == {}
    ids = [f"bonn_{index:06d}_000002_leftImg8bit" for index in range(2)]
    with zipfile.ZipFile(tmp_path / "submission_sem_seg.zip") as archive:
        assert sorted(archive.namelist()) == [f"{i}_pred.png" for i in ids]
        with archive.open(f"{ids[0]}_pred.png") as file:
            image = Image.open(file)
            assert image.mode == "L" and image.size == (WIDTH, HEIGHT)
            assert np.unique(np.asarray(image)).tolist() == [name2label["car"].id]
    with zipfile.ZipFile(tmp_path / "submission_instance.zip") as archive:
        assert sorted(archive.namelist()) == sorted(
            name for i in ids for name in (f"{i}_pred.txt", f"{i}_0_car.png")
        )
        mask, label, score = archive.read(f"{ids[1]}_pred.txt").decode().split()
        assert (mask, int(label), float(score)) == (f"{ids[1]}_0_car.png", 26, 0.75)
        with archive.open(mask) as file:
            assert np.count_nonzero(np.asarray(Image.open(file))) == 64


def test_an_incomplete_submission_is_told(root, tmp_path, caplog):
    run(root, TYPES["instance"], tmp_path, lambda *_: nothing(), split="test", frames=3)
    assert "has 2 frames to submit, and 1 of them were run" in caplog.text
    assert (tmp_path / "submission_instance.incomplete.zip").exists()


@pytest.mark.parametrize("frames, written", [(0, 1), (3, 2)])
def test_an_incomplete_submission_replaces_no_complete_one(root, tmp_path, frames, written):
    output, options = tmp_path / "out", {"split": "test", "predict": lambda *_: nothing()}
    run(root, TYPES["instance"], output, **options)
    before = (output / "submission_instance.zip").read_bytes()
    run(root, TYPES["instance"], output, **options, frames=frames)
    assert (output / "submission_instance.zip").read_bytes() == before
    assert len(list(output.iterdir())) == written


def test_a_second_run_leaves_nothing_of_the_first(root, tmp_path):
    run(root, TYPES["instance"], tmp_path, shifted_instances)
    run(root, TYPES["instance"], tmp_path, lambda *_: nothing())
    with zipfile.ZipFile(tmp_path / "submission_instance.zip") as archive:
        assert all(name.endswith(".txt") for name in archive.namelist())


def test_a_run_that_fails_leaves_the_submission_of_the_run_before(root, tmp_path, monkeypatch):
    output = tmp_path / "out"
    run(root, TYPES["instance"], output, shifted_instances)
    before = (output / "submission_instance.zip").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(root, TYPES["instance"], output, interrupted)
    assert (output / "submission_instance.zip").read_bytes() == before

    def full(name, *_):
        with open(f"{name}.zip", "w") as f:
            f.write("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.make_archive", full)
    with pytest.raises(OSError, match="No space left"):
        run(root, TYPES["instance"], output, lambda *_: nothing())
    assert (output / "submission_instance.zip").read_bytes() == before
    gc.collect()
    assert os.listdir(output) == ["submission_instance.zip"]


def test_folders_of_the_user_stay(root, tmp_path):
    mine = tmp_path / "out" / "submission_instance" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    run(root, TYPES["instance"], tmp_path / "out", shifted_instances)
    assert mine.read_text() == "mine"
    with zipfile.ZipFile(tmp_path / "out" / "submission_instance.zip") as archive:
        assert "notes.txt" not in archive.namelist()


def test_only_who_asks_gets_a_submission_of_val(root, tmp_path):
    evaluator = build_evaluator(load_config(), "test_submission_val", str(tmp_path))
    assert not isinstance(evaluator, DatasetEvaluators)


@pytest.fixture
def pedestrians(root):
    """CityPersons on the same clips: val has boxes, test has none."""
    for index in range(3):
        write_boxes(root, f"ulm_{index:06d}_000002")
    for split in ("val", "test"):
        register_citypersons_video(f"test_submission_people_{split}", str(root), split)
    yield root
    for split in ("val", "test"):
        DatasetCatalog.remove(f"test_submission_people_{split}")
        MetadataCatalog.remove(f"test_submission_people_{split}")


def found_people(index):
    """Detections of a frame: as many pedestrians as its number says, and one of another class."""
    boxes = torch.tensor([[10.0 * i, 5, 10 * i + 20.5, 55] for i in range(index + 1)])
    instances = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(boxes))
    instances.scores = torch.linspace(0.9, 0.5, index + 1)
    instances.pred_classes = torch.tensor([0] * index + [1])
    return {"instances": instances}


def run_people(output, split, *, frames=None, opts=()):
    cfg = load_config(opts=["TEST.BLOCKCOPY.SUBMISSION", "True", *opts])
    name = f"test_submission_people_{split}"
    evaluator = build_evaluator(cfg, name, str(output))
    evaluator.reset()
    # Not in the order of their names.
    for frame in DatasetCatalog.get(name)[::-1][:frames]:
        number = int(frame["video_id"].split("_")[1])
        last = frame["file_name"].endswith(f"{frame['video_id']}_leftImg8bit.png")
        evaluator.process([frame], [found_people(number + 1) if last else nothing()])
    return evaluator.evaluate()


@pytest.mark.parametrize("to_last_pixel", [False, True])
@pytest.mark.parametrize("split, count", [("val", 3), ("test", 2)])
def test_pedestrians_are_numbered_by_the_names_of_their_files(
    pedestrians, tmp_path, split, count, to_last_pixel
):
    opts = ["TEST.BLOCKCOPY.SCORE_TO_LAST_PIXEL", str(to_last_pixel)]
    scores = run_people(tmp_path / "out", split, opts=opts)
    assert set(scores or {}) == ({"miss_rate"} if split == "val" else set())
    found = json.loads((tmp_path / "out" / "submission_citypersons.json").read_text())
    assert [x["image_id"] for x in found] == [i for i in range(1, count + 1) for _ in range(i)]
    assert {x["category_id"] for x in found} == {1}
    less = int(to_last_pixel)
    assert found[2]["bbox"] == [10, 5, 20.5 - less, 50 - less]
    assert found[1]["score"] == pytest.approx(0.9) and found[2]["score"] == pytest.approx(0.7)


def test_pedestrians_of_some_frames_are_incomplete(pedestrians, tmp_path, caplog):
    run_people(tmp_path / "out", "test", frames=3)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [
        "submission_citypersons.incomplete.json"
    ]
    assert "has 2 frames to submit, and 1 of them were run" in caplog.text
    run_people(tmp_path / "none", "test", frames=0)
    assert not (tmp_path / "none").exists()
