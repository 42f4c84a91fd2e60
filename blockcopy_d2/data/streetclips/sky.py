"""The sky with its clouds, and the far end of the street."""

import cv2
import numpy as np

from .annotation import Canvas, outline
from .brush import Light
from .camera import Camera
from .textures import mix, scale_colour, smooth_noise

PANORAMA = (256, 2048)  # rows and columns of the stored panoramas
SPAN = 2.2  # radians that the panoramas cover


class Backdrop:
    """
    Panoramas of the sky and of the roofs and trees on the horizon.

    They lie at infinity: they move with the camera's yaw only.
    """

    def __init__(self, rng: np.random.Generator, light: Light, clouds: float, zenith):
        rows, columns = PANORAMA
        ramp = np.linspace(1.0, 0.0, rows, dtype=np.float32)[:, None, None] ** 0.8
        sky = np.float32(light.haze) * (1 - ramp) + np.float32(zenith) * ramp
        noise = smooth_noise(rng, (rows, columns // 2), (5, 11, 24, 50, 110), 0.6)
        noise = cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
        cover = np.clip((noise - 1.1 + 2.2 * clouds) * 0.8, 0.0, 1.0)[..., None]
        lit = np.clip(0.9 + 0.1 * (noise - np.roll(noise, 9, axis=0)), 0.72, 1.05)[..., None]
        cloud = np.float32(mix(light.haze, (250.0, 250.0, 250.0), 0.55)) * lit
        self.sky = np.clip(sky * (1 - cover * 0.85) + cloud * cover * 0.85, 0, 255).astype(np.uint8)
        self._skyline(rng, light)

    def _skyline(self, rng: np.random.Generator, light: Light) -> None:
        """A strip of far houses and tree tops, one panorama column wide steps."""
        columns = PANORAMA[1]
        self.heights = np.zeros(columns, np.float32)  # tangent of the elevation
        self.colours = np.zeros((columns, 3), np.float32)
        self.is_tree = np.zeros(columns, bool)
        at = 0
        while at < columns:
            width = int(rng.integers(24, 110))
            part = slice(at, min(at + width, columns))
            count = part.stop - part.start
            if rng.random() < 0.4:
                bumps = smooth_noise(rng, (4, count), (3, 8, 20))[0]
                self.heights[part] = 0.05 + 0.012 * bumps
                colour = (62.0, 92.0, 74.0)
                self.is_tree[part] = True
            else:
                self.heights[part] = rng.uniform(0.04, 0.1)
                colour = scale_colour((132.0, 138.0, 150.0), rng.uniform(0.75, 1.15))
            self.colours[part] = mix(colour, light.haze, 0.55)
            at += width

    def draw(self, canvas: Canvas, camera: Camera) -> None:
        """Paints and annotates everything above the horizon."""
        height, width = camera.height, camera.width
        horizon = int(camera.horizon) + 1
        angle = np.arctan((np.arange(width) + 0.5 - width / 2) / camera.focal) + camera.yaw
        column = (angle / SPAN + 0.5) * (PANORAMA[1] - 1)
        row = np.linspace(0, PANORAMA[0] - 1, horizon)
        grid = np.meshgrid(column.astype(np.float32), row.astype(np.float32))
        canvas.image[:horizon] = cv2.remap(self.sky, *grid, cv2.INTER_LINEAR)
        bounds = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
        canvas.annotate("sky", bounds.astype(np.int32))
        index = np.clip(np.rint(column), 0, PANORAMA[1] - 1).astype(int)
        top = horizon - self.heights[index] * camera.focal
        below = np.arange(horizon)[:, None] >= top[None]
        tree = self.is_tree[index]
        for label, chosen in (("building", ~tree), ("vegetation", tree)):
            self._stretches(canvas, label, below & chosen[None], index)

    def _stretches(self, canvas: Canvas, label: str, mask: np.ndarray, index: np.ndarray) -> None:
        """Annotates each run of columns of one kind, and paints it."""
        columns = np.flatnonzero(mask.any(axis=0))
        for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
            if len(run) < 2:
                continue
            left, right = int(run[0]), int(run[-1]) + 1
            polygon = outline(mask[:, left:right], left, 0, 0.5)
            if polygon is None:
                continue
            rows, part, seen = canvas.annotate(label, polygon)
            colours = self.colours[index[part]]
            height = seen.shape[0]
            ramp = np.linspace(0.93, 1.06, height, dtype=np.float32)[:, None, None]
            picture = np.clip(colours[None] * ramp, 0, 255).astype(np.uint8)
            canvas.image[rows, part][seen] = picture[seen]
