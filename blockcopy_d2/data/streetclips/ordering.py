"""Painter's order: which of two objects on the ground stands before the other."""

from typing import List, Sequence

import numpy as np

from .camera import Camera


def paint_order(footprints: Sequence[np.ndarray], camera: Camera) -> List[int]:
    """
    Sorts objects from back to front.

    Two objects are compared along a line of sight that meets both of their footprints; objects that
    share no line of sight may come in any order.

    Args:
        footprints: (4, 2) ground corners (X, Z) of each object.

    Returns:
        positions in `footprints` of those before the camera, in the order to be painted.
    """
    cos, sin = np.cos(camera.yaw), np.sin(camera.yaw)
    spans, depths, corners = [], [], []
    for footprint in footprints:
        offset = footprint - [camera.x, camera.z]
        depth = offset[:, 0] * sin + offset[:, 1] * cos
        across = offset[:, 0] * cos - offset[:, 1] * sin
        clipped = np.maximum(depth, 0.1)
        spans.append(((across / clipped).min(), (across / clipped).max()))
        depths.append((depth.min(), depth.max()))
        corners.append(np.stack([across, depth], axis=1))
    seen = [i for i in range(len(footprints)) if depths[i][1] > 0.3]
    seen.sort(key=lambda i: -depths[i][0])
    behind = {i: set() for i in seen}  # what must be painted before i
    for at, i in enumerate(seen):
        for j in seen[at + 1 :]:
            low, high = max(spans[i][0], spans[j][0]), min(spans[i][1], spans[j][1])
            if low >= high:
                continue
            sight = (low + high) / 2
            first, second = _entry(corners[i], sight), _entry(corners[j], sight)
            if first >= second:
                behind[j].add(i)
            else:
                behind[i].add(j)
    order: List[int] = []
    done = set()
    waiting = list(seen)
    while waiting:
        # Objects that hide each other in a circle do not occur among real ones; should it happen
        # all the same, the farthest comes first.
        ready = next((i for i in waiting if behind[i] <= done), waiting[0])
        waiting.remove(ready)
        done.add(ready)
        order.append(ready)
    return order


def _entry(corners: np.ndarray, sight: float) -> float:
    """Depth at which the line of sight across = sight * depth enters a footprint."""
    side = corners[:, 0] - sight * corners[:, 1]
    following = np.roll(side, -1)
    crossing = (side < 0) != (following < 0)
    if not crossing.any():
        return float(corners[:, 1].mean())
    share = side[crossing] / (side[crossing] - following[crossing])
    depth = corners[:, 1]
    return float((depth[crossing] + share * (np.roll(depth, -1) - depth)[crossing]).min())
