"""
Moves maps at policy resolution: pictures, painted outputs, masks.

Shape shorthand in this module:

    N: streams
    C: channels
    n: masks of a stream
    h, w: policy resolution, in pixels of s x s pixels of the network's input
    c: side of a cell, in pixels of the network's input
    FH, FW: rows and columns of cells
"""

import math
from functools import cached_property

import torch
from torch.nn import functional as F

from blockcopy_d2.kernels import triton_runs_on
from blockcopy_d2.sparse import BlockGrid

from .field import moved_cells
from .move import displacements, move
from .torch_moving import MovedPixels

__all__ = ["PolicyMotion"]


class PolicyMotion:
    """The motion of one frame of N streams, for maps at policy resolution."""

    def __init__(self, field, *, cell_size, stride, size):
        """
        Args:
            field (Tensor): float32 (N, 2, FH, FW). Pixels that it does not cover stand still.
            cell_size (int): c.
            stride (float): s.
            size (tuple[int, int]): h, w.
        """
        self._field = field.contiguous()
        self._layout = {"cell_size": cell_size, "stride": stride}
        self._size = size

    def split(self):
        """
        Returns:
            list[PolicyMotion]: one for each stream.
        """
        return [PolicyMotion(x, **self._layout, size=self._size) for x in self._field.split(1)]

    def move_maps(self, x):
        """
        Args:
            x (Tensor): float (N, C, h, w).

        Returns:
            Tensor: as :func:`.move.move` moves it.
        """
        stride = self._layout["stride"]
        if triton_runs_on(x.device):
            from .triton_policy_maps import move_maps_launch

            return move_maps_launch(x.contiguous(), self._field, **self._layout)
        if x.is_cuda or stride != int(stride):
            return move(x, self._covering, **self._layout)
        if not moved_cells(self._field).any():
            return x
        # Copied, since rows are moved in place.
        rows = torch.empty(len(x) * math.prod(self._size), x.shape[1], dtype=x.dtype)
        pixels = rows.view(len(x), *self._size, x.shape[1])
        pixels.copy_(x.permute(0, 2, 3, 1))
        self._pixels.move(rows)
        return pixels.permute(0, 3, 1, 2).contiguous()

    def move_masks(self, masks):
        """
        Args:
            masks (Tensor): bool (N, n, h, w), or (n, h, w) of a single stream.

        Returns:
            Tensor: bool, like ``masks``; every pixel has the value of the pixel nearest to its
            source.
        """
        if triton_runs_on(masks.device):
            from .triton_policy_maps import move_masks_launch

            return move_masks_launch(masks.contiguous(), self._field, **self._layout)
        # Copies single bytes much faster than index_select().
        flat = masks.reshape(len(self._field), -1, math.prod(self._size))
        return flat.gather(2, self._sources[:, None].expand_as(flat)).view(masks.shape)

    def mean_vectors(self, masks):
        """
        Args:
            masks (Tensor): bool (N, n, h, w), or (n, h, w) of a single stream, moved.

        Returns:
            Tensor: float (N, n, 2) or (n, 2), the mean vector (dx, dy) of the pixels of each mask,
            in pixels of the network's input; 0 for an empty one.
        """
        vectors = self._shift.flatten(2) * self._layout["stride"]
        flat = masks.reshape(len(self._field), -1, math.prod(self._size)).float()
        means = flat @ vectors.mT / flat.sum(dim=2, keepdim=True).clamp_min(1)
        return means.view(*masks.shape[:-2], 2)

    @cached_property
    def _covering(self):
        """The field with cells that stand still below and to the right, up to the last pixel."""
        cell_size, stride = self._layout["cell_size"], self._layout["stride"]
        rows, columns = (math.ceil(length * stride / cell_size) for length in self._size)
        field = self._field
        return F.pad(field, (0, columns - field.shape[-1], 0, rows - field.shape[-2]))

    @cached_property
    def _shift(self):
        """float (N, 2, h, w), in pixels of the map."""
        return displacements(self._covering, **self._layout, size=self._size)

    @cached_property
    def _sources(self):
        """int64 (N, hw): the pixel nearest to the source of each."""
        height, width = self._size
        dx, dy = self._shift.unbind(1)
        rows = torch.arange(height, device=dy.device)[:, None] + (dy + 0.5).floor().long()
        columns = torch.arange(width, device=dx.device) + (dx + 0.5).floor().long()
        return (rows.clamp_(0, height - 1) * width + columns.clamp_(0, width - 1)).flatten(1)

    @cached_property
    def _pixels(self):
        """MovedPixels: those of all blocks."""
        stride, cell_size = int(self._layout["stride"]), self._layout["cell_size"]
        canvas = tuple(length * stride for length in self._size)
        block_size = max(stride, cell_size)
        nothing = BlockGrid.empty(block_size=block_size, image_size=canvas, batch=len(self._field))
        return MovedPixels(
            self._covering, nothing, cell_size=cell_size, stride=stride, size=self._size
        )
