"""Building blocks of vehicles: extruded bodies, discs, panels. Coordinates as in `brush`."""

from collections.abc import Callable, Sequence

import numpy as np

from .brush import Brush
from .textures import Colour, scale_colour

Point2 = tuple[float, float]


def circle(u: float, w: float, v: float, radius: float, count: int = 18) -> np.ndarray:
    """(count, 3) points of an upright circle whose axis points sideways."""
    angle = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    return np.stack(
        [u + radius * np.cos(angle), np.full(count, w), v + radius * np.sin(angle)], axis=1
    )


def box_profile(start: float, end: float, bottom: float, top: float) -> Sequence[Point2]:
    """Upright rectangle in (u, v)."""
    return [(start, bottom), (start, top), (end, top), (end, bottom)]


def extrude(
    brush: Brush,
    profile: Sequence[Point2],
    half_width: Callable[[float, float], float],
    colour: Colour,
    strip_colour: Callable[[int], Colour] = None,
) -> None:
    """
    Draws the faces that show of a profile extruded sideways.

    Args:
        profile: (u, v) points, clockwise with u to the right: up at the rear, forward over the
            top, down at the front.
        half_width: (u, v) -> lateral half width in metres.
        colour: paint.
        strip_colour: index of the edge from point i to i + 1 -> its paint, if not `colour`.
    """
    strips = []
    for i, (u0, v0) in enumerate(profile):
        u1, v1 = profile[(i + 1) % len(profile)]
        normal = np.array([v0 - v1, 0.0, u1 - u0])
        middle = np.array([(u0 + u1) / 2, 0.0, (v0 + v1) / 2])
        if not brush.facing(middle, normal):
            continue
        a, b = half_width(u0, v0), half_width(u1, v1)
        quad = np.array([[u0, -a, v0], [u0, a, v0], [u1, b, v1], [u1, -b, v1]])
        paint = strip_colour(i) if strip_colour else colour
        distance = float(np.linalg.norm(brush.eye - middle))
        strips.append((distance, quad, brush.shade(paint, normal)))
    for _, quad, paint in sorted(strips, key=lambda strip: -strip[0]):
        brush.fill(quad, paint)
    for sign in (-1.0, 1.0):
        if side_shows(brush, half_width(profile[0][0], profile[0][1]), sign):
            side = np.array([[u, sign * half_width(u, v), v] for u, v in profile])
            brush.fill(side, brush.shade(colour, (0.0, sign, 0.12)))


def side_shows(brush: Brush, half_width: float, sign: float) -> bool:
    """Returns whether the camera sees the side at `sign * half_width`."""
    return sign * float(brush.eye[1]) > half_width


def wheels(brush: Brush, axles: Sequence[float], half_width: float, radius: float) -> None:
    """Tyres as seen from front or rear, to be drawn before the body that hides their tops."""
    dark = (24.0, 22.0, 22.0)
    for u in sorted(axles, key=lambda axle: -abs(float(brush.eye[0]) - axle)):
        end = u
        for sign in (-1.0, 1.0):
            outer, inner = sign * half_width, sign * (half_width - 0.22)
            brush.fill(
                [[end, outer, 0], [end, outer, radius], [end, inner, radius], [end, inner, 0]],
                dark,
            )
            if side_shows(brush, half_width, -sign):
                brush.fill(circle(u, inner, radius, radius), dark)


def hub_caps(
    brush: Brush, axles: Sequence[float], half_width: float, radius: float, rim: Colour
) -> None:
    """Wheel arches, tyres and rims on the side that shows, to be drawn after the body."""
    for sign in (-1.0, 1.0):
        if not side_shows(brush, half_width, sign):
            continue
        for u in axles:
            arch = circle(u, sign * half_width, radius, radius * 1.17)
            arch[:, 2] = np.maximum(arch[:, 2], radius * 0.75)
            brush.fill(arch, (16.0, 15.0, 15.0))
            w = sign * (half_width + 0.01)
            brush.fill(circle(u, w, radius, radius), (30.0, 28.0, 28.0))
            brush.fill(circle(u, w, radius, radius * 0.64), brush.shade(rim, (0.0, sign, 0.2)))
            brush.fill(circle(u, w, radius, radius * 0.5), scale_colour(rim, 0.38))
            for angle in np.arange(5) * (2 * np.pi / 5) + 0.3:
                tip = np.array([np.cos(angle), np.sin(angle)]) * radius * 0.58
                across = np.array([-tip[1], tip[0]]) * 0.16
                spoke = [(-across), across, tip + across, tip - across]
                brush.fill(
                    [[u + p[0], w, radius + p[1]] for p in spoke],
                    brush.shade(rim, (0.0, sign, 0.2)),
                )


def panel(
    brush: Brush,
    u: float,
    sign: float,
    left: float,
    right: float,
    bottom: float,
    top: float,
    colour: Colour,
) -> None:
    """A rectangle on the front (`sign` 1) or rear (-1) end at `u`, if that end shows."""
    if brush.facing((u, 0.0, 1.0), (sign, 0.0, 0.0)):
        brush.fill([[u, left, bottom], [u, right, bottom], [u, right, top], [u, left, top]], colour)


def side_panel(
    brush: Brush,
    w: float,
    start: float,
    end: float,
    bottom: float,
    top: float,
    colour: Colour,
    lean: float = 0.0,
) -> None:
    """A rectangle on the side at lateral offset `w`, if that side shows; its top is shifted
    forward by `lean`."""
    if side_shows(brush, abs(w) - 0.03, np.sign(w)):
        brush.fill(
            [[start, w, bottom], [end, w, bottom], [end + lean, w, top], [start + lean, w, top]],
            colour,
        )
