"""
Quality of a choice of blocks.

Shape shorthand in this module:

    GH, GW: rows and columns of the block grid
    h, w: policy resolution, a whole number of pixels per block
"""

import torch
from torch.nn import functional as F

__all__ = ["GainShare"]


class GainShare:
    """
    The share of the information gain between consecutive dense outputs that lies in the executed
    blocks. Beside it, the shares of three other choices of as many blocks in every frame:

    * random: the expectation of a uniform choice, i.e. the executed fraction of that frame;
    * frame difference: the blocks whose pixels changed most since they were last chosen;
    * oracle: the blocks of largest gain.
    """

    NAMES = ("policy", "random", "frame_difference", "oracle")

    def __init__(self):
        self._total = 0.0
        self._gained = dict.fromkeys(self.NAMES, 0.0)
        self._frame_state = None

    def start(self, frame):
        """
        Start with the first frame of a clip, which executes all blocks.

        Args:
            frame (Tensor): float (1, 3, h, w), finite.
        """
        self._frame_state = frame

    def update(self, frame, active, gain):
        """
        Add the next frame of the clip.

        Args:
            frame (Tensor): float (1, 3, h, w), finite.
            active (Tensor): bool (1, GH, GW), executed by the policy.
            gain (Tensor): float (1, GH, GW), gain between this dense output and the last. Frames
                whose gain is not finite are left out.
        """
        changed = F.adaptive_avg_pool2d((frame - self._frame_state).abs(), active.shape[-2:]).mean(
            dim=1
        )
        count = int(active.sum())
        by_difference = _largest(changed, count)
        self._frame_state = torch.where(
            F.interpolate(by_difference[:, None].float(), size=frame.shape[-2:]) > 0,
            frame,
            self._frame_state,
        )
        if not torch.isfinite(gain).all():
            return
        self._total += float(gain.sum())
        self._gained["policy"] += float(gain[active].sum())
        self._gained["random"] += float(gain.sum()) * count / active.numel()
        self._gained["frame_difference"] += float(gain[by_difference].sum())
        self._gained["oracle"] += float(gain[_largest(gain, count)].sum())

    def merge(self, other):
        """Add the shares of another process."""
        self._total += other._total
        for name in self.NAMES:
            self._gained[name] += other._gained[name]

    def shares(self):
        """
        Returns:
            dict[str, float or None]: by :attr:`NAMES`; None if there was no gain to share.
        """
        if self._total == 0:
            return dict.fromkeys(self.NAMES)
        return {name: value / self._total for name, value in self._gained.items()}


def _largest(values, count):
    """Returns a bool mask of the ``count`` largest entries of ``values``."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    chosen[values.flatten().topk(count).indices] = True
    return chosen.view(values.shape)
