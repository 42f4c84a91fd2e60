"""
A motion field: where the content of each cell of the picture was one frame ago.

The definition that all estimators and users of motion share:

* A field is float32 (N, 2, GH, GW), one vector per cell of c x c pixels of the network's input.
  GH is ceil(H / c) and GW ceil(W / c): cells at the right and lower border may be cut.
* Channel 0 is dx, to the right, and channel 1 is dy, downwards, both in pixels of the network's
  input. The content of the pixel at (x, y) was at (x + dx, y + dy) one frame ago:
  **source = position + field**. An object that moves 3 pixels to the right has dx = -3.
* A vector is exactly 0 where the picture stands still, and outside the image on a padded canvas.
  It is always finite. A stream has a field of zeros in its first frame and after a cut.

Shape shorthand in this module:

    N: streams
    H, W: height and width of the network's input, in pixels
    c: side of a cell, in pixels
    GH, GW: rows and columns of cells
"""

import torch
from torch.nn import functional as F

__all__ = ["clear_field", "field_size", "moved_cells", "resample_field", "zero_field"]


def field_size(image_size, cell_size):
    """
    Args:
        image_size (tuple[int, int]): H, W.
        cell_size (int): c.

    Returns:
        tuple[int, int]: GH, GW.
    """
    height, width = image_size
    return -(-height // cell_size), -(-width // cell_size)


def zero_field(image_size, cell_size, *, streams=1, device=None):
    """
    Args:
        image_size (tuple[int, int]): H, W.
        cell_size (int): c.
        streams (int): N.
        device (torch.device or str): where the field lies.

    Returns:
        Tensor: float32 (N, 2, GH, GW), the field of pictures that stand still.
    """
    return torch.zeros(streams, 2, *field_size(image_size, cell_size), device=device)


def moved_cells(field):
    """
    Args:
        field (Tensor): (N, 2, GH, GW).

    Returns:
        Tensor: bool (N, GH, GW), true for the cells that moved.
    """
    return (field != 0).any(dim=1)


def clear_field(field, cleared):
    """
    Zeroes the field of some streams in place, for a cut or a first frame. Nothing is read on the
    host. Vectors that are not finite are overwritten, too.

    Args:
        field (Tensor): (N, 2, GH, GW).
        cleared (Tensor): bool (N,), true for the streams to zero.

    Returns:
        Tensor: ``field``.
    """
    return field.masked_fill_(cleared.view(-1, 1, 1, 1), 0)


def resample_field(field, cell_size, new_cell_size, image_size):
    """
    Returns the field for cells of another size. Finer cells take the vector of the cell that they
    lie in. A coarser cell takes the mean over the cells in it, those cut by the border included.
    Vectors stay in pixels of the network's input.

    Args:
        field (Tensor): (N, 2, GH, GW), with cells of ``cell_size``.
        cell_size (int): c.
        new_cell_size (int): a multiple or a divisor of ``cell_size``.
        image_size (tuple[int, int]): H, W.

    Returns:
        Tensor: float32 (N, 2, ceil(H / new_cell_size), ceil(W / new_cell_size)).
    """
    expected = field_size(image_size, cell_size)
    if tuple(field.shape[-2:]) != expected:
        raise ValueError(
            f"a field of {tuple(field.shape[-2:])} cells does not fit an image of "
            f"{tuple(image_size)} pixels with cells of {cell_size}: expected {expected}"
        )
    if new_cell_size == cell_size:
        return field
    if cell_size % new_cell_size == 0:
        times = cell_size // new_cell_size
        rows, columns = field_size(image_size, new_cell_size)
        finer = field.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
        return finer[:, :, :rows, :columns]
    if new_cell_size % cell_size == 0:
        return F.avg_pool2d(field, new_cell_size // cell_size, ceil_mode=True)
    raise ValueError(
        f"new_cell_size is {new_cell_size}: expected a multiple or a divisor of {cell_size}"
    )
