"""Trucks, buses and trams."""

from dataclasses import dataclass

import numpy as np

from .brush import Brush
from .cars import GLASS
from .solids import box_profile, extrude, hub_caps, panel, side_panel, side_shows, wheels
from .textures import Colour, jitter, mix, pick, scale_colour

SKY_GLASS = mix(GLASS, (205.0, 190.0, 176.0), 0.28)
PALE_RIM = (150.0, 150.0, 150.0)
RED_LIGHT = (44.0, 38.0, 190.0)
WHITE_LIGHT = (236.0, 234.0, 228.0)


def _lamps(brush: Brush, u: float, sign: float, half: float, bottom: float, top: float) -> None:
    """White lights at the front end or red ones at the rear end."""
    colour = WHITE_LIGHT if sign > 0 else RED_LIGHT
    for side in (-1.0, 1.0):
        panel(brush, u, sign, side * (half - 0.42), side * (half - 0.08), bottom, top, colour)


def _pane(brush: Brush, u: float, sign: float, half: float, bottom: float, top: float) -> None:
    """A windscreen on an upright end."""
    panel(brush, u, sign, -half, half, bottom, top, GLASS)
    panel(brush, u, sign, -half, half, (bottom + top) / 2, top, SKY_GLASS)


@dataclass(frozen=True)
class Truck:
    """
    Attributes:
        length, height: length and height of the whole vehicle in metres.
        cab: colour of the cab.
        load: colour of the box, tarpaulin or tipper.
        kind: "box", "tarpaulin" or "tipper".
        stripe: colour of the lettering on a box.
    """

    length: float
    height: float
    cab: Colour
    load: Colour
    kind: str
    stripe: Colour

    @classmethod
    def sample(cls, rng: np.random.Generator, moving: bool) -> "Truck":
        kind = pick(rng, ["box", "tarpaulin", "tipper"], (0.5, 0.3, 0.2))
        cab = pick(
            rng,
            [
                (224, 224, 222),
                (44, 40, 158),
                (134, 84, 40),
                (46, 130, 196),
                (62, 96, 52),
                (190, 190, 60),
            ],
            (6, 3, 3, 2, 2, 1),
        )
        loads = {
            "box": [(232, 232, 230), (206, 206, 204), (226, 218, 190)],
            "tarpaulin": [(122, 70, 38), (52, 48, 140), (66, 104, 62), (190, 190, 190)],
            "tipper": [(58, 110, 190), (90, 90, 92), (60, 120, 80)],
        }[kind]
        stripe = pick(rng, [(40, 40, 170), (140, 80, 30), (50, 120, 60), (40, 140, 220)])
        height = rng.uniform(2.5, 2.7) if kind == "tipper" else rng.uniform(2.9, 3.6)
        return cls(
            rng.uniform(6.2, 8.6),
            height,
            jitter(rng, cab),
            jitter(rng, pick(rng, loads)),
            kind,
            stripe,
        )

    @property
    def size(self):
        return self.length, 2.45, self.height + 0.1

    def draw(self, brush: Brush, phase: float) -> None:
        rear, front = -self.length / 2, self.length / 2
        axles = (
            (rear + 1.0, rear + 2.0, front - 1.05)
            if self.length > 7.4
            else (rear + 1.3, front - 1.05)
        )
        half = 1.16
        wheels(brush, axles, half, 0.48)
        chassis = box_profile(rear + 0.1, front - 0.3, 0.5, 0.95)
        extrude(brush, chassis, lambda u, v: 0.95, (40.0, 38.0, 38.0))
        panel(brush, rear + 0.05, -1.0, -1.1, 1.1, 0.5, 0.66, (60.0, 58.0, 58.0))
        _lamps(brush, rear + 0.04, -1.0, 1.12, 0.5, 0.66)
        parts = [
            (abs(float(brush.eye[0]) - (front - 1.0)), self._draw_cab),
            (abs(float(brush.eye[0]) - (rear + self.length * 0.36)), self._draw_load),
        ]
        for _, draw in sorted(parts, key=lambda part: -part[0]):
            draw(brush, rear, front)
        hub_caps(brush, axles, half + 0.02, 0.48, PALE_RIM)

    def _draw_cab(self, brush: Brush, rear: float, front: float) -> None:
        half, top = 1.13, min(self.height - 0.25, 2.65)
        back = front - 1.95
        profile = [
            (back, 0.55),
            (back, top),
            (front - 0.35, top),
            (front - 0.04, 1.5),
            (front, 1.2),
            (front - 0.02, 0.4),
        ]
        extrude(brush, profile, lambda u, v: half - 0.05 * (v > 1.6), self.cab)
        low, high = (front - 0.04, 1.5), (front - 0.35, top)

        def at(t):
            return low[0] + (high[0] - low[0]) * t + 0.01, low[1] + (high[1] - low[1]) * t

        for share, colour in ((0.0, GLASS), (0.5, SKY_GLASS)):
            (u0, v0), (u1, v1) = at(0.04 + share * 0.9), at(0.84)
            if brush.facing((front, 0, 1.7), (1.0, 0.0, 0.2)):
                brush.fill(
                    [[u0, -0.98, v0], [u0, 0.98, v0], [u1, 0.94, v1], [u1, -0.94, v1]], colour
                )
        panel(brush, front + 0.01, 1.0, -0.7, 0.7, 0.78, 1.2, (38.0, 36.0, 36.0))
        panel(brush, front + 0.02, 1.0, -1.1, 1.1, 0.4, 0.62, (70.0, 68.0, 68.0))
        panel(brush, front + 0.03, 1.0, -0.26, 0.26, 0.45, 0.56, (214.0, 216.0, 218.0))
        _lamps(brush, front + 0.03, 1.0, 1.12, 0.66, 0.84)
        for sign in (-1.0, 1.0):
            w = sign * (half + 0.01)
            paint = brush.shade(self.cab, (0.0, sign, 0.1))
            side_panel(brush, w, front - 1.3, front - 0.32, 1.5, top - 0.28, GLASS, -0.1)
            side_panel(brush, w, front - 1.3, front - 0.34, 1.9, top - 0.28, SKY_GLASS, -0.08)
            side_panel(brush, w, back + 0.1, front - 0.2, 0.55, 0.9, scale_colour(paint, 0.7))
            if side_shows(brush, half, sign) or brush.eye[0] > front:
                brush.limb(
                    (front - 0.1, sign * 1.25, 1.6),
                    (front - 0.1, sign * 1.25, 2.1),
                    0.1,
                    0.1,
                    (30.0, 28.0, 28.0),
                )

    def _draw_load(self, brush: Brush, rear: float, front: float) -> None:
        half, end = 1.2, front - 2.1
        bottom = 1.0
        profile = box_profile(rear, end, bottom, self.height)
        extrude(brush, profile, lambda u, v: half, self.load)
        for sign in (-1.0, 1.0):
            w = sign * (half + 0.01)
            paint = brush.shade(self.load, (0.0, sign, 0.0))
            side_panel(brush, w, rear, end, bottom, bottom + 0.12, scale_colour(paint, 0.55))
            side_panel(
                brush, w, rear, end, self.height - 0.1, self.height, scale_colour(paint, 1.1)
            )
            if self.kind == "box":
                span = end - rear
                side_panel(
                    brush,
                    w,
                    rear + span * 0.15,
                    rear + span * 0.85,
                    bottom + 0.75,
                    bottom + 1.25,
                    brush.shade(self.stripe, (0.0, sign, 0.0)),
                )
                side_panel(
                    brush,
                    w,
                    rear + span * 0.25,
                    rear + span * 0.6,
                    bottom + 0.42,
                    bottom + 0.56,
                    scale_colour(paint, 0.6),
                )
            else:
                for u in np.arange(rear + 0.3, end, 0.6):
                    side_panel(
                        brush, w, u, u + 0.06, bottom, self.height - 0.1, scale_colour(paint, 0.78)
                    )
                    side_panel(
                        brush,
                        w,
                        u + 0.06,
                        u + 0.16,
                        bottom + 0.1,
                        self.height - 0.1,
                        scale_colour(paint, 1.08),
                    )
            side_panel(brush, w, rear + 2.6, end - 0.2, 0.5, 0.85, (58.0, 56.0, 56.0))
        shade = brush.shade(self.load, (-1.0, 0.0, 0.0))
        for left, right in ((-1.1, -0.04), (0.04, 1.1)):
            panel(
                brush,
                rear - 0.01,
                -1.0,
                left,
                right,
                bottom + 0.12,
                self.height - 0.14,
                scale_colour(shade, 0.9),
            )
        panel(
            brush,
            rear - 0.02,
            -1.0,
            -0.03,
            0.03,
            bottom,
            self.height - 0.1,
            scale_colour(shade, 0.55),
        )
        for sign in (-1.0, 1.0):
            panel(
                brush,
                rear - 0.02,
                -1.0,
                sign * 0.34,
                sign * 0.39,
                bottom,
                self.height - 0.1,
                scale_colour(shade, 0.62),
            )


@dataclass(frozen=True)
class Bus:
    """
    Attributes:
        length: in metres.
        paint, stripe: colours of the body and of the band below the windows.
    """

    length: float
    paint: Colour
    stripe: Colour

    @classmethod
    def sample(cls, rng: np.random.Generator, moving: bool) -> "Bus":
        paint, stripe = pick(
            rng,
            [
                ((40, 190, 232), (40, 180, 222)),
                ((48, 44, 184), (200, 200, 204)),
                ((228, 228, 226), (150, 90, 40)),
                ((160, 100, 48), (214, 214, 210)),
                ((84, 140, 70), (214, 214, 210)),
                ((222, 222, 220), (48, 44, 176)),
            ],
        )
        return cls(rng.uniform(10.0, 12.0), jitter(rng, paint), jitter(rng, stripe))

    @property
    def size(self):
        return self.length, 2.56, 3.2

    def draw(self, brush: Brush, phase: float) -> None:
        rear, front, half, top = -self.length / 2, self.length / 2, 1.25, 3.02
        axles = (rear + 2.9, front - 2.6)
        wheels(brush, axles, half - 0.02, 0.47)
        profile = [
            (rear, 0.32),
            (rear, top - 0.12),
            (rear + 0.15, top),
            (front - 0.25, top),
            (front - 0.04, top - 0.2),
            (front, 1.2),
            (front - 0.02, 0.32),
        ]
        extrude(brush, profile, lambda u, v: half, self.paint)
        for sign in (-1.0, 1.0):
            self._draw_side(brush, sign, rear, front, half, top)
        hub_caps(brush, axles, half + 0.015, 0.47, PALE_RIM)
        self._draw_ends(brush, rear, front, half, top)

    def _draw_side(self, brush, sign, rear, front, half, top) -> None:
        w = sign * (half + 0.01)
        paint = brush.shade(self.paint, (0.0, sign, 0.1))
        side_panel(brush, w, rear, front, 0.32, 0.62, scale_colour(paint, 0.66))
        side_panel(brush, w, rear, front, 0.98, 1.2, brush.shade(self.stripe, (0.0, sign, 0.1)))
        side_panel(brush, w, rear, front - 0.1, top - 0.1, top, scale_colour(paint, 1.12))
        side_panel(brush, w, rear + 0.25, front - 0.1, 1.26, 2.58, (34.0, 31.0, 30.0))
        count = 7
        step = (self.length - 0.5) / count
        for i in range(count):
            u = rear + 0.3 + i * step
            side_panel(brush, w, u, u + step - 0.09, 1.32, 2.52, GLASS)
            side_panel(brush, w, u, u + step - 0.09, 1.95, 2.52, SKY_GLASS)
            side_panel(brush, w, u + 0.2, u + 0.7, 1.32, 1.75, scale_colour(GLASS, 0.6))
        if sign > 0:  # doors on the kerb side
            for u in (front - 1.5, rear + self.length * 0.45):
                side_panel(brush, w, u, u + 1.25, 0.42, 2.5, (44.0, 41.0, 40.0))
                for offset in (0.08, 0.68):
                    side_panel(brush, w, u + offset, u + offset + 0.5, 0.55, 2.42, SKY_GLASS)

    def _draw_ends(self, brush, rear, front, half, top) -> None:
        u = front + 0.02
        _pane(brush, u, 1.0, half - 0.08, 1.18, 2.5)
        panel(brush, u, 1.0, -half + 0.08, half - 0.08, 2.5, 2.84, (24.0, 22.0, 22.0))
        panel(brush, u, 1.0, -0.85, 0.85, 2.56, 2.78, (60.0, 170.0, 240.0))
        panel(brush, u, 1.0, -half, half, 0.32, 0.5, (52.0, 50.0, 50.0))
        panel(brush, u, 1.0, -0.26, 0.26, 0.52, 0.63, (214.0, 216.0, 218.0))
        _lamps(brush, u, 1.0, half, 0.66, 0.86)
        for sign in (-1.0, 1.0):
            if brush.eye[0] > front:
                brush.limb(
                    (front, sign * (half + 0.02), 2.2),
                    (front, sign * (half + 0.02), 1.8),
                    0.06,
                    0.1,
                    (30.0, 28.0, 28.0),
                )
        u = rear - 0.01
        _pane(brush, u, -1.0, half - 0.2, 1.75, 2.6)
        panel(brush, u, -1.0, -0.5, 0.5, 2.68, 2.9, (40.0, 120.0, 180.0))
        panel(
            brush,
            u,
            -1.0,
            -half + 0.2,
            half - 0.2,
            0.7,
            1.5,
            scale_colour(brush.shade(self.paint, (-1.0, 0.0, 0.0)), 0.62),
        )
        panel(brush, u, -1.0, -half, half, 0.32, 0.5, (52.0, 50.0, 50.0))
        for sign in (-1.0, 1.0):
            panel(brush, u, -1.0, sign * (half - 0.22), sign * (half - 0.04), 0.7, 1.5, RED_LIGHT)


@dataclass(frozen=True)
class Tram:
    """
    A three-section tram, class "train" in Cityscapes.

    Attributes:
        length: in metres.
        paint, skirt: colours above and below the windows.
    """

    length: float
    paint: Colour
    skirt: Colour

    @classmethod
    def sample(cls, rng: np.random.Generator, moving: bool) -> "Tram":
        paint, skirt = pick(
            rng,
            [
                ((206, 222, 226), (40, 36, 160)),
                ((214, 214, 212), (70, 128, 60)),
                ((150, 206, 226), (150, 206, 226)),
                ((196, 196, 192), (146, 92, 44)),
            ],
        )
        return cls(rng.uniform(19.0, 25.0), jitter(rng, paint, 5), jitter(rng, skirt, 6))

    @property
    def size(self):
        return self.length, 2.46, 4.6

    def draw(self, brush: Brush, phase: float) -> None:
        half, top, length = 1.2, 3.3, self.length
        bounds = np.linspace(-length / 2, length / 2, 4)
        sections = list(zip(bounds[:-1], bounds[1:]))
        order = sorted(sections, key=lambda s: -abs(float(brush.eye[0]) - (s[0] + s[1]) / 2))
        for start, end in order:
            nose = end == bounds[-1]
            tail = start == bounds[0]
            self._draw_section(brush, start, end, nose, tail, half, top)
        self._draw_roof(brush, top)

    def _draw_section(self, brush, start, end, nose, tail, half, top) -> None:
        low = 0.16
        rear = (
            [(start + 0.08, low), (start, 1.2), (start + 0.75, top - 0.1)]
            if tail
            else [(start + 0.12, low), (start + 0.12, top - 0.06)]
        )
        front = (
            [(end - 0.75, top - 0.1), (end, 1.2), (end - 0.08, low)]
            if nose
            else [(end - 0.12, top - 0.06), (end - 0.12, low)]
        )
        profile = rear + [(rear[-1][0] + 0.15, top), (front[0][0] - 0.15, top)] + front
        if not nose:
            extrude(
                brush,
                box_profile(end - 0.2, end + 0.2, 0.3, top - 0.15),
                lambda u, v: half - 0.12,
                (46.0, 44.0, 44.0),
            )
        taper = end if nose else (start if tail else None)

        def width(u, v):
            near = 0.0 if taper is None else max(0.0, 1.0 - abs(u - taper) / 1.1)
            return half - 0.22 * near

        extrude(brush, profile, width, self.paint)
        self._draw_side(brush, start, end, nose, tail, half, top)
        if nose:
            self._draw_end(brush, end, 1.0, half - 0.22, top)
        if tail:
            self._draw_end(brush, start, -1.0, half - 0.22, top)

    def _draw_side(self, brush, start, end, nose, tail, half, top) -> None:
        low, high = start + (1.0 if tail else 0.14), end - (1.0 if nose else 0.14)
        for sign in (-1.0, 1.0):
            w = sign * (half + 0.01)
            paint = brush.shade(self.paint, (0.0, sign, 0.1))
            skirt = brush.shade(self.skirt, (0.0, sign, 0.1))
            side_panel(brush, w, low, high, 0.16, 0.95, skirt)
            side_panel(brush, w, low, high, 0.16, 0.34, scale_colour(skirt, 0.6))
            side_panel(brush, w, low, high, 2.78, 2.98, skirt)
            side_panel(brush, w, low, high, 1.2, 2.66, (30.0, 27.0, 26.0))
            side_panel(brush, w, low, high, 1.95, 2.66, mix(GLASS, (205, 190, 176), 0.18))
            step = (high - low) / 4
            for i in range(1, 4):
                side_panel(
                    brush,
                    w,
                    low + i * step - 0.05,
                    low + i * step + 0.05,
                    1.2,
                    2.66,
                    scale_colour(paint, 0.7),
                )
            middle = (low + high) / 2
            side_panel(brush, w, middle - 0.75, middle + 0.75, 0.3, 2.62, scale_colour(skirt, 0.8))
            for offset in (-0.68, 0.06):
                side_panel(brush, w, middle + offset, middle + offset + 0.6, 0.5, 2.5, SKY_GLASS)

    def _draw_end(self, brush, u, sign, half, top) -> None:
        if not brush.facing((u, 0.0, 1.2), (sign, 0.0, 0.0)):
            return
        inset = 0.75 * sign

        def at(v, w):
            share = max(0.0, (v - 1.2) / (top - 1.3))
            return [u - inset * share + 0.02 * sign, w, v]

        def quad(low, high, w0, w1):
            return [at(low, -w0), at(low, w0), at(high, w1), at(high, -w1)]

        brush.fill(quad(1.32, 2.7, half - 0.06, half - 0.05), GLASS)
        brush.fill(quad(2.0, 2.7, half - 0.06, half - 0.05), SKY_GLASS)
        brush.fill(quad(2.74, 3.08, half - 0.1, half - 0.14), (24.0, 22.0, 22.0))
        brush.fill(quad(2.8, 3.02, 0.55, 0.53), (70.0, 180.0, 240.0))
        panel(
            brush,
            u + 0.02 * sign,
            sign,
            -half,
            half,
            0.16,
            0.9,
            brush.shade(self.skirt, (sign, 0.0, 0.0)),
        )
        panel(brush, u + 0.03 * sign, sign, -half + 0.1, half - 0.1, 0.16, 0.34, (40.0, 38.0, 38.0))
        _lamps(brush, u + 0.04 * sign, sign, half + 0.02, 0.66, 0.88)

    def _draw_roof(self, brush, top) -> None:
        """Equipment on the roof and the pantograph."""
        grey = (120.0, 118.0, 116.0)
        for start, end in (
            (-self.length * 0.38, -self.length * 0.22),
            (self.length * 0.2, self.length * 0.36),
        ):
            extrude(brush, box_profile(start, end, top, top + 0.28), lambda u, v: 0.85, grey)
        knee, head = (0.9, 0.0, top + 0.55), (0.0, 0.0, top + 1.1)
        for sign in (-0.35, 0.35):
            brush.limb((0.0, sign, top), (knee[0], sign, knee[2]), 0.035, 0.035, (52.0, 50.0, 50.0))
            brush.limb(
                (knee[0], sign, knee[2]), (head[0], sign, head[2]), 0.03, 0.03, (52.0, 50.0, 50.0)
            )
        brush.limb((0.0, -0.8, head[2]), (0.0, 0.8, head[2]), 0.04, 0.04, (52.0, 50.0, 50.0))
