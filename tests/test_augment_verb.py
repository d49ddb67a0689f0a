"""`medsynth augment`: what may be handed over, and what is refused."""

import json
from dataclasses import replace

import pytest

import medsynth
from medsynth.cli import run_command
from medsynth.cohorts import read_cohort, write_cohort
from medsynth.errors import DataError, GateError


def write_verdict(report, target, verdict, **changes):
    content = json.loads((report / "report.json").read_text())
    content["verdict"]["privacy"]["verdict"] = verdict
    content["privacy"] |= changes
    target.mkdir()
    (target / "report.json").write_text(json.dumps(content))
    return target


def arguments(real, judged, report, out):
    options = {"real": real, "synthetic": judged / "set", "report": report, "out": out}
    return ["augment", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


@pytest.mark.parametrize("verdict", ["fail", "cannot tell"])
def test_a_set_that_did_not_pass_is_refused(tiny_cohort, judged, tmp_path, verdict, capsys):
    report = write_verdict(judged / "report", tmp_path / "report", verdict)
    out = tmp_path / "augmented" / "cohort.csv"
    assert run_command(arguments(tiny_cohort, judged, report, out)) == 4
    assert verdict in capsys.readouterr().err
    assert not out.parent.exists()


def test_a_missing_gate_or_report_is_refused(tiny_cohort, judged, tmp_path):
    out = tmp_path / "augmented" / "cohort.csv"
    with pytest.raises(GateError, match="need the report of an evaluation"):
        medsynth.augment(real=tiny_cohort, synthetic=judged / "set", report=tmp_path, out=out, progress=False)
    content = json.loads((judged / "report" / "report.json").read_text())
    content["verdict"]["privacy"] = content["privacy"] = None
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(GateError, match="need a privacy gate that passed, got none"):
        medsynth.augment(real=tiny_cohort, synthetic=judged / "set", report=tmp_path, out=out, progress=False)
    assert not out.parent.exists()


def test_a_report_of_an_earlier_version_is_refused_in_one_line(tiny_cohort, judged, tmp_path, capsys):
    report = write_verdict(judged / "report", tmp_path / "report", "pass")
    content = json.loads((report / "report.json").read_text()) | {"schema": "medsynth-report/1"}
    (report / "report.json").write_text(json.dumps(content))
    assert run_command(arguments(tiny_cohort, judged, report, tmp_path / "augmented.csv")) == 4
    said = capsys.readouterr().err.strip()
    assert said.endswith("report.json: written by medsynth 0.1; run medsynth evaluate again")
    assert "\n" not in said


def test_what_passed_is_handed_over(tiny_cohort, judged, tmp_path):
    report = write_verdict(judged / "report", tmp_path / "report", "pass")
    out = tmp_path / "augmented" / "cohort.csv"
    handover = medsynth.augment(real=tiny_cohort, synthetic=judged / "set", report=report, out=out, progress=False)
    real, written = read_cohort(tiny_cohort), read_cohort(out)
    train = real.select(split="train")
    assert len(written.rows) == len(train.rows) + 7
    assert {row.split for row in written.rows} == {"train"}
    assert [row.attributes["synthetic"] for row in written.rows] == ["0"] * len(train.rows) + ["1"] * 7
    # Every file is found from the new place, and is the scan that it was.
    for new, old in zip(written.rows[: len(train.rows)], train.rows, strict=True):
        assert written.file_of(new).samefile(real.file_of(old))
    assert all(written.file_of(row).is_file() for row in written.rows)
    summary = handover.summary()
    assert "was not measured" in summary
    assert summary.splitlines()[-1] == f"next: medsynth card --synthetic {judged / 'set'} --report {report}"


def test_dropped_copies_stay_out(tiny_cohort, judged, tmp_path):
    copies = [{"synthetic_row": 2}, {"synthetic_row": 5}]
    report = write_verdict(judged / "report", tmp_path / "report", "pass", copies=copies, drop_copies=True)
    out = tmp_path / "augmented" / "cohort.csv"
    handover = medsynth.augment(real=tiny_cohort, synthetic=judged / "set", report=report, out=out, progress=False)
    made = read_cohort(judged / "set" / "cohort.csv").rows
    kept = [row.path for row in read_cohort(out).rows if row.attributes["synthetic"] == "1"]
    assert kept == [row.path for number, row in enumerate(made) if number not in (2, 5)]
    assert handover.dropped == 2


def test_a_report_about_other_scans_is_refused(tiny_cohort, judged, tmp_path):
    report = write_verdict(judged / "report", tmp_path / "report", "pass")
    real = read_cohort(tiny_cohort)
    fewer = tiny_cohort.parent / "fewer.csv"
    write_cohort(replace(real, rows=real.rows[1:]), fewer)
    with pytest.raises(DataError, match="about these real scans"):
        medsynth.augment(
            real=fewer, synthetic=judged / "set", report=report, out=tmp_path / "augmented.csv", progress=False
        )


def test_a_generator_that_saw_test_patients_is_refused(tiny_run, tiny_cohort, judged, tmp_path):
    real = read_cohort(tiny_cohort)
    swapped = tiny_cohort.parent / "swapped.csv"
    names = {"train": "test", "test": "train", "val": "val"}
    write_cohort(replace(real, rows=tuple(replace(row, split=names[row.split]) for row in real.rows)), swapped)
    with pytest.raises(DataError, match="saw no test patient"):
        medsynth.evaluate(
            real=swapped, synthetic=judged / "set", run=tiny_run.folder, out=tmp_path / "report", progress=False
        )
    assert not (tmp_path / "report").exists()


def test_a_planted_memorised_scan_fails_the_gate_and_blocks_the_hand_over(tiny_run, tiny_cohort, tmp_path, capsys):
    made = medsynth.sample(run=tiny_run.folder, count="bright=4,dark=3", out=tmp_path / "set", progress=False)
    real = read_cohort(tiny_cohort)
    donor = next(number for number, row in enumerate(real.rows) if row.split == "train" and row.label == "dark")
    planted = next(number for number, row in enumerate(made.rows) if row.label == "dark")
    made.file_of(made.rows[planted]).write_bytes(real.file_of(real.rows[donor]).read_bytes())

    both = ["--real", str(tiny_cohort), "--synthetic", str(tmp_path / "set"), "--progress", "false"]
    report = tmp_path / "report"
    assert (
        run_command(["evaluate", *both, "--out", str(report), "--parts", "privacy", "--run", str(tiny_run.folder)]) == 4
    )
    privacy = json.loads((report / "report.json").read_text())["privacy"]
    assert [(copy["synthetic_row"], copy["donor_row"]) for copy in privacy["copies"]] == [(planted, donor)]
    assert run_command(["augment", *both, "--report", str(report), "--out", str(tmp_path / "out" / "cohort.csv")]) == 4
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr()
    assert "signs of copying in dark" in said.err
    for text in (said.out, said.err, (report / "report.json").read_text(), (report / "report.html").read_text()):
        assert "secret" not in text

    # Without the copy, everything is about the six others.
    command = [
        "evaluate",
        *both,
        "--out",
        str(tmp_path / "rest"),
        "--parts",
        "privacy,fidelity",
        "--drop_copies",
        "true",
    ]
    assert run_command(command) == 0
    rest = json.loads((tmp_path / "rest" / "report.json").read_text())
    assert (rest["privacy"]["dropped"], rest["privacy"]["drop_copies"]) == (1, True)
    assert rest["settings"]["synthetic_scans"] == 6
    assert sum(row["counts"]["identical"] for row in rest["fidelity"]["rows"]) == 0
