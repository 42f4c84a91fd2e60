"""
Turns a convolution into a matrix product.

With few channels, tensor cores do little work per value that they read. So several neighbouring
output pixels share their inputs: for each of the three rows of the kernel, they reduce over one
window of input pixels, contiguous in memory, with weights of zero for inputs that a pixel does not
use.
"""

import dataclasses

__all__ = ["CHANNELS", "Packing", "packing", "padded_channels"]

# Channels of a map are padded to a multiple, for tensor cores.
CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class Packing:
    """
    Attributes:
        pixels (int): neighbouring output pixels that share a window.
        stride (int): stride of the convolution.
        channels (int): number of channels of the map that it reads.
        step (int): values that are reduced at a time, a power of two.
    """

    pixels: int
    stride: int
    channels: int
    step: int

    @property
    def window(self):
        """int: input pixels of a window."""
        return self.stride * (self.pixels - 1) + 3

    @property
    def row(self):
        """int: values of a window, including the padding of its last step."""
        return -(-self.window * self.channels // self.step) * self.step


def packing(conv):
    """
    Args:
        conv (Conv2d): 3x3.

    Returns:
        Packing: the one that its launch uses.
    """
    channels, stride = padded_channels(conv.in_channels), conv.stride[0]
    packed = Packing(_pixels(channels, stride), stride, channels, 128)
    whole = packed.window * channels == packed.row
    return packed if whole else dataclasses.replace(packed, step=64)


def _pixels(channels, stride):
    """
    Two pixels of few channels fill tensor cores. They read two thirds of the values that two single
    ones would, unless their stride keeps them apart. More pixels save little more, and multiply
    zeros.
    """
    return 2 if stride == 1 and channels <= 32 else 1


def padded_channels(channels):
    """Channels of a map that is padded to a multiple of CHANNELS."""
    return -(-channels // CHANNELS) * CHANNELS
