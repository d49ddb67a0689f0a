"""What the privacy gate measures synthetic scans against: held-out real patients, and planted copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import affine_transform
from skimage.exposure import equalize_hist

from medsynth.evaluation.arrays import HELD_OUT, SEEN, ScanArrays
from medsynth.evaluation.privacy.nearness import GateSettings
from medsynth.seeds import numpy_generator

# Copies of a whole scan: mirrored along a random choice of axes; shifted by up to `GateSettings.shift` pixels with the edges
# continued; contrast and brightness changed by up to 10 %; white noise of `GateSettings.noise`; these four at once; turned by 90
# degrees in the plane of the last two axes (mirrored where these differ in length); rotated by 2 to 5 degrees in it; enlarged or
# shrunk by 2 to 5 %; with an equalised histogram.
WHOLE = (
    "exact", "mirrored", "shifted", "contrast", "noise", "all at once", "quarter turn", "rotated", "zoomed", "equalised",
)  # fmt: skip
# Copies of a part: with a black frame of a tenth of each side; one half black; four black boxes of a quarter of the side; 10 to
# 20 % of each axis cut off and the rest enlarged; one half of another patient.
PARTIAL = ("framed", "half black", "boxes", "cropped", "two halves")
PLANTED = (*WHOLE, *PARTIAL)
_CONTRAST = 0.1  # largest relative change
_BRIGHTNESS = 0.1  # largest change, where the range of a scan is 2
_DEGREES, _ZOOM, _CROP = (2.0, 5.0), (0.02, 0.05), (0.1, 0.2)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Real scans that stand for new patients, and who of them sets thresholds.

    `rows` `(H,)` number the scans, `labels` `(H,)` their classes; `barred` `(H,)` is the own patient of a scan that the
    generator saw and that is compared with everyone else's (leave one patient out), -1 for test scans. `calibrates` `(H,)`
    says whose scans set the thresholds; the others measure false alarms. No patient does both.
    """

    rows: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    barred: np.ndarray
    calibrates: np.ndarray


def draw_held_out(real: ScanArrays, labels: tuple[int, ...], settings: GateSettings, seed: int) -> HeldOut:
    """Return the held-out scans of the classes `labels`, by whole patients, at most `settings.held_out_scans` of a class.

    Test scans of each class; where these are of fewer than `settings.min_patients` patients, so too few to be halved with
    any certainty, also the class's train and val scans, each to be compared with all patients but its own.
    """
    parts = [np.zeros(0, dtype=np.int64)]
    for label in labels:
        generator = numpy_generator(seed, "privacy", "held out", real.classes[label])
        test = real.rows_of(real.classes[label], HELD_OUT)
        parts.append(_by_patients(test, real.patients, settings.held_out_scans, generator))
        if len(np.unique(real.patients[test])) < settings.min_patients:
            seen, room = real.rows_of(real.classes[label], SEEN), settings.held_out_scans - len(parts[-1])
            parts.append(_by_patients(seen, real.patients, room, generator))
    rows = np.concatenate(parts)
    patients = real.patients[rows]
    return HeldOut(
        rows=rows,
        labels=real.labels[rows],
        patients=patients,
        barred=np.where(np.isin(real.splits[rows], SEEN), patients, -1),
        calibrates=_half_of_patients(real.labels[rows], patients, numpy_generator(seed, "privacy", "halves")),
    )


def plant_copies(
    real: ScanArrays, label: int, settings: GateSettings, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return copies of training scans of a class `(P, C, *spatial)` float16, the row of each donor, and its kind.

    Kinds are indices into `PLANTED` and take turns; what each does to a scan is said there. Donors differ as long as there are
    enough; the other half of *two halves* is of another patient of the class, where there is one.
    """
    generator = numpy_generator(seed, "privacy", "planted", real.classes[label])
    seen = real.rows_of(real.classes[label], SEEN)
    count = settings.planted if len(seen) else 0
    rounds = [generator.permutation(seen) for _ in range(-(-count // max(1, len(seen))))]
    donors = np.concatenate([np.zeros(0, dtype=np.int64), *rounds])[:count]
    kinds = np.arange(count) % len(PLANTED)
    copies = np.empty((count, *real.scans.shape[1:]), dtype=np.float16)
    for place, (donor, kind) in enumerate(zip(donors, kinds, strict=True)):
        others = seen[real.patients[seen] != real.patients[donor]]
        other = generator.choice(others) if len(others) else donor
        scan, another = (np.asarray(real.scans[row], dtype=np.float32) for row in (donor, other))
        copies[place] = change_scan(scan, another, PLANTED[kind], settings, generator).clip(-1, 1)
    return copies, donors, kinds


def change_scan(
    scan: np.ndarray, other: np.ndarray, kind: str, settings: GateSettings, generator: np.random.Generator
) -> np.ndarray:
    """Return a copy of `scan` `(C, *spatial)` float32, changed as `PLANTED` says of `kind`; `other` is of another patient."""
    rank, shape = scan.ndim - 1, np.array(scan.shape[1:])
    if kind == "all at once":
        for each in ("mirrored", "shifted", "contrast", "noise"):
            scan = change_scan(scan, other, each, settings, generator)
        return scan
    if kind == "mirrored" or (kind == "quarter turn" and shape[-1] != shape[-2]):
        chosen = 1 + generator.integers(2**rank - 1)  # any but none of the axes
        return np.flip(scan, tuple(axis for axis in range(1, 1 + rank) if chosen >> (axis - 1) & 1))
    if kind == "quarter turn":
        return np.rot90(scan, generator.choice([1, 3]), (-2, -1))
    if kind == "shifted":
        most = np.minimum(settings.shift, shape // 4)
        offsets = np.zeros(rank, dtype=int)
        while most.any() and not offsets.any():
            offsets = generator.integers(-most, most + 1)
        return _resampled(scan, np.eye(rank), offsets)
    if kind == "contrast":
        contrast = 1 + _CONTRAST * generator.choice([-1, 1]) * generator.uniform(0.5, 1)
        brightness = _BRIGHTNESS * generator.uniform(-1, 1)
        return ((scan + 1) * contrast - 1 + brightness).clip(-1, 1)
    if kind == "noise":
        return scan + generator.normal(0, settings.noise, scan.shape)
    if kind == "rotated":
        angle = np.deg2rad(generator.uniform(*_DEGREES)) * generator.choice([-1, 1])
        matrix = np.eye(rank)
        matrix[-2:, -2:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        return _resampled(scan, matrix)
    if kind == "zoomed":
        return _resampled(scan, np.eye(rank) * (1 + generator.uniform(*_ZOOM) * generator.choice([-1, 1])))
    if kind == "equalised":
        return (2 * equalize_hist(scan) - 1).astype(np.float32)
    if kind == "cropped":
        kept = 1 - generator.uniform(*_CROP)
        return _resampled(scan, np.eye(rank) * kept, generator.uniform(-0.5, 0.5, rank) * (1 - kept) * shape)
    changed = scan.copy()
    if kind == "framed":
        changed[:] = -1
        inside = (slice(None), *[slice(length // 10, length - length // 10) for length in shape])
        changed[inside] = scan[inside]
    elif kind in ("half black", "two halves"):
        axis = scan.ndim - generator.integers(1, 3)
        place: list[slice] = [slice(None)] * scan.ndim
        middle = scan.shape[axis] // 2
        place[axis] = slice(None, middle) if generator.random() < 0.5 else slice(middle, None)
        changed[tuple(place)] = other[tuple(place)] if kind == "two halves" else -1
    elif kind == "boxes":
        for _ in range(4):
            starts = generator.integers(0, shape - shape // 4 + 1)
            changed[(slice(None), *[slice(at, at + n // 4) for at, n in zip(starts, shape, strict=True)])] = -1
    return changed


def _resampled(scan: np.ndarray, matrix: np.ndarray, offset: np.ndarray | float = 0.0) -> np.ndarray:
    """Return a scan after an affine map about its centre, with the edges continued."""
    centre = (np.array(scan.shape[1:]) - 1) / 2
    start = centre - matrix @ centre + offset
    return np.stack([affine_transform(channel, matrix, start, order=1, mode="nearest") for channel in scan])


def _by_patients(rows: np.ndarray, patients: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """Return `rows` of whole patients, in random order, up to `most` scans."""
    chosen = [np.zeros(0, dtype=np.int64)]
    for patient in generator.permutation(np.unique(patients[rows])):
        found = rows[patients[rows] == patient]
        if len(found) <= most:
            chosen.append(found)
            most -= len(found)
    return np.concatenate(chosen)


def _half_of_patients(labels: np.ndarray, patients: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return which scans `(H,)` belong to a random half of the patients, about half of each class."""
    side: dict[int, bool] = {}
    for label in np.unique(labels):
        order = generator.permutation(np.unique(patients[labels == label]))
        new = [patient for patient in order if patient not in side]
        taken = sum(side[patient] for patient in order if patient in side)
        needed = (len(order) + 1) // 2 - taken
        side |= {patient: place < needed for place, patient in enumerate(new)}
    return np.array([side[patient] for patient in patients], dtype=bool)
