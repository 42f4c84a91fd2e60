"""The head of SwiftNet."""

from detectron2.config import configurable
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

from .layers import NormReluConv

__all__ = ["SwiftNetHead"]


@SEM_SEG_HEADS_REGISTRY.register()
class SwiftNetHead(nn.Module):
    """Logits at the resolution of the decoder, then upsampled to that of the image."""

    @configurable
    def __init__(
        self, input_shape, *, in_feature, num_classes, norm, ignore_value=255, loss_weight=1.0
    ):
        """
        Args:
            input_shape (dict[str, ShapeSpec]): shapes of the backbone.
            in_feature (str): the map to classify.
            num_classes (int): K.
            norm (str or callable): see :func:`detectron2.layers.get_norm`.
            ignore_value (int): label of pixels that training leaves out.
            loss_weight (float):
        """
        super().__init__()
        self.in_feature = in_feature
        self.common_stride = input_shape[in_feature].stride
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.logits = NormReluConv(
            input_shape[in_feature].channels, num_classes, kernel_size=1, norm=norm, bias=True
        )

    @classmethod
    def from_config(cls, cfg, input_shape):
        options = cfg.MODEL.SEM_SEG_HEAD
        if len(options.IN_FEATURES) != 1:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {options.IN_FEATURES}; SwiftNetHead takes one"
                ' feature map, "p2" of SwiftNetBackbone.'
            )
        return {
            "input_shape": input_shape,
            "in_feature": options.IN_FEATURES[0],
            "num_classes": options.NUM_CLASSES,
            "norm": options.NORM,
            "ignore_value": options.IGNORE_VALUE,
            "loss_weight": options.LOSS_WEIGHT,
        }

    def forward(self, features, targets=None):
        """
        Args:
            features (dict[str, Tensor]): features of the backbone.
            targets (Tensor or None): int64 (N, H, W), the class of every pixel, for training.

        Returns:
            In training, None and a dict of losses; in inference, logits (N, K, H, W) and {}.
        """
        logits = self.logits(features[self.in_feature])
        logits = F.interpolate(
            logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )
        if not self.training:
            return logits, {}
        loss = F.cross_entropy(logits.float(), targets, ignore_index=self.ignore_value)
        return None, {"loss_sem_seg": loss * self.loss_weight}
