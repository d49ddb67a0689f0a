"""`medsynth edit`: training scans of one class turned into another, as counterfactuals (SDEdit) or by inpainting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsynth.cohorts import Cohort
from medsynth.config import EditOptions
from medsynth.diffusion import edit_sigmas
from medsynth.errors import ConfigError
from medsynth.generation.donors import Edit, find_donors
from medsynth.generation.generator import Chunk, SyntheticScan, choose_device, show_notes, wrap_scans
from medsynth.generation.inpaint import Painting
from medsynth.generation.write import write_set
from medsynth.networks import Denoiser, edit_scans
from medsynth.runs import Run
from medsynth.sets import PROVENANCE_FILE

_TRIAL_DONORS = 32  # validation scans that are edited at each strength `--strength auto` tries
_NOTICE = (
    "Every scan in this folder is synthetic and must not be used for diagnosis. Each was made from a real training scan, its "
    "donor: every pixel is new, but the scan resembles its donor and may show what the donor shows. Run medsynth evaluate before "
    "the set leaves your institution."
)


class Counterfactuals(Edit):
    """Adds noise to donors up to `strength` and denoises them as another class (Meng et al. 2022, arXiv 2108.01073)."""

    seed_key = "edit"
    notice = _NOTICE
    masks = False

    def __init__(
        self, run: Run, cohort: Cohort, options: EditOptions, *, strength: float, trial: Mapping[str, Any] | None = None
    ) -> None:
        """Check the options; `trial` is what provenance says about the choice of the strength."""
        super().__init__(run, cohort, options)
        edit_sigmas(self.job.solver, strength)
        self.strength, self.trial = float(strength), trial

    def facts(self) -> dict[str, Any]:
        trial = {} if self.trial is None else {"trial": dict(self.trial)}
        return {**super().facts(), "strength": self.strength, **trial, "contains_real_pixels": False}

    def columns_of(self, label: str, number: int) -> dict[str, str]:
        return {**super().columns_of(label, number), "contains_real_pixels": "0"}

    def make(self, denoiser: Denoiser, chunk: Chunk) -> list[SyntheticScan]:
        scans = self.donors.scans[self.chosen[chunk.start : chunk.stop]].astype(np.float32)
        edits, seeds, drawn = self.edit(denoiser, scans, chunk.numbers)
        attributes = [self.attributes.columns(values) for values in drawn]
        facts = self.job.describe("edit", donor_class=self.options.donor_class, strength=f"{self.strength:g}")
        return wrap_scans(self.job, edits, chunk, seeds, facts, attributes)

    def edit(
        self, denoiser: Denoiser, scans: np.ndarray, numbers: Sequence[int] | np.ndarray
    ) -> tuple[Tensor, list[int], list[tuple[str, ...]]]:
        """Return edits of scans `(N, C, *spatial)` in [-1, 1], their seeds and their attributes."""
        target = self.options.target_class
        seeds = [self.seed_of(target, int(number)) for number in numbers]
        drawn = [self.attributes.draw(target, seed) for seed in seeds]
        labels = torch.full((len(seeds),), self.job.run.spec.label_index(target))
        wanted = denoiser.embedding.make(labels, attributes=self.attributes.encode(drawn))
        edits = edit_scans(
            denoiser,
            torch.from_numpy(scans),
            wanted,
            seeds,
            strength=self.strength,
            **self.job.steering(denoiser, labels),
        )
        return edits, seeds, drawn


def edit_set(
    run: Run,
    cohort: Cohort,
    options: EditOptions,
    *,
    strength: float | None = None,
    trial: Mapping[str, Any] | None = None,
) -> Cohort:
    """Write a set of edits of the training scans of one class in `cohort`, by either method, and return its cohort.

    A row's attribute `donor` is the row number of its donor in that cohort, from 0. `strength` replaces `options.strength`, and
    `trial` is what provenance says about its choice. Restarts as `write_set`. Raises `ConfigError` for options that do not fit
    the run, or a folder with another set; `DataError` for a cohort without such donors, with synthetic scans, or with scans that
    the run's grid cannot take.
    """
    generator: Painting | Counterfactuals
    if options.method == "inpaint":
        generator = Painting(run, cohort, options)
    else:
        wanted = options.strength if strength is None else strength
        if isinstance(wanted, str):
            raise ConfigError("strength: need a number; only medsynth.edit chooses a strength for auto")
        generator = Counterfactuals(run, cohort, options, strength=wanted, trial=trial)
    show_notes(generator.attributes.notes([options.target_class]), options)
    return write_set(generator)


def try_edits(run: Run, cohort: Cohort, options: EditOptions) -> tuple[np.ndarray, Callable[[float], np.ndarray]]:
    """Return up to 32 validation scans of the donor class, and a function that edits them at a strength.

    Both are float32 `(N, C, *spatial)` in [-1, 1], without a channel of masks; the noise is the same at every strength. Errors as
    in `edit_set`, about validation scans.
    """
    run.check_editable()
    found = find_donors(run, cohort, options.donor_class, split="val", loading=options)
    chosen = np.sort(found.choose(options.seed, min(_TRIAL_DONORS, len(found.rows))))
    scans = found.scans[chosen].astype(np.float32)
    denoiser = run.load_denoiser(choose_device(options.accelerator))
    images = slice(None, -1 if run.spec.mask else None)

    def edit(strength: float) -> np.ndarray:
        generator = Counterfactuals(run, cohort, replace(options, where=""), strength=strength)
        parts = [
            generator.edit(denoiser, scans[part], part)[0]
            for part in np.array_split(np.arange(len(scans)), -(-len(scans) // options.batch_size))
        ]
        return torch.cat(parts).cpu().numpy()[:, images]

    return scans[:, images], edit


def chosen_before(options: EditOptions) -> tuple[float, dict[str, Any]] | None:
    """Return the strength of the set that an interrupted call began, and its trial; None if there is no such set."""
    try:
        facts = json.loads((Path(options.out) / PROVENANCE_FILE).read_text(encoding="utf-8"))
        return float(facts["strength"]), dict(facts["trial"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
