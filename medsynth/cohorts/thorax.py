"""The anatomy of a thorax as implicit shapes: every organ is a signed distance at points (x, y, z).

Coordinates are millimetres in the patient: x towards the left, y towards the back, z towards the head, with the origin
in the middle of the chest. Arrays x, y and z have one shape of any rank, so a slice, a volume and a list of points are one
code. Distances are in millimetres, negative inside. Anatomy is described for a person of medium build, `Anatomy.build`
scales it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

Floats = np.ndarray | float  # one number, or one a point

SPINE_Y = 46.0  # centre of the vertebral body
CANAL_Y = SPINE_Y + 20.5
CAVITY_Y = -5.0  # centre of the rib cage
RIB_SPACING, RIB_DROP = 24.0, 128.0  # ribs fall from the spine to the sternum, so one slice cuts five or six of them


@dataclass(frozen=True, kw_only=True, eq=False)
class Waves:
    """A smooth random field: a sum of plane waves of `length` millimetres, with standard deviation `height`."""

    vectors: np.ndarray  # (K, 3), radians per millimetre
    phases: np.ndarray  # (K,)
    height: float

    @classmethod
    def draw(cls, random: np.random.Generator, *, length: float, height: float, count: int = 6) -> Waves:
        """Draw `count` waves of random direction, their lengths between 0.7 and 1.6 times `length`."""
        directions = random.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        vectors = directions * (2 * np.pi / (length * random.uniform(0.7, 1.6, size=(count, 1))))
        return cls(vectors=vectors, phases=random.uniform(0, 2 * np.pi, size=count), height=height)

    def at(self, points: Points) -> np.ndarray:
        """Return the field at the points."""
        total = np.zeros_like(points.x)
        for (along_x, along_y, along_z), phase in zip(self.vectors.tolist(), self.phases.tolist(), strict=True):
            total += np.sin(along_x * points.x + along_y * points.y + along_z * points.z + phase)
        return total * (self.height * (2 / len(self.phases)) ** 0.5)


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points of the patient: x (left), y (back), z (head) in millimetres, of one shape, `voxel` millimetres apart."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    voxel: float = 1.0

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Return the share of each voxel, in [0, 1], that lies inside a shape: smooth edges instead of staircases."""
        return np.clip(0.5 - distance / self.voxel, 0, 1)

    def band(self, distance: np.ndarray, thickness: float) -> np.ndarray:
        """Return the share of each voxel that lies within a sheet of `thickness` millimetres about distance 0."""
        width = max(thickness, self.voxel)
        return np.clip(0.5 + (0.5 * width - np.abs(distance)) / self.voxel, 0, 1) * (thickness / width)


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """What stays the same in all scans of a patient; lengths in millimetres of the medium build."""

    build: tuple[float, float, float]  # scale along x, y, z
    squareness: float  # exponent of the superellipse of rib cage and skin: 2 is an ellipse
    fat: float  # thickness under the skin
    fat_front: float  # additional fat over the breasts
    muscle: float  # scale of the muscles on the ribs
    heart: tuple[float, float, float]  # semi-axes of the heart
    heart_angle: float
    heart_shift: float
    aorta: float  # radius
    midline: float  # half width of the mediastinum between the lungs
    mediastinal_fat: float  # HU between the organs of the mediastinum
    bone: float  # HU of the spongy bone
    cortex: float  # HU of the compact bone
    rib_phase: float
    sternum: tuple[float, float]  # half width and half thickness
    spine: float  # scale of the vertebra
    lung: float  # HU of the lung tissue at mid height
    gravity: float  # HU from mid height of the lung to its back
    emphysema: float  # HU amplitude of coarse unevenness of the lung
    vessels: float  # scale of the radii
    calcified: bool  # lime in the coronary arteries
    bend: tuple[Waves, Waves, Waves]  # displacement along x, y, z that makes no two patients symmetric
    streaks: Waves
    marbling: Waves
    tree: np.ndarray  # (S, 8): start xyz, end xyz, radius at start and end, of every vessel segment in the lungs


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How the patient lies and breathes in one scan: `level` is the height of the slice (z), `breath` scales the chest."""

    level: float
    shift: tuple[float, float]
    angle: float
    breath: float


def draw_anatomy(random: np.random.Generator) -> Anatomy:
    """Draw a patient; the order of the draws is part of what a seed means."""
    fat = float(3.5 + 15 * random.beta(1.6, 2.6))
    width = min(random.normal(1.0, 0.045), 151 / (137 + fat))  # the widest patient still fits the field of view
    draft = Anatomy(
        build=(float(width), float(width * random.normal(1.0, 0.05)), float(random.normal(1.0, 0.05))),
        squareness=float(random.uniform(2.15, 2.65)),
        fat=fat,
        fat_front=float(max(0.0, random.normal(0.0, 9.0)) + 1.5),
        muscle=float(random.uniform(0.75, 1.25)),
        heart=(float(random.normal(52, 4)), float(random.normal(39, 3.5)), float(random.normal(52, 4))),
        heart_angle=float(random.normal(0.55, 0.12)),
        heart_shift=float(random.normal(19, 4)),
        aorta=float(np.clip(random.normal(12.5, 1.6), 9, 17)),
        midline=float(random.uniform(17, 25)),
        mediastinal_fat=float(random.uniform(-95, -40)),
        bone=float(random.uniform(170, 270)),
        cortex=float(random.uniform(480, 680)),
        rib_phase=float(random.uniform(0, RIB_SPACING)),
        sternum=(float(random.uniform(7, 14)), float(random.uniform(4.5, 6.5))),
        spine=float(random.normal(1.0, 0.06)),
        lung=float(random.uniform(-875, -835)),
        gravity=float(random.uniform(15, 55)),
        emphysema=float(random.uniform(5, 18)),
        vessels=float(random.uniform(0.85, 1.2)),
        calcified=bool(random.random() < 0.2),
        bend=(
            Waves.draw(random, length=190, height=2.8),
            Waves.draw(random, length=190, height=2.8),
            Waves.draw(random, length=260, height=2.0),
        ),
        streaks=Waves.draw(random, length=26, height=1.0),
        marbling=Waves.draw(random, length=13, height=1.0),
        tree=np.zeros((0, 8)),
    )
    return replace(draft, tree=np.concatenate(_grow_trees(draft, random)))


def to_anatomy(anatomy: Anatomy, pose: Pose, points: Points) -> Points:
    """Return where points of the scanner (millimetres; z above the slice) lie in the anatomy of medium build."""
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    x, y = points.x - pose.shift[0], points.y - pose.shift[1]
    x, y = cos * x + sin * y, cos * y - sin * x
    width, depth, height = anatomy.build
    straight = Points(x=x / width, y=y / (depth * pose.breath), z=(points.z + pose.level) / height)
    bend = [waves.at(straight) for waves in anatomy.bend]
    return Points(
        x=straight.x + bend[0],
        y=straight.y + bend[1],
        z=straight.z + bend[2],
        voxel=points.voxel / (width * depth) ** 0.5,
    )


def to_scanner(anatomy: Anatomy, pose: Pose, places: np.ndarray) -> np.ndarray:
    """Return where places (N, 3) of the anatomy lie in the scanner: the inverse of `to_anatomy`, to about 0.1 mm."""
    straight = places
    for _ in range(3):  # fixed point: the bend is small and smooth
        points = Points(x=straight[:, 0], y=straight[:, 1], z=straight[:, 2])
        straight = places - np.stack([waves.at(points) for waves in anatomy.bend], axis=1)
    width, depth, height = anatomy.build
    x, y = straight[:, 0] * width, straight[:, 1] * depth * pose.breath
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    rotated = cos * x - sin * y + pose.shift[0], sin * x + cos * y + pose.shift[1]
    return np.stack([*rotated, straight[:, 2] * height - pose.level], axis=1)


# Shapes ----------------------------------------------------------------------------------------------------------------


def ellipsoid(
    points: Points,
    centre: tuple[Floats, Floats, float],
    radii: tuple[Floats, Floats, float],
    angle: float = 0.0,
) -> np.ndarray:
    """Return the distance (to first order) to an ellipsoid turned by `angle` in the axial plane; a radius may be infinite."""
    x, y = points.x - centre[0], points.y - centre[1]
    if angle:
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = cos * x + sin * y, cos * y - sin * x
    x, y, z = x / radii[0], y / radii[1], (points.z - centre[2]) / radii[2]
    level = np.sqrt(x * x + y * y + z * z)
    slope = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
    return level * (level - 1) / np.maximum(slope, 1e-6)


def capsule(points: Points, start: tuple[float, float], end: tuple[float, float], radius: Floats) -> np.ndarray:
    """Return the distance to a rod along z whose cross-section is a thick line from `start` to `end` (x, y)."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    share = ((points.x - start[0]) * along_x + (points.y - start[1]) * along_y) / (along_x**2 + along_y**2)
    share = np.clip(share, 0, 1)
    return np.hypot(points.x - start[0] - share * along_x, points.y - start[1] - share * along_y) - radius


def merge(first: np.ndarray, second: np.ndarray, softness: float) -> np.ndarray:
    """Return the union of two shapes, its crease filled over about `softness` millimetres."""
    blend = np.maximum(softness - np.abs(first - second), 0) / softness
    return np.minimum(first, second) - blend * blend * (softness / 4)


def _superellipse(points: Points, radii: tuple[Floats, Floats], exponent: float) -> np.ndarray:
    x, y = np.abs(points.x) / radii[0] + 1e-6, np.abs(points.y - CAVITY_Y) / radii[1] + 1e-6
    power_x, power_y = x ** (exponent - 1), y ** (exponent - 1)
    level = (power_x * x + power_y * y) ** (1 / exponent)
    slope = level ** (1 - exponent) * np.hypot(power_x / radii[0], power_y / radii[1])
    return (level - 1) / slope


def rib_cage(anatomy: Anatomy, points: Points) -> np.ndarray:
    """Return the distance to the sheet in which the ribs lie."""
    taper = np.sqrt(np.maximum(1 - ((points.z + 30) / 180) ** 2, 0.05))
    egg = 1 + 0.0011 * np.clip(points.y, -80, 80)  # widest behind the middle
    return _superellipse(points, (117 * taper * egg, 79 * taper), anatomy.squareness)


def mediastinum(anatomy: Anatomy, points: Points) -> np.ndarray:
    """Return the distance to everything between the lungs: heart, great vessels, spine and what fills the gaps."""
    column = ellipsoid(points, (1, -18, 0), (anatomy.midline, 62, np.inf))
    spine = ellipsoid(points, (0, SPINE_Y + 8, 0), (24, 26, np.inf))
    hilum_right = ellipsoid(points, (-30, 6, 0), (15, 14, 34))
    hilum_left = ellipsoid(points, (30, 8, 4), (14, 14, 34))
    arch = ellipsoid(points, (4, -12, 45), (anatomy.midline + 10, 34, 40))
    shape = merge(merge(column, spine, 14), merge(hilum_right, hilum_left, 4), 12)
    shape = merge(shape, merge(arch, heart_sac(anatomy, points), 8), 12)
    return merge(shape, ellipsoid(points, (21, 35, 0), (anatomy.aorta + 2, anatomy.aorta + 2, np.inf)), 6)


def heart_sac(anatomy: Anatomy, points: Points) -> np.ndarray:
    """Return the distance to the heart with the fat around it."""
    return ellipsoid(points, (anatomy.heart_shift, -27, -42), anatomy.heart, anatomy.heart_angle)


def lung(anatomy: Anatomy, points: Points) -> np.ndarray:
    """Return the distance to both lungs; x tells them apart."""
    return np.maximum(rib_cage(anatomy, points) + 6.0, -mediastinum(anatomy, points))


def around_chest(points: Points) -> np.ndarray:
    """Return the angle about the chest: 0 at the back, pi at the front, on either side."""
    return np.arctan2(np.abs(points.x), points.y - CAVITY_Y)


# Vessels ---------------------------------------------------------------------------------------------------------------


def _grow_trees(anatomy: Anatomy, random: np.random.Generator, generations: int = 10) -> list[np.ndarray]:
    """Grow an artery and a vein in each lung: they supply points drawn all over the lung, halved again and again."""
    trees = []
    for side in (-1, 1):
        box = random.uniform((4, -80, -105), (118, 78, 78), size=(6 << generations, 3)) * (side, 1, 1)
        depth = lung(anatomy, Points(x=box[:, 0], y=box[:, 1], z=box[:, 2]))
        supplied = box[depth < -3]
        supplied = supplied[random.integers(len(supplied), size=(2, 1 << generations))]
        for root, targets in zip(((side * 27.0, 4.0, 6.0), (side * 25.0, 10.0, -14.0)), supplied, strict=True):
            trees.append(_grow(np.array(root), targets, anatomy.vessels, random))
    return trees


def _grow(root: np.ndarray, targets: np.ndarray, scale: float, random: np.random.Generator) -> np.ndarray:
    """Return the segments of a tree from `root`: each branch heads for the middle of its targets, then they are halved.

    Radii follow the number of targets supplied with Murray's law (exponent 1/3 of the flow).
    """
    total = len(targets)
    groups, starts, segments = targets[None], root[None], []
    while groups.shape[1] > 1:
        offsets = groups - groups.mean(axis=1, keepdims=True)
        # Cuts mostly across the longer sides, but askew: a gap between territories must not fill a whole slice.
        axes = random.normal(size=(len(groups), 3)) * offsets.std(axis=1)
        order = np.argsort(np.einsum("gnd,gd->gn", offsets, axes), axis=1)
        halves = np.take_along_axis(groups, order[..., None], axis=1).reshape(len(groups) * 2, -1, 3)
        origins = np.repeat(starts, 2, axis=0)
        # Stems stop well before the middle, so that they fork early; twigs reach what they supply.
        reach = random.uniform(0.34, 0.5, size=(len(halves), 1)) + 0.4 * (1 - np.log(halves.shape[1]) / np.log(total))
        ends = origins + (halves.mean(axis=1) - origins) * reach
        ends += random.normal(scale=0.06, size=ends.shape) * np.linalg.norm(ends - origins, axis=1, keepdims=True)
        start_radius = scale * 6.2 * (groups.shape[1] / 2 / total) ** (1 / 3) * np.ones((len(halves), 1))
        segments.append(np.concatenate([origins, ends, start_radius, start_radius * 0.84], axis=1))
        groups, starts = halves, ends
    return np.concatenate(segments)


def draw_vessels(anatomy: Anatomy, pose: Pose, points: Points, *, slab: float = 4.0) -> np.ndarray:
    """Return the share of each voxel that vessels of the lung fill, on a regular grid `points` of the scanner.

    Rows of the grid run along y, columns along x and a third axis, where there is one, along z. Sections thinner than a
    voxel fill it in part. `slab` is the thickness of the section in millimetres.
    """
    filled, voxel, rank = np.zeros_like(points.x), points.voxel, points.x.ndim
    height = anatomy.build[2]
    # Only what could reach the grid is worth the way back to the scanner; the bend moves it by a few millimetres.
    heights = np.sort(anatomy.tree[:, [2, 5]], axis=1) * height - pose.level
    tree = anatomy.tree[(heights[:, 0] < points.z.max() + 20) & (heights[:, 1] > points.z.min() - 20)]
    starts, ends = to_scanner(anatomy, pose, tree[:, 0:3]), to_scanner(anatomy, pose, tree[:, 3:6])
    radii = (tree[:, 6:] * float(np.mean(anatomy.build))).astype(np.float32)
    if rank == 2:  # what lies within the slab counts as lying in the slice
        for places in (starts, ends):
            places[:, 2] = np.sign(places[:, 2]) * np.maximum(np.abs(places[:, 2]) - slab / 2, 0)
    origin = np.array([float(axis[(0,) * rank]) for axis in (points.y, points.x, points.z)])
    margin = np.maximum(radii.max(axis=1), voxel / 2)[:, None] + voxel
    starts, ends = starts[:, [1, 0, 2]] - origin, ends[:, [1, 0, 2]] - origin  # in the order of the grid's axes
    low = np.floor((np.minimum(starts, ends) - margin) / voxel).astype(int)
    high = np.ceil((np.maximum(starts, ends) + margin) / voxel).astype(int) + 1
    shape = np.array(filled.shape + (1,) * (3 - rank))
    met = (np.maximum(low, 0) < np.minimum(high, shape)).all(axis=1)
    boxes = 2 ** np.ceil(np.log2((high - low)[:, :rank].max(axis=1))).astype(int)
    for box in np.unique(boxes[met]):  # segments of like size at once
        chosen = met & (boxes == box)
        steps = np.indices((box,) * rank).reshape(rank, -1)
        index = [np.clip(low[chosen, axis, None] + steps[axis], 0, shape[axis] - 1) for axis in range(rank)]
        along = (ends - starts)[chosen].astype(np.float32)
        offset = [-starts[chosen, axis, None].astype(np.float32) for axis in range(3)]
        for axis in range(rank):
            offset[axis] = offset[axis] + index[axis].astype(np.float32) * np.float32(voxel)
        share = sum(offset[axis] * along[:, axis, None] for axis in range(3)) / ((along**2).sum(axis=1) + 1e-9)[:, None]
        share = np.clip(share, 0, 1)
        distance = np.sqrt(sum((offset[axis] - share * along[:, axis, None]) ** 2 for axis in range(3)))
        radius = radii[chosen, :1] + share * (radii[chosen, 1:] - radii[chosen, :1])
        width = np.maximum(radius, voxel / 2)
        cover = np.clip(0.5 + (width - distance) / voxel, 0, 1) * (radius / width) ** 1.5
        reached = cover > 0  # little of a box
        np.maximum.at(filled, tuple(axis[reached] for axis in index), cover[reached].astype(filled.dtype))
    return filled
