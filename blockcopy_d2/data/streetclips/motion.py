"""Closed-form motion: where everything is at any moment, so that any frame can be drawn alone."""

from dataclasses import dataclass

import numpy as np

FRAMES = 20  # of a clip
RATE = 17.0  # frames per second, as in Cityscapes
LABELLED = FRAMES - 1  # the frame with annotations
LABEL_TIME = LABELLED / RATE  # seconds


@dataclass(frozen=True)
class Track:
    """
    Uniform motion on a straight line, given by the place at the labelled frame.

    Attributes:
        x, z: position in metres at LABEL_TIME.
        heading: in radians, 0 along +Z, positive towards +X.
        speed: in metres per second.
        phase: phase of steps, pedals or gestures at time 0, in radians.
        cadence: radians of phase per metre travelled.
        fidget: radians of phase per second, for people who stand.
    """

    x: float
    z: float
    heading: float
    speed: float = 0.0
    phase: float = 0.0
    cadence: float = 0.0
    fidget: float = 0.0

    @property
    def moving(self) -> bool:
        return self.speed > 0.0

    def position(self, time: float) -> tuple[float, float]:
        """(X, Z) in metres at `time` seconds."""
        way = self.speed * (time - LABEL_TIME)
        return self.x + way * np.sin(self.heading), self.z + way * np.cos(self.heading)

    def phase_at(self, time: float) -> float:
        """Phase in radians at `time` seconds."""
        return self.phase + self.cadence * self.speed * time + self.fidget * time


@dataclass(frozen=True)
class CameraPath:
    """
    Attributes:
        eye: height above the ground in metres.
        x: lateral position in metres.
        speed: forward in metres per second; the camera is at Z = 0 at the labelled frame.
        yaw: at the labelled frame in radians.
        turn: radians per second.
        horizon: row of the horizon, as a share of the picture's height.
    """

    eye: float
    x: float
    speed: float
    yaw: float
    turn: float
    horizon: float

    @property
    def static(self) -> bool:
        return self.speed == 0.0 and self.turn == 0.0

    @classmethod
    def sample(cls, rng: np.random.Generator, moving: bool) -> "CameraPath":
        speed = float(rng.uniform(1.0, 2.0)) if moving else 0.0
        turn = float(rng.normal(0.0, 0.005)) if moving and rng.random() < 0.5 else 0.0
        return cls(
            float(rng.uniform(1.25, 1.6)),
            float(rng.uniform(-0.6, 0.6)),
            speed,
            float(rng.normal(-0.03, 0.04)),
            turn,
            float(rng.uniform(0.40, 0.47)),
        )
