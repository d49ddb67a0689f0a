"""`medsynth edit`: a synthetic set of counterfactuals, training scans of one class turned into another (SDEdit)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsynth.cohorts import Cohort
from medsynth.config import ReadingOptions
from medsynth.diffusion import edit_sigmas
from medsynth.generation.donors import Donors, find_donors
from medsynth.generation.generate import (
    Chunk,
    SyntheticScan,
    check_class,
    check_count,
    describe_provenance,
    rival_labels,
    wrap_scans,
)
from medsynth.generation.sets import PROVENANCE_FILE, Method, SetPlan, write_set
from medsynth.generation.told import Told, plan_told
from medsynth.generation.where import WhereFrom
from medsynth.networks import Denoiser
from medsynth.networks.sampling import edit_scans
from medsynth.seeds import derive_seed

_NOTICE = (
    "Every scan in this folder is synthetic and must not be used for diagnosis. Each was made from a real training scan, its "
    "donor: every pixel is computed anew and none is copied, but the scan resembles its donor and may show what that one "
    "shows. Judge the set with medsynth evaluate before it leaves the house."
)


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
    trial: Mapping[str, Any] | None = None,
    where: str = "",
    where_from: WhereFrom = "scans",
    reading: ReadingOptions = ReadingOptions(),
    cache_dir: Path | None = None,
) -> Cohort:
    """Write a set of counterfactuals of one class, that of `plan.counts`, and return its cohort; restarts as in `write_set`.

    Donors are the training scans of `donor_class` in `cohort`. A row's attribute `donor` is the row number of its donor in that
    cohort, from 0, and the only thing that leads to it. `trial` is what provenance says of how the strength was chosen; `where`
    is that of `medsynth sample`, but without it attributes stay unknown. Raises `ConfigError` for an unknown class, a strength
    outside (0, sigma_max), or a folder with another set, also one from other donors; `DataError` for a cohort without such
    donors or with synthetic scans, and for donors that the run's grid cannot take.
    """
    edit_sigmas(plan.solver, strength)
    told = plan_told(plan.run, where, where_from, list(plan.counts), progress=plan.progress)
    find = partial(find_donors, cohort=cohort, label=donor_class, reading=reading, cache_dir=cache_dir)
    return write_set(plan, partial(_method, find_donors=find, strength=strength, trial=trial, told=told))


def try_edits(
    plan: SetPlan,
    cohort: Cohort,
    *,
    donor_class: str,
    donors: int,
    reading: ReadingOptions = ReadingOptions(),
    cache_dir: Path | None = None,
) -> tuple[np.ndarray, Callable[[float], np.ndarray]]:
    """Return up to `donors` validation scans of a class, and what edits them as the plan says at the strength that it is given.

    Both are float32 `(N, C, *spatial)` in [-1, 1], without a channel of masks; noise is the same at every strength. Errors as in
    `edit_set`, of validation scans.
    """
    found = find_donors(
        plan.run, cohort, donor_class, split="val", reading=reading, cache_dir=cache_dir, progress=plan.progress
    )
    chosen = np.sort(found.choose(plan.seed, min(donors, len(found.rows))))
    scans = found.scans[chosen].astype(np.float32)
    (target_class,) = plan.counts
    denoiser = plan.run.load_denoiser(plan.device)
    images = slice(None, -1 if plan.run.spec.mask else None)

    def edit(strength: float) -> np.ndarray:
        parts = [
            _edit(plan, Told(), donor_class, strength, denoiser, target_class, scans[part], part)[0]
            for part in np.array_split(np.arange(len(scans)), -(-len(scans) // plan.batch_size))
        ]
        return torch.cat(parts).cpu().numpy()[:, images]

    return scans[:, images], edit


def chosen_before(plan: SetPlan) -> tuple[float, dict[str, Any]] | None:
    """Return the strength of the set that an interrupted call began, and how it was chosen; None where none was."""
    try:
        facts = json.loads((plan.out / PROVENANCE_FILE).read_text(encoding="utf-8"))
        return float(facts["strength"]), dict(facts["trial"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _method(
    plan: SetPlan,
    *,
    find_donors: Callable[..., Donors],
    strength: float,
    trial: Mapping[str, Any] | None,
    told: Told,
) -> Method:
    donors = find_donors(plan.run, progress=plan.progress)
    (target_class,) = plan.counts
    chosen = donors.choose(plan.seed, plan.counts[target_class])
    seed_of = partial(edit_seed, plan.seed, donors.label)
    return Method(
        name="edit",
        notice=_NOTICE,
        make=partial(_edit_chunk, plan, donors, chosen, strength, told),
        seed_of=seed_of,
        columns_of=lambda label, number: {
            "donor": str(donors.rows[chosen[number]]),
            "contains_real_pixels": "0",
            **told.columns(label, seed_of(label, number)),
        },
        facts={
            "donor_class": donors.label,
            "target_class": target_class,
            "strength": float(strength),
            **({} if trial is None else {"trial": dict(trial)}),
            "donors": {"scans": len(donors.rows), "patients": donors.patients, "sha256": donors.sha256},
            "contains_real_pixels": False,
            **told.facts(),
        },
    )


def edit_seed(seed: int, donor_class: str, target_class: str, number: int) -> int:
    """Return the seed of one edit; at another strength it is the same, so that its noise is."""
    return derive_seed(seed, "edit", donor_class, target_class, number)


def _edit_chunk(
    plan: SetPlan,
    donors: Donors,
    chosen: np.ndarray,
    strength: float,
    told: Told,
    denoiser: Denoiser,
    chunk: Chunk,
) -> list[SyntheticScan]:
    begun = donors.scans[chosen[chunk.start : chunk.stop]].astype(np.float32)
    scans, seeds, drawn = _edit(plan, told, donors.label, strength, denoiser, chunk.label, begun, chunk.numbers)
    provenance = describe_provenance(plan.run, plan.solver, plan.guidance, plan.weak, method="edit")
    provenance |= {"donor_class": donors.label, "strength": f"{strength:g}"}
    return wrap_scans(plan.run, scans, chunk, seeds, provenance, attributes=drawn)


def _edit(
    plan: SetPlan,
    told: Told,
    donor_class: str,
    strength: float,
    denoiser: Denoiser,
    label: str,
    scans: np.ndarray,
    numbers: Sequence[int] | np.ndarray,
) -> tuple[Tensor, list[int], list[tuple[str, ...]] | None]:
    """Return edits of `scans` `(N, C, *spatial)`, their seeds, and the attributes that the network was told of them."""
    seeds = [edit_seed(plan.seed, donor_class, label, int(number)) for number in numbers]
    labels = torch.full((len(seeds),), plan.run.spec.label_index(label))
    drawn = told.draw(label, seeds)
    edits = edit_scans(
        denoiser,
        torch.from_numpy(scans),
        denoiser.embedding.make(labels, told.encode(drawn)),
        seeds,
        strength=strength,
        solver=plan.solver,
        guidance=plan.guidance,
        rivals=rival_labels(plan.run, plan.guidance, labels),
        weak=None if plan.weak is None else plan.weak.load(denoiser),
    )
    return edits, seeds, drawn
