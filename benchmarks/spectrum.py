"""Power of synthetic scans beside real training scans at each spatial frequency: blur shows as ratios below 1 at the high end.

python -m benchmarks.spectrum --real cohort.csv --synthetic synthetic/cohort.csv --size 64 --low 0 --high 255
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import medsynth
from medsynth.cohorts import prepare_cohort
from medsynth.config import GridOptions, IntensityOptions

PARTS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


def radial_power(scans: np.ndarray) -> np.ndarray:
    """Mean power of square pictures `(N, H, H)` at each distance from frequency 0, up to the Nyquist frequency."""
    size = scans.shape[-1]
    power = np.abs(np.fft.fftshift(np.fft.fft2(scans - scans.mean((1, 2), keepdims=True)), axes=(1, 2))) ** 2
    places = np.indices((size, size)) - size // 2
    radius = np.hypot(*places).astype(int).ravel()
    return (np.bincount(radius, power.mean(0).ravel()) / np.bincount(radius))[: size // 2]


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, required=True)
    parser.add_argument("--label", help="one class only")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--low", type=float, default=0.0)
    parser.add_argument("--high", type=float, default=255.0)
    parser.add_argument("--scans", type=int, default=600)
    arguments = parser.parse_args()
    found = []
    for path in (arguments.synthetic, arguments.real):
        prepared = prepare_cohort(
            medsynth.read_cohort(path),
            grid=GridOptions(size=arguments.size),
            intensity=IntensityOptions(method="range", low=arguments.low, high=arguments.high),
            progress=False,
        )
        label = prepared.classes.index(arguments.label) if arguments.label else None
        rows = np.random.default_rng(0).permutation(prepared.indices(split="train", label=label))[: arguments.scans]
        found.append(radial_power(np.asarray(prepared.scans[np.sort(rows), 0], dtype=np.float32)))
    ratio = found[0] / found[1]
    print("| part of the Nyquist frequency | " + " | ".join(f"{part:g}" for part in PARTS) + " |")
    print("|---" * (1 + len(PARTS)) + "|")
    places = [min(len(ratio) - 1, round(part * len(ratio)) - 1) for part in PARTS]
    print("| synthetic / real power | " + " | ".join(f"{ratio[place]:.2f}" for place in places) + " |")


if __name__ == "__main__":
    main()
