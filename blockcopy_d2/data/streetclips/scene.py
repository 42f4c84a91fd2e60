"""The scene of a clip: a random street, its weather, its traffic and its people."""

from dataclasses import dataclass

import numpy as np

from .brush import Light
from .distractors import Distractors
from .motion import CameraPath
from .placement import Placer
from .street import Street
from .textures import jitter, mix, pick
from .thing import Thing

FOCAL = 1.1  # focal length in picture widths, as in Cityscapes


@dataclass(frozen=True)
class Scene:
    """Everything that determines a clip, independent of the picture's size."""

    street: Street
    camera: CameraPath
    light: Light
    zenith: tuple[float, float, float]
    clouds: float
    distractors: Distractors
    things: list[Thing]
    trees: list[tuple[float, float]]

    @property
    def wet(self) -> bool:
        return self.distractors.rain > 0


def sample_scene(rng: np.random.Generator, index: int) -> Scene:
    """
    Draws a scene.

    Args:
        rng: the clip's randomness.
        index: number of the clip in its split. The rarer classes and the moving camera go round by
            it, so that also a small split holds all of them.

    Returns:
        the scene.
    """
    weather = pick(rng, ["sunny", "overcast", "hazy", "rain"], (0.42, 0.3, 0.13, 0.15))
    light, zenith, clouds = _sample_light(rng, weather)
    street = Street.sample(rng, tram=True)
    # One camera in four moves, so that a minority of the blocks of a split changes per frame.
    camera = CameraPath.sample(rng, moving=index % 4 == 3)
    distractors = Distractors.sample(rng, weather == "rain", weather == "sunny")
    placer = Placer(rng, street, camera, FOCAL, rain=weather == "rain")
    things = placer.populate(index, distractors.screens)
    trees = []
    for side, kerb in ((-1, street.kerb_left), (1, street.kerb_right)):
        if rng.random() < 0.75:
            pitch = float(rng.uniform(11.0, 22.0))
            for z in np.arange(float(rng.uniform(9.0, 22.0)), 85.0, pitch):
                crossing = street.crossing is not None and abs(z - street.crossing) < 7.5
                if not crossing and rng.random() < 0.85:
                    trees.append((kerb + side * float(rng.uniform(0.7, 1.1)), float(z)))
    return Scene(street, camera, light, zenith, clouds, distractors, things, trees)


def _sample_light(rng: np.random.Generator, weather: str):
    """Light, colour of the zenith and share of clouds for a kind of weather."""
    azimuth = rng.uniform(0, 2 * np.pi)
    elevation = rng.uniform(0.5, 1.1)
    direction = (
        float(np.cos(elevation) * np.sin(azimuth)),
        float(np.sin(elevation)),
        float(np.cos(elevation) * np.cos(azimuth)),
    )
    if weather == "sunny":
        haze, zenith, clouds = (226, 214, 200), (206, 152, 96), rng.uniform(0.2, 0.5)
        ambient, diffuse, reach = 0.78, 0.38, 320.0
        tint = (0.96, 0.99, 1.03)
    elif weather == "overcast":
        haze, zenith, clouds = (216, 212, 206), (190, 180, 168), rng.uniform(0.6, 0.9)
        ambient, diffuse, reach = 0.92, 0.1, 260.0
        tint = (1.02, 1.0, 0.98)
    elif weather == "hazy":
        haze, zenith, clouds = (214, 216, 218), (196, 196, 192), rng.uniform(0.4, 0.7)
        ambient, diffuse, reach = 0.86, 0.18, 150.0
        tint = (0.98, 1.0, 1.01)
    else:
        haze, zenith, clouds = (178, 174, 168), (150, 144, 136), rng.uniform(0.7, 1.0)
        ambient, diffuse, reach = 0.78, 0.06, 170.0
        tint = (1.04, 1.0, 0.96)
    exposure = float(rng.uniform(0.9, 1.08))
    evening = float(rng.uniform(0.0, 0.35)) if rng.random() < 0.25 else 0.0
    haze = mix(jitter(rng, haze, 6), (150, 176, 222), evening)
    light = Light(
        direction,
        ambient * exposure * (1 - 0.15 * evening),
        diffuse * exposure,
        tuple(c * min(exposure, 1.0) * (1 - 0.2 * evening) for c in haze),
        reach,
        (tint[0] * (1 - 0.25 * evening), tint[1] * (1 - 0.08 * evening), tint[2]),
    )
    return light, mix(jitter(rng, zenith, 6), (140, 120, 120), evening), float(clouds)
