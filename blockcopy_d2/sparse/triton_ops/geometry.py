"""The places of the pixels of the active blocks.

Shape shorthand: N streams, GH x GW blocks of T x T pixels in a map of H x W pixels; blocks at the
lower and right border may reach beyond the map.
"""

import dataclasses

import torch
import triton
import triton.language as tl


@dataclasses.dataclass
class BlockList:
    """The active blocks of a frame, on the device.

    Attributes:
        blocks: int32 (N * GH * GW,), flat indices of the active blocks in (N, GH, GW), ascending.
            Entries after the first `count` are undefined.
        count: int32 (1,).
        settled: whether another launch lies between the one that made the list and the next one. A
            kernel may then read the list before earlier kernels have ended, see
            :func:`count_blocks`.
    """

    blocks: torch.Tensor
    count: torch.Tensor
    settled: bool = False


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Blocks as they cover the maps of one stride.

    Attributes:
        tile: T.
        rows, columns: GH, GW.
        num_blocks: N * GH * GW.
    """

    tile: int
    rows: int
    columns: int
    num_blocks: int

    @property
    def sides(self):
        """(T, GH, GW), as kernels take it."""
        return self.tile, self.rows, self.columns

    @property
    def num_pixels(self):
        """Pixels of all blocks, those beyond the border included."""
        return self.num_blocks * self.tile**2


@triton.jit
def locate(m, blocks_ptr, num_pixels, tiling):
    """(stream, y, x, valid) of the m-th active pixels, counted block by block, row by row.

    `num_pixels` is the number of active ones; y and x may lie beyond the border of the map.
    """
    T, GH, GW = tiling
    valid = m < num_pixels
    block = tl.load(blocks_ptr + m // (T * T), mask=valid, other=0)
    inside = m % (T * T)
    row = block // GW
    y = (row % GH) * T + inside // T
    x = (block % GW) * T + inside % T
    return row // GH, y, x, valid


@triton.jit
def pixel_number(stream, y, x, H, W, WIDE: tl.constexpr):
    """Numbers of pixels among those of all streams, of 64 bits where offsets of their channels do
    not fit into 32."""
    pixel = (stream * H + y) * W + x
    if WIDE:
        pixel = pixel.to(tl.int64)
    return pixel
