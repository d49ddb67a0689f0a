"""`medsynth edit`: a synthetic set of counterfactuals, training scans of one class turned into another (SDEdit)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from medsynth.cohorts import Cohort, prepare_cohort
from medsynth.config import ReadingOptions
from medsynth.diffusion import edit_sigmas
from medsynth.errors import DataError
from medsynth.generation.generate import (
    Chunk,
    SyntheticScan,
    check_class,
    check_count,
    describe_provenance,
    rival_labels,
    wrap_scans,
)
from medsynth.generation.sets import Method, SetPlan, write_set
from medsynth.networks import Denoiser
from medsynth.networks.sampling import edit_scans
from medsynth.runs import Run
from medsynth.scans import read_header
from medsynth.seeds import derive_seed, numpy_generator

_NOTICE = (
    "Every scan in this folder is synthetic and must not be used for diagnosis. Each was made from a real training scan, its "
    "donor: every pixel is computed anew and none is copied, but the scan resembles its donor and may show what that one "
    "shows. Judge the set with medsynth evaluate before it leaves the house."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Donors:
    """Real scans to begin from: `scans` is `(N, C, *spatial)` float16 in [-1, 1], `rows` `(N,)` their rows in the cohort.

    `patients` is how many patients they are of; `sha256` stands for their content, their class and their rows.
    """

    scans: np.ndarray
    rows: np.ndarray
    label: str
    patients: int
    sha256: str

    def choose(self, seed: int, count: int) -> np.ndarray:
        """Return the place of the donor of each of `count` scans.

        Each donor serves once, in random order, before any serves again; the first n are the same for every count.
        """
        whole = -(-count // len(self.rows))
        orders = (numpy_generator(seed, "donors", self.label, lap).permutation(len(self.rows)) for lap in range(whole))
        return np.concatenate(list(orders))[:count]


def edit_counts(target_class: str, count: int, classes: tuple[str, ...]) -> dict[str, int]:
    """Return the scans wanted of each class; `ConfigError` for an unknown class or a count that is none."""
    check_class("target_class", target_class, classes)
    return {target_class: check_count(count, count)}


def edit_set(
    plan: SetPlan,
    cohort: Cohort,
    *,
    donor_class: str,
    strength: float,
    reading: ReadingOptions = ReadingOptions(),
    cache_dir: Path | None = None,
) -> Cohort:
    """Write a set of counterfactuals of one class, that of `plan.counts`, and return its cohort; restarts as in `write_set`.

    Donors are the training scans of `donor_class` in `cohort`. A row's attribute `donor` is the row number of its donor in that
    cohort, from 0, and the only thing that leads to it. Raises `ConfigError` for an unknown class, a strength outside
    (0, sigma_max), or a folder with another set, also one from other donors; `DataError` for a cohort without such donors or
    with synthetic scans, and for donors that the run's grid cannot take.
    """
    edit_sigmas(plan.solver, strength)
    find = partial(find_donors, cohort=cohort, label=donor_class, reading=reading, cache_dir=cache_dir)
    return write_set(plan, partial(_method, find_donors=find, strength=strength))


def _method(plan: SetPlan, *, find_donors: Callable[..., Donors], strength: float) -> Method:
    donors = find_donors(plan.run, progress=plan.progress)
    (target_class,) = plan.counts
    chosen = donors.choose(plan.seed, plan.counts[target_class])
    return Method(
        name="edit",
        notice=_NOTICE,
        make=partial(_edit_chunk, plan, donors, chosen, strength),
        seed_of=partial(edit_seed, plan.seed, donors.label),
        columns_of=lambda _, number: {
            "donor": str(donors.rows[chosen[number]]),
            "contains_real_pixels": "0",
        },
        facts={
            "donor_class": donors.label,
            "target_class": target_class,
            "strength": float(strength),
            "donors": {"scans": len(donors.rows), "patients": donors.patients, "sha256": donors.sha256},
            "contains_real_pixels": False,
        },
    )


def find_donors(
    run: Run,
    cohort: Cohort,
    label: str,
    *,
    reading: ReadingOptions = ReadingOptions(),
    cache_dir: Path | None = None,
    progress: bool = True,
) -> Donors:
    """Return the training scans of one class on the run's grid and in its range; errors as `edit_set` says."""
    check_class("donor_class", label, run.spec.classes)
    if any(row.attributes.get("synthetic") == "1" for row in cohort.rows):
        raise DataError(
            f"{cohort.folder}: need real scans as donors, got rows that say synthetic=1; try the cohort of medsynth index"
        )
    numbers = [place for place, row in enumerate(cohort.rows) if row.split == "train" and row.label == label]
    if not numbers:
        known = ", ".join(cohort.select(split="train").classes) or "none"
        raise DataError(f"donor_class: need training scans of {label!r} in the cohort, got none; try one of {known}")
    real = replace(cohort, rows=tuple(cohort.rows[number] for number in numbers))
    first = cohort.file_of(real.rows[0])
    wanted, got = run.spec.shape, read_header(first, reading=reading).shape
    if (wanted[0], len(wanted)) != (got[0], len(got)):
        raise DataError(
            f"{first}: need {wanted[0]} channels and {len(wanted) - 1} axes like the run's scans, got {got[0]} and "
            f"{len(got) - 1}; try the cohort that the run was trained on"
        )
    prepared = prepare_cohort(
        real,
        grid=run.grid,
        intensity=run.spec.intensity,
        reading=reading,
        classes=run.spec.classes,
        cache_dir=cache_dir,
        progress=progress,
    )
    return Donors(
        scans=prepared.scans,
        rows=np.array(numbers),
        label=label,
        patients=len(np.unique(prepared.patients)),
        sha256=hashlib.sha256(json.dumps([prepared.key, numbers]).encode()).hexdigest(),
    )


def edit_seed(seed: int, donor_class: str, target_class: str, number: int) -> int:
    """Return the seed of one edit; at another strength it is the same, so that its noise is."""
    return derive_seed(seed, "edit", donor_class, target_class, number)


def _edit_chunk(
    plan: SetPlan, donors: Donors, chosen: np.ndarray, strength: float, denoiser: Denoiser, chunk: Chunk
) -> list[SyntheticScan]:
    seeds = [edit_seed(plan.seed, donors.label, chunk.label, number) for number in chunk.numbers]
    labels = torch.full((len(seeds),), plan.run.spec.label_index(chunk.label))
    scans = edit_scans(
        denoiser,
        torch.from_numpy(donors.scans[chosen[chunk.start : chunk.stop]].astype(np.float32)),
        labels,
        seeds,
        strength=strength,
        solver=plan.solver,
        guidance=plan.guidance,
        rivals=rival_labels(plan.run, plan.guidance, labels),
    )
    provenance = describe_provenance(plan.run, plan.solver, plan.guidance, method="edit")
    return wrap_scans(
        plan.run, scans, chunk, seeds, provenance | {"donor_class": donors.label, "strength": f"{strength:g}"}
    )
