"""
The sizes of a frame, and the places of policy pixels in its output.

Shape shorthand in this module:

    h, w: policy resolution
    D: slots for detections of an image
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from blockcopy_d2.policy.observation import policy_centres

__all__ = ["FrameSizes", "PixelTables", "PolicyPixels"]


@dataclass(frozen=True)
class FrameSizes:
    """
    Attributes:
        image_size (tuple[int, int]): height, width of the network's input without its padding.
        canvas_size (tuple[int, int]): size of the network's input.
        output_size (tuple[int, int]): size of the output, such as of the detections' boxes and
            masks.
        grid_shape (tuple[int, int]): rows and columns of blocks.
        pixels_per_block (int): policy pixels along the side of a block.
    """

    image_size: tuple[int, int]
    canvas_size: tuple[int, int]
    output_size: tuple[int, int]
    grid_shape: tuple[int, int]
    pixels_per_block: int

    @property
    def output_scale(self):
        """tuple[float, float]: output pixels per pixel of the image, x and y."""
        (height, width), (image_height, image_width) = self.output_size, self.image_size
        return width / image_width, height / image_height


@dataclass
class PolicyPixels:
    """
    Attributes:
        row_centres, column_centres (Tensor): float32 (h,) and (w,), centres of the policy pixels
            in pixels of the output, -1 beyond it.
        rows, columns (Tensor): int64, the pixels that they lie in.
    """

    row_centres: Tensor
    column_centres: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, sizes, device):
        """
        Args:
            sizes (FrameSizes):
            device (torch.device):

        Returns:
            PolicyPixels:
        """
        centres = policy_centres(
            image_size=sizes.image_size,
            output_size=sizes.output_size,
            canvas_size=sizes.canvas_size,
            grid_shape=sizes.grid_shape,
            pixels_per_block=sizes.pixels_per_block,
            device=device,
        )
        pixels = [
            # Rounding must not carry the centre of the last pixel over the border.
            x.long().clamp_(max=length - 1)
            for x, length in zip(centres, sizes.output_size, strict=True)
        ]
        rows, columns = (
            [
                F.pad(x, (0, sizes.pixels_per_block * blocks - len(x)), value=-1)
                for x, blocks in zip(per_axis, sizes.grid_shape, strict=True)
            ]
            for per_axis in (centres, pixels)
        )
        return cls(*rows, *columns)

    def inside(self, boxes):
        """
        Args:
            boxes (Tensor): (N, D, 4), x0 y0 x1 y1 in pixels of the output.

        Returns:
            Tensor: bool (N, D, h, w), the policy pixels whose centres lie in the boxes.
        """
        rows, columns = self.row_centres, self.column_centres
        x0, y0, x1, y1 = boxes[..., None].unbind(2)
        in_rows = (rows >= y0) & (rows < y1)
        in_columns = (columns >= x0) & (columns < x1)
        return torch.logical_and(in_rows[..., :, None], in_columns[..., None, :])


class PixelTables(dict):
    """
    Holds the PolicyPixels of every pair of FrameSizes and device that was asked for. The first time
    puts tables on the device: it must be before a CUDA graph is captured.
    """

    def __missing__(self, key):
        self[key] = PolicyPixels.of(*key)
        return self[key]
