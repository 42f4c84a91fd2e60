"""
Draws one object, given in its own coordinates, into a supersampled patch of the picture.

Object coordinates in metres: (u, w, v) = (forward, to the object's right, up), with the origin on
the ground.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .annotation import Sprite, outline
from .camera import NEAR, Camera, project
from .textures import Colour

_SHIFT = 4  # fractional bits of the vertices given to OpenCV
_LIMIT = 1 << 24  # farther outside the patch OpenCV's fixed point numbers would overflow


@dataclass(frozen=True)
class Light:
    """
    Attributes:
        direction: (3,) unit vector towards the sun, world axes.
        ambient, diffuse: strength of sky and sun.
        haze: colour that far objects fade to.
        haze_distance: metres at which the haze has swallowed 63 % of the colour.
        tint: colour of the light.
    """

    direction: tuple[float, float, float]
    ambient: float
    diffuse: float
    haze: Colour
    haze_distance: float
    tint: Colour = (1.0, 1.0, 1.0)

    def shade(self, colour: Colour, normal: np.ndarray) -> Colour:
        """Colour of a surface with the world `normal`."""
        cosine = max(float(np.dot(normal, self.direction)), 0.0)
        sky = 0.82 + 0.18 * float(normal[1])
        strength = self.ambient * sky + self.diffuse * cosine
        return tuple(min(c * t * strength, 255.0) for c, t in zip(colour, self.tint))

    def visibility(self, depth: float) -> float:
        """Share of an object's own colour that is left at `depth` metres."""
        return float(np.exp(-max(depth, 0.0) / self.haze_distance))


class Brush:
    """
    A patch of the picture that holds one object while it is being drawn.

    Drawing happens at two to four times the resolution of the picture; `finish` averages it down,
    which yields the coverage at the edges, and traces the silhouette.
    """

    def __init__(
        self,
        camera: Camera,
        light: Light,
        position: tuple[float, float],
        heading: float,
        size: tuple[float, float, float],
    ):
        """
        Args:
            position: (X, Z) of the object's origin.
            heading: direction of its u axis, 0 along +Z, positive towards +X.
            size: (length, width, height) of a box that holds all of it, centred on the origin.
        """
        self.light = light
        self._cos, self._sin = float(np.cos(heading)), float(np.sin(heading))
        axes = np.array(
            [
                [self._sin, self._cos, 0.0, position[0]],
                [0.0, 0.0, 1.0, 0.0],
                [self._cos, -self._sin, 0.0, position[1]],
                [0.0, 0.0, 0.0, 1.0],
            ]
        )
        self._matrix = camera.matrix @ axes
        offset = np.array([camera.x - position[0], camera.z - position[1]])
        # Where the camera is, in the object's coordinates.
        self.eye = np.array(
            [
                offset[0] * self._sin + offset[1] * self._cos,
                offset[0] * self._cos - offset[1] * self._sin,
                camera.eye,
            ]
        )
        self.depth = camera.depth(*position)
        self.focal = camera.focal
        self._open(camera, size)

    def _open(self, camera: Camera, size: tuple[float, float, float]) -> None:
        """Finds the part of the picture that the object may touch; `visible`: there is any."""
        u, w, v = size[0] / 2, size[1] / 2, size[2]
        low = np.array([[-u, -w, 0.0], [u, -w, 0.0], [u, w, 0.0], [-u, w, 0.0]])
        corners = [project(self._matrix, ring) for ring in (low, low + [0.0, 0.0, v])]
        corners = [ring for ring in corners if ring is not None]
        self.visible = False
        if not corners:
            return
        points = np.concatenate(corners)
        left, top = np.floor(points.min(axis=0)).astype(int) - 2
        right, bottom = np.ceil(points.max(axis=0)).astype(int) + 3
        self.left, self.top = max(left, 0), max(top, 0)
        self.width = min(right, camera.width) - self.left
        self.height = min(bottom, camera.height) - self.top
        if self.width < 3 or self.height < 3:
            return
        self.visible = True
        self.scale = 4 if self.width * self.height < 120 * 120 else 2
        shape = (self.height * self.scale, self.width * self.scale)
        self._paint = np.zeros(shape + (4,), np.uint8)
        self._hull = np.zeros(shape, np.uint8)

    def shade(self, colour: Colour, normal) -> Colour:
        """Colour of a surface whose normal is given in object coordinates."""
        u, w, v = normal
        world = np.array([u * self._sin + w * self._cos, v, u * self._cos - w * self._sin])
        return self.light.shade(colour, world / max(float(np.linalg.norm(world)), 1e-6))

    def facing(self, point, normal) -> bool:
        """Returns whether a surface through `point` shows its front to the camera."""
        return float(np.dot(self.eye - np.asarray(point, float), normal)) > 0.0

    def pixels(self, points) -> np.ndarray | None:
        """Patch coordinates (n, 2), at the supersampled scale, of object points (n, 3)."""
        projected = project(self._matrix, np.asarray(points, float))
        if projected is None:
            return None
        return (projected - [self.left, self.top]) * self.scale - 0.5

    def fill(self, points, colour: Colour) -> None:
        """Fills a planar polygon (n, 3) of object points."""
        pixels = self.pixels(points)
        if pixels is not None and len(pixels) >= 3:
            self.fill_pixels(pixels, colour)

    def fill_pixels(self, pixels: np.ndarray, colour: Colour) -> None:
        """Fills a polygon (n, 2) given in patch coordinates."""
        cv2.fillPoly(self._paint, [_fixed(pixels)], (*colour, 255), cv2.LINE_8, _SHIFT)

    def hull(self, points) -> None:
        """Counts a polygon (n, 3) as part of the silhouette without painting it."""
        pixels = self.pixels(points)
        if pixels is not None and len(pixels) >= 3:
            cv2.fillPoly(self._hull, [_fixed(pixels)], 255, cv2.LINE_8, _SHIFT)

    def radius(self, point, metres: float) -> float:
        """Length in patch pixels of `metres` at an object point, seen face on."""
        depth = self._matrix[2, :3] @ np.asarray(point, float) + self._matrix[2, 3]
        return metres * self.focal / max(depth, NEAR) * self.scale

    def limb(self, start, end, first: float, second: float, colour: Colour) -> None:
        """A rounded stick between two object points, with a radius in metres at each end."""
        ends = np.array([start, end], float) @ self._matrix[:, :3].T + self._matrix[:, 3]
        if ends[:, 2].min() < NEAR:
            return
        a, b = (ends[:, :2] / ends[:, 2:] - [self.left, self.top]) * self.scale - 0.5
        ra, rb = (
            max(metres * self.focal * self.scale / depth, 0.6)
            for metres, depth in ((first, ends[0, 2]), (second, ends[1, 2]))
        )
        along = b - a
        length = float(np.hypot(along[0], along[1]))
        if length > 1e-3:
            across = np.array([-along[1], along[0]]) / length
            self.fill_pixels(
                np.stack([a + across * ra, b + across * rb, b - across * rb, a - across * ra]),
                colour,
            )
        for centre, radius in ((a, ra), (b, rb)):
            self.circle(centre, radius, colour)

    def circle(self, centre: np.ndarray, radius: float, colour: Colour) -> None:
        """A disc in patch pixels."""
        x, y = (min(max(round(float(v) * 16), -_LIMIT), _LIMIT) for v in centre)
        cv2.circle(
            self._paint, (x, y), int(max(radius, 0.5) * 16), (*colour, 255), -1, cv2.LINE_8, _SHIFT
        )

    def ring(self, points, metres: float, colour: Colour) -> None:
        """A closed line through object points, `metres` thick."""
        pixels = self.pixels(points)
        if pixels is None or len(pixels) < 3:
            return
        thickness = max(int(round(self.radius(np.mean(points, axis=0), metres))), 2)
        cv2.polylines(
            self._paint, [_fixed(pixels)], True, (*colour, 255), thickness, cv2.LINE_8, _SHIFT
        )

    def finish(self, grain: np.ndarray, gradient: tuple[float, float]) -> Sprite | None:
        """
        Averages the patch down to the picture's resolution.

        Args:
            grain: (h, w) float32 texture around 0, at least as large as any patch, or tiled.
            gradient: brightness at the top and at the bottom of the object.

        Returns:
            the sprite, or None when no pixel of the object is seen.
        """
        size = (self.width, self.height)
        paint = cv2.resize(self._paint, size, interpolation=cv2.INTER_AREA)
        alpha = np.ascontiguousarray(paint[..., 3])
        solid = np.maximum(alpha, cv2.resize(self._hull, size, interpolation=cv2.INTER_AREA))
        polygon = outline(solid > 127, self.left, self.top, 0.4 if self.height < 90 else 0.8)
        if polygon is None:
            return None
        ramp = np.linspace(*gradient, self.height, dtype=np.float32)[:, None]
        shading = ramp * (1.0 + texture_window(grain, self.height, self.width))
        fade = self.light.visibility(self.depth)
        colour = cv2.multiply(
            paint[..., :3], cv2.merge([shading * np.float32(fade)] * 3), dtype=cv2.CV_8U
        )
        colour = cv2.add(colour, veil(alpha, self.light.haze, fade))
        return Sprite(self.left, self.top, colour, alpha, polygon)


def _fixed(pixels: np.ndarray) -> np.ndarray:
    """Patch coordinates as the fixed point numbers that OpenCV takes."""
    return np.rint(pixels * (1 << _SHIFT)).clip(-_LIMIT, _LIMIT).astype(np.int32)


def veil(alpha: np.ndarray, haze: Colour, fade: float) -> np.ndarray:
    """(h, w, 3) uint8 haze before an object of coverage `alpha` that keeps `fade` of its colour."""
    table = np.arange(256)[:, None] / 255.0 * np.array(haze) * (1.0 - fade)
    return cv2.LUT(cv2.merge([alpha] * 3), np.rint(table).astype(np.uint8)[None])


def texture_window(texture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The upper left part of a texture, repeated when it is too small."""
    repeats = (-(-height // texture.shape[0]), -(-width // texture.shape[1]))
    if repeats != (1, 1):
        texture = np.tile(texture, repeats)
    return texture[:height, :width]
