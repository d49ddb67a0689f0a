"""Fuzzing, kill points and a soak with moderate numbers: `pytest -n 0 -m slow tests/slow`, some minutes.

The same as commands, with large numbers: `python -m tests.slow.fuzz`, `.kill_points` and `.soak`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import medsynth

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def run(command: str, result: Path, *options: object) -> dict[str, Any]:
    """Run one of the commands and return the JSON that it writes."""
    arguments = [sys.executable, "-m", f"tests.slow.{command}", "--result", str(result), *map(str, options)]
    subprocess.run(arguments, check=True, cwd=Path(__file__).parents[2])
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def test_spoiled_input_is_read_or_refused(tmp_path):
    found = run("fuzz", tmp_path / "fuzz.json", "--count", 2000, "--seed", 2)
    assert found["faults"] == []
    assert found["inputs"] >= 2000


def test_killed_commands_continue_to_the_same_result(tmp_path):
    found = run("kill_points", tmp_path / "kill_points.json", "--kills", 8)
    for kind in ("train", "sample"):
        assert found[kind]["kills"] > 0
        assert (found[kind]["whole"], found[kind]["equal"], found[kind]["partial_files_left"]) == (8, 8, 0)


def test_memory_stays_flat(tmp_path):
    medsynth.demo(out=tmp_path / "phantom", scans=90, size=64, progress=False)
    cohort = tmp_path / "phantom" / "cohort.csv"
    medsynth.train(
        **medsynth.load_config("phantom_2d") | {"max_steps": 4}, cohort=cohort, out=tmp_path / "run", progress=False
    )
    options = ("--run", tmp_path / "run", "--cohort", cohort, "--scans", 300, "--out", tmp_path / "soak")
    found = run("soak", tmp_path / "soak.json", *options)
    sampling, evaluation = found["sampling"], found["evaluation"]
    assert sampling["mib_late"] - sampling["mib_early"] < 50
    assert evaluation["300"]["mib_highest"] - evaluation["30"]["mib_highest"] < 300


def test_options_with_evil_values_are_refused_or_carried_out(tmp_path):
    found = run("options", tmp_path / "options.json", "--count", 500, "--seed", 1)
    assert found["faults"] == []
    assert sum(row["refused"] for row in found["rows"]) > 300
    assert sum(row["done"] + row["stopped"] for row in found["rows"]) > 20


def test_nothing_that_was_tampered_with_passes(tmp_path):
    found = run("hostile", tmp_path / "hostile.json", "--count", 400, "--seed", 1)
    assert set(found["controls"].values()) == {"same"}
    assert found["faults"] == []
    assert {row["kind"] for row in found["rows"] if row["refused"] + row["same"] > 0} == {
        "report", "set", "run", "cache", "copies"
    }  # fmt: skip
