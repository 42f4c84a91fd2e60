"""
The detections of one-stage detectors in fixed shapes: RetinaNet and FCOS.

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
from .constants import NO_SCORE
from .dense_candidates import find_candidates
from .detections import StaticDetections
from .geometry import PixelTables
from .nms import nms
from .ranking import best_values, select_boxes

__all__ = ["StaticDenseDetector", "StaticFCOS", "StaticRetinaNet"]


class StaticDenseDetector(StaticHeads):
    """
    The parts that Detectron2's one-stage detectors share: their network, backbone and head, runs in
    blocks as a whole. The first call with a FrameSizes puts tables on the device: make it before a
    CUDA graph is captured.
    """

    output_name = "instances"

    def __init__(self, model):
        """
        Args:
            model (DenseDetector): one that :meth:`supports` is true for.
        """
        self._model = model
        self._pixels = PixelTables()

    @staticmethod
    def sparse_modules(model):
        return model.backbone, model.head

    def network(self, images):
        model = self._model
        features = model.backbone(images)
        return tuple(model.head([features[name] for name in model.head_in_features]))


class StaticRetinaNet(StaticDenseDetector):
    """Computes the results of a RetinaNet."""

    meta_architecture = RetinaNet

    def __init__(self, model):
        """See :class:`StaticDenseDetector`."""
        super().__init__(model)
        self._anchors = {}

    @classmethod
    def supports(cls, model):
        return (
            super().supports(model)
            and isinstance(model.anchor_generator, DefaultAnchorGenerator)
            and type(model.box2box_transform) in (Box2BoxTransform, Box2BoxTransformLinear)
            and model.test_topk_candidates > 0
            and model.max_detections_per_image > 0
        )

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
        scores, boxes, classes = find_candidates(
            logits,
            deltas,
            centerness[0] if centerness else None,
            self._anchors_for(logits),
            transform=model.box2box_transform,
            threshold=model.test_score_thresh,
            topk=model.test_topk_candidates,
        )
        scores, order = best_values(scores, scores.shape[1], NO_SCORE)
        boxes, classes = select_boxes(boxes, order), classes.gather(1, order)
        keep = nms(boxes, scores > NO_SCORE, model.test_nms_thresh, labels=classes)
        return StaticDetections.of_boxes(
            *(keep, boxes, scores, classes),
            sizes=sizes,
            pixels=self._pixels[sizes, boxes.device],
            num_slots=model.max_detections_per_image,
        )

    def _anchors_for(self, logits):
        """list[Tensor]: the anchors of every level, float32 (H W A, 4)."""
        key = (tuple(x.shape[2:] for x in logits), logits[0].device)
        if key not in self._anchors:
            self._anchors[key] = [x.tensor for x in self._model.anchor_generator(logits)]
        return self._anchors[key]


class StaticFCOS(StaticRetinaNet):
    """Computes the results of an FCOS, as :class:`StaticRetinaNet` those of a RetinaNet."""

    meta_architecture = FCOS
