"""Trees whose crowns sway: their pixels change, but nothing to detect does."""

from dataclasses import dataclass

import cv2
import numpy as np

from .annotation import Sprite, outline
from .brush import Light, veil
from .camera import Camera
from .textures import Colour, jitter, pick, smooth_noise

SIZE = 320  # pixels of a stored tree, square


@dataclass(frozen=True)
class Tree:
    """
    Attributes:
        x, z: foot in metres.
        height: in metres; the picture of the tree is as wide as it is high.
        picture: (SIZE, SIZE, 4) uint8 BGRA, premultiplied.
        flutter: (2, SIZE, SIZE) float32 displacement pattern of the leaves.
        rate, offset: angular frequency (1/s) and phase of the swaying.
    """

    x: float
    z: float
    height: float
    picture: np.ndarray
    flutter: np.ndarray
    rate: float
    offset: float

    @classmethod
    def sample(cls, rng: np.random.Generator, x: float, z: float) -> "Tree":
        leaf = jitter(
            rng,
            pick(
                rng,
                [(52, 104, 78), (44, 88, 62), (60, 118, 104), (56, 96, 92), (50, 120, 150)],
                (4, 4, 3, 2, 1),
            ),
            7,
        )
        flutter = np.stack([smooth_noise(rng, (SIZE, SIZE), (9, 22, 40)) for _ in range(2)])
        return cls(
            x,
            z,
            float(rng.uniform(5.5, 9.0)),
            _paint(rng, leaf),
            flutter,
            float(rng.uniform(1.6, 3.4)),
            float(rng.uniform(0, 6.28)),
        )

    @property
    def footprint(self) -> np.ndarray:
        """(4, 2) ground corners; that of the trunk, since people walk below the crown."""
        square = np.array([[-0.2, -0.2], [-0.2, 0.2], [0.2, 0.2], [0.2, -0.2]])
        return square + [self.x, self.z]

    def sprite(self, camera: Camera, light: Light, time: float, wind: float) -> Sprite | None:
        """
        Draws the tree, bent as at a moment.

        Args:
            time: in seconds.
            wind: strength, 0 for none; 1 moves the tree top by about 0.3 m.
        """
        depth = camera.depth(self.x, self.z)
        if depth < 1.5:
            return None
        foot = camera.polygon([(self.x, 0.0, self.z)] * 3)[0].tolist()
        scale = float(self.height * camera.focal / depth / SIZE)  # picture pixels per stored pixel
        extent = SIZE * scale
        left = max(int(foot[0] - extent / 2) - 2, 0)
        right = min(int(foot[0] + extent / 2) + 3, camera.width)
        top, bottom = max(int(foot[1] - extent) - 2, 0), min(int(foot[1]) + 2, camera.height)
        if right - left < 4 or bottom - top < 4:
            return None
        columns = (np.arange(left, right) + 0.5 - foot[0]) / scale + SIZE / 2 - 0.5
        rows = (np.arange(top, bottom) + 0.5 - foot[1]) / scale + SIZE - 0.5
        columns, rows = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
        if wind > 0:
            lift = np.clip(1.0 - rows / SIZE, 0.0, 1.0) ** 1.4
            swing = np.sin(self.rate * time + self.offset) + 0.4 * np.sin(
                2.3 * self.rate * time + 2 * self.offset
            )
            columns -= np.float32(0.03 * SIZE * wind * swing) * lift
            # Leaves shiver faster than the crown swings.
            patterns = [cv2.remap(p, columns, rows, cv2.INTER_LINEAR) for p in self.flutter]
            shiver = np.sin(np.float32(9.0 * time + self.offset) + 2.0 * patterns[1])
            columns += float(1.9 * wind) * shiver * patterns[0] * (lift > 0.1)
            rows += float(1.2 * wind) * shiver * (lift > 0.1)
        source = self.picture
        if scale < 0.6:  # seen from afar: average first, or the leaves would flicker
            size = max(int(SIZE * scale * 1.3), 8)
            source = cv2.resize(source, (size, size), interpolation=cv2.INTER_AREA)
            columns = (columns + 0.5) * np.float32(size / SIZE) - 0.5
            rows = (rows + 0.5) * np.float32(size / SIZE) - 0.5
        paint = cv2.remap(source, columns, rows, cv2.INTER_LINEAR)
        alpha = np.ascontiguousarray(paint[..., 3])
        polygon = outline(alpha > 127, left, top, 1.0)
        if polygon is None:
            return None
        fade = light.visibility(depth)
        gain = np.array(light.shade((255.0, 255.0, 255.0), np.array([0.0, 0.8, -0.6]))) / 255.0
        table = np.clip(np.arange(256)[:, None] * gain * fade, 0, 255)
        colour = cv2.LUT(paint[..., :3], np.rint(table).astype(np.uint8)[None])
        colour = cv2.add(colour, veil(alpha, light.haze, fade))
        return Sprite(left, top, colour, alpha, polygon)


def _paint(rng: np.random.Generator, leaf: Colour) -> np.ndarray:
    """A tree in front of nothing: trunk, boughs and a crown built up from clumps of leaves."""
    size = SIZE * 2
    paint = np.zeros((size, size, 4), np.uint8)
    bark = (52, 62, 74, 255)
    middle = size // 2
    cv2.fillPoly(
        paint,
        [
            np.array(
                [
                    [middle - 15, size - 1],
                    [middle - 9, size * 5 // 9],
                    [middle + 9, size * 5 // 9],
                    [middle + 15, size - 1],
                ]
            )
        ],
        bark,
    )
    cv2.fillPoly(
        paint,
        [
            np.array(
                [
                    [middle + 3, size - 1],
                    [middle + 2, size * 5 // 9],
                    [middle + 9, size * 5 // 9],
                    [middle + 15, size - 1],
                ]
            )
        ],
        (36, 44, 54, 255),
    )
    centres = []
    tall = float(rng.uniform(0.27, 0.32))
    wide = float(rng.uniform(0.28, 0.38))
    for _ in range(46):
        angle, share = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 1)) * 0.78
        centres.append(
            (
                middle + np.cos(angle) * share * wide * size,
                size * 0.37 + np.sin(angle) * share * tall * size,
            )
        )
    for x, y in centres[:7]:
        cv2.line(paint, (middle, size * 3 // 5), (int(x), int(y)), bark, 7)
    # From the dark lower back to the bright upper front.
    for shade, lift, grow in ((0.55, 16, 1.0), (0.78, 4, 0.84), (1.0, -10, 0.62), (1.2, -20, 0.4)):
        places = np.repeat(np.array(centres), 20, axis=0)
        level = shade * (1.14 - 0.34 * places[:, 1] / size) * rng.uniform(0.84, 1.16, len(places))
        places += rng.normal(0.0, 0.046 * size * grow, places.shape) + [0.0, lift]
        radii = rng.uniform(0.008, 0.024, len(places)) * size * grow + 2
        colours = np.clip(np.outer(level, leaf), 0, 255)
        for (x, y), radius, colour in zip(places.tolist(), radii.tolist(), colours.tolist()):
            cv2.circle(paint, (int(x), int(y)), int(radius), (*colour, 255), -1)
    return cv2.resize(paint, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
