"""
The detections of CSP in fixed shapes.

Shape shorthand: N images, H x W pixels of the feature map, D slots for detections.
"""

import functools

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
    Computes the results of CSP. The first call with a FrameSizes puts tables on the device: make it
    before a CUDA graph is captured.
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
            logits, log_height, offset (Tensor): (N, 1, H, W), (N, 1, H, W) and (N, 2, H, W).
            sizes (FrameSizes): sizes of the frames.

        Returns:
            StaticDetections: those of N images.
        """
        model = self._model
        candidates = torch.vmap(functools.partial(model.candidates, image_size=sizes.image_size))
        scores, boxes, valid = (x.contiguous() for x in candidates(logits, log_height, offset))
        scores = torch.where(valid, scores, NO_SCORE)
        keep = nms(model.suppressed_boxes(boxes), valid, model.nms_thresh)
        _, output_boxes, scores, classes, count = fill_slots(
            keep,
            boxes,
            scores,
            torch.zeros_like(scores, dtype=torch.int64),
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
