"""StaticProposalNetwork has the results of Detectron2's ProposalNetwork, on any device."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess

from blockcopy_d2.modeling import ProposalTask
from blockcopy_d2.modeling.fixed_shape import StaticProposalNetwork, find_static_heads
from blockcopy_d2.modeling.running.history import map_tensors
from tests.modeling.fixed_shape.models import images_and_sizes, smooth_features, spread_proposals


@pytest.fixture(scope="module")
def model():
    cfg = model_zoo.get_config("COCO-Detection/rpn_R_50_FPN_1x.yaml")
    cfg.merge_from_list([
        "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
        "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RPN.POST_NMS_TOPK_TEST", 40,
        "MODEL.RPN.PRE_NMS_TOPK_TEST", 100,
    ])  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg).eval().requires_grad_(False)
    spread_proposals(model)
    return model


def run(model, *, size=(150, 251), output_size=None):
    """Arguments of the StaticHeads for two images, and Detectron2's proposals."""
    images, sizes = images_and_sizes(model, size, 2, output_size)
    features = smooth_features(model, 2, sizes.canvas_size, 0)
    rpn = model.proposal_generator
    outputs = rpn.rpn_head([features[name] for name in rpn.in_features])
    proposals, _ = rpn(images, features)
    return (*outputs, sizes), [detector_postprocess(x, *sizes.output_size) for x in proposals]


@pytest.mark.parametrize("output_size", [None, (300, 410), (20, 30)])
def test_results_are_those_of_detectron2(model, output_size):
    assert find_static_heads(model) is StaticProposalNetwork
    inputs, expected = run(model, output_size=output_size)
    for got, want in zip(
        StaticProposalNetwork(model)(*inputs).to_instances(), expected, strict=True
    ):
        assert list(got.get_fields()) == list(want.get_fields())
        assert len(got) == len(want) > 10 and got.image_size == want.image_size
        torch.testing.assert_close(got.objectness_logits, want.objectness_logits)
        close = {"rtol": 1e-4, "atol": 1e-2}
        torch.testing.assert_close(got.proposal_boxes.tensor, want.proposal_boxes.tensor, **close)


def test_the_policy_sees_what_it_sees_of_instances(model, monkeypatch):
    # Most proposals are too small, so that slots stay empty.
    monkeypatch.setattr(model.proposal_generator, "min_box_size", 120)
    inputs, expected = run(model)
    task, sizes = ProposalTask(16), inputs[-1]
    geometry = {
        "image_size": sizes.image_size,
        "canvas_size": sizes.canvas_size,
        "grid_shape": sizes.grid_shape,
    }
    detections = StaticProposalNetwork(model)(*inputs)
    copied = map_tensors(torch.clone, detections)
    batch = task.observe({"proposals": copied.of_policy(slice(None))}, **geometry)
    for n, proposals in enumerate(expected):
        found = detections.of_policy(n)
        assert 3 < len(proposals) < len(found) and batch.scores[n].equal(found.scores)
        want = task.observe({"proposals": proposals}, **geometry)
        torch.testing.assert_close(task.paint(found), task.paint(want))
        torch.testing.assert_close(found.scores[: len(want)], want.scores)
        assert want.scores.min() > 0 and not found.scores[len(want) :].any()
