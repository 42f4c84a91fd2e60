"""
The head of CSP. Shape shorthand: N images, C channels, H x W pixels of the feature map.
"""

import math

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, get_norm
from torch import nn
from torch.nn import functional as F

__all__ = ["CSPHead"]


class _Branch(nn.Module):
    def __init__(self, in_channels, channels, out_channels):
        super().__init__()
        self.conv = Conv2d(
            in_channels,
            channels,
            kernel_size=3,
            padding=1,
            bias=False,
            norm=get_norm("GN", channels),
            activation=F.relu_,
        )
        self.predictor = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1)
        for layer in (self.conv, self.predictor):
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, x):
        return self.predictor(self.conv(x))


class CSPHead(nn.Module):
    """
    Predicts for every pixel whether an object is centred there, its height and its exact place.
    """

    @configurable
    def __init__(self, *, in_channels, channels, prior_prob=0.01):
        """
        Args:
            in_channels (int): number of channels of the feature map.
            channels (int): number of channels of each branch, a multiple of 32.
            prior_prob (float): score of every pixel in an untrained head.
        """
        super().__init__()
        self.center = _Branch(in_channels, channels, 1)
        self.height = _Branch(in_channels, channels, 1)
        self.offset = _Branch(in_channels, channels, 2)
        self.height_scale = nn.Parameter(torch.tensor(1.0))
        self.offset_scale = nn.Parameter(torch.tensor(1.0))
        nn.init.constant_(self.center.predictor.bias, -math.log(1 / prior_prob - 1))

    @classmethod
    def from_config(cls, cfg, input_shape):
        """
        Args:
            input_shape (dict[str, ShapeSpec]): shapes of the one feature map.
        """
        (shape,) = input_shape.values()
        return {"in_channels": shape.channels, "channels": cfg.MODEL.BLOCKCOPY.CSP.HEAD_CHANNELS}

    def forward(self, features):
        """
        Args:
            features (list[Tensor]): one map, float (N, C, H, W).

        Returns:
            tuple[Tensor]: float (N, 1, H, W), the logit of a centre; (N, 1, H, W), the logarithm
            of the object's height in pixels of the map; (N, 2, H, W), y and x of its centre from
            the middle of the pixel, in pixels of the map.
        """
        (x,) = features
        return (
            self.center(x),
            self.height(x) * self.height_scale,
            self.offset(x) * self.offset_scale,
        )
