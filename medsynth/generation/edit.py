"""`medsynth edit`: training scans of one class turned into another, as counterfactuals (SDEdit) or by inpainting."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from medsynth.cohorts import Cohort
from medsynth.config import EditOptions
from medsynth.diffusion import edit_sigmas
from medsynth.errors import ConfigError
from medsynth.generation.donors import Edit
from medsynth.generation.generator import Chunk, SyntheticScan, show_notes, wrap_scans
from medsynth.generation.inpaint import Painting
from medsynth.generation.write import write_set
from medsynth.networks import Denoiser, edit_scans
from medsynth.runs import Run


class Counterfactuals(Edit):
    """Adds noise to donors up to `strength` and denoises them as another class (Meng et al. 2022, arXiv 2108.01073)."""

    seed_key = "edit"
    notice = (
        "Every scan in this folder is synthetic and must not be used for diagnosis. Each was made from a real training scan, its "
        "donor: every pixel is new, but the scan resembles its donor and may show what the donor shows. Run medsynth evaluate "
        "before the set leaves your institution."
    )
    masks = False

    def __init__(self, run: Run, cohort: Cohort, options: EditOptions) -> None:
        super().__init__(run, cohort, options)
        edit_sigmas(self.job.solver, options.strength)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "strength": self.options.strength, "contains_real_pixels": False}

    def columns_of(self, label: str, number: int) -> dict[str, str]:
        return {**super().columns_of(label, number), "contains_real_pixels": "0"}

    def make(self, denoiser: Denoiser, chunk: Chunk) -> list[SyntheticScan]:
        scans = self.donors.scans[self.chosen[chunk.start : chunk.stop]].astype(np.float32)
        seeds = [self.seed_of(chunk.label, number) for number in chunk.numbers]
        drawn = [self.attributes.draw(chunk.label, seed) for seed in seeds]
        labels, strength = self.job.labels(chunk), self.options.strength
        wanted = denoiser.embedding.make(labels, attributes=self.attributes.encode(drawn))
        steering = self.job.steering(denoiser, labels)
        edits = edit_scans(denoiser, torch.from_numpy(scans), wanted, seeds, strength=strength, **steering)
        facts = self.job.describe("edit", donor_class=self.options.donor_class, strength=f"{strength:g}")
        attributes = [self.attributes.columns(values) for values in drawn]
        return self.with_donors(wrap_scans(self.job, edits, chunk, seeds, facts, attributes))


def edit_set(run: Run, cohort: Cohort, options: EditOptions) -> Cohort:
    """Write a set of edits of the training scans of one class in `cohort`, by either method, and return its cohort.

    A row's attribute `donor` is the row number of its donor in that cohort, from 0. Restarts as `write_set`. Raises
    `ConfigError` for options that do not fit the run, or a folder with another set; `DataError` for a cohort without such
    donors, with synthetic scans, or with scans that the run's grid cannot take.
    """
    if options.method == "inpaint" and options.strength != EditOptions.strength:
        raise ConfigError("strength: only counterfactuals have a strength; leave it out, or --method counterfactual")
    generator = (Painting if options.method == "inpaint" else Counterfactuals)(run, cohort, options)
    show_notes(generator.attributes.notes([options.target_class]), options)
    return write_set(generator)
