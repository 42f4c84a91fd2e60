"""One clip: any of its frames can be drawn alone, at any picture size."""

import cv2
import numpy as np

from .annotation import Annotation, Canvas, Sprite
from .brush import Brush
from .buildings import sample_houses
from .camera import Camera
from .distractors import Effects
from .ground import Ground
from .motion import FRAMES, LABEL_TIME, RATE
from .nature import Tree
from .ordering import paint_order
from .scene import FOCAL, sample_scene
from .sky import Backdrop
from .thing import Thing

SPLITS = {"train": 0, "val": 1, "test": 2}


class Clip:
    """
    A clip of 20 frames at 17 Hz.

    The same arguments always give the same pictures; `height` and `width` change the resolution,
    not the scene.
    """

    def __init__(self, seed: int, split: str, index: int, height: int = 512, width: int = 1024):
        """
        Args:
            seed: seed of the data set.
            split: "train", "val" or "test".
            index: number of the clip within its split.
            height, width: height and width of the pictures in pixels; twice as wide as high.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
        if width != 2 * height or height < 64:
            raise ValueError(
                f"picture size {height}x{width} is not possible; the width must be twice the "
                "height and the height at least 64, e.g. 512x1024"
            )
        self.height, self.width = height, width
        scene_rng, look_rng, effect_rng = (
            np.random.default_rng((seed, SPLITS[split], index, part)) for part in range(3)
        )
        self.scene = scene = sample_scene(scene_rng, index)
        self._ground = Ground(look_rng, scene.street, scene.wet)
        self._backdrop = Backdrop(look_rng, scene.light, scene.clouds, scene.zenith)
        self._houses = sample_houses(look_rng, scene.street)
        self._trees = [Tree.sample(look_rng, x, z) for x, z in scene.trees]
        self._grain = (
            cv2.GaussianBlur(look_rng.standard_normal((512, 512), dtype=np.float32), (0, 0), 0.7)
            * 0.035
        )
        self._effects = Effects(effect_rng, scene.distractors)
        self._behind: Canvas | None = None
        self._house_cache: dict[int, list[Sprite]] = {}
        self._sprites: dict[tuple[int, int], Sprite | None] = {}

    def camera(self, frame: int) -> Camera:
        """The place of the camera at a frame."""
        path, time = self.scene.camera, frame / RATE - LABEL_TIME
        return Camera(
            self.height,
            self.width,
            FOCAL * self.width,
            path.horizon * self.height,
            path.eye,
            path.x,
            path.speed * time,
            path.yaw + path.turn * time,
        )

    def render(self, frame: int) -> tuple[np.ndarray, Annotation]:
        """
        Draws one frame.

        Args:
            frame: 0 to 19.

        Returns:
            picture: (H, W, 3) uint8, BGR.
            annotation: the polygons, and which of them is seen at each pixel.
        """
        if not 0 <= frame < FRAMES:
            raise IndexError(f"frame {frame} does not exist; a clip has frames 0 to {FRAMES - 1}")
        time = frame / RATE
        camera = self.camera(frame)
        canvas = self._background(camera)
        self._shadows(canvas, camera, time)
        still = self.scene.camera.static
        things, houses = self.scene.things, self._houses
        footprints = [thing.footprint(time) for thing in things]
        footprints += [house.footprint for house in houses] + [t.footprint for t in self._trees]
        for position in paint_order(footprints, camera):
            if position < len(things):
                self._paint_thing(canvas, camera, position, time, still)
            elif position < len(things) + len(houses):
                for sprite in self._house_sprites(position - len(things), camera):
                    canvas.paint("building", sprite)
            else:
                tree = self._trees[position - len(things) - len(houses)]
                sprite = tree.sprite(camera, self.scene.light, time, self.scene.distractors.wind)
                if sprite is not None:
                    canvas.paint("vegetation", sprite)
        picture = self._effects.apply(canvas.image, camera, frame, time)
        return picture, canvas.annotation()

    def _background(self, camera: Camera) -> Canvas:
        """Sky and ground; drawn once if the camera stands."""
        if self._behind is not None:
            return self._behind.copy()
        canvas = Canvas(self.height, self.width)
        self._backdrop.draw(canvas, camera)
        self._ground.draw(canvas, camera, self.scene.light)
        if self.scene.camera.static:
            self._behind = canvas.copy()
        return canvas

    def _house_sprites(self, position: int, camera: Camera) -> list[Sprite]:
        """Pictures of a house; drawn once if the camera stands."""
        if position in self._house_cache:
            return self._house_cache[position]
        sprites = self._houses[position].sprites(camera, self.scene.light)
        if self.scene.camera.static:
            self._house_cache[position] = sprites
        return sprites

    def _paint_thing(
        self, canvas: Canvas, camera: Camera, position: int, time: float, still: bool
    ) -> None:
        thing = self.scene.things[position]
        for part, (label, _) in enumerate(thing.parts):
            key = (position, part)
            if key not in self._sprites or not (still and thing.still):
                self._sprites[key] = self._draw(thing, part, camera, time)
            if self._sprites[key] is not None:
                canvas.paint(label, self._sprites[key])

    def _draw(self, thing: Thing, part: int, camera: Camera, time: float) -> Sprite | None:
        model = thing.parts[part][1]
        brush = Brush(
            camera, self.scene.light, thing.track.position(time), thing.track.heading, model.size
        )
        if not brush.visible:
            return None
        model.draw(brush, time if thing.plays else thing.track.phase_at(time))
        return brush.finish(self._grain, (1.07, 0.86))

    def _shadows(self, canvas: Canvas, camera: Camera, time: float) -> None:
        """Darkens the ground below and beside everything that stands on it."""
        light = self.scene.light
        scale = 2 if self.height <= 512 else 4
        shape = (self.height // scale, self.width // scale)
        cast, contact = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        slope = np.array([light.direction[0], light.direction[2]]) / max(light.direction[1], 0.3)

        def fill(target, corners, value):
            polygon = camera.polygon(np.stack([corners[:, 0], 0 * corners[:, 0], corners[:, 1]], 1))
            if polygon is not None:
                fixed = np.clip(polygon / scale * 16, -(1 << 24), 1 << 24).astype(np.int32)
                cv2.fillPoly(target, [fixed], value, cv2.LINE_AA, 4)

        for thing in self.scene.things:
            corners = thing.footprint(time)
            length, width, height = thing.size
            slim = 0.75 if width > 1.5 else 0.42
            core = corners.mean(axis=0) + (corners - corners.mean(axis=0)) * (
                0.98 if width > 1.5 else 0.62
            )
            if thing.parts[0][0] not in ("pole", "traffic sign", "traffic light"):
                fill(contact, core, 255)
            else:
                core = corners.mean(axis=0) + (corners - corners.mean(axis=0)) * 0.12
            tip = corners.mean(axis=0) + (core - corners.mean(axis=0)) * slim - slope * height
            points = np.concatenate([core, tip]).astype(np.float32)
            fill(cast, cv2.convexHull(points)[:, 0], 255)
        for tree in self._trees:
            angle = np.linspace(0, 2 * np.pi, 14)
            crown = np.stack([np.cos(angle), np.sin(angle)], 1) * tree.height * 0.3
            fill(cast, crown + [tree.x, tree.z] - slope * tree.height * 0.6, 255)
        blur = self.height / scale / 256
        strength = 0.2 + 0.9 * light.diffuse
        dark = cv2.GaussianBlur(cast, (0, 0), 1.2 * blur) * np.float32(min(strength, 0.5) / 255)
        dark = np.maximum(
            dark * (light.diffuse > 0.15),
            cv2.GaussianBlur(contact, (0, 0), 1.6 * blur) * np.float32(0.58 / 255),
        )
        first = int(camera.horizon) + 1
        gain = cv2.resize(1.0 - dark, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        part = canvas.image[first:]
        cv2.multiply(part, cv2.merge([gain[first:]] * 3), dst=part, dtype=cv2.CV_8U)
