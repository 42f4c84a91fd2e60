"""
The policy network without gradients, on a GPU. Needs Triton.

Shape shorthand in this module:

    N: streams
    GH, GW: rows and columns of the block grid
"""

import torch

from blockcopy_d2.kernels.device import device_of

from .convolution import convolve
from .inputs import Inputs
from .normalization import normalize

__all__ = ["FusedNetwork"]


class FusedNetwork:
    """
    Runs a :class:`PolicyNetwork` in half precision. It reads the parameters at the time of the
    call, or of the replay of a CUDA graph that has captured one. The call before a capture has to
    use the same parameters.
    """

    def __init__(self, network, *, dtype=torch.float16, device=None):
        """
        Args:
            network (PolicyNetwork):
            dtype (torch.dtype): type of maps and weights.
            device (Device): properties of the GPU that it runs on; looked up if None.
        """
        self._network, self._dtype, self._device = network, dtype, device
        self._inputs = Inputs(network)

    def __call__(self, observation):
        """
        Args:
            observation (Observation): observation of N streams.

        Returns:
            Tensor: float (N, GH, GW), logits of execution.
        """
        device = self._device or device_of(observation.frame.device)
        value, weights = self._inputs(observation, self._dtype, device)

        def sums_of(conv, value, shortcut=None):
            return convolve(conv, value, *weights[conv], device=device, shortcut=shortcut)

        stem, *blocks = self._network.backbone
        value = normalize(sums_of(stem, value), stem.norm, device=device)
        for block in blocks:
            sums, residual = sums_of(block.conv1, value, block.shortcut), value
            if block.shortcut is not None:
                middle = block.conv1.out_channels
                residual = sums.channels(middle, None), block.shortcut.norm
                sums = sums.channels(0, middle)
            value = normalize(sums, block.conv1.norm, device=device)
            sums = sums_of(block.conv2, value)
            value = normalize(sums, block.conv2.norm, device=device, residual=residual)
        *convs, logits = self._network.head
        for conv in convs:
            value = normalize(sums_of(conv, value), conv.norm, device=device)
        return sums_of(logits, value).values[..., 0]
