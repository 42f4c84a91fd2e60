"""The backbone of SwiftNet."""

from detectron2.config import configurable
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn
from torch.nn import functional as F

from .layers import SpatialPyramidPooling, UpsampleBlend

__all__ = ["SwiftNetBackbone"]


@BACKBONE_REGISTRY.register()
class SwiftNetBackbone(Backbone):
    """
    The encoder and the decoder of SwiftNet (Orsic et al., "In Defense of Pre-Trained ImageNet
    Architectures for Real-Time Semantic Segmentation of Road-Driving Images", CVPR 2019), on
    Detectron2's ResNet. The skip connections are the features of the stages after their last
    ReLU. (Before it, where its own authors' code takes them, they are the same: that ReLU is in
    place in a ResNet-18, and in bottlenecks nothing is negative that it could change.)
    """

    @configurable
    def __init__(self, *, bottom_up, in_features, out_channels, norm, relu_before_addition=False):
        """
        Args:
            bottom_up (Backbone): computes features at strides that double from one to the next.
            in_features (list[str]): maps of ``bottom_up``, from the finest to the coarsest.
            out_channels (int): number of channels of the decoder.
            norm (str or callable): norm of the decoder, see :func:`detectron2.layers.get_norm`.
            relu_before_addition (bool): whether bottlenecks of ``bottom_up`` have a ReLU after
                their last normalization, too.
        """
        super().__init__()
        bottlenecks = [x for x in bottom_up.modules() if isinstance(x, BottleneckBlock)]
        if relu_before_addition:
            for bottleneck in bottlenecks:
                bottleneck.conv3.activation = F.relu_
        # See blockcopy_d2.networks.mapping.weight_settings
        key = "MODEL.BLOCKCOPY.SWIFTNET.RELU_BEFORE_ADDITION"
        self.weight_settings = {key: relu_before_addition} if bottlenecks else {}
        shapes = bottom_up.output_shape()
        *skips, coarsest = in_features
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        self.spp = SpatialPyramidPooling(shapes[coarsest].channels, out_channels, norm=norm)
        self.upsample = nn.ModuleList(
            UpsampleBlend(shapes[name].channels, out_channels, norm=norm)
            for name in reversed(skips)
        )
        self._size_divisibility = shapes[coarsest].stride
        # Read by Backbone.output_shape()
        self._out_features = ["p2"]
        self._out_feature_channels = {"p2": out_channels}
        self._out_feature_strides = {"p2": shapes[in_features[0]].stride}

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {
            "bottom_up": build_resnet_backbone(cfg, input_shape),
            "in_features": cfg.MODEL.FPN.IN_FEATURES,
            "out_channels": cfg.MODEL.FPN.OUT_CHANNELS,
            "norm": cfg.MODEL.FPN.NORM,
            "relu_before_addition": cfg.MODEL.BLOCKCOPY.SWIFTNET.RELU_BEFORE_ADDITION,
        }

    @property
    def size_divisibility(self):
        return self._size_divisibility

    def forward(self, image):
        """
        Args:
            image (Tensor): (N, 3, H, W), H and W divisible by 32.

        Returns:
            dict[str, Tensor]: "p2" (N, out_channels, H / 4, W / 4).
        """
        features = self.bottom_up(image)
        *skips, coarsest = (features[name] for name in self.in_features)
        x = self.spp(coarsest)
        for upsample, skip in zip(self.upsample, reversed(skips)):
            x = upsample(x, skip)
        return {"p2": x}
