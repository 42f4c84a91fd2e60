import math
import pickle

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances, RotatedBoxes

from blockcopy_d2.evaluation import InstanceAgreement

SIZE = (60, 90)


def make_output(objects, masks=True, size=SIZE):
    """
    Args:
        objects (list[(tuple, float, int)]): box x0, y0, x1, y1, score and class.
    """
    instances = Instances(size)
    boxes = torch.tensor([box for box, _, _ in objects]).reshape(-1, 4)
    instances.pred_boxes = Boxes(boxes.float())
    instances.scores = torch.tensor([score for _, score, _ in objects])
    instances.pred_classes = torch.tensor([category for _, _, category in objects]).long()
    if masks:
        instances.pred_masks = torch.zeros(len(objects), *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(instances.pred_masks, boxes.tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
    return {"instances": instances}


def agreement(frames, **options):
    """Result for pairs (reference objects, objects)."""
    evaluator = InstanceAgreement(**options)
    for reference, output in frames:
        evaluator.process([reference], [output])
    return evaluator.evaluate()["agreement"]


A, B, C = (5, 5, 25, 25), (40, 10, 60, 50), (65, 2, 85, 22)
OBJECTS = [(A, 0.9, 0), (B, 0.8, 3), (C, 0.7, 0)]


@pytest.mark.parametrize("masks", [True, False])
def test_identical_streams_score_100(masks):
    output = make_output(OBJECTS, masks)
    assert agreement([(output, output)] * 3) == {
        "AP": pytest.approx(100),
        "AP50": pytest.approx(100),
    }


@pytest.mark.parametrize("masks", [True, False])
def test_partial_overlap(masks):
    # 20 x 20 boxes shifted by 4: IoU 16 / 24 = 0.667, right at .5, .55, .6, .65, wrong above.
    shifted = make_output([((9, 5, 29, 25), 0.9, 0)], masks)
    result = agreement([(make_output([(A, 0.9, 0)], masks), shifted)])
    assert result == {"AP": pytest.approx(40), "AP50": pytest.approx(100)}


def test_masks_count_not_boxes():
    reference, output = make_output([(A, 0.9, 0)]), make_output([(A, 0.9, 0)])
    output["instances"].pred_masks[:, 10:] = False  # half of it and more
    assert agreement([(reference, output)])["AP50"] == 0


def test_rotated_boxes_count_as_they_lie():
    def output(*box):
        instances = Instances(SIZE, pred_boxes=RotatedBoxes([box]))
        instances.scores, instances.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
        return {"instances": instances}

    lying = output(45, 30, 40, 10, 0)
    assert agreement([(lying, output(45, 30, 10, 40, 90))])["AP"] == pytest.approx(100)
    assert agreement([(output(45, 30, 40, 10, 30), output(45, 30, 10, 40, 120))])["AP"] > 99
    assert agreement([(lying, output(45, 30, 40, 10, 90))])["AP50"] == 0
    # Mirrored ones have the same upright box.
    mirrored = (output(45, 30, 40, 10, 45), output(45, 30, 40, 10, -45))
    assert agreement([mirrored])["AP50"] == 0


def test_missed_wrong_and_empty():
    reference = make_output(OBJECTS)
    assert agreement([(reference, make_output([]))]) == {"AP": 0, "AP50": 0}
    classes_swapped = make_output([(box, score, 3 - c) for box, score, c in OBJECTS])
    assert agreement([(reference, classes_swapped)])["AP"] == 0
    # Class 3 is found, one of two of class 0: recall of 0.5 is 51 of COCO's 101 levels.
    result = agreement([(reference, make_output(OBJECTS[:2]))])
    assert result["AP"] == pytest.approx(100 * (1 + 51 / 101) / 2)


def test_false_positives_cost():
    reference = make_output(OBJECTS)
    extra = make_output(OBJECTS + [((0, 30, 20, 50), 0.95, 0)])
    assert agreement([(reference, extra)])["AP"] < 90
    # Also on a frame where the reference has nothing.
    empty = make_output([])
    assert agreement([(reference, reference), (empty, extra)])["AP"] < 90


def test_reference_instances_below_the_threshold_are_no_ground_truth():
    reference = make_output([(A, 0.9, 0), (B, 0.4, 0)])
    output = make_output([(A, 0.3, 0)])
    assert agreement([(reference, output)])["AP"] == pytest.approx(100)
    assert agreement([(reference, output)], score_threshold=0.3)["AP"] < 60


def test_frames_do_not_mix():
    a, b = make_output([(A, 0.9, 0)]), make_output([(B, 0.9, 0)])
    assert agreement([(a, b), (b, a)])["AP"] == 0


def test_without_reference_instances_there_is_no_score(caplog):
    result = agreement([(make_output([(A, 0.2, 0)]), make_output(OBJECTS))])
    assert all(math.isnan(value) for value in result.values())
    assert "No reference instance has a score of 0.5 or more" in caplog.text


def test_reset_forgets():
    evaluator = InstanceAgreement()
    assert isinstance(evaluator, DatasetEvaluator)
    evaluator.process([make_output(OBJECTS)], [make_output([])])
    evaluator.reset()
    evaluator.process([make_output(OBJECTS)], [make_output(OBJECTS)])
    assert evaluator.evaluate()["agreement"]["AP"] == pytest.approx(100)


def test_it_is_silent(capsys):
    agreement([(make_output(OBJECTS), make_output(OBJECTS))])
    assert capsys.readouterr().out == ""


def test_little_is_kept_of_a_frame():
    size = (1024, 2048)
    outputs = make_output([((x, 300, x + 90, 700), 0.9, 0) for x in range(0, 2000, 100)], size=size)
    evaluator = InstanceAgreement()
    evaluator.process([outputs], [outputs])
    assert len(pickle.dumps(evaluator._frames)) < 32 * 1024


def test_ranks_are_gathered(monkeypatch):
    first, second = InstanceAgreement(), InstanceAgreement()
    first.process([make_output(OBJECTS)], [make_output(OBJECTS)])
    second.process([make_output(OBJECTS)], [make_output([])])
    monkeypatch.setattr(
        "detectron2.utils.comm.gather", lambda frames: [first._frames, second._frames]
    )
    assert first.evaluate()["agreement"]["AP"] == pytest.approx(100 * 51 / 101)
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 1)
    assert second.evaluate() is None


def test_pairs_that_do_not_match_are_refused():
    evaluator = InstanceAgreement()
    with pytest.raises(ValueError, match=r"size \(60, 90\), the output of size \(50, 90\)"):
        evaluator.process([make_output(OBJECTS)], [make_output([], size=(50, 90))])
    with pytest.raises(ValueError, match="must have masks"):
        evaluator.process([make_output(OBJECTS)], [make_output(OBJECTS, masks=False)])
    with pytest.raises(ValueError):
        evaluator.process([make_output(OBJECTS)], [])
