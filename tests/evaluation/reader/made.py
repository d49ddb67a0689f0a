"""Prepared cohorts and studies made by hand: every scan is one grey level, by which a test recognises it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medsynth.cohorts import PreparedCohort, Row
from medsynth.evaluation.reader.study import Case, ReaderStudy, StudyKey
from medsynth.scans import Intensity

SETS = {"real": "a" * 64, "synthetic": "b" * 64}


def prepared(
    rows: Sequence[tuple[str, str, str]], *, levels: Sequence[float], donors: Sequence[str] = (), key: str = "k"
) -> PreparedCohort:
    """Return a cohort of scans 4 x 4 with (label, patient, split) in `rows` and one level each."""
    classes = tuple(sorted({label for label, _, _ in rows}))
    _, patients = np.unique([patient for _, patient, _ in rows], return_inverse=True)
    return PreparedCohort(
        scans=np.stack([np.full((1, 4, 4), level, dtype=np.float16) for level in levels]),
        labels=np.array([classes.index(label) for label, _, _ in rows]),
        splits=np.array([split for _, _, split in rows]),
        patients=patients,
        rows=tuple(
            Row(
                path=f"secret-{number}.png",
                label=label,
                patient_id=patient,
                split=split,
                attributes={"donor": donors[number]} if donors else {},
            )
            for number, (label, patient, split) in enumerate(rows)
        ),
        classes=classes,
        intensity=Intensity(low=(0,), high=(1,)),
        affine=np.eye(4),
        key=key,
    )


def real_cohort(counts: dict[str, dict[str, int]], *, scans_a_patient: int = 1) -> PreparedCohort:
    """Return `counts[label][split]` patients with scans of positive levels, all different."""
    rows = [
        (label, f"secret-patient-{label}-{split}-{number}", split)
        for label, of_split in counts.items()
        for split, count in of_split.items()
        for number in range(count)
        for _ in range(scans_a_patient)
    ]
    return prepared(rows, levels=[(1 + place) / 512 for place in range(len(rows))], key="real")


def synthetic_cohort(counts: dict[str, int]) -> PreparedCohort:
    """Return `counts[label]` scans of negative levels, all different."""
    rows = [(label, f"SYNTH-{label}-{number}", "train") for label, count in counts.items() for number in range(count)]
    return prepared(rows, levels=[-(1 + place) / 512 for place in range(len(rows))], key="synthetic")


def study_key(sources: str, labels: str, *, classes: Sequence[str] = ("ill", "well")) -> StudyKey:
    """Return a key from letters: `r` or `s` for the source, and the first letter of a class, a case each."""
    named = {name[0]: name for name in classes}
    return StudyKey(
        study="0123456789abcdef",
        classes=tuple(classes),
        cases=tuple(
            Case(
                source="real" if source == "r" else "synthetic",
                label=named[label],
                split="test" if source == "r" else None,
            )
            for source, label in zip(sources, labels, strict=True)
        ),
        sets=SETS,
    )


def made_study(key: StudyKey, shape: tuple[int, ...] = (1, 8, 8)) -> ReaderStudy:
    """Return a study with smooth scans for a key."""
    generator = np.random.default_rng(3)
    scans = generator.uniform(-1, 1, size=(len(key.cases), *shape)).astype(np.float16)
    return ReaderStudy(key=key, scans=scans)
