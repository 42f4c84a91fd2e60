"""COCO scores of what was run, on data sets in COCO's and Detectron2's format."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import Boxes, BoxMode, Instances

from blockcopy_d2.data import build_clip_loader
from blockcopy_d2.data.files import AnnotationError
from blockcopy_d2.engine import load_config
from blockcopy_d2.evaluation import build_evaluator
from tests.data.cityscapes_tree import HEIGHT, WIDTH, write_frame
from tests.data.test_clips import make_config

NAME = "test_video_coco"
VIDEOS, FRAMES = 2, 40


def box(image_id):
    return [2 + image_id % 20, 3, 30, 40]


def content_of(videos=VIDEOS, frames=FRAMES):
    images, annotations = [], []
    for image_id in range(videos * frames):
        name = f"{image_id}.png"
        images.append({"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH})
        annotation = {"id": image_id + 1, "image_id": image_id, "category_id": 7, "iscrowd": 0}
        annotations.append({**annotation, "bbox": box(image_id), "area": 1200})
    categories = [{"id": 7, "name": "car"}]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def coco(tmp_path):
    """Two videos of 40 labelled frames, as a user would register them."""
    json_file = tmp_path / "annotations.json"

    def load():
        dataset = load_coco_json(str(json_file), str(tmp_path), NAME)
        for index, frame in enumerate(dataset):
            frame["video_id"], frame["frame_index"] = divmod(index, FRAMES)
        return dataset

    def write(content):
        json_file.write_text(content if isinstance(content, str) else json.dumps(content))
        return json_file

    write(content_of())
    for image_id in range(VIDEOS * FRAMES):
        write_frame(tmp_path / f"{image_id}.png", image_id)
    DatasetCatalog.register(NAME, load)
    MetadataCatalog.get(NAME).set(json_file=str(json_file), evaluator_type="coco")
    yield write
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def found(frame, shift=0):
    x, y, width, height = box(frame["image_id"])
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(
        torch.tensor([[x + shift, y, x + shift + width, y + height]]).float()
    )
    instances.scores = torch.tensor([0.9])
    instances.pred_classes = torch.tensor([0])
    return {"instances": instances}


def score(folder, frames, predict=found):
    evaluator = build_evaluator(load_config(), NAME, str(folder))
    evaluator.reset()
    for frame in frames:
        evaluator.process([frame], [predict(frame)])
    return evaluator.evaluate()


def frames_of(**options):
    return [batch[0] for batch in build_clip_loader(make_config(**options), NAME)]


def test_frames_that_were_cut_do_not_count(coco, tmp_path):
    frames = frames_of()
    assert len(frames) == 40
    assert score(tmp_path / "out", frames)["bbox"]["AP"] == pytest.approx(100)


def test_clips_that_were_left_out_do_not_count(coco, tmp_path):
    frames = frames_of(num_frames=40, num_clips=1)
    assert len(frames) == 40
    assert score(tmp_path / "out", frames)["bbox"]["AP"] == pytest.approx(100)


def test_a_missed_frame_that_was_run_counts(coco, tmp_path):
    def half(frame):
        return found(frame, shift=0 if frame["image_id"] % 2 else 80)

    assert score(tmp_path / "out", frames_of(), half)["bbox"]["AP"] == pytest.approx(25, abs=1)


def test_frames_without_labels_do_not_count(coco, tmp_path):
    frames = [{**frame, "labelled": frame["image_id"] % 2 == 0} for frame in frames_of()]

    def half(frame):
        return found(frame, shift=0 if frame["labelled"] else 80)

    assert score(tmp_path / "out", frames, half)["bbox"]["AP"] == pytest.approx(100)


def test_files_of_results_are_whole(coco, tmp_path, monkeypatch):
    out = tmp_path / "out"
    score(out, frames_of())
    files = ["coco_instances_results.json", "instances_predictions.pth"]
    assert sorted(file.name for file in out.iterdir()) == files
    before = {file: (out / file).read_bytes() for file in files}

    def full(data, file):
        file.write(b"part")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        score(out, frames_of(num_clips=1))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def spoil(**change):
    return {**content_of(), **change}


@pytest.mark.parametrize(
    "content",
    [
        "",
        json.dumps(content_of())[:2000],
        "null",
        "[]",
        spoil(images=None),
        spoil(categories=None),
        {"images": [], "annotations": []},
        spoil(annotations=[{"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 2, 3, 4]}]),
        spoil(annotations=[{"id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12}]),
        spoil(images=content_of()["images"] + content_of()["images"][:1]),
    ],
)
def test_annotations_that_cannot_be_used_are_named(coco, tmp_path, content):
    file = coco(content)
    with pytest.raises(AnnotationError, match=str(file)):
        build_evaluator(load_config(), NAME, str(tmp_path / "out"))


@pytest.mark.parametrize("content", ["", json.dumps(content_of())[:2000], "null", "{}"])
def test_the_loader_names_them_too(coco, content):
    file = coco(content)
    with pytest.raises(AnnotationError, match=str(file)):
        build_clip_loader(make_config(), NAME)


def test_frames_of_two_videos_with_one_id_are_refused(coco, tmp_path):
    frames = [{**frame, "image_id": frame["frame_index"]} for frame in frames_of()]
    with pytest.raises(AnnotationError, match="2 labelled frames .* have the image_id"):
        score(tmp_path / "out", frames)


def test_frames_that_the_annotations_do_not_know_are_refused(coco, tmp_path):
    frames = [{**frame, "image_id": 1000 + frame["image_id"]} for frame in frames_of()]
    with pytest.raises(AnnotationError, match="40 frames .* have no annotations, such as .* 1020"):
        score(tmp_path / "out", frames)


def test_masks_are_not_asked_of_annotations_that_have_none(coco, tmp_path, caplog):
    def masks(frame):
        output = found(frame)
        output["instances"].pred_masks = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
        return output

    assert set(score(tmp_path / "out", frames_of(), masks)) == {"bbox"}
    assert "annotations.json are of bbox only" in caplog.text


@pytest.fixture
def converted():
    """A data set in Detectron2's format, whose content a test sets."""
    frames = []
    DatasetCatalog.register(NAME, lambda: frames)
    MetadataCatalog.get(NAME).set(evaluator_type="coco", thing_classes=["car"])

    def fill(boxes, **more):
        frames[:] = [
            {
                "file_name": f"{image_id}.png", "image_id": image_id, "height": HEIGHT,
                "width": WIDTH, "video_id": "a", **more,
                "annotations": [
                    {"bbox": box(value), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
                ],
            }
            for image_id, value in enumerate(boxes)
        ]  # fmt: skip
        return frames

    yield fill
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_annotations_of_an_earlier_run_are_not_those_of_this_one(converted, tmp_path):
    """Neither a file that lies there, nor one that Detectron2 remembers."""
    frames = converted([0, 1, 2])
    assert score(tmp_path / "one", frames)["bbox"]["AP"] == pytest.approx(100)
    converted([10, 11, 12])
    for folder in ("one", "two"):
        result = score(
            tmp_path / folder, frames, lambda frame: found({"image_id": frame["image_id"] + 10})
        )
        assert result["bbox"]["AP"] == pytest.approx(100)
        assert (tmp_path / folder / f"{NAME}_coco_format.json").exists()
    assert not hasattr(MetadataCatalog.get(NAME), "json_file")
