"""
Means over the pixels of blocks, from which the features of blocks are made.

Shape shorthand in this module:

    N: streams
    GH, GW: rows and columns of the block grid
    P: side of a block in policy pixels
    h, w: policy resolution, P GH x P GW
    K: classes of the task network's output
"""

import torch
from torch.nn import functional as F

from blockcopy_d2.kernels import triton_runs_on

from .gain_constants import EDGE_FLOOR

__all__ = ["block_means"]


def block_means(frame, frame_state, output, pixel_scale, grid_shape):
    """
    Args:
        frame, frame_state (Tensor): float (N, 3, h, w).
        output (Tensor): float (N, K, h, w), in [0, 1].
        pixel_scale (Tensor): float (3,).
        grid_shape (tuple[int, int]): GH, GW.

    Returns:
        Tensor: float (N, 6, GH, GW), the first six of :data:`.block_features.FEATURES`, not
        negative, before their logarithm. An edge is the larger of the steps to the pixel on the
        right and the one below.
    """
    if triton_runs_on(frame.device):
        from .block_kernels import block_means_triton

        return block_means_triton(frame, frame_state, output, pixel_scale, grid_shape)
    return block_means_reference(frame, frame_state, output, pixel_scale, grid_shape)


def block_means_reference(frame, frame_state, output, pixel_scale, grid_shape):
    """:func:`block_means` in plain PyTorch."""
    scale = pixel_scale.view(1, -1, 1, 1)
    difference = ((frame - frame_state).abs() * scale).mean(dim=1, keepdim=True)
    edge = _largest_step(output)
    texture = _largest_step((frame * scale).mean(dim=1, keepdim=True))
    doubt = 1 - output.amax(dim=1, keepdim=True)
    peak = F.avg_pool2d(difference, kernel_size=4)
    at_edges = (edge + EDGE_FLOOR) * difference
    maps = torch.cat([at_edges, difference, edge, texture, doubt.clamp_min(0)], dim=1)
    means = F.adaptive_avg_pool2d(maps, tuple(grid_shape))
    peak = F.adaptive_max_pool2d(peak, tuple(grid_shape))
    return torch.cat([means[:, :2], peak, means[:, 2:]], dim=1)


def _largest_step(maps):
    """float (N, 1, h, w), over all maps; 0 at the border that has no next pixel."""
    across = F.pad((maps[..., :, 1:] - maps[..., :, :-1]).abs(), (0, 1, 0, 0))
    down = F.pad((maps[..., 1:, :] - maps[..., :-1, :]).abs(), (0, 0, 0, 1))
    return torch.maximum(across, down).amax(dim=1, keepdim=True)
