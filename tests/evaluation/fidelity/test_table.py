from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from medsynth.errors import DataError
from medsynth.evaluation import Evaluation
from medsynth.evaluation.fidelity import FidelityResult, FidelitySettings, comparison, score_fidelity
from medsynth.evaluation.verdict import build_report
from medsynth.measures.distances import Kernels, Projection, frechet_distance, kernel_distance
from medsynth.measures.neighbours import Spacings
from medsynth.measures.texture import standardised_distances, texture_features
from medsynth.reporting.report import render_page
from tests.evaluation.made import MadeScans, Pixels, made_cohort

SETTINGS = FidelitySettings(repeats=40, ssim_pairs=60, sheet_scans=3)
REAL = {"common": {"train": 60, "val": 20, "test": 60}, "rare": {"train": 10, "test": 12}}


@pytest.fixture(scope="module")
def real() -> MadeScans:
    return made_cohort(REAL, seed=0)


def score(real: MadeScans, synthetic: MadeScans, **settings: int) -> FidelityResult:
    changed = dataclasses.replace(SETTINGS, **settings)
    return score_fidelity(real, synthetic, settings=changed, extractor=Pixels(), seed=3, progress=False)


def verdicts(result: FidelityResult) -> dict[str | None, dict[str, str]]:
    return {found["label"]: found for found in build_report(result)["verdict"]["fidelity"]}


@pytest.mark.parametrize("seed", range(1, 6))
def test_fresh_scans_of_the_same_distribution_read_as_close(real, seed):
    fresh = made_cohort({"common": {"train": 50}}, seed=seed)
    row = score(real, fresh).rows[0]
    assert (row.held_out.kid.verdict, row.held_out.frechet.verdict) == ("as close", "as close")
    assert (row.held_out.ssim.verdict, row.seen.kid.verdict) == ("as varied", "as close")


def test_other_scans_read_further_with_the_figures_in_the_sentence(real):
    result = score(real, made_cohort({"common": {"train": 50}}, seed=1, brighter=0.3))
    found = result.rows[0].held_out
    assert found.kid.verdict == found.frechet.verdict == "further"
    assert found.kid.value > found.kid.real_high > found.kid.real_median
    assert found.kid_of_all[1] > 0
    verdict = verdicts(result)["common"]
    assert verdict["verdict"] == "further"
    assert f"{found.kid.value:.3g}" in verdict["sentence"]
    assert "splits themselves differ" not in verdict["sentence"]


def test_scans_that_are_all_alike_read_less_varied_in_words(real):
    made = made_cohort({"common": {"train": 50}}, seed=1)
    few = dataclasses.replace(made, scans=np.concatenate([made.scans[:2]] * 25))
    result = score(real, few)
    found = result.rows[0].held_out
    assert (found.ssim.verdict, found.recall.verdict) == ("less varied", "less varied")
    sentence = verdicts(result)["common"]["sentence"]
    assert "more similar to each other than real scans are (SSIM)" in sentence
    assert f"cover {found.recall.value:.0%} of the real scans" in sentence


def test_brighter_scans_differ_in_pixels_and_lie_off_the_real_ones(real):
    found = score(real, made_cohort({"common": {"train": 50}}, seed=1, brighter=0.3)).rows[0].held_out
    assert found.intensity.verdict == found.precision.verdict == found.frechet_infinite.verdict == "further"
    assert found.intensity.value == pytest.approx(0.3, abs=0.05)
    assert found.intensity.real_high < 0.1
    assert found.coverage.verdict == "less varied"


def test_noise_reads_further(real):
    noise = made_cohort({"common": {"train": 50}}, seed=1)
    noise.scans[:] = np.random.default_rng(2).uniform(-1, 1, size=noise.scans.shape)
    found = score(real, noise).rows[0].held_out
    for name in ("frechet", "frechet_infinite", "precision", "density", "texture"):
        assert getattr(found, name).verdict == "further", name
    assert found.texture.value > 1  # standard deviations of real scans


def test_copies_of_a_few_scans_read_less_varied(real):
    copies = made_cohort({"common": {"train": 50}}, seed=1)
    copies.scans[:] = copies.scans[np.arange(50) % 2]
    found = score(real, copies).rows[0].held_out
    assert found.ssim.verdict == found.recall.verdict == found.coverage.verdict == "less varied"
    assert found.ssim.value > found.ssim.real_high
    assert found.coverage.value < found.coverage.real_low


def test_figures_are_those_of_the_measures_of_the_scans_drawn(monkeypatch):
    halves = np.arange(12), np.arange(12, 24)
    monkeypatch.setattr(comparison, "disjoint_halves", lambda *_: tuple(np.tile(half, (10, 1)) for half in halves))
    real, made = made_cohort({"ill": {"test": 24}}, seed=0), made_cohort({"ill": {"train": 12}}, seed=1, brighter=0.1)
    found = score(real, made, repeats=10, neighbours=3).rows[0].held_out
    assert found.scans_a_side == 12
    one, other = (real.scans[half] for half in halves)
    for scans, name in ((made.scans, "value"), (other, "real_median")):
        first, second = (side.reshape(12, -1).astype(np.float32) for side in (one, scans))
        every = np.arange(12)
        expected = dataclasses.asdict(Spacings.of(first, second).across(every, every, neighbours=3))
        axes = Projection.fit(first, 4)
        expected["frechet"] = frechet_distance(axes.project(first), axes.project(second))
        expected["kid"] = kernel_distance(Kernels.of(first, second))
        expected["texture"] = np.median(
            standardised_distances(*(texture_features(side, progress=False) for side in (one, scans)))
        )
        for measure, value in expected.items():
            assert getattr(getattr(found, measure), name) == pytest.approx(value, rel=1e-6), measure
        # Pooled values: bins are 1 / 128 wide.
        moved = wasserstein_distance(one.ravel().astype(float), scans.ravel().astype(float))
        assert getattr(found.intensity, name) == pytest.approx(moved, abs=1 / 128)
        # What few scans add to the distance is gone.
        assert getattr(found.frechet_infinite, name) < getattr(found.frechet, name)


def test_a_set_against_itself_is_at_zero(monkeypatch):
    half = np.tile(np.arange(12), (10, 1))
    monkeypatch.setattr(comparison, "disjoint_halves", lambda *_: (half, half))
    found = score(made_cohort({"ill": {"test": 24}}, seed=0), made_cohort({"ill": {"train": 12}}, seed=1), repeats=10)
    itself = found.rows[0].held_out
    for name in ("frechet", "frechet_infinite", "intensity", "texture"):
        assert getattr(itself, name).real_median == pytest.approx(0, abs=1e-6), name
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(itself, name).real_median == 1, name


def test_features_that_do_not_fit_the_scans_are_refused(real):
    made = made_cohort({"common": {"train": 50}}, seed=1)
    with pytest.raises(DataError, match=r"synthetic features: need one row for each of 50 scans, got \(49, 144\)"):
        score(real, dataclasses.replace(made, others=made.features[:49]))


def test_measures_that_the_scans_are_too_small_for_are_named(real):
    small = score(real, made_cohort({"common": {"train": 20}}, seed=1), repeats=10)
    assert small.as_dict()["left_out"] == {"ms_ssim": "scans of 12 x 12 are too small for two scales of MS-SSIM"}
    assert small.rows[0].held_out.ms_ssim is None
    assert small.as_dict()["ms_ssim_weights"] == []
    large = dataclasses.replace(real, scans=real.scans.repeat(2, axis=2).repeat(2, axis=3))
    copies = dataclasses.replace(large, scans=large.scans[np.arange(len(large.scans)) % 2])
    result = score(large, copies, repeats=10)
    assert result.as_dict()["left_out"] == {}
    assert result.as_dict()["ms_ssim_weights"] == pytest.approx([0.0448 / 0.3304, 0.2856 / 0.3304])
    assert result.rows[0].held_out.ms_ssim.verdict == "less varied"
    tiny = dataclasses.replace(real, scans=real.scans[:, :, :4, :4])
    figures = score(tiny, tiny, repeats=10)
    assert set(figures.left_out) == {"ms_ssim", "texture"}
    assert figures.rows[0].held_out.texture is None


def test_textures_of_scans_that_do_not_vary_are_told_without_numbers(real):
    even = dataclasses.replace(real, scans=np.full_like(real.scans, 0.25))
    found = score(even, made_cohort({"common": {"train": 50}}, seed=1), repeats=10)
    texture = found.rows[0].held_out.texture
    assert (texture.value, texture.verdict) == (np.inf, "further")
    assert build_report(found)["fidelity"]["rows"][0]["held_out"]["texture"]["value"] is None
    assert score(even, even, repeats=10).rows[0].held_out.texture.verdict == "as close"


class Inception(Pixels):
    """Features are said to be those of FID."""

    name = "Inception"
    fid = True


def test_fid_is_not_comparable_and_does_not_decide_with_few_scans(real):
    made = made_cohort({"common": {"train": 30}}, seed=1, brighter=0.3)
    settings = dataclasses.replace(SETTINGS, repeats=10)
    # 2048 numbers that depend on the pixels.
    sides = [dataclasses.replace(side, others=np.tile(side.features, 15)[:, :2048]) for side in (real, made)]
    found = score_fidelity(*sides, settings=settings, extractor=Inception(), progress=False).rows[0].held_out
    assert found.fid.verdict == "further"
    assert found.fid_comparable is False
    assert list(found.deciding("Inception")) == ["KID-Inception", "FD-Inception"]
    assert list(dataclasses.replace(found, fid_comparable=True).deciding("Inception"))[2:] == ["FID"]
    assert score(real, made, repeats=10).rows[0].held_out.fid is None


def test_shifted_splits_are_named(real):
    shifted = dataclasses.replace(
        real, scans=real.scans + np.float16(0.3) * (real.splits == "test")[:, None, None, None]
    )
    result = score(shifted, made_cohort({"common": {"train": 50}}, seed=1))
    assert result.rows[0].real_seen.kid.verdict == "further"
    assert result.rows[0].seen.kid.verdict == "as close"
    assert "splits themselves differ" in verdicts(result)["common"]["sentence"]


def test_both_sides_of_every_figure_have_the_stated_number_of_scans(real):
    result = score(real, made_cohort({"common": {"train": 50}, "rare": {"train": 50}}, seed=1))
    common, rare, together = result.rows
    assert [common.label, rare.label, together.label] == ["common", "rare", None]
    assert [row.held_out.scans_a_side for row in result.rows] == [30, 6, 36]
    assert [row.seen.scans_a_side for row in result.rows] == [40, 5, 45]
    assert (common.held_out.real_scans, common.held_out.candidates, common.held_out.pca_dims) == (60, 50, 10)
    assert (rare.held_out.too_few, common.held_out.too_few) == (True, False)
    assert "12 held-out real scans of rare, 20 needed" in verdicts(result)["rare"]["sentence"]


def test_kid_of_all_scans_is_that_of_the_measure(real):
    made = made_cohort({"common": {"train": 30}}, seed=1)
    held_out = real.scans[(real.labels == 0) & (real.splits == "test")].reshape(60, -1).astype(np.float32)
    expected = kernel_distance(Kernels.of(held_out, made.scans.reshape(30, -1).astype(np.float32)))
    assert score(real, made).rows[0].held_out.kid_of_all[0] == pytest.approx(expected)


def test_the_same_seed_gives_the_same_figures_and_other_classes_do_not_matter(real):
    both = made_cohort({"common": {"train": 30}, "rare": {"train": 20}}, seed=1)
    alone = dataclasses.replace(
        both, **{name: getattr(both, name)[:30] for name in ("scans", "labels", "splits", "patients")}
    )
    first, second, single = (score(real, made, max_scans=40, repeats=10) for made in (both, both, alone))
    assert build_report(first)["fidelity"] == build_report(second)["fidelity"]
    assert dataclasses.asdict(first.rows[0]) == dataclasses.asdict(single.rows[0])
    np.testing.assert_array_equal(first.sheets[1].synthetic, second.sheets[1].synthetic)


def test_max_scans_bounds_every_class_and_all_together(real):
    made = made_cohort({"common": {"train": 50}, "rare": {"train": 50}}, seed=1)
    common, _, together = score(real, made, max_scans=20, repeats=10).rows
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
    assert verdicts(result)["rare"]["verdict"] == "cannot tell"
    seen = json.loads(json.dumps(build_report(result), allow_nan=False))["fidelity"]["rows"][0]["seen"]
    assert seen["scans_a_side"] == 1
    assert seen["kid"]["value"] is None
    assert seen["kid"]["verdict"] == seen["frechet"]["verdict"] == seen["ssim"]["verdict"] == "cannot tell"


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
    assert set(report) >= {"schema", "fidelity", "privacy", "downstream", "verdict", "notes", "versions", "settings"}
    assert report["schema"] == "medsynth-report/3"
    assert report["privacy"] is None
    assert report["fidelity"]["extractor"]["name"] == "Pixels"
    assert report["settings"]["solver"] == "heun"
    assert report["settings"]["fidelity"]["repeats"] == 40
    assert report["versions"]["torch"].startswith("2.")


@pytest.mark.parametrize(
    ("held_out", "patients", "made", "expected"),
    [
        (0, 0, 30, "no held-out real scans of ill, 20 needed"),
        (1, 1, 30, "1 held-out real scan of ill, 20 needed"),
        (2, 2, 30, "2 held-out real scans of ill, 20 needed"),
        (5, 1, 30, "5 held-out real scans of ill, all of one patient, 20 needed, of many patients"),
        (12, 3, 30, "12 held-out real scans of ill from 3 patients, who can be split into halves of 4, halves of 10 needed"),
        (24, 24, 1, "1 synthetic scan of ill, 10 needed"),
        (24, 24, 9, "9 synthetic scans of ill, 10 needed"),
        (4, 4, 3, "4 held-out real scans of ill, 20 needed; 3 synthetic scans of ill, 10 needed"),
    ],
)  # fmt: skip
def test_the_side_with_too_few_scans_is_named(held_out, patients, made, expected):
    splits = {split: count for split, count in {"train": 12, "test": held_out}.items() if count}
    scans = made_cohort({"ill": splits}, seed=0)
    of = np.arange(12 + held_out)
    of[12:] = 100 + np.arange(held_out) % max(1, patients)
    result = score(dataclasses.replace(scans, patients=of), made_cohort({"ill": {"train": made}}, seed=1), repeats=10)
    assert verdicts(result)["ill"]["sentence"] == f"Too few scans to judge: {expected}."


def test_enough_scans_are_what_the_sentence_asks_for():
    enough = score(made_cohort({"ill": {"test": 20}}, seed=0), made_cohort({"ill": {"train": 10}}, seed=1), repeats=10)
    assert verdicts(enough)["ill"]["verdict"] != "cannot tell"
    fewer = score(made_cohort({"ill": {"test": 19}}, seed=0), made_cohort({"ill": {"train": 10}}, seed=1), repeats=10)
    assert verdicts(fewer)["ill"]["verdict"] == "cannot tell"


def test_max_scans_is_named_where_it_is_the_limit():
    real = made_cohort({"ill": {"test": 90}}, seed=0)
    twice = dataclasses.replace(real, patients=np.arange(90) // 30)
    sentence = verdicts(score(twice, made_cohort({"ill": {"train": 30}}, seed=1), max_scans=20))["ill"]["sentence"]
    assert sentence.startswith("Too few scans to judge: the 20 scans drawn")
    assert "--fidelity_scans" in sentence


@pytest.mark.parametrize(
    ("copied", "made", "expected"),
    [
        ([], 12, ""),
        ([4], 12, " 1 of 12 synthetic scans is identical to real scans."),
        ([0, 5, 11], 12, " 3 of 12 synthetic scans are identical to real scans."),
        ([0, 1], 2, " 2 of 2 synthetic scans are identical to real scans."),
        ([0], 1, " 1 of 1 synthetic scans is identical to real scans."),
    ],
)
def test_identical_scans_are_counted_in_the_sentence(real, copied, made, expected):
    synthetic = made_cohort({"common": {"train": made}}, seed=1)
    # Of any class and split, whatever the type of number.
    scans = synthetic.scans.astype(np.float32)
    scans[copied] = real.scans[[-1, 30, 100][: len(copied)]]
    result = score(real, dataclasses.replace(synthetic, scans=scans), repeats=10)
    assert result.rows[0].counts.identical == len(copied)
    sentence = verdicts(result)["common"]["sentence"]
    assert sentence.endswith(expected)
    assert ("identical" in sentence) == bool(copied)


def test_real_classes_without_synthetic_scans_are_noted(real):
    alone = score(real, made_cohort({"common": {"train": 5}}, seed=1), repeats=10)
    assert build_report(alone, notes=["And more."])["notes"] == [
        "The real class rare has no synthetic scans, so it was not evaluated.",
        "And more.",
    ]
    assert (
        build_report(score(real, made_cohort({"common": {"train": 5}, "rare": {"train": 5}}, seed=1), repeats=10))[
            "notes"
        ]
        == []
    )


def test_no_sheets_on_request(real):
    assert score(real, made_cohort({"common": {"train": 5}}, seed=1), sheet_scans=0).sheets == ()


def test_many_classes_have_all_figures_in_json_and_the_rarest_have_pictures():
    """What a page holds does not grow with the number of classes; each sheet is the one of the class alone."""
    counts = {f"c{number:02d}": {"train": 4 + number, "test": 2} for number in range(30)}
    real, made = made_cohort(counts, seed=0), made_cohort({name: {"train": 3} for name in counts}, seed=1)
    result = score(real, made, repeats=4)
    assert [sheet.label for sheet in result.sheets] == [f"c{number:02d}" for number in range(24)]
    rows = real.rows_of("c07")
    alone = dataclasses.replace(
        real, **{name: getattr(real, name)[rows] for name in ("scans", "labels", "splits", "patients")}
    )
    picked = made.rows_of("c07")
    offered = dataclasses.replace(
        made, **{name: getattr(made, name)[picked] for name in ("scans", "labels", "splits", "patients")}
    )
    (sheet,) = score(alone, offered, repeats=4).sheets
    among_all = next(one for one in result.sheets if one.label == "c07")
    for one, other in ((sheet.synthetic, among_all.synthetic), (sheet.real, among_all.real)):
        np.testing.assert_array_equal(one, other)
    report = build_report(result)
    assert len(report["fidelity"]["rows"]) == 31
    page = render_page(Evaluation(report=report, sheets=result.sheets))
    assert page.count("Against the real scans that the generator saw, and those against held-out scans") == 25
    assert "Of 30 classes, the figures of 24 are shown" in page
    assert "Of the 24 classes with the fewest real scans." in page
    assert all(f"<b>c{number:02d}:</b>" in page for number in range(30)), "every class has its sentence"


def test_rows_of_a_class_are_those_of_its_label_and_splits():
    real = made_cohort({"a": {"train": 3, "test": 2}, "b": {"train": 1, "val": 2}}, seed=0)
    assert real.rows_of("a").tolist() == [0, 1, 2, 3, 4]
    assert real.rows_of("b", ("val", "test")).tolist() == [6, 7]
    assert real.rows_of("c").tolist() == []
