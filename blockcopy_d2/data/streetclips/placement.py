"""Places vehicles, people and roadside things so that they neither collide nor hide each other."""

from collections.abc import Callable

import numpy as np

from .camera import Camera
from .cars import Car
from .furniture import (
    Bollard,
    LampPost,
    Sign,
    TrafficLight,
    sample_advert,
    sample_bin,
)
from .heavy import Bus, Tram, Truck
from .motion import LABEL_TIME, CameraPath, Track
from .people import Person
from .street import Street
from .textures import pick
from .thing import Thing
from .two_wheelers import Bicycle, Motorcycle

TIMES = (0.0, LABEL_TIME / 2, LABEL_TIME)  # at which collisions are looked for
ATTEMPTS = 80  # draws per wanted thing before it is given up
CHECK_SIZE = (128, 256)  # coarse picture in which visibility is estimated
SEEN = 0.32  # share of its box that every thing keeps visible at the labelled frame
LEAST = 3.5  # square root of the smallest box in pixels of the coarse picture

# Numbers wanted per clip in the order of placing; the clip's index picks the column.
COUNTS = (
    ("train", (1, 1, 1, 1)),
    ("bus", (1, 1, 2, 1)),
    ("truck", (1, 2, 1, 1)),
    ("car", (3, 2, 3, 3)),
    ("motorcyclist", (1, 1, 1, 1)),
    ("cyclist", (1, 2, 1, 2)),
    ("motorcycle", (1, 2, 1, 1)),  # without a rider
    ("bicycle", (2, 1, 2, 2)),  # without a rider
    ("person", (4, 4, 4, 5)),
    ("car", (4, 4, 4, 4)),
)


class Placer:
    """Fills one street."""

    def __init__(
        self, rng: np.random.Generator, street: Street, path: CameraPath, focal: float, rain: bool
    ):
        self.rng, self.street, self.rain = rng, street, rain
        height, width = CHECK_SIZE
        self.camera = Camera(
            height, width, focal * width, path.horizon * height, path.eye, path.x, 0.0, path.yaw
        )
        self.path = path
        self.things: list[Thing] = []
        self._footprints: list[list[np.ndarray]] = []  # of each thing at each of TIMES
        self._boxes: list[tuple[float, tuple[int, int, int, int]]] = []
        # Nothing may drive through the camera either.
        body = np.array([[-1.2, -3.0], [1.2, -3.0], [1.2, 2.5], [-1.2, 2.5]])
        self._camera_space = [body + [path.x, path.speed * (time - LABEL_TIME)] for time in TIMES]

    def populate(self, index: int, screens: bool) -> list[Thing]:
        """Draws all things of the clip with this index."""
        sample = {
            "train": self._tram,
            "bus": self._bus,
            "truck": self._truck,
            "car": self._car,
            "bicycle": self._bicycle,
            "motorcycle": self._motorcycle,
            "cyclist": self._cyclist,
            "motorcyclist": self._motorcyclist,
            "person": self._person,
        }
        for name, counts in COUNTS:
            for _ in range(counts[index % len(counts)]):
                self._try(sample[name])
        self._furnish(screens)
        return self.things

    def _try(self, sample: Callable) -> None:
        for _ in range(ATTEMPTS):
            thing = sample()
            if thing is not None and self._fits(thing):
                return

    def _fits(self, thing) -> bool:
        """Adds the thing if it is in view, collides with nothing and hides nothing wholly."""
        box = self._box(thing)
        if box is None or self._collides(thing):
            return False
        boxes = self._boxes + [box]
        index = np.full(CHECK_SIZE, -1)
        order = sorted(range(len(boxes)), key=lambda i: -boxes[i][0])
        for i in order:
            left, top, right, bottom = boxes[i][1]
            index[top:bottom, left:right] = i
        seen = np.bincount(index[index >= 0], minlength=len(boxes))
        for i, (_, (left, top, right, bottom)) in enumerate(boxes):
            if seen[i] < SEEN * (right - left) * (bottom - top):
                return False
        self._boxes = boxes
        self._add(thing)
        return True

    def _add(self, thing: Thing) -> None:
        self.things.append(thing)
        self._footprints.append([thing.footprint(time) for time in TIMES])

    def _box(self, thing) -> tuple[float, tuple[int, int, int, int]] | None:
        """Depth and coarse picture box at the labelled frame; None if out of view or too small."""
        ground = thing.footprint(LABEL_TIME)
        depth = self.camera.depth(*ground.mean(axis=0))
        nearest = min(self.camera.depth(*corner) for corner in ground)
        if nearest < 3.5:
            return None
        corners = [(x, y, z) for x, z in ground for y in (0.0, thing.size[2])]
        pixels = self.camera.polygon(np.array(corners))
        (x0, y0), (x1, y1) = pixels.min(axis=0), pixels.max(axis=0)
        height, width = CHECK_SIZE
        left, right = max(round(x0), 0), min(round(x1), width)
        top, bottom = max(round(y0), 0), min(round(y1), height)
        if right - left < 2 or bottom - top < 2 or right - left < 0.45 * (x1 - x0):
            return None
        if (right - left) * (bottom - top) < LEAST**2:
            return None
        return depth, (left, top, right, bottom)

    def _collides(self, thing: Thing) -> bool:
        mine = [thing.footprint(time) for time in TIMES]
        return _meets(mine, self._camera_space) or any(
            _meets(mine, other) for other in self._footprints
        )

    # Where things of each class may be. Far places are likelier than uniform in Z would make them:
    # streets hold many small objects.
    def _depth(self, low: float, high: float) -> float:
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def _make(self, label, model, x, z, heading, speed=0.0, cadence=0.0, fidget=0.0, rider=None):
        phase = float(self.rng.uniform(0, 2 * np.pi))
        parts = ((label, model),) + ((("rider", rider),) if rider else ())
        heading = heading + float(self.rng.normal(0.0, 0.02))
        return Thing(parts, Track(float(x), z, heading, speed, phase, cadence, fidget))

    def _lane(self, low: float, high: float, parked: bool = True, crossing: bool = True):
        """(X, Z, heading, speed) of a vehicle driving, parked or crossing."""
        rng, street = self.rng, self.street
        options, weights = ["own", "oncoming"], [0.8, 1.1]
        if crossing and street.crossing is not None:
            options.append("crossing")
            weights.append(0.9)
        if parked and street.parking_right is not None:
            options.append("right")
            weights.append(1.1)
        if parked and street.parking_left is not None:
            options.append("left")
            weights.append(1.0)
        place = pick(rng, options, weights)
        z = self._depth(low, high)
        waiting = rng.random() < 0.75  # in a queue, or at a light
        speed = 0.0 if waiting else float(rng.uniform(3.0, 11.0))
        offset = float(rng.normal(0.0, 0.12))
        if place == "own":
            # Those ahead drive about as fast as the camera, or they would be gone.
            ahead = max(self.path.speed + float(rng.uniform(-1.0, 4.0)), 0.0)
            return offset, z + 2.0, 0.0, 0.0 if waiting else ahead
        if place == "oncoming":
            return street.oncoming + offset, z, np.pi, speed
        if place == "crossing":
            way = 1.0 if rng.random() < 0.5 else -1.0
            x = float(rng.uniform(street.kerb_left - 1.0, street.kerb_right + 1.0))
            return x, street.crossing - way * 2.2, way * np.pi / 2, speed
        heading = 0.0 if place == "right" or rng.random() < 0.3 else np.pi
        x = street.parking_right if place == "right" else street.parking_left
        return x + offset, z, heading, 0.0

    def _tram(self):
        z = self._depth(28.0, 72.0)
        ahead = self.rng.random() < 0.5
        speed = 0.0 if self.rng.random() < 0.7 else float(self.rng.uniform(3.0, 9.0))
        model = Tram.sample(self.rng, speed > 0)
        if self.street.crossing is not None and self.rng.random() < 0.2:
            x = float(self.rng.uniform(self.street.kerb_left, self.street.kerb_right))
            z, heading = self.street.crossing, (np.pi / 2 if ahead else -np.pi / 2)
            return self._make("train", model, x, z, heading, speed)
        return Thing(
            (("train", model),), Track(self.street.tram, z, 0.0 if ahead else np.pi, speed)
        )

    def _bus(self):
        x, z, heading, speed = self._lane(21.0, 70.0, parked=False)
        return self._make("bus", Bus.sample(self.rng, speed > 0), x, z, heading, speed)

    def _truck(self):
        x, z, heading, speed = self._lane(17.0, 62.0)
        return self._make("truck", Truck.sample(self.rng, speed > 0), x, z, heading, speed)

    def _car(self):
        x, z, heading, speed = self._lane(10.0, 64.0)
        return self._make("car", Car.sample(self.rng, speed > 0), x, z, heading, speed)

    def _pavement(self) -> float:
        """An X on one of the pavements."""
        street, rng = self.street, self.rng
        if rng.random() < 0.5:
            return float(rng.uniform(street.wall_left + 0.5, street.kerb_left - 0.5))
        return float(rng.uniform(street.kerb_right + 0.5, street.wall_right - 0.5))

    def _bicycle(self):
        heading = float(self.rng.choice([0.0, np.pi, 0.5 * np.pi, -0.5 * np.pi, 0.9, -0.9]))
        return self._make(
            "bicycle",
            Bicycle.sample(self.rng, False),
            self._pavement(),
            self._depth(7.5, 28.0),
            heading,
        )

    def _motorcycle(self):
        street, rng = self.street, self.rng
        side = rng.random() < 0.5
        x = street.kerb_right - 0.6 if side else street.kerb_left + 0.6
        if rng.random() < 0.4:
            x = self._pavement()
        heading = float(rng.choice([0.6, -0.6, 1.2, -1.2, 2.2, -2.2]))
        return self._make(
            "motorcycle", Motorcycle.sample(rng, False), x, self._depth(8.5, 32.0), heading
        )

    def _riding(self, low: float, high: float, slow: float, fast: float):
        street, rng = self.street, self.rng
        speed = float(rng.uniform(slow, fast))
        waiting = rng.random() < 0.6
        place = rng.random()
        z = self._depth(low, high)
        if place < 0.3 and street.crossing is not None:
            way = 1.0 if rng.random() < 0.5 else -1.0
            x = float(rng.uniform(street.kerb_left, street.kerb_right))
            return x, street.crossing - way * float(rng.uniform(2.0, 4.0)), way * np.pi / 2, speed
        beside = float(rng.normal(0, 0.15))
        if place < 0.65:
            ahead = max(speed, self.path.speed * 0.8)
            return 1.25 + beside, z, 0.0, 0.0 if waiting else ahead
        return street.oncoming - 1.2 + beside, z, np.pi, 0.0 if waiting else speed

    def _cyclist(self):
        x, z, heading, speed = self._riding(8.5, 36.0, 2.5, 6.0)
        return self._make(
            "bicycle",
            Bicycle.sample(self.rng, True),
            x,
            z,
            heading,
            speed,
            1.6,
            rider=Person.sample(self.rng, True, seat="bicycle"),
        )

    def _motorcyclist(self):
        x, z, heading, speed = self._riding(10.0, 42.0, 3.0, 10.0)
        return self._make(
            "motorcycle",
            Motorcycle.sample(self.rng, True),
            x,
            z,
            heading,
            speed,
            1.0,
            rider=Person.sample(self.rng, True, seat="motorcycle"),
        )

    def _person(self):
        street, rng = self.street, self.rng
        kind = rng.random()
        z = self._depth(7.5, 40.0)
        speed = float(rng.uniform(0.9, 1.7))
        if kind < 0.12 and street.zebra is not None:
            x = float(rng.uniform(street.kerb_left, street.kerb_right))
            z = street.zebra + float(rng.uniform(-1.3, 1.3))
            heading = float(rng.choice([-np.pi / 2, np.pi / 2]))
        elif kind < 0.16:  # crosses where it should not
            x = float(rng.uniform(street.kerb_left, street.kerb_right))
            heading = float(rng.choice([-np.pi / 2, np.pi / 2]))
        elif kind < 0.36:
            x, heading = self._pavement(), float(rng.choice([0.0, np.pi]))
        else:
            x, heading, speed = self._pavement(), float(rng.uniform(-np.pi, np.pi)), 0.0
        model = Person.sample(rng, speed > 0, self.rain)
        cadence = np.pi / (0.72 * model.tall / 1.75) if speed else 0.0
        return self._make("person", model, x, z, heading, speed, cadence)

    def _furnish(self, screens: bool) -> None:
        """Things at the kerbs that have no class."""
        street, rng = self.street, self.rng
        places = []
        for side, kerb in ((-1, street.kerb_left), (1, street.kerb_right)):
            for z in np.arange(rng.uniform(6, 18), 80.0, 24.0):
                places.append((LampPost(7.0, -side * 1.4), kerb + side * 0.5, z, 0.0))
            for _ in range(3):
                kind = pick(rng, ["round", "triangle", "square", "bus stop"])
                places.append((Sign(kind), kerb + side * 0.45, self._depth(7.0, 50.0), np.pi))
            for _ in range(2):
                places.append(
                    (
                        sample_bin(rng),
                        kerb + side * rng.uniform(0.6, 1.6),
                        self._depth(7.0, 40.0),
                        0.0,
                    )
                )
            if rng.random() < 0.6:
                places.append(
                    (
                        sample_advert(rng, screens and rng.random() < 0.7),
                        kerb + side * rng.uniform(1.0, 2.0),
                        self._depth(8.0, 30.0),
                        np.pi + side * 0.2,
                    )
                )
            if rng.random() < 0.3:
                start = self._depth(7.0, 20.0)
                places += [(Bollard(), kerb + side * 0.35, start + 1.6 * i, 0.0) for i in range(6)]
            at = street.crossing - 6.2 if street.crossing is not None else street.zebra
            if at is not None and rng.random() < 0.8:
                period = float(rng.uniform(0.35, 0.9)) if screens else 1e6
                places.append(
                    (
                        TrafficLight(period, float(rng.uniform(0, 3))),
                        kerb + side * 0.5,
                        at - 2.0,
                        np.pi,
                    )
                )
        for model, x, z, heading in places:
            plays = isinstance(model, TrafficLight) or getattr(model, "rate", 0.0) > 0
            thing = Thing(((model.label, model),), Track(float(x), float(z), heading), plays)
            # Lamps reach out over the road; what must stand free is their foot.
            foot = [_shrink(thing.footprint(0.0), 0.35)] * len(TIMES)
            free = not any(_meets(foot, other) for other in self._footprints)
            if free and (street.crossing is None or abs(z - street.crossing) > 5.5):
                self._add(thing)


def _shrink(corners: np.ndarray, share: float) -> np.ndarray:
    """The middle of a footprint."""
    centre = corners.mean(axis=0)
    return centre + (corners - centre) * share


def _meets(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Returns whether two things, given by their footprints at TIMES, overlap at any of these."""
    return any(_overlap(a, b) for a, b in zip(first, second))


def _overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Returns whether two convex quadrilaterals (4, 2) meet: no edge direction separates them."""
    if (first.min(axis=0) > second.max(axis=0)).any() or (
        second.min(axis=0) > first.max(axis=0)
    ).any():
        return False
    for corners in (first, second):
        edges = np.roll(corners, -1, axis=0) - corners
        for normal in edges[:2, ::-1] * [1.0, -1.0]:
            a, b = first @ normal, second @ normal
            if a.max() < b.min() or b.max() < a.min():
                return False
    return True
