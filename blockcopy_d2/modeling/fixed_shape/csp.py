"""
The detections of CSP in fixed shapes.

Shape shorthand: N images, H x W pixels of the feature map, D slots for detections.
"""

import functools

import torch

from blockcopy_d2.networks.csp.meta_arch import CSP

from .constants import NO_SCORE
from .dense_detector import StaticDenseDetector
from .detections import StaticDetections
from .nms import nms

__all__ = ["StaticCSP"]


class StaticCSP(StaticDenseDetector):
    """Computes the results of CSP."""

    meta_architecture = CSP

    @classmethod
    def supports(cls, model):
        return super().supports(model) and model.topk_candidates > 0 and model.max_detections > 0

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
        return StaticDetections.of_boxes(
            *(keep, boxes, scores, torch.zeros_like(scores, dtype=torch.int64)),
            sizes=sizes,
            pixels=self._pixels[sizes, boxes.device],
            num_slots=model.max_detections,
        )
