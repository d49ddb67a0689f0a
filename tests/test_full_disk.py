"""A disk that is too small or fills up: said beforehand where it can be known, and nothing is lost where it cannot."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import medsynth
from medsynth.cli import run_command
from medsynth.errors import ConfigError
from medsynth.files import atomic_path, check_space, hash_file
from medsynth.runs import load_run
from medsynth.training.checkpoints import AtomicCheckpointIO, check_checkpoint
from medsynth.training.preflight import run_bytes

Usage = namedtuple("Usage", "total used free")


def fill_disk(monkeypatch, free):
    """Let every disk say that only `free` bytes are left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - free, free))


def one_line(capsys):
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_the_room_of_a_folder_that_is_not_there_yet(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path / "a" / "b", free // 2, purpose="tests", option="--out")
    with pytest.raises(
        ConfigError, match=r"a/b: need about \d+ MiB free for tests, got \d+ MiB; try freeing some, or --out"
    ):
        check_space(tmp_path / "a" / "b", 4 * free, purpose="tests", option="--out")
    assert not (tmp_path / "a").exists()


def test_training_is_refused_before_it_begins(tiny_config, tiny_cohort, tmp_path, monkeypatch, capsys):
    fill_disk(monkeypatch, 1 << 20)
    arguments = ["train", "--config", str(tiny_config), "--cohort", str(tiny_cohort), "--out", str(tmp_path / "run")]
    arguments += ["--cache_dir", str(tmp_path / "cache"), "--progress", "false"]
    assert run_command(arguments) == 2
    line = one_line(capsys)
    assert str(tmp_path / "run") in line
    assert "free for checkpoints and weights, got 1 MiB" in line
    assert list(tmp_path.iterdir()) == []


def test_the_estimate_holds_what_a_run_folder_grows_to(tiny_run):
    estimate = run_bytes(tiny_run.spec.build())
    files = {path.name: path.stat().st_size for path in tiny_run.folder.rglob("*") if path.is_file()}
    most = sum(files.values()) + files["last.ckpt"] + files["model.safetensors"]
    assert most <= estimate <= 1.2 * most + (17 << 20)


def test_preparing_scans_is_refused_before_they_are_read(tiny_cohort, tmp_path, monkeypatch):
    from medsynth.cohorts import prepare_cohort
    from medsynth.config import GridOptions, IntensityOptions, Loading

    def prepare():
        return prepare_cohort(
            medsynth.read_cohort(tiny_cohort),
            grid=GridOptions(size=32),
            intensity=IntensityOptions(),
            loading=Loading(cache_dir=tmp_path, progress=False),
        )

    needed = 60 * 32 * 32 * 2
    fill_disk(monkeypatch, needed - 1)
    with pytest.raises(ConfigError, match=r"for the prepared scans.*--cache_dir"):
        prepare()
    assert not list(tmp_path.glob("*.np*"))
    fill_disk(monkeypatch, needed)
    assert prepare().scans.nbytes == needed


def test_sampling_is_refused_before_it_begins(tiny_run, tmp_path, monkeypatch, capsys):
    fill_disk(monkeypatch, 1 << 20)
    out = tmp_path / "set"
    arguments = ["sample", "--run", str(tiny_run.folder), "--out", str(out), "--progress", "false", "--count"]
    assert run_command([*arguments, "dark=400"]) == 2
    assert "need about 2 MiB free for 400 scans, got 1 MiB" in one_line(capsys)
    assert not out.exists()
    assert run_command([*arguments, f"dark={10**30}"]) == 2
    assert "need a whole number from 1 to 1,000,000 of each class" in one_line(capsys)


def say_as_safetensors(path):
    """It replaces the link to the device, so its words are given here; `test_fault_27_full_disk_in_train` meets them."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("writer", ["torch", "safetensors", "numpy", "plain"])
def test_a_full_disk_has_one_name_whoever_writes(writer, tmp_path):
    """Each library meets a device that is always full, and says so in words of its own."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    array = torch.zeros(1 << 16)
    write = {
        "torch": lambda path: torch.save(array, path),
        "safetensors": say_as_safetensors,
        "numpy": lambda path: np.save(path, array.numpy()),
        "plain": lambda path: path.write_bytes(bytes(1 << 16)),
    }[writer]
    target = tmp_path / "file.npy"

    def attempt():
        with atomic_path(target) as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            write(temporary)

    with pytest.raises(OSError) as caught:
        attempt()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(target))
    assert list(tmp_path.iterdir()) == []


def test_fault_27_a_checkpoint_that_does_not_fit_leaves_the_last_one(tmp_path):
    """A limit on the size of files stands for the full disk: it stops torch in the middle of its archive as well."""
    keeper, path = AtomicCheckpointIO(tmp_path), tmp_path / "last.ckpt"
    keeper.save_checkpoint({"global_step": 1, "weights": torch.ones(10)}, path)
    digest = hash_file(path)
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ConfigError, match="the disk is full; the last checkpoint is intact: free some space"):
            keeper.save_checkpoint({"global_step": 2, "weights": torch.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert hash_file(path) == digest
    check_checkpoint(path, tmp_path)
    assert not list(tmp_path.glob(".partial*"))


# A disk of its own in a namespace of its own, which no other process sees.
_SMALL_DISK = 'mkdir -p "$DISK" && mount -t tmpfs -o size="$SIZE" tmpfs "$DISK" && exec "$@"'
_FILL = """
    import os, pathlib, shutil, sys
    disk = pathlib.Path(os.environ["DISK"])
    def fill():
        with open(disk / "fill", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 12))
            except OSError:
                pass
"""


def on_small_disk(script, disk, size):
    """Run a Python script on a disk of `size` and return what it printed; skip where that is not allowed."""
    command = ["unshare", "-Urm", "sh", "-c", _SMALL_DISK, "sh"]
    environment = os.environ | {"DISK": str(disk), "SIZE": size}
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux)")
    if subprocess.run([*command, "true"], env=environment, capture_output=True).returncode:
        pytest.skip("mounting in a namespace of its own is not allowed here")
    text = textwrap.dedent(_FILL) + textwrap.dedent(script)
    done = subprocess.run(
        [*command, sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_fault_27_full_disk_in_train(tiny_run, tiny_config, tiny_cohort, tmp_path):
    """The disk fills before the checkpoint of step 8: that of step 4 stays, and leads to the weights of a run without it."""
    script = f"""
        from medsynth.cli import run_command
        from medsynth.training import checkpoints
        from medsynth.training.checkpoints import check_checkpoint
        arguments = ["train", "--config", {str(tiny_config)!r}, "--cohort", {str(tiny_cohort)!r}, "--out", str(disk / "run")]
        arguments += ["--progress", "false", "--cache_dir", {str(tmp_path / "cache")!r}]
        save = checkpoints.save_run
        def save_and_fill(*arguments, steps, **options):
            if steps == 8 and os.environ["WHEN"] == "weights":
                fill()
            save(*arguments, steps=steps, **options)
            if steps == 8 and os.environ["WHEN"] == "checkpoint":
                fill()
        checkpoints.save_run = save_and_fill
        for when in ("weights", "checkpoint"):
            os.environ["WHEN"] = when
            print(run_command(arguments))
            check_checkpoint(disk / "run" / "checkpoints" / "last.ckpt", disk / "run" / "checkpoints")
            (disk / "fill").unlink()
        os.environ["WHEN"] = "never"
        print(run_command(arguments))
        shutil.copytree(disk / "run", {str(tmp_path / "run")!r})
    """
    said, errors = on_small_disk(script, tmp_path / "disk", "60m")
    assert [line for line in said if line.isdigit()] == ["2", "2", "0"]
    first, second, *more = [line for line in errors.splitlines() if line.startswith("medsynth:")]
    assert not more
    assert "model.safetensors: the disk is full; free some space, then repeat the command" in first
    assert "last.ckpt: the disk is full; the last checkpoint is intact" in second
    assert "Traceback" not in errors
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in tiny_run.folder.iterdir()}
    expected, found = (load_file(each / "model.safetensors") for each in (tiny_run.folder, tmp_path / "run"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    load_run(tmp_path / "run").load_denoiser()


def test_fault_27_full_disk_in_sample(tiny_run, tmp_path):
    """The disk fills before the third scan: two whole files stay, and the same command completes the set bit for bit."""
    script = f"""
        from medsynth.cli import run_command
        from medsynth.generation import write as home
        arguments = ["sample", "--run", {str(tiny_run.folder)!r}, "--count", "dark=5", "--out", str(disk / "set")]
        arguments += ["--batch_size", "2", "--format", "npz", "--progress", "false"]
        write, written = home.write_scan, []
        def write_and_fill(scan, path):
            written.append(path)
            if len(written) == 3:
                fill()
            write(scan, path)
        home.write_scan = write_and_fill
        print(run_command(arguments))
        print(len(list((disk / "set").rglob("*.npz"))), (disk / "set" / "cohort.csv").exists())
        (disk / "fill").unlink()
        print(run_command(arguments))
        shutil.copytree(disk / "set", {str(tmp_path / "set")!r})
    """
    said, errors = on_small_disk(script, tmp_path / "disk", "1m")
    assert [line for line in said if "synthetic" not in line] == ["2", "2 False", "0"]
    (line,) = [line for line in errors.splitlines() if line.startswith("medsynth:")]
    assert "dark/000002.npz: the disk is full; free some space, then repeat the command" in line
    assert "Traceback" not in errors
    medsynth.sample(
        run=tiny_run.folder, count="dark=5", out=tmp_path / "whole", batch_size=2, format="npz", progress=False
    )
    for file in (tmp_path / "whole").rglob("*"):
        if file.is_file():
            assert (tmp_path / "set" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes(), file
    assert len(json.loads((tmp_path / "set" / "provenance.json").read_text())["sessions"]) == 1
    assert not list((tmp_path / "set").rglob(".partial*"))
