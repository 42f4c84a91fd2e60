"""Something that stands or moves on the ground of a street."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .motion import Track


@dataclass(frozen=True)
class Thing:
    """
    Something that stands or moves on the ground.

    Attributes:
        parts: (Cityscapes label, model) pairs in drawing order, e.g. a bicycle and its rider.
        track: where it is.
        plays: whether its look changes though it stands (screens, traffic lights).
    """

    parts: tuple[tuple[str, Any], ...]
    track: Track
    plays: bool = False

    @property
    def size(self) -> tuple[float, float, float]:
        """(length, width, height) of a box around all parts, in metres."""
        return tuple(np.max([model.size for _, model in self.parts], axis=0))

    @property
    def still(self) -> bool:
        """Returns whether it looks the same at all times to a camera that stands."""
        return not (self.track.moving or self.plays or self.track.fidget)

    def footprint(self, time: float) -> np.ndarray:
        """(4, 2) ground corners (X, Z) at `time` seconds."""
        length, width, _ = self.size
        return oriented_box(self.track.position(time), self.track.heading, length, width)


def oriented_box(
    centre: tuple[float, float], heading: float, length: float, width: float
) -> np.ndarray:
    """(4, 2) ground corners (X, Z) of a box."""
    forward = np.array([np.sin(heading), np.cos(heading)]) * length / 2
    right = np.array([np.cos(heading), -np.sin(heading)]) * width / 2
    return np.array(centre) + np.stack(
        [-forward - right, forward - right, forward + right, -forward + right]
    )
