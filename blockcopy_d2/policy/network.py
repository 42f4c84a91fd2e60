"""
The policy network (section 3.3 and Figure 4 of the paper).

Shape shorthand in this module:

    N: streams
    GH, GW: rows and columns of the block grid
    h, w: policy resolution, 32 GH x 32 GW
    K: classes of the task network's output
"""

from functools import partial

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import nn
from torch.nn import functional as F

__all__ = ["PolicyNetwork"]

# Standard deviation of natural images in pixel values (0 to 255).
_NATURAL_PIXEL_STD = 58.0

# Normalizes by the statistics of the frame itself, in training and inference mode alike: the
# policy learns while the task network around it is in inference mode.
_FrameBatchNorm2d = partial(nn.BatchNorm2d, track_running_stats=False)


class PolicyNetwork(nn.Module):
    """
    A ResNet-8 and a fully convolutional head: f_pn of eq. 3, one logit per block.

    The input stacks frame (3), frame state (3), previous output (K) and previous grid (1);
    at K = 1 there are 605,377 parameters, and 6.9 GMACs at 256 x 512, that is for a frame of
    1024 x 2048 and blocks of 128. Runs in fp32 and channels_last.
    """

    def __init__(self, *, num_classes, pixel_std=(1.0, 1.0, 1.0)):
        """
        Args:
            num_classes (int): K.
            pixel_std (sequence[float]): what the task network divides pixel values (0 to 255) by.
                With Detectron2's usual 1.0 they reach +-128, and would drown the maps of
                the output and the grid; the network scales them to natural images of unit
                variance.
        """
        super().__init__()
        scale = torch.tensor(pixel_std, dtype=torch.float32) / _NATURAL_PIXEL_STD
        self.register_buffer("pixel_scale", scale.view(1, -1, 1, 1), persistent=False)
        self.backbone = nn.Sequential(
            _conv_norm_relu(2 * len(pixel_std) + num_classes + 1, 32),
            BasicBlock(32, 32, stride=1, norm=_FrameBatchNorm2d),
            BasicBlock(32, 64, stride=2, norm=_FrameBatchNorm2d),
            BasicBlock(64, 128, stride=2, norm=_FrameBatchNorm2d),
        )
        self.head = nn.Sequential(
            _conv_norm_relu(128, 128, stride=2),
            _conv_norm_relu(128, 128, stride=2),
            nn.Conv2d(128, 1, kernel_size=3, stride=2, padding=1),
        )
        # Small, so that all blocks start near a probability of one half.
        nn.init.normal_(self.head[-1].weight, std=0.01)
        nn.init.zeros_(self.head[-1].bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, observation):
        """
        Args:
            observation (Observation): of N streams. Streams of a batch share their statistics.

        Returns:
            Tensor: float (N, GH, GW), logits of execution.
        """
        # Gradients of a reward are too small for half precision, and the network too cheap to need
        # it.
        with torch.autocast(observation.frame.device.type, enabled=False):
            return self.head(self.backbone(self._stack(observation)))[:, 0]

    def _stack(self, observation):
        frame, frame_state = observation.frame, observation.frame_state
        grid = F.interpolate(observation.grid, size=frame.shape[-2:], mode="nearest")
        maps = [
            frame * self.pixel_scale,
            frame_state * self.pixel_scale,
            observation.output,
            grid,
        ]
        stacked = torch.cat([x.float() for x in maps], dim=1)
        return stacked.contiguous(memory_format=torch.channels_last)


def _conv_norm_relu(in_channels, out_channels, stride=1):
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=1,
        bias=False,
        norm=_FrameBatchNorm2d(out_channels),
        activation=F.relu_,
    )
    weight_init.c2_msra_fill(conv)
    return conv
