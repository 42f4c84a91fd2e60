"""Cars: hatchbacks, saloons, estates, off-roaders and vans."""

from dataclasses import dataclass

import numpy as np

from .brush import Brush
from .solids import box_profile, extrude, hub_caps, panel, side_panel, side_shows, wheels
from .textures import Colour, jitter, mix, pick, scale_colour

GLASS = (62.0, 54.0, 46.0)
CAR_PAINTS = [
    ((236, 236, 234), 18),
    ((34, 32, 31), 18),
    ((186, 184, 180), 16),
    ((104, 102, 100), 14),
    ((120, 66, 36), 9),
    ((74, 40, 22), 5),
    ((38, 34, 150), 9),
    ((54, 78, 40), 3),
    ((150, 186, 200), 4),
    ((52, 70, 96), 3),
    ((40, 176, 216), 4),
    ((176, 140, 92), 3),
    ((34, 92, 196), 2),
]  # BGR paint and its frequency
KINDS = {
    # name: length, width, belt, height, hood, screen foot, roof front, roof rear, rear foot;
    # the last five along the length, from the rear end
    "hatchback": (4.0, 1.76, 0.96, 1.47, 0.78, 3.00, 2.42, 0.62, 0.08),
    "saloon": (4.6, 1.82, 0.95, 1.43, 0.76, 3.35, 2.75, 1.35, 0.72),
    "estate": (4.7, 1.83, 0.96, 1.48, 0.77, 3.40, 2.80, 0.50, 0.10),
    "off-roader": (4.5, 1.90, 1.10, 1.72, 0.98, 3.25, 2.75, 0.42, 0.10),
    "van": (4.9, 1.92, 1.18, 1.95, 1.00, 4.15, 3.45, 0.15, 0.04),
}


@dataclass(frozen=True)
class Car:
    """
    Attributes:
        kind: key of KINDS.
        paint: colour of the body.
        rim: colour of the rims.
        braking: rear lights shine.
    """

    kind: str
    paint: Colour
    rim: Colour
    braking: bool

    @classmethod
    def sample(cls, rng: np.random.Generator, moving: bool) -> "Car":
        paints, weights = zip(*CAR_PAINTS)
        kind = pick(rng, list(KINDS), (0.3, 0.25, 0.18, 0.17, 0.1))
        rim = jitter(rng, pick(rng, [(178, 176, 174), (120, 118, 116), (70, 68, 66)]))
        paint = jitter(rng, pick(rng, paints, weights))
        return cls(kind, paint, rim, moving and bool(rng.random() < 0.25))

    @property
    def size(self):
        length, width, _, height = KINDS[self.kind][:4]
        return length, width, height

    def draw(self, brush: Brush, phase: float) -> None:
        """Draws the car; `phase` is not used, wheels look the same at every angle."""
        length, width, belt, height, hood, foot, roof_front, roof_rear, rear = KINDS[self.kind]
        half = width / 2
        radius = 0.31 if height < 1.6 else 0.36
        axles = (-length / 2 + 0.78, length / 2 - 0.86)
        rear_end, front = -length / 2, length / 2
        wheels(brush, axles, half - 0.02, radius)
        floor = box_profile(rear_end + 0.25, front - 0.25, 0.14, 0.5)
        extrude(brush, floor, lambda u, v: half - 0.12, (22.0, 20.0, 20.0))
        lower = [
            (rear_end + 0.06, 0.24),
            (rear_end, 0.45),
            (rear_end + 0.02, belt - 0.16),
            (rear_end + 0.1, belt),
            (rear_end + foot, belt),
            (front - 0.32, hood + 0.03),
            (front - 0.08, hood - 0.10),
            (front, 0.48),
            (front - 0.06, 0.24),
        ]

        def taper(u: float, v: float) -> float:
            return half - 0.14 * max(0.0, (abs(u) - length / 2 + 0.35) / 0.35) ** 2

        extrude(brush, lower, taper, self.paint)
        self._flanks(brush, lower, half, belt, rear_end, front)
        hub_caps(brush, axles, half, radius, self.rim)
        self._greenhouse(brush, half, rear_end, belt, height, foot, roof_front, roof_rear, rear)
        self._ends(brush, half, belt, hood, rear_end, front)

    def _flanks(self, brush, lower, half, belt, rear_end, front) -> None:
        """Light along the shoulder, darkness along the sill, the gaps of the doors."""
        for sign in (-1.0, 1.0):
            if not side_shows(brush, half, sign):
                continue
            side = brush.shade(self.paint, (0.0, sign, 0.12))
            w = sign * (half + 0.004)
            low, high = rear_end + 0.12, front - 0.12
            bright = scale_colour(mix(side, (255, 250, 245), 0.16), 1.06)
            side_panel(brush, w, low, high - 0.3, belt - 0.2, belt - 0.09, bright)
            side_panel(brush, w, low, high, 0.24, 0.44, scale_colour(side, 0.72))
            side_panel(brush, w, low, high, 0.24, 0.31, scale_colour(side, 0.45))
            for u in (-0.62, 0.32, 1.2):
                side_panel(brush, w, u - 0.012, u + 0.012, 0.36, belt, scale_colour(side, 0.5))
            for u in (-0.38, 0.56):
                side_panel(brush, w, u, u + 0.2, belt - 0.17, belt - 0.13, scale_colour(side, 0.6))

    def _greenhouse(self, brush, half, rear_end, belt, height, foot, roof_front, roof_rear, rear):
        """Roof, pillars and windows: a frustum on the belt line."""
        base, top = half - 0.07, half - 0.24
        profile = [
            (rear_end + rear, belt - 0.01),
            (rear_end + roof_rear, height - 0.03),
            (rear_end + roof_rear + 0.3, height),
            (rear_end + roof_front - 0.25, height),
            (rear_end + roof_front, height - 0.04),
            (rear_end + foot, belt - 0.01),
        ]

        def lean(u: float, v: float) -> float:
            return base + (top - base) * (v - belt) / (height - belt)

        extrude(brush, profile, lean, self.paint)
        sky = brush.shade((205.0, 190.0, 176.0), (0.0, 0.0, 1.0))
        for (u0, v0), (u1, v1), sign in (
            (profile[0], profile[1], -1.0),
            (profile[5], profile[4], 1.0),
        ):
            normal = np.array([sign * (v1 - v0), 0.0, abs(u1 - u0)])
            if not brush.facing(((u0 + u1) / 2, 0.0, (v0 + v1) / 2), normal):
                continue
            self._pane(brush, (u0, v0, lean(u0, v0) - 0.07), (u1, v1, lean(u1, v1) - 0.06), sky)
        for sign in (-1.0, 1.0):
            if not side_shows(brush, base, sign):
                continue
            low, high = belt + 0.03, height - 0.08
            share = (high - belt) / (height - belt)
            start = rear_end + rear + (roof_rear - rear) * share
            end = rear_end + foot + (roof_front - foot) * share
            window = [
                (rear_end + rear + 0.16, low),
                (start + 0.1, high),
                (end - 0.06, high),
                (rear_end + foot - 0.14, low),
            ]
            points = np.array([[u, sign * lean(u, v), v] for u, v in window])
            brush.fill(points, GLASS)
            upper = points.copy()
            upper[0] = points[0] * 0.45 + points[1] * 0.55
            upper[3] = points[3] * 0.45 + points[2] * 0.55
            brush.fill(upper, mix(GLASS, sky, 0.3))
            pillar = brush.shade(self.paint, (0.0, sign, 0.3))
            for u in (-0.62 + 0.1, 0.42) if foot - rear > 2.2 else (0.0,):
                brush.fill(
                    [
                        [u + d, sign * lean(u, v), v]
                        for d, v in ((-0.04, low), (-0.08, high), (0.0, high), (0.04, low))
                    ],
                    scale_colour(pillar, 0.7),
                )
            # Outside mirror
            u = rear_end + foot - 0.3
            w = sign * (half + 0.02)
            brush.limb(
                (u, w, belt + 0.08),
                (u, w + sign * 0.12, belt + 0.1),
                0.07,
                0.08,
                scale_colour(pillar, 0.85),
            )

    def _pane(self, brush, low, high, sky) -> None:
        """A windscreen between two (u, v, half width) edges, its upper part mirroring the sky."""

        def edge(t):
            u, v, w = (a + (b - a) * t for a, b in zip(low, high))
            return [u, -w, v], [u, w, v]

        for start, end, share in ((0.08, 0.9, 0.0), (0.35, 0.9, 0.12), (0.62, 0.9, 0.28)):
            (a, b), (d, c) = edge(start), edge(end)
            brush.fill([a, b, c, d], mix(GLASS, sky, share))
        (a, b), (d, c) = edge(0.08), edge(0.3)
        for sign in (-1.0, 1.0):  # the seats
            w = sign * low[2] * 0.5
            mid = (np.array(a) + b) / 2
            top = (np.array(d) + c) / 2
            brush.fill(
                [
                    mid + [0, w - 0.2, 0],
                    mid + [0, w + 0.2, 0],
                    top + [0, w + 0.14, 0.06],
                    top + [0, w - 0.14, 0.06],
                ],
                scale_colour(GLASS, 0.55),
            )

    def _ends(self, brush, half, belt, hood, rear_end, front) -> None:
        """Lights, grille, bumpers and number plates."""
        dark = (26.0, 24.0, 24.0)
        u = front + 0.01
        width = half - 0.16
        panel(brush, u, 1.0, -width + 0.3, width - 0.3, 0.50, hood - 0.16, dark)
        panel(brush, u, 1.0, -width, width, 0.26, 0.36, dark)
        panel(brush, u, 1.0, -0.26, 0.26, 0.40, 0.50, (214.0, 216.0, 218.0))
        for sign in (-1.0, 1.0):
            inner, outer = sign * (width - 0.34), sign * (width + 0.06)
            panel(brush, u, 1.0, inner, outer, hood - 0.26, hood - 0.12, (236.0, 232.0, 226.0))
            panel(brush, u, 1.0, inner, outer, hood - 0.26, hood - 0.22, (130.0, 126.0, 120.0))
        u = rear_end - 0.01
        red = (70.0, 60.0, 250.0) if self.braking else (40.0, 34.0, 168.0)
        for sign in (-1.0, 1.0):
            inner, outer = sign * (width - 0.2), sign * (width + 0.08)
            panel(brush, u, -1.0, inner, outer, belt - 0.36, belt - 0.12, red)
            panel(brush, u, -1.0, inner, outer, belt - 0.26, belt - 0.21, (190.0, 190.0, 215.0))
        panel(brush, u, -1.0, -0.26, 0.26, belt - 0.36, belt - 0.25, (214.0, 216.0, 218.0))
        panel(brush, u, -1.0, -width, width, 0.26, 0.40, (44.0, 42.0, 42.0))
