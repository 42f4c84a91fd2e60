"""Bicycles and motorcycles; their riders are drawn by `people`."""

from dataclasses import dataclass

import numpy as np

from .brush import Brush
from .solids import circle, extrude
from .textures import Colour, jitter, pick, scale_colour

TYRE = (28.0, 26.0, 26.0)
METAL = (168.0, 166.0, 164.0)


@dataclass(frozen=True)
class Bicycle:
    """
    Attributes:
        paint: colour of the frame.
        basket: whether it has a basket at the handlebar.
    """

    paint: Colour
    basket: bool

    @classmethod
    def sample(cls, rng: np.random.Generator, moving: bool) -> "Bicycle":
        paint = pick(
            rng,
            [
                (40, 38, 36),
                (44, 40, 170),
                (150, 96, 46),
                (200, 200, 198),
                (80, 130, 70),
                (60, 150, 200),
                (160, 150, 90),
            ],
        )
        return cls(jitter(rng, paint), bool(rng.random() < 0.4))

    @property
    def size(self):
        return 1.9, 0.7, 1.2

    def draw(self, brush: Brush, phase: float) -> None:
        rear, front, radius = -0.52, 0.54, 0.34
        frame = brush.shade(self.paint, (0.0, np.sign(brush.eye[1]), 0.4))
        for u in (rear, front):
            rim = circle(u, 0.0, radius, radius - 0.02, 24)
            brush.hull(circle(u, 0.0, radius, radius, 24))
            for angle in phase * 3.0 + np.arange(6) * (np.pi / 6):
                tip = np.array([np.cos(angle), 0.0, np.sin(angle)]) * (radius - 0.04)
                centre = np.array([u, 0.0, radius])
                brush.limb(centre - tip, centre + tip, 0.004, 0.004, (120.0, 118.0, 116.0))
            brush.ring(rim, 0.05, TYRE)
            if abs(brush.eye[1]) < 0.35 * abs(brush.eye[0]):  # nearly end on: the tread
                brush.limb((u, 0.0, 0.03), (u, 0.0, 2 * radius - 0.02), 0.03, 0.03, TYRE)
        crank, seat, head = (0.0, 0.0, 0.3), (-0.17, 0.0, 0.82), (0.4, 0.0, 0.86)
        brush.hull([(rear, 0, radius), crank, (front, 0, radius), head, seat])
        low_head = (0.44, 0.0, 0.7)
        for start, end, thick in (
            (crank, seat, 0.022),
            (crank, low_head, 0.026),
            (seat, head, 0.022),
            (crank, (rear, 0.0, radius), 0.016),
            ((-0.15, 0, 0.76), (rear, 0.0, radius), 0.014),
            (head, (front, 0.0, radius), 0.02),
        ):
            brush.limb(start, end, thick, thick, frame)
        brush.limb(seat, (-0.2, 0.0, 0.93), 0.015, 0.015, METAL)
        brush.limb((-0.34, 0.0, 0.95), (-0.08, 0.0, 0.94), 0.06, 0.035, (30.0, 28.0, 28.0))
        brush.limb(head, (0.37, 0.0, 1.02), 0.016, 0.016, METAL)
        for sign in (-1.0, 1.0):
            brush.limb((0.37, 0.0, 1.02), (0.3, sign * 0.28, 1.04), 0.014, 0.018, TYRE)
        turn = phase * 1.2
        for sign in (-1.0, 1.0):
            foot = (0.17 * np.cos(turn) * sign, 0.1 * sign, 0.3 + 0.17 * np.sin(turn) * sign)
            brush.limb((0.0, 0.08 * sign, 0.3), foot, 0.014, 0.014, METAL)
        brush.limb((rear - 0.12, 0, 0.66), (rear + 0.3, 0, 0.7), 0.02, 0.02, (60.0, 58.0, 58.0))
        brush.limb((rear - 0.14, 0, 0.6), (rear - 0.14, 0, 0.63), 0.03, 0.03, (40.0, 34.0, 190.0))
        if self.basket:
            brush.fill(
                [(0.48, -0.18, 0.8), (0.48, 0.18, 0.8), (0.72, 0.2, 1.0), (0.72, -0.2, 1.0)],
                (62.0, 80.0, 100.0),
            )
            brush.fill(
                [(0.48, 0, 0.78), (0.68, 0, 0.78), (0.74, 0, 1.02), (0.46, 0, 1.02)],
                (70.0, 92.0, 118.0),
            )


@dataclass(frozen=True)
class Motorcycle:
    """
    Attributes:
        paint: colour of tank and fairing.
        scooter: a scooter with a leg shield instead of a motorcycle with a tank.
    """

    paint: Colour
    scooter: bool

    @classmethod
    def sample(cls, rng: np.random.Generator, moving: bool) -> "Motorcycle":
        paint = pick(
            rng,
            [
                (36, 32, 170),
                (34, 32, 32),
                (160, 90, 40),
                (210, 210, 208),
                (40, 150, 210),
                (70, 120, 50),
            ],
        )
        return cls(jitter(rng, paint), bool(rng.random() < 0.4))

    @property
    def size(self):
        return 2.15, 0.86, 1.35

    def draw(self, brush: Brush, phase: float) -> None:
        rear, front, radius = -0.68, 0.7, (0.25 if self.scooter else 0.31)
        for u in sorted((rear, front), key=lambda a: -abs(float(brush.eye[0]) - a)):
            self._wheel(brush, u, radius, phase)
        (self._draw_scooter if self.scooter else self._draw_motorcycle)(brush, rear, front, radius)
        for sign in (-1.0, 1.0):
            brush.limb((0.42, 0.0, 1.0), (0.32, sign * 0.36, 1.04), 0.022, 0.026, TYRE)
            brush.limb((0.36, sign * 0.3, 1.05), (0.4, sign * 0.38, 1.2), 0.012, 0.012, TYRE)
            brush.limb((0.4, sign * 0.36, 1.22), (0.4, sign * 0.42, 1.22), 0.045, 0.045, TYRE)
        lamp = brush.pixels([(0.62, 0.0, 0.9), (0.62, 0.0, 0.9)])
        if lamp is not None and brush.eye[0] > 0.6:
            size = brush.radius((0.62, 0.0, 0.9), 0.1)
            brush.circle(lamp[0], size * 1.15, METAL)
            brush.circle(lamp[0], size, (240.0, 240.0, 236.0))
        lamp = brush.pixels([(-0.98, 0.0, 0.72), (-0.98, 0.0, 0.72)])
        if lamp is not None and brush.eye[0] < -0.6:
            brush.circle(lamp[0], brush.radius((-0.98, 0.0, 0.72), 0.07), (50.0, 40.0, 210.0))

    def _wheel(self, brush, u, radius, phase) -> None:
        for w in (-0.06, 0.06):
            brush.fill(circle(u, w, radius, radius, 22), TYRE)
        brush.limb((u, 0.0, 0.08), (u, 0.0, 2 * radius - 0.08), 0.08, 0.08, TYRE)
        w = 0.07 * np.sign(brush.eye[1])
        brush.fill(circle(u, w, radius, radius * 0.66), (96.0, 94.0, 92.0))
        brush.fill(circle(u, w, radius, radius * 0.34), (50.0, 48.0, 48.0))

    def _draw_motorcycle(self, brush, rear, front, radius) -> None:
        body = self.paint
        for sign in (-1.0, 1.0):
            brush.limb((front, sign * 0.1, radius), (0.42, sign * 0.08, 0.98), 0.035, 0.03, METAL)
            brush.limb(
                (rear, sign * 0.1, radius), (0.0, sign * 0.1, 0.42), 0.04, 0.05, (70.0, 68.0, 66.0)
            )
        engine = [(-0.32, 0.24), (-0.34, 0.62), (0.34, 0.66), (0.36, 0.3)]
        extrude(brush, engine, lambda u, v: 0.17, (74.0, 72.0, 70.0))
        brush.limb((0.1, 0.2, 0.27), (-0.85, 0.2, 0.36), 0.04, 0.06, METAL)
        seat = [(-0.95, 0.72), (-0.98, 0.84), (-0.2, 0.8), (-0.12, 0.62), (-0.5, 0.58)]
        extrude(brush, seat, lambda u, v: 0.14, (36.0, 33.0, 32.0))
        tank = [(-0.2, 0.62), (-0.14, 0.86), (0.1, 0.99), (0.4, 0.94), (0.46, 0.68)]
        extrude(brush, tank, lambda u, v: 0.17, body)
        fairing = [(0.36, 0.66), (0.4, 1.12), (0.5, 1.16), (0.66, 0.9), (0.62, 0.74)]
        extrude(brush, fairing, lambda u, v: 0.19, scale_colour(body, 0.92))
        guard = [
            (front - 0.3, 2 * radius),
            (front, 2 * radius + 0.07),
            (front + 0.3, 2 * radius - 0.1),
            (front, 2 * radius - 0.02),
        ]
        extrude(brush, guard, lambda u, v: 0.09, body)

    def _draw_scooter(self, brush, rear, front, radius) -> None:
        body = self.paint
        for sign in (-1.0, 1.0):
            brush.limb((front, sign * 0.08, radius), (0.5, sign * 0.05, 0.9), 0.03, 0.03, METAL)
        tail = [(-0.95, 0.5), (-0.98, 0.74), (-0.2, 0.74), (-0.1, 0.34), (-0.4, 0.28)]
        extrude(brush, tail, lambda u, v: 0.21, body)
        seat = [(-0.92, 0.74), (-0.9, 0.84), (-0.22, 0.82), (-0.2, 0.74)]
        extrude(brush, seat, lambda u, v: 0.17, (36.0, 33.0, 32.0))
        extrude(
            brush,
            [(-0.2, 0.26), (-0.2, 0.34), (0.42, 0.34), (0.42, 0.26)],
            lambda u, v: 0.2,
            scale_colour(body, 0.6),
        )
        shield = [(0.34, 0.3), (0.32, 0.98), (0.46, 1.08), (0.58, 0.86), (0.5, 0.4)]
        extrude(brush, shield, lambda u, v: 0.23, body)
        guard = [
            (front - 0.26, 2 * radius),
            (front, 2 * radius + 0.08),
            (front + 0.24, 2 * radius - 0.1),
            (front, 2 * radius - 0.02),
        ]
        extrude(brush, guard, lambda u, v: 0.1, body)
