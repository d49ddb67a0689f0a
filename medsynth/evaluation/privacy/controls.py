"""What the privacy gate measures synthetic scans against: held-out real patients, and planted copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsynth.evaluation.arrays import HELD_OUT, SEEN, ScanArrays
from medsynth.evaluation.privacy.nearness import GateSettings
from medsynth.seeds import numpy_generator

PLANTED = ("exact", "mirrored", "shifted", "contrast", "noise", "all at once")
_CONTRAST = 0.1  # largest relative change
_BRIGHTNESS = 0.1  # largest change, where the range of a scan is 2


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

    Kinds are indices into `PLANTED` and take turns: exact; mirrored along a random choice of axes; shifted by up to
    `settings.shift` pixels along each axis with edges continued; contrast and brightness changed by up to 10 %; with white
    noise of standard deviation `settings.noise`; all of these. Donors differ as long as there are enough.
    """
    generator = numpy_generator(seed, "privacy", "planted", real.classes[label])
    seen = real.rows_of(real.classes[label], SEEN)
    count = settings.planted if len(seen) else 0
    rounds = [generator.permutation(seen) for _ in range(-(-count // max(1, len(seen))))]
    donors = np.concatenate([np.zeros(0, dtype=np.int64), *rounds])[:count]
    kinds = np.arange(count) % len(PLANTED)
    copies = np.empty((count, *real.scans.shape[1:]), dtype=np.float16)
    for place, (donor, kind) in enumerate(zip(donors, kinds, strict=True)):
        scan = np.asarray(real.scans[donor], dtype=np.float32)
        for change in range(1, 5) if PLANTED[kind] == "all at once" else (kind,):
            scan = _changed(scan, PLANTED[change], settings, generator)
        copies[place] = scan.clip(-1, 1)
    return copies, donors, kinds


def _changed(scan: np.ndarray, kind: str, settings: GateSettings, generator: np.random.Generator) -> np.ndarray:
    rank = scan.ndim - 1
    if kind == "mirrored":
        chosen = 1 + generator.integers(2**rank - 1)  # any but none of the axes
        return np.flip(scan, tuple(axis for axis in range(1, 1 + rank) if chosen >> (axis - 1) & 1))
    if kind == "shifted":
        most = [min(settings.shift, length // 4) for length in scan.shape[1:]]
        offsets = [0] * rank
        while any(most) and not any(offsets):
            offsets = [int(generator.integers(-one, one + 1)) for one in most]
        padded = np.pad(scan, [(0, 0), *[(one, one) for one in most]], mode="edge")
        starts = [one + offset for one, offset in zip(most, offsets, strict=True)]
        inside = [slice(start, start + length) for start, length in zip(starts, scan.shape[1:], strict=True)]
        return padded[(slice(None), *inside)]
    if kind == "contrast":
        contrast = 1 + _CONTRAST * generator.choice([-1, 1]) * generator.uniform(0.5, 1)
        brightness = _BRIGHTNESS * generator.uniform(-1, 1)
        return ((scan + 1) * contrast - 1 + brightness).clip(-1, 1)
    if kind == "noise":
        return scan + generator.normal(0, settings.noise, scan.shape)
    return scan


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
