"""
The feature extractor of MGAN, "Mask-Guided Attention Network for Occluded Pedestrian Detection"
(ICCV 2019): VGG-16 that stays at stride 8.
"""

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn
from torch.nn import functional as F

__all__ = ["VGG16", "build_vgg16_backbone"]

_CONVS_PER_STAGE = (2, 2, 3, 3, 3)
# A pool of stride 2 follows the first three stages; the fourth and the last pool are left out.
_POOLED_STAGES = 3


class VGG16(Backbone):
    """The 13 convolutions of VGG-16, "conv1_1" to "conv5_3", at stride 8 in the end."""

    STRIDE = 2**_POOLED_STAGES

    def __init__(self, in_channels, stage_channels=(64, 128, 256, 512, 512), norm=""):
        """
        Args:
            in_channels (int): number of channels of the image.
            stage_channels (tuple[int]): channels of the five stages.
            norm (str): normalization after every convolution, see
                :func:`detectron2.layers.get_norm`.
        """
        super().__init__()
        self._out_channels = stage_channels[-1]
        self.stages = []
        for stage, (channels, depth) in enumerate(zip(stage_channels, _CONVS_PER_STAGE), start=1):
            convs = []
            for number in range(1, depth + 1):
                conv = Conv2d(
                    in_channels,
                    channels,
                    kernel_size=3,
                    padding=1,
                    bias=not norm,
                    norm=get_norm(norm, channels),
                    activation=F.relu_,
                )
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
                self.add_module(f"conv{stage}_{number}", conv)
                convs.append(conv)
                in_channels = channels
            self.stages.append(convs)

    @property
    def size_divisibility(self):
        return self.STRIDE

    def output_shape(self):
        return {"conv5": ShapeSpec(channels=self._out_channels, stride=self.STRIDE)}

    def freeze(self, freeze_at):
        """
        Args:
            freeze_at (int): number of stages, from the first, whose weights stay as they are.

        Returns:
            VGG16: itself.
        """
        for convs in self.stages[:freeze_at]:
            for conv in convs:
                conv.requires_grad_(False)
        return self

    def forward(self, x):
        """
        Args:
            x (Tensor): float (N, C, H, W), of a size that 8 divides.

        Returns:
            dict[str, Tensor]: "conv5", (N, C, H / 8, W / 8).
        """
        for stage, convs in enumerate(self.stages):
            for conv in convs:
                x = conv(x)
            if stage < _POOLED_STAGES:
                x = F.max_pool2d(x, kernel_size=2, stride=2)
        return {"conv5": x}


@BACKBONE_REGISTRY.register()
def build_vgg16_backbone(cfg, input_shape):
    """
    Create a :class:`VGG16` from MODEL.BLOCKCOPY.VGG, its first MODEL.BACKBONE.FREEZE_AT stages
    frozen.

    Returns:
        VGG16:
    """
    options = cfg.MODEL.BLOCKCOPY.VGG
    backbone = VGG16(input_shape.channels, options.STAGE_CHANNELS, options.NORM)
    return backbone.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
