"""Every option has its range where it is declared, and the range is kept wherever the option comes from."""

import math
import time

import pytest
import yaml

import medsynth
from medsynth.api.parser import parse_arguments, parse_values
from medsynth.cli import run_command
from medsynth.config import OPTIONS, NetworkOptions, options_of
from medsynth.config.bounds import Bounds
from medsynth.config.declared import leaves
from medsynth.errors import ConfigError
from tests.slow import options as evil

NUMBERS = {
    (verb, name): option
    for verb, cls in OPTIONS.items()
    for name, option in options_of(cls).items()
    if leaves(option.kind) & {int, float}
}
EVIL = (0, -1, 10**30, 10**5000, 1e300, -1e300, 1e-300, math.nan, math.inf, -math.inf)


def bounds_of(option):
    return next(rule for rule in option.rules if isinstance(rule, Bounds))


def required(verb):
    """A value for each option that must be given."""
    return {
        name: 1 if name == "count" else "x" for name, option in options_of(OPTIONS[verb]).items() if option.required
    }


def nested(name, value):
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def test_every_number_has_bounds_and_its_default_keeps_them():
    assert len(NUMBERS) > 100
    for (verb, name), option in NUMBERS.items():
        assert any(isinstance(rule, Bounds) for rule in option.rules), f"{verb} --{name} has no bounds"
        option.check(option.default)
        bounds = bounds_of(option)
        assert math.isfinite(bounds.low), name
        assert math.isfinite(bounds.high), name


@pytest.mark.parametrize(("verb", "name"), NUMBERS)
def test_a_number_out_of_range_is_refused_by_name_with_the_range(verb, name):
    bounds, refused = bounds_of(NUMBERS[verb, name]), 0
    for value in EVIL:
        inside = isinstance(value, int | float) and bounds.low <= value <= bounds.high
        whole = float not in leaves(NUMBERS[verb, name].kind)
        try:
            parse_values(verb, required(verb) | nested(name, [value] * 3 if name == "split" else value))
        except ConfigError as error:
            said = str(error)
            assert said.startswith(f"{name}: need "), said
            assert len(said) < 300
            assert not inside or (whole and isinstance(value, float)), f"{value} is refused: {said}"
            assert str(bounds) in said, said
            refused += 1
        else:
            assert inside, f"--{name} {value} is accepted"
    assert refused >= 7


@pytest.mark.parametrize(
    "value", ["0", "-3", "9" * 400, "9" * 5000, "1e300", ".nan", ".inf", "nan", "12a", "[1", "{}", ""]
)
def test_the_command_line_says_it_in_one_line(value, capsys):
    assert run_command(["train", "--cohort", "c.csv", "--out", "run", f"--max_steps={value}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medsynth: max_steps: need a whole number from 1 to 100,000,000, got "), line


def test_files_and_python_are_checked_alike(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"optimiser": {"learning_rate": float("inf")}}))
    with pytest.raises(ConfigError, match=r"optimiser\.learning_rate: need a number from 0 to 1,000, got inf"):
        parse_arguments("train", ["--config", str(tmp_path / "mine.yaml"), "--cohort", "c", "--out", "r"])
    with pytest.raises(ConfigError, match=r"network\.norm_groups: need a whole number from 1 to 4,096, got 0"):
        medsynth.train(cohort="c", out="r", network=NetworkOptions(norm_groups=0))
    with pytest.raises(ConfigError, match=r"guidance\.scale: need a number from 0 to 100, got nan"):
        list(medsynth.generate(lambda *_: None, shape=(1, 8, 8), count=1, guidance={"scale": math.nan}))
    with pytest.raises(ConfigError, match=r"seed: need a whole number from 0 to 1e\+18, got 'x'"):
        list(medsynth.generate(lambda *_: None, shape=(1, 8, 8), count=1, seed="x"))


@pytest.mark.parametrize(
    ("verb", "values", "message"),
    [
        ("train", {"network": {"channels": [32] * 17}}, "network.channels: need at most 16 values, got 17"),
        ("train", {"grid": {"size": [8, 8, 8, 8]}}, "grid.size: need at most 3 values, got 4"),
        (
            "train",
            {"network": {"channels": [32, 0]}},
            "network.channels: need whole numbers from 1 to 1,024, got 0; try 64",
        ),
        ("index", {"split": [0.7, 0.2, math.nan]}, "split: need numbers from 0 to 1, got nan; try 0.7,0.15,0.15"),
        ("index", {"patient_pattern": "(a)" * 200}, "patient_pattern: need a text of at most 500 characters"),
        (
            "index",
            {"scans": "x" * 5000},
            "scans: need a path of at most 4096 characters without NUL, got 5000 characters",
        ),
        ("index", {"scans": "a\0b"}, "scans: need a path of at most 4096 characters without NUL, got one with NUL"),
        (
            "index",
            {"columns": {"label": "a\0b"}},
            "columns.label: need a text of at most 100000 characters without NUL",
        ),
        ("index", {"keep": ["x"] * 20_000}, "keep: need at most 10000 values, got 20000"),
        ("index", {"scans": "https://example.org/x"}, "scans: need a path on this machine, got a URL"),
        ("evaluate", {"reader_answers": ["a.csv", "ftp://x/y"]}, "reader_answers: need a path on this machine"),
        ("sample", {"count": {"a": 0}}, "count: need whole numbers from 1 to 1,000,000, got 0"),
    ],
)
def test_lists_texts_and_paths_have_limits_too(verb, values, message):
    with pytest.raises(ConfigError) as caught:
        parse_values(verb, required(verb) | values)
    assert message in str(caught.value)


def test_help_shows_the_range_where_everything_is_shown(capsys):
    assert run_command(["sample", "--help", "all"]) == 0
    assert "(default: 1.0; from 0 to 100)" in " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    evil.prepare(folder)
    return folder


@pytest.mark.parametrize("verb", OPTIONS)
def test_evil_values_are_refused_or_carried_out(verb, workplace, monkeypatch):
    """Some of what `python -m tests.slow.options` tries."""
    monkeypatch.chdir(workplace)
    cases = evil.choose(4, 5, verb)
    outcomes = [evil.attempt(case, number) for number, case in enumerate(cases)]
    faults = [(cases[each.number], each) for each in outcomes if each.kind not in ("refused", "done", "stopped")]
    assert faults == []
    assert {each.kind for each in outcomes} >= {"refused"}


def test_a_hang_and_a_traceback_are_seen(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(evil, "SECONDS", 0.2)
    case = evil.Case(verb="doctor", name="out", value=".")
    for effect, kind in (
        (lambda words: time.sleep(2), "hang"),
        (lambda words: {}["x"], "traceback"),
        (lambda words: 2, "unclear"),
    ):
        monkeypatch.setattr(evil, "run_command", effect)
        assert evil.attempt(case, 0).kind == kind


def test_too_little_memory_is_said_in_one_line(monkeypatch, capsys):
    torch_says = (
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    for error in (MemoryError(), RuntimeError(torch_says), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")):
        monkeypatch.setattr("medsynth.api.run_verb", lambda verb, options, error=error: raise_(error))
        assert run_command(["doctor", "--quick"]) == 2
        assert (
            capsys.readouterr().err
            == "medsynth: memory: need more than is free; try a smaller grid, batch_size or network\n"
        )
    monkeypatch.setattr("medsynth.api.run_verb", lambda verb, options: raise_(RuntimeError("a mistake of ours")))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run_command(["doctor", "--quick"])


def raise_(error):
    raise error
