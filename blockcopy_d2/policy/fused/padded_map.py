"""
The maps that convolutions of the policy network read: with a border of zeros, so that windows of
pixels are read without asking where they end.

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
        values (Tensor): (N, H + 3, W + 2, C), the map from row 1 and column 1 on. Of the rows below
            it, one is the border, and windows that are read in whole steps end in the other.
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
            PaddedMap: with nothing written to it.
        """
        height, width = size
        return cls(like.new_empty(num_streams, height + 3, width + 2, channels))

    @property
    def size(self):
        """tuple[int, int]: H, W."""
        return self.values.shape[1] - 3, self.values.shape[2] - 2

    @property
    def num_pixels(self):
        """int: of a stream, with those around the map."""
        return self.values.shape[1] * self.values.shape[2]


@triton.jit
def padded_pixels(H, W):
    """PaddedMap.num_pixels of a map of H x W pixels."""
    return (H + 3) * (W + 2)


@triton.jit
def place_of(pixel, H, W):
    """(y, x, inside): where in the map the pixels of a padded one are, and whether they are."""
    y, x = pixel // (W + 2) - 1, pixel % (W + 2) - 1
    return y, x, (y >= 0) & (y < H) & (x >= 0) & (x < W)
