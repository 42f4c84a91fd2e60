"""
The feature extractor of CSP, "High-level Semantic Feature Detection: A New Perspective for
Pedestrian Detection" (CVPR 2019): a ResNet whose last stages meet at stride 4.

Shape shorthand: N images, C channels, H x W pixels of a map.
"""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from torch import nn

__all__ = ["CSPBackbone", "ChannelL2Norm", "build_csp_resnet_backbone"]

_KERNEL = 4


class ChannelL2Norm(nn.Module):
    """x / (||x|| + eps) * weight, with the norm of every pixel over its channels."""

    def __init__(self, num_channels, scale=10.0, eps=1e-10):
        """
        Args:
            num_channels (int): C.
            scale (float): initial value of every weight.
            eps (float):
        """
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_channels, 1, 1), float(scale)))
        self.eps = eps

    def forward(self, x):
        """
        Args:
            x (Tensor): float (N, C, H, W).

        Returns:
            Tensor: the normalized map.
        """
        return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + self.eps) * self.weight

    def extra_repr(self):
        return f"{len(self.weight)}, eps={self.eps}"


class CSPBackbone(Backbone):
    """
    Upsamples feature maps to stride 4 by transposed convolutions, normalizes each over its
    channels and concatenates them to one, "p2".
    """

    STRIDE = 4

    def __init__(self, bottom_up, in_features, out_channels):
        """
        Args:
            bottom_up (Backbone): computes the features to upsample.
            in_features (list[str]): names of some of them, at stride 8 or 16.
            out_channels (int): channels of each upsampled map.
        """
        super().__init__()
        self.bottom_up = bottom_up
        self.in_features = in_features
        shapes = bottom_up.output_shape()
        for name in in_features:
            factor = shapes[name].stride // self.STRIDE
            upsample = nn.ConvTranspose2d(
                shapes[name].channels,
                out_channels,
                kernel_size=_KERNEL,
                stride=factor,
                padding=(_KERNEL - factor) // 2,
            )
            self.add_module(f"{name}_up", upsample)
            self.add_module(f"{name}_norm", ChannelL2Norm(out_channels))
        self._size_divisibility = max(shapes[name].stride for name in in_features)
        self._out_channels = out_channels * len(in_features)

    @property
    def size_divisibility(self):
        return self._size_divisibility

    def output_shape(self):
        return {"p2": ShapeSpec(channels=self._out_channels, stride=self.STRIDE)}

    def forward(self, x):
        """
        Args:
            x (Tensor): float (N, 3, H, W), of a size that ``size_divisibility`` divides.

        Returns:
            dict[str, Tensor]: "p2", (N, C, H / 4, W / 4).
        """
        features = self.bottom_up(x)
        upsampled = []
        for name in self.in_features:
            y = getattr(self, f"{name}_up")(features[name])
            upsampled.append(getattr(self, f"{name}_norm")(y))
        return {"p2": torch.cat(upsampled, dim=1)}


@BACKBONE_REGISTRY.register()
def build_csp_resnet_backbone(cfg, input_shape):
    """
    Create a :class:`CSPBackbone` on the ResNet that MODEL.RESNETS describes.

    Returns:
        CSPBackbone:
    """
    return CSPBackbone(
        build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        out_channels=cfg.MODEL.BLOCKCOPY.CSP.NECK_CHANNELS,
    )
