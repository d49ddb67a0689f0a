"""The chest of the phantom: organs as signed distances at points (x, y, z), and how they look in HU.

Coordinates are millimetres in the patient: x to the left, y to the back, z to the head, the origin in the middle of the
chest. The arrays x, y and z share one shape of any rank, so slices, volumes and lists of points use the same code.
Distances are in millimetres, negative inside. Anatomy is that of a person of medium build; `Anatomy.build` scales it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Floats = np.ndarray | float  # one number, or one for each point
Pair = tuple[float, float]
Triple = tuple[Floats, Floats, float]  # along x, y, z

AIR, FAT, MUSCLE, BLOOD = -1000.0, -100.0, 52.0, 44.0  # HU
SPINE_Y = 46.0  # centre of the vertebral body
CANAL_Y = SPINE_Y + 20.5
CAVITY_Y = -5.0  # centre of the rib cage
RIB_SPACING, RIB_DROP = 24.0, 128.0  # ribs fall from the spine to the sternum, so one slice cuts five or six of them


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points x, y, z in millimetres, of one shape, `voxel` millimetres apart."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    voxel: float = 1.0

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Return the share of each voxel, in [0, 1], inside a shape: smooth edges instead of staircases."""
        return np.clip(0.5 - distance / self.voxel, 0, 1)

    def band(self, distance: np.ndarray, thickness: float) -> np.ndarray:
        """Return the share of each voxel within a sheet of `thickness` millimetres around distance 0."""
        width = max(thickness, self.voxel)
        return np.clip(0.5 + (0.5 * width - np.abs(distance)) / self.voxel, 0, 1) * (thickness / width)

    def ellipsoid(self, centre: Triple, radii: Triple, angle: float = 0.0) -> np.ndarray:
        """Return the distance (to first order) to an ellipsoid turned by `angle` in the axial plane; radii may be infinite."""
        x, y = _rotate(self.x - centre[0], self.y - centre[1], angle)
        x, y, z = x / radii[0], y / radii[1], (self.z - centre[2]) / radii[2]
        level = np.sqrt(x * x + y * y + z * z)
        slope = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
        return level * (level - 1) / np.maximum(slope, 1e-6)

    def rod(self, start: Pair, end: Pair, radius: Floats, height: Pair = (0, np.inf)) -> np.ndarray:
        """Return the distance to a rod from `start` to `end` (x, y); `height` is the middle and half the extent along z."""
        along_x, along_y = end[0] - start[0], end[1] - start[1]
        share = ((self.x - start[0]) * along_x + (self.y - start[1]) * along_y) / (along_x**2 + along_y**2)
        share = np.clip(share, 0, 1)
        distance = np.hypot(self.x - start[0] - share * along_x, self.y - start[1] - share * along_y)
        return distance - radius + np.maximum(np.abs(self.z - height[0]) - height[1], 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Waves:
    """A smooth random field: a sum of plane waves, with standard deviation `height`."""

    vectors: np.ndarray  # (K, 3), radians per millimetre
    phases: np.ndarray  # (K,)
    height: float

    @classmethod
    def draw(cls, random: np.random.Generator, *, length: float, height: float) -> Waves:
        """Draw six waves of random direction, their lengths between 0.7 and 1.6 times `length` millimetres."""
        directions = random.normal(size=(6, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        vectors = directions * (2 * np.pi / (length * random.uniform(0.7, 1.6, size=(6, 1))))
        return cls(vectors=vectors, phases=random.uniform(0, 2 * np.pi, size=6), height=height)

    def at(self, points: Points) -> np.ndarray:
        """Return the field at the points."""
        total = np.zeros_like(points.x)
        for (along_x, along_y, along_z), phase in zip(self.vectors.tolist(), self.phases.tolist(), strict=True):
            total += np.sin(along_x * points.x + along_y * points.y + along_z * points.z + phase)
        return total * (self.height * (2 / len(self.phases)) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How the patient lies and breathes in one scan: `level` is the height of the slice (z), `breath` scales the chest."""

    level: float
    shift: tuple[float, float]
    angle: float
    breath: float


class Anatomy:
    """What stays the same in all scans of a patient: millimetres of the medium build, and HU.

    The order of the draws is part of what a seed means.
    """

    def __init__(self, random: np.random.Generator) -> None:
        normal, uniform = random.normal, random.uniform
        self.fat = 3.5 + 15 * random.beta(1.6, 2.6)  # thickness under the skin
        width = min(normal(1.0, 0.045), 151 / (137 + self.fat))  # the widest patient still fits the field of view
        self.build = (width, width * normal(1.0, 0.05), normal(1.0, 0.05))  # scale along x, y, z
        self.squareness = uniform(2.15, 2.65)  # exponent of the superellipse of the rib cage: 2 is an ellipse
        self.fat_front = max(0.0, normal(0.0, 9.0)) + 1.5  # additional fat over the breasts
        self.muscle = uniform(0.75, 1.25)  # scale of the muscles on the ribs
        self.heart = (normal(52, 4), normal(39, 3.5), normal(52, 4))  # semi-axes
        self.heart_angle, self.heart_shift = normal(0.55, 0.12), normal(19, 4)
        self.aorta = min(max(normal(12.5, 1.6), 9.0), 17.0)  # radius
        self.midline = uniform(17, 25)  # half width of the mediastinum between the lungs
        self.mediastinal_fat = uniform(-95, -40)  # HU between the organs of the mediastinum
        self.bone, self.cortex = uniform(170, 270), uniform(480, 680)  # HU of spongy and of compact bone
        self.rib_phase = uniform(0, RIB_SPACING)
        self.sternum = (uniform(7, 14), uniform(4.5, 6.5))  # half width and half thickness
        self.spine = normal(1.0, 0.06)  # scale of the vertebra
        self.lung, self.gravity = uniform(-875, -835), uniform(15, 55)  # HU at mid height, and from there to the back
        self.emphysema = uniform(5, 18)  # HU amplitude of coarse unevenness of the lung
        self.vessels = uniform(0.85, 1.2)  # scale of the radii
        self.calcified = random.random() < 0.2  # calcium in the coronary arteries
        # Displacements along x, y and z, so that no two patients are symmetric.
        sizes = (190, 2.8), (190, 2.8), (260, 2.0)
        self.bend = [Waves.draw(random, length=length, height=height) for length, height in sizes]
        self.streaks = Waves.draw(random, length=26, height=1.0)
        self.marbling = Waves.draw(random, length=13, height=1.0)
        self.tree = self._grow_trees(random)

    def rib_cage(self, points: Points) -> np.ndarray:
        """Return the distance to the sheet in which the ribs lie, a superellipse."""
        taper = np.sqrt(np.maximum(1 - ((points.z + 30) / 180) ** 2, 0.05))
        egg = 1 + 0.0011 * np.clip(points.y, -80, 80)  # widest behind the middle
        radius_x, radius_y, exponent = 117 * taper * egg, 79 * taper, self.squareness
        x, y = np.abs(points.x) / radius_x + 1e-6, np.abs(points.y - CAVITY_Y) / radius_y + 1e-6
        power_x, power_y = x ** (exponent - 1), y ** (exponent - 1)
        level = (power_x * x + power_y * y) ** (1 / exponent)
        slope = level ** (1 - exponent) * np.hypot(power_x / radius_x, power_y / radius_y)
        return (level - 1) / slope

    def mediastinum(self, points: Points) -> np.ndarray:
        """Return the distance to everything between the lungs: heart, great vessels, spine and what fills the gaps."""
        column = points.ellipsoid((1, -18, 0), (self.midline, 62, np.inf))
        spine = points.ellipsoid((0, SPINE_Y + 8, 0), (24, 26, np.inf))
        hila = points.ellipsoid((-30, 6, 0), (15, 14, 34)), points.ellipsoid((30, 8, 4), (14, 14, 34))
        arch = points.ellipsoid((4, -12, 45), (self.midline + 10, 34, 40))
        shape = _merge(_merge(column, spine, 14), _merge(*hila, 4), 12)
        shape = _merge(shape, _merge(arch, self.heart_sac(points), 8), 12)
        return _merge(shape, points.ellipsoid((21, 35, 0), (self.aorta + 2, self.aorta + 2, np.inf)), 6)

    def heart_sac(self, points: Points) -> np.ndarray:
        """Return the distance to the heart with the fat around it."""
        return points.ellipsoid((self.heart_shift, -27, -42), self.heart, self.heart_angle)

    def lungs(self, points: Points) -> np.ndarray:
        """Return the distance to both lungs; the sign of x says which is which."""
        return np.maximum(self.rib_cage(points) + 6.0, -self.mediastinum(points))

    def place(self, pose: Pose, points: Points) -> Points:
        """Return where points of the scanner (millimetres; z above the slice) lie in the anatomy of medium build."""
        x, y = _rotate(points.x - pose.shift[0], points.y - pose.shift[1], pose.angle)
        width, depth, height = self.build
        straight = Points(x=x / width, y=y / (depth * pose.breath), z=(points.z + pose.level) / height)
        x, y, z = (bend.at(straight) for bend in self.bend)
        voxel = points.voxel / (width * depth) ** 0.5
        return Points(x=straight.x + x, y=straight.y + y, z=straight.z + z, voxel=voxel)

    def find(self, pose: Pose, places: np.ndarray) -> np.ndarray:
        """Return where places (N, 3) of the anatomy lie in the scanner: the inverse of `place`, to about 0.1 mm."""
        straight = places
        for _ in range(3):  # fixed point: the bend is small and smooth
            points = Points(x=straight[:, 0], y=straight[:, 1], z=straight[:, 2])
            straight = places - np.stack([bend.at(points) for bend in self.bend], axis=1)
        width, depth, height = self.build
        x, y = _rotate(straight[:, 0] * width, straight[:, 1] * depth * pose.breath, -pose.angle)
        return np.stack([x + pose.shift[0], y + pose.shift[1], straight[:, 2] * height - pose.level], axis=1)

    def _grow_trees(self, random: np.random.Generator) -> np.ndarray:
        """Return the vessel segments (S, 8) of an artery and a vein in each lung: start xyz, end xyz, radius at start and end."""
        trees = []
        for side in (-1, 1):
            box = random.uniform((4, -80, -105), (118, 78, 78), size=(6 << 10, 3)) * (side, 1, 1)
            supplied = box[self.lungs(Points(x=box[:, 0], y=box[:, 1], z=box[:, 2])) < -3]
            supplied = supplied[random.integers(len(supplied), size=(2, 1 << 10))]  # drawn all over the lung
            for root, targets in zip(((side * 27.0, 4.0, 6.0), (side * 25.0, 10.0, -14.0)), supplied, strict=True):
                trees.append(_grow_tree(np.array(root), targets, self.vessels, random))
        return np.concatenate(trees)


def _rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _merge(first: np.ndarray, second: np.ndarray, softness: float) -> np.ndarray:
    """Return the union of two shapes, its crease filled over about `softness` millimetres."""
    blend = np.maximum(softness - np.abs(first - second), 0) / softness
    return np.minimum(first, second) - blend * blend * (softness / 4)


def _grow_tree(root: np.ndarray, targets: np.ndarray, scale: float, random: np.random.Generator) -> np.ndarray:
    """Return the segments of a tree from `root`: each branch heads for the middle of its targets, which are then halved.

    Radii follow the number of supplied targets by Murray's law (exponent 1/3 of the flow).
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
    """Return the share of each voxel that vessels of the lungs fill, on a regular grid of the scanner.

    Rows of the grid run along y, columns along x, the third axis of a volume along z. Sections thinner than a voxel
    fill it in part. A slice shows what lies within a slab of `slab` millimetres.
    """
    filled, voxel, rank = np.zeros_like(points.x), np.float32(points.voxel), points.x.ndim
    # Only what could reach the grid is worth the way back to the scanner; the bend moves it by a few millimetres.
    heights = np.sort(anatomy.tree[:, [2, 5]], axis=1) * anatomy.build[2] - pose.level
    tree = anatomy.tree[(heights[:, 0] < points.z.max() + 20) & (heights[:, 1] > points.z.min() - 20)]
    starts, ends = (anatomy.find(pose, tree[:, part]) for part in (slice(0, 3), slice(3, 6)))
    if rank == 2:
        for places in (starts, ends):
            places[:, 2] = np.sign(places[:, 2]) * np.maximum(np.abs(places[:, 2]) - slab / 2, 0)
    corner = np.array([float(axis.flat[0]) for axis in (points.y, points.x, points.z)])
    starts, ends = starts[:, [1, 0, 2]] - corner, ends[:, [1, 0, 2]] - corner  # in the order of the grid's axes
    radii = (tree[:, 6:] * float(np.mean(anatomy.build))).astype(np.float32)
    margin = np.maximum(radii.max(axis=1), points.voxel / 2)[:, None] + points.voxel
    low = np.floor((np.minimum(starts, ends) - margin) / points.voxel).astype(int)
    high = np.ceil((np.maximum(starts, ends) + margin) / points.voxel).astype(int) + 1
    shape = np.array(filled.shape + (1,) * (3 - rank))
    met = (np.maximum(low, 0) < np.minimum(high, shape)).all(axis=1)
    boxes = 2 ** np.ceil(np.log2((high - low)[:, :rank].max(axis=1))).astype(int)
    for box in np.unique(boxes[met]):  # segments of similar size at once
        chosen = met & (boxes == box)
        steps = np.indices((box,) * rank).reshape(rank, -1)
        index = [np.clip(low[chosen, axis, None] + steps[axis], 0, shape[axis] - 1) for axis in range(rank)]
        along, (thick, thin) = (ends - starts)[chosen].astype(np.float32), radii[chosen, :, None].transpose(1, 0, 2)
        offset = [-starts[chosen, axis, None].astype(np.float32) for axis in range(3)]
        for axis in range(rank):
            offset[axis] = offset[axis] + index[axis].astype(np.float32) * voxel
        share = sum(offset[axis] * along[:, axis, None] for axis in range(3)) / ((along**2).sum(axis=1) + 1e-9)[:, None]
        share = np.clip(share, 0, 1)
        distance = np.sqrt(sum((offset[axis] - share * along[:, axis, None]) ** 2 for axis in range(3)))
        radius = thick + share * (thin - thick)
        width = np.maximum(radius, voxel / 2)
        cover = np.clip(0.5 + (width - distance) / voxel, 0, 1) * (radius / width) ** 1.5
        reached = cover > 0  # little of a box
        np.maximum.at(filled, tuple(axis[reached] for axis in index), cover[reached].astype(filled.dtype))
    return filled


class Chest:
    """A chest at points of the scanner, painted from the outside in, each organ over what it displaces.

    `hu` is the picture without what fills the lungs, `tissue` the HU of lung tissue; `body`, `lungs`, `heart`,
    `vertebra` and `vessels` (of the lungs) are the share in [0, 1] that each takes of a voxel.
    """

    def __init__(self, anatomy: Anatomy, pose: Pose, scanner: Points) -> None:
        self.anatomy, self.scanner = anatomy, scanner
        self.points = points = anatomy.place(pose, scanner)
        self.cage = anatomy.rib_cage(points)
        self.around = np.arctan2(np.abs(points.x), points.y - CAVITY_Y)  # angle: 0 at the back, pi at the front
        self.streaks, self.marbling = anatomy.streaks.at(points), anatomy.marbling.at(points)
        middle = anatomy.mediastinum(points)
        self.lungs = points.cover(np.maximum(self.cage + 6.0, -middle))
        self.vessels = draw_vessels(anatomy, pose, scanner) * self.lungs
        slope = anatomy.gravity * np.clip(points.y / 60, -1.2, 1.2)  # denser at the back, where the patient lies on it
        self.tissue = anatomy.lung + slope + anatomy.emphysema * self.streaks + 7 * self.marbling
        self.hu = np.full_like(points.x, AIR)
        self._paint_table()
        self.body = self._paint_wall()
        self._paint_ribs()
        inside = points.cover(self.cage + 5.0)
        self._lay(inside, anatomy.mediastinal_fat + 14 * self.streaks)
        self.heart = self._paint_mediastinum(inside * points.cover(middle + 1.0))
        self.vertebra = self._paint_spine()

    def _lay(self, cover: np.ndarray, value: Floats) -> None:
        self.hu += cover * (value - self.hu)

    def _bump(self, centre: float, width: float) -> np.ndarray:
        return np.exp(-(((self.around - centre) / width) ** 2))

    def _paint_table(self) -> None:
        scanner, top = self.scanner, (79 + 24 + self.anatomy.fat) * self.anatomy.build[1] + 9
        bow = scanner.y - top + scanner.x**2 / 900  # a shallow trough under the back
        reach = np.clip((150 - np.abs(scanner.x)) / scanner.voxel, 0, 1)
        self._lay(scanner.band(bow, 2.0) * reach, -250.0)
        self._lay(scanner.band(bow - 16, 2.0) * reach, -350.0)

    def _paint_wall(self) -> np.ndarray:
        anatomy, points, cage = self.anatomy, self.points, self.cage
        back, front = self._bump(0.95, 0.42), self._bump(2.45, 0.38)
        muscles = anatomy.muscle * (6 + 17 * back + 11 * front * np.clip((points.z + 60) / 60, 0.3, 1))
        breasts = anatomy.fat_front * self._bump(2.5, 0.36)
        skin = cage - (9 + anatomy.muscle * (4 + 15 * self._bump(0.85, 0.55) + 9 * front) + anatomy.fat + breasts)
        skin = _merge(skin, points.ellipsoid((0, 70, 0), (62, 32 + anatomy.fat, np.inf)), 20)
        body = points.cover(skin)
        self._lay(body, FAT + 5 * self.marbling)
        self._lay(points.band(skin + 1.4, 1.8), 10.0)
        wall = np.maximum(cage - muscles, skin + 2.5 + 0.5 * anatomy.fat)
        for side in (-1, 1):  # the long muscles beside the spine
            wall = _merge(wall, points.ellipsoid((side * 25, CANAL_Y + 14, 0), (22, 15, np.inf), side * 0.25), 4)
        self._lay(points.cover(np.maximum(wall, skin + 2.5)), MUSCLE + 5 * self.marbling)
        # Sheets of fat of uneven thickness between the layers of muscle.
        plane = points.band(cage - 8.5 - 5 * back - 3 * self.streaks, 2.2) * np.clip(0.75 + 0.5 * self.streaks, 0, 1)
        self._lay(plane * points.cover(np.maximum(wall + 2, -(cage - 4))), -70.0)
        return body

    def _paint_ribs(self) -> None:
        anatomy, points, cage, around = self.anatomy, self.points, self.cage, self.around
        drop = points.z + anatomy.rib_phase + RIB_DROP * around / np.pi
        turn = (drop + np.where(points.x > 0, 2.5, 0)) / RIB_SPACING
        height = (turn - np.round(turn)) * RIB_SPACING
        rib = (np.hypot((cage - 0.5) / 4.2, height / 6.2) - 1) * 4.2
        rib = np.maximum(rib, (0.28 - around) * 80)
        gristle = np.clip((around - 2.45) * 8, 0, 1)  # ribs end in cartilage before the breastbone
        self._lay(points.cover(rib), anatomy.cortex * (1 - gristle) + 95 * gristle)
        self._lay(points.cover(rib + 2.2), (anatomy.bone + 30) * (1 - gristle) + 75 * gristle)
        half, thick = anatomy.sternum
        bow = points.y - (CAVITY_Y - 79) - 0.012 * points.x**2
        sternum = np.hypot(np.maximum(np.abs(points.x) - half, 0), bow) - thick
        self._lay(points.cover(sternum), anatomy.cortex * 0.55)
        self._lay(points.cover(sternum + 1.5), anatomy.bone * 0.6)
        reach = np.clip((points.z + 35) / 60, 0, 1) * 0.36  # shoulder blades narrow to their tip
        blade = np.abs(cage - 15 + 22 * (around - 0.95) ** 2) - 1.2 - 2.2 * self._bump(1.2, 0.12)
        blade = np.maximum(blade, np.abs(around - 0.92) * 90 - reach * 90)
        self._lay(points.cover(blade) * (reach > 0), anatomy.cortex * 0.85)

    def _paint_mediastinum(self, inside: np.ndarray) -> np.ndarray:
        points, shift, aorta = self.points, self.anatomy.heart_shift, self.anatomy.aorta
        blood = BLOOD + 3 * self.marbling
        sac = self.anatomy.heart_sac(points) + 3.5 + 1.2 * self.streaks
        for groove in (
            points.ellipsoid((shift - 44, -44, -40), (9, 6, 40), 0.9),
            points.ellipsoid((shift + 10, -66, -42), (5, 8, 40), 0.3),
            points.ellipsoid((shift + 30, 2, -38), (9, 5, 34), -0.6),
        ):
            sac = np.maximum(sac, -groove)
        heart = inside * points.cover(sac)
        self._lay(heart, blood)
        chamber = points.ellipsoid((shift + 17, -24, -44), (25, 17, 36), self.anatomy.heart_angle)
        self._lay(heart * points.band(chamber - 4, 8.0), blood + 16)  # muscle of the left ventricle
        for vessel in (
            points.ellipsoid((-13, -27, 10), (aorta + 3, aorta + 3, 42)),
            points.ellipsoid((16, -34, 8), (aorta + 1.5, aorta + 1, 22)),
            points.rod((16, -32), (34, -2), aorta - 1.5, (14, 7)),
            points.rod((14, -20), (-34, 0), aorta - 3.5, (4, 6)),
            points.ellipsoid((-31, -16, 30), (9, 8, 62)),
            points.rod((-14, -26), (20, 34), aorta, (52, 7)),
        ):
            self._lay(inside * points.cover(vessel), blood)
        self._lay(inside * points.cover(points.ellipsoid((4, 6, -20), (33, 15, 22))), blood - 2)  # left atrium
        self._lay(inside * points.cover(points.ellipsoid((5, 27, 0), (8, 5.5, np.inf), 0.2)), 38.0)  # gullet
        descending = points.ellipsoid((21, 35, 0), (aorta, aorta, np.inf))
        self._lay(points.cover(descending), blood + 2)
        self._lay(points.band(descending + 0.8, 1.6), blood + 14)
        low = np.clip((30 - points.z) / 34, 0, 1)  # the windpipe forks below z = 30
        radii = (8 - 2 * low, 8 - 2 * low, np.inf)
        left, right = (points.ellipsoid((2 + side * 34 * low, 10, 0), radii) for side in (-1, 1))
        tubes = np.maximum(np.minimum(left, right), -4 - points.z)
        self._lay(points.cover(tubes - 1.8), 20.0)
        self._lay(points.cover(tubes), -985.0)
        if self.anatomy.calcified:
            coronary = points.ellipsoid((shift + 12, -58, -40), (3.2, 1.8, 14), 0.8)
            self._lay(points.cover(np.minimum(coronary, points.ellipsoid((34, 41, -10), (1.6, 4, 16), -0.5))), 520.0)
        return heart

    def _paint_spine(self) -> np.ndarray:
        anatomy, points, size = self.anatomy, self.points, self.anatomy.spine
        canal = points.ellipsoid((0, CANAL_Y, 0), (9.2, 7.8, np.inf))
        body = points.ellipsoid((0, SPINE_Y + 1 - size, 0), (18 * size, 14 * size, np.inf))
        body = np.maximum(body, -(canal - 1.5))
        swing = 0.5 + 0.5 * np.cos(2 * np.pi * (points.z + anatomy.rib_phase) / RIB_SPACING)
        openings = CANAL_Y + 3 - points.y - 45 * np.clip(swing - 0.3, 0, 1)  # nerves leave below the pedicles
        arch = np.maximum(np.abs(canal - 2.4) - 2.1, openings)  # its processes come and go along z
        for side in (-1, 1):
            arch = _merge(arch, points.rod((side * 12, CANAL_Y + 3), (side * 28, CANAL_Y + 11), 6 * swing - 1.8), 3)
        arch = _merge(arch, points.rod((0, CANAL_Y + 10), (0, CANAL_Y + 26), 3.8 - 1.9 * swing), 3)
        self._lay(points.cover(arch), anatomy.cortex * 0.85)
        self._lay(points.cover(arch + 2.6), anatomy.bone + 40)
        vertebra = points.cover(body)
        self._lay(vertebra, anatomy.cortex * 0.9)
        self._lay(points.cover(body + 1.5), anatomy.bone + 16 * self.marbling)
        self._lay(points.cover(canal), -20.0)
        self._lay(points.cover(canal + 2.0), 22.0)
        self._lay(points.cover(points.ellipsoid((0, CANAL_Y - 0.5, 0), (5, 4, np.inf))), 44.0)
        return vertebra
