"""
CSP, a one-stage pedestrian detector without anchors.

Shape shorthand: N images, H x W pixels of the feature map, k candidates.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from .head import CSPHead
from .targets import center_targets

__all__ = ["CSP", "decode_boxes"]


def decode_boxes(log_height, offset, cells, *, width, stride, aspect_ratio):
    """
    Args:
        log_height (Tensor): float (H * W,), logarithm of the height in pixels of the map.
        offset (Tensor): float (2, H * W), y and x from the middle of the pixel.
        cells (Tensor): int64 (k,), indices of the pixels.
        width (int): W.
        stride (int): stride of the map.
        aspect_ratio (float): width / height of every box.

    Returns:
        Tensor: float (k, 4), x0, y0, x1, y1 in pixels of the network's input.
    """
    rows = cells.div(width, rounding_mode="floor")
    y, x = (torch.stack([rows, cells - rows * width]) + 0.5 + offset[:, cells]) * stride
    half_height = log_height[cells].exp() * stride / 2
    half_width = half_height * aspect_ratio
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=1)


@META_ARCH_REGISTRY.register()
class CSP(DenseDetector):
    """Detects the centre and the height of each pedestrian, at stride 4. There is one class."""

    num_classes = 1

    @configurable
    def __init__(
        self,
        *,
        backbone,
        head,
        pixel_mean,
        pixel_std,
        aspect_ratio=0.41,
        score_thresh=0.1,
        topk_candidates=1000,
        nms_thresh=0.5,
        last_pixel=False,
        max_detections=100,
        center_loss_weight=0.01,
        height_loss_weight=1.0,
        offset_loss_weight=0.1,
    ):
        """
        Args:
            backbone (Backbone): computes one feature map.
            head (nn.Module): see :class:`CSPHead`.
            pixel_mean, pixel_std (tuple[float]): in the channel order of INPUT.FORMAT.
            aspect_ratio (float): width / height of every box.
            score_thresh (float): detections score higher than this.
            topk_candidates (int): pixels of highest score that non-maximum suppression sees.
            nms_thresh (float): IoU above which the box of lower score is dropped.
            last_pixel (bool): whether boxes end on their last pixel instead of where the next one
                starts. :meth:`candidates` then clips and :meth:`suppressed_boxes` widens them.
            max_detections (int): per image.
            center_loss_weight, height_loss_weight, offset_loss_weight (float):
        """
        super().__init__(backbone, head, pixel_mean=pixel_mean, pixel_std=pixel_std)
        (self.stride,) = (shape.stride for shape in backbone.output_shape().values())
        self.aspect_ratio = aspect_ratio
        self.score_thresh = score_thresh
        self.topk_candidates = topk_candidates
        self.nms_thresh = nms_thresh
        self.last_pixel = last_pixel
        self.max_detections = max_detections
        self.loss_weights = {
            "loss_center": center_loss_weight,
            "loss_height": height_loss_weight,
            "loss_offset": offset_loss_weight,
        }

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        options = cfg.MODEL.BLOCKCOPY.CSP
        return {
            "backbone": backbone,
            "head": CSPHead(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "aspect_ratio": options.ASPECT_RATIO,
            "score_thresh": options.SCORE_THRESH_TEST,
            "topk_candidates": options.TOPK_CANDIDATES_TEST,
            "nms_thresh": options.NMS_THRESH_TEST,
            "last_pixel": options.LAST_PIXEL,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "center_loss_weight": options.CENTER_LOSS_WEIGHT,
            "height_loss_weight": options.HEIGHT_LOSS_WEIGHT,
            "offset_loss_weight": options.OFFSET_LOSS_WEIGHT,
        }

    def forward_training(self, images, features, predictions, gt_instances):
        """
        Returns:
            dict[str, Tensor]: the focal loss of the centres, and smooth L1 losses of the
            logarithm of the height and of the offset.
        """
        logits, log_height, offset = (prediction.float() for prediction in predictions)
        targets = [
            center_targets(instances.gt_boxes.tensor, logits.shape[-2:], self.stride)
            for instances in gt_instances
        ]
        center, closeness, near_center, target_height, target_offset = (
            torch.stack([getattr(target, name) for target in targets])
            for name in ("center", "closeness", "near_center", "log_height", "offset")
        )
        logits, log_height = logits[:, 0], log_height[:, 0]
        num_centers = center.sum().clamp(min=1)
        score = logits.sigmoid()
        weight = torch.where(center, (1 - score).square(), (1 - closeness) ** 4 * score.square())
        bce = F.binary_cross_entropy_with_logits(logits, center.float(), reduction="none")
        height_error = F.smooth_l1_loss(log_height, target_height, reduction="none")
        offset_error = F.smooth_l1_loss(offset, target_offset, reduction="none").sum(1)
        losses = {
            "loss_center": (weight * bce).sum() / num_centers,
            "loss_height": (height_error * near_center).sum() / near_center.sum().clamp(min=1),
            "loss_offset": (offset_error * center).sum() / num_centers,
        }
        return {name: loss * self.loss_weights[name] for name, loss in losses.items()}

    def forward_inference(self, images, features, predictions):
        """
        Returns:
            list[Instances]: one for every image, in pixels of the network's input.
        """
        return [
            self._detect(*self.candidates(*prediction, image_size), image_size)
            for *prediction, image_size in zip(*predictions, images.image_sizes)
        ]

    def candidates(self, logits, log_height, offset, image_size):
        """
        Returns the pixels of highest score, in a fixed number, as boxes.

        Args:
            logits, log_height, offset (Tensor): float (1, H, W), (1, H, W) and (2, H, W), of an
                image, see :class:`CSPHead`.
            image_size (tuple[int, int]): size that boxes are clipped to, or to its last pixels.

        Returns:
            tuple[Tensor]: float32 (k,), scores in descending order; float32 (k, 4), boxes in pixels
            of the network's input; bool (k,), whether they may be detections; the others score too
            low, or are not finite.
        """
        scores = logits.flatten().float().sigmoid()
        scores, cells = scores.topk(min(self.topk_candidates, len(scores)))
        boxes = decode_boxes(
            log_height.flatten().float(),
            offset.flatten(1).float(),
            cells,
            width=logits.shape[-1],
            stride=self.stride,
            aspect_ratio=self.aspect_ratio,
        )
        valid = (scores > self.score_thresh) & boxes.isfinite().all(dim=1)
        height, width = image_size
        sides = zip(boxes.unbind(1), 2 * (width - self.last_pixel, height - self.last_pixel))
        return scores, torch.stack([side.clamp(0, most) for side, most in sides], dim=1), valid

    def suppressed_boxes(self, boxes):
        """
        Args:
            boxes (Tensor): float (..., 4), from :meth:`candidates`.

        Returns:
            Tensor: float (..., 4), the boxes whose overlap decides which are suppressed.
        """
        if not self.last_pixel:
            return boxes
        return torch.cat([boxes[..., :2], boxes[..., 2:] + 1], dim=-1)

    @property
    def weight_settings(self):
        """dict[str, bool]: see :func:`blockcopy_d2.networks.mapping.weight_settings`."""
        return {"MODEL.BLOCKCOPY.CSP.LAST_PIXEL": self.last_pixel}

    def _detect(self, scores, boxes, valid, image_size):
        scores, boxes = scores[valid], boxes[valid]
        classes = torch.zeros_like(scores, dtype=torch.int64)
        keep = batched_nms(self.suppressed_boxes(boxes), scores, classes, self.nms_thresh)
        keep = keep[: self.max_detections]
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes[keep]),
            scores=scores[keep],
            pred_classes=classes[keep],
        )
