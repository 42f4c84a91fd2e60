"""StaticRetinaNet and StaticFCOS have the results of Detectron2's own detectors, on any device."""

import copy
import functools

import pytest
import torch
from detectron2.modeling import RetinaNet

from blockcopy_d2.modeling.fixed_shape import StaticFCOS, StaticRetinaNet, find_static_heads
from blockcopy_d2.policy import rasterize_instances
from tests.modeling.fixed_shape.models import (
    assert_agree,
    run_dense_detector,
    small_dense_detector,
)

KINDS = [False, True]
small = functools.cache(small_dense_detector)


@pytest.fixture(params=KINDS, ids=["retinanet", "fcos"])
def model(request):
    return small(centerness=request.param)


def heads_of(model):
    kind = find_static_heads(model)
    assert kind is (StaticRetinaNet if isinstance(model, RetinaNet) else StaticFCOS)
    return kind(model)


@pytest.mark.parametrize("output_size", [None, (300, 410), (70, 90)])
def test_results_are_those_of_detectron2(model, output_size):
    inputs, expected = run_dense_detector(model, (150, 251), num_images=2, output_size=output_size)
    detections = heads_of(model)(*inputs)
    assert detections.count.dtype == torch.int32
    for got, want in zip(detections.to_instances(), expected, strict=True):
        assert list(got.get_fields()) == list(want.get_fields())
        assert_agree(got, want)


@pytest.mark.parametrize("topk", [7, 800])
def test_levels_with_more_or_fewer_candidates_than_asked_for(model, topk, monkeypatch):
    monkeypatch.setattr(model, "test_topk_candidates", topk)
    inputs, (want,) = run_dense_detector(model, (64, 96))
    assert_agree(heads_of(model)(*inputs).to_instances()[0], want)


def test_half_precision_is_near_detectron2(model):
    inputs, (want,) = run_dense_detector(model, (410, 730))
    *outputs, sizes = inputs
    outputs = [[x.half() for x in maps] for maps in outputs]
    got = heads_of(model)(*outputs, sizes).to_instances()[0]
    assert_agree(got, want, precise=False)


def test_logits_that_are_not_finite(model):
    (logits, *others, _), _ = run_dense_detector(model, (150, 250))
    logits[0][:, :3, :5] = torch.nan
    logits[1][:, 1, 0, 0] = torch.inf
    for maps in others[1:]:
        maps[0][:, :, 9] = torch.nan
    inputs, (want,) = run_dense_detector(model, (150, 250), outputs=(logits, *others))
    got = heads_of(model)(*inputs).to_instances()[0]
    assert_agree(got, want)
    assert got.scores[0] > 0.8 and torch.isfinite(got.scores).all()


def test_boxes_that_are_not_finite_are_no_candidates(model):
    """Detectron2 raises an error."""
    (logits, deltas, *others, _), _ = run_dense_detector(model, (150, 250))
    broken = copy.deepcopy(deltas)
    without = copy.deepcopy(logits)
    for value, row in ((torch.nan, 4), (torch.inf, 9)):
        broken[0][:, :2, row] = value
        # The first of the anchors of these pixels.
        without[0][:, : model.num_classes, row] = -torch.inf
    inputs, (want,) = run_dense_detector(model, (150, 250), outputs=(without, deltas, *others))
    got = heads_of(model)(logits, broken, *others, inputs[-1]).to_instances()[0]
    assert_agree(got, want)


def test_equal_scores(model):
    """All pairs of a score are there, in some order, if there is place."""
    (logits, deltas, *others, _), _ = run_dense_detector(model, (64, 96))
    deltas = [torch.full_like(x, 0.5) for x in deltas]
    others = [[torch.ones_like(x) for x in maps] for maps in others]
    logits = [torch.full_like(x, -9.0) for x in logits]
    for place in ((0, 0, 0), (0, 0, 6), (2, 0, 6), (1, 5, 11), (0, 5, 4)):
        logits[0][0][place] = 2
    for place in ((1, 1, 3), (1, 3, 0)):
        logits[1][0][place] = 2
    inputs, (want,) = run_dense_detector(model, (64, 96), outputs=(logits, deltas, *others))
    got = heads_of(model)(*inputs).to_instances()[0]
    assert len(want) == 7 and want.scores.unique().numel() == 1
    rows = [sorted(zip(x.pred_classes.tolist(), x.pred_boxes.tensor.tolist())) for x in (got, want)]
    assert rows[0] == rows[1]


def test_no_detection_at_all(model, monkeypatch):
    monkeypatch.setattr(model, "test_score_thresh", 1.1)
    inputs, (want,) = run_dense_detector(model, (64, 96))
    detections = heads_of(model)(*inputs)
    assert detections.count.tolist() == [0] and len(want) == 0
    assert not detections.policy_masks.any() and not detections.scores.any()
    assert len(detections.to_instances()[0]) == 0


def test_the_policy_sees_what_it_sees_of_instances(model):
    inputs, _ = run_dense_detector(model, (150, 251), output_size=(300, 410))
    detections, sizes = heads_of(model)(*inputs), inputs[-1]
    instances = detections.to_instances()[0]
    seen = detections.of_policy()
    sampled = rasterize_instances(
        instances,
        image_size=sizes.image_size,
        canvas_size=sizes.canvas_size,
        grid_shape=sizes.grid_shape,
        pixels_per_block=sizes.pixels_per_block,
    )
    assert seen.masks[: len(instances)].equal(sampled) and sampled.any()
    assert seen.boxes[: len(instances)].equal(instances.pred_boxes.tensor)


def test_other_detectors_are_refused(model, monkeypatch):
    class Other(type(model)):
        pass

    for name, value in (("max_detections_per_image", -1), ("test_topk_candidates", 0)):
        monkeypatch.setattr(model, name, value)
        assert find_static_heads(model) is None
        monkeypatch.undo()
    assert find_static_heads(model) is not None
    monkeypatch.setattr(model, "__class__", Other)
    assert find_static_heads(model) is None
