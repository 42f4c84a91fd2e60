"""
Inputs of the policy network's convolutions, with a border of zeros, so that windows of pixels are
read without bounds checks.

Shape shorthand in this module:

    N: streams
    H, W, C: size and channels
"""

import dataclasses

import triton
import triton.language as tl  # noqa: F401  the interpreter asks for it
from torch import Tensor

__all__ = ["PaddedMap", "padded_pixels", "place_of"]


@dataclasses.dataclass
class PaddedMap:
    """
    Attributes:
        values (Tensor): (N, H + 3, W + 2, C), the map from row 1 and column 1 on. There are two
            rows below it: the border, and one where windows read in whole steps may end.
    """

    values: Tensor

    @classmethod
    def empty(cls, num_streams, size, channels, *, like):
        """
        Args:
            num_streams (int): N.
            size (tuple[int, int]): H, W.
            channels (int): C.
            like (Tensor): a tensor whose dtype and device the map takes.

        Returns:
            PaddedMap: an uninitialized one.
        """
        height, width = size
        return cls(like.new_empty(num_streams, height + 3, width + 2, channels))

    @property
    def size(self):
        """tuple[int, int]: H, W."""
        return self.values.shape[1] - 3, self.values.shape[2] - 2

    @property
    def num_pixels(self):
        """int: pixels of a stream, including those around the map."""
        return self.values.shape[1] * self.values.shape[2]


@triton.jit
def padded_pixels(H, W):
    """PaddedMap.num_pixels of a map of H x W pixels."""
    return (H + 3) * (W + 2)


@triton.jit
def place_of(pixel, H, W):
    """
    Returns (y, x, inside): places in the map of pixels of the padded map, and whether they are
    inside.
    """
    y, x = pixel // (W + 2) - 1, pixel % (W + 2) - 1
    return y, x, (y >= 0) & (y < H) & (x >= 0) & (x < W)
