import os
import re
import subprocess
import sys
import time

import pytest

from medsynth.cli import run_command
from medsynth.config import CONFIGS, OPTIONS, PIPELINES, Shipped, options_of
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
    assert "argparse" in loaded
    assert not loaded & {"torch", "monai", "lightning", "numpy", "scipy", "matplotlib"}


@pytest.mark.parametrize("verb", OPTIONS)
def test_help_of_a_verb_is_one_short_page_with_an_example(verb):
    """At most 15 options and 60 lines of 80 columns, which name what must be given; the rest stands in `--help all`."""
    page = medsynth(verb, "--help", env={**os.environ, "COLUMNS": "80"}).stdout
    whole = medsynth(verb, "--help", "all").stdout
    known = options_of(OPTIONS[verb])
    shown = re.findall(r"^  --([a-z_.0-9]+)", page, flags=re.MULTILINE)
    assert len(page.splitlines()) <= 60
    assert len(set(shown) - {"config"}) <= 15
    assert {name for name, option in known.items() if option.required} <= set(shown)
    assert f"medsynth {verb} " in page.partition("example:")[2]
    assert set(re.findall(r"^  --([a-z_.0-9]+)", whole, flags=re.MULTILINE)) == {*known, "config", "print_config"}


@pytest.mark.parametrize("verb", OPTIONS)
def test_every_option_has_help(verb):
    for name, option in options_of(OPTIONS[verb]).items():
        assert len(option.help.split()) >= 2, name


def test_there_are_at_most_150_options():
    assert len({name for cls in OPTIONS.values() for name in options_of(cls)}) <= 150


@pytest.mark.parametrize(
    ("line", "words", "expected"),
    [
        ("medsynth tr", ["medsynth", "tr", "medsynth"], ["train"]),
        ("medsynth train --max", ["medsynth", "--max", "train"], ["--max_steps", "--max_mib"]),
        ("medsynth train --precision b", ["medsynth", "b", "--precision"], ["bf16-mixed"]),
        ("medsynth train --config ph", ["medsynth", "ph", "--config"], ["phantom_2d", "phantom_3d"]),
        ("medsynth run q", ["medsynth", "q", "run"], ["quickstart"]),
    ],
)
def test_shell_completion(line, words, expected):
    done = medsynth("--complete", *words, env={**os.environ, "COMP_LINE": line})
    assert done.stdout.split() == expected


def test_configurations_and_recipes_are_listed_with_a_line_each():
    lines = medsynth("configs").stdout.splitlines()
    for name in (*CONFIGS.names(), *PIPELINES.names()):
        assert any(line.startswith(f"  {name} ") and len(line) > 30 for line in lines), name


def test_import_is_light():
    code = "import sys, medsynth; print('torch' in sys.modules, 'train' in dir(medsynth))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ""),
        (["trian"], "medsynth: trian: no such verb; did you mean train?"),
        (["train", "--max_step", "3"], "--max_step: medsynth train has no such option; did you mean --max_steps?"),
        (
            ["train", "--cohort", "c", "--out", "o", "--precision", "16-mixed"],
            "need one of 32-true, bf16-mixed, got '16",
        ),
        (["train", "--config", "chest_xray", "--cohort", "c", "--out", "o"], "did you mean chest_xray_2d?"),
        (["run", "quikstart", "--out", "o"], "did you mean quickstart?"),
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
    with pytest.raises(ConfigError, match=r"mine\.yaml: there is no such file"):
        CONFIGS.find(str(tmp_path / "mine.yaml"))
    with pytest.raises(ConfigError, match="need one of chest_xray_2d"):
        CONFIGS.find("chest_xray")
    with pytest.raises(ConfigError, match="need the folder that ships"):
        Shipped(folder="nowhere").directory()


def test_the_demo_names_one_next_command(tmp_path, capsys):
    assert (
        run_command(["demo", "--scans", "9", "--size", "16", "--out", str(tmp_path / "d"), "--progress", "false"]) == 0
    )
    said = capsys.readouterr().out
    assert said.count("next: ") == 1
    assert said.splitlines()[-1].startswith("next: medsynth train --config phantom_2d")
