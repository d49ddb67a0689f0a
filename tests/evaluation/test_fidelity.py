from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from medsynth.config import FidelityOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.fidelity import FidelityResult, score_fidelity
from medsynth.evaluation.verdict import build_report
from medsynth.measures.distances import kernel_distance
from tests.evaluation.made import MadeScans, Pixels, made_cohort

OPTIONS = FidelityOptions(repeats=40, ssim_pairs=60, sheet_scans=3)
REAL = {"common": {"train": 60, "val": 20, "test": 60}, "rare": {"train": 10, "test": 12}}


@pytest.fixture(scope="module")
def real() -> MadeScans:
    return made_cohort(REAL, seed=0)


def score(real: MadeScans, synthetic: MadeScans, **options: int) -> FidelityResult:
    changed = dataclasses.replace(OPTIONS, **options)
    return score_fidelity(real, synthetic, options=changed, extractor=Pixels(), seed=3, progress=False)


def verdicts(result: FidelityResult) -> dict[str | None, dict[str, str]]:
    return {found["label"]: found for found in build_report(result)["verdict"]["fidelity"]}


@pytest.mark.parametrize("seed", range(1, 6))
def test_fresh_scans_of_the_same_distribution_read_as_close(real, seed):
    fresh = made_cohort({"common": {"train": 50}}, seed=seed)
    row = score(real, fresh).rows[0]
    assert (row.held_out.kid.reading, row.held_out.frechet.reading) == ("as close", "as close")
    assert (row.held_out.ssim.reading, row.seen.kid.reading) == ("as varied", "as close")


def test_other_scans_read_further_with_the_figures_in_the_sentence(real):
    result = score(real, made_cohort({"common": {"train": 50}}, seed=1, brighter=0.3))
    found = result.rows[0].held_out
    assert found.kid.reading == found.frechet.reading == "further"
    assert found.kid.value > found.kid.real_high > found.kid.real_median
    assert found.kid_of_all[1] > 0
    verdict = verdicts(result)["common"]
    assert verdict["reading"] == "further"
    assert f"{found.kid.value:.3g}" in verdict["sentence"]
    assert "splits themselves differ" not in verdict["sentence"]


def test_copies_of_a_few_scans_read_less_varied(real):
    copies = made_cohort({"common": {"train": 50}}, seed=1)
    copies.scans[:] = copies.scans[np.arange(50) % 2]
    found = score(real, copies).rows[0].held_out
    assert found.ssim.reading == "less varied"
    assert found.ssim.value > found.ssim.real_high


def test_shifted_splits_are_named(real):
    shifted = dataclasses.replace(
        real, scans=real.scans + np.float16(0.3) * (real.splits == "test")[:, None, None, None]
    )
    result = score(shifted, made_cohort({"common": {"train": 50}}, seed=1))
    assert result.rows[0].real_seen.kid.reading == "further"
    assert result.rows[0].seen.kid.reading == "as close"
    assert "splits themselves differ" in verdicts(result)["common"]["sentence"]


def test_both_sides_of_every_figure_have_the_stated_number_of_scans(real):
    result = score(real, made_cohort({"common": {"train": 50}, "rare": {"train": 50}}, seed=1))
    common, rare, together = result.rows
    assert [common.label, rare.label, together.label] == ["common", "rare", None]
    assert [row.held_out.scans_a_side for row in result.rows] == [30, 6, 36]
    assert [row.seen.scans_a_side for row in result.rows] == [40, 5, 45]
    assert (common.held_out.real_scans, common.held_out.candidates, common.held_out.pca_dims) == (60, 50, 10)
    assert (rare.held_out.too_few, common.held_out.too_few) == (True, False)
    assert "12 held-out real scans of rare make halves of 6" in verdicts(result)["rare"]["sentence"]


def test_kid_of_all_scans_is_that_of_the_measure(real):
    made = made_cohort({"common": {"train": 30}}, seed=1)
    held_out = real.scans[(real.labels == 0) & (real.splits == "test")].reshape(60, -1).astype(np.float32)
    expected = kernel_distance(held_out, made.scans.reshape(30, -1).astype(np.float32))
    assert score(real, made).rows[0].held_out.kid_of_all[0] == pytest.approx(expected)


def test_the_same_seed_gives_the_same_figures_and_other_classes_do_not_matter(real):
    both = made_cohort({"common": {"train": 30}, "rare": {"train": 20}}, seed=1)
    alone = dataclasses.replace(
        both, **{name: getattr(both, name)[:30] for name in ("scans", "labels", "splits", "patients")}
    )
    first, second, single = (score(real, made, max_scans=40) for made in (both, both, alone))
    assert first.as_dict() == second.as_dict()
    assert dataclasses.asdict(first.rows[0]) == dataclasses.asdict(single.rows[0])
    np.testing.assert_array_equal(first.sheets[1].synthetic, second.sheets[1].synthetic)


def test_max_scans_bounds_every_class_and_all_together(real):
    made = made_cohort({"common": {"train": 50}, "rare": {"train": 50}}, seed=1)
    common, _, together = score(real, made, max_scans=20).rows
    assert (common.held_out.real_scans, common.held_out.candidates) == (20, 20)
    assert together.held_out.real_scans <= 20
    assert together.held_out.candidates <= 20


def test_sheets_show_the_nearest_training_scan(real):
    made = made_cohort({"rare": {"train": 4}}, seed=1)
    training = np.flatnonzero(real.splits == "train")
    made.scans[:] = real.scans[training[[5, 61, 2, 9]]]
    sheet = score(real, made).sheets[0]
    assert (sheet.label, len(sheet.synthetic)) == ("rare", 3)
    np.testing.assert_array_equal(sheet.nearest, sheet.synthetic)
    np.testing.assert_array_equal(sheet.distances, 0)
    rare = real.scans[real.labels == 1].astype(np.float32)
    assert all((rare == scan).all(axis=(1, 2, 3)).any() for scan in sheet.real)


def test_what_cannot_be_told_is_said_and_is_null_in_the_report(real):
    without = dataclasses.replace(real, splits=np.where(real.labels == 1, "train", real.splits))
    result = score(without, made_cohort({"rare": {"train": 1}}, seed=1))
    assert result.rows[0].held_out is None
    assert verdicts(result)["rare"]["reading"] == "cannot tell"
    seen = json.loads(json.dumps(build_report(result), allow_nan=False))["fidelity"]["rows"][0]["seen"]
    assert seen["scans_a_side"] == 1
    assert seen["kid"]["value"] is None
    assert seen["kid"]["reading"] == seen["frechet"]["reading"] == seen["ssim"]["reading"] == "cannot tell"


def test_one_patient_alone_has_no_halves(real):
    alone = dataclasses.replace(real, patients=np.zeros_like(real.patients))
    row = score(alone, made_cohort({"common": {"train": 5}}, seed=1)).rows[0]
    assert (row.held_out, row.seen) == (None, None)


def test_refuses_sets_that_do_not_fit(real):
    made = made_cohort({"common": {"train": 5}}, seed=1)
    with pytest.raises(DataError, match="got none"):
        score(real, dataclasses.replace(made, scans=made.scans[:0], labels=made.labels[:0]))
    with pytest.raises(DataError, match="got unheard"):
        score(real, dataclasses.replace(made, classes=("unheard",)))
    with pytest.raises(DataError, match="one grid"):
        score(real, dataclasses.replace(made, scans=made.scans[:, :, :8]))


def test_report_holds_the_agreed_keys(real):
    report = build_report(score(real, made_cohort({"common": {"train": 5}}, seed=1)), settings={"solver": "heun"})
    assert list(report) == ["schema", "fidelity", "privacy", "downstream", "verdict", "notes", "versions", "settings"]
    assert report["schema"] == "medsynth-report/1"
    assert report["privacy"] is None
    assert report["fidelity"]["extractor"]["name"] == "Pixels"
    assert report["settings"]["solver"] == "heun"
    assert report["settings"]["seed"] == 3
    assert report["settings"]["fidelity"]["repeats"] == 40
    assert report["versions"]["torch"].startswith("2.")


@pytest.mark.parametrize(
    ("held_out", "patients", "made", "expected"),
    [
        (0, 0, 30, "there are no held-out real scans of ill; at least 20 held-out scans are needed"),
        (1, 1, 30, "1 held-out real scan of ill makes no halves; at least 20 held-out scans are needed"),
        (2, 2, 30, "2 held-out real scans of ill make halves of 1; at least 20 held-out scans are needed"),
        (5, 1, 30, "5 held-out real scans of ill are all of one patient; at least 20 held-out scans are needed, "
         "of many patients"),
        (12, 3, 30, "12 held-out real scans of ill and 3 patients make halves of 4 without a common patient; "
         "at least 10 in each are needed"),
        (24, 24, 1, "1 synthetic scan of ill is too few; at least 10 are needed"),
        (24, 24, 9, "9 synthetic scans of ill are too few; at least 10 are needed"),
        (4, 4, 3, "4 held-out real scans of ill make halves of 2; at least 20 held-out scans are needed; "
         "and 3 synthetic scans of ill are too few; at least 10 are needed"),
    ],
)  # fmt: skip
def test_the_side_with_too_few_scans_is_named(held_out, patients, made, expected):
    splits = {split: count for split, count in {"train": 12, "test": held_out}.items() if count}
    scans = made_cohort({"ill": splits}, seed=0)
    of = np.arange(12 + held_out)
    of[12:] = 100 + np.arange(held_out) % max(1, patients)
    result = score(dataclasses.replace(scans, patients=of), made_cohort({"ill": {"train": made}}, seed=1))
    assert verdicts(result)["ill"]["sentence"] == f"Cannot tell: {expected}."


def test_enough_scans_are_what_the_sentence_asks_for():
    enough = score(made_cohort({"ill": {"test": 20}}, seed=0), made_cohort({"ill": {"train": 10}}, seed=1))
    assert verdicts(enough)["ill"]["reading"] != "cannot tell"
    fewer = score(made_cohort({"ill": {"test": 19}}, seed=0), made_cohort({"ill": {"train": 10}}, seed=1))
    assert verdicts(fewer)["ill"]["reading"] == "cannot tell"


def test_max_scans_is_named_where_it_is_the_limit():
    real = made_cohort({"ill": {"test": 90}}, seed=0)
    twice = dataclasses.replace(real, patients=np.arange(90) // 30)
    sentence = verdicts(score(twice, made_cohort({"ill": {"train": 30}}, seed=1), max_scans=20))["ill"]["sentence"]
    assert sentence.startswith("Cannot tell: the 20 scans drawn")
    assert "fidelity.max_scans" in sentence


@pytest.mark.parametrize(
    ("copied", "made", "expected"),
    [
        ([], 12, ""),
        ([4], 12, " 1 of 12 synthetic scans is identical to a real scan."),
        ([0, 5, 11], 12, " 3 of 12 synthetic scans are identical to real scans."),
        ([0, 1], 2, " All 2 synthetic scans are identical to real scans."),
        ([0], 1, " The synthetic scan is identical to a real scan."),
    ],
)
def test_identical_scans_are_counted_in_the_sentence(real, copied, made, expected):
    synthetic = made_cohort({"common": {"train": made}}, seed=1)
    # Of any class and split, whatever the type of number.
    scans = synthetic.scans.astype(np.float32)
    scans[copied] = real.scans[[-1, 30, 100][: len(copied)]]
    result = score(real, dataclasses.replace(synthetic, scans=scans))
    assert result.rows[0].counts.identical == len(copied)
    sentence = verdicts(result)["common"]["sentence"]
    assert sentence.endswith(expected)
    assert ("identical" in sentence) == bool(copied)


def test_real_classes_without_synthetic_scans_are_noted(real):
    alone = score(real, made_cohort({"common": {"train": 5}}, seed=1))
    assert build_report(alone, notes=["And more."])["notes"] == [
        "The real class rare has no synthetic scans, so nothing is said about it.",
        "And more.",
    ]
    assert build_report(score(real, made_cohort({"common": {"train": 5}, "rare": {"train": 5}}, seed=1)))["notes"] == []


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("max_scans", 0, 20), ("repeats", 0, 10), ("sheet_scans", -1, 0), ("pca_dims", 0, 1), ("ssim_pairs", -5, 1)],
)
def test_options_that_leave_nothing_to_tell_are_refused(real, name, value, least):
    with pytest.raises(ConfigError, match=rf"^fidelity\.{name}: need {least} or more, got {value}; try \d+$"):
        score(real, made_cohort({"common": {"train": 5}}, seed=1), **{name: value})


def test_no_sheets_on_request(real):
    assert score(real, made_cohort({"common": {"train": 5}}, seed=1), sheet_scans=0).sheets == ()
