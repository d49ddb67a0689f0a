"""Inpainted lesions: can the border of what was painted be found, and is a lesion there?

    python -m benchmarks.control.edits --run RUN --cohort COHORT.csv --donor_class normal --target_class ground_glass \
        --work FOLDER --result benchmarks/results/control_edits.json --name phantom

Lesions are inpainted into donors with the masks of training scans, and, as control, real lesion scans are repainted where their
own lesion is. A small network sees a ring of pixels on both sides of the border, in painted scans and in real ones of the target
class with the same region; it is cross-validated over patients, and an AUROC of .5 means that the border cannot be found.
`contrast` is how much brighter, in units of [-1, 1], the lesion's mask is than its surroundings. One file holds the results of
several runs, by name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import nn

import medsynth
from benchmarks.machine import describe_machine
from medsynth.cohorts import Cohort
from medsynth.cohorts.grid import orient_scan
from medsynth.config import GuidanceOptions, InpaintOptions
from medsynth.files import write_json
from medsynth.generation.donors import read_donor
from medsynth.generation.inpaint import lay_region, widen
from medsynth.measures.classification import auroc
from medsynth.runs import Run
from medsynth.scans import read_scan
from medsynth.scans.picture import captioned_rows, write_picture
from medsynth.seeds import numpy_generator

RING = 2.0  # voxels on each side of the border
FOLDS = 5


def rings(scans: np.ndarray, regions: np.ndarray, side: int) -> np.ndarray:
    """Crops `(N, 2, side, side)` about the regions `(N, *grid)` of pictures `(N, *grid)`: pixels near the border, and where."""
    crops = []
    for scan, region in zip(scans, regions, strict=True):
        outside, inside = distance_transform_edt(~region), distance_transform_edt(region)
        ring = np.where(region, inside, outside) <= RING
        centre = np.rint(np.argwhere(region).mean(axis=0)).astype(int) + side
        cut = tuple(slice(at - side // 2, at - side // 2 + side) for at in centre)
        crops.append(np.stack([np.pad(each, side)[cut] for each in (scan * ring, ring.astype(np.float32))]))
    return np.stack(crops).astype(np.float32)


def train_and_score(crops: np.ndarray, truth: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Scores of the test crops by a small network trained on the others, which are flipped at random."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 1),
    )  # fmt: skip
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    inputs, targets = torch.from_numpy(crops), torch.from_numpy(truth.astype(np.float32))
    for _ in range(200):
        chosen = torch.from_numpy(train)[torch.randint(len(train), (64,))]
        batch = inputs[chosen].flip(-1) if torch.rand(()) < 0.5 else inputs[chosen]
        loss = nn.functional.binary_cross_entropy_with_logits(network(batch)[:, 0], targets[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        return network.eval()(inputs[torch.from_numpy(test)])[:, 0].numpy()


def border_auroc(made: np.ndarray, real: np.ndarray, patients: list[np.ndarray], seed: int = 0) -> dict[str, float]:
    """Cross-validated AUROC of made (1) against real (0) crops, with the interval of a bootstrap over patients."""
    crops = np.concatenate([made, real])
    truth = np.r_[np.ones(len(made), dtype=bool), np.zeros(len(real), dtype=bool)]
    who = np.concatenate(patients)
    random = numpy_generator(seed, "folds")
    fold = dict(zip(np.unique(who), random.permutation(len(np.unique(who))) % FOLDS, strict=True))
    folds = np.array([fold[each] for each in who])
    scores = np.zeros(len(crops))
    for number in range(FOLDS):
        test = np.flatnonzero(folds == number)
        found = train_and_score(crops, truth, np.flatnonzero(folds != number), test, seed)
        scores[test] = (found - found.mean()) / (found.std() + 1e-6)
    names, place = np.unique(who, return_inverse=True)
    counts = np.stack(
        [np.bincount(random.integers(len(names), size=len(names)), minlength=len(names)) for _ in range(2000)]
    )
    draws = auroc(truth, scores, counts[:, place].astype(np.float64))
    value = float(auroc(truth, scores, np.ones((1, len(truth))))[0])
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return {
        "auroc": round(value, 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "made": len(made),
        "real": len(real),
    }


class Scans:
    """Real scans of a cohort and their lesions on a run's grid, each read once."""

    def __init__(self, run: Run, cohort: Cohort) -> None:
        self.run, self.cohort = run, cohort
        self._known: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}

    def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """First channel `(*grid)` in [-1, 1], and the lesion (bool) if there is one."""
        if number not in self._known:
            row = self.cohort.rows[number]
            file = self.cohort.mask_of(row)
            lesion = None
            if file is not None:
                lesion, _ = lay_region(orient_scan(read_scan(file)), run=self.run)
            self._known[number] = read_donor(self.run, self.cohort, row)[0][0], lesion
        return self._known[number]


def contrasts(scans: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """Mean within each lesion less that of a band of 2 to 4 voxels around it."""
    found = []
    for scan, lesion in zip(scans, lesions, strict=True):
        away = distance_transform_edt(~lesion)
        found.append(scan[lesion].mean() - scan[(away >= 2) & (away <= 4)].mean())
    return np.array(found)


def quartiles(values: np.ndarray) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return [round(float(value), 3) for value in np.quantile(values, [0.25, 0.5, 0.75])]


def try_border(options: argparse.Namespace, run: Run, cohort: Cohort, scans: Scans) -> dict[str, Any]:
    """Border and contrast for each way to inpaint, and a picture of each."""
    against = f"{options.target_class}={options.donor_class}"
    ways = {
        "repeats 1": (1, GuidanceOptions()),
        "repeats 1, guidance 3": (1, GuidanceOptions(scale=3.0, against=against)),
        "repeats 4": (4, GuidanceOptions()),
    }
    ways = {name: ways[name] for name in options.ways or ways}
    patients = np.array([row.patient_id for row in cohort.rows])
    spacing = np.linalg.norm(np.array(run.spec.affine)[:3, : len(run.spec.shape) - 1], axis=0)
    result: dict[str, Any] = {}
    pictures: list[tuple[str, np.ndarray]] = []
    for name, (repeats, guidance) in ways.items():
        for region in ("class", "donor"):
            inpaint = InpaintOptions(region=region, repeats=repeats, margin_mm=options.margin_mm)
            out = options.work / f"{options.name} {region} {name}".replace(" ", "_").replace(",", "")
            made = medsynth.edit(
                run=run.folder, cohort=options.cohort, out=out, method="inpaint", inpaint=inpaint, guidance=guidance,
                donor_class=options.donor_class if region == "class" else options.target_class,
                target_class=options.target_class, count=options.count, batch_size=32, format="npz",
                cache_dir=options.work / "cache",
            )  # fmt: skip
            intensity = run.spec.image_intensity
            arrays = np.stack([intensity.to_model(read_scan(made.file_of(row)).array)[0] for row in made.rows])
            donors = np.array([int(row.attributes["donor"]) for row in made.rows])
            sources = np.array([int(row.attributes.get("region_from", row.attributes["donor"])) for row in made.rows])
            lesions = np.stack([scans(number)[1] for number in sources])
            regions = np.stack([widen(lesion, spacing, options.margin_mm) for lesion in lesions])
            real = np.stack([scans(number)[0] for number in sources])
            before = np.stack([scans(number)[0] for number in donors])
            outside = ~regions
            assert np.abs((arrays - before)[outside]).max() < 2e-3, "something outside of the region changed"
            crops = [rings(each, regions, options.side) for each in (arrays, real, before)]
            entry = {
                "against real scans of the class": border_auroc(crops[0], crops[1], [patients[sources]] * 2),
                "contrast": {
                    "made": quartiles(contrasts(arrays, lesions)),
                    "real": quartiles(contrasts(real, lesions)),
                    "donors": quartiles(contrasts(before, lesions)),
                },
            }
            if region == "class":
                entry["against the donors as they were"] = border_auroc(crops[0], crops[2], [patients[donors]] * 2)
            result[f"{region}, {name}"] = entry
            print(region, name, json.dumps(entry), flush=True)
            if not pictures:
                pictures.append(("donors", before[:8, None]))
            if region == "class":
                pictures.append((f"{options.target_class} painted in, {name}", arrays[:8, None]))
                last = real[:8, None]
    pictures.append(("real scans with these regions", last))
    show(options.work / f"{options.name}_inpaint.png", pictures)
    return result


def show(path: Path, rows: list[tuple[str, np.ndarray]]) -> None:
    """Write a picture, twice as large as its pixels."""
    write_picture(path, np.kron(captioned_rows(rows), np.ones((2, 2), dtype=np.uint8)))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--donor_class", required=True)
    parser.add_argument("--target_class", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--ways", nargs="*", default=[], help='ways to inpaint, such as "repeats 1", by default all')
    parser.add_argument("--count", type=int, default=96, help="scans of each inpainted set")
    parser.add_argument("--margin_mm", type=float, default=5.0)
    parser.add_argument("--side", type=int, default=16, help="pixels of a crop about a region")
    options = parser.parse_args()
    run, cohort = medsynth.load_run(options.run), medsynth.read_cohort(options.cohort)
    found: dict[str, Any] = {
        "donor_class": options.donor_class,
        "target_class": options.target_class,
        "grid": list(run.spec.shape),
        "steps_trained": run.steps,
        "training_scans": dict(zip(run.spec.classes, run.spec.class_counts, strict=True)),
        "machine": describe_machine(),
    }
    found |= {"margin_mm": options.margin_mm, "count": options.count}
    found["border"] = try_border(options, run, cohort, Scans(run, cohort))
    results = json.loads(options.result.read_text()) if options.result.is_file() else {}
    write_json(options.result, results | {options.name: results.get(options.name, {}) | found})


if __name__ == "__main__":
    main()
