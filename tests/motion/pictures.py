"""Pictures that move by a known amount."""

import torch
from torch.nn import functional as F


def texture(height, width, *, streams=1, grain=6):
    """Random texture with structure of ``grain`` pixels and of all coarser scales, as pictures
    have it: whole numbers from 0 to 255, float32 (streams, 3, height, width)."""
    picture = torch.zeros(streams, 3, height, width)
    while grain < 128:
        coarse = torch.randn(streams, 3, height // grain + 2, width // grain + 2)
        size = (coarse.shape[2] * grain, coarse.shape[3] * grain)
        fine = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
        picture += fine[:, :, :height, :width]
        grain *= 2
    return (128 + 32 * picture).clamp(0, 255).round()


def moved_pair(height, width, dx, dy, *, streams=1, grain=6):
    """
    Two frames; the content of the second was at (x + dx, y + dy) in the first.

    Returns:
        tuple[Tensor, Tensor]: the current frame and the previous one.
    """
    room = 32
    world = texture(height + 2 * room, width + 2 * room, streams=streams, grain=grain)
    previous = world[:, :, room : room + height, room : room + width]
    if float(dx).is_integer() and float(dy).is_integer():
        top, left = room + int(dy), room + int(dx)
        return world[:, :, top : top + height, left : left + width].contiguous(), previous
    y = torch.arange(height)[:, None] + room + dy
    x = torch.arange(width)[None] + room + dx
    at = torch.stack(
        [
            (2 * x + 1) / world.shape[3] - 1 + 0 * y,
            (2 * y + 1) / world.shape[2] - 1 + 0 * x,
        ],
        -1,
    )
    at = at[None].expand(streams, -1, -1, -1)
    current = F.grid_sample(world, at, mode="bicubic", align_corners=False)
    return current.clamp(0, 255), previous


def inner(field, cell_size, border=64):
    """The field without the cells at the border, into which unknown content moves."""
    margin = border // cell_size
    rows, columns = field.shape[2:]
    return field[:, :, margin : rows - margin, margin : columns - margin]
