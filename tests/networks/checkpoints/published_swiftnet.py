"""
SwiftNet in plain PyTorch, written from its description, as the authors of BlockCopy have it and as
its own authors do. The modules are named so that the state dicts are those of the public
checkpoints.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .published import Bottleneck, named

MEAN = torch.tensor([73.1584, 82.9090, 72.3924])[:, None, None] / 255
STD = torch.tensor([44.9149, 46.1529, 45.3192])[:, None, None] / 255


class BasicBlock(nn.Module):
    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class OrsicBasicBlock(BasicBlock):
    """Returns its output and what its last ReLU gets, which that ReLU overwrites."""

    def forward(self, x):
        if isinstance(x, tuple):
            x, _ = x
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu_(y), y


class OrsicBottleneck(Bottleneck):
    """Returns its output and what its last ReLU gets; another one comes before the addition."""

    def forward(self, x):
        if isinstance(x, tuple):
            x, _ = x
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = F.relu(self.bn3(self.conv3(y)))
        y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(y), y


class Encoder(nn.Module):
    """The ResNet; returns the features of its four stages."""

    basic_block, bottleneck = BasicBlock, Bottleneck

    def __init__(self, depth, stem, width, out_channels):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        in_channels, self.channels = stem, []
        for stage, blocks in enumerate({18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]):
            layers = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                if depth == 18:
                    layers.append(self.basic_block(in_channels, out_channels, stride))
                else:
                    layers.append(self.bottleneck(in_channels, width, out_channels, stride, 1))
                in_channels = out_channels
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
            self.channels.append(out_channels)
            width, out_channels = 2 * width, 2 * out_channels

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        features = []
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            features.append(x)
        return features


class OrsicEncoder(Encoder):
    """Returns what the last ReLU of each stage gets."""

    basic_block, bottleneck = OrsicBasicBlock, OrsicBottleneck

    def forward(self, x):
        return [before_relu for _, before_relu in super().forward(x)]


def unit(in_channels, out_channels, kernel_size, bias=False):
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=bias)
    return named(norm=nn.BatchNorm2d(in_channels), conv=conv)


def run(unit, x):
    return unit["conv"](F.relu(unit["norm"](x)))


def resize(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class PublishedSwiftNet(nn.Module):
    """For images twice as wide as high: cells of 8x16, 4x8 and 2x4."""

    encoder = Encoder

    def __init__(self, depth, *, stem, width, out_channels, features, num_classes=19):
        super().__init__()
        self.backbone = self.encoder(depth, stem, width, out_channels)
        *skips, last = self.backbone.channels
        level = features // 3
        pyramid = named(
            spp_bn=unit(last, features, 1),
            **{f"spp{index}": unit(features, level, 1) for index in range(3)},
            spp_fuse=unit(features + 3 * level, features, 1),
        )
        self.spp = named(spp=pyramid)
        self.upsample = nn.ModuleList(
            named(bottleneck=unit(skip, features, 1), blend_conv=unit(features, features, 3))
            for skip in reversed(skips)
        )
        self.logits = unit(features, num_classes, 1, bias=True)

    def forward(self, image):
        """Logits (19, H, W) of an RGB image (3, H, W) from 0 to 255."""
        features = self.backbone(((image / 255 - MEAN) / STD)[None])
        return resize(self.decode(features, self.spp["spp"], self.upsample), image.shape[-2:])[0]

    def decode(self, features, pyramid, steps):
        *skips, x = features
        x = run(pyramid["spp_bn"], x)
        maps = [x]
        for index, cells in enumerate([(8, 16), (4, 8), (2, 4)]):
            pooled = run(pyramid[f"spp{index}"], F.adaptive_avg_pool2d(x, cells))
            maps.append(resize(pooled, x.shape[-2:]))
        x = run(pyramid["spp_fuse"], torch.cat(maps, dim=1))
        for step, skip in zip(steps, reversed(skips), strict=True):
            x = resize(x, skip.shape[-2:]) + run(step["bottleneck"], skip)
            x = run(step["blend_conv"], x)
        return run(self.logits, x)


class PublishedOrsicSwiftNet(PublishedSwiftNet):
    """
    SwiftNet of its own authors: all but the logits is in the backbone, even the normalization.
    """

    encoder = OrsicEncoder

    def __init__(self, *args, mean, std, **kwargs):
        super().__init__(*args, **kwargs)
        self.backbone.spp, self.backbone.upsample = self.spp, self.upsample
        del self.spp, self.upsample
        self.backbone.register_buffer("img_mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.backbone.register_buffer("img_std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, image):
        """Logits (19, H, W) of an RGB image (3, H, W) from 0 to 255."""
        backbone = self.backbone
        features = backbone((image[None] - backbone.img_mean) / backbone.img_std)
        logits = self.decode(features, backbone.spp["spp"], backbone.upsample)
        return resize(logits, image.shape[-2:])[0]
