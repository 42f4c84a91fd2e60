"""
A pinhole camera above the ground plane.

World axes in metres: X to the right, Y up, Z along the street. The optical axis is horizontal, and
the principal point lies on the horizon row, so that vertical edges stay vertical in the picture.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

NEAR = 0.4  # metres; what is closer to the camera plane is cut off


@dataclass(frozen=True)
class Camera:
    """
    Attributes:
        height, width: picture size in pixels.
        focal: focal length in pixels.
        horizon: row of the horizon in pixels.
        eye: height of the camera above the ground in metres.
        x, z: position of the camera in metres.
        yaw: direction of view in radians, 0 along +Z, positive to the right.
    """

    height: int
    width: int
    focal: float
    horizon: float
    eye: float
    x: float = 0.0
    z: float = 0.0
    yaw: float = 0.0

    @cached_property
    def matrix(self) -> np.ndarray:
        """(3, 4) projection of homogeneous world points to (column * depth, row * depth, depth)."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        rotation = np.array([[cos, 0.0, -sin], [0.0, -1.0, 0.0], [sin, 0.0, cos]])
        centre = np.array([self.x, self.eye, self.z])
        extrinsic = np.hstack([rotation, -(rotation @ centre)[:, None]])
        intrinsic = np.array(
            [[self.focal, 0.0, self.width / 2], [0.0, self.focal, self.horizon], [0.0, 0.0, 1.0]]
        )
        return intrinsic @ extrinsic

    def plane(self, origin, first, second) -> np.ndarray:
        """
        Homography of a textured plane.

        Args:
            origin: world point of texture coordinate (0, 0).
            first, second: world vectors of one texture pixel to the right, and one down.

        Returns:
            (3, 3) array that maps texture pixels to picture pixels.
        """
        columns = np.stack([first, second, origin], axis=1)
        homogeneous = np.vstack([columns, [[0.0, 0.0, 1.0]]])
        return self.matrix @ homogeneous

    def depth(self, x: float, z: float) -> float:
        """Distance of a ground point along the direction of view, in metres."""
        return (x - self.x) * np.sin(self.yaw) + (z - self.z) * np.cos(self.yaw)

    def polygon(self, points: np.ndarray) -> np.ndarray | None:
        """Projects a closed world polygon (n, 3), cut off at the near plane, to (m, 2) pixels."""
        return project(self.matrix, np.asarray(points, float))


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray | None:
    """
    Projects the closed polygon `points` (n, 3) by a (3, 4) matrix and cuts it at the near plane.

    Returns:
        (m, 2) float pixels, or None when all of it lies behind the near plane.
    """
    projected = points @ matrix[:, :3].T + matrix[:, 3]
    depth = projected[:, 2]
    if depth.min() < NEAR:
        if depth.max() < NEAR:
            return None
        projected = _cut(projected, depth - NEAR)
    return projected[:, :2] / projected[:, 2:]


def clip_to_picture(polygon: np.ndarray, height: int, width: int) -> np.ndarray | None:
    """Cuts a polygon (n, 2) to the picture, rounds it to pixels; None when nothing is left."""
    for axis, limit in ((0, width - 1), (1, height - 1)):
        for sign, offset in ((1.0, 0.0), (-1.0, float(limit))):
            polygon = _cut(polygon, sign * polygon[:, axis] + offset)
            if len(polygon) < 3:
                return None
    return np.rint(polygon).astype(np.int32)


def _cut(points: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Sutherland-Hodgman: the part of a closed polygon where `inside` is not negative."""
    kept = []
    for i in range(len(points)):
        a, b = inside[i - 1], inside[i]
        if (a < 0) != (b < 0):
            kept.append(points[i - 1] + (points[i] - points[i - 1]) * (a / (a - b)))
        if b >= 0:
            kept.append(points[i])
    return np.asarray(kept).reshape(-1, points.shape[1])
