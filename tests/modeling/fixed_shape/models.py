"""Small detectors that detect a lot, with Detectron2's own results."""

import copy
import math
from dataclasses import dataclass

import torch
from detectron2 import model_zoo
from detectron2.modeling import FCOS, META_ARCH_REGISTRY, RetinaNet, build_model
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, pairwise_iou
from torch.nn import functional as F

from blockcopy_d2.modeling.fixed_shape import FrameSizes
from blockcopy_d2.sparse import num_blocks

BLOCK = 64


def small_rcnn(
    *,
    masks=True,
    pyramid=True,
    agnostic=False,
    cascade=False,
    panoptic=False,
    keypoints=False,
    res5=False,
    num_conv=0,
    num_classes=3,
    opts=(),
    seed=0,
):
    """
    Returns:
        GeneralizedRCNN: random weights, scaled so that scores and boxes differ widely; a
        PanopticFPN if asked for.
    """
    name = "mask_rcnn" if masks else "faster_rcnn"
    folder = "COCO-InstanceSegmentation" if masks else "COCO-Detection"
    kind = "C4" if res5 else "FPN" if pyramid else "DC5"
    config = f"{folder}/{name}_R_50_{kind}_1x.yaml"
    if panoptic:
        config = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
    if keypoints:
        config = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"
    cfg = model_zoo.get_config(config)
    cfg.merge_from_list([
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (16,), "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 4,
        "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18 if pyramid and not res5 else 50,
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
        "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_HEADS.NUM_CLASSES", num_classes,
        "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_BOX_HEAD.NUM_CONV", num_conv,
        "MODEL.ROI_BOX_HEAD.CONV_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5,
        "MODEL.RPN.POST_NMS_TOPK_TEST", 200, "MODEL.RPN.PRE_NMS_TOPK_TEST", 300,
        "TEST.DETECTIONS_PER_IMAGE", 20, *opts,
    ])  # fmt: skip
    if cascade:
        cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    torch.manual_seed(seed)
    model = build_model(cfg).eval().requires_grad_(False)
    spread = {"objectness_logits": 3, "anchor_deltas": 0.5, "cls_score": 8, "bbox_pred": 2}
    for name, module in model.named_modules():
        last = name.rsplit(".")[-1]
        if cascade and last == "bbox_pred":
            # Three stages move a box together.
            spread["bbox_pred"] = 1
        if last in spread:
            # Scales the weights so that outputs vary about as much as asked for.
            torch.nn.init.normal_(
                module.weight, std=spread[last] * module.weight[0].numel() ** -0.5
            )
        if name.endswith("mask_head.predictor"):
            torch.nn.init.normal_(module.weight, std=4)
    return model


SMALL_DENSE_DETECTOR = (
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "MODEL.PIXEL_STD", [58.0] * 3,
    "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RETINANET.NUM_CLASSES", 3,
    "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 200,
    "TEST.DETECTIONS_PER_IMAGE", 20,
)  # fmt: skip


@META_ARCH_REGISTRY.register()
def small_fcos(cfg):
    """
    Returns:
        FCOS: with the features of the RetinaNet of this config, which Detectron2 has no such
        config for.
    """
    like, options = RetinaNet(cfg), cfg.MODEL.RETINANET
    shapes = [like.backbone.output_shape()[name] for name in like.head_in_features]
    head = FCOSHead(
        input_shape=shapes,
        num_classes=like.num_classes,
        conv_dims=[shapes[0].channels] * options.NUM_CONVS,
    )
    return FCOS(
        backbone=like.backbone,
        head=head,
        head_in_features=like.head_in_features,
        num_classes=like.num_classes,
        test_score_thresh=like.test_score_thresh,
        test_topk_candidates=like.test_topk_candidates,
        max_detections_per_image=like.max_detections_per_image,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )


def small_dense_detector(*, centerness=False):
    """
    Args:
        centerness (bool): an FCOS in place of a RetinaNet.

    Returns:
        RetinaNet or FCOS: random weights, see :func:`spread_outputs`.
    """
    config, *opts = SMALL_DENSE_DETECTOR
    cfg = model_zoo.get_config(config)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    if centerness:
        cfg.MODEL.META_ARCHITECTURE = "small_fcos"
    torch.manual_seed(0)
    model = build_model(cfg).eval().requires_grad_(False)
    spread_outputs(model)
    return model


def spread_outputs(model, features=1.0):
    """
    Sets weights of a RetinaNet or FCOS so that scores and boxes differ widely, for features of
    this standard deviation.
    """
    centerness = isinstance(model, FCOS)
    for name, spread in {"cls_score": 3, "bbox_pred": 0.5, "ctrness": 2}.items():
        if hasattr(model.head, name):
            module = getattr(model.head, name)
            torch.nn.init.normal_(
                module.weight, std=spread / features * module.weight[0].numel() ** -0.5
            )
            # An FCOS takes the distances of four sides, which are positive.
            torch.nn.init.constant_(module.bias, 2 if centerness and name == "bbox_pred" else 0)
    for module in model.head.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels == module.in_channels:
            torch.nn.init.kaiming_normal_(module.weight)


@torch.no_grad()
def run_dense_detector(model, image_size, *, num_images=1, output_size=None, outputs=None):
    """
    Runs the head and what follows it in Detectron2.

    Args:
        model (RetinaNet or FCOS):
        image_size (tuple[int, int]): height, width.
        num_images (int):
        output_size (tuple[int, int]): that of the images by default.
        outputs (tuple[list[Tensor]]): outputs of the head; by default those of smooth features.

    Returns:
        tuple[tuple, list[Instances]]: arguments of the StaticHeads, and Detectron2's results.
    """
    images, sizes = images_and_sizes(model, image_size, num_images, output_size)
    features = smooth_features(model, num_images, sizes.canvas_size, 0)
    features = [features[name] for name in model.head_in_features]
    outputs = outputs or tuple(model.head(features))
    # Detectron2 takes the sigmoid in place.
    instances = model.forward_inference(images, features, copy.deepcopy(outputs))
    return (*outputs, sizes), [detector_postprocess(x, *sizes.output_size) for x in instances]


@dataclass
class Frame:
    """Backbone and RPN outputs of a batch, and Detectron2's results from them."""

    features: dict
    logits: list
    deltas: list
    sizes: FrameSizes
    proposals: list
    instances: list

    @property
    def inputs(self):
        return self.features, self.logits, self.deltas, self.sizes


@torch.no_grad()
def run_detectron2(model, image_size, *, num_images=1, output_size=None, seed=0, features=None):
    """
    Runs Detectron2's RPN and RoI heads.

    Args:
        model (GeneralizedRCNN):
        image_size (tuple[int, int]): height, width.
        num_images (int):
        output_size (tuple[int, int]): that of the images by default.
        seed (int): seed of the features.
        features (dict[str, Tensor]): smooth random ones, channels-last, by default.

    Returns:
        Frame:
    """
    images, sizes = images_and_sizes(model, image_size, num_images, output_size)
    features = features or smooth_features(model, num_images, sizes.canvas_size, seed)
    rpn = model.proposal_generator
    logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
    proposals, _ = rpn(images, features)
    instances, _ = model.roi_heads(images, features, proposals)
    instances = [detector_postprocess(x, *sizes.output_size) for x in instances]
    return Frame(features, logits, deltas, sizes, proposals, instances)


def spread_proposals(model):
    """Sets weights of an RPN so that its scores and boxes differ widely."""
    head = model.proposal_generator.rpn_head
    for module, spread in ((head.objectness_logits, 3), (head.anchor_deltas, 0.5)):
        torch.nn.init.normal_(module.weight, std=spread * module.weight[0].numel() ** -0.5)


def images_and_sizes(model, image_size, num_images, output_size):
    """tuple[ImageList, FrameSizes]: empty images of this size, padded."""
    images = [torch.zeros(3, *image_size, device=model.device)] * num_images
    images = ImageList.from_tensors(images, model.backbone.size_divisibility)
    canvas_size = tuple(images.tensor.shape[-2:])
    return images, FrameSizes(
        image_size=image_size,
        canvas_size=canvas_size,
        output_size=output_size or image_size,
        grid_shape=num_blocks(BLOCK, canvas_size),
        pixels_per_block=16,
    )


def smooth_features(model, num_images, canvas_size, seed):
    """dict[str, Tensor]: unit noise, interpolated over a few pixels."""
    generator = torch.Generator().manual_seed(seed)
    features = {}
    for name, shape in model.backbone.output_shape().items():
        size = [math.ceil(length / shape.stride) for length in canvas_size]
        coarse = [max(length // 2, 2) for length in size]
        x = torch.randn(num_images, shape.channels, *coarse, generator=generator)
        x = F.interpolate(x, size=size, mode="bilinear")
        features[name] = x.to(model.device, memory_format=torch.channels_last)
    return features


def assert_agree(got, want, *, precise=True):
    """
    Args:
        got, want (Instances): instances of one image, with or without masks.
        precise (bool): whether they differ in the order of float32 operations only, or by the
            rounding of half precision, which may change a detection near a threshold.
    """
    if precise:
        assert len(got) == len(want) > 3
        order, mask_error = slice(None), 1e-4
        tolerances = [{"rtol": 1e-4, "atol": 1e-4}, {"rtol": 1e-4, "atol": 1e-2}]
    else:
        assert abs(len(got) - len(want)) <= max(2, len(want) // 10)
        overlap = pairwise_iou(want.pred_boxes, got.pred_boxes)
        overlap[want.pred_classes[:, None] != got.pred_classes] = 0
        best, order = overlap.max(dim=1)
        found = best > 0.9
        assert found.float().mean() >= 0.85
        order, want, mask_error = order[found], want[found], 0.05
        tolerances = [{"rtol": 0.0, "atol": 0.02}, {"rtol": 0.0, "atol": 1.0}]
    got = got[order]
    assert got.image_size == want.image_size
    assert got.pred_classes.equal(want.pred_classes)
    torch.testing.assert_close(got.scores, want.scores, **tolerances[0])
    torch.testing.assert_close(got.pred_boxes.tensor, want.pred_boxes.tensor, **tolerances[1])
    assert list(got.get_fields()) == list(want.get_fields())
    if want.has("pred_keypoints"):
        # Where two pixels of a heatmap are as high, rounding decides.
        far = (got.pred_keypoints - want.pred_keypoints).abs().amax(dim=2) > 0.1
        assert far.float().mean() < (0.02 if precise else 0.2)
    assert got.has("pred_masks") == want.has("pred_masks")
    if want.has("pred_masks"):
        assert got.pred_masks.dtype == torch.bool and got.pred_masks.shape == want.pred_masks.shape
        wrong = (got.pred_masks != want.pred_masks).sum()
        assert wrong <= mask_error * want.pred_masks.sum() + 2
        assert want.pred_masks.any() and not want.pred_masks.all()
