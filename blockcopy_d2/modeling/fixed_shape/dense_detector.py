"""
The detections of RetinaNet and FCOS in fixed shapes.

Shape shorthand in this module:

    N: images of a batch
    A: anchors of a pixel
    K: classes
"""

import torch
from detectron2.modeling import FCOS, RetinaNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear

from .base import StaticHeads
from .box_inference import NO_SCORE, fill_slots, select_boxes
from .dense_candidates import find_candidates
from .detections import StaticDetections
from .geometry import PolicyPixels
from .nms import nms
from .ranking import best_values

__all__ = ["StaticFCOS", "StaticRetinaNet"]


class StaticRetinaNet(StaticHeads):
    """
    Computes the results of a RetinaNet. The first call with a FrameSizes puts tables on the device:
    make it before a CUDA graph is captured.
    """

    meta_architecture = RetinaNet
    output_name = "instances"

    def __init__(self, model):
        """
        Args:
            model (RetinaNet): one that :meth:`supports` is true for.
        """
        self._model = model
        self._tables = {}

    @classmethod
    def supports(cls, model):
        return (
            super().supports(model)
            and isinstance(model.anchor_generator, DefaultAnchorGenerator)
            and type(model.box2box_transform) in (Box2BoxTransform, Box2BoxTransformLinear)
            and model.test_topk_candidates > 0
            and model.max_detections_per_image > 0
        )

    @staticmethod
    def sparse_modules(model):
        return model.backbone, model.head

    def network(self, images):
        model = self._model
        features = model.backbone(images)
        return tuple(model.head([features[name] for name in model.head_in_features]))

    @torch.no_grad()
    def __call__(self, logits, deltas, *others):
        """
        Args:
            logits (list[Tensor]): class logits of each level, (N, A K, H, W).
            deltas (list[Tensor]): (N, 4 A, H, W).
            others: logits of the centerness, list[Tensor] (N, A, H, W), of FCOS; sizes of the
                frames (FrameSizes).

        Returns:
            StaticDetections: those of N images.
        """
        *centerness, sizes = others
        model = self._model
        anchors, pixels = self._tables_for(sizes, logits)
        scores, boxes, classes = find_candidates(
            logits,
            deltas,
            centerness[0] if centerness else None,
            anchors,
            transform=model.box2box_transform,
            threshold=model.test_score_thresh,
            topk=model.test_topk_candidates,
        )
        scores, order = best_values(scores, scores.shape[1], NO_SCORE)
        boxes, classes = select_boxes(boxes, order), classes.gather(1, order)
        keep = nms(boxes, scores > NO_SCORE, model.test_nms_thresh, labels=classes)
        most, scale, size = model.max_detections_per_image, sizes.output_scale, sizes.output_size
        _, output_boxes, scores, classes, count = fill_slots(
            keep, boxes, scores, classes, scale, size, most
        )
        return StaticDetections(
            count=count,
            boxes=output_boxes,
            scores=scores,
            classes=classes,
            masks=None,
            policy_masks=pixels.inside(output_boxes),
            output_size=sizes.output_size,
            pixels_per_block=sizes.pixels_per_block,
        )

    def _tables_for(self, sizes, logits):
        """Returns the anchors of every level, float32 (H W A, 4), and the PolicyPixels."""
        key = (sizes, tuple(x.shape[2:] for x in logits), logits[0].device)
        if key not in self._tables:
            anchors = [x.tensor for x in self._model.anchor_generator(logits)]
            self._tables[key] = anchors, PolicyPixels.of(sizes, logits[0].device)
        return self._tables[key]


class StaticFCOS(StaticRetinaNet):
    """Computes the results of an FCOS, as :class:`StaticRetinaNet` those of a RetinaNet."""

    meta_architecture = FCOS
