"""`medsynth select`, on a set in which it is known which scans are copies and which show another class than they say."""

import json
import shutil

import numpy as np
import pytest

import medsynth
from medsynth.cli import run_command
from medsynth.cohorts import Cohort, Row, read_cohort, write_cohort
from medsynth.config import IntensityOptions, PrivacyOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.selection import choose_scans, class_probabilities
from medsynth.scans import Scan, write_scan
from medsynth.seeds import numpy_generator
from tests.test_augment_verb import write_reading

RANGE = IntensityOptions(method="range", low=0, high=255)
LEVELS = {"bright": 200, "dark": 90}


def blob(level, number):
    """A scan as in the tiny cohort, of a patient that it does not have."""
    random = numpy_generator(1, "selection", number)
    y, x = np.mgrid[:16, :16] / 16
    centre = random.uniform(0.3, 0.7, size=2)
    shape = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 0.05)
    return (20 + level * shape + random.normal(0, 5, (16, 16))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tiny_cohort, tmp_path_factory):
    """A set of 10 new scans of either class, 4 mirrored copies of training scans, and 4 dark scans that say bright."""
    folder = tmp_path_factory.mktemp("made") / "set"
    real = read_cohort(tiny_cohort)
    scans = [(f"new_{label}_{n}", label, blob(LEVELS[label], n)) for label in LEVELS for n in range(10)]
    scans += [(f"wrong_{n}", "bright", blob(LEVELS["dark"], 100 + n)) for n in range(4)]
    for label in LEVELS:
        train = real.select(split="train", label=label).rows[:2]
        copies = [medsynth.read_scan(real.file_of(row)).array[0] for row in train]
        scans += [(f"copy_{label}_{n}", label, array[:, ::-1].copy()) for n, array in enumerate(copies)]
    rows = []
    for number, (name, label, array) in enumerate(scans):
        write_scan(Scan(array=array[None]), folder / f"{name}.png")
        rows.append(Row(path=f"{name}.png", label=label, patient_id=f"SYNTH-{number}", split="train"))
    write_cohort(Cohort(folder=folder, rows=tuple(rows), roots={}), folder / "cohort.csv")
    return folder


def select(real, made, out, **options):
    return medsynth.select(real=real, synthetic=made, out=out, intensity=RANGE, progress=False, **options)


def names(selection):
    return {row.path.removesuffix(".png") for row in selection.cohort.rows}


def test_copies_and_scans_of_another_class_go(tiny_cohort, made, tmp_path):
    """Of bright, 10 new + 4 wrong + 2 copies, the half is left."""
    found = select(tiny_cohort, made, tmp_path / "out", share=0.5, min_distance=0.0)
    kept = names(found)
    assert not any(name.startswith(("copy", "wrong")) for name in kept)
    bright, dark = found.classes["bright"], found.classes["dark"]
    assert (bright["scans"], bright["kept"], bright["share"]) == (16, 8, 0.5)
    assert (dark["scans"], dark["kept"], dark["share"]) == (12, 6, 0.5)
    assert bright["too_near"] >= 2
    assert bright["too_near"] + bright["less_likely"] + bright["kept"] == bright["scans"]
    assert bright["probability"] > 0.5
    said = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert said["counts"] == {"bright": 8, "dark": 6}
    assert said["selection"]["classes"] == {"bright": dict(bright), "dark": dict(dark)}
    rule = said["selection"]["rule"]
    assert (rule["by"], rule["share"], rule["min_distance"]) == ("both", 0.5, 0.0)


def test_each_rule_alone(tiny_cohort, made, tmp_path):
    far = select(tiny_cohort, made, tmp_path / "far", by="distance", min_distance=0.0)
    assert {name for name in names(far) if name.startswith("wrong")} == {f"wrong_{n}" for n in range(4)}
    assert not any(name.startswith("copy") for name in names(far))
    likely = select(tiny_cohort, made, tmp_path / "likely", by="classifier", share=0.75)
    assert {name for name in names(likely) if "bright" in name} == {
        *(f"new_bright_{n}" for n in range(10)), "copy_bright_0", "copy_bright_1",
    }  # fmt: skip
    assert all("selection_distance" not in row.attributes for row in likely.cohort.rows)
    for row in likely.cohort.rows:
        assert 0 <= float(row.attributes["selection_probability"]) <= 1
    for row in far.cohort.rows:
        assert float(row.attributes["selection_distance"]) >= far.classes[row.label]["distance"]


def test_test_scans_and_labels_of_held_out_scans_do_not_count(tiny_cohort, made, tmp_path):
    """The test split exchanged for noise, and val labels changed within it: the same rows, with the same figures."""
    shutil.copytree(tiny_cohort.parent, tmp_path / "real", ignore=shutil.ignore_patterns(".medsynth_cache"))
    real = read_cohort(tmp_path / "real" / "cohort.csv")
    for number, row in enumerate(real.rows):
        if row.split == "test":
            noise = numpy_generator(2, "noise", number).integers(0, 255, (1, 16, 16)).astype(np.uint8)
            write_scan(Scan(array=noise), real.file_of(row))
    first = select(tiny_cohort, made, tmp_path / "first")
    second = select(tmp_path / "real" / "cohort.csv", made, tmp_path / "second")
    assert [(row.path, row.attributes) for row in first.cohort.rows] == [
        (row.path, row.attributes) for row in second.cohort.rows
    ]


def test_a_class_of_which_nothing_is_left_is_refused(tiny_cohort, made, tmp_path):
    copies = read_cohort(made / "cohort.csv")
    rows = tuple(row for row in copies.rows if row.label == "dark" or row.path.startswith("copy"))
    write_cohort(Cohort(folder=made, rows=rows, roots={}), made / "some.csv")
    with pytest.raises(DataError, match=r"need scans of bright that are not too near.*got none of 2; try a smaller"):
        select(tiny_cohort, made / "some.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share: need a number above 0, up to 1, got 0"),
        ({"share": 1.0, "by": "classifier"}, "share: need a share below 1"),
        ({"min_distance": 1.0}, "min_distance: need a quantile"),
    ],
)
def test_options_that_leave_nothing_to_select_by(tiny_cohort, made, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        select(tiny_cohort, made, tmp_path / "out", **options)


def test_the_same_call_again_writes_the_same_and_another_is_refused(tiny_cohort, made, tmp_path):
    def content():
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    select(tiny_cohort, made, tmp_path / "out")
    before = content()
    select(tiny_cohort, made, tmp_path / "out")
    assert content() == before
    with pytest.raises(ConfigError, match=r"need the options this selection was made with, got share 0\.5 -> 0\.25"):
        select(tiny_cohort, made, tmp_path / "out", share=0.25)
    with pytest.raises(ConfigError, match="need a new folder or this selection again, got other files"):
        select(tiny_cohort, made, made)


def test_what_is_selected_can_be_judged_carded_and_handed_over(tiny_run, tiny_cohort, judged, tmp_path, capsys):
    """As any synthetic set: evaluate with its run, augment, card; and the report says that the scans were selected."""
    folder, report = tmp_path / "chosen", tmp_path / "report"
    shutil.copytree(judged / "set", tmp_path / "set")
    words = ["--real", str(tiny_cohort), "--synthetic", str(tmp_path / "set"), "--run", str(tiny_run.folder)]
    words += ["--out", str(folder), "--min_distance", "0", "--progress", "false"]
    assert run_command(["select", *words]) == 0
    assert "bright: 2 of 4 scans kept" in capsys.readouterr().out
    chosen = read_cohort(folder / "cohort.csv")
    assert {row.root for row in chosen.rows} == {"synthetic"}
    assert len(chosen.rows) == 4
    medsynth.evaluate(
        real=tiny_cohort, synthetic=folder, run=tiny_run.folder, out=report, parts=["privacy"], progress=False,
        privacy=PrivacyOptions(planted=6, membership_scans=4, membership_sigmas=(1.0,)),
    )  # fmt: skip
    notes = json.loads((report / "report.json").read_text())["notes"]
    assert any("4 of 7 generated scans were selected by a classifier" in note for note in notes)
    passed = write_reading(report, tmp_path / "passed", "pass")
    handed = medsynth.augment(
        real=tiny_cohort, synthetic=folder, report=passed, out=tmp_path / "handed" / "cohort.csv", progress=False
    )
    synthetic = [row for row in handed.cohort.rows if row.attributes["synthetic"] == "1"]
    assert {handed.cohort.file_of(row) for row in synthetic} == {chosen.file_of(row) for row in chosen.rows}
    card = medsynth.card(synthetic=folder, report=report, progress=False)
    text = (folder / "data_card.md").read_text()
    assert text.count("4 of 7 generated scans were selected by") >= 1, card
    assert "rows were removed, added or relabelled" not in text
    assert medsynth.card(check=folder / "data_card.md", progress=False)
    for path in (folder / "cohort.csv", folder / "provenance.json", folder / "data_card.md"):
        assert "secret" not in path.read_text()


def test_what_is_kept_of_known_figures():
    labels = np.array([0, 0, 0, 0, 1, 1])
    near = np.array([True, False, False, False, False, False])
    likely = np.array([0.9, 0.2, 0.8, 0.5, 0.1, 0.1])
    assert choose_scans(labels, near=near, probability=likely, share=0.5).tolist() == [
        False, False, True, True, True, False,
    ]  # fmt: skip
    assert choose_scans(labels, near=near).tolist() == (~near).tolist()
    assert choose_scans(labels, near=near, probability=likely, share=1.0).tolist() == (~near).tolist()


def test_probabilities_of_two_gaussians_do_not_depend_on_how_rare_a_class_is():
    """Of Normal(-1, 1) and Normal(1, 1) along one axis the odds at x are exp(2 x), and even at 0 for 20 : 1 scans."""
    random = np.random.default_rng(0)
    scans = np.concatenate([random.normal(-1, 1, (4000, 1)), random.normal(1, 1, (200, 1))])
    features = np.concatenate([scans, 0.01 * random.normal(size=(4200, 3))], axis=1).astype(np.float32)
    labels = np.repeat([0, 1], [4000, 200])
    asked = np.zeros((3, 4), dtype=np.float32)
    asked[:, 0] = [-3, 0, 3]
    from medsynth.config import ProbeOptions

    found = class_probabilities(
        features, labels, asked, classes=3, options=ProbeOptions(steps=600, learning_rate=0.05, weight_decay=0.0)
    )
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert (found[:, 2] == 0).all(), "a class that was never seen"
    assert found[0, 1] < 0.02
    assert found[1, 1] == pytest.approx(0.5, abs=0.1)
    assert found[2, 1] > 0.98
