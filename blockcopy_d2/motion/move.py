"""
Defines how a motion field moves a map, in plain PyTorch.

A pixel of a map takes the vector of the cell that its centre lies in, or, where it is larger than a
cell, the mean over the cells that it covers. The pixel then takes the content that far away one
frame ago, interpolated bilinearly. Beyond the border the nearest pixel counts. A pixel whose vector
is 0 keeps its bits.

Shape shorthand in this module:

    N: streams
    C: channels
    H, W: height and width of a map, in pixels of s x s pixels of the network's input
    c: side of a cell, in pixels of the network's input
    GH, GW: rows and columns of cells
"""

import torch
from torch.nn import functional as F

__all__ = ["displacements", "move"]


def move(x, field, *, cell_size, stride):
    """
    Moves a map by a field. :mod:`.torch_moving` and :mod:`.triton_moving` compute the same for the
    caches of a stream.

    Args:
        x (Tensor): float (N, C, H, W).
        field (Tensor): float32 (N, 2, GH, GW), see :mod:`.field`.
        cell_size (int): c.
        stride (float or tuple[float, float]): s, or a pair, along y and along x.

    Returns:
        Tensor: like ``x``, in memory of its own.
    """
    height, width = x.shape[-2:]
    shift = displacements(field, cell_size=cell_size, stride=stride, size=(height, width)).double()
    rows = torch.arange(height, device=x.device)[:, None] + shift[:, 1]
    columns = torch.arange(width, device=x.device) + shift[:, 0]
    # Pixel p of n has its centre at (2p + 1) / n - 1. Double precision, so that even after rounding
    # a shift by whole pixels takes nothing from neighbours.
    positions = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    moved = F.grid_sample(
        x.double(), positions, mode="bilinear", padding_mode="border", align_corners=False
    )
    still = (shift == 0).all(dim=1, keepdim=True)
    return torch.where(still, x, moved.to(x.dtype))


def displacements(field, *, cell_size, stride, size):
    """
    Returns the source of each pixel of a map, relative to the pixel.

    Args:
        field (Tensor): float32 (N, 2, GH, GW). Components that are not finite count as 0.
        cell_size (int): c.
        stride (float or tuple[float, float]): s, or a pair, along y and along x.
        size (tuple[int, int]): H, W.

    Returns:
        Tensor: float32 (N, 2, H, W), dx and dy in pixels of the map.
    """
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    field = field.nan_to_num(0, 0, 0)
    if strides[0] == strides[1] > cell_size and strides[0] % cell_size == 0:
        field = F.avg_pool2d(field, strides[0] // cell_size, ceil_mode=True)
        cell_size = strides[0]
    rows, columns = (
        ((torch.arange(length, device=field.device) + 0.5) * step / cell_size)
        .long()
        .clamp(max=n - 1)
        for length, step, n in zip(size, strides, field.shape[-2:], strict=True)
    )
    shift = field.index_select(2, rows).index_select(3, columns)
    # One at a time: a tensor of both would need a copy from the host, which a CUDA graph cannot
    # make.
    return torch.stack([shift[:, 0] / strides[1], shift[:, 1] / strides[0]], dim=1)
