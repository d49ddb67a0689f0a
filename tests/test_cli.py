import subprocess
import sys
import time

import pytest

from medsynth.cli import run_command
from medsynth.config import CONFIGS, PIPELINES, Shipped
from medsynth.errors import ConfigError


def medsynth(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "medsynth", *map(str, arguments)], capture_output=True, text=True, timeout=250, **options
    )


def test_help_is_quick_and_loads_no_torch():
    """Best of seven below half a second, since tests beside it take the cores; what is loaded shows in the import log."""
    times = []
    for _ in range(7):
        began = time.perf_counter()
        done = medsynth("--help")
        times.append(time.perf_counter() - began)
        assert done.returncode == 0
        assert "evaluate" in done.stdout
    assert min(times) < 0.5, times
    log = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "medsynth", "--help"], capture_output=True, text=True
    )
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in log.stderr.splitlines()}
    assert "jsonargparse" in loaded
    assert not loaded & {"torch", "monai", "lightning", "numpy", "scipy", "matplotlib"}


@pytest.mark.parametrize("verb", ["demo", "index", "train", "sample", "edit", "select", "evaluate"])
def test_help_of_each_verb_documents_every_option(verb):
    done = medsynth(verb, "--help")
    assert done.returncode == 0
    assert f"example: medsynth {verb}" in done.stdout
    lines = done.stdout.splitlines()
    options = [number for number, line in enumerate(lines) if line.startswith("  --") and " CONFIG" not in line]
    assert options
    for number in options:
        own_line = lines[number].split("  ")[-1].strip() if len(lines[number]) > 24 else ""
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        assert own_line or following, lines[number]


def test_import_is_light():
    code = "import sys, medsynth; print('torch' in sys.modules, 'train' in dir(medsynth))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ""),
        (["trian"], "medsynth: trian: need one of demo, index, train"),
        (["train", "--out", "run"], "cohort"),
        (["sample", "--run", "r", "--count", "a=1", "--out", "s", "--solver.name", "magic"], "solver.name"),
        (["train", "--config", "no_such", "--cohort", "c", "--out", "o"], "no_such: need one of"),
        (["run", "no_such", "--out", "o"], "no_such: need one of"),
        (["run", "quickstart", "--out", "o", "--set", "scans"], "set: need NAME=VALUE"),
        (["demo", "--out", "d", "--unknown", "1"], "unknown"),
        (["demo", "--out", "d", "--seed", "x"], "seed"),
    ],
)
def test_usage_errors_leave_2_without_traceback(arguments, message, tmp_path):
    done = medsynth(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) <= 1
    assert list(tmp_path.iterdir()) == []


def test_refused_data_leave_3_in_one_line(capsys, tmp_path):
    code = run_command(["train", "--cohort", str(tmp_path / "missing.csv"), "--out", str(tmp_path / "run")])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 3
    assert len(lines) == 1
    assert "missing.csv" in lines[0]


@pytest.mark.parametrize("verb", ["sample", "demo", "train"])
def test_a_place_that_cannot_be_written_is_named_in_one_line(verb, tiny_run, tiny_cohort, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    out = ["--out", str(tmp_path / "file" / "out"), "--progress", "false"]
    options = {
        "sample": ["--run", str(tiny_run.folder), "--count", "1"],
        "demo": ["--scans", "6", "--size", "32"],
        "train": ["--cohort", str(tiny_cohort), "--grid.size", "16", "--max_steps", "1"],
    }
    assert run_command([verb, *options[verb], *out]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medsynth:")]
    assert len(lines) == 1
    assert str(tmp_path / "file") in lines[0]


def test_fault_24_unknown_class(tiny_run, capsys, tmp_path):
    out = tmp_path / "set"
    code = run_command(["sample", "--run", str(tiny_run.folder), "--count", "brigth=3", "--out", str(out)])
    errors = capsys.readouterr().err
    assert code == 2
    assert "bright, dark" in errors
    assert not out.exists()


def test_shipped_files_are_found_by_name_and_by_path(tmp_path):
    for shipped in (CONFIGS, PIPELINES):
        assert shipped.names()
        for name in shipped.names():
            assert shipped.find(name).is_file()
            assert shipped.find(str(shipped.find(name))) == shipped.find(name)
    with pytest.raises(ConfigError, match=r"mine\.yaml: need an existing file"):
        CONFIGS.find(str(tmp_path / "mine.yaml"))
    with pytest.raises(ConfigError, match="need one of chest_xray_2d"):
        CONFIGS.find("chest_xray")
    with pytest.raises(ConfigError, match="need the folder that ships"):
        Shipped(folder="nowhere").directory()
