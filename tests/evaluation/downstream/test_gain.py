from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medsynth.config import DownstreamOptions
from medsynth.errors import ConfigError, DataError
from medsynth.evaluation.downstream import gain as downstream
from medsynth.evaluation.downstream.experiment import ClassifierSettings, ProbeSettings, Settings
from medsynth.evaluation.downstream.gain import DownstreamResult, score_downstream
from medsynth.seeds import numpy_generator
from tests.evaluation.downstream.made_task import QUICK, QUICK_SETTINGS, MadeTask, pictures, real_cohort, synthetic_set
from tests.evaluation.made import Pixels


def score(
    real: MadeTask,
    made: MadeTask,
    folder: Path,
    options: DownstreamOptions = QUICK,
    settings: Settings = QUICK_SETTINGS,
    **more: Any,
) -> DownstreamResult:
    return score_downstream(
        real, made, options=options, folder=folder, progress=False, settings=settings, **more
    )  # fmt: skip


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> DownstreamResult:
    real = real_cohort()
    return score(real, synthetic_set(real, "fresh"), tmp_path_factory.mktemp("fresh"))


def test_fresh_real_scans_are_a_gain(fresh):
    verdict = fresh.verdict()
    assert verdict["verdict"] == "gain"
    assert "auroc" in verdict["figures"]
    tier = fresh.as_dict()["tiers"][0]
    for difference in tier["differences"]:
        assert difference["figures"]["auroc"]["low"] > 0, difference["against"]
    assert tier["differences"][0]["figures"]["auroc"]["adjusted_low"] > 0


@pytest.mark.parametrize("worth", ["duplicates", "shuffled", "noise"])
def test_worthless_sets_are_no_gain(worth, tmp_path):
    for seed in range(3):
        real = real_cohort(seed)
        verdict = score(real, synthetic_set(real, worth, seed), tmp_path).verdict()["verdict"]
        assert verdict in ("no gain", "harm"), (worth, seed)


def test_rare_scans_that_are_common_ones_are_no_gain(tmp_path):
    # Rare scans that are common ones, at no choice but a large share.
    real = real_cohort(rare=40)
    made = synthetic_set(real, "shuffled")
    swapped = replace(made, labels=2 - made.labels, features=synthetic_set(real, "fresh").features, key="swapped")
    assert score(real, swapped, tmp_path, replace(QUICK, shares=(1.0,))).verdict()["verdict"] != "gain"


def test_everything_is_in_the_report_and_nothing_else(fresh):
    report = fresh.as_dict()
    json.dumps(report, allow_nan=False)
    assert report["task"]["rare_class"] == "rare"
    assert report["task"]["train"] == {"rare_scans": 12, "rare_patients": 12, "rest_scans": 400}
    arms = {arm["name"]: arm for arm in report["tiers"][0]["arms"]}
    assert {
        "real",
        "oversample",
        "weighted+mixup",
        "logit_adjusted",
        "synthetic 0.5",
        "synthetic 0.75 of all classes",
    } <= set(arms)
    assert {"pretrain_synthetic", "synthetic_only", "duplicate_real"} <= set(arms)
    assert [arm["chosen"] for arm in arms.values()].count("baseline") == 1
    for name, arm in arms.items():
        for figure, found in arm["test"].items():
            assert found["low"] <= found["value"] <= found["high"] or figure in ("brier", "ece"), (name, figure)


def test_the_strongest_baseline_is_the_best_on_validation(fresh):
    tier = fresh.as_dict()["tiers"][0]
    for kind, chosen in (("baseline", tier["baseline"]), ("synthetic", tier["synthetic"])):
        criteria = {arm["name"]: arm["validation"]["criterion"] for arm in tier["arms"] if arm["kind"] == kind}
        assert max(criteria, key=criteria.__getitem__) == chosen
    recipes = {arm["recipe"] for arm in tier["arms"] if arm["kind"] in ("synthetic", "control")}
    assert recipes == {tier["baseline"]}


def test_further_scans_give_a_ceiling(tmp_path):
    real = real_cohort()
    further = synthetic_set(real, "fresh", seed=5, count=400)
    result = score(real, synthetic_set(real, "noise"), tmp_path, further=further)
    arms = {arm["name"]: arm for arm in result.as_dict()["tiers"][0]["arms"]}
    baseline = arms[result.as_dict()["tiers"][0]["baseline"]]
    assert arms["ceiling"]["kind"] == "ceiling"
    assert arms["ceiling"]["recipe"] == baseline["recipe"]
    assert arms["ceiling"]["test"]["auroc"]["value"] > baseline["test"]["auroc"]["value"]


def test_a_second_call_reads_what_the_first_found_and_agrees(tmp_path, monkeypatch):
    real = real_cohort(1)
    made = synthetic_set(real, "fresh", 1)
    first = score(real, made, tmp_path).as_dict()
    files = sorted(tmp_path.rglob("scores-*.npz"))
    assert len(files) >= 3 * (8 + 5 + 2)
    for file in files[::3]:
        file.unlink()
    files[1].write_bytes(b"broken")
    files[2].write_bytes(files[4].read_bytes())  # scores of another training
    files[5].write_bytes(files[5].read_bytes().replace(b"PK", b"PK\x01", 1))  # an archive that no reader expects
    assert score(real, made, tmp_path).as_dict() == first

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(downstream, "train_probe", refuse)
    assert score(real, made, tmp_path).as_dict() == first
    with pytest.raises(AssertionError, match="trained again"):
        score(real, made, tmp_path, settings=replace(QUICK_SETTINGS, mixup=0.2))


def test_test_labels_choose_nothing(tmp_path):
    real = real_cohort(2)
    made = synthetic_set(real, "fresh", 2)
    test = np.flatnonzero(real.splits == "test")
    labels = real.labels.copy()
    labels[test] = numpy_generator(0, "shuffle").permutation(labels[test])
    first, second = (
        score(cohort, made, tmp_path).as_dict()["tiers"][0] for cohort in (real, replace(real, labels=labels))
    )
    for name in ("baseline", "synthetic"):
        assert first[name] == second[name]
    for one, other in zip(first["arms"], second["arms"], strict=True):
        assert one["validation"] == other["validation"]
    assert first["arms"][0]["test"]["auroc"]["value"] > 0.7 > second["arms"][0]["test"]["auroc"]["value"]


def test_too_few_rare_test_patients_cannot_tell(tmp_path):
    real = real_cohort(held_out=(60, 8))
    verdict = score(real, synthetic_set(real, "fresh"), tmp_path).verdict()
    assert verdict["verdict"] == "cannot tell"
    assert verdict["sentence"] == "Too few patients to judge: 8 of rare in the test split, 20 needed."


def test_few_rare_validation_patients_are_named(tmp_path):
    real = real_cohort(held_out=(5, 60))
    notes = score(real, synthetic_set(real, "fresh"), tmp_path).as_dict()["notes"]
    assert any("validation has 5 patients of rare" in note for note in notes)


def test_harm_to_a_subgroup_is_named(tmp_path):
    # In group "b" held-out rare scans are the opposite of those in training: the better these are known, the worse for it.
    real = real_cohort(3, held_out=(60, 160))
    features = real.features.copy()
    groups = np.where(np.arange(len(features)) % 2 == 0, "a", "b")
    mirrored = (groups == "b") & (real.labels == 2) & (real.splits != "train")
    features[mirrored] *= -1
    rows = tuple(SimpleNamespace(attributes={"site": group, "id": str(number)}) for number, group in enumerate(groups))
    real = replace(real, features=features, rows=rows, key="groups")
    made = synthetic_set(real, "fresh", 3)
    report = score(real, made, tmp_path, replace(QUICK, subgroups="auto", shares=(0.75,))).as_dict()
    found = {group["value"]: group for group in report["subgroups"]["groups"]}
    assert set(found) == {"a", "b"}
    assert {group["column"] for group in found.values()} == {"site"}
    assert found["a"]["figures"]["auroc"]["value"] > 0 > found["b"]["figures"]["auroc"]["value"]
    assert found["b"]["verdict"] == "harm"
    assert report["verdict"]["harmed_subgroups"] == ["site = b"]
    assert "Harm in subgroups: site = b." in report["verdict"]["sentence"]


def test_augmented_copies_take_part_and_are_extracted_once(tmp_path):
    real, made = pictures()
    options = replace(QUICK, seeds=2, shares=(0.5,))
    settings = replace(QUICK_SETTINGS, probe=ProbeSettings(steps=20, batch_size=16, copies=2, augmented_scans=40))

    class Counting(Pixels):
        calls = 0

        def __call__(self, scans):
            Counting.calls += len(scans)
            return super().__call__(scans)

    first = score(real, made, tmp_path, options, settings, extractor=Counting()).as_dict()
    assert Counting.calls == 2 * 40
    assert {"real+augment", "oversample+augment+mixup"} <= {arm["name"] for arm in first["tiers"][0]["arms"]}
    assert score(real, made, tmp_path, options, settings, extractor=Counting()).as_dict() == first
    assert Counting.calls == 2 * 40


@pytest.mark.parametrize("dims", [2, 3])
def test_the_full_tier_trains_finalists_on_pixels_and_resumes(dims, tmp_path, monkeypatch):
    real, made = pictures(dims=dims)
    options = replace(QUICK, tier="full", seeds=2, shares=(0.5,), networks=("densenet",))
    settings = replace(QUICK_SETTINGS, classifier=ClassifierSettings(steps=4, batch_size=8, width=4, device="cpu"))
    report = score(real, made, tmp_path, options, settings).as_dict()
    assert [tier["name"] for tier in report["tiers"]] == ["probe", "full"]
    full = report["tiers"][1]
    kinds = [arm["kind"] for arm in full["arms"]]
    assert (kinds.count("synthetic"), kinds.count("control")) == (1, 1)
    assert {arm["network"] for arm in full["arms"]} == {"densenet"}
    assert full["arms"][0]["name"] == "real (densenet)"
    from medsynth.evaluation.downstream import classifier

    monkeypatch.setattr(classifier, "build_network", None)
    assert score(real, made, tmp_path, options, settings).as_dict() == report


def test_refuses_what_makes_no_task(tmp_path):
    real = real_cohort()
    made = synthetic_set(real, "fresh")
    patients = real.patients.copy()
    patients[-1] = patients[0]
    with pytest.raises(DataError, match="each patient in one split"):
        score(replace(real, patients=patients), made, tmp_path)
    with pytest.raises(DataError, match="need scans of other"):
        score(real, replace(made, labels=np.full_like(made.labels, 2)), tmp_path, replace(QUICK, rare_class="other"))
    with pytest.raises(ConfigError, match="rare_class"):
        score(real, made, tmp_path, replace(QUICK, rare_class="unknown"))
    with pytest.raises(DataError, match="need a row of features for each"):
        score(replace(real, features=real.features[1:]), made, tmp_path)
    for wrong, message in (
        ({"arms": ()}, "arms"),
        ({"subgroups": "sex"}, "subgroups"),
    ):
        with pytest.raises(ConfigError, match=message):
            score(real, made, tmp_path, replace(QUICK, **wrong))
    assert not list(tmp_path.iterdir())
