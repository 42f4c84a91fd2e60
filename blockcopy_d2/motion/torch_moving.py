"""
Moves the rows of feature maps in plain PyTorch, for CPUs.

Bilinear interpolation is a weighted sum of four rows of C channels, and an embedding bag computes
such sums. Pixels must be read before they are overwritten. They move in chunks, from the top of the
map to its bottom, and a chunk is written back once no later one reads the rows it goes to. So
pixels wait in a few megabytes, which stay in the processor's cache. That takes a fifth of the time
of moving all of a large map at once.

Shape shorthand in this module:

    N: streams
    C: channels
    H, W: height and width of a map of stride s
    c: side of a cell, in pixels of the network's input
    GH, GW: rows and columns of cells
    M: pixels that move
"""

from functools import cached_property

import torch
from torch.nn import functional as F

from .field import moved_cells, resample_field

__all__ = ["MovedPixels"]

# Bytes of a chunk of pixels: the fastest of 256 KiB to 4 MiB.
_CHUNK_BYTES = 2 << 20


class MovedPixels:
    """
    The pixels that move in a frame, and their sources, for all maps of one stride. Pixels of blocks
    that run are left out.
    """

    def __init__(self, field, grid, *, cell_size, stride, size):
        """
        Args:
            field (Tensor): float32 (N, 2, GH, GW). Components that are not finite count as 0.
            grid (BlockGrid): the blocks that will run.
            cell_size (int): c.
            stride (int): s.
            size (tuple[int, int]): H, W.
        """
        height, width = size
        field = field.nan_to_num(0, 0, 0)
        if stride > cell_size:
            field = resample_field(field, cell_size, stride, grid.image_size)
            cell_size = stride
        tile = cell_size // stride
        moves = moved_cells(field).repeat_interleave(tile, 1).repeat_interleave(tile, 2)
        moves = moves[:, :height, :width] & ~grid.at_stride(stride).pixel_mask()
        # Rows of the map, ascending.
        self.targets = moves.flatten().nonzero()[:, 0]
        if not len(self.targets):
            return
        line = self.targets.div(width, rounding_mode="floor")
        column = self.targets - line * width
        stream = line.div(height, rounding_mode="floor")
        row = line - stream * height
        cell_rows, cell_columns = field.shape[-2:]
        cell = (stream * cell_rows + row // tile) * cell_columns + column // tile
        dx, dy = field.movedim(1, 0).flatten(1).index_select(1, cell) / stride
        left, right, weight_x = _taps(column, dx, width)
        top, bottom, weight_y = _taps(row, dy, height)
        first = stream.int() * height
        top, bottom = (first + top) * width, (first + bottom) * width
        self._sources = torch.stack([top + left, top + right, bottom + left, bottom + right], dim=1)
        other_x, other_y = 1 - weight_x, 1 - weight_y
        weights = (other_y * other_x, other_y * weight_x, weight_y * other_x, weight_y * weight_x)
        self._chunk_lists = {}
        self._weights = {torch.float32: torch.stack(weights, dim=1)}

    def move(self, rows):
        """
        Moves the pixels of a map in place.

        Args:
            rows (Tensor): float (at least NHW, C), see ``FeatureMap``.
        """
        count = len(self.targets)
        if not count:
            return
        if rows.dtype not in self._weights:
            self._weights[rows.dtype] = self._weights[torch.float32].to(rows.dtype)
        weights = self._weights[rows.dtype]
        row_bytes = rows.shape[1] * rows.element_size()
        # A GPU has enough memory, and the host should not wait for it once per chunk.
        size = count if rows.is_cuda else min(max(_CHUNK_BYTES // row_bytes, 1), count)
        waiting = []
        for chunk, target_end, lowest_later in self._chunks(size):
            moved = F.embedding_bag(
                self._sources[chunk], rows, mode="sum", per_sample_weights=weights[chunk]
            )
            waiting.append((target_end, self.targets[chunk], moved))
            while waiting and waiting[0][0] <= lowest_later:
                _, targets, moved = waiting.pop(0)
                rows.index_copy_(0, targets, moved)

    def _chunks(self, size):
        """
        Args:
            size (int): pixels of a chunk.

        Returns:
            list[tuple[slice, int, int]]: for each chunk its pixels, the row after the last that it
            writes, and the lowest row that later chunks read.
        """
        if size not in self._chunk_lists:
            count = len(self.targets)
            starts = list(range(0, count, size))
            ends = [min(start + size, count) for start in starts]
            target_ends = (self.targets[[end - 1 for end in ends]] + 1).tolist()
            lowest = [*self._lowest_sources[starts[1:]].tolist(), target_ends[-1]]
            chunks = [slice(*bounds) for bounds in zip(starts, ends)]
            self._chunk_lists[size] = list(zip(chunks, target_ends, lowest))
        return self._chunk_lists[size]

    @cached_property
    def _lowest_sources(self):
        """Returns int32 (M,), the lowest row that a pixel or a later one reads."""
        return self._sources[:, 0].flip(0).cummin(0).values.flip(0)


def _taps(pixel, shift, length):
    """
    Returns the pixels that bilinear interpolation reads along an axis.

    Args:
        pixel (Tensor): int64 (M,).
        shift (Tensor): float32 (M,), in pixels of the map.
        length (int): length of the map.

    Returns:
        tuple[Tensor, Tensor, Tensor]: int32 (M,) first and second pixel, float32 (M,) weight of
        the second. Where the weight is 0 the second is the first, so that no other is read.
    """
    position = (pixel + shift).clamp_(0, length - 1)
    first = position.int()
    weight = position - first
    return first, first + (weight > 0), weight
