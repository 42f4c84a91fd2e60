"""
Targets that CSP learns from (section 3.3 of its paper).

Shape shorthand: N images, n boxes of an image, H x W pixels of the feature map.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CenterTargets", "center_targets"]

# The height is also learned within this many pixels around a centre.
_RADIUS = 2


@dataclass
class CenterTargets:
    """
    Attributes:
        center (Tensor): bool (H, W), where objects are centred.
        closeness (Tensor): float (H, W) in [0, 1], gaussians around the centres within their
            boxes: false positives count less where it is high.
        near_center (Tensor): bool (H, W), where the height counts.
        log_height (Tensor): float (H, W), logarithm of the height in pixels of the map.
        offset (Tensor): float (2, H, W), y and x of the centre from the middle of its pixel.
    """

    center: Tensor
    closeness: Tensor
    near_center: Tensor
    log_height: Tensor
    offset: Tensor


@torch.no_grad()
def center_targets(boxes, size, stride):
    """
    Args:
        boxes (Tensor): float (n, 4), x0, y0, x1, y1 in pixels of the network's input.
        size (tuple[int, int]): (H, W).
        stride (int): stride of the feature map.

    Returns:
        CenterTargets: on the device of the boxes.
    """
    height, width = size
    boxes = boxes / stride
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    targets = CenterTargets(
        center=boxes.new_zeros(size, dtype=torch.bool),
        closeness=boxes.new_zeros(size),
        near_center=boxes.new_zeros(size, dtype=torch.bool),
        log_height=boxes.new_zeros(size),
        offset=boxes.new_zeros(2, *size),
    )
    if len(boxes) == 0:
        return targets
    vertical = _along_one_axis(boxes[:, 1], boxes[:, 3], height)
    horizontal = _along_one_axis(boxes[:, 0], boxes[:, 2], width)
    (cells_y, offset_y, closeness_y, near_y), (cells_x, offset_x, closeness_x, near_x) = (
        vertical,
        horizontal,
    )
    targets.center[cells_y, cells_x] = True
    targets.offset[:, cells_y, cells_x] = torch.stack([offset_y, offset_x])
    targets.closeness = (closeness_y[:, :, None] * closeness_x[:, None]).amax(0)
    near = near_y[:, :, None] & near_x[:, None]
    targets.near_center = near.any(0)
    # Two centres are this close: the smaller object is more likely to be missed.
    log_heights = (boxes[:, 3] - boxes[:, 1]).log()[:, None, None]
    smallest = log_heights.masked_fill(~near, torch.inf).amin(0)
    targets.log_height = smallest.masked_fill(~targets.near_center, 0)
    return targets


def _along_one_axis(start, end, extent):
    """
    Returns for each box the pixel of its centre, the offset in it, and (n, extent) masks around it.
    """
    middle = (start + end) / 2
    cells = middle.floor().clamp(0, extent - 1)
    pixels = torch.arange(extent, device=start.device)
    distance = pixels - cells[:, None]
    # The width of the gaussian follows the box as in OpenCV's getGaussianKernel.
    sigma = 0.3 * ((end - start - 1) / 2 - 1) + 0.8
    inside = (pixels >= start[:, None]) & (pixels + 1 <= end[:, None])
    closeness = torch.exp(-0.5 * (distance / sigma[:, None]).square()) * inside
    return cells.long(), middle - cells - 0.5, closeness, distance.abs() <= _RADIUS
