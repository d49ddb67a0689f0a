"""The phantom cohort: CT-like slices and volumes of the chest whose true distribution is known, drawn without any download.

A scan is a function of (seed, patient, scan, label). Anatomy, pose and noise do not depend on the label, so the same
patient and scan under another label is its true counterfactual.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter
from tqdm import tqdm

from medsynth.cohorts.contrasts import CONTRASTS, draw_contrasts
from medsynth.cohorts.lesion import (
    NORMAL,
    RARE,
    SOLID,
    Lesion,
    draw_ball,
    draw_disc,
    lay_haze,
    lay_nodule,
    outline_lesion,
)
from medsynth.cohorts.manifest import Cohort, Row, reason_of, write_cohort
from medsynth.cohorts.painting import paint
from medsynth.cohorts.thorax import Anatomy, Points, Pose, draw_anatomy, draw_vessels, lung, to_anatomy
from medsynth.errors import ConfigError
from medsynth.files import write_json
from medsynth.scans import PICTURE_AFFINE, Scan, write_scan
from medsynth.scans.npz import VOLUME_AFFINE
from medsynth.seeds import numpy_generator

FORMAT = 1  # raise it when the same settings would give other scans
CLASSES = (NORMAL, SOLID, RARE)
FIELD_OF_VIEW = 320.0  # mm, of a slice
VOLUME_FIELD = 64.0  # mm, of a volume
_OFF_CENTRE = 6.0  # mm from the middle of a volume to that of its lesion, at most along each axis
FRESH_PATIENTS = 1_000_000  # cohorts number their patients from 0; numbers from here on are never in one
_SPLITS = {"train": 0.65, "val": 0.15, "test": 0.20}


@dataclass(frozen=True, kw_only=True, eq=False)
class PhantomScan:
    """A phantom scan and what is true of it.

    `scan.array` is int16 (1, row, column) in HU; `scan.attributes` holds `diameter_mm`, `density_hu` and `side` of the
    lesion, and nothing without one. `mask` is bool (row, column), the lesion. `regions` are the shares in [0, 1] of each
    pixel that `body`, `lungs`, `vessels` (of the lungs), `heart` and `vertebra` fill. `contrasts` are what `draw_contrasts` makes
    of it, where they are wanted.
    """

    scan: Scan
    mask: np.ndarray
    regions: dict[str, np.ndarray]
    contrasts: dict[str, Scan] = field(default_factory=dict)


def phantom_scan(
    patient: int,
    scan: int,
    *,
    label: str | None = None,
    size: int = 128,
    seed: int = 0,
    rare_share: float = 0.05,
    contrasts: bool = False,
) -> PhantomScan:
    """Return slice number `scan` of a patient, drawn in memory.

    Without a `label` the patient's class is drawn with the shares of the cohort. Patients from `FRESH_PATIENTS` on are
    in no cohort of `write_phantom`: any number of independent scans of the same distribution. Raises `ConfigError`.
    """
    _check(size, rare_share)
    label = _label_of(patient, label, seed, rare_share)
    anatomy, pose, lesion = _slice_subject(patient, scan, label, seed)
    scanner = _slice_points(size)
    noise = numpy_generator(seed, "phantom", "noise", patient, scan, size)
    tissue, hu, mask, regions = _draw(anatomy, pose, lesion, scanner, noise)
    affine = PICTURE_AFFINE @ np.diag([scanner.voxel, scanner.voxel, scanner.voxel, 1])
    affine[:3, 3] = -scanner.x[0, 0], -scanner.y[0, 0], pose.level
    made = Scan(array=hu[None], affine=affine, label=label, attributes=_attributes(lesion))
    random = numpy_generator(seed, "phantom", "contrasts", patient, scan, size)
    others = draw_contrasts(tissue, regions, mask, label, random) if contrasts else {}
    return PhantomScan(
        scan=made,
        mask=mask,
        regions=regions,
        contrasts={name: replace(made, array=array[None]) for name, array in others.items()},
    )


def phantom_volume(
    patient: int,
    scan: int,
    *,
    label: str | None = None,
    size: int = 32,
    seed: int = 0,
    rare_share: float = 0.05,
    contrasts: bool = False,
) -> PhantomScan:
    """Return volume number `scan` of a patient, drawn in memory: a cube of `VOLUME_FIELD` mm about a place in a lung.

    A lesion lies within `_OFF_CENTRE` mm of the cube's middle. Arguments and errors are those of `phantom_scan`; arrays
    are (slice towards the head, row towards the back, column towards the left), attributes have `place` as well.
    """
    _check(size, rare_share)
    label = _label_of(patient, label, seed, rare_share)
    anatomy, pose, centre, lesion = _volume_subject(patient, scan, label, seed)
    scanner = _cube_points(centre, size, VOLUME_FIELD / size)
    noise = numpy_generator(seed, "phantom", "volume noise", patient, scan, size)
    tissue, hu, mask, regions = _draw(anatomy, pose, lesion, scanner, noise)
    affine = VOLUME_AFFINE @ np.diag([scanner.voxel, scanner.voxel, scanner.voxel, 1])
    affine[:3, 3] = -scanner.x[0, 0, 0], -scanner.y[0, 0, 0], pose.level + scanner.z[0, 0, 0]
    made = Scan(array=_slices_first(hu)[None], affine=affine, label=label, attributes=_attributes(lesion))
    random = numpy_generator(seed, "phantom", "volume contrasts", patient, scan, size)
    others = draw_contrasts(tissue, regions, mask, label, random) if contrasts else {}
    return PhantomScan(
        scan=made,
        mask=_slices_first(mask),
        regions={name: _slices_first(share) for name, share in regions.items()},
        contrasts={name: replace(made, array=_slices_first(array)[None]) for name, array in others.items()},
    )


def _draw(
    anatomy: Anatomy, pose: Pose, lesion: Lesion | None, scanner: Points, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return HU without noise, int16 HU, the mask of the lesion and the regions at points of any rank.

    `random` draws the noise.
    """
    painting = paint(anatomy, pose, scanner)
    vessels = draw_vessels(anatomy, pose, scanner) * painting.lungs
    tissue = painting.lung_tissue(anatomy)
    mask = np.zeros(scanner.x.shape, dtype=bool)
    if lesion is not None:
        distance, mask = outline_lesion(lesion, scanner, painting)
    if lesion is not None and lesion.label == RARE:  # haze lies under the vessels
        lay_haze(tissue, lesion, scanner, distance, mask)
    tissue += vessels * (40.0 - tissue)
    if lesion is not None and lesion.label == SOLID:
        lay_nodule(tissue, lesion, scanner, distance)
    hu = painting.hu + painting.lungs * (tissue - painting.hu)
    plain = hu.copy()
    hu += _noise(hu.shape, painting.body, scanner.voxel, random)
    regions = {name: getattr(painting, name) for name in ("body", "lungs", "heart", "vertebra")} | {"vessels": vessels}
    return plain, np.clip(np.rint(hu), -1024, 3071).astype(np.int16), mask, regions


def _slices_first(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, 2, 0))


def _label_of(patient: int, label: str | None, seed: int, rare_share: float) -> str:
    if label is None:
        label = str(numpy_generator(seed, "phantom", "label", patient).choice(CLASSES, p=_shares(rare_share)))
    if label not in CLASSES:
        raise ConfigError(f"label: need one of {', '.join(CLASSES)}, got {label!r}; try {RARE}")
    return label


def _slice_subject(patient: int, scan: int, label: str, seed: int) -> tuple[Anatomy, Pose, Lesion | None]:
    anatomy, level = _patient(seed, patient)
    pose = _draw_pose(level, numpy_generator(seed, "phantom", "pose", patient, scan))
    if label == NORMAL:
        return anatomy, pose, None
    random = numpy_generator(seed, "phantom", "lesion", patient, scan)
    side = _draw_side(random)
    coarse = _slice_points(80)  # places lie on a grid of 4 mm, whatever the pixel size
    depth = _depth(anatomy, pose, coarse, side)
    return anatomy, pose, draw_disc(label, side=side, scanner=coarse, depth=depth, random=random)


def _volume_subject(
    patient: int, scan: int, label: str, seed: int
) -> tuple[Anatomy, Pose, tuple[float, float], Lesion | None]:
    """Return also where (x, y) the cube lies: about a place of the lung in the slice of that number, whatever the label."""
    anatomy, level = _patient(seed, patient)
    pose = _draw_pose(level, numpy_generator(seed, "phantom", "pose", patient, scan))
    random = numpy_generator(seed, "phantom", "volume place", patient, scan)
    side, plane = _draw_side(random), _slice_points(80)
    depth = _depth(anatomy, pose, plane, side)
    place = random.choice(np.flatnonzero(depth.ravel() >= min(10.0, 0.9 * float(depth.max()))))
    centre = float(plane.x.flat[place]), float(plane.y.flat[place])
    if label == NORMAL:
        return anatomy, pose, centre, None
    coarse = _cube_points(centre, 23, 3.0)
    depth = _depth(anatomy, pose, coarse, side)
    off = np.maximum(np.abs(coarse.x - centre[0]), np.abs(coarse.y - centre[1]))
    depth[np.maximum(off, np.abs(coarse.z)) > _OFF_CENTRE] = 0
    random = numpy_generator(seed, "phantom", "volume lesion", patient, scan)
    return anatomy, pose, centre, draw_ball(label, side=side, scanner=coarse, depth=depth, random=random)


def _draw_side(random: np.random.Generator) -> str:
    return "left" if random.random() < 0.5 else "right"


def _depth(anatomy: Anatomy, pose: Pose, points: Points, side: str) -> np.ndarray:
    """Return how many millimetres points on a regular grid lie within the lung of one side, 0 outside."""
    inside = (lung(anatomy, to_anatomy(anatomy, pose, points)) < 0) & ((points.x > 0) == (side == "left"))
    return distance_transform_edt(inside) * points.voxel


def _attributes(lesion: Lesion | None) -> dict[str, float | str]:
    return {} if lesion is None else lesion.attributes


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


def _cube_points(centre: tuple[float, float], size: int, voxel: float) -> Points:
    """Return a cube of the scanner about (x, y) in the slice, its axes in the order of `draw_vessels`."""
    steps = ((np.arange(size) - (size - 1) / 2) * voxel).astype(np.float32)
    y, x, z = np.meshgrid(steps + np.float32(centre[1]), steps + np.float32(centre[0]), steps, indexing="ij")
    return Points(x=x, y=y, z=z, voxel=voxel)


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
    out: Path,
    *,
    scans: int = 400,
    size: int | None = None,
    volumes: bool = False,
    contrasts: bool = False,
    seed: int = 0,
    rare_share: float = 0.05,
    progress: bool = True,
) -> Path:
    """Write a phantom cohort (scans and lesion masks as `.nii.gz`) below `out` and return its `cohort.csv`.

    Scans are slices of 128 pixels along each axis, or with `volumes` cubes of 32 voxels, unless `size` says otherwise.
    With `contrasts` each has two further sequences, `t1` and `t2`. Classes are `normal` (about 60 %), `solid_nodule` (35 %) and
    the rare `ground_glass`. The same arguments give the same bytes; a folder that they have written is left as it is, and one
    that was interrupted is completed. Raises `ConfigError`, also for a folder with anything else in it.
    """
    size = (32 if volumes else 128) if size is None else size
    _check(size, rare_share)
    if scans < 1:
        raise ConfigError(f"scans: need at least 1, got {scans}; try 400")
    out, rows = Path(out), []
    try:
        settings = {"scans": scans, "size": size, "seed": seed, "rare_share": rare_share, "format": FORMAT}
        kinds = {name: True for name, wanted in (("volumes", volumes), ("contrasts", contrasts)) if wanted}
        _claim_folder(out, settings | kinds)
    except OSError as error:
        raise ConfigError(f"{out}: need a folder to write in, got {reason_of(error)}; try another --out") from error
    if (out / "cohort.csv").exists():  # it is written last
        return out / "cohort.csv"
    draw = phantom_volume if volumes else phantom_scan
    plan = cohort_plan(scans=scans, seed=seed, rare_share=rare_share)
    for patient, scan, label, split in tqdm(plan, total=scans, desc="phantom", unit="scan", disable=not progress):
        name = f"phantom-{patient:05d}-{scan}.nii.gz"
        mask_file = out / "masks" / name
        sequences = {each: f"{each}/{name}" for each in CONTRASTS} if contrasts else {}
        # Files are whole or absent, and a scan comes after its mask and sequences.
        if (out / "scans" / name).exists() and (label == NORMAL or mask_file.exists()):
            subject = _volume_subject if volumes else _slice_subject
            attributes = _attributes(subject(patient, scan, label, seed)[-1])
        else:
            drawn = draw(patient, scan, label=label, size=size, seed=seed, contrasts=contrasts)
            attributes = dict(drawn.scan.attributes)
            if drawn.mask.any():
                mask = Scan(array=drawn.mask[None].astype(np.uint8), affine=drawn.scan.affine, label=label)
                write_scan(mask, mask_file)
            for each, file in sequences.items():
                write_scan(drawn.contrasts[each], out / file)
            write_scan(drawn.scan, out / "scans" / name)
        rows.append(
            Row(
                path=f"scans/{name}",
                label=label,
                patient_id=f"phantom-{patient:05d}",
                split=split,
                mask=f"masks/{name}" if mask_file.exists() else None,
                sequences=sequences,
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
    plain = {"volumes": False, "contrasts": False}
    wanted, got = plain | settings, plain | there
    if keys := [key for key in wanted if got.get(key) != wanted[key]]:
        wish, found = (", ".join(f"{key} {values.get(key)}" for key in keys) for values in (wanted, got))
        raise ConfigError(f"{out}: need a phantom cohort with {wish}, got {found}; try another --out")
