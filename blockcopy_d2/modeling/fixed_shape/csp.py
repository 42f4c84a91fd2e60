"""
The detections of CSP in fixed shapes.

Shape shorthand: H x W pixels of the feature map, D slots for detections.
"""

import torch

from blockcopy_d2.networks.csp.meta_arch import CSP

from .base import StaticHeads
from .box_inference import NO_SCORE, fill_slots
from .detections import StaticDetections
from .geometry import PolicyPixels
from .nms import nms

__all__ = ["StaticCSP"]


class StaticCSP(StaticHeads):
    """
    What CSP does, with the same results. The first call of a FrameSizes puts tables on the device:
    make it before a CUDA graph is captured.
    """

    meta_architecture = CSP
    output_name = "instances"

    def __init__(self, model):
        """
        Args:
            model (CSP):
        """
        self._model = model
        self._pixels = {}

    @staticmethod
    def sparse_modules(model):
        return model.backbone, model.head

    def network(self, images):
        model = self._model
        features = model.backbone(images)
        return tuple(model.head([features[name] for name in model.head_in_features]))

    def __call__(self, logits, log_height, offset, sizes):
        """
        Args:
            logits, log_height, offset (Tensor): (1, 1, H, W), (1, 1, H, W) and (1, 2, H, W).
            sizes (FrameSizes): of the frame.

        Returns:
            StaticDetections: of one image.
        """
        model = self._model
        prediction = logits[0], log_height[0], offset[0]
        scores, boxes, valid = model.candidates(*prediction, sizes.image_size)
        scores = torch.where(valid, scores, NO_SCORE)
        keep = nms(model.suppressed_boxes(boxes)[None], valid[None], model.nms_thresh)
        _, output_boxes, scores, classes, count = fill_slots(
            keep,
            boxes[None],
            scores[None],
            torch.zeros_like(scores, dtype=torch.int64)[None],
            sizes.output_scale,
            sizes.output_size,
            model.max_detections,
        )
        if sizes not in self._pixels:
            self._pixels[sizes] = PolicyPixels.of(sizes, logits.device)
        return StaticDetections(
            count=count,
            boxes=output_boxes,
            scores=scores,
            classes=classes,
            masks=None,
            policy_masks=self._pixels[sizes].inside(output_boxes),
            output_size=sizes.output_size,
            pixels_per_block=sizes.pixels_per_block,
        )
