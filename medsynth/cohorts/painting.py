"""Paints the anatomy of a thorax in HU: from the outside in, each organ over what it displaces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsynth.cohorts.thorax import (
    CANAL_Y,
    CAVITY_Y,
    RIB_DROP,
    RIB_SPACING,
    SPINE_Y,
    Anatomy,
    Floats,
    Points,
    Pose,
    around_chest,
    capsule,
    ellipsoid,
    heart_sac,
    lung,
    mediastinum,
    merge,
    rib_cage,
    to_anatomy,
)

AIR, FAT, MUSCLE, BLOOD = -1000.0, -100.0, 52.0, 44.0  # HU


@dataclass(frozen=True, kw_only=True, eq=False)
class Painting:
    """A chest without what fills the lungs: `hu` in HU; the shares in [0, 1] of each voxel that a region takes."""

    hu: np.ndarray
    lungs: np.ndarray
    body: np.ndarray
    heart: np.ndarray
    vertebra: np.ndarray
    points: Points  # of the anatomy

    def lung_tissue(self, anatomy: Anatomy) -> np.ndarray:
        """Return the HU of lung tissue without vessels: denser towards the back, where the patient lies on it."""
        fine = 7 * anatomy.marbling.at(self.points)
        slope = anatomy.gravity * np.clip(self.points.y / 60, -1.2, 1.2)
        return anatomy.lung + slope + anatomy.emphysema * anatomy.streaks.at(self.points) + fine


def _lay(hu: np.ndarray, cover: np.ndarray, value: Floats) -> None:
    hu += cover * (value - hu)


def paint(anatomy: Anatomy, pose: Pose, scanner: Points) -> Painting:
    """Paint the chest from the outside in, each organ over what it displaces."""
    points = to_anatomy(anatomy, pose, scanner)
    cage, around = rib_cage(anatomy, points), around_chest(points)
    centre, lungs = mediastinum(anatomy, points), points.cover(lung(anatomy, points))
    streaks, marbling = anatomy.streaks.at(points), anatomy.marbling.at(points)
    hu = np.full_like(points.x, AIR)
    _paint_table(hu, scanner, anatomy)
    body = _paint_wall(hu, anatomy, points, cage, around, streaks, marbling)
    _paint_ribs(hu, anatomy, points, cage, around)
    inside = points.cover(cage + 5.0)
    _lay(hu, inside, anatomy.mediastinal_fat + 14 * streaks)
    heart = _paint_mediastinum(hu, anatomy, points, inside * points.cover(centre + 1.0), streaks, marbling)
    vertebra = _paint_spine(hu, anatomy, points, marbling)
    return Painting(hu=hu, lungs=lungs, body=body, heart=heart, vertebra=vertebra, points=points)


def _paint_table(hu: np.ndarray, scanner: Points, anatomy: Anatomy) -> None:
    top = (79 + 24 + anatomy.fat) * anatomy.build[1] + 9  # a shallow trough under the back
    bow = scanner.y - top + scanner.x**2 / 900
    reach = np.clip((150 - np.abs(scanner.x)) / scanner.voxel, 0, 1)
    _lay(hu, scanner.band(bow, 2.0) * reach, -250.0)
    _lay(hu, scanner.band(bow - 16, 2.0) * reach, -350.0)


def _bump(around: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((around - centre) / width) ** 2))


def _paint_wall(
    hu: np.ndarray,
    anatomy: Anatomy,
    points: Points,
    cage: np.ndarray,
    around: np.ndarray,
    streaks: np.ndarray,
    marbling: np.ndarray,
) -> np.ndarray:
    back, front = _bump(around, 0.95, 0.42), _bump(around, 2.45, 0.38)
    muscles = anatomy.muscle * (6 + 17 * back + 11 * front * np.clip((points.z + 60) / 60, 0.3, 1))
    breasts = anatomy.fat_front * _bump(around, 2.5, 0.36)
    skin = cage - (9 + anatomy.muscle * (4 + 15 * _bump(around, 0.85, 0.55) + 9 * front) + anatomy.fat + breasts)
    skin = merge(skin, ellipsoid(points, (0, 70, 0), (62, 32 + anatomy.fat, np.inf)), 20)
    body = points.cover(skin)
    _lay(hu, body, FAT + 5 * marbling)
    _lay(hu, points.band(skin + 1.4, 1.8), 10.0)
    wall = np.maximum(cage - muscles, skin + 2.5 + 0.5 * anatomy.fat)
    for side in (-1, 1):  # the long muscles beside the spine
        wall = merge(wall, ellipsoid(points, (side * 25, CANAL_Y + 14, 0), (22, 15, np.inf), side * 0.25), 4)
    _lay(hu, points.cover(np.maximum(wall, skin + 2.5)), MUSCLE + 5 * marbling)
    # Sheets of fat between the layers of muscle, thicker here and thinner there.
    plane = points.band(cage - 8.5 - 5 * back - 3 * streaks, 2.2) * np.clip(0.75 + 0.5 * streaks, 0, 1)
    _lay(hu, plane * points.cover(np.maximum(wall + 2, -(cage - 4))), -70.0)
    return body


def _paint_ribs(hu: np.ndarray, anatomy: Anatomy, points: Points, cage: np.ndarray, around: np.ndarray) -> None:
    turn = (points.z + anatomy.rib_phase + RIB_DROP * around / np.pi + np.where(points.x > 0, 2.5, 0)) / RIB_SPACING
    height = (turn - np.round(turn)) * RIB_SPACING
    rib = (np.hypot((cage - 0.5) / 4.2, height / 6.2) - 1) * 4.2
    rib = np.maximum(rib, (0.28 - around) * 80)
    gristle = np.clip((around - 2.45) * 8, 0, 1)  # ribs end in cartilage before the breastbone
    _lay(hu, points.cover(rib), anatomy.cortex * (1 - gristle) + 95 * gristle)
    _lay(hu, points.cover(rib + 2.2), (anatomy.bone + 30) * (1 - gristle) + 75 * gristle)
    front = CAVITY_Y - 79
    half, thick = anatomy.sternum
    bow = points.y - front - 0.012 * points.x**2
    sternum = np.hypot(np.maximum(np.abs(points.x) - half, 0), bow) - thick
    _lay(hu, points.cover(sternum), anatomy.cortex * 0.55)
    _lay(hu, points.cover(sternum + 1.5), anatomy.bone * 0.6)
    reach = np.clip((points.z + 35) / 60, 0, 1) * 0.36  # shoulder blades narrow to their tip
    blade = np.maximum(
        np.abs(cage - 15 + 22 * (around - 0.95) ** 2) - 1.2 - 2.2 * _bump(around, 1.2, 0.12),
        np.abs(around - 0.92) * 90 - reach * 90,
    )
    _lay(hu, points.cover(blade) * (reach > 0), anatomy.cortex * 0.85)


def _paint_mediastinum(
    hu: np.ndarray, anatomy: Anatomy, points: Points, inside: np.ndarray, streaks: np.ndarray, marbling: np.ndarray
) -> np.ndarray:
    aorta, blood = anatomy.aorta, BLOOD + 3 * marbling
    sac = heart_sac(anatomy, points) + 3.5 + 1.2 * streaks
    shift = anatomy.heart_shift
    grooves = np.minimum(
        ellipsoid(points, (shift - 44, -44, -40), (9, 6, 40), 0.9),
        ellipsoid(points, (shift + 10, -66, -42), (5, 8, 40), 0.3),
    )
    grooves = np.minimum(grooves, ellipsoid(points, (shift + 30, 2, -38), (9, 5, 34), -0.6))
    heart = inside * points.cover(np.maximum(sac, -grooves))
    _lay(hu, heart, blood)
    chamber = ellipsoid(points, (shift + 17, -24, -44), (25, 17, 36), anatomy.heart_angle)
    _lay(hu, heart * points.band(chamber - 4, 8.0), blood + 16)  # muscle of the left ventricle
    arteries = (
        ellipsoid(points, (-13, -27, 10), (aorta + 3, aorta + 3, 42)),
        ellipsoid(points, (16, -34, 8), (aorta + 1.5, aorta + 1, 22)),
        capsule(points, (16, -32), (34, -2), aorta - 1.5) + np.maximum(np.abs(points.z - 14) - 7, 0),
        capsule(points, (14, -20), (-34, 0), aorta - 3.5) + np.maximum(np.abs(points.z - 4) - 6, 0),
        ellipsoid(points, (-31, -16, 30), (9, 8, 62)),
        capsule(points, (-14, -26), (20, 34), aorta) + np.maximum(np.abs(points.z - 52) - 7, 0),
    )
    for vessel in arteries:
        _lay(hu, inside * points.cover(vessel), blood)
    left_atrium = ellipsoid(points, (4, 6, -20), (33, 15, 22))
    _lay(hu, inside * points.cover(left_atrium), blood - 2)
    gullet = ellipsoid(points, (5, 27, 0), (8, 5.5, np.inf), 0.2)
    _lay(hu, inside * points.cover(gullet), 38.0)
    descending = ellipsoid(points, (21, 35, 0), (aorta, aorta, np.inf))
    _lay(hu, points.cover(descending), blood + 2)
    _lay(hu, points.band(descending + 0.8, 1.6), blood + 14)
    low = np.clip((30 - points.z) / 34, 0, 1)  # the windpipe forks below z = 30
    tubes = np.minimum(
        *(ellipsoid(points, (2 + side * 34 * low, 10, 0), (8 - 2 * low, 8 - 2 * low, np.inf)) for side in (-1, 1))
    )
    tubes = np.maximum(tubes, -4 - points.z)
    _lay(hu, points.cover(tubes - 1.8), 20.0)
    _lay(hu, points.cover(tubes), -985.0)
    if anatomy.calcified:
        lime = np.minimum(
            ellipsoid(points, (shift + 12, -58, -40), (3.2, 1.8, 14), 0.8),
            ellipsoid(points, (34, 41, -10), (1.6, 4, 16), -0.5),
        )
        _lay(hu, points.cover(lime), 520.0)
    return heart


def _paint_spine(hu: np.ndarray, anatomy: Anatomy, points: Points, marbling: np.ndarray) -> np.ndarray:
    size = anatomy.spine
    canal = ellipsoid(points, (0, CANAL_Y, 0), (9.2, 7.8, np.inf))
    body = ellipsoid(points, (0, SPINE_Y + 1 - size, 0), (18 * size, 14 * size, np.inf))
    body = np.maximum(body, -(canal - 1.5))
    swing = 0.5 + 0.5 * np.cos(
        2 * np.pi * (points.z + anatomy.rib_phase) / RIB_SPACING
    )  # processes come and go along z
    arch = np.abs(canal - 2.4) - 2.1
    arch = np.maximum(arch, CANAL_Y + 3 - points.y - 45 * np.clip(swing - 0.3, 0, 1))  # nerves leave below the pedicles
    for side in (-1, 1):
        arch = merge(arch, capsule(points, (side * 12, CANAL_Y + 3), (side * 28, CANAL_Y + 11), 6 * swing - 1.8), 3)
    arch = merge(arch, capsule(points, (0, CANAL_Y + 10), (0, CANAL_Y + 26), 3.8 - 1.9 * swing), 3)
    _lay(hu, points.cover(arch), anatomy.cortex * 0.85)
    _lay(hu, points.cover(arch + 2.6), anatomy.bone + 40)
    vertebra = points.cover(body)
    _lay(hu, vertebra, anatomy.cortex * 0.9)
    _lay(hu, points.cover(body + 1.5), anatomy.bone + 16 * marbling)
    _lay(hu, points.cover(canal), -20.0)
    _lay(hu, points.cover(canal + 2.0), 22.0)
    _lay(hu, points.cover(ellipsoid(points, (0, CANAL_Y - 0.5, 0), (5, 4, np.inf))), 44.0)
    return vertebra
