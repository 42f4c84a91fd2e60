"""StaticRCNN has the results of Detectron2's own second stage, on any device."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image

from blockcopy_d2.config import base_config
from blockcopy_d2.engine import load_config
from blockcopy_d2.modeling.fixed_shape import FrameSizes, StaticRCNN
from blockcopy_d2.policy import (
    DetectionMasks,
    instance_block_gain,
    instance_information_gain,
    paint_output,
    rasterize_instances,
)
from blockcopy_d2.resources import config_path
from blockcopy_d2.sparse import num_blocks
from tests.modeling.fixed_shape.models import assert_agree, run_detectron2, small_rcnn
from tests.networks.mgan.small import small_mgan

ROOT = Path(__file__).resolve().parents[3]
CLIP_FRAMES = ROOT / "datasets/streetclips/leftImg8bit/val"
WEIGHTS = ROOT / "weights/maskrcnn_R_18_FPN_streetclips.pth"

VARIANTS = [
    {},
    {"agnostic": True},
    {"masks": False},
    {"pyramid": False},
    {"num_conv": 1, "num_classes": 12},
    {"cascade": True},
    {"res5": True, "opts": ("MODEL.RPN.POST_NMS_TOPK_TEST", 40)},
    {"keypoints": True},
    {"keypoints": True, "opts": ("MODEL.MASK_ON", True)},
    {"cascade": True, "masks": False, "opts": ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)},
    {"opts": ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign")},
    {"opts": ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "TEST.DETECTIONS_PER_IMAGE", 300)},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_results_are_those_of_detectron2(options):
    model = small_rcnn(**options)
    frame = run_detectron2(model, (150, 251), num_images=2, output_size=(300, 410))
    detections = StaticRCNN(model)(*frame.inputs)
    assert detections.count.dtype == torch.int32
    for got, want in zip(detections.to_instances(), frame.instances, strict=True):
        assert_agree(got, want)


@pytest.mark.parametrize("attended", ["regions", "convolved"])
def test_results_are_those_of_mgan(attended):
    model = small_mgan("MODEL.BLOCKCOPY.MGAN.ATTENDED", attended, "TEST.DETECTIONS_PER_IMAGE", 9)
    frame = run_detectron2(model, (150, 251), num_images=2, output_size=(300, 410))
    detections = StaticRCNN(model.requires_grad_(False))(*frame.inputs)
    for got, want in zip(detections.to_instances(), frame.instances, strict=True):
        assert_agree(got, want)


def test_boxes_of_a_cascade_that_are_not_finite_are_dropped():
    """Detectron2 raises an error."""
    model = small_rcnn(cascade=True)
    frame = run_detectron2(model, (150, 250))
    for name in model.roi_heads.box_in_features:
        frame.features[name][:, :, :2, :9] = torch.nan
    got = StaticRCNN(model)(*frame.inputs).to_instances()[0]
    assert 3 < len(got) and torch.isfinite(got.pred_boxes.tensor).all()
    assert torch.isfinite(got.scores).all() and not got.scores.equal(frame.instances[0].scores)


@pytest.mark.parametrize(
    "dtype, options",
    [
        (torch.float16, {}),
        (torch.bfloat16, {}),
        (torch.float16, {"keypoints": True}),
        (torch.float16, {"cascade": True, "masks": False}),
        pytest.param(
            torch.float16,
            {"res5": True, "opts": ("MODEL.RPN.POST_NMS_TOPK_TEST", 40)},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_half_precision_is_near_detectron2(dtype, options):
    model = small_rcnn(**options)
    frame = run_detectron2(model, (410, 730))
    features = {name: x.to(dtype) for name, x in frame.features.items()}
    maps = ([x.to(dtype) for x in maps] for maps in (frame.logits, frame.deltas))
    got = StaticRCNN(model)(features, *maps, frame.sizes).to_instances()[0]
    assert_agree(got, frame.instances[0], precise=False)


def test_small_proposals_are_dropped_as_in_detectron2():
    model = small_rcnn()
    model.proposal_generator.min_box_size = 80
    frame = run_detectron2(model, (150, 250))
    assert 10 < len(frame.proposals[0]) < 200
    assert_agree(StaticRCNN(model)(*frame.inputs).to_instances()[0], frame.instances[0])


def test_levels_with_fewer_anchors_than_asked_for():
    model = small_rcnn(opts=("MODEL.RPN.PRE_NMS_TOPK_TEST", 5000))
    model.proposal_generator.post_nms_topk[False] = 3000
    frame = run_detectron2(model, (64, 96))
    assert_agree(StaticRCNN(model)(*frame.inputs).to_instances()[0], frame.instances[0])


def test_what_is_not_finite_is_dropped_as_in_detectron2():
    model = small_rcnn()
    names = model.roi_heads.box_in_features
    frame = run_detectron2(model, (150, 250))
    for name in names:
        frame.features[name][:, :, :2, :9] = torch.nan
    rpn = model.proposal_generator
    with torch.no_grad():
        logits, deltas = rpn.rpn_head([frame.features[name] for name in rpn.in_features])
    assert not torch.isfinite(logits[0]).all()
    broken = run_detectron2(model, (150, 250), features=frame.features)
    assert len(broken.instances[0]) > 0
    got = StaticRCNN(model)(*broken.inputs).to_instances()[0]
    assert_agree(got, broken.instances[0])


def test_no_detection_at_all():
    model = small_rcnn()
    model.roi_heads.box_predictor.test_score_thresh = 1.1
    frame = run_detectron2(model, (150, 250))
    detections = StaticRCNN(model)(*frame.inputs)
    assert detections.count.tolist() == [0]
    assert not detections.policy_masks.any() and not detections.scores.any()
    got = detections.to_instances()[0]
    assert len(got) == 0 and got.pred_masks.shape == (0, 150, 250)
    model = small_rcnn(keypoints=True)
    model.roi_heads.box_predictor.test_score_thresh = 1.1
    frame = run_detectron2(model, (64, 96))
    got = StaticRCNN(model)(*frame.inputs).to_instances()[0]
    assert got.pred_keypoints.shape == (0, 4, 3) and got.pred_keypoint_heatmaps.shape[:2] == (0, 4)


def test_too_few_candidates_lose_the_lowest_scores_only():
    model = small_rcnn()
    frame = run_detectron2(model, (150, 250))
    everything = StaticRCNN(model, max_candidates=10**6)(*frame.inputs)
    for number, some_are_lost in ((2048, False), (40, False), (15, True)):
        limited = StaticRCNN(model, max_candidates=number)(*frame.inputs)
        count = limited.count.item()
        assert (count < everything.count.item()) == some_are_lost
        assert limited.scores[:, :count].equal(everything.scores[:, :count])
        assert limited.boxes[:, :count].equal(everything.boxes[:, :count])


@pytest.mark.parametrize("masks", [True, False])
def test_the_policy_sees_what_it_sees_of_instances(masks):
    model = small_rcnn(masks=masks)
    seen, expected = [], []
    for seed in (0, 1):
        frame = run_detectron2(model, (150, 251), output_size=(300, 410), seed=seed)
        sizes = frame.sizes
        # A padding of 5 slots, or of 300.
        detections = StaticRCNN(model)(*frame.inputs)
        instances = detections.to_instances()[0]
        sampled = rasterize_instances(
            instances,
            image_size=sizes.image_size,
            canvas_size=sizes.canvas_size,
            grid_shape=sizes.grid_shape,
            pixels_per_block=sizes.pixels_per_block,
        )
        assert detections.of_policy().masks[: len(instances)].equal(sampled)
        boxes = None if masks else instances.pred_boxes.tensor
        expected.append(
            DetectionMasks(sampled, instances.scores, instances.pred_classes, boxes, 16)
        )
        seen.append(pad(detections.of_policy(), 7))
    assert_padding_is_neutral(seen, expected, frame.sizes.grid_shape)


def pad(seen, number):
    """The same detections and empty slots after them."""

    def zeros_after(x):
        return None if x is None else torch.cat([x, x.new_zeros(number, *x.shape[1:])])

    fields = map(zeros_after, (seen.masks, seen.scores, seen.classes, seen.boxes))
    return DetectionMasks(*fields, seen.pixels_per_block)


def assert_padding_is_neutral(padded, exact, grid_shape):
    assert len(padded[0]) > len(exact[0]) > 0
    for a, b in zip(padded, exact):
        painted = [paint_output(x.masks, x.scores, x.classes, 3) for x in (a, b)]
        assert painted[0].equal(painted[1]) and painted[0].any()
        assert a.areas[: len(b)].equal(b.areas) and not a.areas[len(b) :].any()
        assert not a.touched_blocks[len(b) :].any()
    gains = [instance_information_gain(*pair) for pair in (padded, exact)]
    assert gains[0].equal(gains[1]) and gains[0].any()
    gains = [instance_block_gain(*pair, grid_shape) for pair in (padded, exact)]
    assert gains[0].equal(gains[1]) and gains[0].any()


def test_a_frame_without_detections_before_or_after_one_with():
    model = small_rcnn()
    frame = run_detectron2(model, (150, 250))
    some = StaticRCNN(model)(*frame.inputs).of_policy()
    none = DetectionMasks(*(x[:0] for x in (some.masks, some.scores, some.classes)), None, 16)
    padded = pad(none, 20)
    grid_shape = frame.sizes.grid_shape
    for pair, exact in (((some, padded), (some, none)), ((padded, some), (none, some))):
        gain = instance_block_gain(*pair, grid_shape)
        assert gain.equal(instance_block_gain(*exact, grid_shape)) and gain.any()


def test_results_outlive_the_next_frame():
    model = small_rcnn()
    heads = StaticRCNN(model)
    detections = heads(*run_detectron2(model, (150, 250)).inputs)
    before = detections.to_instances()[0]
    again = detections.to_instances()[0]
    for x in (detections.boxes, detections.scores, detections.masks, detections.classes):
        x.zero_()
    assert before.pred_boxes.tensor.equal(again.pred_boxes.tensor)
    assert before.scores.min() > 0 and before.pred_masks.equal(again.pred_masks)


def test_model_is_left_as_it_was():
    model = small_rcnn()
    before = {key: (x.clone(), x.stride()) for key, x in model.state_dict().items()}
    frame = run_detectron2(model, (150, 250))
    StaticRCNN(model)(*frame.inputs)
    after = model.state_dict()
    assert before.keys() == after.keys()
    for key, (x, stride) in before.items():
        assert after[key].equal(x) and after[key].stride() == stride


@pytest.mark.parametrize(
    "config",
    [
        "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
        "COCO-Detection/rpn_R_50_FPN_1x.yaml",
        "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml",
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    ],
)
def test_other_heads_are_refused(config):
    cfg = model_zoo.get_config(config)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 50])
    model = build_model(cfg)
    assert not StaticRCNN.supports(model)
    with pytest.raises(ValueError, match="standard heads"):
        StaticRCNN(model)


@pytest.mark.parametrize("part", ["box_head", "box_predictor", "keypoint_head"])
def test_subclasses_may_compute_something_else(part, monkeypatch):
    model = small_rcnn(keypoints=True)
    assert StaticRCNN.supports(model)
    for module in (getattr(model.roi_heads, part), model.roi_heads):
        monkeypatch.setattr(module, "__class__", type("Other", (type(module),), {}))
        assert not StaticRCNN.supports(model)
        monkeypatch.undo()


@pytest.mark.skipif(
    not (WEIGHTS.exists() and CLIP_FRAMES.exists()), reason="needs StreetClips and its weights"
)
def test_a_street_frame():
    cfg = base_config(load_config(config_path("StreetClips/mask_rcnn_R_18_FPN.yaml")))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(str(WEIGHTS))
    path = min(CLIP_FRAMES.rglob("*_leftImg8bit.png"))
    image = np.asarray(Image.open(path).convert("RGB"))[:, :, ::-1].transpose(2, 0, 1)
    image = torch.from_numpy(image.copy())
    inputs = [{"image": image, "height": 1024, "width": 2048}]
    with torch.no_grad():
        want: Instances = model(inputs)[0]["instances"]
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        rpn = model.proposal_generator
        logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
    canvas_size = tuple(images.tensor.shape[-2:])
    sizes = FrameSizes(
        image_size=images.image_sizes[0],
        canvas_size=canvas_size,
        output_size=(1024, 2048),
        grid_shape=num_blocks(128, canvas_size),
        pixels_per_block=32,
    )
    got = StaticRCNN(model)(features, logits, deltas, sizes).to_instances()[0]
    assert_agree(got, want)
