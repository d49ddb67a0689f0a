"""The shipped configuration for volumes: it trains on the phantom in 3D and gives volumes that lie right in millimetres."""

from __future__ import annotations

import csv

import nibabel
import numpy as np

import medsynth
from medsynth.config import SolverOptions
from medsynth.pipeline import load_config


def test_sampled_volumes_are_nifti_in_hu_that_lie_as_the_training_volumes_do(tmp_path):
    cohort = medsynth.demo(out=tmp_path / "phantom", scans=24, size=16, volumes=True, rare_share=0.3, progress=False)
    options = load_config("phantom_3d")
    small = {
        "max_steps": 2,
        "batch_size": 4,
        "precision": "32-true",
        "grid": options["grid"] | {"size": 16},
        "network": options["network"] | {"channels": (32, 32), "attention": (False, True)},
        "monitor": options["monitor"] | {"preview_every": 0, "validate_every": 2},
    }
    run = medsynth.train(**(options | small), cohort=cohort.folder / "cohort.csv", out=tmp_path / "run", progress=False)
    made = medsynth.sample(
        run=run.folder,
        count="ground_glass=1,normal=1",
        out=tmp_path / "set",
        solver=SolverOptions(steps=2),
        progress=False,
    )
    with (made.folder / "cohort.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["label"] for row in rows) == ["ground_glass", "normal"]
    for row in rows:
        assert row["synthetic"] == "1"
        image = nibabel.load(made.folder / row["path"])
        assert row["path"].endswith(".nii.gz")
        assert image.shape == (16, 16, 16)
        assert image.header.get_zooms() == (4, 4, 4)
        assert image.header.get_xyzt_units()[0] == "mm"
        # Slices run towards the head, rows towards the back, columns towards the left, about the origin.
        expected = np.array([[0, 0, -4, 30], [0, -4, 0, 30], [4, 0, 0, -30], [0, 0, 0, 1]])
        np.testing.assert_allclose(image.affine, expected, atol=1e-4)
        hu = image.get_fdata()
        assert hu.min() >= -1000
        assert hu.max() <= 300
        assert hu.std() > 0
