"""A cohort that trains in seconds: 16 x 16 PNG, two classes that differ in brightness."""

import atexit
import os
import shutil
import tempfile

import numpy as np
import pytest

# Tests run in a process for each core: more threads would only get in each other's way. Before anything loads torch.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Caches and keys of the tests, and of the processes that they start, never reach the user's home.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="medsynth-cache-")
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="medsynth-data-")

from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.scans import Scan, write_scan
from medsynth.seeds import numpy_generator

for _name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
    atexit.register(shutil.rmtree, os.environ[_name], ignore_errors=True)

TINY = {
    "max_steps": 12,
    "batch_size": 8,
    "grid": {"size": 16},
    "intensity": {"method": "range", "low": 0, "high": 255},
    "network": {"channels": [32], "attention": [False], "dropout": 0.1},
    "optimiser": {"warmup_steps": 2},
    "monitor": {
        "log_every": 2,
        "validate_every": 4,
        "preview_every": 6,
        "checkpoint_every": 4,
    },
}


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    rows = []
    for number in range(60):
        label = "bright" if number % 5 == 0 else "dark"
        random = numpy_generator(0, "tiny", number)
        y, x = np.mgrid[:16, :16] / 16
        centre = random.uniform(0.3, 0.7, size=2)
        blob = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 0.05)
        level = 200 if label == "bright" else 90
        array = (20 + level * blob + random.normal(0, 5, (16, 16))).clip(0, 255).astype(np.uint8)
        path = f"scans/secret-name-{number:03d}.png"
        write_scan(Scan(array=array[None]), folder / path)
        split = "train" if number < 40 else "val" if number < 50 else "test"
        rows.append(Row(path=path, label=label, patient_id=f"secret-patient-{number}", split=split))
    path = folder / "cohort.csv"
    write_cohort(Cohort(folder=folder, rows=tuple(rows), roots={}), path)
    return path


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    import yaml

    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_cohort, tiny_config, tmp_path_factory):
    """A finished run of twelve steps."""
    import medsynth

    out = tmp_path_factory.mktemp("trained") / "run"
    return medsynth.train(**medsynth.load_config(str(tiny_config)), cohort=tiny_cohort, out=out, progress=False)


@pytest.fixture(scope="session")
def judged(tiny_run, tiny_cohort, tmp_path_factory):
    """A folder with a set of seven scans, `set`, and the report of its privacy and fidelity, `report`; not to be changed."""
    import medsynth

    folder = tmp_path_factory.mktemp("judged")
    medsynth.sample(run=tiny_run.folder, count="bright=4,dark=3", out=folder / "set", progress=False)
    medsynth.evaluate(
        real=tiny_cohort,
        synthetic=folder / "set",
        run=tiny_run.folder,
        out=folder / "report",
        parts=["privacy", "fidelity"],
        progress=False,
    )
    return folder
