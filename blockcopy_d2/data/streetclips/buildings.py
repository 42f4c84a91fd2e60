"""Houses along the street: textured upright planes and sloping roofs."""

from dataclasses import dataclass

import cv2
import numpy as np

from .annotation import Sprite
from .brush import Light
from .camera import Camera, clip_to_picture
from .street import BEHIND, FAR, Street
from .textures import Colour, jitter, pick, scale_colour, smooth_noise

PIXELS = 36  # texture pixels per metre of near house fronts
WALLS = [
    (168, 196, 214),
    (150, 172, 196),
    (186, 206, 216),
    (140, 160, 178),
    (110, 128, 160),
    (86, 104, 150),
    (176, 184, 186),
    (150, 186, 204),
    (190, 200, 190),
    (132, 142, 148),
]
ROOFS = [(58, 66, 110), (70, 70, 76), (62, 58, 58), (66, 84, 120)]
DEPTH = 14.0  # metres that a house reaches back from the street


class Ripmap:
    """A texture at resolutions halved separately across and down, made when they are asked for."""

    def __init__(self, texture: np.ndarray):
        self._levels: dict[tuple[int, int], np.ndarray] = {(0, 0): texture}
        self.shape = texture.shape

    def level(self, across: int, down: int) -> np.ndarray:
        """The texture with its columns halved `across` times and its rows `down` times."""
        if (across, down) not in self._levels:
            if across:
                finer, halve = self.level(across - 1, down), (2, 1)
            else:
                finer, halve = self.level(0, down - 1), (1, 2)
            size = (max(finer.shape[1] // halve[0], 1), max(finer.shape[0] // halve[1], 1))
            self._levels[across, down] = cv2.resize(finer, size, interpolation=cv2.INTER_AREA)
        return self._levels[across, down]

    def fitting(self, columns: float, rows: float) -> np.ndarray:
        """The coarsest level with at least so many columns and rows."""
        across = int(max(np.log2(self.shape[1] / max(columns, 1.0)), 0.0))
        down = int(max(np.log2(self.shape[0] / max(rows, 1.0)), 0.0))
        return self.level(min(across, 7), min(down, 5))


@dataclass(frozen=True)
class House:
    """
    Attributes:
        side: -1 left of the street, 1 right of it.
        wall: X of its front.
        start, end: Z of its two ends.
        height: height of the eaves in metres.
        roof: rise of the roof in metres.
        front, gable: textures of the street front and of the end walls.
        roof_colour: colour of the roof.
    """

    side: int
    wall: float
    start: float
    end: float
    height: float
    roof: float
    front: Ripmap
    gable: Ripmap
    roof_colour: Colour

    @property
    def footprint(self) -> np.ndarray:
        """(4, 2) ground corners (X, Z)."""
        outer = self.wall + self.side * DEPTH
        return np.array(
            [[self.wall, self.start], [self.wall, self.end], [outer, self.end], [outer, self.start]]
        )

    def sprites(self, camera: Camera, light: Light) -> list[Sprite]:
        """The visible ones of gable, roof and front, in drawing order."""
        outer = self.wall + self.side * DEPTH
        ridge = self.wall + self.side * 4.0
        top = self.height + self.roof
        parts = []
        if camera.z < self.start:
            parts.append(
                self._plane(
                    camera,
                    light,
                    self.gable,
                    (self.wall, self.start),
                    (outer, self.start),
                    (0.0, 0.0, -1.0),
                )
            )
        # A roof flatter than the line of sight is hidden by its own eaves.
        if self.roof / 4.0 > (self.height - camera.eye) / abs(self.wall - camera.x):
            slope = np.array(
                [
                    [self.wall, self.height, self.start],
                    [self.wall, self.height, self.end],
                    [ridge, top, self.end],
                    [ridge, top, self.start],
                ]
            )
            normal = np.array([-self.side * 0.6, 0.8, 0.0])
            parts.append(_flat(camera, light, slope, light.shade(self.roof_colour, normal)))
        if camera.z < self.start:
            peak = np.array(
                [
                    [self.wall, self.height, self.start],
                    [ridge, top, self.start],
                    [outer, self.height, self.start],
                ]
            )
            colour = tuple(float(c) for c in self.gable.level(7, 5).mean(axis=(0, 1)))
            parts.append(_flat(camera, light, peak, light.shade(colour, np.array([0, 0, -1.0]))))
        parts.append(
            self._plane(
                camera,
                light,
                self.front,
                (self.wall, self.start),
                (self.wall, self.end),
                (-float(self.side), 0.0, 0.0),
            )
        )
        return [part for part in parts if part is not None]

    def _plane(self, camera, light, texture, start, end, normal) -> Sprite | None:
        """Warps a texture onto the upright plane between two ground points."""
        corners = np.array(
            [
                [start[0], 0.0, start[1]],
                [start[0], self.height, start[1]],
                [end[0], self.height, end[1]],
                [end[0], 0.0, end[1]],
            ]
        )
        polygon = _in_picture(camera, corners)
        if polygon is None:
            return None
        left, top = (int(v) for v in polygon.min(axis=0))
        width, height = (int(v) + 1 for v in np.ptp(polygon, axis=0))
        # The texture comes down to about the resolution at which it is seen, lengthways by its
        # foreshortened width, so that far windows do not flicker.
        near = max(min(camera.depth(*start), camera.depth(*end)), 1.0)
        texture = texture.fitting(1.4 * width, 1.2 * self.height * camera.focal / near)
        rows, columns = texture.shape[:2]
        first = np.array([end[0] - start[0], 0.0, end[1] - start[1]]) / columns
        second = np.array([0.0, -self.height / rows, 0.0])
        matrix = camera.plane((start[0], self.height, start[1]), first, second)
        shift = np.array([[1, 0, -left - 0.5], [0, 1, -top - 0.5], [0, 0, 1.0]])
        centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
        picture = cv2.warpPerspective(
            texture,
            shift @ matrix @ centre,
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        gain = np.float32(light.shade((255.0, 255.0, 255.0), np.array(normal))) / 255.0
        middle = camera.depth((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        fade = light.visibility(max(middle, near))
        table = np.arange(256, dtype=np.float32)[:, None] * gain * fade
        table = np.clip(table + np.float32(light.haze) * (1 - fade), 0, 255).astype(np.uint8)
        return Sprite(left, top, cv2.LUT(picture, table[None]), None, polygon)


def _in_picture(camera: Camera, corners: np.ndarray) -> np.ndarray | None:
    polygon = camera.polygon(corners)
    return None if polygon is None else clip_to_picture(polygon, camera.height, camera.width)


def _flat(camera: Camera, light: Light, corners, colour: Colour) -> Sprite | None:
    """An evenly coloured surface."""
    polygon = _in_picture(camera, corners)
    if polygon is None:
        return None
    fade = light.visibility(camera.depth(*corners.mean(axis=0)[[0, 2]]))
    colour = np.float32(colour) * fade + np.float32(light.haze) * (1 - fade)
    (left, top), (right, bottom) = polygon.min(axis=0), polygon.max(axis=0)
    picture = np.empty((bottom - top + 1, right - left + 1, 3), np.uint8)
    picture[:] = np.clip(colour, 0, 255).astype(np.uint8)
    return Sprite(int(left), int(top), picture, None, polygon)


def sample_houses(rng: np.random.Generator, street: Street) -> list[House]:
    """Rows of houses on both sides, with a gap at the side street and now and then another one."""
    stretches = [(BEHIND, FAR * 0.8)]
    if street.crossing is not None:
        gap = street.crossing_half + 2.9
        stretches = [(BEHIND, street.crossing - gap), (street.crossing + gap, FAR * 0.8)]
    houses = []
    for side, wall in ((-1, street.wall_left), (1, street.wall_right)):
        for z, last in stretches:
            while z < last - 6.0:
                end = z + float(rng.uniform(9.0, 20.0) if z < 70 else rng.uniform(20.0, 34.0))
                if end > last - 6.0:
                    end = last
                houses.append(_house(rng, side, wall, z, end))
                z = end + (float(rng.uniform(3.0, 7.0)) if rng.random() < 0.12 else 0.0)
    return houses


def _house(rng: np.random.Generator, side: int, wall: float, start: float, end: float) -> House:
    storeys = int(rng.integers(3, 6))
    height = 3.9 + storeys * float(rng.uniform(2.9, 3.3))
    colour = jitter(rng, pick(rng, WALLS), 10)
    pixels = PIXELS if start < 30.0 else PIXELS // 2
    front = facade(rng, end - start, height, storeys, colour, pixels, shops=True)
    darker = scale_colour(colour, 0.94)
    gable = facade(rng, DEPTH, height, storeys, darker, PIXELS // 2, shops=False)
    wall = wall + side * float(rng.choice([0.0, 0.0, 0.4, 0.9]))
    return House(
        side,
        wall,
        start,
        end,
        height,
        float(rng.uniform(2.0, 4.5)),
        Ripmap(front),
        Ripmap(gable),
        jitter(rng, pick(rng, ROOFS)),
    )


def facade(
    rng: np.random.Generator,
    length: float,
    height: float,
    storeys: int,
    colour: Colour,
    pixels: int,
    *,
    shops: bool,
) -> np.ndarray:
    """
    Paints a house front.

    Args:
        length, height: in metres.
        storeys: rows of windows above the ground floor.
        colour: colour of the plaster.
        pixels: per metre.
        shops: whether shop windows fill the ground floor.

    Returns:
        uint8 texture, row 0 at the eaves.
    """
    rows, columns = int(height * pixels), int(length * pixels)
    noise = smooth_noise(rng, (rows // 4, columns // 4), (6, 16, 40, 90))
    noise = cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_LINEAR)
    wall = np.clip(np.float32(colour) * (1.0 + 0.028 * noise[..., None]), 0, 255).astype(np.uint8)

    def box(x: float, y: float, width: float, tall: float, paint: Colour) -> None:
        corner = (int(x * pixels), rows - int((y + tall) * pixels))
        opposite = (int((x + width) * pixels) - 1, rows - int(y * pixels) - 1)
        cv2.rectangle(wall, corner, opposite, paint, -1)

    ground = 3.9
    step = (height - ground) / storeys
    wide, tall = float(rng.uniform(0.95, 1.4)), float(rng.uniform(1.4, 1.9))
    frame = pick(rng, [(226, 228, 230), (226, 228, 230), (70, 76, 84), (50, 66, 96)])
    trim = scale_colour(colour, rng.choice([0.8, 1.14]))
    count = max(int(length / float(rng.uniform(2.1, 2.9))), 1)
    pitch = length / count
    balconies = rng.random() < 0.3
    for storey in range(storeys):
        y = ground + storey * step + 0.75
        box(0.0, ground + storey * step - 0.08, length, 0.16, trim)
        for i in range(count):
            x = (i + 0.5) * pitch - wide / 2
            _window(rng, box, x, y, wide, min(tall, step - 1.0), frame, trim)
            if balconies and i % 2 == 1 and shops:
                box(x - 0.4, y - 0.4, wide + 0.8, 0.12, (120, 120, 122))
                for bar in np.arange(x - 0.4, x + wide + 0.4, 0.14):
                    box(bar, y - 0.3, 0.04, 0.8, (64, 62, 62))
    box(0.0, height - 0.4, length, 0.4, trim)
    box(0.0, height - 0.16, length, 0.16, scale_colour(trim, 0.75))
    if shops:
        _ground_floor(rng, box, length, colour)
    else:
        box(0.0, 0.0, length, 0.6, scale_colour(colour, 0.72))
    for x in (0.05, length - 0.17):
        box(x, 0.0, 0.12, height, scale_colour(colour, 0.72))  # drain pipes, gaps between houses
    return wall


def _window(rng, box, x, y, wide, tall, frame, trim) -> None:
    glass = pick(rng, [(88, 78, 70), (70, 62, 56), (104, 94, 84), (60, 54, 50)])
    box(x - 0.14, y - 0.1, wide + 0.28, tall + 0.24, trim)
    box(x - 0.18, y - 0.16, wide + 0.36, 0.1, scale_colour(trim, 0.8))
    box(x, y, wide, tall, frame)
    box(x + 0.07, y + 0.07, wide - 0.14, tall - 0.14, glass)
    box(
        x + 0.07,
        y + tall * 0.55,
        wide - 0.14,
        tall * 0.45 - 0.07,
        scale_colour(glass, float(rng.uniform(1.15, 1.7))),
    )
    if rng.random() < 0.35:
        box(x + 0.07, y + tall * float(rng.uniform(0.3, 0.8)), wide - 0.14, 0.3, (196, 204, 208))
    box(x + wide / 2 - 0.04, y, 0.08, tall, frame)
    box(x, y + tall * 0.62, wide, 0.07, frame)


def _ground_floor(rng, box, length, colour) -> None:
    box(0.0, 0.0, length, 3.6, scale_colour(colour, float(rng.uniform(0.7, 0.9))))
    box(0.0, 3.55, length, 0.2, scale_colour(colour, 0.65))
    x = 0.5
    while x + 2.0 < length - 0.4:
        width = min(float(rng.uniform(2.0, 4.5)), length - 0.5 - x)
        if rng.random() < 0.2:
            box(x, 0.0, 1.3, 2.5, jitter(rng, (52, 70, 98), 12))
            box(x + 0.15, 1.3, 1.0, 1.0, (96, 86, 78))
            x += 1.8
            continue
        sign = jitter(
            rng,
            pick(
                rng,
                [
                    (60, 52, 150),
                    (140, 96, 50),
                    (70, 110, 60),
                    (46, 46, 48),
                    (60, 150, 196),
                    (200, 204, 206),
                ],
            ),
            12,
        )
        box(x, 0.35, width, 2.45, (54, 50, 48))
        box(x + 0.1, 0.5, width - 0.2, 2.2, (96, 88, 80))
        box(x + 0.1, 1.5, width - 0.2, 1.2, (126, 118, 108))
        for i in range(int(width / 0.5)):
            item = jitter(rng, (110, 120, 140), 34)
            box(x + 0.15 + i * 0.5, 0.5, 0.36, float(rng.uniform(0.4, 1.3)), item)
        box(x + width / 2 - 0.05, 0.35, 0.1, 2.4, (54, 50, 48))
        box(x - 0.1, 2.85, width + 0.2, 0.6, sign)
        letters = scale_colour(sign, 1.9 if sum(sign) < 380 else 0.4)
        for i in range(int(width / 0.45) - 1):
            box(x + 0.25 + i * 0.45, 3.02, 0.25, 0.26, letters)
        x += width + float(rng.uniform(0.4, 1.0))
