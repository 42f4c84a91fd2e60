"""
The policy network where no gradient is wanted, on a GPU: needs Triton.

Shape shorthand in this module:

    N: streams
    GH, GW: rows and columns of the block grid
"""

import torch

from blockcopy_d2.sparse.triton_ops.device import device_of

from .inputs import Inputs
from .layer import LayerLauncher, Map

__all__ = ["FusedNetwork"]


class FusedNetwork:
    """
    Runs a :class:`PolicyNetwork` in half precision. Reads its parameters as they are at the time of
    the call, or of the replay of a CUDA graph that has recorded one. The call before a recording
    has to be one of the same parameters.
    """

    def __init__(self, network, *, dtype=torch.float16, device=None):
        """
        Args:
            network (PolicyNetwork):
            dtype (torch.dtype): of maps and weights.
            device (Device): what is known of the GPU that it runs on; looked up if None.
        """
        self._network, self._dtype, self._device = network, dtype, device
        self._inputs = Inputs(network)

    def __call__(self, observation):
        """
        Args:
            observation (Observation): of N streams.

        Returns:
            Tensor: float (N, GH, GW), logits of execution.
        """
        device = self._device or device_of(observation.frame.device)
        stacked, weights, arrivals = self._inputs(observation, self._dtype, device)
        launch = LayerLauncher(device, self._dtype, weights, iter(arrivals))
        value = Map(stacked)
        stem, *blocks = self._network.backbone
        value = launch(stem, value)
        for block in blocks:
            y = launch(block.conv1, value, block.shortcut)
            residual = value
            if block.shortcut is not None:
                middle = block.conv1.out_channels
                residual = y.channels(middle, None, relu=False)
                y = y.channels(0, middle)
            value = launch(block.conv2, y)
            value.residual = residual
        for conv in self._network.head:
            value = launch(conv, value)
        return value.pixels[..., 0]
