"""The privacy gate on cohorts whose truth is known: fresh scans pass, copies fail, few patients tell nothing."""

import dataclasses
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medsynth.cohorts.phantom import FRESH_PATIENTS, phantom_scan
from medsynth.errors import DataError
from medsynth.evaluation import Evaluation, Pair, build_report
from medsynth.evaluation.arrays import SEEN, ScanArrays
from medsynth.evaluation.privacy import GateSettings, MembershipResult, score_privacy
from medsynth.evaluation.privacy.controls import PLANTED, WHOLE, draw_held_out, plant_copies
from medsynth.evaluation.privacy.membership import MembershipRow
from medsynth.evaluation.privacy.nearness import equal_rows
from medsynth.evaluation.privacy.result import Share
from medsynth.reporting.report import render_page

SIDE = 32
SETTINGS = GateSettings(planted=48)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scans:
    """What the gate needs; features are means over blocks: what is left of a scan at very low resolution."""

    scans: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    patients: np.ndarray
    donors: np.ndarray | None
    real_pixels: np.ndarray
    classes: tuple[str, ...]
    rows_of = ScanArrays.rows_of

    @property
    def features(self):
        scans = self.scans.astype(np.float32)
        return scans.reshape(len(scans), SIDE // 8, 8, SIDE // 8, 8).mean((2, 4)).reshape(len(scans), -1)


def cohort(scans, labels, splits, patients, classes=("common", "rare"), donors=None):
    count = len(labels)
    return Scans(
        scans=np.asarray(scans, dtype=np.float16),
        labels=np.asarray(labels),
        splits=np.asarray(splits),
        patients=np.asarray(patients),
        donors=None if donors is None else np.asarray(donors),
        real_pixels=np.zeros(count, dtype=bool),
        classes=classes,
    )


def pictures(count, label, seed, side=SIDE):
    """Patients of one class: an anatomy common to all, another of their own, and the class's own brightness pattern."""
    generator = np.random.default_rng([seed, label])
    y, x = np.mgrid[:side, :side] / side - 0.5
    common = np.exp(-(x**2 + y**2) / (0.08 + 0.03 * label)) - 0.5
    own = gaussian_filter(generator.normal(size=(count, side, side)), (0, 3, 3))
    own /= own.std()
    scans = 0.7 * common + 0.25 * own + generator.normal(0, 0.03, own.shape)
    return scans[:, None].clip(-1, 1).astype(np.float16)


def made_of(scans, labels, donors=None):
    return cohort(scans, labels, ["train"] * len(scans), range(len(scans)), donors=donors)


def judge(real, made, *, drop_copies=False, membership=None, **changes):
    settings = replace(SETTINGS, **changes)
    return score_privacy(real, made, settings=settings, drop_copies=drop_copies, membership=membership, progress=False)


@pytest.fixture(scope="module")
def real():
    """Two scans a patient for some; 110 training, 20 validation and 90 test scans of two classes."""
    parts = [(90, 0, "train"), (40, 1, "train"), (20, 0, "val"), (100, 0, "test"), (100, 1, "test")]
    scans = [pictures(count, label, number) for number, (count, label, _) in enumerate(parts)]
    labels = [label for count, label, _ in parts for _ in range(count)]
    splits = [split for count, _, split in parts for _ in range(count)]
    return cohort(np.concatenate(scans), labels, splits, range(len(labels)))


@pytest.fixture(scope="module")
def fresh():
    """New patients of both classes."""
    return made_of(np.concatenate([pictures(60, 0, 91), pictures(60, 1, 92)]), [0] * 60 + [1] * 60)


@pytest.fixture(scope="module")
def fresh_result(real, fresh):
    return judge(real, fresh)


def copies_of(real, label, count=48, seed=5):
    return plant_copies(real, label, replace(SETTINGS, planted=count), seed)


def test_fresh_real_scans_pass(fresh_result):
    assert fresh_result.verdict()["verdict"] == "pass"
    assert [row.verdict(SETTINGS, 2)["verdict"] for row in fresh_result.rows] == ["pass", "pass"]
    assert len(fresh_result.copies) <= 0.02 * 120
    for row in fresh_result.rows:
        assert row.false_alarms.of == 50  # half of the test patients set no threshold
        assert row.false_alarms.value <= 0.02
        assert row.power.value >= 0.95
        assert row.power_of_parts.value >= 0.5
        for lean in row.lean.values():
            assert abs(lean.excess) < 0.3


def test_a_set_that_says_it_holds_real_pixels_fails(real, fresh):
    verdict = judge(real, replace(fresh, real_pixels=np.arange(120) < 2)).verdict()
    assert verdict["verdict"] == "fail"
    assert "2 scans contain pixels of real scans, so the set must stay within your institution" in verdict["sentence"]


@pytest.fixture(scope="module")
def copied(real):
    """Sixteen copies of every kind in one set: their donors and kinds, and what the gate says."""
    copies, donors, kinds = copies_of(real, 0, len(PLANTED) * 16)
    return donors, kinds, judge(real, made_of(copies, [0] * len(copies)), planted=0)


@pytest.mark.parametrize("kind", range(len(PLANTED)), ids=PLANTED)
def test_copies_fail_and_are_found(copied, kind):
    donors, kinds, result = copied
    assert result.verdict()["verdict"] == "fail"
    found = {copy.synthetic_row: copy.donor_row for copy in result.copies}
    hit = [row for row in np.flatnonzero(kinds == kind) if row in found]
    # Of these pictures of 32 x 32, all smooth, a part says less than of a scan.
    assert len(hit) >= (15 if PLANTED[kind] in WHOLE else 6)
    if PLANTED[kind] in WHOLE:
        assert [found[row] for row in hit] == donors[hit].tolist()


def test_copies_fail_as_half_of_a_set_and_the_others_are_not_accused(real, fresh):
    copies, donors, kinds = copies_of(real, 0)
    rare, rare_donors, rare_kinds = copies_of(real, 1)
    fresh_rows = np.r_[0:48, 60:108]
    made = made_of(np.concatenate([copies, rare, fresh.scans[fresh_rows]]), [0] * 48 + [1] * 48 + [0] * 48 + [1] * 48)
    result = judge(real, made)
    assert [row.verdict(SETTINGS, 2)["verdict"] for row in result.rows] == ["fail", "fail"]
    found = np.array([copy.synthetic_row for copy in result.copies])
    assert (found < 96).sum() >= 0.95 * 96
    assert (found >= 96).sum() <= 0.02 * 96
    named = dict(zip(range(96), [*donors, *rare_donors], strict=True))
    halves = {row for row in range(96) if PLANTED[[*kinds, *rare_kinds][row]] == "two halves"}
    known = [copy for copy in result.copies if copy.synthetic_row in named.keys() - halves]
    assert all(copy.donor_row == named[copy.synthetic_row] for copy in known)
    assert all(copy.donor_split in SEEN for copy in result.copies)


def test_dropping_copies_leaves_a_set_that_passes(real, fresh):
    copies, _, _ = copies_of(real, 0)
    made = made_of(np.concatenate([copies, fresh.scans]), [0] * 48 + list(fresh.labels))
    result = judge(real, made, drop_copies=True)
    assert result.verdict()["verdict"] == "pass"
    assert 46 <= result.rows[0].dropped <= 50
    assert result.rows[0].judged == 108 - result.rows[0].dropped
    assert all(copy.dropped for copy in result.copies)
    assert str(sum(row.dropped for row in result.rows)) in result.verdict()["sentence"]
    shifted = result.rows[0].lean["pixels"]
    assert shifted.scans == result.rows[0].judged  # the set-level figures are of the rest


def test_one_identical_scan_fails_a_set_also_if_it_is_a_test_scan(real, fresh):
    scans = fresh.scans.copy()
    row = int(real.rows_of("rare", ("test",))[7])
    scans[100] = real.scans[row]
    result = judge(real, made_of(scans, fresh.labels), planted=6)
    assert result.verdict()["verdict"] == "fail"
    assert "identical" in result.rows[1].failures(SETTINGS, 2)[0]
    assert [(copy.synthetic_row, copy.donor_row, copy.donor_split) for copy in result.copies if copy.unmistakable] == [
        (100, row, "test")
    ]


def test_the_most_suspicious_scans_come_first(real, fresh):
    scans = np.array(fresh.scans)
    scans[5], scans[9] = real.scans[3], real.scans[8] * 0.98
    found = judge(real, replace(fresh, scans=scans))
    first, second, *others = found.suspects
    assert (first.synthetic_row, first.donor_row) == (5, 3)
    assert first.reason.startswith("identical")
    assert (second.synthetic_row, second.donor_row) == (9, 8)
    assert second.reason
    assert len(others) == 6
    assert all(each.pixels > second.pixels for each in others)
    # Those that are not flagged are shown, too, and nothing is said against them.
    flagged = {copy.synthetic_row for copy in found.copies}
    assert [each.reason != "" for each in others] == [each.synthetic_row in flagged for each in others]


def test_near_duplicates_among_held_out_scans_set_no_threshold(real, fresh):
    """Scans that are in the training split as well, with light noise: they would let copies pass."""
    scans, generator = real.scans.copy(), np.random.default_rng(6)
    test, seen = real.rows_of("common", ("test",))[:20], real.rows_of("common", SEEN)[:20]
    scans[test] = scans[seen] + generator.normal(0, 0.01, scans[seen].shape)
    result = judge(replace(real, scans=scans), fresh)
    row = result.rows[0]
    assert (row.held_out_alike, row.held_out_scans) == (20, 80)
    assert result.verdict()["verdict"] == "pass"
    assert row.power.value >= 0.95
    assert "Left out: 20 scans held out that nearly repeat training scans" in row.verdict(SETTINGS, 2)["sentence"]
    assert result.rows[1].held_out_alike == 0


def test_few_patients_tell_nothing(real, fresh):
    few = np.r_[0:20, 90:100, 150:165, 250:265]
    small = cohort(real.scans[few], real.labels[few], real.splits[few], real.patients[few])
    result = judge(small, fresh)
    assert result.verdict()["verdict"] == "cannot tell"
    # Train and val scans help out, each compared with the others.
    assert [row.held_out_patients for row in result.rows] == [15 + 20, 15 + 10]
    assert [row.held_out_seen for row in result.rows] == [20, 10]
    assert (
        "Too few patients to judge: 35 real patients to compare with, 50 needed"
        in result.rows[0].verdict(SETTINGS, 2)["sentence"]
    )
    copies, _, _ = copies_of(small, 0)
    assert judge(small, made_of(copies, [0] * 48)).verdict()["verdict"] == "fail"


def test_a_gate_that_finds_no_copies_cannot_tell(real, fresh):
    result = judge(real, fresh, noise=1.5)
    noisy = PLANTED.index("noise")
    assert result.rows[0].power_by_kind[PLANTED[noisy]].value < 0.5
    assert result.verdict()["verdict"] == "cannot tell"
    assert "planted copies" in result.rows[0].verdict(SETTINGS, 2)["sentence"]


def test_a_generator_of_smooth_typical_scans_is_not_accused(real):
    """Means of many new patients are nearer to everyone than patients are."""
    generator = np.random.default_rng(3)
    pool = pictures(300, 0, 77).astype(np.float32)
    drawn = np.stack([pool[generator.permutation(300)[:4]].mean(0) for _ in range(60)])
    result = judge(real, made_of(drawn, [0] * 60))
    row = result.rows[0]
    assert row.figures["pixels"]["synthetic"]["median"] < row.figures["pixels"]["held_out"]["low"]
    assert abs(row.lean["pixels"].excess) < 0.3
    assert not any("nearest patient" in reason for reason in row.failures(SETTINGS, 1))


def test_a_set_that_leans_to_its_training_patients_fails(real):
    """Half training scan, half another: too far from each for a copy, but no new patient would lean so."""
    generator = np.random.default_rng(4)
    seen = real.rows_of("common", SEEN)
    pairs = [generator.permutation(seen)[:2] for _ in range(80)]
    mixed = np.stack([0.6 * real.scans[a].astype(np.float32) + 0.4 * real.scans[b] for a, b in pairs])
    row = judge(real, made_of(mixed, [0] * 80)).rows[0]
    assert row.lean["pixels"].excess > 0.5
    assert row.lean["pixels"].p_value < 0.001
    assert any("nearest patient in pixels" in reason for reason in row.failures(SETTINGS, 1))


def test_a_donor_explains_likeness_but_no_copy(real):
    """Edits that are their donors fail with them named or not; edits far from their donors pass."""
    seen = real.rows_of("common", SEEN)[:60]
    generator = np.random.default_rng(5)
    close = real.scans[seen] + 0.3 * generator.uniform(-1, 1) + generator.normal(0, 0.02, (60, 1, SIDE, SIDE))
    for donors in (seen, np.roll(seen, 1)):
        found = judge(real, made_of(close, [0] * 60, donors=donors), planted=0)
        assert found.verdict()["verdict"] == "fail"
        assert len(found.copies) >= 57
        assert (found.edits["nearer_than_limit"] == 60) == (donors is seen)
        assert all(copy.donor_row == seen[copy.synthetic_row] for copy in found.copies)
    edits = 0.35 * real.scans[seen].astype(np.float32) + 0.65 * pictures(60, 0, 93)
    far = judge(real, made_of(edits, [0] * 60, donors=seen))
    assert far.verdict()["verdict"] == "pass", far.rows[0].verdict(SETTINGS, 1)
    assert (far.edits["scans"], far.edits["donors"], far.edits["nearer_than_limit"]) == (60, 60, 0)
    # The same likeness without a donor that explains it.
    assert (
        far.edits["median"]
        < judge(real, made_of(edits, [0] * 60), planted=0).rows[0].figures["pixels"]["held_out"]["median"] + 0.2
    )


def test_repeated_synthetic_scans_are_named(real, fresh):
    scans = fresh.scans[:40].copy()
    scans[[7, 30]] = scans[2]
    result = judge(real, made_of(scans, [0] * 40), planted=0)
    assert result.repeated == ((2, 7, 30),)


def test_no_patient_calibrates_and_measures(real):
    patients = np.arange(len(real.scans)) // 3
    grouped = replace(real, patients=patients)
    held = draw_held_out(grouped, (0, 1), replace(SETTINGS, min_patients=80), 0)
    setting = set(held.patients[held.calibrates])
    assert not setting & set(held.patients[~held.calibrates])
    assert 0.35 < held.calibrates.mean() < 0.65
    assert (held.barred >= 0).sum() == np.isin(real.splits[held.rows], SEEN).sum() > 0


def test_the_result_is_plain_repeatable_and_names_no_patient(real, fresh, fresh_result):
    content = json.dumps(build_report(privacy=fresh_result)["privacy"], allow_nan=False)
    assert ".png" not in content
    assert "anonymous" not in content
    assert json.dumps(build_report(privacy=judge(real, fresh))["privacy"]) == content
    report = json.loads(content)
    assert set(report["rows"][0]["figures"]) == {
        "pixels", "stands_out", "patches_stand_out", "features_stand_out", "features",
    }  # fmt: skip
    assert sum(report["rows"][0]["histogram"]["synthetic"]) == pytest.approx(1)


def test_clopper_pearson():
    assert Share(0, 50).interval == pytest.approx((0, 1 - 0.025 ** (1 / 50)))
    assert Share(0, 0).interval == (0, 1)


def test_wrong_input_is_refused(real, fresh):
    with pytest.raises(DataError, match="train or val"):
        judge(replace(real, splits=np.full(len(real.scans), "test")), fresh)


def test_phantom_patients():
    """Chest slices, whose anatomy is alike: new patients pass, copies of all kinds are found and fail."""

    def slices(count, first):
        found = [phantom_scan(first + number, 0, label="solid_nodule", size=SIDE).scan.array for number in range(count)]
        return np.clip(np.stack(found) / 800 + 0.2, -1, 1)

    phantom = cohort(
        slices(150, 0), [0] * 150, ["train"] * 80 + ["test"] * 70, range(150), classes=("solid_nodule", "other")
    )
    new = cohort(slices(40, FRESH_PATIENTS), [0] * 40, ["train"] * 40, range(40), classes=("solid_nodule",))
    passed = judge(phantom, new)
    assert passed.verdict()["verdict"] == "pass", passed.rows[0].verdict(SETTINGS, 1)
    copies, _, _ = copies_of(phantom, 0)
    half = cohort(np.concatenate([new.scans, copies]), [0] * 88, ["train"] * 88, range(88), classes=("solid_nodule",))
    result = judge(phantom, half)
    assert result.verdict()["verdict"] == "fail"
    found = np.array([copy.synthetic_row for copy in result.copies])
    assert (found >= 40).sum() >= 0.9 * 48  # a third of the copies are of parts
    assert (found < 40).sum() == 0


def test_a_model_that_gives_its_training_patients_away_fails_the_set(real, fresh):
    row = MembershipRow(label=None, auc=0.95, low=0.9, high=0.99, member_patients=30, new_patients=30, scans=60)
    found = MembershipResult(rows=(row,), sigmas=(1.0,), limit=0.8)
    verdict = judge(real, fresh, membership=found).verdict()
    assert verdict["verdict"] == "fail"
    assert verdict["sentence"] == "The privacy gate fails: the model's loss reveals its training patients."


def test_only_scans_equal_in_every_pixel_are_identical():
    references = np.random.default_rng(0).normal(size=(5, 1, 4, 4)).astype(np.float16)
    candidates = references[[3, 1, 4]].astype(np.float32)
    candidates[1, 0, 2, 2] += 1e-3
    assert equal_rows(candidates, references).tolist() == [3, -1, 4]
    zeros = np.zeros((1, 1, 2, 2), dtype=np.float16)
    assert equal_rows(-zeros, zeros).tolist() == [0], "zero has no sign"
    assert equal_rows(np.zeros((0, 1, 2, 2)), zeros).shape == (0,)


def test_the_section_of_the_report_shows_the_verdict_and_the_rows(real, fresh, fresh_result):
    scans = fresh.scans.copy()
    scans[5] = real.scans[17]
    failed = judge(real, made_of(scans, fresh.labels), planted=6)
    for result, verdict in ((fresh_result, "pass"), (failed, "fail")):
        pairs = tuple(
            Pair(copy=each, synthetic=scans[each.synthetic_row], real=real.scans[each.donor_row])
            for each in result.suspects
        )
        evaluation = Evaluation(report=build_report(privacy=result), pairs=pairs)
        page = render_page(evaluation)
        assert len(re.findall("<figcaption>(?:rare|common), synthetic row", page)) == 8
        assert "synthetic row" not in render_page(evaluation, real_pictures=False).split("<table")[0]
        assert f">{verdict}</span>" in page
        assert all(row.verdict(SETTINGS, 2)["sentence"].replace("'", "&#39;") in page for row in result.rows)
        assert "anonymous" not in page
    assert "common, synthetic row 5, real row 17: distance 0.00, " in page
    assert "<td>5<small>common</small></td>" in page
    assert "<td>17<small>common, train</small></td>" in page
