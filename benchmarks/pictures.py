"""Pictures for the README from a run, a synthetic set and, where they may be shown, its real scans.

    python -m benchmarks.pictures memorisation --run run --out docs/images/memorisation.png
    python -m benchmarks.pictures synthetic --synthetic synthetic --out docs/images/synthetic.png
    python -m benchmarks.pictures volumes --run run --synthetic synthetic --out docs/images/volumes.png
    python -m benchmarks.pictures sheet --real cohort.csv --synthetic synthetic --out docs/images/sheet.png

`sheet` shows real scans: only for cohorts whose scans may be published, such as the phantom.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from skimage.transform import resize

import medsynth
from medsynth.cohorts import Cohort, PreparedCohort, prepare_cohort
from medsynth.config import GridOptions, IntensityOptions
from medsynth.files import write_bytes
from medsynth.measures.neighbours import nearest_distances
from medsynth.reporting import training_figures
from medsynth.reporting.sheets import contact_sheet
from medsynth.scans.picture import captioned_rows, write_picture

_ACROSS, _VOLUMES = 8, 4


def memorisation(run: Path) -> bytes:
    """Return the memorisation curve of a run."""
    return next(figure.png for figure in training_figures(medsynth.load_run(run)) if "Memorisation" in figure.title)


def synthetic_rows(synthetic: Path, intensity: IntensityOptions) -> np.ndarray:
    """Return the first scans of each class of a synthetic set, one row a class, twice as large."""
    cohort = medsynth.read_cohort(synthetic / "cohort.csv")
    prepared = _prepared(cohort, intensity)
    return captioned_rows(
        [
            (f"{label} (synthetic)", _enlarged(prepared.scans[prepared.indices(label=number)[:_ACROSS]]))
            for number, label in enumerate(prepared.classes)
        ]
    )


def volume_rows(run: Path, synthetic: Path) -> np.ndarray:
    """Return the first volumes of each class in three planes, and their masks where the run makes masks."""
    known, cohort = medsynth.load_run(run), medsynth.read_cohort(synthetic / "cohort.csv")
    masks = known.spec.mask
    prepared = prepare_cohort(cohort, grid=known.grid, intensity=known.spec.intensity, mask=masks, progress=False)
    rows: list[tuple[str, np.ndarray]] = []
    for number, label in enumerate(prepared.classes):
        shown = np.asarray(prepared.scans[prepared.indices(label=number)[:_VOLUMES]], dtype=np.float32)
        rows.append((f"{label} (synthetic)", shown))
        if masks:
            rows.append(("mask made with it", shown[:, -1:]))
    spacing = np.linalg.norm(prepared.affine[:3, :3], axis=0)
    return captioned_rows(rows, spacing=spacing.tolist())


def sheet(real: Path, synthetic: Path, intensity: IntensityOptions, rows: int = 2) -> bytes:
    """Return real scans, the training scans nearest to the synthetic ones, and the synthetic ones, of every class."""
    made = _prepared(medsynth.read_cohort(synthetic / "cohort.csv"), intensity)
    known = _prepared(medsynth.read_cohort(real), intensity, size=made.scans.shape[2:])
    train = known.indices(split="train")
    columns: dict[str, list[np.ndarray]] = {"real": [], "nearest real": [], "synthetic": []}
    for label in made.classes:
        number = known.classes.index(label)
        shown = made.scans[made.indices(label=made.classes.index(label))[:rows]]
        columns["real"].append(known.scans[known.indices(split="test", label=number)[:rows]])
        columns["nearest real"].append(known.scans[nearest_distances(shown, known.scans, among=train)[1]])
        columns["synthetic"].append(shown)
    return contact_sheet([(name, np.concatenate(parts).astype(np.float32)) for name, parts in columns.items()])


def _enlarged(scans: np.ndarray) -> np.ndarray:
    shape = (*scans.shape[:2], *(2 * length for length in scans.shape[2:]))
    return resize(scans.astype(np.float32), shape, order=3)


def _prepared(cohort: Cohort, intensity: IntensityOptions, size: tuple[int, ...] = (64, 64)) -> PreparedCohort:
    return prepare_cohort(cohort, grid=GridOptions(size=size), intensity=intensity, progress=False)


def main() -> None:
    """Write one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("memorisation", "synthetic", "volumes", "sheet"))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--synthetic", type=Path)
    parser.add_argument("--low", type=float, default=0.0)
    parser.add_argument("--high", type=float, default=255.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    intensity = IntensityOptions(method="range", low=options.low, high=options.high)
    if options.kind == "synthetic":
        write_picture(options.out, synthetic_rows(options.synthetic, intensity))
        return
    if options.kind == "volumes":
        write_picture(options.out, volume_rows(options.run, options.synthetic))
        return
    real = options.kind == "sheet"
    write_bytes(options.out, sheet(options.real, options.synthetic, intensity) if real else memorisation(options.run))


if __name__ == "__main__":
    main()
