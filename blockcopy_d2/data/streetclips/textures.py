"""Small deterministic textures and colour helpers. Colours are BGR, 0 to 255."""

from collections.abc import Sequence

import cv2
import numpy as np

Colour = tuple[float, float, float]


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: Sequence[int], decay: float = 0.55
) -> np.ndarray:
    """
    Sum of smoothly interpolated random lattices, a cheap stand-in for fractal noise.

    Args:
        rng: source of randomness.
        shape: (H, W) of the result.
        cells: lattice cells along the longer side of each octave, coarse to fine.
        decay: factor between the amplitudes of two octaves.

    Returns:
        float32 array of `shape` with mean 0 and standard deviation 1.
    """
    height, width = shape
    total = np.zeros(shape, np.float32)
    amplitude = 1.0
    for count in cells:
        size = max(height, width) / count
        grid = (max(int(height / size), 1) + 3, max(int(width / size), 1) + 3)
        lattice = rng.standard_normal(grid, dtype=np.float32)
        octave = cv2.resize(lattice, (width, height), interpolation=cv2.INTER_CUBIC)
        total += amplitude * octave
        amplitude *= decay
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


def scale_colour(colour: Colour, factor: float) -> Colour:
    """Brightens or darkens a colour; stays within 0 to 255."""
    return tuple(min(max(channel * factor, 0.0), 255.0) for channel in colour)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Blend of two colours with `share` of the second one."""
    return tuple(a + (b - a) * share for a, b in zip(first, second))


def jitter(rng: np.random.Generator, colour: Colour, amount: float = 8.0) -> Colour:
    """A colour near `colour`, brightness and hue changed a little."""
    shift = rng.normal(0.0, amount) + rng.normal(0.0, amount * 0.4, 3)
    return tuple(float(np.clip(c + s, 4, 250)) for c, s in zip(colour, shift))


def pick(rng: np.random.Generator, options: Sequence, weights: Sequence[float] = None):
    """One of `options`; unlike `rng.choice` it leaves the option's type alone."""
    if weights is not None:
        weights = np.asarray(weights, float) / np.sum(weights)
    return options[int(rng.choice(len(options), p=weights))]
