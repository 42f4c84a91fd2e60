"""
Things at the roadside that belong to no thing class: poles, signs, lights, bins, advert panels.

They are upright and person-sized, so that a detector has to look. `draw` takes the time in seconds
where others take the phase: traffic lights change, and screens play.
"""

from dataclasses import dataclass

import numpy as np

from .brush import Brush
from .solids import box_profile, extrude, panel
from .textures import Colour, jitter, mix, pick, scale_colour

STEEL = (104.0, 102.0, 100.0)


@dataclass(frozen=True)
class LampPost:
    """A street lamp, its arm over the road."""

    tall: float
    arm: float

    label = "pole"

    @property
    def size(self):
        return 0.6, 2 * abs(self.arm) + 0.8, self.tall + 0.2

    def draw(self, brush: Brush, time: float) -> None:
        colour = brush.shade(STEEL, (0, 0, 0.5))
        brush.limb((0, 0, 0), (0, 0, 1.0), 0.1, 0.09, scale_colour(colour, 0.8))
        brush.limb((0, 0, 0.9), (0, 0, self.tall), 0.07, 0.045, colour)
        brush.limb((0, 0, self.tall), (0, self.arm, self.tall + 0.05), 0.04, 0.035, colour)
        head = (0, self.arm * 0.7, self.tall + 0.03)
        brush.limb(head, (0, self.arm, self.tall + 0.05), 0.09, 0.08, (206.0, 208.0, 210.0))


@dataclass(frozen=True)
class Sign:
    """A traffic sign on a pole: "round", "triangle", "square" or "bus stop"."""

    kind: str

    label = "traffic sign"
    size = (0.5, 0.9, 2.9)

    def draw(self, brush: Brush, time: float) -> None:
        brush.limb((0, 0, 0), (0, 0, 2.2), 0.035, 0.035, brush.shade(STEEL, (0, 0, 0.5)))
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False) + np.pi / 2
        if self.kind == "triangle":
            angle = angle[[0, 5, 11]]
        front = float(brush.eye[0]) > 0
        for radius, colour in (
            (0.36, (40.0, 36.0, 184.0)),
            (0.27, (224.0, 226.0, 228.0)),
            (0.1, (40.0, 38.0, 38.0)),
        ):
            if self.kind in ("square", "bus stop"):
                paint = {
                    0.36: (160.0, 96.0, 36.0),
                    0.27: (226.0, 226.0, 224.0),
                    0.1: (160.0, 96.0, 36.0),
                }[radius]
                colour = (
                    paint
                    if self.kind == "square"
                    else {
                        0.36: (70.0, 124.0, 60.0),
                        0.27: (84.0, 184.0, 208.0),
                        0.1: (70.0, 124.0, 60.0),
                    }[radius]
                )
                points = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * radius * 0.9
            else:
                points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius
            if not front:
                colour = brush.shade((150.0, 150.0, 150.0), (-1, 0, 0))
            brush.fill(
                np.stack([np.zeros(len(points)), points[:, 0], 2.35 + points[:, 1]], axis=1), colour
            )


@dataclass(frozen=True)
class TrafficLight:
    """Traffic lights that change while the clip runs (every `period` seconds)."""

    period: float
    offset: float

    label = "traffic light"
    size = (0.6, 0.8, 3.6)

    def draw(self, brush: Brush, time: float) -> None:
        brush.limb((0, 0, 0), (0, 0, 2.6), 0.06, 0.05, brush.shade(STEEL, (0, 0, 0.5)))
        extrude(brush, box_profile(-0.13, 0.13, 2.4, 3.4), lambda u, v: 0.17, (38.0, 36.0, 34.0))
        on = int((time + self.offset) / self.period) % 3
        for i, colour in enumerate(
            ((70.0, 70.0, 250.0), (70.0, 190.0, 250.0), (120.0, 220.0, 60.0))
        ):
            centre = (0.14, 0.0, 3.22 - 0.31 * i)
            pixels = brush.pixels([centre, centre])
            if pixels is not None and brush.eye[0] > 0:
                brush.circle(
                    pixels[0],
                    brush.radius(centre, 0.12),
                    colour if i == on else scale_colour(colour, 0.22),
                )


@dataclass(frozen=True)
class Bin:
    """A litter bin or a letter box."""

    paint: Colour
    tall: float

    label = "static"
    size = (0.6, 0.6, 1.4)

    def draw(self, brush: Brush, time: float) -> None:
        extrude(brush, box_profile(-0.2, 0.2, 0.0, self.tall), lambda u, v: 0.22, self.paint)
        extrude(
            brush,
            box_profile(-0.23, 0.23, self.tall, self.tall + 0.1),
            lambda u, v: 0.25,
            scale_colour(self.paint, 0.6),
        )
        for sign in (-1.0, 1.0):  # the slot
            panel(
                brush,
                0.24 * sign,
                sign,
                -0.15,
                0.15,
                self.tall - 0.3,
                self.tall - 0.18,
                (20.0, 20.0, 20.0),
            )


@dataclass(frozen=True)
class Bollard:
    """A knee-high post at the kerb."""

    label = "pole"
    size = (0.4, 0.4, 1.0)

    def draw(self, brush: Brush, time: float) -> None:
        brush.limb((0, 0, 0), (0, 0, 0.8), 0.09, 0.08, brush.shade((60.0, 58.0, 58.0), (0, 0, 0.5)))
        brush.limb((0, 0, 0.62), (0, 0, 0.68), 0.085, 0.085, (190.0, 194.0, 196.0))


@dataclass(frozen=True)
class AdvertPanel:
    """
    A lit advertisement: a screen whose picture changes several times a second, or a poster.

    Attributes:
        colours: (n, 3) palette of the pictures.
        rate: pictures per second; 0 is a poster.
        seed: what the pictures look like.
    """

    colours: tuple
    rate: float
    seed: int

    label = "static"
    size = (0.6, 1.7, 2.7)

    def draw(self, brush: Brush, time: float) -> None:
        extrude(brush, box_profile(-0.1, 0.1, 0.0, 2.6), lambda u, v: 0.68, (54.0, 52.0, 50.0))
        picture = int(np.floor(time * self.rate)) + 64 if self.rate else 0
        rng = np.random.default_rng((self.seed, picture))
        for sign in (-1.0, 1.0):
            u = 0.11 * sign
            panel(brush, u, sign, -0.6, 0.6, 0.55, 2.5, pick(rng, self.colours))
            for _ in range(6):
                left, low = rng.uniform(-0.6, 0.3), rng.uniform(0.55, 2.1)
                panel(
                    brush,
                    u * 1.05,
                    sign,
                    left,
                    min(left + rng.uniform(0.1, 0.8), 0.6),
                    low,
                    min(low + rng.uniform(0.1, 0.7), 2.5),
                    pick(rng, self.colours),
                )
            # A painted figure: the outline of a person that is none.
            panel(brush, u * 1.1, sign, -0.12, 0.14, 0.7, 1.4, pick(rng, self.colours))


def sample_advert(rng: np.random.Generator, playing: bool) -> AdvertPanel:
    """A poster, or a screen if `playing`."""
    # Printed colours, not those of a paint box: each is drawn towards grey.
    palette = tuple(
        mix(jitter(rng, tuple(map(float, colour)), 10), (float(np.mean(colour)),) * 3, 0.45)
        for colour in rng.integers(50, 225, (6, 3))
    )
    return AdvertPanel(
        palette, float(rng.uniform(4.0, 12.0)) if playing else 0.0, int(rng.integers(1 << 30))
    )


def sample_bin(rng: np.random.Generator) -> Bin:
    """A bin in one of the usual colours."""
    paint = pick(rng, [(60, 60, 62), (60, 96, 58), (50, 140, 200), (52, 48, 150), (140, 96, 50)])
    return Bin(jitter(rng, paint), float(rng.uniform(0.75, 1.15)))
