"""
The policy network (section 3.3 and Figure 4 of the paper).

Shape shorthand in this module:

    N: streams
    GH, GW: rows and columns of the block grid
    P: side of a block in policy pixels
    h, w: policy resolution, P GH x P GW
    K: classes of the task network's output
"""

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import nn
from torch.nn import functional as F

from blockcopy_d2.kernels import triton_runs_on

from .observation import PIXELS_PER_BLOCK

__all__ = ["INPUTS", "PolicyNetwork"]

# The maps that the paper's policy sees, in the order in which they are stacked (eq. 2).
INPUTS = ("frame", "frame_state", "output", "grid")
# All maps that it may see; the first three are pictures.
_MAPS = ("frame", "previous_frame", "frame_state", "output", "grid")
_PICTURES = _MAPS[:3]

# Strides of the head by the side of a block in policy pixels; the ResNet has a stride of 4.
_HEAD_STRIDES = {32: (2, 2, 2), 16: (2, 2, 1), 8: (2, 1, 1)}

# Standard deviation of natural images in pixel values (0 to 255).
NATURAL_PIXEL_STD = 58.0


class _FrameBatchNorm2d(nn.BatchNorm2d):
    """
    Normalizes by the statistics of the frame itself, each stream of a batch by its own, in training
    and inference mode alike. (The policy learns while the task network is in inference mode.)
    """

    def __init__(self, num_features):
        super().__init__(num_features, track_running_stats=False)

    def forward(self, x):
        if len(x) == 1:
            return super().forward(x)
        return torch.cat([super(_FrameBatchNorm2d, self).forward(frame) for frame in x.split(1)])


class PolicyNetwork(nn.Module):
    """
    A small ResNet and a fully convolutional head: f_pn of eq. 3, one logit per block.

    By default the input stacks frame (3), frame state (3), previous output (K) and previous grid
    (1). With a ResNet-8 and K = 1 there are 605,377 parameters, and 6.9 GMACs at 256 x 512, that is
    for a frame of 1024 x 2048 and blocks of 128. It runs in channels_last and fp32. Without
    gradients it runs on CUDA in half precision, as a few Triton kernels, which do not call hooks of
    the layers.
    """

    def __init__(
        self,
        *,
        num_classes,
        pixel_std=(1.0, 1.0, 1.0),
        pixels_per_block=PIXELS_PER_BLOCK,
        inputs=INPUTS,
        depth=8,
        center_inputs=False,
    ):
        """
        Args:
            num_classes (int): K.
            pixel_std (sequence[float]): divisors of the pixel values (0 to 255) in the task
                network. With Detectron2's usual 1.0, pixels reach +-128 and would drown the maps of
                output and grid, so the policy network scales natural images to unit variance.
            pixels_per_block (int): P, the total stride of the network: 32, or 16 or 8, for which
                the last one or two layers of the head keep their resolution.
            inputs (sequence[str]): names of maps of an Observation, in any order.
            depth (int): layers of the ResNet, 6 b + 2 for b blocks at each of three resolutions.
            center_inputs (bool): shift output and grid by -0.5, as the authors' code does.
        """
        super().__init__()
        scale = torch.tensor(pixel_std, dtype=torch.float32) / NATURAL_PIXEL_STD
        self.register_buffer("pixel_scale", scale.view(1, -1, 1, 1), persistent=False)
        self.center_inputs = center_inputs
        self.inputs = tuple(name for name in _MAPS if name in inputs)
        channels = dict.fromkeys(_PICTURES, len(pixel_std)) | {"output": num_classes, "grid": 1}
        layers, width = [_conv_norm_relu(sum(channels[name] for name in self.inputs), 32)], 32
        for out_channels, stride in ((32, 1), (64, 2), (128, 2)):
            for block in range((depth - 2) // 6):
                stride = 1 if block else stride
                layers.append(
                    BasicBlock(width, out_channels, stride=stride, norm=_FrameBatchNorm2d)
                )
                width = out_channels
        self.backbone = nn.Sequential(*layers)
        strides = _HEAD_STRIDES[pixels_per_block]
        self.head = nn.Sequential(
            _conv_norm_relu(128, 128, stride=strides[0]),
            _conv_norm_relu(128, 128, stride=strides[1]),
            nn.Conv2d(128, 1, kernel_size=3, stride=strides[2], padding=1),
        )
        # Small, so that all blocks start near a probability of one half.
        nn.init.normal_(self.head[-1].weight, std=0.01)
        nn.init.zeros_(self.head[-1].bias)
        self.to(memory_format=torch.channels_last)
        self._fused = None

    def forward(self, observation):
        """
        Args:
            observation (Observation): observation of N streams.

        Returns:
            Tensor: float (N, GH, GW), logits of execution.
        """
        device = observation.frame.device
        half = device.type == "cuda" and not torch.is_grad_enabled()
        if half and self._runs_fused_on(device):
            return self._fused_network()(observation)
        stacked = self._stack(observation)
        # Gradients of a reward are too small for half precision. Without gradients, a GPU spends
        # its time on moving these few channels, and half precision halves that.
        with torch.autocast(device.type, torch.float16, enabled=half):
            return self.head(self.backbone(stacked))[:, 0].float()

    @torch.no_grad()
    def without_gradients(self, observation):
        """
        Returns the logits as :meth:`forward` does without gradients.
        """
        if self._runs_fused_on(observation.frame.device):
            return self._fused_network()(observation)
        return self(observation)

    def _runs_fused_on(self, device):
        as_in_paper = self.inputs == INPUTS and not self.center_inputs
        return as_in_paper and triton_runs_on(device)

    def _fused_network(self):
        from .fused import FusedNetwork

        if self._fused is None:
            self._fused = FusedNetwork(self)
        return self._fused

    def _stack(self, observation):
        maps = {name: getattr(observation, name) for name in self.inputs}
        for name in maps.keys() & _PICTURES:
            maps[name] = maps[name] * self.pixel_scale
        if "grid" in maps:
            size = observation.frame.shape[-2:]
            maps["grid"] = F.interpolate(observation.grid, size=size, mode="nearest")
        for name in maps.keys() - _PICTURES if self.center_inputs else ():
            maps[name] = maps[name] - 0.5
        stacked = torch.cat([x.float() for x in maps.values()], dim=1)
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
