"""`medsynth augment`: what may be handed over, and what is refused."""

import json
import os
import shutil
from dataclasses import replace

import pytest

import medsynth
from medsynth.cli import run_command
from medsynth.cohorts import read_cohort, write_cohort
from medsynth.errors import ConfigError, DataError, GateError
from medsynth.evaluation import build_report
from medsynth.evaluation.privacy import Copy, GateSettings
from medsynth.evaluation.privacy.result import Share
from medsynth.evaluation.reports import check_report, seal_report
from medsynth.seeds import numpy_generator
from medsynth.sets import write_scans
from tests.made_report import passed_report, write_sealed
from tests.slow import hostile


def read(report):
    return json.loads((report / "report.json").read_text())


def arguments(real, judged, report, out):
    options = {"real": real, "synthetic": judged / "set", "report": report, "out": out}
    return ["augment", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


@pytest.mark.parametrize(("verdict", "change"), [("fail", {"flagged": 3}), ("cannot tell", {"power": Share(9, 96)})])
def test_a_set_that_did_not_pass_is_refused(tiny_cohort, judged, tmp_path, verdict, change, capsys):
    rows = check_report(read(judged / "report"), judged).rows
    report = passed_report(judged / "report", tmp_path / "report", rows=tuple(replace(row, **change) for row in rows))
    out = tmp_path / "augmented" / "cohort.csv"
    assert run_command(arguments(tiny_cohort, judged, report, out)) == 4
    assert verdict in capsys.readouterr().err
    assert not out.parent.exists()


def test_a_missing_gate_or_report_is_refused(tiny_cohort, judged, tmp_path):
    out = tmp_path / "augmented" / "cohort.csv"
    with pytest.raises(GateError, match="need the report of an evaluation"):
        medsynth.augment(real=tiny_cohort, synthetic=judged / "set", report=tmp_path, out=out, progress=False)
    content = read(judged / "report")
    content["verdict"]["privacy"] = content["privacy"] = None
    write_sealed(content, tmp_path)
    with pytest.raises(GateError, match="need a privacy gate that passed, got none"):
        medsynth.augment(real=tiny_cohort, synthetic=judged / "set", report=tmp_path, out=out, progress=False)
    assert not out.parent.exists()


@pytest.mark.parametrize(("schema", "version"), [("medsynth-report/1", "0.1"), ("medsynth-report/2", "0.2")])
def test_a_report_of_an_earlier_version_is_refused_in_one_line(tiny_cohort, judged, tmp_path, capsys, schema, version):
    report = write_sealed(read(judged / "report") | {"schema": schema}, tmp_path / "report")
    assert run_command(arguments(tiny_cohort, judged, report, tmp_path / "augmented.csv")) == 4
    said = capsys.readouterr().err.strip()
    assert said.endswith(f"report.json: written by medsynth {version}; run medsynth evaluate again")
    assert "\n" not in said


def test_words_and_digits_that_were_changed_are_refused(tiny_cohort, judged, tmp_path, capsys):
    """The verdict is judged anew from the figures; what no figure decides is under the seal."""
    sealed = read(passed_report(judged / "report", tmp_path / "report"))

    def changed(path, value, *, sealed_again=True):
        content = json.loads(json.dumps(sealed))
        *way, last = path
        place = content
        for key in way:
            place = place[key]
        assert place[last] != value
        place[last] = value
        target = tmp_path / "changed"
        if sealed_again:
            write_sealed(content, target)
        else:
            target.mkdir(exist_ok=True)
            (target / "report.json").write_text(json.dumps(content))
        assert run_command(arguments(tiny_cohort, judged, target, tmp_path / "out.csv")) == 4, path
        return capsys.readouterr().err

    # A forger who computes the hash anew: words that do not follow from the figures, and figures that are none.
    assert "privacy.rows[0].verdict: need 'pass'" in changed(("privacy", "rows", 0, "verdict"), "fail")
    assert "privacy.rows[1].sentence: need" in changed(("privacy", "rows", 1, "sentence"), "All is well.")
    assert "verdict.privacy.verdict: need 'pass'" in changed(("verdict", "privacy", "verdict"), "fine")
    assert "privacy.verdict: need 'fail'" in changed(("privacy", "rows", 0, "flagged"), 4)
    assert "privacy.rows[0].power.low: need" in changed(("privacy", "rows", 0, "power", "low"), 0.5)
    assert "privacy.rows[0].flagged is 0.5" in changed(("privacy", "rows", 0, "flagged"), 0.5)
    assert "privacy.rows[0].flagged is True" in changed(("privacy", "rows", 0, "flagged"), True)
    assert "damaged content ('privacy')" in changed(("verdict",), {"downstream": None})
    # Whoever edits the file and does not know of the hash.
    for path, value in (
        (("settings", "run"), "0" * 16),
        (("privacy", "rows", 0, "calibration_patients"), 1_000_000),
        (("fidelity", "rows", 0, "counts", "identical"), 3),
        (("notes",), ["Nothing to see."]),
        (("sets", "real"), "0" * 64),
    ):
        assert "its hash differs" in changed(path, value, sealed_again=False), path
    assert not (tmp_path / "out.csv").exists()


def test_a_report_sealed_without_the_key_is_refused(tiny_cohort, judged, tmp_path, capsys, monkeypatch):
    report = passed_report(judged / "report", tmp_path / "report")
    assert run_command(arguments(tiny_cohort, judged, report, tmp_path / "out.csv")) == 0
    content = read(report)
    content["seal"]["hmac"] = "0" * 64
    (report / "report.json").write_text(json.dumps(content))
    assert run_command(arguments(tiny_cohort, judged, report, tmp_path / "forged.csv")) == 4
    assert "got one made without the key" in capsys.readouterr().err
    # On another machine, where another key is.
    monkeypatch.setenv("MEDSYNTH_PATIENTS_KEY", str(tmp_path / "other.key"))
    assert run_command(arguments(tiny_cohort, judged, judged / "report", tmp_path / "forged.csv")) == 4
    said = capsys.readouterr().err
    assert "which cannot be checked here; try medsynth evaluate here, or bring the key" in said
    with pytest.raises(GateError, match="cannot be checked here"):
        medsynth.card(synthetic=judged / "set", report=judged / "report", out=tmp_path / "card", progress=False)
    assert not (tmp_path / "forged.csv").exists()


def test_other_thresholds_than_those_that_ship_are_named_and_never_pass(tiny_cohort, judged, tmp_path, capsys):
    """Figures that pass at `min_patients` 5, in a report that was sealed with it, are no pass."""
    loose = GateSettings(min_patients=5, max_false_alarms=0.5)
    report = passed_report(judged / "report", tmp_path / "report", settings=loose)
    assert run_command(arguments(tiny_cohort, judged, report, tmp_path / "out.csv")) == 4
    changed = "max_false_alarms 0.5 instead of 0.02, min_patients 5 instead of 50"
    assert changed in capsys.readouterr().err
    assert read(report)["verdict"]["privacy"]["verdict"] == "cannot tell"
    gate = check_report(read(report), report)
    first = build_report(privacy=gate)["verdict"]["headline"]
    assert first["tone"] == "bad"
    assert changed in first["sentence"]
    written = medsynth.card(synthetic=judged / "set", report=report, out=tmp_path / "card", progress=False)
    assert changed in written.card.read_text()


def test_what_passed_is_handed_over(tiny_cohort, judged, tmp_path):
    report = passed_report(judged / "report", tmp_path / "report")
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
    copies = tuple(Copy(row, 0, "dark", "dark", "train", "stands out", False, 0.1, 0.3, True) for row in (2, 5))
    report = passed_report(judged / "report", tmp_path / "report", copies=copies, drop_copies=True)
    out = tmp_path / "augmented" / "cohort.csv"
    handover = medsynth.augment(real=tiny_cohort, synthetic=judged / "set", report=report, out=out, progress=False)
    made = read_cohort(judged / "set" / "cohort.csv").rows
    kept = [row.path for row in read_cohort(out).rows if row.attributes["synthetic"] == "1"]
    assert kept == [row.path for number, row in enumerate(made) if number not in (2, 5)]
    assert handover.dropped == 2


def test_a_report_about_other_scans_is_refused(tiny_cohort, judged, tmp_path):
    report = passed_report(judged / "report", tmp_path / "report")
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


@pytest.mark.parametrize("what", ["scan", "label", "attribute"])
def test_what_was_changed_after_the_evaluation_is_refused(tiny_cohort, judged, tmp_path, what):
    """Also a scan of the same size whose time was put back."""
    shutil.copytree(judged / "set", tmp_path / "set")
    report = passed_report(judged / "report", tmp_path / "report")
    options = {"real": tiny_cohort, "synthetic": tmp_path / "set", "report": report, "progress": False}
    medsynth.augment(**options, out=tmp_path / "before.csv")
    made = read_cohort(tmp_path / "set" / "cohort.csv")
    if what == "scan":
        file = made.file_of(made.rows[0])
        facts, content = file.stat(), bytearray(file.read_bytes())
        content[-20] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert file.stat().st_size == facts.st_size
    else:
        change = {"label": "dark"} if what == "label" else {"attributes": {**made.rows[0].attributes, "method": "edit"}}
        write_cohort(replace(made, rows=(replace(made.rows[0], **change), *made.rows[1:])), tmp_path / "set/cohort.csv")
    with pytest.raises(DataError, match="need a report about these synthetic scans, got one about others"):
        medsynth.augment(**options, out=tmp_path / "after.csv")
    assert not (tmp_path / "after.csv").exists()


def test_the_run_is_asked_for_where_only_the_rows_name_it(tiny_cohort, tiny_run, tmp_path):
    """Removing the provenance of a set does not spare its patients from being compared."""
    medsynth.sample(run=tiny_run.folder, count="bright=4,dark=3", out=tmp_path / "set", progress=False)
    (tmp_path / "set" / "provenance.json").unlink()
    options = {"real": tiny_cohort, "synthetic": tmp_path / "set", "progress": False}
    medsynth.evaluate(**options, out=tmp_path / "first", parts=["privacy"])
    report = passed_report(tmp_path / "first", tmp_path / "report")
    with pytest.raises(ConfigError, match="run: need the run that made"):
        medsynth.augment(**options, report=report, out=tmp_path / "out.csv")
    handover = medsynth.augment(**options, report=report, out=tmp_path / "out.csv", run=tiny_run.folder)
    assert not any("generator is unknown" in note for note in handover.notes)


def test_a_set_of_an_unknown_generator_is_handed_over_with_a_note(tiny_cohort, judged, tmp_path):
    made = read_cohort(judged / "set" / "cohort.csv")
    scans = [replace(medsynth.read_scan(made.file_of(row)), label=row.label) for row in made.rows]
    medsynth.evaluate(
        real=tiny_cohort, synthetic=write_scans(scans, tmp_path / "set"), out=tmp_path / "first", parts=["privacy"],
        progress=False,
    )  # fmt: skip
    report = passed_report(tmp_path / "first", tmp_path / "report")
    handover = medsynth.augment(
        real=tiny_cohort, synthetic=tmp_path / "set", report=report, out=tmp_path / "out.csv", progress=False
    )
    assert "the generator is unknown, so nothing shows that it saw no patient of the test split" in handover.notes


def test_hostile_figures_in_a_report_end_in_one_line(judged, tmp_path):
    """Sealed anew, so that every one is judged: refused in one line, or a figure that decides nothing."""
    report = passed_report(judged / "report", tmp_path / "report")

    def places(node, way=()):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield (*way, key)
            if isinstance(value, dict | list):
                yield from places(value, (*way, key))

    hostile = [None, -1, 10**30, 1e300, True, "x", [], {}, [[1]]]
    ways = [way for way in places(read(report)) if way[0] in ("privacy", "verdict", "seal")]
    refused = []
    for number, place in enumerate(numpy_generator(0, "hostile").permutation(len(ways))[:60]):
        content = node = read(report)
        *way, last = ways[place]
        for key in way:
            node = node[key]
        node[last] = hostile[number % len(hostile)]
        try:
            check_report(content if ways[place][0] == "seal" else seal_report(content), report)
        except GateError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert not any("\n" in line for line in refused)


def test_reports_and_sets_that_were_tampered_with_never_pass(tiny_cohort, judged, tmp_path):
    """A few of the inputs of `python -m tests.slow.hostile`, after what is honest."""
    made = hostile.reports_of(judged / "report", tmp_path / "reports")
    ground = hostile.Ground(real=tiny_cohort, made=judged / "set", **made)
    (tmp_path / "work").mkdir()
    assert set(hostile.controls(ground, tmp_path / "work").values()) == {"same"}
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "work").mkdir()
    kinds = {"report": 12, "set": 12}
    outcomes = [
        hostile.attempt(ground, kind, number, seed=3, folder=tmp_path / "work")
        for kind, count in kinds.items()
        for number in range(count)
    ]
    assert [outcome for outcome in outcomes if outcome.fate not in hostile.FINE] == []
    assert {outcome.fate for outcome in outcomes} >= {"refused"}


def test_a_provenance_that_was_changed_after_the_evaluation_is_refused(tiny_cohort, judged, tmp_path):
    """It is what the card says of the generator."""
    shutil.copytree(judged / "set", tmp_path / "set")
    report = passed_report(judged / "report", tmp_path / "report")
    provenance = tmp_path / "set" / "provenance.json"
    content = json.loads(provenance.read_text())
    provenance.write_text(json.dumps(content, indent=1))  # another layout says the same
    medsynth.card(synthetic=tmp_path / "set", report=report, out=tmp_path / "card", progress=False)
    provenance.write_text(json.dumps(content | {"steps_trained": content["steps_trained"] + 1}))
    with pytest.raises(DataError, match="need a report about these synthetic scans"):
        medsynth.card(synthetic=tmp_path / "set", report=report, out=tmp_path / "card2", progress=False)
    assert not (tmp_path / "card2").exists()
