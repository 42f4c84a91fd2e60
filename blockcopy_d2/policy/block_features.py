"""
Features of a block that predict how much its output has changed, for any model: none of them
depends on classes or on the unit of the information gain.

Shape shorthand as in block_means.py; F: features.
"""

import torch
from torch.nn import functional as F

from blockcopy_d2.kernels import triton_runs_on

from .block_means import block_means

__all__ = ["FEATURES", "block_features"]

# Name: (initial weight, floor of the logarithm in multiples of the mean over blocks, deviation over
# blocks); values below the floor are noise. The weights predict the gains of all blocks, executed
# or not, of StreetClips at 0.08 of the blocks nearly as well as the best fit, and lean on the
# difference, which static cameras need; see docs/policy.md. Smaller floors predict no better, and
# keep quiet blocks waiting for longer. Deviations are those of the same recordings.
FEATURES = {
    # Mean of the difference to the picture last executed, times the edges of the output, where a
    # difference moves a border. Elsewhere it counts EDGE_FLOOR, for objects that enter an empty
    # picture.
    "edge_difference": (1.1, 0.5, 0.67),
    # Means of the difference, of its maximum over 4 x 4 pixels, of the edges of the output and of
    # the picture, and of the output's uncertainty.
    "difference": (0.0, 0.1, 0.55),
    "peak": (0.0, 0.1, 0.70),
    "edge": (0.0, 0.1, 1.57),
    "texture": (0.0, 0.1, 0.65),
    "doubt": (0.0, 0.1, 0.62),
    # Information gain when the block was last executed, and the largest among its 3 x 3 neighbours.
    "gain": (0.1, 0.1, 0.88),
    "gain_nearby": (0.6, 0.3, 0.50),
}


def block_features(observation, pixel_scale, floors):
    """
    Args:
        observation (Observation): observation of N streams, with the gains of blocks.
        pixel_scale (Tensor): float (3,), see :class:`PolicyNetwork`.
        floors (Tensor): float (F,), those of :data:`FEATURES`.

    Returns:
        Tensor: float (N, F, GH, GW), in the order of :data:`FEATURES`: logarithms of values in
        multiples of their mean over the blocks of a stream, so that their unit does not matter.
    """
    if triton_runs_on(floors.device):
        from .choice_kernels import MOST_BLOCKS, block_features_triton

        if observation.gain[0].numel() <= MOST_BLOCKS:
            return block_features_triton(observation, pixel_scale, floors)
    return block_features_reference(observation, pixel_scale, floors)


def block_features_reference(observation, pixel_scale, floors):
    """:func:`block_features` in plain PyTorch."""
    values = block_values(observation, pixel_scale)
    mean = values.mean(dim=(2, 3), keepdim=True)
    # If nothing differs at all, all blocks are equal.
    relative = torch.where(mean == 0, 1.0, values / mean)
    return (relative + floors.view(1, -1, 1, 1)).log()


def block_values(observation, pixel_scale):
    """
    Args:
        observation (Observation): observation of N streams, with the gains of blocks.
        pixel_scale (Tensor): float (3,), see :class:`PolicyNetwork`.

    Returns:
        Tensor: float (N, F, GH, GW), in the order of :data:`FEATURES`, not negative, in units of
        their own.
    """
    means = block_means(
        observation.frame,
        observation.frame_state,
        observation.output,
        pixel_scale,
        observation.grid.shape[2:],
    )
    known = observation.gain >= 0
    number = known.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    mean = torch.where(known, observation.gain, 0.0).sum(dim=(1, 2), keepdim=True) / number
    # An unknown gain counts as the mean of the others.
    gain = torch.where(known, observation.gain, mean)[:, None]
    nearby = F.max_pool2d(gain, kernel_size=3, stride=1, padding=1)
    return torch.cat([means, gain, nearby], dim=1)
