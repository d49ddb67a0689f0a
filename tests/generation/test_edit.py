import csv
import dataclasses
import json
import re
from collections import Counter

import numpy as np
import pytest

import medsynth
from medsynth.cli import run_command
from medsynth.cohorts import Cohort, hash_cohort, write_cohort
from medsynth.config import GridOptions, GuidanceOptions, Loading, SolverOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.inputs import find_donors
from medsynth.generation import write
from medsynth.generation.donors import choose_evenly
from medsynth.scans import Scan, write_scan
from medsynth.sets import open_synthetic

CHOICE = {"donor_class": "bright", "target_class": "dark", "count": 5, "batch_size": 2, "progress": False}


@pytest.fixture
def edit(tiny_run, tiny_cohort, tmp_path):
    """`edit(name, **options)` edits five of the eight bright training scans into the folder of that name."""

    def call(name, **options):
        return medsynth.edit(
            **{"run": tiny_run.folder, "cohort": tiny_cohort, **CHOICE, **options}, out=tmp_path / name
        )

    return call


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def table(folder):
    with (folder / "cohort.csv").open() as stream:
        return list(csv.DictReader(stream))


def prepared(cohort, run):
    return medsynth.prepare_cohort(
        cohort,
        grid=GridOptions(size=16),
        intensity=run.spec.intensity,
        classes=run.spec.classes,
        loading=Loading(progress=False),
    )


def rmse(scans, others):
    return np.sqrt(np.square(scans.astype(np.float32) - others.astype(np.float32)).mean((1, 2, 3)))


def donor_numbers(made):
    return [int(row.attributes["donor"]) for row in made.rows]


def test_set_names_its_donors_which_are_training_scans_of_their_class(edit, tiny_run, tiny_cohort, tmp_path):
    edit("set", count=20)
    rows, real = table(tmp_path / "set"), medsynth.read_cohort(tiny_cohort).rows
    assert {(row["label"], row["split"], row["synthetic"], row["method"]) for row in rows} == {
        ("dark", "train", "1", "edit")
    }
    assert {row["contains_real_pixels"] for row in rows} == {"0"}
    assert {row["run"] for row in rows} == {tiny_run.fingerprint[:16]}
    donors = [int(row["donor"]) for row in rows]
    assert {(real[donor].label, real[donor].split) for donor in donors} == {("bright", "train")}
    # Eight donors for twenty scans: two laps of all, then four of a third.
    assert sorted(Counter(donors[:16]).values()) == [2] * 8
    assert len(set(donors[:8])) == len(set(donors[8:16])) == 8
    assert sorted(Counter(donors).values()) == [2] * 4 + [3] * 4
    assert donors[:8] != sorted(donors[:8])
    provenance = json.loads((tmp_path / "set" / "provenance.json").read_text())
    assert provenance["method"] == "edit"
    assert (provenance["donor_class"], provenance["target_class"], provenance["strength"]) == ("bright", "dark", 1.0)
    assert (provenance["donors"]["scans"], provenance["donors"]["patients"]) == (8, 8)
    assert provenance["counts"] == {"dark": 20}
    assert provenance["run"] == tiny_run.fingerprint
    assert provenance["contains_real_pixels"] is False
    assert "resembles its donor" in provenance["notice"]


def test_a_file_says_how_it_was_made_and_nothing_of_a_patient(edit, tmp_path):
    made = edit("set", strength=0.5)
    scan = medsynth.read_scan(made.file_of(made.rows[0]))
    assert scan.array.dtype == np.uint8
    assert scan.provenance["synthetic"] == "YES"
    assert (scan.provenance["method"], scan.provenance["donor_class"]) == ("edit", "bright")
    assert scan.provenance["strength"] == "0.5"
    assert scan.provenance["seed"] == made.rows[0].attributes["seed"]
    # The donor by a hash of its file, without which the row is not believed.
    assert re.fullmatch("[0-9a-f]{32}", scan.provenance["donor"])
    assert all("secret" not in name and b"secret" not in data for name, data in content(tmp_path / "set").items())


def test_strength_decides_how_much_of_the_donor_stays(edit, tiny_run, tiny_cohort):
    """RMSE of scans in [-1, 1]; at 0.01 an edit is its donor but for rounding to 8 bits, and it is nearest to its own donor."""
    real = prepared(medsynth.read_cohort(tiny_cohort), tiny_run)
    errors = {}
    for strength in (0.01, 0.1, 0.5, 2.0, 20.0):
        made = edit(f"set-{strength}", count=8, strength=strength)
        synthetic = prepared(made, tiny_run)
        own = np.array(donor_numbers(made))
        errors[strength] = rmse(synthetic.scans, real.scans[own])
        if strength == 0.01:
            everyone = [rmse(synthetic.scans[[number]], real.scans).argmin() for number in range(8)]
            assert everyone == own.tolist()
    means = [float(error.mean()) for error in errors.values()]
    assert means == sorted(means)
    assert means[0] < 0.02
    assert means[-1] > 20 * means[0]


def test_a_donor_is_used_again_with_other_noise(edit):
    made = edit("set", count=16)
    first, again = [row for row in made.rows if row.attributes["donor"] == made.rows[0].attributes["donor"]]
    one, other = (medsynth.read_scan(made.file_of(row)).array for row in (first, again))
    assert not np.array_equal(one, other)
    assert len({row.attributes["seed"] for row in made.rows}) == len({row.patient_id for row in made.rows}) == 16


def test_same_seed_same_set_and_more_scans_begin_with_the_fewer(edit, tmp_path):
    edit("one", count=4)
    edit("two", count=4)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    edit("more", count=10)
    more, one = content(tmp_path / "more"), content(tmp_path / "one")
    assert all(more[name] == one[name] for name in one if name.endswith(".png"))
    assert table(tmp_path / "more")[:4] == table(tmp_path / "one")
    other = edit("other", count=8, seed=1)
    assert donor_numbers(other) != donor_numbers(edit("eight", count=8))
    assert content(tmp_path / "other")["dark/000000.png"] != one["dark/000000.png"]


def test_seeds_differ_from_those_of_new_scans_and_of_other_donors(edit, tiny_run, tmp_path):
    made = [
        edit("bright", count=3),
        edit("dark", count=3, donor_class="dark"),
        medsynth.sample(run=tiny_run.folder, count="dark=3", out=tmp_path / "new", progress=False),
    ]
    rows = [row for cohort in made for row in cohort.rows]
    assert len({row.attributes["seed"] for row in rows}) == len({row.patient_id for row in rows}) == 9


def test_interrupted_set_is_completed_bit_for_bit(edit, tmp_path, monkeypatch):
    """The third file is never written; the same command makes it and what follows."""
    written = []

    def write_two(scan, path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write_scan(scan, path)

    with monkeypatch.context() as patched:
        patched.setattr(write, "write_scan", write_two)
        with pytest.raises(KeyboardInterrupt):
            edit("killed", count=7)
    assert len(list((tmp_path / "killed").rglob("0*.png"))) == 2
    assert not (tmp_path / "killed" / "cohort.csv").exists()
    edit("killed", count=7)
    edit("whole", count=7)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    edit("whole", count=7)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_another_set_in_the_folder_is_refused(edit, tiny_run, tmp_path):
    edit("set")
    for change, named in (
        ({"strength": 0.5}, r"strength 1\.0 -> 0\.5"),
        ({"donor_class": "dark"}, "donor_class 'bright'"),
    ):
        with pytest.raises(ConfigError, match=named):
            edit("set", **change)
    with pytest.raises(ConfigError, match="method 'edit' -> 'sample'"):
        medsynth.sample(run=tiny_run.folder, count="dark=5", out=tmp_path / "set", batch_size=2, progress=False)
    medsynth.sample(run=tiny_run.folder, count="dark=5", out=tmp_path / "new", batch_size=2, progress=False)
    with pytest.raises(ConfigError, match="method 'sample' -> 'edit'"):
        edit("new")


def test_other_donors_are_no_continuation(edit, tiny_cohort, tmp_path):
    """Neither other scans, nor the same in other rows: the row number would name another patient."""
    edit("set")
    cohort = medsynth.read_cohort(tiny_cohort)
    changes = {"fewer": cohort.rows[1:], "reordered": (cohort.rows[1], cohort.rows[0], *cohort.rows[2:])}
    for name, rows in changes.items():
        folder = tmp_path / name
        rooted = tuple(dataclasses.replace(row, root="tiny") for row in rows)
        write_cohort(Cohort(folder=folder, rows=rooted, roots={"tiny": cohort.folder}), folder / "cohort.csv")
        before = content(tmp_path / "set")
        with pytest.raises(ConfigError, match=r"donors\.sha256"):
            edit("set", cohort=folder / "cohort.csv")
        assert content(tmp_path / "set") == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"donor_class": "brigth"}, "donor_class: need one of the run's classes bright, dark; got 'brigth'"),
        ({"target_class": "drak"}, "target_class: need one of the run's classes bright, dark; got 'drak'"),
        ({"strength": 0.0}, r"strength: need a number from 1e-06 to 1e\+06, got 0"),
        ({"strength": -1.0}, "strength: need"),
        ({"strength": 80.0}, "strength: need"),
        ({"strength": float("nan")}, "strength: need"),
        ({"strength": 3.0, "solver": SolverOptions(sigma_max=2.0)}, r"sigma_max=2, got 3"),
        ({"count": 0}, "count: need a whole number from 1 to 1,000,000, got 0"),
        ({"batch_size": 0}, "batch_size: need a whole number from 1 to 65,536"),
        ({"solver": SolverOptions(steps=0)}, "solver.steps: need a whole number from 1"),
        ({"guidance": GuidanceOptions(scale=-1)}, "guidance.scale: need a number from 0"),
    ],
)
def test_a_wrong_option_is_named_and_leaves_no_folder_behind(edit, tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        edit("set", **wrong)
    assert not (tmp_path / "set").exists()


def one_row_cohort(folder, tiny_cohort, **changes):
    """The tiny cohort with its first row (bright, train) changed."""
    cohort = medsynth.read_cohort(tiny_cohort)
    rows = [dataclasses.replace(row, root="tiny") for row in cohort.rows]
    rows[0] = dataclasses.replace(rows[0], **changes)
    path = folder / "cohort.csv"
    write_cohort(Cohort(folder=folder, rows=tuple(rows), roots={"tiny": cohort.folder}), path)
    return path


def test_unfit_cohorts_are_refused(edit, tiny_cohort, tmp_path):
    synthetic = one_row_cohort(tmp_path / "synthetic", tiny_cohort, attributes={"synthetic": "1"})
    with pytest.raises(DataError, match="need real scans as donors, got rows that say synthetic=1"):
        edit("set", cohort=synthetic)
    write_scan(Scan(array=np.zeros((3, 16, 16), dtype=np.uint8)), tmp_path / "colour" / "0.npz")
    colour = one_row_cohort(tmp_path / "colour", tiny_cohort, path="0.npz", root=None)
    with pytest.raises(DataError, match=r"0\.npz: need 1 channels and 2 axes like the run's scans, got 3 and 2"):
        edit("set", cohort=colour)
    cohort = medsynth.read_cohort(tiny_cohort)
    rows = tuple(
        dataclasses.replace(row, root="tiny", split="val" if row.label == "bright" else row.split)
        for row in cohort.rows
    )
    held_out = tmp_path / "held_out" / "cohort.csv"
    write_cohort(Cohort(folder=held_out.parent, rows=rows, roots={"tiny": cohort.folder}), held_out)
    with pytest.raises(
        DataError, match="donor_class: need training scans of 'bright' in the cohort, got none; try one of dark"
    ):
        edit("set", cohort=held_out)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(("donors", "count"), [(1, 3), (5, 3), (5, 5), (5, 12), (3, 300)])
def test_donors_are_used_evenly_and_in_a_seeded_order(donors, count):
    chosen = choose_evenly(7, "donors", "a", available=donors, count=count)
    uses = np.bincount(chosen, minlength=donors)
    assert uses.sum() == count
    assert uses.max() - uses.min() <= 1
    assert np.array_equal(chosen, choose_evenly(7, "donors", "a", available=donors, count=count + 4)[:count])


def test_the_command_says_what_an_edit_is(tiny_run, tiny_cohort, tmp_path, capsys):
    options = ["--run", tiny_run.folder, "--cohort", tiny_cohort, "--donor_class", "dark", "--target_class", "bright"]
    options += ["--count", "2", "--strength", "0.3", "--cache_dir", tmp_path / "cache", "--progress", "false"]
    assert run_command(["edit", *map(str, options), "--out", str(tmp_path / "set")]) == 0
    assert "2 bright; every scan is synthetic and resembles its donor" in capsys.readouterr().out
    assert any((tmp_path / "cache").glob("*.npy"))


def test_a_donor_is_believed_only_where_provenance_backs_it(edit, tiny_cohort, tmp_path):
    """A scan does not become an edit by saying so, and an edit names no other donor than its own."""
    quiet, real = Loading(progress=False), medsynth.read_cohort(tiny_cohort)
    edit("set")

    def believed(cohort=real):
        made = open_synthetic(tmp_path / "set", cohort)
        donors, notes = find_donors(made, cohort, hash_cohort(cohort, loading=quiet), loading=quiet)
        assert len(notes) == (donors < 0).any()
        return donors.tolist(), "".join(notes)

    rows = table(tmp_path / "set")
    named = [int(row["donor"]) for row in rows]
    assert believed() == (named, "")
    # Of another cohort, even if only an attribute or the order differs.
    other = dataclasses.replace(real, rows=(real.rows[1], real.rows[0], *real.rows[2:]))
    assert believed(other)[0] == [-1] * 5
    # Another donor, a number that is none, and a real scan in the place of an edit.
    cells = (tmp_path / "set/cohort.csv").read_text().split("\n")
    free = next(number for number, row in enumerate(real.rows) if row.label == "bright" and number not in named[:2])
    place = cells[0].split(",").index("donor")
    for line, text in ((1, str(free)), (2, "9" * 30)):
        parts = cells[line].split(",")
        parts[place] = text
        cells[line] = ",".join(parts)
    (tmp_path / "set/cohort.csv").write_text("\n".join(cells))
    (tmp_path / "set" / rows[2]["path"]).write_bytes(real.file_of(real.rows[named[2]]).read_bytes())
    donors, note = believed()
    assert donors == [-1, -1, -1, *named[3:]]
    assert note.startswith("3 of 5 scans that name a donor are judged as if they had none")
    # The provenance of new scans, and none.
    for change in ({"method": "sample"}, {"donors": {"cohort": "0" * 64}}, {"donors": None}):
        file = tmp_path / "set/provenance.json"
        whole = file.read_text()
        file.write_text(json.dumps(json.loads(whole) | change))
        assert believed()[0] == [-1] * 5
        file.write_text(whole)
    (tmp_path / "set/provenance.json").unlink()
    assert believed()[0] == [-1] * 5


def test_a_report_says_that_donors_were_not_believed_and_how_near_edits_are(edit, tiny_cohort, tmp_path):
    edit("set", strength=0.5)
    judge = {"real": tiny_cohort, "synthetic": tmp_path / "set", "parts": ["privacy"], "progress": False}
    whole = medsynth.evaluate(**judge, out=tmp_path / "report").report
    near = whole["privacy"]["edits"]
    assert f"1 in 20 nearer than {near['low']:.2f} (0 is a copy" in whole["verdict"]["headline"]["sentence"]
    assert not any("name a donor" in note for note in whole["notes"])
    (tmp_path / "set/provenance.json").unlink()
    bare = medsynth.evaluate(**judge, out=tmp_path / "bare").report
    assert any("5 of 5 scans that name a donor" in note for note in bare["notes"])
    assert bare["privacy"]["edits"] is None
