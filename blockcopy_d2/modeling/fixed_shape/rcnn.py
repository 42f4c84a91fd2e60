"""
The second stage of Faster, Mask, Keypoint and Cascade R-CNN and of MGAN in fixed shapes: takes RPN
outputs and features, returns detections in a fixed number of slots. The host never waits and no
shape depends on the content, so that the whole stage can be part of a CUDA graph.

Shape shorthand in this module:

    N: images of a batch
    R: proposals of an image
    D: detections of an image at most
    K: classes
"""

import torch
from detectron2.layers import ROIAlign as Detectron2ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    KRCNNConvDeconvUpsampleHead,
    MaskRCNNConvUpsampleHead,
    Res5ROIHeads,
    StandardROIHeads,
)
from torch import nn

from blockcopy_d2.networks.mgan.roi_heads import MaskAttention, MGANROIHeads

from .base import StaticHeads
from .box_inference import candidate_scores, select_detections
from .boxes import decode_boxes
from .detections import StaticDetections
from .geometry import PixelTables
from .keypoints import StaticKeypoints
from .networks import BoxNetwork, KeypointNetwork, MaskNetwork, Res5BoxNetwork
from .paste import sample_masks
from .roi_pooler import pool_regions
from .rpn import StaticRPN

__all__ = ["StaticRCNN"]


def _supports_roi_heads(heads):
    if type(heads) not in (StandardROIHeads, CascadeROIHeads, MGANROIHeads, Res5ROIHeads):
        return False
    stages = _stages(heads)
    return (
        _supports_pooler(_box_inputs(heads)[1])
        and type(_attention(heads)) in (MaskAttention, type(None))
        and all(_supports_head(heads, head) and _supports_predictor(x) for head, x in stages)
        # A cascade refines one box for all classes.
        and (len(stages) == 1 or all(x.bbox_pred.out_features == 4 for _, x in stages))
        and stages[-1][1].test_topk_per_image > 0
        and (not heads.mask_on or _supports_masks(heads))
        and (not _has_keypoints(heads) or _supports_keypoints(heads))
    )


def _box_inputs(heads):
    """tuple[list[str], ROIPooler]: names of the features of the box heads, and their pooler."""
    if isinstance(heads, Res5ROIHeads):
        return heads.in_features, heads.pooler
    return heads.box_in_features, heads.box_pooler


def _mask_inputs(heads):
    """tuple[list[str], ROIPooler]: names of the features of the mask head, and their pooler."""
    if isinstance(heads, Res5ROIHeads):
        return heads.in_features, heads.pooler
    return heads.mask_in_features, heads.mask_pooler


def _has_keypoints(heads):
    return not isinstance(heads, Res5ROIHeads) and heads.keypoint_on


def _stages(heads):
    """list[tuple[nn.Module, nn.Module]]: box head and predictor of every stage of a cascade."""
    if isinstance(heads, Res5ROIHeads):
        return [(heads.res5, heads.box_predictor)]
    if isinstance(heads, CascadeROIHeads):
        return list(zip(heads.box_head, heads.box_predictor, strict=True))
    return [(heads.box_head, heads.box_predictor)]


def _attention(heads):
    """MaskAttention or None: the module that weighs the features of MGAN's regions."""
    return heads.attention if isinstance(heads, MGANROIHeads) else None


def _supports_head(heads, head):
    if isinstance(heads, Res5ROIHeads):
        return type(head) is nn.Sequential and all(type(x) is BottleneckBlock for x in head)
    return type(head) is FastRCNNConvFCHead and len(head.fcs) > 0


def _supports_predictor(predictor):
    return type(predictor) is FastRCNNOutputLayers and isinstance(
        predictor.box2box_transform, Box2BoxTransform
    )


def _supports_masks(heads):
    _, pooler = _mask_inputs(heads)
    return type(heads.mask_head) is MaskRCNNConvUpsampleHead and _supports_pooler(pooler)


def _supports_keypoints(heads):
    return (
        type(heads.keypoint_head) is KRCNNConvDeconvUpsampleHead
        and len(heads.keypoint_head) > 0
        and _supports_pooler(heads.keypoint_pooler)
    )


def _supports_pooler(pooler):
    return (
        pooler is not None
        and pooler.output_size[0] == pooler.output_size[1]
        and all(isinstance(p, Detectron2ROIAlign) for p in pooler.level_poolers)
    )


class StaticRCNN(StaticHeads):
    """
    Computes the results of a GeneralizedRCNN: Faster, Mask, Keypoint and Cascade R-CNN on a pyramid
    or on one level, C4 models and MGAN. Rotated models, and any subclass that may compute something
    else, are not supported.

    Weights are copied from the model on the first call with a dtype. That call, and the first one
    with a FrameSizes, also put tables on the device: make them before a CUDA graph is captured.
    """

    meta_architecture = GeneralizedRCNN
    output_name = "instances"

    def __init__(self, model, *, max_candidates=2048):
        """
        Args:
            model (GeneralizedRCNN): one that :meth:`supports` is true for.
            max_candidates (int): pairs of a proposal and a class that take part in the final
                suppression, see :func:`select_detections`.

        Raises:
            ValueError: the model has other heads.
        """
        if not self.supports(model):
            raise ValueError(
                f"{type(model).__name__} with"
                f" {type(getattr(model, 'roi_heads', None)).__name__} is not a Faster or Mask"
                " R-CNN, or a cascade of these, with standard heads; run its own heads instead."
            )
        self.max_candidates = max_candidates
        self._backbone, self._rpn = model.backbone, StaticRPN(model.proposal_generator)
        self._heads = model.roi_heads
        self._networks, self._pixels = {}, PixelTables()

    @classmethod
    def supports(cls, model):
        return (
            super().supports(model)
            and StaticRPN.supports(model.proposal_generator)
            and _supports_roi_heads(model.roi_heads)
        )

    @staticmethod
    def sparse_modules(model):
        return model.backbone, model.proposal_generator.rpn_head

    def network(self, images):
        features = self._backbone(images)
        return features, *self._rpn.head(features)

    @torch.no_grad()
    def __call__(self, features, logits, deltas, sizes):
        """
        Args:
            features (dict[str, Tensor]): the backbone's, (N, C, H, W) each, of the dtype to
                compute in, best in channels-last memory.
            logits (list[Tensor]): objectness of each level from the RPN head, (N, A, H, W).
            deltas (list[Tensor]): likewise, (N, 4 A, H, W).
            sizes (FrameSizes): sizes of the images, all alike.

        Returns:
            StaticDetections:
        """
        return self.finish(*self.begin(features, logits, deltas, sizes))

    @torch.no_grad()
    def begin(self, features, logits, deltas, sizes):
        """See :meth:`StaticHeads.begin`: all but masks and keypoints."""
        heads, predictor = self._heads, _stages(self._heads)[-1][1]
        proposals, objectness = self._rpn(logits, deltas, sizes)
        box_features = [features[name] for name in _box_inputs(heads)[0]]
        box_networks, _, _ = self._networks_for(box_features[0].dtype)
        class_logits, boxes, usable, finite = self._refine(
            box_networks, box_features, proposals, objectness > -torch.inf, sizes.image_size
        )
        candidates = candidate_scores(
            class_logits,
            usable,
            finite,
            predictor.test_score_thresh,
            sigmoid=predictor.use_sigmoid_ce,
        )
        *found, count = select_detections(
            candidates,
            boxes,
            output_scale=sizes.output_scale,
            output_size=sizes.output_size,
            nms_threshold=predictor.test_nms_thresh,
            max_candidates=self.max_candidates,
            max_detections=predictor.test_topk_per_image,
        )
        return count, features, sizes, *found

    @torch.no_grad()
    def finish(self, count, features, sizes, boxes, output_boxes, scores, classes):
        """See :meth:`StaticHeads.finish`."""
        heads, masks, keypoints = self._heads, None, None
        dtype = features[_box_inputs(heads)[0][0]].dtype
        _, mask_network, keypoint_network = self._networks_for(dtype)
        pixels = self._pixels[sizes, boxes.device]
        if heads.mask_on:
            names, pooler = _mask_inputs(heads)
            pooled = pool_regions(pooler, [features[name] for name in names], boxes)
            masks = mask_network(pooled, classes.flatten())
            masks = masks.unflatten(0, classes.shape)
            policy_masks = sample_masks(masks, output_boxes, count, pixels.rows, pixels.columns)
        else:
            policy_masks = pixels.inside(output_boxes)
        if _has_keypoints(heads):
            keypoint_features = [features[name] for name in heads.keypoint_in_features]
            heatmaps = keypoint_network(
                pool_regions(heads.keypoint_pooler, keypoint_features, boxes)
            ).unflatten(0, classes.shape)
            keypoints = StaticKeypoints(heatmaps, boxes, sizes.output_scale)
        return StaticDetections(
            count=count,
            boxes=output_boxes,
            scores=scores,
            classes=classes,
            masks=masks,
            policy_masks=policy_masks,
            output_size=sizes.output_size,
            pixels_per_block=sizes.pixels_per_block,
            keypoints=keypoints,
        )

    def _refine(self, networks, features, proposals, usable, image_size):
        """
        Runs the box heads, each on the boxes of the stage before.

        Args:
            networks (list[BoxNetwork]): one for each stage.
            features (list[Tensor]): (N, C, H, W) of every level.
            proposals (Tensor): float32 (N, R, 4).
            usable (Tensor): bool (N, R), slots with a proposal.
            image_size (tuple[int, int]): height, width.

        Returns:
            tuple: class logits of every stage, list[Tensor] (N, R, K + 1); boxes of the last one,
            float32 (N, R, K or 1, 4); proposals that take part, bool (N, R); which boxes are
            finite, bool (N, R, K or 1).
        """
        per_image, class_logits, (_, pooler) = proposals.shape[:2], [], _box_inputs(self._heads)
        boxes = finite = None
        for network, (_, predictor) in zip(networks, _stages(self._heads), strict=True):
            if boxes is not None:
                usable = usable & finite[..., 0]
                proposals = torch.where(usable[..., None], boxes[:, :, 0], 0.0)
            logits, deltas = network(pool_regions(pooler, features, proposals))
            class_logits.append(logits.unflatten(0, per_image))
            deltas, transform = deltas.unflatten(0, per_image), predictor.box2box_transform
            boxes, finite = decode_boxes(deltas, proposals, transform, image_size)
        return class_logits, boxes, usable, finite

    def _networks_for(self, dtype):
        if dtype not in self._networks:
            heads, stem = self._heads, None
            if isinstance(heads, Res5ROIHeads):
                boxes = [Res5BoxNetwork(heads.res5, heads.box_predictor, dtype)]
                stem = boxes[0].res5
            else:
                side, attention = heads.box_pooler.output_size[0], _attention(heads)
                boxes = [
                    BoxNetwork(*stage, side, dtype, attention=attention) for stage in _stages(heads)
                ]
            self._networks[dtype] = (
                boxes,
                MaskNetwork(heads.mask_head, dtype, stem=stem) if heads.mask_on else None,
                KeypointNetwork(heads.keypoint_head, dtype) if _has_keypoints(heads) else None,
            )
        return self._networks[dtype]
