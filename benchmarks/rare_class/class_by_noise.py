"""At which noise levels a generator knows the classes: its denoising error as a classifier of development scans.

    python -m benchmarks.rare_class.class_by_noise --run runs/rare_class/generators/NAME --cohort development/cohort.csv \
        --rare viral_pneumonia

Each scan is noised to a level and denoised under each class; the class with the smaller error is the likelier one (a diffusion
classifier, Li et al. 2023, arXiv 2303.16203, kept apart by noise level). Prints a table of AUROC, and writes JSON with --result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

import medsynth
from benchmarks.machine import describe_machine
from medsynth.cohorts import prepare_cohort
from medsynth.config import GridOptions
from medsynth.files import write_json
from medsynth.networks import Denoiser
from medsynth.runs import load_run

LEVELS = (0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0)


@torch.inference_mode()
def errors(denoiser: Denoiser, scans: Tensor, label: int, level: float, draw: int) -> np.ndarray:
    """Squared error of each scan `(N,)` at one noise level under one class."""
    noise = torch.randn(scans.shape, generator=torch.Generator().manual_seed(draw))
    found = []
    for clean, added in zip(scans.split(64), noise.split(64), strict=True):
        condition = denoiser.embedding.make(torch.full((len(clean),), label))
        denoised = denoiser(clean + level * added, torch.full((len(clean),), level), condition)
        found.append((denoised - clean).square().flatten(1).sum(1))
    return torch.cat(found).numpy()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True, help="its test split is read: give development scans")
    parser.add_argument("--rare", required=True)
    parser.add_argument("--draws", type=int, default=3, help="noise draws of each scan")
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    denoiser = run.load_denoiser()
    prepared = prepare_cohort(
        medsynth.read_cohort(arguments.cohort), grid=GridOptions(size=run.spec.shape[1:]), intensity=run.spec.intensity
    )
    rows = prepared.indices(split="test")
    scans = torch.from_numpy(np.asarray(prepared.scans[rows], dtype=np.float32))
    truth = np.array([prepared.classes[label] for label in prepared.labels[rows]])
    others = [label for label in run.spec.classes if label != arguments.rare]
    table = []
    print("| sigma | against the rest | " + " | ".join(f"against {label}" for label in others) + " |")
    print("|---" * (2 + len(others)) + "|")
    for level in tqdm(LEVELS, desc="noise levels", unit="level"):
        found = {
            label: np.mean(
                [errors(denoiser, scans, run.spec.label_index(label), level, draw) for draw in range(arguments.draws)],
                axis=0,
            )
            for label in run.spec.classes
        }
        rare = truth == arguments.rare
        row = {"sigma": level}
        row["rest"] = float(
            roc_auc_score(rare, np.min([found[label] for label in others], axis=0) - found[arguments.rare])
        )
        for label in others:
            pair = rare | (truth == label)
            row[label] = float(roc_auc_score(rare[pair], (found[label] - found[arguments.rare])[pair]))
        table.append(row)
        print(f"| {level:g} | " + " | ".join(f"{row[name]:.3f}" for name in ("rest", *others)) + " |", flush=True)
    if arguments.result:
        write_json(
            arguments.result, describe_machine() | {"run": run.fingerprint[:16], "rare": arguments.rare, "rows": table}
        )


if __name__ == "__main__":
    main()
