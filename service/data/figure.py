"""The synthetic figure: polygons of one pedestrian in one pose, painted into one map of parts.

Figure coordinates: x to the right from the body's axis, y down from the top of the head, the unit
is the figure's height. The map has twice the final size, so that renderings can be smooth.

Letters: h, w = OVERSAMPLING times the final height and width.
"""

from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np

from service.data.people import Person, Tuning

VIEWS = ("front", "back", "side")
OVERSAMPLING = 2


class Material(IntEnum):
    """What a part is made of; BACKGROUND is where no part is."""

    BACKGROUND = 0
    SKIN = 1
    HAIR = 2
    UPPER = 3
    SECOND = 4
    LOWER = 5
    SHOE = 6
    HAT = 7
    BAG = 8


@dataclass(frozen=True, slots=True)
class Pose:
    """How a figure stands in its frame; angles are slopes dx / dy, lengths in figure heights."""

    view: str
    mirrored: bool
    shift: tuple[float, float]
    scale: float
    swing: tuple[float, float]
    stride: float
    lean: float


@dataclass(frozen=True, slots=True)
class PartMap:
    """A painted figure.

    material: uint8 [h, w], values of `Material`.
    part: uint8 [h, w]; two neighbours of different parts have an outline between them.
    x, y: float32 [1, w] and [h, 1], figure coordinates; x is mirrored with the figure.
    scale: map pixels per figure height.
    """

    material: np.ndarray
    part: np.ndarray
    x: np.ndarray
    y: np.ndarray
    scale: float


def draw_pose(view: str, strength: float, tuning: Tuning, rng: np.random.Generator) -> Pose:
    """A pose whose deviations from a quiet middle one grow with `strength`."""
    dx, dy, ds = rng.uniform(-1, 1, 3) * strength
    left, right, stride, lean = rng.uniform(-1, 1, 4)
    return Pose(
        view=view,
        mirrored=bool(rng.integers(2)),
        shift=(tuning.pose_shift * dx, tuning.pose_shift * dy),
        scale=1.0 + tuning.pose_scale * ds,
        swing=(0.10 + 0.06 * left, 0.10 + 0.06 * right),
        stride=0.035 + 0.02 * stride if view == "side" else 0.012 * stride,
        lean=0.015 * lean,
    )


def paint(person: Person, pose: Pose, image_size: tuple[int, int]) -> PartMap:
    """The map of a figure that fills about nine tenths of an image of `image_size` (H, W)."""
    height, width = (OVERSAMPLING * n for n in image_size)
    scale = 0.9 * height * pose.scale
    # Narrow frames, such as 3:1, squeeze the figure rather than cut its bags off.
    squeeze = _BREADTH * min(1.0, width / (0.48 * height))
    x_scale = scale * squeeze * (-1.0 if pose.mirrored else 1.0)
    x0, y0 = width * 0.5 + pose.shift[0] * width, height * (0.05 + pose.shift[1])
    part = np.zeros((height, width), np.uint8)
    shapes = _figure(person, pose)
    for number, (_, points) in enumerate(shapes, start=1):
        lean = pose.lean * (0.5 - points[:, 1])
        pixels = np.stack([x0 + x_scale * (points[:, 0] + lean), y0 + scale * points[:, 1]], 1)
        cv2.fillPoly(part, [np.round(pixels * 16).astype(np.int32)], number, shift=4)
    material = np.array([0, *(m for m, _ in shapes)], np.uint8)[part]
    x = ((np.arange(width, dtype=np.float32) - x0) / x_scale)[None, :]
    y = ((np.arange(height, dtype=np.float32) - y0) / scale)[:, None]
    if person.pattern != "plain":
        material[(material == Material.UPPER) & _pattern(person.pattern, x, y)] = Material.SECOND
    return PartMap(material, part, x, y, scale)


def _pattern(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the second colour is; bool, of a shape that broadcasts to [h, w]."""
    hoops = (y / 0.13) % 1.0 < 0.5
    pins = (x / 0.11 + 0.25) % 1.0 < 0.5
    if name == "hoops":
        return hoops
    if name == "pinstripes":
        return pins
    if name == "checks":
        return hoops ^ pins
    if name == "sash":
        return ((x + 0.8 * y) / 0.17) % 1.0 < 0.5
    if name == "block":
        return y > 0.32
    row = np.floor(y / 0.09)
    dx = (x / 0.1 + 0.5 * (row % 2)) % 1.0 - 0.5
    dy = (y / 0.09) % 1.0 - 0.5
    return dx * dx + dy * dy < 0.1


Shape = tuple[Material, np.ndarray]
"""A material and its polygon, float64 [n, 2] in figure coordinates."""

_BREADTH = 1.2
"""Figures are broader than people, so that garments cover enough pixels of a small image."""

_WIDTHS = {"slim": 0.85, "average": 1.0, "heavy": 1.25}
_SLEEVES = {"tshirt": 0.45, "sweater": 0.9, "jacket": 0.9, "coat": 0.9}


def _figure(person: Person, pose: Pose) -> list[Shape]:
    """All shapes, those behind first."""
    girth = _WIDTHS[person.build]
    side = pose.view == "side"
    shapes = _behind(person, pose, girth)
    shapes += _legs(person, pose, girth * (0.8 if side else 1.0))
    if side:
        arm = _arm(person, 0.0, pose.swing[0] * 2.5 - 0.2, girth)
        torso = _torso(person, pose, 0.68 * girth)
        shapes += arm + torso if person.upper == "poncho" else torso + arm
        shapes += _side_head(person)
    else:
        shapes += _arm(person, -0.118 * girth, -pose.swing[0], girth)
        shapes += _arm(person, 0.118 * girth, pose.swing[1], girth)
        shapes += _torso(person, pose, girth)
        shapes += _frontal_head(person, pose.view)
    return shapes + _hat(person, pose) + _in_front(person, pose, girth)


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, np.float64)


def _ellipse(
    cx: float, cy: float, rx: float, ry: float, start: int = 0, stop: int = 360
) -> np.ndarray:
    """An ellipse, or its sector between two angles in degrees, 0 to the right, 90 down."""
    angle = np.deg2rad(np.linspace(start, stop, 18))
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1)


def _box(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    return _polygon((cx - rx, cy - ry), (cx + rx, cy - ry), (cx + rx, cy + ry), (cx - rx, cy + ry))


def _limb(
    x0: float, y0: float, x1: float, y1: float, start_width: float, end_width: float
) -> np.ndarray:
    """A bar from (x0, y0) down to (x1, y1), as wide as said at its two ends."""
    a, b = start_width / 2, end_width / 2
    return _polygon((x0 - a, y0), (x0 + a, y0), (x1 + b, y1), (x1 - b, y1))


def _arm(person: Person, x: float, slope: float, girth: float) -> list[Shape]:
    """An arm that hangs from the shoulder at `x`, with its sleeve."""
    top, length, width = 0.18, 0.33, 0.052 * (0.6 + 0.4 * girth)
    shapes = [(Material.SKIN, _limb(x, top, x + slope * length, top + length, width, 0.034))]
    sleeve = _SLEEVES.get(person.upper)
    if sleeve:
        end = (x + slope * length * sleeve, top + length * sleeve)
        cuff = 1.5 if person.upper == "tshirt" else 1.0
        cloth = _limb(x, top - 0.012, *end, width * 1.3, max(0.045, width * cuff))
        shapes.append((Material.UPPER, cloth))
    return shapes


def _legs(person: Person, pose: Pose, girth: float) -> list[Shape]:
    """Two legs, what covers them, and the shoes."""
    shapes: list[Shape] = []
    hip = 0.052 * girth
    side = pose.view == "side"
    feet = (-0.045 - pose.stride, 0.045 + pose.stride)
    for x, foot in zip((-hip, hip), feet, strict=True):
        x = 0.0 if side else x
        shapes.append((Material.SKIN, _limb(x, 0.47, foot, 0.95, 0.085 * girth, 0.045)))
        shapes += _leg_cloth(person, x, foot, girth)
        shapes += _shoe(person, foot, side)
    hem = {"skirt": (0.70, 0.145), "gown": (0.90, 0.165)}.get(person.lower)
    if hem:
        waist = 0.088 * girth
        wide = hem[1] * (0.75 + 0.25 * girth)
        cloth = _polygon((-waist, 0.45), (waist, 0.45), (wide, hem[0]), (-wide, hem[0]))
        shapes.append((Material.LOWER, cloth))
    else:
        shapes.append((Material.LOWER, _box(0.0, 0.49, 0.093 * girth, 0.035)))
    return shapes


def _leg_cloth(person: Person, x: float, foot: float, girth: float) -> list[Shape]:
    width = 0.10 * girth
    if person.lower == "trousers":
        return [(Material.LOWER, _limb(x, 0.47, foot, 0.945, width, 0.06))]
    if person.lower == "flares":
        knee = x + (foot - x) * 0.55
        thigh = (Material.LOWER, _limb(x, 0.47, knee, 0.75, width, 0.065))
        return [thigh, (Material.LOWER, _limb(knee, 0.72, foot * 1.3, 0.965, 0.06, 0.145))]
    if person.lower == "shorts":
        knee = x + (foot - x) * 0.4
        return [(Material.LOWER, _limb(x, 0.47, knee * 1.1, 0.67, width, 0.115 * girth))]
    return []


def _shoe(person: Person, foot: float, side: bool) -> list[Shape]:
    sole = _ellipse(foot + (0.02 if side else 0.0), 0.975, 0.05 if side else 0.036, 0.026)
    if person.shoes == "shoes":
        return [(Material.SHOE, sole)]
    return [(Material.SHOE, sole), (Material.SHOE, _limb(foot, 0.85, foot, 0.975, 0.075, 0.06))]


def _torso(person: Person, pose: Pose, girth: float) -> list[Shape]:
    """The upper garment's body, its collar, hood, pocket and opening."""
    shoulder, waist, hem = 0.122 * girth, 0.098 * girth, 0.5
    if person.upper == "tank":
        shoulder = 0.085 * girth
    body = _polygon(
        *((-0.04, 0.155), (0.04, 0.155), (shoulder, 0.18), (waist * 1.05, 0.30)),
        *((waist, hem), (-waist, hem), (-waist * 1.05, 0.30), (-shoulder, 0.18)),
    )
    shapes: list[Shape] = [(Material.SKIN, _box(0.0, 0.145, 0.024, 0.03))]
    if person.upper == "coat":
        flare = 0.15 * girth
        body = np.concatenate([body[:4], _polygon((flare, 0.78), (-flare, 0.78)), body[6:]])
    if person.upper == "poncho":
        wing, top = 0.21 * girth, 0.145 * girth
        body = _polygon(
            *((-0.04, 0.155), (0.04, 0.155), (top, 0.18), (wing, 0.44), (0.0, 0.56)),
            *((-wing, 0.44), (-top, 0.18)),
        )
    shapes.append((Material.UPPER, body))
    return shapes + _details(person, pose, girth)


def _details(person: Person, pose: Pose, girth: float) -> list[Shape]:
    """What is seen on the torso from one view only."""
    side = pose.view == "side"
    if person.upper == "jacket" and pose.view == "back":
        return [(Material.SECOND, _box(0.0, 0.175, 0.07, 0.02))]
    if person.upper == "jacket":
        x = 0.05 * girth if side else 0.0
        opening = _polygon((x - 0.06, 0.155), (x + 0.06, 0.155), (x + 0.045, 0.5), (x - 0.045, 0.5))
        return [(Material.SECOND, opening)]
    if person.upper == "coat" and not side:
        return [(Material.UPPER, _box(0.0, 0.47, 0.004, 0.3))]
    if pose.view == "front" and person.upper in ("tank", "tshirt"):
        return [(Material.SKIN, _ellipse(0.0, 0.155, 0.045, 0.035, 0, 180))]
    return []


def _frontal_head(person: Person, view: str) -> list[Shape]:
    shapes: list[Shape] = [(Material.SKIN, _ellipse(0.0, 0.08, 0.052, 0.068))]
    if view == "back":
        shapes.append((Material.HAIR, _ellipse(0.0, 0.068, 0.058, 0.066)))
        if person.hair == "long":
            shapes.append((Material.HAIR, _limb(0.0, 0.07, 0.0, 0.26, 0.125, 0.15)))
        if person.hair == "ponytail":
            shapes.append((Material.HAIR, _limb(0.0, 0.08, 0.01, 0.28, 0.035, 0.06)))
    else:
        shapes.append((Material.HAIR, _ellipse(0.0, 0.062, 0.056, 0.06, 180, 360)))
        if person.hair == "ponytail":
            shapes.append((Material.HAIR, _limb(0.062, 0.05, 0.085, 0.2, 0.02, 0.045)))
    if person.hair == "bun" and person.hat == "none":
        shapes.append((Material.HAIR, _ellipse(0.0, -0.005, 0.035, 0.028)))
    return shapes


def _side_head(person: Person) -> list[Shape]:
    """A head that looks to the right."""
    shapes: list[Shape] = [(Material.SKIN, _ellipse(0.008, 0.08, 0.055, 0.068))]
    shapes.append((Material.SKIN, _polygon((0.055, 0.07), (0.078, 0.095), (0.055, 0.1))))
    shapes.append((Material.HAIR, _ellipse(-0.006, 0.066, 0.058, 0.064, 90, 320)))
    if person.hair == "long":
        shapes.append((Material.HAIR, _limb(-0.035, 0.06, -0.05, 0.26, 0.06, 0.09)))
    if person.hair == "ponytail":
        shapes.append((Material.HAIR, _limb(-0.06, 0.05, -0.115, 0.22, 0.03, 0.05)))
    if person.hair == "bun":
        shapes.append((Material.HAIR, _ellipse(-0.068, 0.05, 0.032, 0.03)))
    return shapes


def _hat(person: Person, pose: Pose) -> list[Shape]:
    hat = Material.HAT
    if person.hat == "cap":
        crown = (hat, _ellipse(0.0, 0.05, 0.066, 0.066, 180, 360))
        if pose.view == "side":
            return [crown, (hat, _box(0.08, 0.048, 0.05, 0.012))]
        return [crown, (hat, _box(0.0, 0.055, 0.07, 0.013))] if pose.view == "front" else [crown]
    if person.hat == "beanie":
        crown = (hat, _ellipse(0.0, 0.055, 0.068, 0.1, 180, 360))
        return [
            (hat, _ellipse(0.0, -0.03, 0.03, 0.03)),
            crown,
            (hat, _box(0.0, 0.055, 0.072, 0.018)),
        ]
    if person.hat == "brim":
        return [(hat, _box(0.0, 0.01, 0.06, 0.045)), (hat, _ellipse(0.0, 0.055, 0.165, 0.025))]
    return []


def _behind(person: Person, pose: Pose, girth: float) -> list[Shape]:
    """What the body hides in part: a pack on the back seen from the front, long hair."""
    shapes: list[Shape] = []
    if person.bag == "backpack" and pose.view == "side":
        shapes.append((Material.BAG, _box(-0.12 * girth, 0.30, 0.085, 0.14)))
    if person.bag == "backpack" and pose.view == "front":
        shapes.append((Material.BAG, _box(0.0, 0.28, 0.165 * girth, 0.125)))
    if person.hair == "long" and pose.view == "front":
        shapes.append((Material.HAIR, _limb(0.0, 0.05, 0.0, 0.235, 0.12, 0.165)))
    return shapes


def _in_front(person: Person, pose: Pose, girth: float) -> list[Shape]:
    """Bags and their straps."""
    bag, view = Material.BAG, pose.view
    if person.bag == "backpack":
        if view == "back":
            pocket = (bag, _box(0.0, 0.37, 0.085, 0.05))
            return [(bag, _box(0.0, 0.29, 0.115, 0.14)), pocket]
        xs = (0.02,) if view == "side" else (-0.07, 0.07)
        return [(bag, _limb(x * girth, 0.165, x * girth * 1.1, 0.36, 0.032, 0.028)) for x in xs]
    if person.bag == "satchel":
        if view == "side":
            return [
                (bag, _limb(0.0, 0.165, -0.01, 0.44, 0.025, 0.025)),
                (bag, _box(0, 0.5, 0.1, 0.075)),
            ]
        strap = _polygon((-0.1, 0.17), (-0.065, 0.165), (0.115, 0.45), (0.085, 0.475))
        return [(bag, strap), (bag, _box(0.115 * girth, 0.52, 0.075, 0.075))]
    if person.bag == "handbag":
        x = pose.swing[0] * 0.5 if view == "side" else 0.115 * girth + pose.swing[1] * 0.25
        handle = (bag, _limb(x, 0.49, x, 0.57, 0.03, 0.1))
        return [handle, (bag, _limb(x, 0.56, x, 0.72, 0.11, 0.17))]
    if person.bag == "suitcase":
        x = -0.14 if view == "side" else -0.12 * girth - 0.02
        handle = (bag, _limb(x, 0.5, x, 0.7, 0.025, 0.025))
        return [handle, (bag, _box(x, 0.81, 0.075, 0.16))]
    return []
