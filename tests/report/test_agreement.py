import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from blockcopy_d2.report.agreement import InstanceMeasure, SemanticMeasure, build_measure


def detections(boxes, scores):
    instances = Instances((50, 50))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.zeros(len(scores), dtype=torch.int64)
    return {"instances": instances}


def labels(classes):
    classes = torch.tensor(classes)
    return {"sem_seg": torch.nn.functional.one_hot(classes, 3).permute(2, 0, 1).float()}


def test_instances():
    two = detections([[0, 0, 10, 10], [20, 20, 40, 40]], [0.9, 0.8])
    one = detections([[0, 0, 10, 10]], [0.9])
    nothing = detections([], [])
    measure = build_measure(two, 0.5)
    assert isinstance(measure, InstanceMeasure)
    assert measure.frame_score(two, two) == pytest.approx(100)
    assert 0 < measure.frame_score(two, one) < 60
    assert math.isnan(measure.frame_score(nothing, one))
    assert math.isnan(measure.scores()["AP50"])
    measure.add(nothing, nothing)
    measure.add(two, two)
    assert measure.scores() == pytest.approx({"AP50": 100, "AP": 100})


def test_pixels():
    dense, other = labels([[0, 0], [1, 2]]), labels([[0, 1], [1, 2]])
    measure = build_measure(dense, 0.5)
    assert isinstance(measure, SemanticMeasure)
    assert math.isnan(measure.scores()["mIoU"])
    assert measure.frame_score(dense, dense) == 100
    # IoU 1/2 of class 0, 1/2 of class 1, 1 of class 2.
    assert measure.frame_score(dense, other) == pytest.approx(200 / 3)
    measure.add(dense, other)
    measure.add(dense, dense)
    assert measure.scores()["pixel accuracy"] == pytest.approx(100 * 7 / 8)
