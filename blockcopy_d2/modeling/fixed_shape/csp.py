"""
The detections of CSP in fixed shapes.

Shape shorthand: H x W pixels of the feature map, D slots for detections.
"""

import torch

from ..networks.csp import CSP
from ..networks.csp.meta_arch import decode_boxes
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
        scores = logits.flatten().float().sigmoid()
        scores, cells = scores.topk(min(model.topk_candidates, len(scores)))
        boxes = decode_boxes(
            log_height.flatten().float(),
            offset[0].flatten(1).float(),
            cells,
            width=logits.shape[-1],
            stride=model.stride,
            aspect_ratio=model.aspect_ratio,
        )
        valid = (scores > model.score_thresh) & boxes.isfinite().all(dim=1)
        height, width = sizes.image_size
        boxes = torch.stack(
            [side.clamp(0, limit) for side, limit in zip(boxes.unbind(1), 2 * (width, height))],
            dim=1,
        )
        scores = torch.where(valid, scores, NO_SCORE)
        keep = nms(boxes[None], valid[None], model.nms_thresh)
        _, output_boxes, scores, classes, count = fill_slots(
            keep,
            boxes[None],
            scores[None],
            torch.zeros_like(cells)[None],
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
