"""
The ground: asphalt, markings, rails and pavements, painted from above and warped into the picture.

The plan is painted at several resolutions along the street, because a picture row at 60 m covers
metres of road and one at 5 m only millimetres; each band of rows takes the fitting one.
"""

import cv2
import numpy as np

from .annotation import Canvas
from .brush import Light
from .camera import Camera, clip_to_picture
from .street import BEHIND, FAR, LANE, Street
from .textures import Colour, pick, scale_colour, smooth_noise

ACROSS = 0.04  # metres per plan pixel across the street
LEVELS = ((0.04, 26.0), (0.16, 60.0), (0.64, 110.0), (2.4, FAR))  # metres per plan row, up to Z
HALF = 26.0  # metres of ground on either side of X = 0


class Ground:
    """The ground of one clip."""

    def __init__(self, rng: np.random.Generator, street: Street, wet: bool):
        self.street = street
        self.wet = wet
        self.asphalt = pick(rng, [(84, 82, 82), (98, 95, 93), (74, 73, 74), (106, 104, 101)])
        self.pavement = pick(rng, [(150, 154, 158), (136, 142, 150), (128, 132, 136)])
        self.slab = float(rng.uniform(0.5, 1.0))
        self.patches = [
            (
                rng.uniform(street.kerb_left, street.kerb_right),
                rng.uniform(0, 60),
                rng.uniform(0.5, 1.8),
                rng.uniform(1.0, 7.0),
                rng.uniform(0.85, 1.12),
            )
            for _ in range(14)
        ]
        self.covers = [
            (rng.uniform(street.kerb_left + 1, street.kerb_right - 1), rng.uniform(3, 45))
            for _ in range(7)
        ]
        fine = rng.standard_normal((512, 512), dtype=np.float32)
        self.grain = cv2.GaussianBlur(fine, (0, 0), 0.8) * 11.0
        stains = smooth_noise(rng, (400, 300), (12, 30, 80, 150))
        self.plans = [self._plan(stains, step, limit) for step, limit in LEVELS]

    def _plan(self, stains: np.ndarray, step: float, limit: float) -> np.ndarray:
        """Paints the ground from above; rows of `step` metres from BEHIND to `limit`."""
        fine = min(step, 0.16)  # painted finer than stored, so that thin markings average out
        shape = (int((limit - BEHIND) / fine), int(2 * HALF / ACROSS))
        plan = np.empty(shape + (3,), np.uint8)
        plan[:] = np.uint8(self.pavement)
        self._paint(plan, fine)
        if fine != step:
            plan = cv2.resize(
                plan, (shape[1], int((limit - BEHIND) / step)), None, 0, 0, cv2.INTER_AREA
            )
        # The same stains lie at the same place in every plan: one texture over 60 m of street.
        rows = (np.arange(plan.shape[0]) * step / 60.0 * stains.shape[0]).astype(np.float32)
        columns = np.linspace(0, stains.shape[1] - 1, plan.shape[1], dtype=np.float32)
        grid = np.meshgrid(columns, rows % (stains.shape[0] - 1))
        texture = cv2.remap(stains, *grid, cv2.INTER_LINEAR)
        gain = np.clip(1.0 + 0.045 * texture, 0.8, 1.2)
        return cv2.multiply(plan, cv2.merge([gain] * 3), dtype=cv2.CV_8U)

    def _paint(self, plan: np.ndarray, step: float) -> None:
        street = self.street

        def bar(x0: float, x1: float, z0: float, z1: float, colour: Colour) -> None:
            left, right = (max(round((x + HALF) / ACROSS), 0) for x in (x0, x1))
            top, bottom = (max(round((z - BEHIND) / step), 0) for z in (z0, z1))
            plan[top:bottom, left:right] = np.uint8(np.clip(colour, 0, 255))

        seam = scale_colour(self.pavement, 0.84)
        if step <= 0.05:
            for z in np.arange(BEHIND, 30.0, self.slab):
                bar(-HALF, HALF, z, z + 0.02, seam)
        for x in np.arange(-HALF, HALF, self.slab):
            bar(x, x + 0.03, BEHIND, FAR, seam)
        for x, outside in ((street.wall_left, -1), (street.wall_right, 1)):
            bar(
                min(x, x + outside * 0.5),
                max(x, x + outside * 0.5),
                BEHIND,
                FAR,
                scale_colour(self.pavement, 0.6),
            )
        stone = (168.0, 170.0, 172.0)
        bar(street.kerb_left - 0.16, street.kerb_right + 0.16, BEHIND, FAR, stone)
        bar(street.kerb_left, street.kerb_right, BEHIND, FAR, self.asphalt)
        if street.crossing is not None:
            half = street.crossing_half
            bar(-HALF, HALF, street.crossing - half - 0.16, street.crossing + half + 0.16, stone)
            bar(-HALF, HALF, street.crossing - half, street.crossing + half, self.asphalt)
            bar(
                street.kerb_left,
                street.kerb_right,
                street.crossing - half - 1,
                street.crossing + half + 1,
                self.asphalt,
            )
        gutter = scale_colour(self.asphalt, 0.72)
        bar(street.kerb_left, street.kerb_left + 0.18, BEHIND, FAR, gutter)
        bar(street.kerb_right - 0.18, street.kerb_right, BEHIND, FAR, gutter)
        for x, z, width, length, gain in self.patches:
            bar(
                max(x, street.kerb_left),
                min(x + width, street.kerb_right),
                z,
                z + length,
                scale_colour(self.asphalt, gain),
            )
        self._paint_markings(bar)
        for x, z in self.covers:
            if step <= 0.05:
                centre = (round((x + HALF) / ACROSS), round((z - BEHIND) / step))
                cv2.circle(plan, centre, 8, scale_colour(self.asphalt, 0.6), -1)
                cv2.circle(plan, centre, 6, scale_colour(self.asphalt, 0.85), 1)

    def _paint_markings(self, bar) -> None:
        street = self.street
        white = (206.0, 208.0, 210.0)

        def clear(z0: float, z1: float) -> bool:
            """Returns whether a marking keeps off the side street."""
            return street.crossing is None or not (
                z1 > street.crossing - 6.0 and z0 < street.crossing + 6.0
            )

        for z in np.arange(BEHIND, FAR, 9.0):
            if clear(z, z + 4.0):
                bar(-LANE / 2 - 0.07, -LANE / 2 + 0.07, z, z + 4.0, white)
        for edge, inside in ((street.parking_right, -1.1), (street.parking_left, 1.1)):
            if edge is not None:
                for z in np.arange(BEHIND, FAR, 6.2):
                    if clear(z, z + 1.5):
                        bar(edge + inside - 0.05, edge + inside + 0.05, z, z + 1.5, white)
                        bar(
                            min(edge - inside, edge + inside),
                            max(edge - inside, edge + inside),
                            z,
                            z + 0.1,
                            white,
                        )
        if street.tram is not None:
            concrete = (118.0, 120.0, 122.0)
            bar(street.tram - 1.35, street.tram + 1.35, BEHIND, FAR, concrete)
            for z in np.arange(BEHIND, FAR, 2.4):
                bar(
                    street.tram - 1.35, street.tram + 1.35, z, z + 0.06, scale_colour(concrete, 0.8)
                )
            for x in (-0.72, 0.72):
                bar(
                    street.tram + x - 0.13,
                    street.tram + x + 0.13,
                    BEHIND,
                    FAR,
                    scale_colour(concrete, 0.7),
                )
                bar(street.tram + x - 0.05, street.tram + x + 0.05, BEHIND, FAR, (176, 172, 168))
        if street.zebra is not None:
            for x in np.arange(street.kerb_left + 0.4, street.kerb_right - 0.5, 1.0):
                bar(x, x + 0.5, street.zebra - 1.6, street.zebra + 1.6, white)
            bar(-LANE / 2 + 0.1, LANE / 2 - 0.1, street.zebra - 2.9, street.zebra - 2.5, white)

    def draw(self, canvas: Canvas, camera: Camera, light: Light) -> None:
        """Paints and annotates everything below the horizon."""
        height, width = camera.height, camera.width
        first = int(camera.horizon) + 1
        rows = np.arange(first, height)
        depth = camera.focal * camera.eye / (rows + 0.5 - camera.horizon)
        # Metres of street that one picture row covers decide on the plan.
        footprint = depth**2 / (camera.focal * camera.eye)
        level = np.searchsorted([step * 1.6 for step, _ in LEVELS[:-1]], footprint)
        reach = depth * 1.08 + camera.z
        for i, (_, limit) in enumerate(LEVELS[:-1]):
            level = np.where((level == i) & (reach > limit), i + 1, level)
        ground = np.empty((height - first, width, 3), np.uint8)
        for i, (step, _) in enumerate(LEVELS):
            chosen = np.flatnonzero(level == i)
            if chosen.size:
                top, bottom = int(chosen[0]), int(chosen[-1]) + 1
                ground[top:bottom] = self._warp(
                    self.plans[i], camera, step, first + top, bottom - top, cv2.BORDER_REPLICATE
                )
        detail = np.count_nonzero(depth > 16.0)
        if detail < len(rows):
            grain = self._warp(
                self.grain, camera, 0.012, first + detail, len(rows) - detail, cv2.BORDER_WRAP
            )
            fade = np.clip((16.0 - depth[detail:]) / 8.0, 0.0, 1.0).astype(np.float32)
            part = ground[detail:]
            cv2.add(part, cv2.merge([grain * fade[:, None]] * 3), dst=part, dtype=cv2.CV_8U)
        gain = (light.ambient + light.diffuse * max(light.direction[1], 0.0)) * (
            0.86 if self.wet else 1.0
        )
        fade = np.exp(-depth / light.haze_distance)[:, None, None].astype(np.float32)
        tinted = fade * np.float32(gain) * np.float32(light.tint)
        haze = (1.0 - fade) * np.float32(light.haze)
        if self.wet:  # the road mirrors the sky, more so farther away
            mirror = np.clip(depth / 60.0, 0.05, 0.5).astype(np.float32)[:, None, None]
            haze = haze + mirror * 0.45 * np.float32(light.haze)
            tinted = tinted * (1.0 - mirror * 0.5)
        canvas.image[first:] = np.clip(ground * tinted + haze, 0, 255).astype(np.uint8)
        self._annotate(canvas, camera, first)

    def _warp(self, texture, camera: Camera, step: float, top: int, rows: int, border: int):
        across = 0.012 if border == cv2.BORDER_WRAP else ACROSS
        origin = (-HALF, 0.0, BEHIND) if border != cv2.BORDER_WRAP else (0.0, 0.0, 0.0)
        matrix = camera.plane(origin, (across, 0.0, 0.0), (0.0, 0.0, step))
        shift = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -top - 0.5], [0.0, 0.0, 1.0]])
        return cv2.warpPerspective(
            texture, shift @ matrix, (camera.width, rows), flags=cv2.INTER_LINEAR, borderMode=border
        )

    def _annotate(self, canvas: Canvas, camera: Camera, first: int) -> None:
        street = self.street
        bottom, right = camera.height - 1, camera.width - 1
        canvas.annotate(
            "sidewalk",
            np.array([[0, first], [right, first], [right, bottom], [0, bottom]], np.int32),
        )
        strips = [("road", street.kerb_left, street.kerb_right, camera.z + 0.5, 4 * FAR)]
        if street.crossing is not None:
            strips.append(
                (
                    "road",
                    -80.0,
                    80.0,
                    street.crossing - street.crossing_half,
                    street.crossing + street.crossing_half,
                )
            )
        for label, x0, x1, z0, z1 in strips:
            _annotate_plane(canvas, camera, label, (x0, x1), (z0, z1))


def _annotate_plane(
    canvas: Canvas, camera: Camera, label: str, x: tuple[float, float], z: tuple[float, float]
) -> None:
    corners = [(x[0], 0.0, z[0]), (x[0], 0.0, z[1]), (x[1], 0.0, z[1]), (x[1], 0.0, z[0])]
    polygon = camera.polygon(corners)
    if polygon is not None:
        polygon = clip_to_picture(polygon, camera.height, camera.width)
    if polygon is not None:
        canvas.annotate(label, polygon)
