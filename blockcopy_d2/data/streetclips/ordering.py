"""Painter's order: which of two objects on the ground stands before the other."""

from collections.abc import Sequence

import numpy as np

from .camera import Camera


def paint_order(footprints: Sequence[np.ndarray], camera: Camera) -> list[int]:
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
        spans.append((float((across / clipped).min()), float((across / clipped).max())))
        depths.append((float(depth.min()), float(depth.max())))
        corners.append(list(zip(across.tolist(), depth.tolist())))
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
    order: list[int] = []
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


def _entry(corners: list[tuple[float, float]], sight: float) -> float:
    """Depth at which the line of sight across = sight * depth enters a footprint."""
    entry = float("inf")
    x0, z0 = corners[-1]
    side0 = x0 - sight * z0
    for x1, z1 in corners:
        side1 = x1 - sight * z1
        if (side0 < 0) != (side1 < 0):
            entry = min(entry, z0 + (z1 - z0) * side0 / (side0 - side1))
        z0, side0 = z1, side1
    return entry if entry < float("inf") else sum(z for _, z in corners) / len(corners)
