"""Where the intensities of real and synthetic scans lie, in physical units: peaks of lung and soft tissue in CT, and quartiles.

    python -m benchmarks.intensities --config lung_nodule_3d --real cohort.csv --synthetic synthetic/cohort.csv

Real scans are those of the validation and test splits; all are on the grid of the configuration. A peak is the middle of the
fullest bin of 25 HU below -500 HU (without the lowest bin, where what lies outside is clipped) and above -150 HU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import medsynth
from medsynth.cohorts import prepare_cohort

_LUNG, _SOFT, _BIN = -500, -150, 25


def peaks(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return the peaks of lung and of soft tissue in HU."""
    counts, edges = np.histogram(values, np.arange(low, high + 1, _BIN))
    middles = (edges[:-1] + edges[1:]) / 2
    counts[0] = 0
    lung, soft = middles < _LUNG, middles > _SOFT
    return float(middles[lung][np.argmax(counts[lung])]), float(middles[soft][np.argmax(counts[soft])])


def main() -> None:
    """Print a row for each class of both cohorts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", default="lung_nodule_3d", help="configuration with grid and range of the intensities"
    )
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, required=True)
    arguments = parser.parse_args()
    options = medsynth.load_config(arguments.config)
    intensity = options["intensity"]
    print("| scans | class | n | lung | soft tissue | quartiles |\n|---|---|---|---|---|---|")
    for name, path, splits in (
        ("real", arguments.real, ("val", "test")),
        ("synthetic", arguments.synthetic, ("train", "val", "test")),
    ):
        cohort = medsynth.read_cohort(path)
        prepared = prepare_cohort(cohort, grid=options["grid"], intensity=intensity, progress=False)
        for number, label in enumerate(prepared.classes):
            rows = prepared.indices(split=splits, label=number)
            share = (np.asarray(prepared.scans[rows], dtype=np.float32) + 1) / 2
            values = intensity.low + share * (intensity.high - intensity.low)
            lung, soft = peaks(values, intensity.low, intensity.high)
            quartiles = " ".join(f"{value:.0f}" for value in np.percentile(values, [25, 50, 75]))
            print(f"| {name} | {label} | {len(rows)} | {lung:.0f} | {soft:.0f} | {quartiles} |")


if __name__ == "__main__":
    main()
