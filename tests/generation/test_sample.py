import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import medsynth
from medsynth.config import GuidanceOptions, SolverOptions
from medsynth.errors import ConfigError
from medsynth.generation import parse_counts
from medsynth.seeds import derive_seed


def sample(run, out, **options):
    return medsynth.sample(
        run=run.folder, out=out, **{"count": "bright=3,dark=2", "progress": False, "batch_size": 2} | options
    )


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_set_has_its_files_cohort_and_provenance(tiny_run, tmp_path):
    sample(tiny_run, tmp_path / "set")
    with (tmp_path / "set" / "cohort.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == ["bright"] * 3 + ["dark"] * 2
    assert {row["synthetic"] for row in rows} == {"1"}
    assert len({row["seed"] for row in rows}) == len({row["patient_id"] for row in rows}) == 5
    assert all(row["patient_id"].startswith("SYNTH-") and row["split"] == "train" for row in rows)
    assert {row["run"] for row in rows} == {tiny_run.fingerprint[:16]}
    for row in rows:
        with Image.open(tmp_path / "set" / row["path"]) as picture:
            assert picture.size == (16, 16)
            assert picture.mode == "L", "8 bit like the training scans"
            assert "YES" in {value for key, value in picture.text.items() if key.lower().endswith("synthetic")}
    provenance = json.loads((tmp_path / "set" / "provenance.json").read_text())
    assert provenance["synthetic"] is True
    assert provenance["run"] == tiny_run.fingerprint
    assert provenance["counts"] == {"bright": 3, "dark": 2}
    assert provenance["training_patients"] == {"bright": 8, "dark": 32}
    again = medsynth.read_cohort(tmp_path / "set" / "cohort.csv")
    assert len(again.rows) == 5
    assert all("secret" not in name and b"secret" not in data for name, data in content(tmp_path / "set").items())


def test_same_seed_same_set_and_more_scans_begin_with_the_fewer(tiny_run, tmp_path):
    sample(tiny_run, tmp_path / "one")
    sample(tiny_run, tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    sample(tiny_run, tmp_path / "more", count="bright=4,dark=2")
    more, one = content(tmp_path / "more"), content(tmp_path / "one")
    # The third scan of one set went through the network alone, in the other with the fourth.
    assert all(more[name] == one[name] for name in one if name.endswith(("000000.png", "000001.png")))
    sample(tiny_run, tmp_path / "other", seed=1)
    assert content(tmp_path / "other")["bright/000000.png"] != one["bright/000000.png"]


def test_interrupted_set_is_completed_bit_for_bit(tiny_run, tmp_path):
    """`kill -9` after the first file; the same command finishes, without a partial file."""
    options = ["--run", tiny_run.folder, "--count", "bright=40,dark=40", "--batch_size", "4", "--progress", "false"]
    command = [sys.executable, "-m", "medsynth", "sample", *map(str, options), "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "killed")])
    first = tmp_path / "killed" / "bright" / "000000.png"
    deadline = time.time() + 120
    while not first.exists() and time.time() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = len(list((tmp_path / "killed").rglob("0*.png")))
    assert 0 < made < 80
    assert not (tmp_path / "killed" / "cohort.csv").exists()
    for out in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / out)], check=True, env=os.environ, timeout=200)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_set_that_medsynth_0_1_began_is_not_continued(tiny_run, tmp_path):
    sample(tiny_run, tmp_path / "set")
    provenance = json.loads((tmp_path / "set" / "provenance.json").read_text())
    (tmp_path / "set" / "provenance.json").write_text(json.dumps(provenance | {"format": "medsynth-set/1"}))
    with pytest.raises(ConfigError, match=r"begun with medsynth 0\.1; install medsynth-diffusion==0\.1\.0"):
        sample(tiny_run, tmp_path / "set")


def test_another_precision_is_another_set(tiny_run, tmp_path):
    sample(tiny_run, tmp_path / "set", count=1)
    with pytest.raises(ConfigError, match=r"solver\.precision '32-true' -> 'bf16-mixed'"):
        sample(tiny_run, tmp_path / "set", count=1, precision="bf16-mixed")


def test_another_set_in_the_folder_is_refused(tiny_run, tmp_path):
    sample(tiny_run, tmp_path / "set")
    with pytest.raises(ConfigError, match="seed 0 -> 1"):
        sample(tiny_run, tmp_path / "set", seed=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="got other files"):
        sample(tiny_run, tmp_path / "full")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"solver": SolverOptions(steps=0)}, "solver.steps: need a whole number from 1 to 1,000"),
        ({"guidance": GuidanceOptions(scale=-1)}, "guidance.scale: need a number from 0 to 100"),
        ({"batch_size": 0}, "batch_size: need a whole number from 1 to 65,536"),
        ({"accelerator": "gpu"}, "accelerator: need a GPU that torch can use"),
    ],
)
def test_a_wrong_option_leaves_no_folder_behind(tiny_run, tmp_path, wrong, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        sample(tiny_run, tmp_path / "set", **wrong)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["png", "npz", "nifti"])
def test_formats_hold_the_same_scans(tiny_run, tmp_path, name):
    cohort = sample(tiny_run, tmp_path / name, format=name, count="dark=2")
    memory = [made.scan for made in medsynth.generate(tiny_run, count="dark=2", batch_size=2)]
    for row, expected in zip(cohort.rows, memory, strict=True):
        scan = medsynth.read_scan(cohort.file_of(row))
        np.testing.assert_array_equal(scan.array, expected.array)
        assert scan.array.dtype == np.uint8
        np.testing.assert_allclose(scan.affine, expected.affine)
    if name == "nifti":
        image = nibabel.load(cohort.file_of(cohort.rows[0]))
        assert image.header["descrip"].tobytes().startswith(b"SYNTHETIC")


def test_a_finished_set_keeps_saying_how_it_was_made(tiny_run, tmp_path):
    sample(tiny_run, tmp_path / "set")
    before = content(tmp_path / "set")
    sample(tiny_run, tmp_path / "set")
    assert content(tmp_path / "set") == before
    assert len(json.loads(before["provenance.json"])["sessions"]) == 1


def test_sets_of_two_runs_share_no_patient(tiny_run, tmp_path):
    first = sample(tiny_run, tmp_path / "one")
    other = dataclasses.replace(tiny_run, fingerprint="0" * 64)
    names = {derive_seed(int(row.attributes["seed"]), other.fingerprint) for row in first.rows}
    assert not {f"SYNTH-{name:016x}" for name in names} & {row.patient_id for row in first.rows}


def test_guidance_needs_label_dropout(tiny_run):
    never = dataclasses.replace(tiny_run, options={**tiny_run.options, "label_dropout": 0.0})
    with pytest.raises(ConfigError, match=r"guidance\.scale: need a run trained with label_dropout"):
        next(medsynth.generate(never, count=1, guidance=GuidanceOptions(scale=2.0)))


def test_guidance_against_a_class_that_is_named(tiny_run):
    guidance = GuidanceOptions(scale=3.0, sigma_low=0.1, sigma_high=80.0)
    rival = dataclasses.replace(guidance, against="bright=dark,dark=bright")
    made = [next(iter(medsynth.generate(tiny_run, count={"bright": 1}, guidance=each))) for each in (guidance, rival)]
    assert made[1].scan.provenance["guidance"] == "3 in (0.1, 80] bright=dark,dark=bright"
    assert not np.array_equal(made[0].scan.array, made[1].scan.array)
    for wrong in ("bright=grey", "bright=bright", "bright"):
        with pytest.raises(ConfigError, match=r"guidance\.against"):
            next(iter(medsynth.generate(tiny_run, count={"bright": 1}, guidance=GuidanceOptions(against=wrong))))


def test_generate_in_memory(tiny_run):
    made = list(medsynth.generate(tiny_run.folder, count={"dark": 3}, seed=4, batch_size=2))
    assert [item.number for item in made] == [0, 1, 2]
    assert {item.label for item in made} == {"dark"}
    assert made[0].scan.provenance["synthetic"] == "YES"
    assert made[0].scan.array.shape == (1, 16, 16)
    assert not np.array_equal(made[0].scan.array, made[1].scan.array)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=3", {"a": 3}),
        (" b=1 , a=2", {"b": 1, "a": 2}),
        ("7", {"a": 7, "b": 7, "c=d": 7}),
        (7, {"a": 7, "b": 7, "c=d": 7}),
        ({"b": 2}, {"b": 2}),
        ("c=d=5", {"c=d": 5}),
    ],
)
def test_counts(text, expected):
    assert parse_counts(text, ("a", "b", "c=d")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "need label=number, got 'a'"),
        ("a=0", "whole number from 1 to 1,000,000 of each class, got 'a=0'"),
        ("a=-3", "whole number from 1"),
        ("a=1.5", "whole number from 1"),
        ("a=1,a=2", "'a' twice"),
        ("z=1", "classes a, b; got 'z'"),
        ("", "need label=number, got ''"),
        ("0", "whole number from 1"),
    ],
)
def test_counts_name_the_part_that_is_wrong(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_counts(text, ("a", "b"))


def test_scans_are_written_beside_computing_and_an_error_of_writing_ends_it(tiny_run, tmp_path, monkeypatch):
    """All files are there before the cohort is; what the disk says is raised as it is, and what was written stays whole."""
    threads, write = set(), medsynth.generation.write.write_scan

    def watched(scan, file):
        threads.add(threading.current_thread().name)
        if file.name == "000002.png" and failing:
            raise OSError(28, "No space left on device")
        write(scan, file)

    monkeypatch.setattr(medsynth.generation.write, "write_scan", watched)
    failing = True
    with pytest.raises(OSError, match="No space left"):
        sample(tiny_run, tmp_path / "set", count="bright=6,dark=6")
    assert threading.main_thread().name not in threads
    left = content(tmp_path / "set")
    assert {"bright/000000.png", "bright/000001.png", "provenance.json"} <= left.keys()
    assert not {"bright/000002.png", "cohort.csv"} & left.keys()
    failing = False
    sample(tiny_run, tmp_path / "set", count="bright=6,dark=6")
    sample(tiny_run, tmp_path / "whole", count="bright=6,dark=6")
    assert content(tmp_path / "set") == content(tmp_path / "whole")
