"""Faults and bad inputs as a user meets them: at the command line, by the numbers of the project's list of thirty.

Refused means: exit code 3, one line on standard error that names the file and the reason, and not one file written or changed.
Rows that are not here have their end-to-end test elsewhere; `docs/reliability.md` says where.
"""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import medsynth
from medsynth.cli import run_command
from medsynth.files import folder_label
from tests.dicom_files import dataset, new_uid, write
from tests.scans.test_faults import Trap, gzip_zeros, nifti_bytes, npy_bytes, png_bytes, set_field

SIZE = 16


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, size=(SIZE, SIZE), dtype=np.uint8)


def volume(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(-1000, 1000, size=(5, 6, 4)).astype(np.int16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of sound scans in two classes, ten patients each; a test adds its fault."""
    for label in ("a", "b"):
        (tmp_path / "scans" / label).mkdir(parents=True)
    return tmp_path / "scans"


def fill(folder: Path, suffix: str) -> None:
    """Put ten sound scans into each class."""
    for number in range(20):
        file = folder / "ab"[number % 2] / f"P{number:02d}{suffix}"
        if suffix == ".png":
            Image.fromarray(picture(number)).save(file)
        elif suffix == ".npz":
            np.savez(file, image=picture(number))
        else:
            content = nifti_bytes(volume(number))
            file.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)


def everything(folder: Path) -> dict[str, bytes]:
    """Content of all files."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(*arguments: object) -> int:
    return run_command([*map(str, arguments), "--progress", "false"])


def refused(capsys: pytest.CaptureFixture[str], watched: Path, *arguments: object, code: int = 3) -> str:
    """Run the command; return its one line of error after checking that nothing was written."""
    before = everything(watched)
    capsys.readouterr()
    assert run(*arguments) == code
    said = capsys.readouterr()
    (line,) = said.err.strip().splitlines()
    assert line.startswith("medsynth: ")
    assert "Traceback" not in said.out + said.err
    assert everything(watched) == before
    assert not [path for path in watched.rglob("*") if path.name.startswith(".partial")]
    return line


def index(folder: Path, *options: object) -> tuple[object, ...]:
    return ("index", "--scans", folder, "--out", folder.parent / "out" / "cohort.csv", *options)


def refused_by_index(capsys: pytest.CaptureFixture[str], folder: Path, file: Path, *options: object) -> str:
    line = refused(capsys, folder.parent, *index(folder, *options))
    assert str(file) in line
    assert not (folder.parent / "out").exists()
    return line


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write_cohort_csv(folder: Path, rows: list[tuple[str, ...]], header: str = "path,label,patient_id,split") -> Path:
    path = folder / "cohort.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def small_training(cohort: Path, out: Path, *options: object) -> tuple[object, ...]:
    return (
        "train", "--cohort", cohort, "--out", out, "--max_steps", 2, "--batch_size", 4, "--grid.size", SIZE,
        "--network.channels", 32, "--network.attention", "false", "--monitor.preview_every", 0, *options,
    )  # fmt: skip


def test_fault_01_truncated_nifti(folder, capsys):
    fill(folder, ".nii.gz")
    file = folder / "a" / "P00.nii.gz"
    file.write_bytes(file.read_bytes()[:-20])
    refused_by_index(capsys, folder, file)
    # Whoever writes a cohort by hand is stopped by the training.
    rows = [(f"{'ab'[n % 2]}/P{n:02d}.nii.gz", "ab"[n % 2], f"P{n}", "train") for n in range(20)]
    cohort = write_cohort_csv(folder, rows)
    line = refused(capsys, folder.parent, *small_training(cohort, folder.parent / "run"))
    assert str(file) in line
    assert not (folder.parent / "run").exists()


def test_fault_02_nifti_header_that_claims_30000_cubed(folder, capsys):
    fill(folder, ".nii")
    file = folder / "b" / "P01.nii"
    file.write_bytes(nifti_bytes(volume(1), set_field("dim", [3, 30000, 30000, 30000, 1, 1, 1, 1])))
    assert "at most 512 MiB decoded, got 30000 x 30000 x 30000" in refused_by_index(capsys, folder, file)


def test_fault_03_nifti_bomb(folder, capsys):
    fill(folder, ".nii.gz")
    file = folder / "a" / "P00.nii.gz"
    head = nifti_bytes(np.zeros((1, 1, 1), np.uint8), set_field("dim", [3, 256, 256, 1024, 1, 1, 1, 1]))[:352]
    file.write_bytes(gzip_zeros(head, 64 << 20))
    assert file.stat().st_size < 100_000
    line = refused_by_index(capsys, folder, file, "--max_mib", 63)
    assert "at most 63 MiB decoded, got 256 x 256 x 1024 of uint8, 64 MiB; try a larger max_mib" in line
    assert run(*index(folder, "--max_mib", 64)) == 0  # the budget is an option


def test_fault_05_png_bomb(folder, capsys):
    fill(folder, ".png")
    file = folder / "a" / "P00.png"
    file.write_bytes(png_bytes(50000, 50000, (b"IDAT", zlib.compress(bytes(1 << 20), 9))))
    assert "at most 512 MiB decoded, got 50000 x 50000" in refused_by_index(capsys, folder, file)


def test_fault_06_npz_with_objects_or_a_bomb(folder, capsys, tmp_path):
    fill(folder, ".npz")
    file = folder / "a" / "P00.npz"
    sound = file.read_bytes()
    objects = np.empty((SIZE, SIZE), dtype=object)
    objects[:] = Trap(tmp_path / "executed")
    np.savez(file, allow_pickle=True, image=objects)
    assert "Python objects, which are never unpickled" in refused_by_index(capsys, folder, file)
    file.write_bytes(pickle.dumps(Trap(tmp_path / "executed")))
    refused_by_index(capsys, folder, file)
    assert not (tmp_path / "executed").exists()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("image.npy", "w") as stream:
        stream.write(npy_bytes("{'descr': '|u1', 'fortran_order': False, 'shape': (64, 1024, 1024)}"))
        stream.write(bytes(64 << 20))
    assert "at most 63 MiB" in refused_by_index(capsys, folder, file, "--max_mib", 63)
    file.write_bytes(sound)
    assert run(*index(folder)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_fault_07_nan_or_inf_voxels(folder, capsys, value):
    fill(folder, ".nii.gz")
    file = folder / "a" / "P00.nii.gz"
    array = volume(0).astype(np.float32)
    array[1, 2, 3] = array[0, 0, 0] = value
    file.write_bytes(gzip.compress(nifti_bytes(array)))
    line = refused_by_index(capsys, folder, file)
    assert "need finite voxels, got 2 that are NaN or infinite; try --nan zero" in line
    assert run(*index(folder, "--nan", "zero")) == 0
    (row,) = (row for row in table(folder.parent / "out" / "cohort_quality.csv") if row["path"].endswith("P00.nii.gz"))
    assert "nan_zeroed" in row["flags"]
    array[1, 2, 3] = array[0, 0, 0] = 0
    assert (float(row["minimum"]), float(row["maximum"])) == (array.min(), array.max())


def test_fault_08_constant_image(folder, capsys):
    fill(folder, ".png")
    Image.fromarray(np.full((SIZE, SIZE), 40, np.uint8)).save(folder / "a" / "P00.png")
    assert run(*index(folder)) == 0
    assert "1 scans are constant" in capsys.readouterr().out
    (row,) = (row for row in table(folder.parent / "out" / "cohort_quality.csv") if row["path"].endswith("P00.png"))
    assert row["flags"] == "constant"
    # Nothing but constant scans: still no division by zero, and a warning.
    for file in folder.rglob("*.png"):
        Image.fromarray(np.full((SIZE, SIZE), 40, np.uint8)).save(file)
    assert run(*index(folder)) == 0
    cohort, out = folder.parent / "out" / "cohort.csv", folder.parent / "run"
    with np.errstate(all="raise"), pytest.warns(UserWarning, match="low and high are both 40"):
        assert run(*small_training(cohort, out)) == 0
    series = medsynth.load_run(out).read_metrics()
    assert all(np.isfinite(values).all() for _, values in series.values())


@pytest.mark.parametrize("fault", ["nan", "zero", "singular"])
def test_fault_09_geometry_that_is_none(folder, capsys, fault):
    fill(folder, ".nii")

    def change(header):
        if fault == "singular":
            header["sform_code"] = 1
            header["srow_x"], header["srow_y"], header["srow_z"] = [2, 0, 0, 1], [2, 0, 0, 1], [0, 0, 1, 0]
        else:
            header["pixdim"][2] = np.nan if fault == "nan" else 0

    file = folder / "b" / "P03.nii"
    file.write_bytes(nifti_bytes(volume(3), change))
    line = refused_by_index(capsys, folder, file)
    assert ("singular" if fault == "singular" else "voxel sizes above 0 mm") in line


@pytest.mark.parametrize("kind", ["4D", "RGB", "complex"])
def test_fault_11_nifti_that_is_no_scan(folder, capsys, kind):
    fill(folder, ".nii")
    colour = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    arrays = {"4D": np.zeros((4, 4, 4, 3), np.int16), "RGB": np.zeros((4, 4, 4), colour)}
    file = folder / "a" / "P02.nii"
    file.write_bytes(nifti_bytes(arrays.get(kind, np.zeros((4, 4, 4), np.complex64))))
    line = refused_by_index(capsys, folder, file)
    assert ("need a 2D or 3D scan, got 4D" if kind == "4D" else "one real number per voxel") in line


def test_fault_12_scaled_and_unsigned_integers_are_exact(folder):
    fill(folder, ".nii")
    stored = np.array([0, 1, 4095, 65535] * 6, dtype=np.uint16).reshape(2, 3, 4)
    (folder / "a" / "P00.nii").write_bytes(nifti_bytes(stored, lambda header: header.set_slope_inter(0.5, -1024)))
    signed = np.array([-32768, -1, 0, 32767] * 6, dtype=np.int16).reshape(2, 3, 4)
    (folder / "b" / "P01.nii").write_bytes(nifti_bytes(signed))
    (folder / "a" / "P02.nii").write_bytes(nifti_bytes(stored))
    assert run(*index(folder)) == 0
    rows = {Path(row["path"]).name: row for row in table(folder.parent / "out" / "cohort_quality.csv")}
    facts = [
        (rows[name]["dtype"], rows[name]["minimum"], rows[name]["maximum"])
        for name in ("P00.nii", "P01.nii", "P02.nii")
    ]
    assert facts == [("float32", "-1024", "31743.5"), ("int16", "-32768", "32767"), ("uint16", "0", "65535")]


@pytest.mark.parametrize("path", ["../secret.png", "absolute", "link.png", "linked/secret.png"])
def test_fault_18_a_path_that_leaves_the_cohort(folder, capsys, path):
    fill(folder, ".png")
    outside = folder.parent / "outside"
    outside.mkdir()
    for place in (folder.parent / "secret.png", outside / "secret.png"):
        Image.fromarray(picture(0)).save(place)
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "linked").symlink_to(outside)
    given = str(outside / "secret.png") if path == "absolute" else path
    rows = [(f"{'ab'[n % 2]}/P{n:02d}.png", "ab"[n % 2], f"P{n}", "train") for n in range(20)]
    cohort = write_cohort_csv(folder, [*rows, (given, "a", "P77", "train")])
    run_folder, cache = folder.parent / "run", folder.parent / "cache"
    line = refused(capsys, folder.parent, *small_training(cohort, run_folder, "--cache_dir", cache))
    assert repr(given) in line
    assert not run_folder.exists()
    assert not cache.exists()


NASTY = ["../../x", "CON", "\N{LUNGS} \N{MICROSCOPE}", "long " * 60, "a=b,c", "=1+1"]


def test_fault_19_labels_that_are_no_folder_names(folder, capsys):
    """From the labels CSV to the files of a synthetic set, and back to the labels."""
    fill(folder, ".png")
    rows = []
    for number in range(24):
        Image.fromarray(picture(number)).save(folder / f"Q{number:02d}.png")
        rows.append((f"Q{number:02d}.png", NASTY[number % len(NASTY)].strip(), f"P{number}", "train"))
    labels = write_cohort_csv(folder, rows)
    out = folder.parent / "out"
    assert run(*index(folder, "--labels", labels)) == 0
    training = small_training(out / "cohort.csv", folder.parent / "run", "--monitor.preview_every", 2)
    assert run(*training) == 0
    made = folder.parent / "set"
    assert run("sample", "--run", folder.parent / "run", "--count", 1, "--out", made, "--solver.steps", 2) == 0
    names = sorted(label.strip() for label in NASTY)
    assert sorted(row["label"] for row in table(made / "cohort.csv")) == names
    scans = list(made.rglob("*.png"))
    assert sorted(folder_label(path.parent.relative_to(made).as_posix()) for path in scans) == names
    assert all(path.resolve().is_relative_to(made.resolve()) for path in scans)
    assert not (folder.parent.parent / "x").exists()
    one = f"{names[0]}=1"
    assert run("sample", "--run", folder.parent / "run", "--count", one, "--out", folder.parent / "one") == 0


def test_fault_20_formulas_marks_and_duplicates(folder, capsys):
    fill(folder, ".png")
    formula = "=cmd|' /C calc'!A0"
    rows = [(f"{'ab'[n % 2]}/P{n:02d}.png", [formula, "normal"][n % 2], f"+P{n}", "") for n in range(20)]
    labels = write_cohort_csv(folder, rows)
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes().replace(b",split", b",age"))
    assert run(*index(folder, "--labels", labels)) == 0
    written = table(folder.parent / "out" / "cohort.csv")
    assert {row["label"] for row in written} == {formula, "normal"}
    assert {row["patient_id"] for row in written} == {f"+P{n}" for n in range(20)}
    shutil.rmtree(folder.parent / "out")
    write_cohort_csv(folder, [*rows, (rows[3][0], formula, "P99", "")])
    line = refused(capsys, folder.parent, *index(folder, "--labels", labels))
    assert "P03.png" in line
    assert "twice" in line
    # A repeated row counts once, with a note; in a cohort it is refused.
    write_cohort_csv(folder, [*rows, rows[3]])
    assert run(*index(folder, "--labels", labels)) == 0
    assert "1 rows of the labels CSV repeat another row" in capsys.readouterr().out
    cohort = write_cohort_csv(folder, [(*row[:3], "train") for row in [*rows, rows[3]]])
    line = refused(capsys, folder.parent, *small_training(cohort, folder.parent / "run"))
    assert f"{cohort}: need each scan once, got 'b/P03.png' twice" in line


def test_fault_21_one_patient_in_two_splits(folder, capsys):
    fill(folder, ".png")
    rows = [
        (f"{'ab'[n % 2]}/P{n:02d}.png", "ab"[n % 2], f"P{n // 2}", "train" if n != 7 else "test") for n in range(20)
    ]
    cohort = write_cohort_csv(folder, rows)
    line = refused(capsys, folder.parent, *small_training(cohort, folder.parent / "run"))
    assert str(cohort) in line
    assert "patient 'P3' in train and test" in line
    assert not (folder.parent / "run").exists()
    line = refused(capsys, folder.parent, *index(folder, "--labels", cohort))
    assert "patient 'P3' in train and test" in line


def test_fault_22_identical_pixels_under_two_patients(folder, capsys):
    fill(folder, ".png")
    shutil.copy(folder / "a" / "P00.png", folder / "a" / "P02.png")
    splits = ["train"] * 20
    rows = [(f"{'ab'[n % 2]}/P{n:02d}.png", "ab"[n % 2], f"P{n}", splits[n]) for n in range(20)]
    labels = write_cohort_csv(folder, rows)
    assert run(*index(folder, "--labels", labels)) == 0
    assert "1 scans have the pixels of another patient" in capsys.readouterr().out
    (row,) = (row for row in table(folder.parent / "out" / "cohort_quality.csv") if row["path"].endswith("P02.png"))
    assert "duplicate_patients" in row["flags"]
    shutil.rmtree(folder.parent / "out")
    rows[2] = (*rows[2][:3], "test")
    write_cohort_csv(folder, rows)
    line = refused(capsys, folder.parent, *index(folder, "--labels", labels))
    assert "need each picture in one split, got pixels equal to" in line
    assert "P02.png" in line


@pytest.mark.parametrize("scans", [0, 1])
def test_fault_23_a_class_with_no_or_one_training_scan(folder, capsys, scans):
    fill(folder, ".png")
    rows = [(f"{'ab'[n % 2]}/P{n:02d}.png", "common", f"P{n}", "train") for n in range(18)]
    rows += [("a/P18.png", "rare", "P18", "train" if scans else "test"), ("b/P19.png", "rare", "P19", "val")]
    labels = write_cohort_csv(folder, rows)
    line = refused(capsys, folder.parent, *index(folder, "--labels", labels))
    assert f"class 'rare': need at least 2 training scans, got {scans}" in line
    assert run(*index(folder, "--labels", labels, "--allow_tiny")) == 0
    assert f"class 'rare' has {scans} training scan(s)" in capsys.readouterr().out


def test_fault_23_a_cohort_without_a_training_split(folder, capsys):
    fill(folder, ".png")
    cohort = write_cohort_csv(
        folder, [(f"{'ab'[n % 2]}/P{n:02d}.png", "ab"[n % 2], f"P{n}", "test") for n in range(20)]
    )
    line = refused(capsys, folder.parent, *small_training(cohort, folder.parent / "run"))
    assert "cohort: need scans in the training split, got none" in line
    assert not (folder.parent / "run").exists()


def test_fault_24_unknown_class(tiny_run, tmp_path, capsys):
    out = tmp_path / "set"
    line = refused(capsys, tmp_path, "sample", "--run", tiny_run.folder, "--count", "brigth=3", "--out", out, code=2)
    assert "count: need one of the run's classes bright, dark; got 'brigth'" in line
    assert not out.exists()


def test_fault_25_tampered_weights(tiny_run, tmp_path, capsys):
    """`tests/test_weights_safety.py` goes through every file of weights and every way to damage one."""
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    line = refused(capsys, tmp_path, "sample", "--run", tmp_path / "run", "--count", 1, "--out", tmp_path / "set")
    assert f"{weights}: need the weights that run.json names, got other bytes" in line


def test_fault_26_checkpoint_of_another_configuration(tiny_run, tiny_config, tiny_cohort, tmp_path, capsys):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    arguments = ["train", "--config", tiny_config, "--cohort", tiny_cohort, "--out", tmp_path / "run"]
    options = ["--max_steps", 24, "--network.dropout", 0.3]
    line = refused(capsys, tmp_path, *arguments, *options, code=2)
    assert str(tmp_path / "run") in line
    assert "max_steps 12 -> 24; network.dropout 0.1 -> 0.3" in line


def test_fault_28_an_interrupted_set_is_completed_bit_for_bit(tiny_run, tmp_path, capsys, monkeypatch):
    """Ctrl-C in the middle; `kill -9` is `tests/generation/test_sample.py::test_interrupted_set_is_completed_bit_for_bit`."""
    from medsynth.generation import write as writing

    arguments = ["sample", "--run", tiny_run.folder, "--count", "bright=3,dark=4", "--batch_size", 2, "--out"]
    assert run(*arguments, tmp_path / "whole") == 0
    write, written = writing.write_scan, []

    def write_and_stop(scan, path):
        written.append(path)
        if len(written) == 4:
            raise KeyboardInterrupt
        write(scan, path)

    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(writing, "write_scan", write_and_stop)
        assert run(*arguments, tmp_path / "cut") == 130
    assert capsys.readouterr().err.strip() == "medsynth: interrupted"
    assert not (tmp_path / "cut" / "cohort.csv").exists()
    assert run(*arguments, tmp_path / "cut") == 0
    first, second = (
        {Path(name).relative_to(tmp_path / part): data for name, data in everything(tmp_path / part).items()}
        for part in ("whole", "cut")
    )
    assert first == second


PLANTED = (b"MILLER", b"19450212", b"MRN-77")


def uids_of(numbers: Iterable[int]) -> Iterator[tuple[object, ...]]:
    """Return what the UIDs of planted DICOM files are made of."""
    for series in (f"MILLER-{number}" for number in numbers):
        yield from ((series, 1), ("study", series), ("series", series))


def planted_scan(file: Path, number: int) -> None:
    """Write a scan whose header, beside its name, tells a patient: NIfTI description and extension, PNG text, DICOM elements."""
    text = f"MILLER^ANNA born 19450212 MRN-77-{number}"
    level = 200 if number % 5 == 0 else 60
    y, x = np.mgrid[:SIZE, :SIZE]
    pixels = (level * np.exp(-((y - 8) ** 2 + (x - 8) ** 2) / 20) + picture(number) / 10).astype(np.uint8)
    if file.suffix == ".png":
        info = PngInfo()
        info.add_text("PatientName", text)
        Image.fromarray(pixels).save(file, pnginfo=info)
        return
    if file.suffix == ".dcm":
        made = dataset(pixels, modality="CR", series=f"MILLER-{number}")
        made.PatientID, made.PatientName, made.AccessionNumber = f"MRN-77-{number}", "MILLER^ANNA", f"MRN-77-{number}"
        made.PatientBirthDate, made.InstitutionName, made.PatientComments = "19450212", "MILLER CLINIC", text
        made.private_block(0x0011, "MILLER", create=True).add_new(1, "LO", text)
        write(made, file, preamble=text.encode())
        return
    image = nibabel.Nifti1Image(pixels[:, :, None].astype(np.int16), np.diag([1.0, 1, 1, 1]))
    image.header["descrip"] = text[:79].encode()
    image.header["db_name"] = b"MILLER"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", text.encode()))
    nibabel.save(image, file)


@pytest.mark.parametrize("suffix", [".png", ".nii.gz", ".dcm"])
def test_fault_30_patients_in_headers_and_paths_reach_nothing(tmp_path, capsys, suffix):
    """From scans whose headers, names, folders and labels CSV tell patients, to everything that medsynth writes of them."""
    scans = tmp_path / "MILLER_ANNA" / "scans"
    scans.mkdir(parents=True)
    rows = []
    for number in range(40):
        name = f"MILLER-19450212-{number:02d}{suffix}"
        planted_scan(scans / name, number)
        split = "train" if number < 24 else "val" if number < 32 else "test"
        rows.append((name, "bright" if number % 5 == 0 else "dark", f"MRN-77-{number}", split))
    labels = write_cohort_csv(scans, rows)
    planted = [*PLANTED, *(new_uid(*words).encode() for words in uids_of(range(40)) if suffix == ".dcm")]
    cohort = tmp_path / "MILLER_ANNA" / "cohort.csv"
    assert run("index", "--scans", scans, "--labels", labels, "--out", cohort) == 0
    # What follows may say nothing of them, on the terminal either.
    capsys.readouterr()
    out = tmp_path / "out"
    training = small_training(cohort, out / "run", "--monitor.preview_every", 2, "--monitor.checkpoint_every", 1)
    assert run(*training) == 0
    assert (
        run("sample", "--run", out / "run", "--count", "bright=3,dark=4", "--out", out / "set", "--solver.steps", 2)
        == 0
    )
    judged = ("evaluate", "--real", cohort, "--synthetic", out / "set", "--run", out / "run", "--out", out / "report")
    assert run(*judged, "--parts", "fidelity,privacy" if suffix == ".png" else "privacy") in (0, 4)
    assert run("card", "--synthetic", out / "set", "--report", out / "report") == 0
    edited = ("edit", "--run", out / "run", "--cohort", cohort, "--donor_class", "dark", "--target_class", "bright")
    assert run(*edited, "--count", 2, "--out", out / "edits", "--solver.steps", 4) == 0
    said = capsys.readouterr()
    assert not [each for each in planted if each.decode() in said.out + said.err]
    kinds = set()
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            kinds.add(path.name if path.parent == out / "run" else path.suffix)
            unpacked = gzip.decompress(content) if path.suffix == ".gz" else content
            assert not [each for each in planted if each in content + unpacked], path
    assert {"run.json", "metrics.csv", "patients.json", ".ckpt", ".html", ".json", ".csv"} <= kinds
    assert json.loads((out / "report" / "report.json").read_text())["settings"]
