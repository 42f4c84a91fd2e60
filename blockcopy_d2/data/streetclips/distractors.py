"""
Changes of pixels that do not change the output, to mislead frame differencing.

Each effect is a function of the frame number and the clip's own random numbers.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .camera import Camera
from .textures import smooth_noise


@dataclass(frozen=True)
class Distractors:
    """
    Attributes:
        wind: sway of the trees, 0 to 1.2.
        rain: streaks per megapixel, 0 for dry weather.
        cloud_shadow: darkening below the drifting clouds, 0 to 0.4.
        cloud_speed: (X, Z) drift in metres per second.
        drift: amplitude of the exposure's drift.
        flicker: amplitude of a frame-to-frame flicker of the exposure.
        noise: standard deviation of the sensor noise in grey levels.
        screens: whether advertising screens play and traffic lights change.
    """

    wind: float
    rain: float
    cloud_shadow: float
    cloud_speed: tuple
    drift: float
    flicker: float
    noise: float
    screens: bool

    @classmethod
    def sample(cls, rng: np.random.Generator, rain: bool, sunny: bool) -> "Distractors":
        return cls(
            wind=float(rng.uniform(0.4, 1.2)) if rng.random() < 0.7 else 0.0,
            rain=float(rng.uniform(500, 1100)) if rain else 0.0,
            cloud_shadow=float(rng.uniform(0.15, 0.38)) if sunny and rng.random() < 0.7 else 0.0,
            cloud_speed=tuple(float(v) for v in rng.uniform(-14, 14, 2)),
            drift=float(rng.uniform(0.0, 0.05)),
            flicker=float(rng.uniform(0.0, 0.012)) if rng.random() < 0.3 else 0.0,
            noise=float(rng.uniform(1.2, 3.2)),
            screens=bool(rng.random() < 0.7),
        )


class Effects:
    """Applies distractors to finished pictures of one clip."""

    def __init__(self, rng: np.random.Generator, distractors: Distractors):
        self.distractors = distractors
        self._clouds = smooth_noise(rng, (256, 256), (4, 9, 18))
        self._phase = float(rng.uniform(0, 2 * np.pi))
        self._seed = int(rng.integers(1 << 31))

    def apply(self, image: np.ndarray, camera: Camera, frame: int, time: float) -> np.ndarray:
        """
        Args:
            image: (H, W, 3) uint8.
            frame: number of the frame in its clip; its own random numbers hang on it.
            time: in seconds.

        Returns:
            (H, W, 3) uint8, a new array.
        """
        rng = np.random.default_rng((self._seed, frame))
        effects = self.distractors
        gain = 1.0 + effects.drift * np.sin(2.2 * time + self._phase)
        gain += effects.flicker * rng.standard_normal()
        if effects.cloud_shadow > 0:
            shadow = self._cloud_shadow(camera, time) * np.float32(gain)
            image = cv2.multiply(image, cv2.merge([shadow] * 3), dtype=cv2.CV_8U)
        else:
            image = cv2.convertScaleAbs(image, alpha=gain)
        if effects.rain > 0:
            image = self._rain(image, rng)
        return self._noise(image, rng)

    def _cloud_shadow(self, camera: Camera, time: float) -> np.ndarray:
        """(H, W) float32 gain: cloud shadows that pass over ground and houses, not over the sky."""
        height, width = camera.height // 8, camera.width // 8
        rows = np.arange(height) + 0.5
        below = np.maximum(rows * 8 - camera.horizon, 0.02 * camera.height)
        depth = np.minimum(camera.focal * camera.eye / below, 60.0)[:, None]
        across = (np.arange(width)[None] * 8 - camera.width / 2) / camera.focal
        x = camera.x + depth * across - self.distractors.cloud_speed[0] * time
        z = camera.z + depth - self.distractors.cloud_speed[1] * time
        # Mirrored at its borders the cloud pattern has no seams.
        grid = [np.abs((np.broadcast_to(v, x.shape) * 2.0) % 510 - 255) for v in (x, z)]
        clouds = cv2.remap(self._clouds, *(g.astype(np.float32) for g in grid), cv2.INTER_LINEAR)
        dark = np.clip(clouds * 0.9 + 0.2, 0.0, 1.0) * self.distractors.cloud_shadow
        fade = np.clip((rows / (camera.horizon / 8) - 0.35) * 2.5, 0.0, 1.0)[:, None]
        gain = cv2.GaussianBlur((1.0 - dark * fade).astype(np.float32), (0, 0), 1.5)
        return cv2.resize(gain, (camera.width, camera.height), interpolation=cv2.INTER_LINEAR)

    def _rain(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        streaks = np.zeros((height // 2, width // 2), np.uint8)
        count = int(self.distractors.rain * 0.524)  # as many at every picture size
        scale = height / 1024.0
        for x, y, length, bright in zip(
            rng.uniform(0, width / 2, count),
            rng.uniform(-20, height / 2, count),
            rng.uniform(8, 34, count) * scale,
            rng.uniform(50, 130, count),
        ):
            start = (int(x * 16), int(y * 16))
            end = (int((x - 0.14 * length) * 16), int((y + length) * 16))
            cv2.line(streaks, start, end, int(bright), 1, cv2.LINE_AA, 4)
        streaks = cv2.resize(streaks, (width, height), interpolation=cv2.INTER_LINEAR)
        return cv2.addWeighted(image, 1.0, cv2.merge([streaks] * 3), 0.42, 0.0)

    def _noise(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Adds sensor noise: mostly brightness, a little colour, new in each frame."""
        height, width = image.shape[:2]
        base = np.empty((height, width), np.int16)
        seed = int(rng.integers(1 << 31))
        cv2.setRNGSeed(seed)
        cv2.randn(base, 0, self.distractors.noise)
        return cv2.add(image, cv2.merge([base] * 3), dtype=cv2.CV_8U)
