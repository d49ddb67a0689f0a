"""`medsynth edit --method inpaint`: a part of each donor painted anew as another class, the rest left as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from medsynth.cohorts import Cohort
from medsynth.config import InpaintOptions, ReadingOptions
from medsynth.errors import ConfigError
from medsynth.generation.donors import Donors, find_donors, read_donor
from medsynth.generation.generate import (
    Chunk,
    SyntheticScan,
    describe_provenance,
    rival_labels,
    to_stored,
    wrap_scans,
)
from medsynth.generation.regions import DONOR, Regions, blend_weights, check_inpainting, find_regions
from medsynth.generation.sets import Method, SetPlan, write_set
from medsynth.generation.told import Told, plan_told
from medsynth.generation.where import WhereFrom
from medsynth.networks import Denoiser, give_channels
from medsynth.networks.inpainting import inpaint_scans
from medsynth.seeds import derive_seed

_NOTICE = (
    "Every scan in this folder is synthetic in part and must not be used for diagnosis. Outside of one region it is a real "
    "training scan, its donor, pixel by pixel. The real pixels show a patient: this set must not leave the house."
)


def inpaint_set(
    plan: SetPlan,
    cohort: Cohort,
    *,
    donor_class: str,
    options: InpaintOptions = InpaintOptions(),
    where: str = "",
    where_from: WhereFrom = "scans",
    reading: ReadingOptions = ReadingOptions(),
    cache_dir: Path | None = None,
) -> Cohort:
    """Write a set of donors with a region painted anew as the class of `plan.counts`, and return its cohort.

    Outside of its region a scan has the values of its donor, bit by bit: those of the donor's file where its grid is that of the
    run. A row's attributes `donor` and `region_from` are row numbers of `cohort`. Its mask is the region; of a run that generates
    masks it is the mask within the region, which the network is shown. Restarts as in `write_set`; raises `ConfigError` and
    `DataError` as `find_donors` and `find_regions` do, and `ConfigError` for a latent run.
    """
    check_inpainting(options)
    if plan.run.spec.autoencoder is not None:
        raise ConfigError(
            "method: need a run with network.stem haar or pixel to inpaint, got latent; try --method counterfactual"
        )
    told = plan_told(plan.run, where, where_from, list(plan.counts), progress=plan.progress)
    method = _Inpainting(
        cohort=cohort,
        donor_class=donor_class,
        options=options,
        told=told,
        reading=reading,
        cache_dir=cache_dir,
    )
    # A picture written as DICOM CR has no DICOM SEG.
    return write_set(replace(plan, masks=plan.modality in (None, "CT", "MR")), method)


@dataclass(frozen=True, kw_only=True)
class _Inpainting:
    """What each process needs to make its share; called, it finds donors and regions."""

    cohort: Cohort
    donor_class: str
    options: InpaintOptions
    told: Told
    reading: ReadingOptions
    cache_dir: Path | None

    def __call__(self, plan: SetPlan) -> Method:
        donors = find_donors(
            plan.run,
            self.cohort,
            self.donor_class,
            with_mask=self.options.region == DONOR,
            reading=self.reading,
            cache_dir=self.cache_dir,
            progress=plan.progress,
        )
        (target_class,) = plan.counts
        chosen = donors.choose(plan.seed, plan.counts[target_class])
        regions = find_regions(
            plan.run,
            self.cohort,
            donors,
            chosen,
            target_class=target_class,
            seed=plan.seed,
            options=self.options,
            reading=self.reading,
            progress=plan.progress,
        )
        seed_of = partial(inpaint_seed, plan.seed, donors.label)
        return Method(
            name="edit",
            notice=_NOTICE,
            make=partial(self._make, plan, donors, chosen, regions),
            seed_of=seed_of,
            columns_of=lambda label, number: {
                "donor": str(donors.rows[chosen[number]]),
                **_region_column(regions, number, self.options),
                "contains_real_pixels": "1",
                **self.told.columns(label, seed_of(label, number)),
            },
            facts={
                "edit": "inpaint",
                "donor_class": donors.label,
                "target_class": target_class,
                "donors": {"scans": len(donors.rows), "patients": donors.patients, "sha256": donors.sha256},
                "region": regions.facts,
                "contains_real_pixels": True,
                **self.told.facts(),
            },
        )

    def _make(
        self, plan: SetPlan, donors: Donors, chosen: np.ndarray, regions: Regions, denoiser: Denoiser, chunk: Chunk
    ) -> list[SyntheticScan]:
        run = plan.run
        seeds = [inpaint_seed(plan.seed, donors.label, chunk.label, number) for number in chunk.numbers]
        rows = [self.cohort.rows[donors.rows[chosen[number]]] for number in chunk.numbers]
        read = [read_donor(run, self.cohort, row, reading=self.reading) for row in rows]
        known = np.stack([array for array, _ in read])
        where = regions.of(chunk.numbers)
        painted_in, given = np.repeat(where[:, None], known.shape[1], axis=1), None
        if run.spec.mask:
            # The network knows where the lesion is: its mask is not painted but shown.
            known[:, -1] = np.where(where, regions.lesions_of(chunk.numbers) * 2.0 - 1, known[:, -1])
            painted_in[:, -1] = False
            shown = torch.arange(known.shape[1]) == known.shape[1] - 1
            if run.spec.given:
                given = give_channels(torch.from_numpy(known), shown[None].expand(len(known), -1))
        labels = torch.full((len(seeds),), run.spec.label_index(chunk.label))
        drawn = self.told.draw(chunk.label, seeds)
        painted = inpaint_scans(
            denoiser,
            torch.from_numpy(known),
            torch.from_numpy(painted_in),
            denoiser.embedding.make(labels, self.told.encode(drawn), given),
            seeds,
            repeats=self.options.repeats,
            solver=plan.solver,
            guidance=plan.guidance,
            rivals=rival_labels(run, plan.guidance, labels),
            weak=None if plan.weak is None else plan.weak.load(denoiser),
        )
        scans = torch.from_numpy(
            np.stack([
                blend(one, other, region, self.options.blend_voxels)
                for one, other, region in zip(known, painted.cpu().numpy(), where, strict=True)
            ])
        )  # fmt: skip
        provenance = describe_provenance(run, plan.solver, plan.guidance, plan.weak, method="edit")
        provenance |= {"edit": "inpaint", "donor_class": donors.label, "contains_real_pixels": "YES"}
        made = wrap_scans(run, scans, chunk, seeds, provenance, attributes=drawn)
        return [
            _restore(each, to_stored(scan, run), stored, region)
            for each, scan, (_, stored), region in zip(made, scans.numpy(), read, where, strict=True)
        ]


def inpaint_seed(seed: int, donor_class: str, target_class: str, number: int) -> int:
    """Return the seed of one scan; with another region it is the same, so that its noise is."""
    return derive_seed(seed, "inpaint", donor_class, target_class, number)


def blend(known: np.ndarray, painted: np.ndarray, region: np.ndarray, voxels: int) -> np.ndarray:
    """Return `known` `(C, *grid)` that passes into `painted` inside the region, over `voxels`."""
    return np.where(region, known + blend_weights(region, voxels) * (painted - known), known)


def _restore(
    made: SyntheticScan, images: Mapping[str, np.ndarray], stored: Mapping[str, np.ndarray], region: np.ndarray
) -> SyntheticScan:
    """Return the scan with its donor's stored voxels outside of the region, and the region as its mask, unless it has one."""
    whole = {name: np.where(region, images[name], stored[name]) for name in images}
    first, *others = whole
    return replace(
        made,
        scan=replace(made.scan, array=whole[first]),
        sequences={name: replace(made.sequences[name], array=whole[name]) for name in others},
        mask=made.mask if made.mask is not None else replace(made.scan, array=region[None].astype(np.uint8)),
    )


def _region_column(regions: Regions, number: int, options: InpaintOptions) -> dict[str, str]:
    source = regions.source(number)
    return {} if source is None or options.region == DONOR else {"region_from": source}
