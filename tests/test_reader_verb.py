"""`medsynth evaluate --reader_study` and `--reader_answers`, from cohorts on disk to the report."""

import json

import pytest

import medsynth
from medsynth.cli import run_command
from medsynth.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def synthetic(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "set"
    medsynth.sample(run=tiny_run.folder, count="bright=4,dark=6", out=out, progress=False)
    return out


def answer_all(out, *, wrong=()):
    """Write the answers of a reader who knows the key, but is wrong on some cases."""
    key = json.loads((out / "reader_study_key.json").read_text())
    other = {"real": "synthetic", "synthetic": "real"}
    rows = [
        f"{key['study']},{case['case']},AB,{other[case['source']] if case['case'] in wrong else case['source']},"
        f"{case['label']},,3"
        for case in key["cases"]
    ]
    path = out.parent / "answers.csv"
    path.write_text("\n".join(["study,case,reader,answer,class,confidence,seconds", *rows]))
    return path


def test_a_study_is_written_answered_and_scored(tiny_cohort, synthetic, tmp_path, capsys):
    out = tmp_path / "report"
    given = [
        "--real",
        tiny_cohort,
        "--synthetic",
        synthetic,
        "--out",
        out,
        "--parts",
        "fidelity",
        "--progress",
        "false",
    ]

    def run(*more):
        return run_command(["evaluate", *map(str, [*given, *more])])

    assert run("--reader_study", 8) == 0
    assert "note: A reader study of 8 scans lies beside this report." in capsys.readouterr().out
    key = json.loads((out / "reader_study_key.json").read_text())
    assert sum(case["source"] == "real" for case in key["cases"]) == 4
    report = json.loads((out / "report.json").read_text())
    assert report["reader_study"] is None
    assert key["sets"] == report["sets"]
    for file in out.glob("*.*"):
        text = file.read_text()
        assert "secret" not in text, file.name
        assert str(tiny_cohort.parent) not in text, file.name

    answers = answer_all(out, wrong=(2,))
    assert run("--reader_answers", answers) == 0
    found = json.loads((out / "report.json").read_text())["reader_study"]
    assert found["readers"][0]["figures"]["accuracy"] == pytest.approx(
        {"right": 7, "of": 8, "value": 0.875, "low": 0.4734903, "high": 0.9968403, "p_value": 18 / 256}
    )
    assert found["readers"][0]["figures"]["class_on_real"]["value"] == 1
    assert found["sentence"].replace("&", "&amp;") in (out / "report.html").read_text()

    # The same study again changes nothing; another would make these answers worthless.
    before = (out / "reader_study.html").read_text()
    assert run("--reader_study", 8, "--reader_answers", answers) == 0
    assert (out / "reader_study.html").read_text() == before
    capsys.readouterr()
    assert run("--reader_study", 6) == 2
    assert "reader_study: need a report folder without another study" in capsys.readouterr().err
    assert (out / "reader_study.html").read_text() == before
    assert run("--reader_study", 7) == 2
    assert "need an even number of cases, got 7" in capsys.readouterr().err


def test_answers_are_checked_before_anything_else(tiny_cohort, synthetic, tmp_path):
    out = tmp_path / "report"
    given = {"real": tiny_cohort, "synthetic": synthetic, "out": out, "parts": ["fidelity"], "progress": False}
    (tmp_path / "a.csv").write_text("study,case\n1,2\n")
    with pytest.raises(DataError, match=r"reader_study_key.json: need the key of the study"):
        medsynth.evaluate(**given, reader_answers=tmp_path / "a.csv")
    with pytest.raises(ConfigError, match=r"need 15 real and as many .*; try --reader_study \d+"):
        medsynth.evaluate(**given, reader_study=30)
    assert not out.exists()


def test_answers_to_a_study_of_another_set_are_refused(tiny_run, tiny_cohort, synthetic, tmp_path):
    out = tmp_path / "report"
    given = {"real": tiny_cohort, "out": out, "parts": ["fidelity"], "progress": False}
    medsynth.evaluate(**given, synthetic=synthetic, reader_study=4)
    answers = answer_all(out)
    other = tmp_path / "other"
    medsynth.sample(run=tiny_run.folder, count="bright=4,dark=6", out=other, seed=1, progress=False)
    with pytest.raises(DataError, match="need answers about these real and synthetic scans"):
        medsynth.evaluate(**given, synthetic=other, reader_answers=[answers])
