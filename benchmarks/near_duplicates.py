"""How many planted near-duplicates `medsynth index` finds in real cohorts, and how many pairs it reports besides.

    python -m benchmarks.near_duplicates --cohort cohort.csv --result benchmarks/results/near_duplicates.json

Of `--planted` scans, each of another patient, changed copies are added under new patients, one kind of change at a time. `others`
are pairs of different patients without a planted copy, `same_patient` pairs of one patient; whether these are one picture twice
is for a person to judge: their distances are listed. The result of several cohorts is one file, by name.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import describe_machine
from medsynth.cohorts import near, read_cohort
from medsynth.files import write_json
from medsynth.scans import read_scan
from medsynth.seeds import numpy_generator


def compress(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Return 8-bit pixels `(height, width)` after JPEG."""
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream), dtype=np.float64)


def shift(pixels: np.ndarray, share: float) -> np.ndarray:
    """Return pixels moved down and left by a share of the width, with the edges continued."""
    by = max(1, round(share * pixels.shape[-1]))
    padded = np.pad(pixels, by, mode="edge")
    return padded[: pixels.shape[0], 2 * by : 2 * by + pixels.shape[1]]


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "same": lambda pixels, random: pixels,
    "mirrored": lambda pixels, random: pixels[:, ::-1],
    "shifted 3 %": lambda pixels, random: shift(pixels, 0.03),
    "noise 2.5 %": lambda pixels, random: pixels + random.normal(0, 0.025 * 255, pixels.shape),
    "noise 5 %": lambda pixels, random: pixels + random.normal(0, 0.05 * 255, pixels.shape),
    "JPEG 30": lambda pixels, random: compress(pixels, 30),
    "contrast": lambda pixels, random: 255 * (pixels / 255) ** 0.9 * 0.8 + 20,
    "mirrored, shifted 1.5 %, JPEG 50": lambda pixels, random: compress(shift(pixels[:, ::-1], 0.015), 50),
}


def plant(pixels: np.ndarray, patients: np.ndarray, count: int, kind: str) -> dict[str, Any]:
    """Return what is found of `count` copies of 8-bit scans `(N, height, width)`; `patients` are theirs."""
    random = numpy_generator(0, "near duplicates", kind)
    _, first = np.unique(patients, return_index=True)
    chosen = random.permutation(first)[:count]
    copies = [near.shrink_scan(KINDS[kind](pixels[place].astype(np.float64), random)[None]) for place in chosen]
    scans = np.stack([*(near.shrink_scan(each[None]) for each in pixels), *copies])
    names = [*patients, *(f"planted {number}" for number in range(len(chosen)))]
    began = time.process_time()
    pairs = near.find_near_duplicates(scans, names)
    seconds = time.process_time() - began
    expected = {(int(place), len(pixels) + number) for number, place in enumerate(chosen)}
    found = {pair[:2]: pair.distance for pair in pairs}
    old = [pair for pair in pairs if pair.second < len(pixels)]
    return {
        "found": len(expected & found.keys()),
        "planted": len(expected),
        "largest_distance": max((found[pair] for pair in expected & found.keys()), default=None),
        "others": [pair.distance for pair in old if patients[pair.first] != patients[pair.second]],
        "same_patient": [pair.distance for pair in old if patients[pair.first] == patients[pair.second]],
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--result", type=Path, required=True)
    options = parser.parse_args()
    cohort = read_cohort(options.cohort)
    pixels = np.stack([read_scan(cohort.file_of(row)).array[0] for row in cohort.rows])
    patients = np.array([row.patient_id for row in cohort.rows])
    kinds = {kind: plant(pixels, patients, options.planted, kind) for kind in KINDS}
    known = json.loads(options.result.read_text()) if options.result.exists() else {}
    about = {"scans": len(pixels), "patients": len(np.unique(patients)), "machine": describe_machine(), "kinds": kinds}
    write_json(options.result, known | {options.name: about})
    for kind, row in kinds.items():
        print(
            f"{options.name}, {kind}: {row['found']} of {row['planted']}, {len(row['others'])} others, {row['seconds']} s"
        )


if __name__ == "__main__":
    main()
