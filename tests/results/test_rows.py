"""Rows of results: what a row is, by the kind of output."""

import json
import sys

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances, RotatedBoxes
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from blockcopy_d2.results import ResultsFile, RowMaker

SIZE = (12, 20)


def masks(*boxes):
    found = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(found, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return found


def found(*boxes, scores=None, **fields):
    tensor = torch.tensor(boxes, dtype=torch.float32).view(len(boxes), -1)
    boxes = RotatedBoxes(tensor) if tensor.shape[1] == 5 else Boxes(tensor)
    scores = torch.tensor(scores or [0.9] * len(boxes))
    classes = torch.arange(len(boxes))
    return Instances(SIZE, pred_boxes=boxes, scores=scores, pred_classes=classes, **fields)


def decoded(row):
    return torch.from_numpy(mask_util.decode(row["segmentation"])).bool()


def test_a_row_is_an_instance():
    boxes = [(1, 2, 5, 8), (3, 4, 20, 12)]
    instances = found(*boxes, scores=[0.75, 0.25], pred_masks=masks(*boxes))
    metadata = Metadata(thing_dataset_id_to_contiguous_id={18: 1, 7: 0}, thing_classes=["b", "c"])
    make = RowMaker(metadata)
    first, second = make({"instances": instances}, 3, 0.125)
    assert (first["image_id"], first["time"], first["category_id"]) == (3, 0.125, 7)
    assert (second["bbox"], second["score"], second["category_id"]) == ([3, 4, 17, 8], 0.25, 18)
    assert torch.equal(decoded(first), instances.pred_masks[0])
    assert make.categories.names["things"] == {7: "b", 18: "c"}
    assert len(RowMaker(threshold=0.5)({"instances": instances}, 0)) == 1
    live = make({"instances": instances}, 3, 0.125, captured=1700000000.5)
    assert "captured" not in first and live[0] == {**first, "captured": 1700000000.5}


def test_keypoints_are_counted_in_pixels_and_the_output_stays():
    points = torch.tensor([[[2.5, 3.5, 0.8], [4.5, 5.5, 0.4]]])
    instances = found((1, 2, 5, 8), pred_keypoints=points.clone())
    (row,) = RowMaker()({"instances": instances}, 0)
    assert row["keypoints"] == pytest.approx([2, 3, 0.8, 4, 5, 0.4], abs=1e-3)
    assert torch.equal(instances.pred_keypoints, points)


def test_rotated_boxes_keep_their_angle():
    (row,) = RowMaker()({"instances": found((6, 5, 4, 2, 30))}, 0)
    assert row["bbox"] == [6, 5, 4, 2, 30]


def test_proposals_have_no_class():
    proposals = Instances(
        SIZE, proposal_boxes=Boxes(torch.tensor([[1.0, 2, 5, 8]])), objectness_logits=torch.zeros(1)
    )
    (row,) = RowMaker()({"proposals": proposals}, 0)
    assert row["bbox"] == [1, 2, 4, 6] and row["score"] == 0.5 and "category_id" not in row


def test_a_row_of_a_semantic_model_is_a_class_with_its_pixels():
    labels = masks((0, 0, 20, 6))[0].long() * 2
    scores = torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1).float()
    metadata = Metadata(stuff_dataset_id_to_contiguous_id={92: 0, 95: 2})
    rows = RowMaker(metadata, threshold=0.9)({"sem_seg": scores}, 5)
    assert [row["category_id"] for row in rows] == [92, 95]
    assert all("score" not in row and "bbox" not in row for row in rows)
    assert torch.equal(decoded(rows[1]), labels == 2)


def test_a_row_of_a_panoptic_model_is_a_segment():
    thing, stuff = masks((1, 2, 5, 8), (6, 0, 20, 12))
    segments = [
        {"id": 1, "isthing": True, "category_id": 0, "score": 0.9, "instance_id": 0},
        {"id": 2, "isthing": False, "category_id": 0, "area": 168},
    ]
    output = {"panoptic_seg": (thing.int() + 2 * stuff.int(), segments), "instances": None}
    metadata = Metadata(
        thing_dataset_id_to_contiguous_id={18: 0}, stuff_dataset_id_to_contiguous_id={92: 0}
    )
    of_thing, of_stuff = RowMaker(metadata)(output, 0)
    assert (of_thing["category_id"], of_thing["isthing"], of_thing["score"]) == (18, True, 0.9)
    assert of_thing["bbox"] == [1, 2, 4, 6] and torch.equal(decoded(of_thing), thing)
    assert (of_stuff["category_id"], of_stuff["isthing"]) == (92, False)
    assert torch.equal(decoded(of_stuff), stuff)


@pytest.mark.parametrize(
    "output, message",
    [
        ({"flow": 1}, "output has flow has no rows"),
        ({"panoptic_seg": (torch.zeros(SIZE), None)}, "no list of its segments"),
        ({"instances": found((1, 2, float("nan"), 8))}, "not finite"),
    ],
)
def test_what_has_no_rows_says_so(output, message):
    with pytest.raises(ValueError, match=message):
        RowMaker()(output, 0)


def write(path, frames):
    with ResultsFile(path) as file:
        for index, rows in enumerate(frames):
            file.add([{"image_id": index, "time": index / 10, **row} for row in rows], index / 10)


def test_coco_reads_its_format(tmp_path):
    rows = RowMaker()({"instances": found((1, 2, 5, 8), pred_masks=masks((1, 2, 5, 8)))}, 0)
    write(tmp_path / "a.json", [rows, [], rows])
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": i, "height": 12, "width": 20} for i in range(3)],
        "categories": [{"id": 0}],
    }
    dataset.createIndex()
    found_again = dataset.loadRes(str(tmp_path / "a.json"))
    assert [x["time"] for x in found_again.loadAnns(found_again.getAnnIds())] == [0, 0.2]
    mask = found_again.annToMask(found_again.loadAnns(1)[0])
    assert torch.equal(torch.from_numpy(mask).bool(), masks((1, 2, 5, 8))[0])


def test_a_video_without_rows_is_an_empty_list(tmp_path):
    write(tmp_path / "a.json", [[], []])
    assert json.loads((tmp_path / "a.json").read_text()) == []


def test_tracks_of_youtube_vis(tmp_path):
    row = {"bbox": [1, 2, 4, 6], "segmentation": {"size": [12, 20], "counts": "x"}}
    frames = [
        [{**row, "category_id": 3, "score": 0.5, "track_id": 7}, {**row, "category_id": 1}],
        [],
        [{**row, "category_id": 4, "score": 0.9, "track_id": 7}],
    ]
    write(tmp_path / "a.ytvis.json", frames)
    (track,) = json.loads((tmp_path / "a.ytvis.json").read_text())
    assert (track["track_id"], track["category_id"], track["score"]) == (7, 4, 0.7)
    assert track["bboxes"] == [[1, 2, 4, 6], None, [1, 2, 4, 6]]
    assert track["segmentations"][0]["counts"] == "x" and track["segmentations"][1] is None
    assert track["times"] == [0, 0.1, 0.2]


def test_parquet_is_a_table(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    instances = found((1, 2, 5, 8), (0, 0, 3, 3), pred_masks=masks((1, 2, 5, 8), (0, 0, 3, 3)))
    write(tmp_path / "a.parquet", [RowMaker()({"instances": instances}, 0), [{"category_id": 2}]])
    table = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    assert table["frame"] == [0, 0, 1] and table["category_id"] == [0, 1, 2]
    assert table["width"] == [4, 3, None] and table["score"][2] is None
    row = {"segmentation": {"size": [12, 20], "counts": table["mask_counts"][0]}}
    assert torch.equal(decoded(row), masks((1, 2, 5, 8))[0])


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"blockcopy-d2\[parquet\]"):
        write(tmp_path / "a.parquet", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.json", "a.ytvis.json"])
def test_an_earlier_file_outlives_a_failure(tmp_path, name):
    (tmp_path / name).write_text("old")
    with pytest.raises(ZeroDivisionError), ResultsFile(tmp_path / name) as file:
        file.add([], 0)
        raise ZeroDivisionError
    assert (tmp_path / name).read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_names_the_file(tmp_path):
    (tmp_path / "a.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="Cannot write the results .*a.json: No space left"):
        write(tmp_path / "a.json", [[{"counts": "x" * 10000}]])


def test_numbers_that_are_no_json_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "a.json", [[{"score": float(np.nan)}]])
