"""The phantom cohort: CT-like slices and volumes of the chest whose true distribution is known, drawn without any download.

A scan is a function of (seed, patient, scan, label). Anatomy, pose and noise do not depend on the label, so the same
patient and scan under another label is its true counterfactual.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter
from tqdm import tqdm

from medsynth.cohorts.manifest import Cohort, Row, reason_of, write_cohort
from medsynth.cohorts.thorax import Anatomy, Chest, Points, Pose, Waves
from medsynth.config import DemoOptions, changed_options
from medsynth.errors import ConfigError
from medsynth.files import read_json, remove_partial, write_json
from medsynth.scans import PICTURE_AFFINE, Scan, write_scan
from medsynth.scans.npz import VOLUME_AFFINE
from medsynth.seeds import numpy_generator

FORMAT = 1  # raise it when the same settings would give other scans
NORMAL, SOLID, RARE = CLASSES = ("normal", "solid_nodule", "ground_glass")
FIELD_OF_VIEW = 320.0  # mm, of a slice
VOLUME_FIELD = 64.0  # mm, of a volume
FRESH_PATIENTS = 1_000_000  # cohorts number their patients from 0; numbers from here on are never in one
# Least and most, and the parameters of the beta distribution between them.
DIAMETERS = {SOLID: (6.0, 30.0, 1.9, 2.1), RARE: (10.0, 40.0, 2.4, 1.8)}  # mm
DENSITIES = {SOLID: (30.0, 80.0, 1.0, 1.0), RARE: (-650.0, -350.0, 2.4, 1.6)}  # HU
_OFF_CENTRE = 6.0  # mm from the middle of a volume to that of its lesion, at most along each axis
_SPLITS = {"train": 0.65, "val": 0.15, "test": 0.20}

# Two further sequences, as an MR scanner might show the anatomy: the signal at the HU of air, lung, fat, water, muscle, spongy
# and compact bone; then that of what has no HU of its own: flowing blood, a solid nodule, a ground-glass opacity.
_HU = (-1000.0, -850.0, -100.0, 0.0, 52.0, 220.0, 600.0)
CONTRASTS = {"t1": (10, 45, 820, 170, 350, 620, 60), "t2": (10, 70, 520, 800, 190, 430, 40)}
_BLOOD = {"t1": 110.0, "t2": 70.0}
_LESIONS = {SOLID: {"t1": 330.0, "t2": 560.0}, RARE: {"t1": 120.0, "t2": 330.0}}


@dataclass(frozen=True, kw_only=True, eq=False)
class PhantomScan:
    """A phantom scan and what is true of it.

    `scan.array` is int16 in HU, (1, row, column) or (1, slice, row, column); `scan.attributes` holds `diameter_mm`,
    `density_hu` and `side` of a lesion, in a volume also `place`. `mask` (bool) is the lesion. `regions` are the shares
    in [0, 1] of each voxel that `body`, `lungs`, `vessels` (of the lungs), `heart` and `vertebra` fill. `contrasts` are
    further sequences.
    """

    scan: Scan
    mask: np.ndarray
    regions: dict[str, np.ndarray]
    contrasts: dict[str, Scan] = field(default_factory=dict)


def phantom_scan(
    patient: int,
    scan: int,
    *,
    label: str,
    size: int = 128,
    seed: int = 0,
    volume: bool = False,
    contrasts: bool = False,
) -> PhantomScan:
    """Return scan number `scan` of a patient, drawn in memory: a slice, or a cube of `VOLUME_FIELD` mm around a place in a lung.

    Patients from `FRESH_PATIENTS` on are in no cohort of `write_phantom`: any number of independent scans of the same
    distribution. Raises `ConfigError` for a label that is not in `CLASSES`.
    """
    if label not in CLASSES:
        raise ConfigError(f"label: need one of {', '.join(CLASSES)}, got {label!r}; try {RARE}")
    kind = "volume " if volume else ""
    anatomy, pose, centre, lesion = _subject(patient, scan, label, seed, volume=volume)
    scanner = _grid(size, (VOLUME_FIELD if volume else FIELD_OF_VIEW) / size, centre)
    chest = Chest(anatomy, pose, scanner)
    plain, mask = _fill_lungs(chest, lesion)
    noise = _noise(chest, numpy_generator(seed, "phantom", f"{kind}noise", patient, scan, size))
    hu = np.clip(np.rint((plain + noise).astype(np.float32)), -1024, 3071).astype(np.int16)
    affine = (VOLUME_AFFINE if volume else PICTURE_AFFINE) @ np.diag([*[scanner.voxel] * 3, 1])
    affine[:3, 3] = -scanner.x.flat[0], -scanner.y.flat[0], pose.level + scanner.z.flat[0]
    images = {"scan": hu, "mask": mask}
    images |= {name: getattr(chest, name) for name in ("body", "lungs", "heart", "vertebra", "vessels")}
    if contrasts:
        random = numpy_generator(seed, "phantom", f"{kind}contrasts", patient, scan, size)
        images |= _draw_contrasts(plain, chest, mask, label, random)
    if volume:  # slices first
        images = {name: np.ascontiguousarray(np.moveaxis(image, 2, 0)) for name, image in images.items()}
    attributes = {} if lesion is None else lesion.attributes
    made = Scan(array=images.pop("scan")[None], affine=affine, label=label, attributes=attributes)
    others = {name: replace(made, array=images.pop(name)[None]) for name in CONTRASTS if name in images}
    return PhantomScan(scan=made, mask=images.pop("mask"), regions=images, contrasts=others)


# Drawing ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lesion:
    """A solid nodule or a ground-glass opacity: a dented disc in a slice, a dented ball in a volume."""

    label: str
    centre: tuple[float, float, float]  # x, y, z in millimetres of the scanner
    diameter: float
    density: float
    side: str
    place: str  # of a ball: `subpleural` where it reaches the edge of the lung or nearly so, else `inner`
    outline: np.ndarray | tuple[Waves, Waves]  # of a disc (K, 3): order, depth, phase; of a ball: lobes and spikes
    rough: Waves
    softness: float  # width of the edge as a share of the radius

    @property
    def attributes(self) -> dict[str, float | str]:
        known: dict[str, float | str] = {"diameter_mm": self.diameter, "density_hu": self.density, "side": self.side}
        return known | ({"place": self.place} if self.place else {})


@lru_cache(maxsize=4)
def _patient(seed: int, patient: int) -> tuple[Anatomy, float]:
    random = numpy_generator(seed, "phantom", "patient", patient)
    level = random.uniform(-52, 34)
    return Anatomy(random), level


def _subject(
    patient: int, scan: int, label: str, seed: int, *, volume: bool
) -> tuple[Anatomy, Pose, tuple[float, ...], _Lesion | None]:
    """Return anatomy, pose, the middle (x, y, z) of a volume (of a slice `()`), and the lesion if there is one."""
    anatomy, level = _patient(seed, patient)
    random = numpy_generator(seed, "phantom", "pose", patient, scan)
    shift, angle = (random.normal(0, 2.5), random.normal(0, 3.5)), random.normal(0, 0.025)
    pose = Pose(level=level + random.uniform(-14, 14), shift=shift, angle=angle, breath=random.normal(1, 0.012))
    if label == NORMAL and not volume:
        return anatomy, pose, (), None
    random = numpy_generator(seed, "phantom", "volume place" if volume else "lesion", patient, scan)
    side = "left" if random.random() < 0.5 else "right"
    centre: tuple[float, ...] = ()
    coarse = _grid(80, 4.0)  # places are on a grid of 4 mm at any pixel size
    depth = _depth(anatomy, pose, coarse, side)
    if volume:  # around a place of the lung in the slice of that number, for any label
        place = random.choice(np.flatnonzero(depth.ravel() >= min(10.0, 0.9 * float(depth.max()))))
        centre = (float(coarse.x.flat[place]), float(coarse.y.flat[place]), 0.0)
        if label == NORMAL:
            return anatomy, pose, centre, None
        coarse = _grid(23, 3.0, centre)
        depth = _depth(anatomy, pose, coarse, side)
        off = np.maximum(np.abs(coarse.x - centre[0]), np.abs(coarse.y - centre[1]))
        depth[np.maximum(off, np.abs(coarse.z)) > _OFF_CENTRE] = 0
        random = numpy_generator(seed, "phantom", "volume lesion", patient, scan)
    return anatomy, pose, centre, _draw_lesion(label, side, coarse, depth, random)


def _grid(size: int, voxel: float, centre: tuple[float, ...] = ()) -> Points:
    """Return the points of a slice, or of a cube around `centre`; rows along y, columns along x, the third axis along z."""
    steps = ((np.arange(size) - (size - 1) / 2) * voxel).astype(np.float32)
    axes = [steps + np.float32(centre[axis]) for axis in (1, 0, 2)] if centre else [steps, steps]
    y, x, *z = np.meshgrid(*axes, indexing="ij")
    return Points(x=x, y=y, z=z[0] if z else np.zeros_like(x), voxel=voxel)


def _depth(anatomy: Anatomy, pose: Pose, points: Points, side: str) -> np.ndarray:
    """Return how many millimetres points on a regular grid lie within the lung of one side, 0 outside."""
    inside = (anatomy.lungs(anatomy.place(pose, points)) < 0) & ((points.x > 0) == (side == "left"))
    return distance_transform_edt(inside) * points.voxel


def _draw_lesion(label: str, side: str, points: Points, depth: np.ndarray, random: np.random.Generator) -> _Lesion:
    """Draw a lesion at one of the points, `depth` mm deep in a lung; in volumes, four in ten lie at its edge if possible."""
    least, most, *beta = DIAMETERS[label]
    diameter = least + (most - least) * random.beta(beta[0], beta[1])
    diameter = round(max(least, min(diameter, 1.7 * float(depth.max()))), 1)
    thinnest, densest, *beta = DENSITIES[label]
    density = round(thinnest + (densest - thinnest) * random.beta(beta[0], beta[1]), 0)
    deep = np.flatnonzero(depth.ravel() >= min(1.15 * diameter / 2 + 2, 0.98 * float(depth.max())))
    outline: np.ndarray | tuple[Waves, Waves]
    if depth.ndim == 3:
        edge = np.flatnonzero((depth.ravel() > 0.3 * diameter) & (depth.ravel() <= 0.5 * diameter))
        place = random.choice(edge if random.random() < 0.4 and len(edge) > 0 else deep)
        lobes, spikes = (0.10, 0.09) if label == SOLID else (0.14, 0.06)
        coarse, height = Waves.draw(random, length=2.2, height=lobes), spikes * random.beta(1.2, 1.5)
        outline = coarse, Waves.draw(random, length=0.75, height=height)
    else:
        place, orders = random.choice(deep), np.arange(2, 8)
        depths = (0.07 if label == SOLID else 0.17) / (orders - 1) ** 0.6 * random.normal(size=len(orders))
        outline = np.stack([orders, depths, random.uniform(0, 2 * np.pi, len(orders))], axis=1)
    return _Lesion(
        label=label,
        centre=(float(points.x.flat[place]), float(points.y.flat[place]), float(points.z.flat[place])),
        diameter=diameter,
        density=density,
        side=side,
        place="" if depth.ndim == 2 else "subpleural" if depth.flat[place] <= 0.5 * diameter + 2 else "inner",
        outline=outline,
        rough=Waves.draw(random, length=max(7.0, 0.45 * diameter), height=1.0),
        softness=random.uniform(0.35, 0.55),
    )


def _fill_lungs(chest: Chest, lesion: _Lesion | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the HU of a chest without noise, with vessels and lesion, and the mask of the lesion."""
    tissue, mask = chest.tissue.copy(), np.zeros(chest.hu.shape, dtype=bool)
    if lesion is not None:
        distance, mask = _outline(lesion, chest)
        rough = lesion.rough.at(chest.scanner)
    if lesion is not None and lesion.label == RARE:  # haze lies under the vessels
        share = np.clip(0.5 - distance / (lesion.softness * lesion.diameter / 2), 0, 1)
        share = share * share * (3 - 2 * share)
        uneven = 0.6 * tissue + 18 * rough
        # Without its own mean, which would move the density from the stated one (the lung is denser at the back).
        uneven -= (uneven * share * mask).sum() / (share * mask).sum()
        tissue += share * (lesion.density + uneven - tissue)
    tissue += chest.vessels * (40.0 - tissue)
    if lesion is not None and lesion.label == SOLID:
        tissue += chest.scanner.cover(distance) * (lesion.density + 4 * rough - tissue)
    return chest.hu + chest.lungs * (tissue - chest.hu), mask


def _outline(lesion: _Lesion, chest: Chest) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the lesion's edge, and a mask of the area or volume of its diameter, to half a voxel."""
    scanner = chest.scanner
    x, y, z = (axis - middle for axis, middle in zip((scanner.x, scanner.y, scanner.z), lesion.centre, strict=True))
    radius = np.sqrt(x * x + y * y + z**2)
    if isinstance(lesion.outline, tuple):
        away = np.maximum(radius, 1e-6)
        sphere = Points(x=x / away, y=y / away, z=z / away)
        outline = 1 + sum(waves.at(sphere) for waves in lesion.outline)
    else:
        angle = np.arctan2(y, x)
        outline = 1 + sum(depth * np.cos(order * angle + phase) for order, depth, phase in lesion.outline)
    radius = radius / np.maximum(outline, 0.4)
    radius += (0.0 if lesion.label == SOLID else 0.07) * lesion.diameter / 2 * lesion.rough.at(scanner)  # a frayed edge
    allowed = (chest.lungs > 0.5) & ((chest.points.x > 0) == (lesion.side == "left"))
    ordered = np.sort(radius[allowed])
    across = lesion.diameter / scanner.voxel
    count = min(max(1, round(np.pi / 6 * across**3 if x.ndim == 3 else np.pi / 4 * across**2)), len(ordered) - 1)
    edge = (ordered[count - 1] + ordered[count]) / 2
    return radius - edge, allowed & (radius < edge)


def _noise(chest: Chest, random: np.random.Generator) -> np.ndarray:
    """Return CT noise: correlated over about 1.6 mm, and stronger where more of the body weakens the beam."""
    voxel = chest.scanner.voxel
    grain = gaussian_filter(random.standard_normal(chest.hu.shape), max(0.45, 1.6 / voxel))
    grain /= grain.std()
    return grain * random.uniform(15, 25) * (0.35 + 0.65 * gaussian_filter(chest.body, 8 / voxel))


def _draw_contrasts(
    tissue: np.ndarray, chest: Chest, mask: np.ndarray, label: str, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return `t1` and `t2`, int16 from 0, of `tissue` in HU: tissue values, brightness, smooth shading and noise are drawn."""
    lesion = gaussian_filter(mask.astype(np.float64), 0.5)
    blood = np.clip(chest.vessels * (1 - lesion) + chest.heart * np.clip(tissue / 40, 0, 1), 0, 1)
    axes = np.meshgrid(*(np.linspace(-1, 1, length) for length in tissue.shape), indexing="ij")
    made = {}
    for name, signals in CONTRASTS.items():
        signal = np.interp(tissue, _HU, np.array(signals) * np.exp(random.normal(0, 0.06, len(_HU))))
        signal += blood * (_BLOOD[name] * np.exp(random.normal(0, 0.15)) - signal)
        signal += lesion * (_LESIONS[label if label == RARE else SOLID][name] * np.exp(random.normal(0, 0.08)) - signal)
        brightness, shading = random.normal(0, 0.08), np.zeros(tissue.shape)
        for axis in axes:
            slope, bow = random.normal(0, 0.6, 2)
            shading += slope * axis + bow * (axis**2 - 1 / 3)
        noise, other = random.normal(0, 14.0, (2, *tissue.shape))  # in both parts of a signal that is a magnitude
        magnitude = np.hypot(signal * np.exp(brightness + 0.16 * shading) + noise, other)
        made[name] = np.clip(np.rint(magnitude), 0, 4095).astype(np.int16)
    return made


# The cohort ------------------------------------------------------------------------------------------------------------


def cohort_plan(*, scans: int, seed: int = 0, rare_share: float = 0.05) -> Iterator[tuple[int, int, str, str]]:
    """Yield (patient, scan, label, split) of a cohort; a larger cohort begins with the patients of a smaller one.

    Each patient has one label, two or three scans and one split. The first patients take the classes and the splits in
    turn, so that small cohorts have all of them; each later patient goes to the class with most scans, and the split
    with most patients, missing, so that shares are met to about one patient.
    """
    shares = {NORMAL: (1 - rare_share) * 60 / 95, SOLID: (1 - rare_share) * 35 / 95}
    shares |= {RARE: rare_share} if rare_share > 0 else {}
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
        if number < 6:
            split = ("train", "test", "val")[number % 3]
        else:
            split = max(_SPLITS, key=lambda name: _SPLITS[name] * (number + 1) - splits[name])
        held[label] += count
        splits[split] += 1
        yield from ((patient, scan, label, split) for scan in range(count))
        patient, left = patient + 1, left - count


def write_phantom(options: DemoOptions) -> Path:
    """Write a phantom cohort (scans and lesion masks as `.nii.gz`) below `out`, and return its `cohort.csv`.

    The same options give the same bytes. A folder that they have already filled is left as it is, an interrupted one is
    written again. Raises `ConfigError`, also for a folder with anything else in it.
    """
    size = (32 if options.volumes else 128) if options.size is None else options.size
    out, rows = Path(options.out), []
    names = ("scans", "seed", "rare_share", "volumes", "contrasts")
    _claim_folder(out, {name: getattr(options, name) for name in names} | {"size": size, "format": FORMAT})
    if (out / "cohort.csv").exists():  # it is written last
        return out / "cohort.csv"
    remove_partial(out)
    plan = cohort_plan(scans=options.scans, seed=options.seed, rare_share=options.rare_share)
    bar = tqdm(plan, total=options.scans, desc="phantom", unit="scan", disable=not options.progress)
    for patient, scan, label, split in bar:
        name = f"phantom-{patient:05d}-{scan}.nii.gz"
        kind = {"volume": options.volumes, "contrasts": options.contrasts}
        drawn = phantom_scan(patient, scan, label=label, size=size, seed=options.seed, **kind)
        images = {"scans": drawn.scan, **drawn.contrasts}
        if drawn.mask.any():
            images["masks"] = replace(drawn.scan, array=drawn.mask[None].astype(np.uint8), attributes={})
        for folder, image in images.items():
            write_scan(image, out / folder / name)
        facts = drawn.scan.attributes.items()
        rows.append(
            Row(
                path=f"scans/{name}",
                label=label,
                patient_id=f"phantom-{patient:05d}",
                split=split,
                mask=f"masks/{name}" if "masks" in images else None,
                sequences={sequence: f"{sequence}/{name}" for sequence in drawn.contrasts},
                attributes={key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in facts},
            )
        )
    write_cohort(Cohort(folder=out.absolute(), rows=tuple(rows)), out / "cohort.csv")
    return out / "cohort.csv"


def _claim_folder(out: Path, settings: dict[str, object]) -> None:
    """Note the settings in the folder; `ConfigError` if it holds anything but a phantom cohort of the same settings."""
    file = out / "phantom.json"
    try:
        if file.exists():
            there = read_json(file)
            if changes := ", ".join(changed_options(there if isinstance(there, dict) else {}, settings)):
                raise ConfigError(f"{out}: need the same options, got another one ({changes}); try another --out")
            return
        # Hidden files (of a file manager, or of a write that was killed) do no harm.
        if out.exists() and (others := sorted(path.name for path in out.iterdir() if not path.name.startswith("."))):
            raise ConfigError(f"{out}: need an empty folder or a phantom cohort, got {others[0]!r}; try another --out")
        write_json(file, settings)
    except ValueError as error:
        raise ConfigError(f"{file}: need JSON, got {error}; try another --out") from error
    except OSError as error:
        raise ConfigError(f"{out}: need a folder to write in, got {reason_of(error)}; try another --out") from error
