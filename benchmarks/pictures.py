"""The picture of the README: the first scans of each class of a synthetic set, one row for each class.

python -m benchmarks.pictures --synthetic synthetic --low 0 --high 255 --out docs/images/chest_xray_synthetic.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from skimage.transform import resize

import medsynth
from medsynth.cohorts import prepare_cohort
from medsynth.config import GridOptions, IntensityOptions, Loading
from medsynth.scans.picture import captioned_rows, write_picture

_ACROSS = 8


def synthetic_rows(synthetic: Path, intensity: IntensityOptions, side: int) -> np.ndarray:
    """Return the picture, with scans twice as large as the grid."""
    prepared = prepare_cohort(
        medsynth.read_cohort(synthetic / "cohort.csv"),
        grid=GridOptions(size=side),
        intensity=intensity,
        loading=Loading(progress=False),
    )
    return captioned_rows(
        [
            (f"{label} (synthetic)", _enlarged(prepared.scans[prepared.indices(label=number)[:_ACROSS]]))
            for number, label in enumerate(prepared.classes)
        ]
    )


def _enlarged(scans: np.ndarray) -> np.ndarray:
    shape = (*scans.shape[:2], *(2 * length for length in scans.shape[2:]))
    return np.asarray(resize(scans.astype(np.float32), shape, order=3))


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", type=Path, required=True, help="folder of a set of 2D scans")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--low", type=float, default=0.0)
    parser.add_argument("--high", type=float, default=255.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    intensity = IntensityOptions(method="range", low=options.low, high=options.high)
    write_picture(options.out, synthetic_rows(options.synthetic, intensity, options.size))


if __name__ == "__main__":
    main()
