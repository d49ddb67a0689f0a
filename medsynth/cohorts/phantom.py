"""The phantom cohort: CT-like slices of the chest whose true distribution is known, drawn without any download.

A scan is a function of (seed, patient, scan, label). Anatomy, pose and noise do not depend on the label, so the same
patient and scan under another label is its true counterfactual.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter
from tqdm import tqdm

from medsynth.cohorts.manifest import Cohort, Row, reason_of, write_cohort
from medsynth.cohorts.painting import Painting, paint
from medsynth.cohorts.thorax import Anatomy, Points, Pose, Waves, draw_anatomy, draw_vessels, lung, to_anatomy
from medsynth.errors import ConfigError
from medsynth.files import write_json
from medsynth.scans import PICTURE_AFFINE, Scan, write_scan
from medsynth.seeds import numpy_generator

FORMAT = 1  # raise it when the same settings would give other scans
NORMAL, SOLID, RARE = "normal", "solid_nodule", "ground_glass"
CLASSES = (NORMAL, SOLID, RARE)
FIELD_OF_VIEW = 320.0  # mm
FRESH_PATIENTS = 1_000_000  # cohorts number their patients from 0; numbers from here on are never in one
DIAMETERS = {SOLID: (6.0, 30.0), RARE: (10.0, 40.0)}  # mm
DENSITIES = {SOLID: (30.0, 80.0), RARE: (-650.0, -350.0)}  # HU
_SPLITS = {"train": 0.65, "val": 0.15, "test": 0.20}


@dataclass(frozen=True, kw_only=True, eq=False)
class PhantomScan:
    """A phantom scan and what is true of it.

    `scan.array` is int16 (1, row, column) in HU; `scan.attributes` holds `diameter_mm`, `density_hu` and `side` of the
    lesion, and nothing without one. `mask` is bool (row, column), the lesion. `regions` are the shares in [0, 1] of each
    pixel that `body`, `lungs`, `vessels` (of the lungs), `heart` and `vertebra` fill.
    """

    scan: Scan
    mask: np.ndarray
    regions: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lesion:
    centre: tuple[float, float]  # x, y in millimetres of the scanner
    diameter: float
    density: float
    side: str
    lobes: np.ndarray  # (K, 3): order, depth, phase of the waves on its outline
    rough: Waves
    softness: float  # width of the edge as a share of the radius
    frayed: float  # roughness of the edge as a share of the radius


def phantom_scan(
    patient: int, scan: int, *, label: str | None = None, size: int = 128, seed: int = 0, rare_share: float = 0.05
) -> PhantomScan:
    """Return scan number `scan` of a patient, drawn in memory.

    Without a `label` the patient's class is drawn with the shares of the cohort. Patients from `FRESH_PATIENTS` on are
    in no cohort of `write_phantom`: any number of independent scans of the same distribution. Raises `ConfigError`.
    """
    _check(size, rare_share)
    if label is None:
        label = str(numpy_generator(seed, "phantom", "label", patient).choice(CLASSES, p=_shares(rare_share)))
    if label not in CLASSES:
        raise ConfigError(f"label: need one of {', '.join(CLASSES)}, got {label!r}; try {RARE}")
    anatomy, pose, lesion = _subject(patient, scan, label, seed)
    scanner = _slice_points(size)
    painting = paint(anatomy, pose, scanner)
    vessels = draw_vessels(anatomy, pose, scanner) * painting.lungs
    tissue = painting.lung_tissue(anatomy)
    mask = np.zeros(scanner.x.shape, dtype=bool)
    if lesion is not None:
        distance, mask = _outline(lesion, scanner, painting)
    if lesion is not None and label == RARE:  # haze lies under the vessels
        share = _edge(distance / (lesion.softness * lesion.diameter / 2))
        uneven = 0.6 * tissue + 18 * lesion.rough.at(scanner)
        # Without its own mean, which would move the density away from the stated one (the lung is denser at the back).
        uneven -= (uneven * share * mask).sum() / (share * mask).sum()
        tissue += share * (lesion.density + uneven - tissue)
    tissue += vessels * (40.0 - tissue)
    if lesion is not None and label == SOLID:
        tissue += scanner.cover(distance) * (lesion.density + 4 * lesion.rough.at(scanner) - tissue)
    hu = painting.hu + painting.lungs * (tissue - painting.hu)
    hu += _noise(hu.shape, painting.body, scanner.voxel, numpy_generator(seed, "phantom", "noise", patient, scan, size))
    affine = PICTURE_AFFINE @ np.diag([scanner.voxel, scanner.voxel, scanner.voxel, 1])
    affine[:3, 3] = -scanner.x[0, 0], -scanner.y[0, 0], pose.level
    array = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)[None]
    regions = {name: getattr(painting, name) for name in ("body", "lungs", "heart", "vertebra")} | {"vessels": vessels}
    return PhantomScan(
        scan=Scan(array=array, affine=affine, label=label, attributes=_attributes(lesion)), mask=mask, regions=regions
    )


def _subject(patient: int, scan: int, label: str, seed: int) -> tuple[Anatomy, Pose, _Lesion | None]:
    anatomy, level = _patient(seed, patient)
    pose = _draw_pose(level, numpy_generator(seed, "phantom", "pose", patient, scan))
    if label == NORMAL:
        return anatomy, pose, None
    return anatomy, pose, _draw_lesion(label, anatomy, pose, numpy_generator(seed, "phantom", "lesion", patient, scan))


def _attributes(lesion: _Lesion | None) -> dict[str, float | str]:
    if lesion is None:
        return {}
    return {"diameter_mm": lesion.diameter, "density_hu": lesion.density, "side": lesion.side}


def _check(size: int, rare_share: float) -> None:
    if size < 16:
        raise ConfigError(f"size: need at least 16 pixels, got {size}; try 128")
    if not 0 <= rare_share <= 0.5:
        raise ConfigError(f"rare_share: need a share from 0 to 0.5, got {rare_share}; try 0.05")


def _shares(rare_share: float) -> list[float]:
    return [(1 - rare_share) * 60 / 95, (1 - rare_share) * 35 / 95, rare_share]


@lru_cache(maxsize=4)
def _patient(seed: int, patient: int) -> tuple[Anatomy, float]:
    random = numpy_generator(seed, "phantom", "patient", patient)
    level = float(random.uniform(-52, 34))
    return draw_anatomy(random), level


def _draw_pose(level: float, random: np.random.Generator) -> Pose:
    shift = (float(random.normal(0, 2.5)), float(random.normal(0, 3.5)))
    angle = float(random.normal(0, 0.025))
    return Pose(
        level=level + float(random.uniform(-14, 14)), shift=shift, angle=angle, breath=float(random.normal(1, 0.012))
    )


def _slice_points(size: int) -> Points:
    voxel = FIELD_OF_VIEW / size
    steps = ((np.arange(size) - (size - 1) / 2) * voxel).astype(np.float32)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return Points(x=x, y=y, z=np.zeros_like(x), voxel=voxel)


def _draw_lesion(label: str, anatomy: Anatomy, pose: Pose, random: np.random.Generator) -> _Lesion:
    """Draw a lesion that fits into one lung; it does not depend on the pixel size, since places lie on a grid of 4 mm."""
    smallest, largest = DIAMETERS[label]
    side = "left" if random.random() < 0.5 else "right"
    diameter = smallest + (largest - smallest) * float(
        random.beta(1.9, 2.1) if label == SOLID else random.beta(2.4, 1.8)
    )
    thinnest, densest = DENSITIES[label]
    density = thinnest + (densest - thinnest) * float(
        random.beta(1.0, 1.0) if label == SOLID else random.beta(2.4, 1.6)
    )
    coarse = _slice_points(80)
    inside = (lung(anatomy, to_anatomy(anatomy, pose, coarse)) < 0) & ((coarse.x > 0) == (side == "left"))
    depth = distance_transform_edt(inside) * coarse.voxel
    diameter = round(max(smallest, min(diameter, 1.7 * float(depth.max()))), 1)
    deep = np.flatnonzero(depth.ravel() >= min(1.15 * diameter / 2 + 2, 0.98 * float(depth.max())))
    place = random.choice(deep)
    orders = np.arange(2, 8)
    height = (0.07 if label == SOLID else 0.17) / (orders - 1) ** 0.6
    depths = height * random.normal(size=len(orders))
    return _Lesion(
        centre=(float(coarse.x.flat[place]), float(coarse.y.flat[place])),
        diameter=diameter,
        density=round(density, 0),
        side=side,
        lobes=np.stack([orders, depths, random.uniform(0, 2 * np.pi, len(orders))], axis=1),
        rough=Waves.draw(random, length=max(7.0, 0.45 * diameter), height=1.0),
        softness=float(random.uniform(0.35, 0.55)),
        frayed=0.0 if label == SOLID else 0.07,
    )


def _outline(lesion: _Lesion, scanner: Points, painting: Painting) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the lesion's edge and its mask, whose area is that of a disc of the diameter to half a pixel."""
    x, y = scanner.x - lesion.centre[0], scanner.y - lesion.centre[1]
    angle = np.arctan2(y, x)
    outline = 1 + sum(depth * np.cos(order * angle + phase) for order, depth, phase in lesion.lobes)
    radius = np.sqrt(x * x + y * y + scanner.z**2) / np.maximum(outline, 0.4)
    radius += lesion.frayed * lesion.diameter / 2 * lesion.rough.at(scanner)
    allowed = (painting.lungs > 0.5) & ((painting.points.x > 0) == (lesion.side == "left"))
    ordered = np.sort(radius[allowed])
    count = min(max(1, round(np.pi / 4 * (lesion.diameter / scanner.voxel) ** 2)), len(ordered) - 1)
    edge = (ordered[count - 1] + ordered[count]) / 2
    return radius - edge, allowed & (radius < edge)


def _edge(distance: np.ndarray) -> np.ndarray:
    """Return a smooth fall from 1 to 0 while the distance goes from -0.5 to 0.5."""
    share = np.clip(0.5 - distance, 0, 1)
    return share * share * (3 - 2 * share)


def _noise(shape: tuple[int, ...], body: np.ndarray, voxel: float, random: np.random.Generator) -> np.ndarray:
    """Return CT noise: correlated over about 1.6 mm, and stronger where more of the body weakens the beam."""
    width = max(0.45, 1.6 / voxel)
    grain = gaussian_filter(random.standard_normal(shape), width)
    grain /= grain.std()
    return grain * random.uniform(15, 25) * (0.35 + 0.65 * gaussian_filter(body, 8 / voxel))


# The cohort ------------------------------------------------------------------------------------------------------------


def cohort_plan(*, scans: int, seed: int = 0, rare_share: float = 0.05) -> Iterator[tuple[int, int, str, str]]:
    """Yield (patient, scan, label, split) of a cohort; a larger cohort begins with the patients of a smaller one.

    Each patient has one label, two or three scans and one split. The first patients go round the classes and the
    splits, so that small cohorts have all of them; from then on the next patient goes where most scans (class) or
    patients (split) are missing, so that shares are met to about one patient.
    """
    shares = {label: share for label, share in zip(CLASSES, _shares(rare_share), strict=True) if share > 0}
    held, placed = dict.fromkeys(shares, 0), {label: dict.fromkeys(_SPLITS, 0) for label in shares}
    patient, left = 0, scans
    while left > 0:
        count = min(left, int(numpy_generator(seed, "phantom", "scans", patient).integers(2, 4)))
        total = sum(held.values()) + count
        if patient < 3 * len(shares):
            label = list(shares)[patient % len(shares)]
        else:
            label = max(shares, key=lambda name: shares[name] * total - held[name])
        splits = placed[label]
        number = sum(splits.values())
        split = (
            list(_SPLITS)[(0, 2, 1)[number % 3]]
            if number < 6
            else max(_SPLITS, key=lambda name: _SPLITS[name] * (number + 1) - splits[name])
        )
        held[label] += count
        splits[split] += 1
        for scan in range(count):
            yield patient, scan, label, split
        patient, left = patient + 1, left - count


def write_phantom(
    out: Path, *, scans: int = 400, size: int = 128, seed: int = 0, rare_share: float = 0.05, progress: bool = True
) -> Path:
    """Write a phantom cohort (scans and lesion masks as `.nii.gz`) below `out` and return its `cohort.csv`.

    Classes are `normal` (about 60 %), `solid_nodule` (35 %) and the rare `ground_glass`. The same arguments give
    the same bytes; a folder that they have written is left as it is, and one that was interrupted is completed. Raises
    `ConfigError`, also for a folder with anything else in it.
    """
    _check(size, rare_share)
    if scans < 1:
        raise ConfigError(f"scans: need at least 1, got {scans}; try 400")
    out, rows = Path(out), []
    try:
        _claim_folder(out, {"scans": scans, "size": size, "seed": seed, "rare_share": rare_share, "format": FORMAT})
    except OSError as error:
        raise ConfigError(f"{out}: need a folder to write in, got {reason_of(error)}; try another --out") from error
    if (out / "cohort.csv").exists():  # it is written last
        return out / "cohort.csv"
    plan = cohort_plan(scans=scans, seed=seed, rare_share=rare_share)
    for patient, scan, label, split in tqdm(plan, total=scans, desc="phantom", unit="scan", disable=not progress):
        name = f"phantom-{patient:05d}-{scan}.nii.gz"
        mask_file = out / "masks" / name
        # Files are whole or absent, and a scan comes after its mask.
        if (out / "scans" / name).exists() and (label == NORMAL or mask_file.exists()):
            attributes = _attributes(_subject(patient, scan, label, seed)[2])
        else:
            drawn = phantom_scan(patient, scan, label=label, size=size, seed=seed)
            attributes = dict(drawn.scan.attributes)
            if drawn.mask.any():
                mask = Scan(array=drawn.mask[None].astype(np.uint8), affine=drawn.scan.affine, label=label)
                write_scan(mask, mask_file)
            write_scan(drawn.scan, out / "scans" / name)
        rows.append(
            Row(
                path=f"scans/{name}",
                label=label,
                patient_id=f"phantom-{patient:05d}",
                split=split,
                mask=f"masks/{name}" if mask_file.exists() else None,
                attributes={
                    key: f"{value:g}" if isinstance(value, float) else value for key, value in attributes.items()
                },
            )
        )
    write_cohort(Cohort(folder=out.absolute(), rows=tuple(rows)), out / "cohort.csv")
    return out / "cohort.csv"


def _claim_folder(out: Path, settings: dict[str, float]) -> None:
    """Note the settings in the folder; `ConfigError` if it holds anything but a phantom cohort of the same ones."""
    file = out / "phantom.json"
    if not file.exists():
        # Hidden files (of a file manager, or of a write that was killed) are in nobody's way.
        if out.exists() and (others := sorted(path.name for path in out.iterdir() if not path.name.startswith("."))):
            raise ConfigError(
                f"{out}: need an empty folder or a phantom cohort, got a folder with {others[0]!r}; try another --out"
            )
        write_json(file, settings)
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file}: need JSON, got {error}; try another --out") from error
    there = there if isinstance(there, dict) else {}
    if changed := [f"{key} {there.get(key)}" for key, value in settings.items() if there.get(key) != value]:
        wanted = ", ".join(f"{key} {value}" for key, value in settings.items() if there.get(key) != value)
        raise ConfigError(f"{out}: need a phantom cohort with {wanted}, got {', '.join(changed)}; try another --out")
