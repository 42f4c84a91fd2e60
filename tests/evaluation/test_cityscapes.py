import copy
import math
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image

from blockcopy_d2.data import load_cityscapes_video, register_cityscapes_video
from blockcopy_d2.data.files import AnnotationError
from blockcopy_d2.engine import load_config
from blockcopy_d2.evaluation import (
    CityscapesVideoInstanceEvaluator,
    CityscapesVideoSemSegEvaluator,
    build_evaluator,
)
from tests.data.cityscapes_tree import HEIGHT, WIDTH, instance_masks, rectangle, write_clip

NAME, SEM_SEG = "test_evaluation", "test_evaluation_sem_seg"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Four clips, registered as NAME and SEM_SEG; the current folder is an empty one."""
    data = tmp_path / "data"
    for index in range(4):
        write_clip(data, f"a_{index:06d}")
    register_cityscapes_video(NAME, str(data), "val")
    register_cityscapes_video(SEM_SEG, str(data), "val", evaluator_type="cityscapes_video_sem_seg")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield data
    for name in (NAME, SEM_SEG):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def perfect(root, video_id):
    """The output of a perfect detector for the labelled frame of a clip."""
    classes = MetadataCatalog.get(NAME).thing_classes
    found = instance_masks(root, video_id)
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_classes = torch.tensor([classes.index(name) for name, _ in found])
    instances.scores = torch.full((len(found),), 0.9)
    instances.pred_masks = torch.from_numpy(np.stack([mask for _, mask in found]))
    instances.pred_boxes = Boxes(torch.zeros(len(found), 4))
    return {"instances": instances}


def nothing():
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_classes = torch.zeros(0, dtype=torch.int64)
    instances.scores = torch.zeros(0)
    instances.pred_masks = torch.zeros(0, HEIGHT, WIDTH, dtype=torch.bool)
    instances.pred_boxes = Boxes(torch.zeros(0, 4))
    return {"instances": instances}


def run(root, predict, clips=range(4), name=NAME):
    evaluator = build_evaluator(load_config(), name, "unused")
    evaluator.reset()
    for frame in load_cityscapes_video(str(root), "val"):
        if int(frame["video_id"].split("_")[1]) in clips:
            evaluator.process([frame], [predict(frame)])
    return evaluator.evaluate()


def test_perfect_predictions_score_100(root):
    def predict(frame):
        assert set(frame) >= {"file_name", "labelled"}
        # Predictions for frames without labels must not matter.
        return perfect(root, frame["video_id"]) if frame["labelled"] else nothing()

    result = run(root, predict)
    assert result == {"segm": {"AP": pytest.approx(100), "AP50": pytest.approx(100)}}


def test_no_predictions_score_0(root):
    result = run(root, lambda frame: nothing())
    assert result == {"segm": {"AP": 0, "AP50": 0}}


def test_only_the_clips_that_ran_are_scored(root):
    result = run(root, lambda frame: perfect(root, frame["video_id"]), clips=(1, 3))
    assert result["segm"]["AP"] == pytest.approx(100)


def test_a_clip_that_failed_before_its_labelled_frame_is_left_out(root):
    evaluator = build_evaluator(load_config(), NAME, "unused")
    evaluator.reset()
    for frame in load_cityscapes_video(str(root), "val"):
        if frame["video_id"] == "a_000002_000019" and frame["frame_index"] > 5:
            continue
        evaluator.process([frame], [perfect(root, frame["video_id"])])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)


def test_half_of_the_instances_score_half(root):
    def predict(frame):
        return perfect(root, frame["video_id"]) if frame["video_id"] < "a_000002" else nothing()

    result = run(root, predict)
    assert result["segm"]["AP"] == pytest.approx(50)


def test_shifted_masks_lose_the_strict_thresholds(root):
    def predict(frame):
        output = perfect(root, frame["video_id"])
        output["instances"].pred_masks = output["instances"].pred_masks.roll(2, dims=2)
        return output

    result = run(root, predict)["segm"]
    assert 10 < result["AP"] < 90
    assert result["AP50"] == pytest.approx(100)


def test_groups_and_small_instances_do_not_count(root):
    def with_a_car_at(x0, y0, x1, y1):
        def predict(frame):
            extra = Instances((HEIGHT, WIDTH))
            extra.pred_classes = torch.tensor([2])
            extra.scores = torch.tensor([0.95])
            extra.pred_masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
            extra.pred_masks[:, y0:y1, x0:x1] = True
            extra.pred_boxes = Boxes(torch.zeros(1, 4))
            found = perfect(root, frame["video_id"])["instances"]
            return {"instances": Instances.cat([found, extra])}

        return run(root, predict)["segm"]["AP"]

    assert with_a_car_at(72, 5, 108, 19) == pytest.approx(100)  # on the group of cars
    assert with_a_car_at(10, 42, 40, 60) < 90  # on the road

    def without_the_small_person(frame):
        instances = perfect(root, frame["video_id"])["instances"]
        return {"instances": instances[instances.pred_masks.sum((1, 2)) >= 100]}

    assert run(root, without_the_small_person)["segm"]["AP"] == pytest.approx(100)


def test_two_gt_sets_in_one_process_do_not_mix(root, tmp_path):
    """cityscapesscripts caches the ground truth instances in a file."""
    assert run(root, lambda frame: perfect(root, frame["video_id"]))["segm"]["AP"] > 99
    for index in range(4):
        write_clip(root, f"a_{index:06d}", objects=[rectangle("truck", 0, 0, 64, 64)])
    assert run(root, lambda frame: perfect(root, frame["video_id"]))["segm"]["AP"] > 99


def test_nothing_is_left_behind(root, capsys):
    import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as api

    before = copy.copy(vars(api.args))
    evaluator = build_evaluator(load_config(), NAME, "unused")
    evaluator.reset()
    folder = evaluator._temp_dir
    frame = load_cityscapes_video(str(root), "val")[19]
    evaluator.process([frame], [perfect(root, frame["video_id"])])
    assert os.listdir(folder)
    evaluator.evaluate()
    assert not os.path.exists(folder)
    assert vars(api.args) == before
    assert not os.listdir(os.getcwd())
    assert capsys.readouterr().out == ""


def test_without_a_labelled_frame_there_is_no_score(root, caplog):
    for name, task in ((NAME, "segm"), (SEM_SEG, "sem_seg")):
        result = run(root, None, clips=(), name=name)
        assert all(math.isnan(value) for value in result[task].values())
        assert "No labelled frame was processed" in caplog.text
        caplog.clear()


def test_frames_of_all_ranks_are_scored_on_the_first(root, monkeypatch):
    evaluators = [build_evaluator(load_config(), NAME, "unused") for _ in range(2)]
    evaluators[0].reset()
    monkeypatch.setattr(
        "detectron2.utils.comm.all_gather", lambda data: [evaluators[0]._temp_dir, data]
    )
    evaluators[1].reset()
    for frame in load_cityscapes_video(str(root), "val"):
        second = frame["video_id"] >= "a_000002"
        evaluators[second].process([frame], [perfect(root, frame["video_id"])])
    names = [evaluator._file_names for evaluator in evaluators]
    assert [len(n) for n in names] == [2, 2]

    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 1)
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda data: [])
    assert evaluators[1].evaluate() is None
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 0)
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda data: names)
    assert evaluators[0].evaluate()["segm"]["AP"] == pytest.approx(100)


def sem_seg(root, frame):
    """One-hot scores (19, H, W) of the ground truth; void pixels get class 0."""
    labels = torch.from_numpy(np.asarray(Image.open(frame["sem_seg_file_name"])).astype(np.int64))
    labels[labels == 255] = 0
    return {"sem_seg": torch.nn.functional.one_hot(labels, 19).permute(2, 0, 1).float()}


def test_semantic_segmentation(root):
    def predict(frame):
        return sem_seg(root, frame) if frame["labelled"] else None

    result = run(root, predict, clips=(0, 2), name=SEM_SEG)["sem_seg"]
    assert result["IoU"] == pytest.approx(100)
    assert set(result) == {"IoU", "iIoU", "IoU_sup", "iIoU_sup"}

    def wrong(frame):
        return {"sem_seg": sem_seg(root, frame)["sem_seg"].flip(0)} if frame["labelled"] else None

    assert run(root, wrong, name=SEM_SEG)["sem_seg"]["IoU"] == 0
    assert not os.listdir(os.getcwd())


@pytest.mark.parametrize(
    "evaluator_type, expected",
    [
        ("cityscapes_instance", CityscapesVideoInstanceEvaluator),
        ("cityscapes_video_instance", CityscapesVideoInstanceEvaluator),
        ("cityscapes_sem_seg", CityscapesVideoSemSegEvaluator),
        ("cityscapes_video_sem_seg", CityscapesVideoSemSegEvaluator),
        ("coco", COCOEvaluator),
    ],
)
def test_evaluators_by_type(tmp_path, evaluator_type, expected):
    annotations = tmp_path / "annotations.json"
    annotations.write_text('{"images": [], "annotations": [], "categories": []}')
    MetadataCatalog.get("test_type").set(evaluator_type=evaluator_type, json_file=str(annotations))
    try:
        assert isinstance(build_evaluator(load_config(), "test_type", str(tmp_path)), expected)
    finally:
        MetadataCatalog.remove("test_type")


def test_unknown_evaluator_types_are_refused():
    MetadataCatalog.get("test_type").set(evaluator_type="lvis")
    try:
        with pytest.raises(NotImplementedError, match="test_type.*'lvis'"):
            build_evaluator(load_config(), "test_type", "unused")
    finally:
        MetadataCatalog.remove("test_type")


def test_scores_do_not_depend_on_a_function_that_numpy_dropped(root, monkeypatch):
    import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as instances
    import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as pixels

    for module in (instances, pixels):
        monkeypatch.setattr(module, "np", np)
    monkeypatch.delattr(np, "in1d", raising=False)
    result = run(root, lambda frame: perfect(root, frame["video_id"]), clips=(0,))
    assert result["segm"]["AP"] == pytest.approx(100)
    result = run(
        root,
        lambda frame: sem_seg(root, frame) if frame["labelled"] else None,
        clips=(0,),
        name=SEM_SEG,
    )
    assert result["sem_seg"]["iIoU"] == pytest.approx(100)


@pytest.mark.parametrize("kind", ["instanceIds", "labelIds"])
@pytest.mark.parametrize("damage", ["cut", "empty", "colours", "id", "missing"])
def test_ground_truth_that_cannot_be_used_is_named(root, kind, damage):
    file = root / "gtFine" / "val" / "a" / f"a_000002_000019_gtFine_{kind}.png"
    if damage in ("cut", "empty"):
        file.write_bytes(file.read_bytes()[:60] if damage == "cut" else b"")
    elif damage == "missing":
        file.unlink()
    elif damage == "colours":
        Image.new("RGB", (WIDTH, HEIGHT)).save(file)
    else:
        Image.fromarray(np.full((HEIGHT, WIDTH), 77, np.uint8)).save(file)
    name, evaluator_type = (NAME, "instance") if kind == "instanceIds" else (SEM_SEG, "sem_seg")
    evaluator = build_evaluator(load_config(), name, "unused")
    evaluator.reset()
    folder = evaluator._temp_dir
    output = (
        nothing() if evaluator_type == "instance" else {"sem_seg": torch.zeros(19, HEIGHT, WIDTH)}
    )
    for clip in range(4):
        frame = {"file_name": f"x/a/a_{clip:06d}_000019_leftImg8bit.png"}
        evaluator.process([frame], [output])
    with pytest.raises((AnnotationError, FileNotFoundError), match=file.name):
        evaluator.evaluate()
    assert not os.path.exists(folder), "nothing is left behind"


def test_what_cityscapesscripts_prints_before_it_gives_up_is_told(root):
    evaluator = build_evaluator(load_config(), SEM_SEG, "unused")
    evaluator.reset()
    frame = {"file_name": "x/a/a_000002_000019_leftImg8bit.png"}
    evaluator.process([frame], [{"sem_seg": torch.zeros(19, HEIGHT + 2, WIDTH)}])
    with pytest.raises(RuntimeError, match=r"gave up: ERROR: Image heights of .*a_000002_000019"):
        evaluator.evaluate()
