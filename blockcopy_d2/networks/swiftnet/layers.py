"""
The parts of SwiftNet between its ResNet and its logits.

Shape shorthand in this module:

    N: images
    C: channels
    H, W: height and width of a feature map
"""

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import Conv2d, get_norm
from torch import nn
from torch.nn import functional as F

__all__ = ["NormReluConv", "SpatialPyramidPooling", "UpsampleBlend"]


class NormReluConv(nn.Module):
    """Normalization, ReLU, convolution: the unit of all SwiftNet's own layers."""

    def __init__(self, in_channels, out_channels, *, kernel_size, norm, bias=False):
        """
        Args:
            in_channels, out_channels, kernel_size (int): arguments of the convolution, which keeps
                H x W.
            norm (str or callable): see :func:`detectron2.layers.get_norm`.
            bias (bool): bias of the convolution.
        """
        super().__init__()
        self.norm = get_norm(norm, in_channels)
        self.conv = Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )
        weight_init.c2_msra_fill(self.conv)

    def forward(self, x):
        """
        Args:
            x (Tensor): (N, in_channels, H, W).

        Returns:
            Tensor: (N, out_channels, H, W).
        """
        return self.conv(F.relu(self.norm(x)))


class SpatialPyramidPooling(nn.Module):
    """
    Adds context to every pixel from the averages of large cells. The cells form a few grids and are
    about as wide as high; they are projected, resized back and concatenated with the features.
    """

    def __init__(self, in_channels, out_channels, *, norm, rows=(8, 4, 2)):
        """
        Args:
            in_channels, out_channels (int):
            norm (str or callable): see :func:`detectron2.layers.get_norm`.
            rows (sequence[int]): rows of cells of each grid.
        """
        super().__init__()
        self.rows = tuple(rows)
        level_channels = out_channels // len(rows)
        self.project = NormReluConv(in_channels, out_channels, kernel_size=1, norm=norm)
        self.levels = nn.ModuleList(
            NormReluConv(out_channels, level_channels, kernel_size=1, norm=norm) for _ in rows
        )
        self.fuse = NormReluConv(
            out_channels + len(rows) * level_channels, out_channels, kernel_size=1, norm=norm
        )

    def forward(self, x):
        """
        Args:
            x (Tensor): (N, in_channels, H, W).

        Returns:
            Tensor: (N, out_channels, H, W).
        """
        height, width = x.shape[-2:]
        x = self.project(x)
        maps = [x]
        for rows, level in zip(self.rows, self.levels):
            columns = max(1, round(rows * width / height))
            cells = level(F.adaptive_avg_pool2d(x, (rows, columns)))
            maps.append(
                F.interpolate(cells, size=(height, width), mode="bilinear", align_corners=False)
            )
        return self.fuse(torch.cat(maps, dim=1))


class UpsampleBlend(nn.Module):
    """One step of the decoder: features of the next lower resolution and a skip connection."""

    def __init__(self, skip_channels, channels, *, norm):
        """
        Args:
            skip_channels (int): channels of the skip connections.
            channels (int): number of channels of the decoder.
            norm (str or callable): see :func:`detectron2.layers.get_norm`.
        """
        super().__init__()
        self.lateral = NormReluConv(skip_channels, channels, kernel_size=1, norm=norm)
        self.blend = NormReluConv(channels, channels, kernel_size=3, norm=norm)

    def forward(self, x, skip):
        """
        Args:
            x (Tensor): (N, channels, H / 2, W / 2).
            skip (Tensor): (N, skip_channels, H, W).

        Returns:
            Tensor: (N, channels, H, W).
        """
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.blend(x + self.lateral(skip))
