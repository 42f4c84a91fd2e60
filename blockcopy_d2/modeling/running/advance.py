"""
Advances the maps of a history by a frame.

Shape shorthand in this module:

    N: streams of a batch
    GH, GW: rows and columns of the block grid
    h, w: policy resolution
    K: classes of the task network's output
"""

import torch
from torch.nn import functional as F

from blockcopy_d2.kernels import triton_runs_on

from .arrival import is_finite

__all__ = ["advance"]


def advance(history, arrival, painted, active, gain=None):
    """
    Args:
        history (StreamHistory): history of N streams.
        arrival (Arrival): their next frames.
        painted (Tensor): float (N, K, h, w), output of these frames as the policy sees it.
        active (Tensor): bool (N, GH, GW), the blocks that were executed.
        gain (Tensor or None): float (N, GH, GW), information gain of every block; not known for
            frames that follow nothing, or where it is not finite. None if no policy wants it.

    Returns:
        dict[str, Tensor]: parts of the history after these frames, see :class:`StreamHistory`:
        "frame_state", "painted", "age", "gain", "broken" and "frame_index".
    """
    if triton_runs_on(active.device):
        from .triton_advance import advance_triton

        return advance_triton(history, arrival, painted, active, gain)
    return advance_reference(history, arrival, painted, active, gain)


def advance_reference(history, arrival, painted, active, gain=None):
    """:func:`advance` in plain PyTorch."""
    executed = F.interpolate(active[:, None].float(), size=painted.shape[-2:]) > 0
    if gain is not None:
        known = is_finite(gain) > arrival.follows_nothing
        gain = torch.where(known[:, None, None], gain.float(), -1.0)
    return {
        "frame_state": torch.where(executed, arrival.picture, history.frame_state),
        "painted": painted.nan_to_num(),
        "age": torch.where(active, 0, history.age + 1),
        "gain": history.gain if gain is None else torch.where(active, gain, history.gain),
        "broken": ~(arrival.finite & is_finite(painted)),
        "frame_index": history.frame_index + 1,
    }
