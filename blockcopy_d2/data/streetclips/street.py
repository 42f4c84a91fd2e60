"""The plan of a street: where lanes, pavements, tracks and houses run. Metres throughout."""

from dataclasses import dataclass

import numpy as np

LANE = 3.4
FAR = 170.0  # metres; beyond lies the backdrop
BEHIND = -14.0  # metres; the street begins behind the camera


@dataclass(frozen=True)
class Street:
    """
    The camera's own lane is centred on X = 0; traffic keeps to the right.

    Attributes:
        kerb_left, kerb_right: X of the kerbs.
        wall_left, wall_right: X of the house fronts.
        oncoming: X of the oncoming lane's centre.
        tram: X of the centre of the tram track, None without one.
        parking_left, parking_right: X of the parked cars' centres, None without parking.
        crossing: Z of the centre of a side street, None without one.
        zebra: Z of a zebra crossing, None without one.
    """

    kerb_left: float
    kerb_right: float
    wall_left: float
    wall_right: float
    oncoming: float
    tram: float | None
    parking_left: float | None
    parking_right: float | None
    crossing: float | None
    zebra: float | None

    @classmethod
    def sample(cls, rng: np.random.Generator, tram: bool) -> "Street":
        """A random plan; `tram` asks for tram rails."""
        right = LANE / 2 + 0.15
        left = -LANE * 1.5 - 0.15
        track = None
        if tram:
            track = left - 1.6
            left -= 3.2
        parking_right = parking_left = None
        if rng.random() < 0.8:
            parking_right = right + 1.1
            right += 2.2
        if rng.random() < 0.65:
            parking_left = left - 1.1
            left -= 2.2
        crossing = float(rng.uniform(24.0, 46.0)) if rng.random() < 0.6 else None
        zebra = None
        if crossing is not None:
            zebra = crossing - 7.0
        elif rng.random() < 0.5:
            zebra = float(rng.uniform(11.0, 30.0))
        return cls(
            left,
            right,
            left - rng.uniform(3.0, 5.5),
            right + rng.uniform(2.8, 5.0),
            -LANE,
            track,
            parking_left,
            parking_right,
            crossing,
            zebra,
        )

    @property
    def crossing_half(self) -> float:
        """Half of the width of the side street."""
        return 4.6
