"""`medsynth evaluate` from cohorts on disk to a report."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

import medsynth
from medsynth.cli import run_command
from medsynth.config import EvaluateOptions
from medsynth.errors import DataError
from medsynth.evaluation import evaluate_cohorts
from medsynth.seeds import numpy_generator


@pytest.fixture(scope="module")
def synthetic(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "set"
    medsynth.sample(run=tiny_run.folder, count="bright=4,dark=6", out=out, progress=False)
    return out


def test_report_of_a_synthetic_set(tiny_run, tiny_cohort, synthetic, tmp_path, capsys):
    out = tmp_path / "report"
    arguments = ["--real", tiny_cohort, "--synthetic", synthetic, "--run", tiny_run.folder, "--out", out]
    arguments += ["--progress", "false"]
    assert run_command(["evaluate", *map(str, arguments)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert set(report) >= {"schema", "fidelity", "privacy", "downstream", "verdict", "versions", "settings"}
    rows = {row["label"]: row for row in report["fidelity"]["rows"]}
    assert set(rows) == {"bright", "dark", None}
    # Six synthetic scans and eight held-out dark ones of eight patients: halves of four.
    assert rows["dark"]["held_out"]["scans_a_side"] == 4
    assert rows["dark"]["held_out"]["too_few"] is True
    assert report["settings"]["run"] == tiny_run.fingerprint[:16]
    assert report["verdict"]["headline"]["sentence"] in capsys.readouterr().out

    page = (out / "report.html").read_text()
    assert "Memorisation of bright" in page
    assert "Training loss" in page
    assert page.count("data:image/png;base64,") >= 4
    assert not re.search(r"(src|href)=[\"']https?:", page), "nothing is fetched"
    for text in (page, (out / "report.json").read_text()):
        assert "secret" not in text
        assert str(tiny_cohort.parent) not in text


def test_a_set_that_medsynth_did_not_make(tiny_cohort, tmp_path):
    """Any cohort of known classes will do: here the test split offered as synthetic, without a run."""
    real = medsynth.read_cohort(tiny_cohort)
    offered = tiny_cohort.parent / "offered.csv"
    from medsynth.cohorts import write_cohort

    write_cohort(real.select(split="test"), offered)
    files = medsynth.evaluate(real=tiny_cohort, synthetic=offered, out=tmp_path / "report", progress=False)
    report = json.loads(files.json.read_text())
    assert report["settings"]["run"] is None
    assert everything_identical(report)
    # Scans offered against themselves are not further apart than two halves of them.
    everything = next(row for row in report["fidelity"]["rows"] if row["label"] is None)
    assert everything["held_out"]["kid"]["verdict"] != "further"


def everything_identical(report):
    """Every offered scan is a real one, and the verdict says so."""
    counts = [row["counts"] for row in report["fidelity"]["rows"]]
    sentences = [verdict["sentence"] for verdict in report["verdict"]["fidelity"]]
    return all(each["identical"] == each["synthetic"] > 0 for each in counts) and all(
        "are identical to real scans." in sentence for sentence in sentences
    )


def test_folders_of_class_folders_need_no_csv(tiny_cohort, synthetic, tmp_path):
    """Scans sorted into folders, as a generator or a download leaves them, with nothing beside them."""
    for name, file in (("real", tiny_cohort), ("made", synthetic / "cohort.csv")):
        cohort = medsynth.read_cohort(file)
        for number, row in enumerate(cohort.rows):
            target = tmp_path / name / row.label / f"{number:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(cohort.file_of(row), target)
    options = {"out": tmp_path / "report", "parts": ["fidelity", "privacy"], "progress": False}
    files = medsynth.evaluate(real=tmp_path / "real", synthetic=tmp_path / "made", **options)
    assert (files.report["settings"]["real_scans"], files.report["settings"]["synthetic_scans"]) == (60, 10)
    assert [row["label"] for row in files.report["fidelity"]["rows"]] == ["bright", "dark", None]
    assert files.report["privacy"]["rows"][0]["synthetic"] == 4
    assert not list(tmp_path.glob("*/cohort.csv"))


def test_a_list_of_scans_is_written_below_the_report_and_evaluated(tiny_cohort, tmp_path):
    real = medsynth.read_cohort(tiny_cohort)
    random = numpy_generator(0, "offered")
    scans = [
        replace(
            scan,
            array=(scan.array + random.normal(0, 3, scan.array.shape)).clip(0, 255).astype(np.uint8),
            label=row.label,
        )
        for row in real.select(split="test").rows
        for scan in [medsynth.read_scan(real.file_of(row))]
    ]
    options = EvaluateOptions(
        real=tiny_cohort, synthetic="in memory", out=tmp_path / "report", parts=("fidelity",), progress=False
    )
    first, second = (evaluate_cohorts(options, synthetic_scans=scans) for _ in range(2))
    assert first.report["settings"]["synthetic_scans"] == 10
    assert first.report["sets"] == second.report["sets"]
    assert first.report["fidelity"] == second.report["fidelity"]
    (folder,) = (tmp_path / "report").glob("synthetic-*")
    made = medsynth.read_cohort(folder / "cohort.csv")
    assert {row.attributes["synthetic"] for row in made.rows} == {"1"}
    assert np.array_equal(medsynth.read_scan(made.file_of(made.rows[0])).array, scans[0].array)


def test_a_run_that_did_not_make_the_set_is_refused(tiny_run, tiny_cohort, synthetic, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_run.folder, other)
    content = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(content | {"fingerprint": "0" * 64}))
    with pytest.raises(DataError, match=r"other: need the run that made \S+set"):
        medsynth.evaluate(real=tiny_cohort, synthetic=synthetic, run=other, out=tmp_path / "report", progress=False)


def test_swapped_arguments_are_noticed(tiny_cohort, synthetic, tmp_path):
    with pytest.raises(DataError, match="try swapping --real and --synthetic"):
        medsynth.evaluate(real=synthetic, synthetic=tiny_cohort, out=tmp_path / "report", progress=False)
    assert not (tmp_path / "report").exists()


def test_a_missing_set_is_named(tiny_cohort, tmp_path):
    with pytest.raises(DataError, match=r"nothing.*need"):
        medsynth.evaluate(real=tiny_cohort, synthetic=tmp_path / "nothing", out=tmp_path / "report", progress=False)


@pytest.mark.parametrize("parts", ["fidelity", "downstream,fidelity"])
def test_copies_fail_whatever_is_evaluated(tiny_cohort, synthetic, tmp_path, capsys, parts):
    """Real scans offered as synthetic: one by its bytes, one by its pixels."""
    real = medsynth.read_cohort(tiny_cohort)
    shutil.copytree(synthetic, tmp_path / "set")
    made = medsynth.read_cohort(tmp_path / "set" / "cohort.csv")
    train = [real.file_of(row) for row in real.rows if row.split == "train"]
    shutil.copyfile(train[0], made.file_of(made.rows[0]))
    pixels = replace(medsynth.read_scan(train[1]), provenance={"synthetic": "YES"})
    medsynth.write_scan(pixels, made.file_of(made.rows[1]))
    assert made.file_of(made.rows[1]).read_bytes() != train[1].read_bytes()
    options = {"real": tiny_cohort, "synthetic": tmp_path / "set", "out": tmp_path / "report", "parts": parts}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert run_command(["evaluate", *words, "--progress", "false"]) == 4
    sentence = "Do not use this set: 2 synthetic scans are identical to scans of real patients."
    assert capsys.readouterr().out.startswith(sentence)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["identical"], report["privacy"]) == (2, None)
    assert f'<p class="card headline bad">{sentence}' in (tmp_path / "report" / "report.html").read_text()


def test_the_next_command_names_the_cohorts(tiny_cohort, synthetic, tmp_path):
    """Nothing in it is a placeholder, and blanks in names are quoted."""
    offered = tmp_path / "my set"
    shutil.copytree(synthetic, offered)
    files = medsynth.evaluate(
        real=tiny_cohort, synthetic=offered, out=tmp_path / "report", parts=["fidelity"], progress=False
    )
    assert files.summary().splitlines()[-1] == f"next: medsynth card --synthetic '{offered}' --report {tmp_path}/report"


def test_a_set_with_real_pixels_stays_in_the_institution(tiny_cohort, synthetic, tmp_path):
    """Which is another thing than revealing a patient; the rows cannot deny what the provenance says."""
    shutil.copytree(synthetic, tmp_path / "set")
    file = tmp_path / "set" / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"contains_real_pixels": True}))
    files = medsynth.evaluate(
        real=tiny_cohort, synthetic=tmp_path / "set", out=tmp_path / "report", parts=["privacy"], progress=False
    )
    assert files.gate_failed
    sentence = "This set holds pixels of real scans: it must stay within your institution."
    assert files.report["verdict"]["headline"] == {"tone": "bad", "sentence": sentence}
