"""The faults of `tests/test_faults.py` that a volume can have, in a cohort of phantom volumes, by their numbers in the list.

Whether the folder is indexed or a cohort written by hand goes to training: exit code 3, one line that names the file, and not
one file written.
"""

from __future__ import annotations

import csv
import gzip
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

import medsynth
from medsynth.cohorts import read_cohort, write_phantom
from medsynth.config import DemoOptions, Loading
from medsynth.scans import read_scan
from tests.scans.test_faults import Trap, gzip_zeros, nifti_bytes, npy_bytes, set_field
from tests.test_faults import refused, run, small_training, table

SIZE = 16


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "phantom"
    write_phantom(DemoOptions(out=folder, scans=24, size=SIZE, volumes=True, rare_share=0.3, progress=False))
    return folder


@pytest.fixture
def cohort(sound: Path, tmp_path: Path) -> Path:
    """A cohort of sound volumes in NIfTI; a test spoils the first of its training."""
    shutil.copytree(sound, tmp_path / "phantom")
    return tmp_path / "phantom" / "cohort.csv"


@pytest.fixture
def npz_cohort(cohort: Path) -> Path:
    """The same volumes as NPZ, without masks and attributes."""
    read = read_cohort(cohort)
    for row in read.rows:
        file = read.file_of(row)
        scan = read_scan(file)
        np.savez(file.with_name(file.name.replace(".nii.gz", ".npz")), image=scan.array[0], affine=scan.affine)
        file.unlink()
    with cohort.open(newline="") as stream:
        rows = list(csv.reader(stream))
    with cohort.open("w", newline="") as stream:
        csv.writer(stream).writerows([row[0].replace(".nii.gz", ".npz"), *row[1:4]] for row in rows)
    return cohort


def index(cohort: Path, *options: object) -> tuple[object, ...]:
    """Index the scans again, with the labels, patients and splits that they have."""
    scans, out = cohort.parent / "scans", cohort.parents[1] / "out" / "cohort.csv"
    with cohort.open(newline="") as stream:
        rows = [[Path(path).name, *rest] for path, *rest in csv.reader(stream)]
    labels = cohort.parents[1] / "labels.csv"
    with labels.open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", *rows[0][1:4]], *(row[:4] for row in rows[1:])])
    return ("index", "--scans", scans, "--labels", labels, "--out", out, "--allow_tiny", *options)


def training(cohort: Path, *options: object) -> tuple[object, ...]:
    return small_training(cohort, cohort.parents[1] / "run", *options)


def spoiled(cohort: Path) -> Path:
    """The first training volume of the cohort, which is the one to spoil."""
    read = read_cohort(cohort)
    return next(read.file_of(row) for row in read.rows if row.split == "train")


def refused_everywhere(capsys: pytest.CaptureFixture[str], cohort: Path, *options: object) -> str:
    """Check that indexing and training name the spoiled file; return what the training said."""
    file, folder = spoiled(cohort), cohort.parents[1]
    said = ""
    for command in (index(cohort, *options), training(cohort, *options)):
        said = refused(capsys, folder, *command)
        assert str(file) in said
        assert not (folder / "out").exists()
        assert not (folder / "run").exists()
    return said


def spoil_nifti(file: Path, change: Callable[[nibabel.Nifti1Header], object] = lambda header: None, **voxels) -> None:
    """Write the volume anew with a changed header, and with voxels set: `values` to `at`."""
    array = read_scan(file).array[0]
    if voxels:
        array = array.astype(np.float32)
        array[voxels["at"]] = voxels["values"]
    file.write_bytes(gzip.compress(nifti_bytes(array, change)))


def test_the_sound_cohort_is_indexed_and_trained(cohort):
    assert run(*index(cohort)) == 0
    assert run(*training(cohort)) == 0


def test_fault_01_truncated_volume(cohort, capsys):
    file = spoiled(cohort)
    whole = file.read_bytes()
    for length in (200, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert "need" in refused_everywhere(capsys, cohort)


def test_fault_02_header_that_claims_30000_cubed(cohort, capsys):
    spoil_nifti(spoiled(cohort), set_field("dim", [3, 30000, 30000, 30000, 1, 1, 1, 1]))
    said = refused_everywhere(capsys, cohort)
    assert "at most 512 MiB decoded, got 30000 x 30000 x 30000 of int16" in said


def test_fault_03_bomb_in_a_volume(cohort, capsys):
    head = nifti_bytes(np.zeros((1, 1, 1), np.uint8), set_field("dim", [3, 256, 256, 512, 1, 1, 1, 1]))[:352]
    spoiled(cohort).write_bytes(gzip_zeros(head, 32 << 20))
    said = refused_everywhere(capsys, cohort, "--max_mib", 31)
    assert "at most 31 MiB decoded, got 256 x 256 x 512 of uint8, 32 MiB; try a larger max_mib" in said
    # More voxels than the header announces, however many: never inflated.
    small = nifti_bytes(np.zeros((SIZE,) * 3, np.int16))
    spoiled(cohort).write_bytes(gzip_zeros(small, 32 << 20))
    assert "got a file that goes on after them" in refused_everywhere(capsys, cohort)


def test_fault_06_npz_volumes_with_objects_or_a_bomb(npz_cohort, capsys, tmp_path):
    file = spoiled(npz_cohort)
    objects = np.empty((4, 4, 4), dtype=object)
    objects[:] = Trap(tmp_path / "executed")
    np.savez(file, allow_pickle=True, image=objects)
    assert "Python objects, which are never unpickled" in refused_everywhere(capsys, npz_cohort)
    np.savez(file, allow_pickle=True, image=np.zeros((4, 4, 4)), affine=objects)
    assert "Python objects, which are never unpickled" in refused_everywhere(capsys, npz_cohort)
    assert not (tmp_path / "executed").exists()

    def bomb(shape: str, mebibytes: int) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("image.npy", "w") as stream:
            stream.write(npy_bytes(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}"))
            for _ in range(mebibytes):
                stream.write(bytes(1 << 20))

    bomb("(32, 1024, 1024)", 32)
    assert file.stat().st_size < 100_000
    assert "at most 31 MiB" in refused_everywhere(capsys, npz_cohort, "--max_mib", 31)
    bomb("(30000, 30000, 30000)", 1)
    refused_everywhere(capsys, npz_cohort)
    bomb("(4, 4, 4)", 32)
    assert "need 64 bytes after the header" in refused_everywhere(capsys, npz_cohort)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_fault_07_nan_or_inf_voxels(cohort, capsys, value):
    file = spoiled(cohort)
    at = (np.array([0, 5, 15]), np.array([0, 6, 15]), np.array([0, 7, 15]))
    spoil_nifti(file, at=at, values=value)
    said = refused_everywhere(capsys, cohort)
    assert "need finite voxels, got 3 that are NaN or infinite; try --nan zero" in said
    assert run(*index(cohort, "--nan", "zero")) == 0
    (row,) = (row for row in table(cohort.parents[1] / "out" / "cohort_quality.csv") if row["path"].endswith(file.name))
    assert "nan_zeroed" in row["flags"]
    scan = read_scan(file, loading=Loading(nan="zero"))
    assert scan.attributes["nan_voxels"] == 3
    assert (scan.array[0][at] == 0).all()
    if np.isnan(value):
        assert run(*training(cohort, "--nan", "zero")) == 0


def test_fault_07_nan_voxels_in_npz(npz_cohort, capsys):
    file = spoiled(npz_cohort)
    array = read_scan(file).array[0].astype(np.float32)
    array[3, 4, 5] = np.nan
    np.savez(file, image=array)
    assert "got 1 that are NaN or infinite" in refused_everywhere(capsys, npz_cohort)


def test_fault_08_constant_volume(cohort, capsys):
    spoil_nifti(spoiled(cohort), at=..., values=40)
    assert run(*index(cohort)) == 0
    assert "1 scans are constant" in capsys.readouterr().out
    # Nothing but constant volumes, and intensities measured on them: no division by zero, and a warning.
    read = read_cohort(cohort)
    for row in read.rows:
        spoil_nifti(read.file_of(row), at=..., values=40)
    with np.errstate(all="raise"), pytest.warns(UserWarning, match="low and high are both 40"):
        assert run(*training(cohort)) == 0
    series = medsynth.load_run(cohort.parents[1] / "run").read_metrics()
    assert all(np.isfinite(values).all() for _, values in series.values())


@pytest.mark.parametrize("fault", ["nan", "zero", "singular"])
def test_fault_09_geometry_that_is_none(cohort, capsys, fault):
    def change(header: nibabel.Nifti1Header) -> None:
        if fault == "singular":
            header["sform_code"] = 1
            header["srow_x"], header["srow_y"], header["srow_z"] = [2, 0, 0, 1], [0, 2, 0, 1], [2, 2, 0, 0]
        else:
            header["pixdim"][3] = np.nan if fault == "nan" else 0

    spoil_nifti(spoiled(cohort), change)
    said = refused_everywhere(capsys, cohort)
    assert ("singular" if fault == "singular" else "voxel sizes above 0 mm") in said


@pytest.mark.parametrize("fault", ["spacing", "singular", "nan"])
def test_fault_09_geometry_that_is_none_in_npz(npz_cohort, capsys, fault):
    file = spoiled(npz_cohort)
    array = read_scan(file).array[0]
    affine = np.diag([1.0, 1.0, np.nan if fault == "nan" else 0.0, 1.0])
    np.savez(file, image=array, **({"spacing": [1.0, 0.0, 1.0]} if fault == "spacing" else {"affine": affine}))
    refused_everywhere(capsys, npz_cohort)
