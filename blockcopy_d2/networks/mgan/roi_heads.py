"""
The box head of MGAN: hidden parts of a pedestrian should not count.

Shape shorthand: R regions, C channels, P x P pixels of a region.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F

from .config import KEYS

__all__ = ["MGANROIHeads", "MaskAttention", "NarrowROIPooler", "visible_masks"]


class NarrowROIPooler(ROIPooler):
    """
    RoIAlign on one map as in the code base in which MGAN was published, where narrow regions stay
    narrow. Detectron2's "ROIAlign" widens them to a pixel of the map, which is 8 of the picture.
    Its "ROIAlignV2" does not, and differs by half a pixel otherwise: regions move by that.
    """

    def __init__(self, output_size, scale, sampling_ratio):
        """
        Args:
            output_size (int): P.
            scale (float): pixels of the map per pixel of the picture.
            sampling_ratio (int): samples of a pixel of a region along an axis.
        """
        super().__init__(output_size, (scale,), sampling_ratio, "ROIAlignV2")
        self.shift = 0.5 / scale

    def forward(self, x, box_lists):
        """
        Args:
            x (list[Tensor]): one map, float (N, C, H, W).
            box_lists (list[Boxes]): regions of every image, R in all.

        Returns:
            Tensor: float (R, C, P, P).
        """
        return super().forward(x, [Boxes(boxes.tensor + self.shift) for boxes in box_lists])


class MaskAttention(nn.Module):
    """
    Predicts for every pixel of a region whether it shows the pedestrian (section 3.2 of MGAN's
    paper), and weighs features by that.
    """

    def __init__(self, channels, attended="regions"):
        """
        Args:
            channels (int): C.
            attended (str): the features to weigh: "regions", the input, or "convolved", those that
                the logits are predicted from.
        """
        super().__init__()
        self.attended = KEYS["MGAN"].ATTENDED.check("attended", attended)
        self.conv1 = Conv2d(channels, channels, kernel_size=3, padding=1, activation=F.relu_)
        self.conv2 = Conv2d(channels, channels, kernel_size=3, padding=1, activation=F.relu_)
        self.predictor = nn.Conv2d(channels, 1, kernel_size=1)
        for layer in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, x):
        """
        Args:
            x (Tensor): float (R, C, P, P).

        Returns:
            Tensor: float (R, 1, P, P), logits.
        """
        return self.predictor(self._convolve(x))

    def weigh(self, x):
        """
        Args:
            x (Tensor): float (R, C, P, P).

        Returns:
            tuple[Tensor, Tensor]: float (R, C, P, P), features times the probability that their
            pixel shows the pedestrian; float (R, 1, P, P), the logits of that probability.
        """
        convolved = self._convolve(x)
        logits = self.predictor(convolved)
        return (x if self.attended == "regions" else convolved) * logits.sigmoid(), logits

    @property
    def weight_settings(self):
        """dict[str, str]: see :func:`blockcopy_d2.networks.mapping.weight_settings`."""
        return {"MODEL.BLOCKCOPY.MGAN.ATTENDED": self.attended}

    def _convolve(self, x):
        return self.conv2(self.conv1(x))


def visible_masks(regions, visible, size):
    """
    Args:
        regions (Tensor): float (R, 4), boxes x0, y0, x1, y1.
        visible (Tensor): float (R, 4), the box of the visible part of each.
        size (int): P.

    Returns:
        Tensor: bool (R, P, P), whether the middle of a pixel of a region lies in the other box.
    """
    steps = (torch.arange(size, device=regions.device) + 0.5) / size
    inside = []
    for axis in (1, 0):
        start, end = regions[:, axis, None], regions[:, axis + 2, None]
        middles = start + steps * (end - start)
        inside.append((middles >= visible[:, axis, None]) & (middles < visible[:, axis + 2, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]


@ROI_HEADS_REGISTRY.register()
class MGANROIHeads(StandardROIHeads):
    """
    Box heads on region features that are weighted by the visibility of the pedestrian. If the
    targets have ``gt_visible_boxes`` (Boxes, beside ``gt_boxes``), attention learns from them;
    otherwise it learns from the boxes' losses alone.
    """

    @configurable
    def __init__(self, *, attention, mask_loss_weight, **kwargs):
        """
        Args:
            attention (nn.Module): see :class:`MaskAttention`.
            mask_loss_weight (float):
            **kwargs: arguments of StandardROIHeads, for boxes only.
        """
        super().__init__(**kwargs)
        self.attention = attention
        self.mask_loss_weight = mask_loss_weight

    @classmethod
    def from_config(cls, cfg, input_shape):
        arguments = super().from_config(cfg, input_shape)
        channels = input_shape[arguments["box_in_features"][0]].channels
        options = cfg.MODEL.BLOCKCOPY.MGAN
        arguments["attention"] = MaskAttention(channels, options.ATTENDED)
        arguments["mask_loss_weight"] = options.MASK_LOSS_WEIGHT
        shapes = [input_shape[name] for name in arguments["box_in_features"]]
        if cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "ROIAlign" and len(shapes) == 1:
            arguments["box_pooler"] = NarrowROIPooler(
                cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION,
                1 / shapes[0].stride,
                cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
            )
        return arguments

    def _forward_box(self, features, proposals):
        """
        Args:
            features (dict[str, Tensor]):
            proposals (list[Instances]): with ``proposal_boxes``; in training with ``gt_classes``,
                ``gt_boxes`` and, if any, ``gt_visible_boxes``.

        Returns:
            dict[str, Tensor] or list[Instances]: losses in training, else the detections.
        """
        features = [features[name] for name in self.box_in_features]
        x = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        x, logits = self.attention.weigh(x)
        predictions = self.box_predictor(self.box_head(x))
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        # Images without any pedestrian have no such field.
        logits = logits.split([len(p) for p in proposals])
        known = [pair for pair in zip(logits, proposals) if pair[1].has("gt_visible_boxes")]
        if known:
            losses["loss_mask_attention"] = self._mask_loss(*zip(*known))
        return losses

    def _mask_loss(self, logits, proposals):
        """Cross entropy of the weights with the visible boxes, in regions with a pedestrian."""
        logits = torch.cat(logits)
        regions = torch.cat([p.proposal_boxes.tensor for p in proposals])
        visible = torch.cat([p.gt_visible_boxes.tensor for p in proposals])
        classes = torch.cat([p.gt_classes for p in proposals])
        found = (classes >= 0) & (classes < self.num_classes)
        targets = visible_masks(regions[found], visible[found], logits.shape[-1])
        loss = F.binary_cross_entropy_with_logits(
            logits[found, 0].float(), targets.float(), reduction="sum"
        )
        return self.mask_loss_weight * loss / max(targets.numel(), 1)
