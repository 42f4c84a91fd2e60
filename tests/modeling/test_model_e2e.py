"""
Inputs that are hard for a detector, end to end: an accelerated model has the results of
Detectron2's own, for still images and for the first frames of a stream.
"""

import copy

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances

import blockcopy_d2
from tests.engine.test_acceleration import build_stock

FAMILIES = [
    "Mask R-CNN",
    "Mask R-CNN C4",
    "Keypoint R-CNN",
    "RetinaNet",
    "lazy FCOS",
    "PanopticFPN",
    "SemanticSegmentor",
]
WITH_REGIONS = ["Mask R-CNN", "Mask R-CNN C4", "Keypoint R-CNN", "PanopticFPN"]
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def pair():
    """Detectron2's model of a family, and an accelerated copy; built once."""
    built = {}

    def pair(family):
        if family not in built:
            stock = build_stock(family).requires_grad_(False)
            model = blockcopy_d2.accelerate(copy.deepcopy(stock), block_size=32, policy="AllBlocks")
            built[family] = stock, model
        return built[family]

    return pair


def pixels(*sizes):
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(3, *size, generator=generator).mul_(255) for size in sizes]


def assert_same(expected, found):
    assert expected.keys() == found.keys()
    if "sem_seg" in expected:
        torch.testing.assert_close(
            found["sem_seg"], expected["sem_seg"], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
        )
    if "instances" in expected:
        assert_same_instances(expected["instances"], found["instances"])


def assert_same_instances(expected, found):
    assert len(expected) == len(found) and expected.image_size == found.image_size
    assert expected.get_fields().keys() == found.get_fields().keys()
    for name, value in expected.get_fields().items():
        value, other = (getattr(x, "tensor", x) for x in (value, found.get(name)))
        if value.dtype == torch.bool:
            assert value.shape == other.shape
            assert value.numel() == 0 or (value == other).float().mean() >= 1 - TOLERANCE
        else:
            scale = 1 + (value.float().abs().max().item() if value.numel() else 0)
            torch.testing.assert_close(other, value, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_different_sizes_in_a_batch(family, pair):
    stock, model = pair(family)
    inputs = [{"image": image} for image in pixels((80, 100), (80, 99))]
    for expected, found in zip(stock(inputs), model(inputs), strict=True):
        assert_same(expected, found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "size",
    [(1, 40), *(pytest.param(x, marks=pytest.mark.slow) for x in ((70, 3), (20, 500)))],
    ids=str,
)
def test_tiny_and_long_images(family, size, pair):
    stock, model = pair(family)
    (image,) = pixels(size)
    (expected,) = stock([{"image": image}])
    assert_same(expected, model([{"image": image}])[0])
    for index in range(2):
        inputs = {"image": image, "video_id": str(size), "frame_index": index}
        assert_same(expected, model([inputs])[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_image_for_a_huge_output(family, pair):
    stock, model = pair(family)
    (image,) = pixels((40, 60))
    inputs = {"image": image, "height": 400, "width": 600}
    (expected,) = stock([inputs])
    assert_same(expected, model([inputs])[0])
    assert_same(expected, model([{**inputs, "video_id": "huge", "frame_index": 0}])[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e15], ids=str)
def test_images_of_one_value(family, value, pair):
    """Nothing is found in a frame that is not finite, and the next one is right again."""
    stock, model = pair(family)
    (image,) = pixels((64, 96))
    spoiled = torch.full_like(image, value)
    (expected,) = stock([{"image": spoiled}])
    assert_same(expected, model([{"image": spoiled}])[0])
    (after,) = stock([{"image": image}])
    for index, (x, output) in enumerate([(spoiled, expected), (image, after)]):
        inputs = {"image": x, "video_id": f"of {value}", "frame_index": index}
        assert_same(output, model([inputs])[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_detection_at_all(family, pair):
    stock, model = pair(family)
    inputs = {"image": pixels((64, 96))[0]}
    owners = [x.roi_heads.box_predictor if hasattr(x, "roi_heads") else x for x in (stock, model)]
    before = getattr(owners[0], "test_score_thresh", None)
    try:
        for owner in owners:
            owner.test_score_thresh = 2.0
        (expected,) = stock([inputs])
        assert len(expected.get("instances", ())) == 0
        assert_same(expected, model([inputs])[0])
        for index in range(3):
            frame = {**inputs, "video_id": "nothing", "frame_index": index}
            assert_same(expected, model([frame])[0])
    finally:
        for owner in owners:
            owner.test_score_thresh = before


def given_detections(*boxes, size=(64, 96)):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes).view(-1, 4))
    instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    instances.scores = torch.ones(len(boxes))
    return instances


@pytest.mark.parametrize("family", ["Mask R-CNN", "Mask R-CNN C4", "Keypoint R-CNN"])
def test_inference_with_given_detections(family, pair):
    stock, model = pair(family)
    inputs = [{"image": image, "video_id": "given"} for image in pixels((64, 96), (60, 96))]
    boxes = [(5.0, 6.0, 40.0, 50.0), (0.0, 0.0, 96.0, 64.0)]
    for given in ([boxes, boxes[:1]], [[], boxes], [[], []]):
        for postprocess in (True, False):
            results = [
                m.inference(
                    inputs, [given_detections(*x) for x in given], do_postprocess=postprocess
                )
                for m in (stock, model)
            ]
            for expected, found in zip(*results, strict=True):
                if postprocess:
                    expected, found = expected["instances"], found["instances"]
                assert_same_instances(expected, found)
                assert found.has("pred_masks") or found.has("pred_keypoints")
    assert len(model.streams) == 0 or "given" not in model.streams._streams


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("family", WITH_REGIONS)
def test_regions_of_features_that_are_not_finite(family, value, pair):
    stock, model = pair(family)
    images = ImageList(torch.full((1, 3, 64, 96), value), [(60, 90)])
    features = {
        name: torch.full((1, s.channels, -(-64 // s.stride), -(-96 // s.stride)), value)
        for name, s in stock.backbone.output_shape().items()
    }
    proposals, _ = model.proposal_generator(images, features)
    expected, _ = stock.proposal_generator(images, features)
    assert len(proposals[0]) == len(expected[0]) == 0

    given = Instances((60, 90))
    given.proposal_boxes = Boxes(torch.tensor([[10.0, 10.0, 20.0, 20.0]]))
    given.objectness_logits = torch.tensor([1.0])
    for layout in (torch.contiguous_format, torch.channels_last):
        features = {name: x.contiguous(memory_format=layout) for name, x in features.items()}
        (found,), _ = model.roi_heads(images, features, [given])
        assert len(found) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("family", ["RetinaNet", "lazy FCOS"])
def test_predictions_that_are_not_finite(family, value, pair):
    stock, model = pair(family)
    images = ImageList(torch.full((1, 3, 64, 96), value), [(60, 90)])
    features = [
        torch.rand(1, s.channels, -(-64 // s.stride), -(-96 // s.stride))
        for name, s in stock.backbone.output_shape().items()
        if name in model.head_in_features
    ]
    predictions = model.head(features)
    for expected, found in zip(stock.head(features), predictions, strict=True):
        torch.testing.assert_close(found, expected)
    spoiled = [[torch.full_like(x, value) for x in levels] for levels in predictions]
    for m in (stock, model):
        (found,) = m.forward_inference(images, features, spoiled)
        assert not torch.isfinite(found.pred_boxes.tensor).any()
