"""COCO scores of what was run, on data sets in COCO's and Detectron2's format."""

import copy
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blockcopy_d2.data import build_clip_loader, register_davis
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


LABEL = content_of()["annotations"][0]


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
        spoil(images=content_of()["images"] + [{**content_of()["images"][0], "id": "0"}]),
        spoil(annotations=[{**LABEL, "category_id": 8}]),
        spoil(annotations=[{**LABEL, "bbox": [1, 2, 3]}]),
        spoil(annotations=[{**LABEL, "bbox": [1, 2, 3, float("nan")]}]),
        spoil(annotations=[{**LABEL, "bbox": [9, 9, -3, 4]}]),
        spoil(annotations=[{**LABEL, "area": -12}]),
        spoil(annotations=[{**LABEL, "area": None}]),
        spoil(annotations=[{**LABEL, "iscrowd": "no"}]),
    ],
)
def test_annotations_that_cannot_be_used_are_named(coco, tmp_path, content):
    file = coco(content)
    with pytest.raises(AnnotationError, match=str(file)):
        build_evaluator(load_config(), NAME, str(tmp_path / "out"))


@pytest.mark.parametrize("ids", [range(1000), [1] * 1000, [None] * 1000])
def test_ids_of_annotations_do_not_count(coco, tmp_path, ids):
    """pycocotools takes 0 for none, and two annotations of one id for the same."""
    content = content_of()
    for annotation, annotation_id in zip(content["annotations"], ids, strict=False):
        annotation["id"] = annotation_id
        del annotation["iscrowd"]
    frames = frames_of()
    coco(content)
    assert score(tmp_path / "out", frames)["bbox"]["AP"] == pytest.approx(100)


def test_annotations_of_nothing_that_was_detected_are_an_error(coco, tmp_path):
    frames = frames_of()
    labels = [{key: LABEL[key] for key in LABEL if key != "bbox"}]
    file = coco(spoil(annotations=labels))
    with pytest.raises(AnnotationError, match=f"{file} have no entries for the detected bbox"):
        score(tmp_path / "out", frames)


def test_annotations_of_unknown_images_are_told(coco, tmp_path, caplog):
    frames = frames_of()
    content = content_of()
    content["annotations"][0]["image_id"] = "0"
    file = coco(content)
    score(tmp_path / "out", frames)
    assert f"1 of 80 annotations of {file} belong to no image in it, such as image_id '0'" in (
        caplog.text
    )


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
    assert "annotations.json have bbox only, so" in caplog.text


VALUES = st.none() | st.booleans() | st.integers(-2, 200) | st.text(max_size=3) | st.just([])


def places(value, path=()):
    """Paths of everything in a json value."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_is_named_or_harmless(coco, tmp_path, data):
    content = content_of(videos=1, frames=2)
    frames = [{"image_id": image_id, "file_name": f"{image_id}.png"} for image_id in range(2)]
    for _ in range(data.draw(st.integers(1, 3))):
        *path, key = data.draw(st.sampled_from(list(places(content))))
        parent = content
        for step in path:
            parent = parent[step]
        if data.draw(st.booleans()):
            del parent[key]
        else:
            parent[key] = copy.deepcopy(data.draw(VALUES))
        if not content:
            break
    file = coco(content)
    try:
        scores = score(tmp_path / "out", frames)
    except AnnotationError as error:
        assert str(file) in str(error) or NAME in str(error)
    else:
        # Without annotations, as of a test split, detections are written and nothing is scored.
        assert ("bbox" in scores) == ("annotations" in content)
        ap = scores["bbox"]["AP"] if scores else np.nan
        assert np.isnan(ap) or 0 <= ap <= 100 + 1e-6


@pytest.fixture
def davis(tmp_path):
    """Two sequences of three frames in which an object moves until it is out of sight."""
    for sequence in ("bear", "bus"):
        for kind in ("JPEGImages", "Annotations"):
            (tmp_path / kind / "480p" / sequence).mkdir(parents=True)
        for number in range(3):
            name = f"480p/{sequence}/{number:05d}"
            write_frame(tmp_path / "JPEGImages" / f"{name}.jpg", number)
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            # A triangle: its mask is not its box.
            mask[10:50, 20 * number : 20 * number + 40] = np.tri(40) * (number < 2)
            Image.fromarray(255 * mask).save(tmp_path / "Annotations" / f"{name}.png")
    (tmp_path / "ImageSets" / "2016").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2016" / "val.txt").write_text("bear\nbus\n")
    register_davis(NAME, str(tmp_path), "val")
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.mark.parametrize("num_frames", [3, 2])
def test_masks_and_ids_that_are_names(davis, tmp_path, num_frames):
    labels = {frame["image_id"]: frame["annotations"] for frame in DatasetCatalog.get(NAME)}
    assert set(labels) == {f"{name}_{n:05d}" for name in ("bear", "bus") for n in range(3)}

    def perfect(frame):
        instances = Instances((HEIGHT, WIDTH))
        masks = [mask_util.decode(label["segmentation"]) for label in labels[frame["image_id"]]]
        instances.pred_masks = torch.tensor(np.array(masks)).bool().reshape(-1, HEIGHT, WIDTH)
        instances.pred_boxes = Boxes(
            torch.tensor(
                [
                    BoxMode.convert(label["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
                    for label in labels[frame["image_id"]]
                ]
            ).reshape(-1, 4)
        )
        instances.scores = torch.ones(len(masks))
        instances.pred_classes = torch.zeros(len(masks), dtype=torch.int64)
        return {"instances": instances}

    def boxes_as_masks(frame):
        output = perfect(frame)["instances"]
        for mask, (x0, y0, x1, y1) in zip(
            output.pred_masks, output.pred_boxes.tensor.int().tolist(), strict=True
        ):
            mask[y0:y1, x0:x1] = True
        return {"instances": output}

    frames = frames_of(num_frames=num_frames)
    assert len(frames) == 2 * num_frames
    results = score(tmp_path / "out", frames, perfect)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)
    # A triangle fills about half of its box.
    results = score(tmp_path / "out", frames, boxes_as_masks)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP50"] == pytest.approx(100) and results["segm"]["AP75"] == 0
    # One sequence is missed.
    results = score(
        tmp_path / "out",
        frames,
        lambda frame: perfect(frame if frame["video_id"] == "bus" else {"image_id": "bear_00002"}),
    )
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(50, abs=1)


@pytest.fixture
def converted():
    """A data set in Detectron2's format, whose content a test sets."""
    frames = []
    DatasetCatalog.register(NAME, lambda: frames)
    MetadataCatalog.get(NAME).set(evaluator_type="coco", thing_classes=["car"])

    def fill(boxes, **more):
        frames[:] = [
            {
                "file_name": f"{image_id}.png",
                "image_id": image_id,
                "height": HEIGHT,
                "width": WIDTH,
                "video_id": "a",
                **more,
                "annotations": [
                    {"bbox": box(value), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
                ],
            }
            for image_id, value in enumerate(boxes)
        ]
        return frames

    yield fill
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_annotations_of_an_earlier_run_are_not_those_of_this_one(converted, tmp_path):
    """Neither old files on disk nor those that Detectron2 remembers are used."""
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
