"""People: a jointed skeleton dressed in rounded limbs. Coordinates as in `brush`, in metres."""

from dataclasses import dataclass

import numpy as np

from .brush import Brush
from .textures import Colour, jitter, mix, pick, scale_colour

TALL = 1.75  # height that the skeleton's measures stand for
THIGH, SHIN, UPPER_ARM, FOREARM = 0.44, 0.42, 0.29, 0.27
SKINS = [(150, 178, 222), (128, 160, 210), (96, 130, 184), (70, 98, 146), (48, 66, 100)]
HAIRS = [(28, 26, 26), (34, 44, 60), (52, 72, 100), (96, 140, 176), (150, 150, 150)]
TOPS = [
    (40, 38, 38),
    (200, 200, 198),
    (58, 54, 150),
    (130, 84, 44),
    (74, 110, 66),
    (110, 110, 108),
    (66, 130, 190),
    (50, 150, 196),
    (150, 120, 150),
    (88, 62, 40),
    (70, 90, 120),
    (180, 150, 110),
]
LEGS = [(44, 40, 38), (98, 66, 44), (120, 88, 62), (70, 68, 66), (96, 120, 140), (50, 60, 74)]

Joint = np.ndarray
Pose = dict[str, Joint]


@dataclass(frozen=True)
class Person:
    """
    Attributes:
        tall: body height in metres.
        build: width of the body, 1 on average.
        skin, hair, top, legs, shoes: colours.
        outfit: "trousers", "coat", "skirt" or "shorts".
        long_hair: hair down to the shoulders.
        bag: None, "backpack" or "handbag".
        umbrella: its colour, None without one.
        helmet: its colour, None without one.
        stride: swing of the legs in radians, 0 for somebody who stands.
        seat: None for pedestrians, "bicycle" or "motorcycle" for riders.
    """

    tall: float
    build: float
    skin: Colour
    hair: Colour
    top: Colour
    legs: Colour
    shoes: Colour
    outfit: str
    long_hair: bool
    bag: str | None
    umbrella: Colour | None
    helmet: Colour | None
    stride: float
    seat: str | None = None

    @classmethod
    def sample(
        cls, rng: np.random.Generator, moving: bool, rain: bool = False, seat: str = None
    ) -> "Person":
        child = seat is None and rng.random() < 0.1
        tall = rng.uniform(1.1, 1.4) if child else rng.uniform(1.58, 1.9)
        helmet = None
        if seat == "motorcycle" or (seat == "bicycle" and rng.random() < 0.5):
            helmet = jitter(
                rng,
                pick(
                    rng,
                    [(36, 34, 34), (214, 214, 212), (44, 40, 170), (160, 110, 50), (60, 160, 200)],
                ),
            )
        outfit = (
            "trousers"
            if seat
            else pick(rng, ["trousers", "coat", "skirt", "shorts"], (0.55, 0.2, 0.13, 0.12))
        )
        umbrella = None
        if seat is None and rain and rng.random() < 0.6:
            umbrella = jitter(
                rng, pick(rng, [(36, 34, 34), (60, 50, 150), (130, 80, 40), (80, 130, 80)])
            )
        return cls(
            tall,
            rng.uniform(0.9, 1.15),
            jitter(rng, pick(rng, SKINS, (4, 4, 2, 1, 1))),
            jitter(rng, pick(rng, HAIRS)),
            jitter(rng, pick(rng, TOPS), 12),
            jitter(rng, pick(rng, LEGS), 8),
            pick(rng, [(30, 28, 28), (60, 70, 84), (210, 210, 208)]),
            outfit,
            bool(rng.random() < 0.4),
            pick(rng, [None, "backpack", "handbag"], (0.55, 0.25, 0.2)),
            umbrella,
            helmet,
            rng.uniform(0.38, 0.52) if moving else 0.0,
            seat,
        )

    @property
    def size(self):
        if self.seat:
            return 1.5, 1.0, 2.05
        return (1.5, 1.5, self.tall + 0.65) if self.umbrella else (1.35, 1.1, self.tall + 0.1)

    def draw(self, brush: Brush, phase: float) -> None:
        """Draws the person; `phase` in radians is where in the step or the pedalling it is."""
        pose = self._ride(phase) if self.seat else self._walk(phase)
        face = brush.eye[:2] / max(float(np.linalg.norm(brush.eye[:2])), 1e-6)
        parts = []  # (how near, drawing), as the camera sees it
        for sign, side in ((-1.0, "left"), (1.0, "right")):
            nearer = sign * float(face[1])
            parts.append((nearer - 0.1, lambda s=side: self._leg(brush, pose, s)))
            outward = nearer + 0.05 * np.sign(nearer)
            parts.append((outward, lambda s=side: self._arm(brush, pose, s)))
        parts.append((0.0, lambda: self._torso(brush, pose, face)))
        parts.append((0.01, lambda: self._head(brush, pose, face)))
        if self.bag == "backpack":
            parts.append((-float(face[0]) * 0.8, lambda: self._backpack(brush, pose)))
        for _, draw in sorted(parts, key=lambda part: part[0]):
            draw()
        if self.umbrella:
            self._umbrella(brush, pose)

    def _walk(self, phase: float) -> Pose:
        """Joints of a walking or standing pedestrian."""
        k = self.tall / TALL
        pose: Pose = {}
        lowest = np.inf
        for sign, side in ((-1.0, "left"), (1.0, "right")):
            swing = sign * np.sin(phase)
            thigh = self.stride * swing + 0.06
            bend = 0.1 + self.stride * 1.6 * max(0.0, sign * np.cos(phase)) ** 1.5
            hip = np.array([0.0, sign * 0.09, 0.92])
            knee = hip + THIGH * np.array([np.sin(thigh), 0.0, -np.cos(thigh)])
            ankle = knee + SHIN * np.array([np.sin(thigh - bend), 0.0, -np.cos(thigh - bend)])
            shoulder = np.array([0.02, sign * 0.19, 1.44])
            reach = -self.stride * 0.9 * swing
            elbow = shoulder + UPPER_ARM * np.array([np.sin(reach), sign * 0.12, -np.cos(reach)])
            hand = elbow + FOREARM * np.array([np.sin(reach + 0.35), 0.0, -np.cos(reach + 0.35)])
            if self.umbrella and sign > 0:
                elbow = shoulder + np.array([0.1, 0.05, -0.24])
                hand = elbow + np.array([0.2, -0.05, 0.16])
            pose.update(
                {
                    f"{side} hip": hip,
                    f"{side} knee": knee,
                    f"{side} ankle": ankle,
                    f"{side} shoulder": shoulder,
                    f"{side} elbow": elbow,
                    f"{side} hand": hand,
                }
            )
            lowest = min(lowest, ankle[2])
        pose["head"] = np.array([0.04, 0.0, 1.62])
        drop = np.array([0.0, 0.0, lowest - 0.08])
        return {name: (joint - drop) * k for name, joint in pose.items()}

    def _ride(self, phase: float) -> Pose:
        """Joints of a rider; the feet follow the pedals of a bicycle."""
        bicycle = self.seat == "bicycle"
        saddle = np.array([-0.2, 0.0, 0.98]) if bicycle else np.array([-0.32, 0.0, 0.86])
        lean = 0.36 if bicycle else 0.28
        chest = saddle + 0.52 * np.array([np.sin(lean), 0.0, np.cos(lean)])
        pose: Pose = {"head": chest + [0.1, 0.0, 0.24]}
        for sign, side in ((-1.0, "left"), (1.0, "right")):
            hip = saddle + [0.0, sign * 0.1, 0.0]
            if bicycle:
                turn = phase * 1.2
                foot = np.array(
                    [0.17 * np.cos(turn) * sign, sign * 0.12, 0.36 + 0.17 * np.sin(turn) * sign]
                )
            else:
                foot = np.array([0.05, sign * 0.22, 0.34])
            shoulder = chest + [0.0, sign * 0.19, 0.0]
            hand = np.array([0.3 if bicycle else 0.34, sign * (0.27 if bicycle else 0.34), 1.06])
            pose.update(
                {
                    f"{side} hip": hip,
                    f"{side} ankle": foot,
                    f"{side} knee": _bend(hip, foot, THIGH, SHIN, np.array([1.0, sign * 0.2, 0.4])),
                    f"{side} shoulder": shoulder,
                    f"{side} hand": hand,
                    f"{side} elbow": _bend(
                        shoulder, hand, UPPER_ARM, FOREARM, np.array([-0.3, sign * 0.9, -0.7])
                    ),
                }
            )
        return pose

    def _leg(self, brush: Brush, pose: Pose, side: str) -> None:
        hip, knee, ankle = (pose[f"{side} {joint}"] for joint in ("hip", "knee", "ankle"))
        legs = self.skin if self.outfit in ("skirt", "shorts") else self.legs
        shade = 1.0 if side == "right" else 0.86
        k = self.tall / TALL * self.build
        toe = ankle + [0.14, 0.0, -0.035]
        brush.limb(ankle + [-0.02, 0.0, -0.03], toe, 0.048 * k, 0.04 * k, self.shoes)
        self._stick(brush, knee, ankle, 0.062 * k, 0.045 * k, scale_colour(legs, shade))
        self._stick(
            brush,
            hip,
            knee,
            0.09 * k,
            0.066 * k,
            scale_colour(self.legs if self.outfit == "shorts" else legs, shade),
        )

    def _arm(self, brush: Brush, pose: Pose, side: str) -> None:
        shoulder, elbow, hand = (pose[f"{side} {joint}"] for joint in ("shoulder", "elbow", "hand"))
        shade = 1.02 if side == "right" else 0.9
        k = self.tall / TALL * self.build
        sleeve = scale_colour(self.top, shade)
        brush.limb(hand, hand + (hand - elbow) * 0.22, 0.042 * k, 0.036 * k, self.skin)
        self._stick(brush, elbow, hand, 0.05 * k, 0.04 * k, sleeve)
        self._stick(brush, shoulder, elbow, 0.066 * k, 0.052 * k, sleeve)
        if self.bag == "handbag" and side == "left" and not self.seat:
            brush.limb(hand + [0, 0, -0.12], hand + [0, 0, -0.24], 0.09, 0.11, (50.0, 60.0, 84.0))

    def _stick(self, brush, start, end, first, second, colour) -> None:
        """A limb with light on its upper left and shade on its other edge."""
        brush.limb(start, end, first, second, brush.shade(scale_colour(colour, 0.84), (0, 0, 0.3)))
        a, b = brush.pixels([start]), brush.pixels([end])
        if a is None or b is None:
            return
        shift = np.array([-0.3, -0.12])
        ra, rb = brush.radius(start, first), brush.radius(end, second)
        if min(ra, rb) < 2.0:
            return
        light = brush.shade(scale_colour(colour, 1.08), (0, 0, 0.6))
        a, b = a[0] + shift * ra, b[0] + shift * rb
        along = (b - a) / max(float(np.hypot(*(b - a))), 1e-6)
        across = np.array([-along[1], along[0]])
        brush.fill_pixels(
            np.stack(
                [
                    a + across * ra * 0.55,
                    b + across * rb * 0.55,
                    b - across * rb * 0.55,
                    a - across * ra * 0.55,
                ]
            ),
            light,
        )

    def _torso(self, brush: Brush, pose: Pose, face: np.ndarray) -> None:
        hips = (pose["left hip"] + pose["right hip"]) / 2
        chest = (pose["left shoulder"] + pose["right shoulder"]) / 2
        axis = chest - hips
        # The body is flat: seen from the side it is narrower than from the front.
        broad = np.hypot(0.225 * face[0], 0.145 * face[1]) * self.build * self.tall / TALL
        rows = [
            (-0.12, 0.74),
            (0.1, 0.78),
            (0.3, 0.76),
            (0.62, 0.92),
            (0.88, 1.0),
            (1.04, 0.74),
            (1.13, 0.3),
        ]
        if self.outfit == "coat" or self.outfit == "skirt":
            flare = 1.05 if self.outfit == "coat" else 1.2
            rows = [(-0.85, flare), (-0.4, 0.92)] + rows
        middle = [brush.pixels([hips + axis * share]) for share, _ in rows]
        if any(point is None for point in middle):
            return
        centre = np.concatenate(middle)
        half = np.array([brush.radius(chest, broad * width) for _, width in rows])[:, None]
        across = np.array([[1.0, 0.0]])
        body = np.concatenate([centre - across * half, (centre + across * half)[::-1]])
        colour = brush.shade(self.top, (0, 0, 0.5))
        brush.fill_pixels(body, scale_colour(colour, 0.8))
        lit = np.concatenate([centre - across * half * 0.82, (centre + across * half * 0.45)[::-1]])
        brush.fill_pixels(lit, colour)
        lit = np.concatenate([centre - across * half * 0.7, (centre - across * half * 0.1)[::-1]])
        brush.fill_pixels(lit, scale_colour(colour, 1.1))
        if self.outfit == "skirt":
            skirt = np.concatenate(
                [(centre - across * half)[:4], (centre + across * half)[:4][::-1]]
            )
            brush.fill_pixels(skirt, brush.shade(scale_colour(self.legs, 1.25), (0, 0, 0.4)))
        elif self.outfit == "trousers" and half.max() > 6:
            belt = np.stack(
                [
                    centre[0] - across[0] * half[0],
                    centre[1] - across[0] * half[1],
                    centre[1] + across[0] * half[1],
                    centre[0] + across[0] * half[0],
                ]
            )
            brush.fill_pixels(belt, brush.shade(scale_colour(self.legs, 0.95), (0, 0, 0.4)))

    def _head(self, brush: Brush, pose: Pose, face: np.ndarray) -> None:
        head = pose["head"]
        k = 0.5 + 0.5 * self.tall / TALL
        chest = (pose["left shoulder"] + pose["right shoulder"]) / 2
        skin = brush.shade(self.skin, (0, 0, 0.5))
        brush.limb(chest + [0, 0, 0.03], head + [0, 0, -0.06], 0.055, 0.05, scale_colour(skin, 0.8))
        centre = brush.pixels([head])
        if centre is None:
            return
        centre, radius = centre[0], brush.radius(head, 0.108 * k)
        towards = float(face[0])  # 1: looks at the camera, -1: looks away
        hair = brush.shade(self.hair, (0, 0, 0.6))
        if self.long_hair:
            brush.circle(centre + [0, radius * 0.55], radius * 1.05, scale_colour(hair, 0.85))
        self._oval(brush, centre, radius * 1.06, radius * 1.26, hair)
        if towards > -0.45:
            look = (
                np.array([-face[1] * 0.5, 0.24]) * radius
                if abs(face[1]) > 0.3
                else np.array([0.0, 0.24]) * radius
            )
            # The face turns to where the person is heading.
            look[0] = np.sign(self._heading_in_picture(brush)) * abs(look[0])
            self._oval(brush, centre + look, radius * 0.82, radius * 0.98, scale_colour(skin, 0.88))
            self._oval(
                brush,
                centre + look + [-radius * 0.14, -radius * 0.05],
                radius * 0.6,
                radius * 0.82,
                skin,
            )
            if radius > 7:
                for x in (-0.32, 0.32):
                    brush.circle(
                        centre + look + [x * radius, -radius * 0.1],
                        radius * 0.09,
                        scale_colour(skin, 0.35),
                    )
        if self.helmet:
            colour = brush.shade(self.helmet, (0, 0, 0.8))
            full = self.seat == "motorcycle"
            self._oval(
                brush,
                centre - [0, radius * (0.1 if full else 0.4)],
                radius * 1.25,
                radius * (1.3 if full else 0.95),
                colour,
            )
            self._oval(
                brush,
                centre - [radius * 0.3, radius * 0.6],
                radius * 0.5,
                radius * 0.4,
                mix(colour, (255.0, 252.0, 250.0), 0.3),
            )
            if full and towards > -0.3:
                self._oval(
                    brush,
                    centre + [0, radius * 0.12],
                    radius * 0.86,
                    radius * 0.42,
                    (40.0, 36.0, 34.0),
                )

    def _heading_in_picture(self, brush: Brush) -> float:
        """Positive when the person's forward direction points to the right in the picture."""
        pixels = brush.pixels([(0.0, 0.0, 1.0), (0.3, 0.0, 1.0)])
        return 0.0 if pixels is None or len(pixels) != 2 else float(pixels[1, 0] - pixels[0, 0])

    @staticmethod
    def _oval(brush: Brush, centre: np.ndarray, across: float, down: float, colour: Colour) -> None:
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        brush.fill_pixels(
            np.stack([centre[0] + across * np.cos(angle), centre[1] + down * np.sin(angle)], 1),
            colour,
        )

    def _backpack(self, brush: Brush, pose: Pose) -> None:
        chest = (pose["left shoulder"] + pose["right shoulder"]) / 2
        hips = (pose["left hip"] + pose["right hip"]) / 2
        colour = brush.shade(scale_colour(self.legs, 0.8), (0, 0, 0.5))
        upper, lower = chest * 0.92 + hips * 0.08, chest * 0.45 + hips * 0.55
        back = np.array([-0.17, 0.0, 0.0])
        brush.limb(upper + back, lower + back, 0.13, 0.15, colour)
        brush.limb(upper + back, (upper + lower) / 2 + back, 0.09, 0.1, scale_colour(colour, 1.18))

    def _umbrella(self, brush: Brush, pose: Pose) -> None:
        hand = pose["right hand"]
        top = np.array([hand[0], hand[1], self.tall + 0.42])
        brush.limb(hand, top, 0.012, 0.012, (60.0, 58.0, 58.0))
        angle = np.linspace(0, np.pi, 13)
        apex = brush.pixels([top])
        if apex is None:
            return
        radius = brush.radius(top, 0.55)
        dome = np.stack(
            [
                apex[0, 0] + radius * np.cos(angle),
                apex[0, 1] + radius * 0.42 - radius * 0.5 * np.sin(angle),
            ],
            axis=1,
        )
        colour = brush.shade(self.umbrella, (0, 0, 1.0))
        brush.fill_pixels(dome, colour)
        part = dome.copy()
        part[:, 0] = apex[0, 0] + (part[:, 0] - apex[0, 0]) * 0.45 - radius * 0.1
        brush.fill_pixels(part, scale_colour(colour, 1.2))


def _bend(start: Joint, end: Joint, first: float, second: float, towards: np.ndarray) -> Joint:
    """The joint between two bones of given lengths, bent into the direction `towards`."""
    reach = end - start
    distance = min(float(np.linalg.norm(reach)), first + second - 1e-3)
    axis = reach / max(float(np.linalg.norm(reach)), 1e-6)
    along = (distance**2 + first**2 - second**2) / (2 * max(distance, 1e-6))
    offset = np.sqrt(max(first**2 - along**2, 0.0))
    side = towards - axis * float(np.dot(towards, axis))
    side = side / max(float(np.linalg.norm(side)), 1e-6)
    return start + axis * along + side * offset
