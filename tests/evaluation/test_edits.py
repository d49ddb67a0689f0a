"""The strength of counterfactuals: which is chosen from a known curve, and the choice end to end."""

import dataclasses
import json

import numpy as np
import pytest

import medsynth
from medsynth.cli import run_command
from medsynth.cohorts import Cohort, write_cohort
from medsynth.config import EditOptions, SolverOptions
from medsynth.errors import DataError
from medsynth.evaluation import edits
from medsynth.evaluation.edits import ProbeClassifier, choose_strength


class Brightness:
    """A classifier to which the mean of a scan is the probability of the class; real scans of it have `wanted`."""

    def __init__(self, wanted):
        self.donors = np.zeros(5)
        self.targets = np.array([wanted - 0.3, wanted, wanted + 0.1])

    def __call__(self, scans):
        return scans.mean(axis=(1, 2, 3))

    def describe(self):
        return {"features": "brightness"}


DONORS = np.zeros((4, 1, 8, 8), dtype=np.float32)


def brighten(strength):
    """Each scan is as bright as the strength, one less so: the median is the strength."""
    levels = np.array([0.0, strength, strength, strength])
    return (DONORS + levels[:, None, None, None]).astype(np.float32)


@pytest.mark.parametrize(
    ("wanted", "chosen", "reached"), [(0.35, 0.5, True), (0.5, 0.5, True), (0.05, 0.2, True), (0.95, 0.8, False)]
)
def test_the_smallest_strength_that_suffices_is_chosen(wanted, chosen, reached):
    """Whatever the order in which they are named; where none suffices, the one that comes nearest."""
    choice = choose_strength(Brightness(wanted), DONORS, brighten, (0.8, 0.2, 0.5, 0.2))
    assert (choice.strength, choice.reached) == (chosen, reached)
    assert [each.strength for each in choice.curve] == [0.2, 0.5, 0.8]
    assert [each.probability for each in choice.curve] == pytest.approx([0.2, 0.5, 0.8])
    assert [each.distance for each in choice.curve] == pytest.approx([0.2, 0.5, 0.8])
    assert choice.wanted == pytest.approx(wanted)
    assert ("comes nearest" in choice.summary()) != reached
    facts = choice.facts()
    assert json.loads(json.dumps(facts)) == facts, "a restart compares it with what a file holds"
    assert facts["curve"][1]["probability"] == 0.5


def test_an_edit_that_changes_nothing_is_its_donor():
    choice = choose_strength(Brightness(0.5), DONORS, lambda strength: DONORS, (1.0,))
    assert (choice.curve[0].distance, choice.curve[0].similarity, choice.curve[0].measure) == (0.0, 1.0, "SSIM")


@pytest.fixture(scope="module")
def auto(tiny_run, tiny_cohort, tmp_path_factory):
    """`auto(name)` edits two dark scans towards bright, the strength chosen among two."""
    folder = tmp_path_factory.mktemp("auto")
    patch = pytest.MonkeyPatch()
    patch.setattr(edits.choose_strength, "__defaults__", ((0.5, 0.2),))

    def call(name, **options):
        chosen = {
            "run": tiny_run.folder,
            "cohort": tiny_cohort,
            "donor_class": "dark",
            "target_class": "bright",
            "count": 2,
            "strength": "auto",
            "solver": SolverOptions(steps=4),
            "progress": False,
        } | options
        medsynth.edit(**chosen, out=folder / name)
        return json.loads((folder / name / "provenance.json").read_text())

    yield call
    patch.undo()


def test_the_set_says_how_its_strength_was_chosen(auto, monkeypatch):
    facts = auto("set")
    trial = facts["trial"]
    assert [each["strength"] for each in trial["curve"]] == [0.2, 0.5]
    best = max(trial["curve"], key=lambda each: each["probability"])
    enough = [each for each in trial["curve"] if each["probability"] >= trial["wanted"]]
    assert facts["strength"] == (enough or [best])[0]["strength"]
    assert trial["reached"] == bool(enough)
    assert (trial["donors"], trial["classifier"]["validation_scans"]) == (8, {"target_class": 2, "donor_class": 8})
    assert trial["classifier"]["auroc"] == 1.0, "bright and dark blobs can be told apart"
    assert trial["wanted"] > trial["unedited"]
    assert trial["curve"][0]["distance"] < trial["curve"][1]["distance"]
    assert "secret" not in json.dumps(facts)
    # The same command goes on with what was chosen, without trying again.
    monkeypatch.setattr("medsynth.evaluation.edits.choose_strength", None)
    assert auto("set") == facts


def test_only_training_and_validation_scans_choose(tiny_run, tiny_cohort):
    cohort = medsynth.read_cohort(tiny_cohort)
    options = EditOptions(
        run=tiny_run.folder, cohort=tiny_cohort, out="set", donor_class="dark", target_class="bright", count=1,
        progress=False,
    )  # fmt: skip
    whole = ProbeClassifier(tiny_run, cohort, options)
    without = ProbeClassifier(tiny_run, cohort.select(split=("train", "val")), options)
    assert np.array_equal(whole.donors, without.donors)
    scans = np.linspace(-1, 1, 3, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 16, 16), dtype=np.float32)
    alone = np.concatenate([whole(scans[[number]]) for number in range(3)])
    np.testing.assert_allclose(whole(scans), alone, atol=1e-5)


def test_a_choice_needs_validation_scans(auto, tiny_cohort, tmp_path):
    cohort = medsynth.read_cohort(tiny_cohort)
    rows = [row for row in cohort.rows if (row.split, row.label) != ("val", "bright")]
    file = tmp_path / "cohort.csv"
    kept = tuple(dataclasses.replace(row, root="tiny") for row in rows)
    write_cohort(Cohort(folder=tmp_path, rows=kept, roots={"tiny": cohort.folder}), file)
    with pytest.raises(DataError, match="strength: need val scans of 'bright' to choose on, got none"):
        auto("none", cohort=file)


def test_the_command_takes_a_word_or_a_number(tiny_run, tiny_cohort, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(choose_strength, "__defaults__", ((0.3,),))
    options = ["--run", tiny_run.folder, "--cohort", tiny_cohort, "--donor_class", "dark", "--target_class", "bright"]
    options += ["--count", "1", "--solver.steps", "3"]
    command = ["edit", *map(str, options), "--strength"]
    assert run_command([*command, "auto", "--out", str(tmp_path / "auto")]) == 0
    assert "strength 0.3:" in capsys.readouterr().err
    assert run_command([*command, "0.4", "--out", str(tmp_path / "number")]) == 0
    assert json.loads((tmp_path / "number" / "provenance.json").read_text())["strength"] == 0.4
    assert run_command([*command, "strong", "--out", str(tmp_path / "word")]) == 2
