"""The phantom cohort: what it says about its scans is true of their pixels, and the same seed gives the same bytes."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

import medsynth
from medsynth.cohorts import phantom
from medsynth.cohorts.manifest import read_cohort
from medsynth.cohorts.phantom import (
    CLASSES,
    DENSITIES,
    DIAMETERS,
    FIELD_OF_VIEW,
    FRESH_PATIENTS,
    NORMAL,
    RARE,
    SOLID,
    PhantomScan,
    cohort_plan,
    phantom_scan,
    write_phantom,
)
from medsynth.cohorts.thorax import Anatomy, Chest, Points, Pose, draw_vessels
from medsynth.config import DemoOptions
from medsynth.errors import ConfigError
from medsynth.scans import read_scan
from medsynth.seeds import numpy_generator


@pytest.fixture(scope="module")
def lesions() -> list[PhantomScan]:
    return [phantom_scan(FRESH_PATIENTS + n, n % 2, label=(SOLID, RARE)[n % 2], seed=5) for n in range(40)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_same_seed_same_bytes_other_seed_other_scans(tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        write_phantom(DemoOptions(out=tmp_path / name, scans=8, size=32, seed=seed, progress=False))
    first, again, other = (files_of(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    shared = [name for name in first if name.startswith("scans/") and name in other]
    assert shared
    assert all(first[name] != other[name] for name in shared)


def test_written_cohort_holds_the_scans_that_are_drawn_in_memory(tmp_path: Path) -> None:
    cohort = read_cohort(write_phantom(DemoOptions(out=tmp_path, scans=9, size=48, seed=1, progress=False)))
    assert len(cohort.rows) == 9
    for row, (patient, scan, label, split) in zip(cohort.rows, cohort_plan(scans=9, seed=1), strict=True):
        drawn = phantom_scan(patient, scan, label=label, size=48, seed=1)
        stored = read_scan(cohort.file_of(row))
        np.testing.assert_array_equal(stored.array, drawn.scan.array)
        np.testing.assert_allclose(stored.affine, drawn.scan.affine, atol=1e-4)
        assert stored.spacing == pytest.approx((FIELD_OF_VIEW / 48,) * 2)
        assert (row.label, row.split) == (label, split)
        mask = cohort.mask_of(row)
        assert (mask is None) == (label == NORMAL)
        if mask is not None:
            np.testing.assert_array_equal(read_scan(mask).array[0] > 0, drawn.mask)
            assert float(row.attributes["diameter_mm"]) == drawn.scan.attributes["diameter_mm"]
            assert float(row.attributes["density_hu"]) == drawn.scan.attributes["density_hu"]
            assert row.attributes["side"] == drawn.scan.attributes["side"]
        else:
            assert row.attributes == {}


@pytest.mark.parametrize("patient", range(8))
def test_tissues_have_the_hu_of_ct(patient: int) -> None:
    drawn = phantom_scan(FRESH_PATIENTS + patient, 0, label=NORMAL, seed=2)
    hu, regions = drawn.scan.array[0].astype(float), drawn.regions

    def mean(cover: np.ndarray) -> float:
        inside = binary_erosion(cover > 0.99)
        assert inside.sum() > 20
        return float(hu[inside].mean())

    assert mean(regions["lungs"] * (regions["vessels"] < 0.01)) == pytest.approx(-850, abs=60)
    assert 150 < mean(regions["vertebra"]) < 700
    assert hu[:20].mean() == pytest.approx(-1000, abs=5)  # air before the chest
    if (regions["heart"] > 0.99).sum() > 300:
        assert mean(regions["heart"]) == pytest.approx(45, abs=15)
    body = regions["body"] > 0.99
    assert 0.2 < body.mean() < 0.65
    assert np.percentile(hu[body], 99.5) > 250  # bone
    assert ((hu > -140) & (hu < -60) & body).sum() > 100  # fat
    assert not body[[0, -1]].any()
    assert not body[:, [0, -1]].any()


def test_heart_lies_on_the_patients_left_and_spine_at_the_back() -> None:
    for patient in range(6):
        drawn = phantom_scan(FRESH_PATIENTS + patient, 0, label=NORMAL, size=64)
        for region, axis, sign in (("heart", 0, -1), ("vertebra", 1, -1)):  # RAS: left and back are negative
            cover = drawn.regions[region]
            if cover.sum() < 60:
                continue
            rows, columns = np.nonzero(cover > 0.5)
            index = np.array([rows.mean(), columns.mean(), 0, 1])
            assert sign * (drawn.scan.affine @ index)[axis] > 5


def test_mask_has_the_stated_diameter_side_and_place(lesions: list[PhantomScan]) -> None:
    for drawn in lesions:
        attributes, voxel = drawn.scan.attributes, drawn.scan.spacing[0]
        smallest, largest, *_ = DIAMETERS[str(drawn.scan.label)]
        assert smallest <= float(attributes["diameter_mm"]) <= largest
        # The area is right to half a pixel, so the diameter is to that area's share of it.
        area = np.pi / 4 * float(attributes["diameter_mm"]) ** 2
        assert drawn.mask.sum() * voxel**2 == pytest.approx(area, abs=0.5001 * voxel**2)
        assert (drawn.regions["lungs"][drawn.mask] > 0.5).all()
        rows, columns = np.nonzero(drawn.mask)
        right = (drawn.scan.affine @ np.array([rows.mean(), columns.mean(), 0, 1]))[0]  # RAS: positive is right
        assert attributes["side"] == ("right" if right > 0 else "left")
    assert {drawn.scan.attributes["side"] for drawn in lesions} == {"left", "right"}


def check_density(lesions: list[PhantomScan], *, peel: int, at_least: int) -> None:
    """Inside their edge (`peel` voxels of haze) lesions have the stated density; so many are large enough to tell."""
    compared = 0
    for drawn in lesions:
        low, high, *_ = DENSITIES[str(drawn.scan.label)]
        density = float(drawn.scan.attributes["density_hu"])
        assert low <= density <= high
        core = binary_erosion(drawn.mask, iterations=1 if drawn.scan.label == SOLID else peel)
        core &= (drawn.regions["vessels"] < 0.02) | (drawn.scan.label == SOLID)  # vessels show through the haze
        if core.sum() < 12:
            continue
        compared += 1
        # Three standard deviations over 250 fresh lesions: noise is correlated, and the haze is uneven.
        assert np.median(drawn.scan.array[0][core]) == pytest.approx(
            density, abs=25 if drawn.scan.label == SOLID else 35
        )
    assert compared > at_least


def test_density_in_the_mask_is_the_stated_one(lesions: list[PhantomScan]) -> None:
    check_density(lesions, peel=2, at_least=20)


def test_lesions_stand_out_at_64_pixels() -> None:
    for patient in range(20):
        label = (SOLID, RARE)[patient % 2]
        drawn, healthy = (phantom_scan(FRESH_PATIENTS + patient, 0, label=name, size=64) for name in (label, NORMAL))
        rise = drawn.scan.array[0].astype(float) - healthy.scan.array[0]
        clear = drawn.mask & (healthy.regions["vessels"] < 0.1)
        if clear.any():
            assert rise[clear].mean() > 120


def test_label_changes_the_lesion_and_nothing_else() -> None:
    normal, solid = (phantom_scan(11, 1, label=label, seed=9) for label in (NORMAL, SOLID))
    changed = normal.scan.array[0] != solid.scan.array[0]
    assert changed[solid.mask].mean() > 0.95
    rows, columns = np.nonzero(solid.mask)
    near = np.zeros_like(changed)
    near[rows.min() - 2 : rows.max() + 3, columns.min() - 2 : columns.max() + 3] = True
    assert not changed[~near].any()


def test_scans_of_a_patient_are_alike_and_those_of_others_are_not() -> None:
    def lungs(patient: int, scan: int) -> np.ndarray:
        return phantom_scan(patient, scan, label=NORMAL, size=48).regions["lungs"] > 0.5

    def overlap(first: np.ndarray, second: np.ndarray) -> float:
        return float((first & second).sum() / (first | second).sum())

    same = [overlap(lungs(patient, 0), lungs(patient, 1)) for patient in range(12)]
    other = [overlap(lungs(patient, 0), lungs(patient + 1, 0)) for patient in range(12)]
    assert np.mean(same) > np.mean(other) + 0.03
    assert max(same) < 1


def test_plan_meets_shares_splits_and_patients() -> None:
    plan = list(cohort_plan(scans=400))
    shares = Counter(label for _, _, label, _ in plan)
    assert shares[RARE] / 400 == pytest.approx(0.05, abs=0.01)
    assert shares[NORMAL] / 400 == pytest.approx(0.60, abs=0.01)
    assert shares[SOLID] / 400 == pytest.approx(0.35, abs=0.01)
    splits, scans = defaultdict(set), defaultdict(list)
    rare = defaultdict(set)
    for patient, scan, label, split in plan:
        splits[patient].add((label, split))
        scans[patient].append(scan)
        if label == RARE:
            rare[split].add(patient)
    assert all(len(values) == 1 for values in splits.values())
    assert all(numbers == list(range(len(numbers))) for numbers in scans.values())
    assert {len(numbers) for patient, numbers in scans.items() if patient != max(scans)} == {2, 3}
    assert len(rare["train"]) >= 3
    assert min(len(rare["val"]), len(rare["test"])) >= 2
    patients = Counter(split for values in splits.values() for _, split in values)
    for split, share in (("train", 0.65), ("val", 0.15), ("test", 0.20)):
        assert patients[split] / len(splits) == pytest.approx(share, abs=0.03)


def test_small_plan_has_every_class_in_every_split() -> None:
    held = {(label, split) for _, _, label, split in cohort_plan(scans=30)}
    assert held == {(label, split) for label in CLASSES for split in ("train", "val", "test")}


def test_larger_cohort_begins_with_the_smaller_one() -> None:
    small, large = list(cohort_plan(scans=90, seed=6)), list(cohort_plan(scans=200, seed=6))
    assert large[:90] == small


def test_without_rare_share_there_is_no_rare_class() -> None:
    assert {label for _, _, label, _ in cohort_plan(scans=60, rare_share=0.0)} == {NORMAL, SOLID}


def test_a_slice_of_a_volume_is_the_slice() -> None:
    anatomy = Anatomy(numpy_generator(0, "volume"))
    steps = (np.arange(40) - 19.5) * 8.0
    y, x, z = np.meshgrid(steps, steps, np.arange(-3, 3) * 8.0, indexing="ij")
    pose = Pose(level=-20.0, shift=(2.0, -3.0), angle=0.03, breath=1.01)
    volume = Points(x=x, y=y, z=z, voxel=8.0)
    plane = Points(x=x[..., 4], y=y[..., 4], z=z[..., 4], voxel=8.0)
    np.testing.assert_allclose(Chest(anatomy, pose, volume).hu[..., 4], Chest(anatomy, pose, plane).hu, atol=1e-6)
    vessels = draw_vessels(anatomy, pose, volume)
    assert vessels.max() > 0.5
    np.testing.assert_allclose(vessels[..., 4], draw_vessels(anatomy, pose, plane, slab=0.0), atol=1e-5)


def test_scanner_and_anatomy_coordinates_are_inverse() -> None:
    random = numpy_generator(1, "inverse")
    anatomy = Anatomy(random)
    pose = Pose(level=12.0, shift=(3.0, 1.0), angle=-0.05, breath=0.98)
    places = random.uniform(-90, 90, size=(200, 3))
    x, y, z = anatomy.find(pose, places).T
    back = anatomy.place(pose, Points(x=x, y=y, z=z))
    np.testing.assert_allclose(np.stack([back.x, back.y, back.z], axis=1), places, atol=0.1)


def test_vessels_lie_in_the_lungs_at_every_level() -> None:
    for patient in range(10):
        regions = phantom_scan(FRESH_PATIENTS + patient, 0, label=NORMAL).regions
        assert 0.03 < regions["vessels"].sum() / regions["lungs"].sum() < 0.2
        assert (regions["vessels"] <= regions["lungs"] + 1e-6).all()


def test_an_interrupted_cohort_is_completed_and_a_whole_one_left(tmp_path: Path, monkeypatch) -> None:
    options = {"scans": 9, "size": 32, "seed": 3, "progress": False}
    write_phantom(DemoOptions(out=tmp_path / "whole", **options))
    write_phantom(DemoOptions(out=tmp_path / "cut", **options))
    (tmp_path / "cut/cohort.csv").unlink()
    lesions = sorted((tmp_path / "cut/masks").iterdir())
    lesions[0].unlink()
    (tmp_path / "cut/scans" / lesions[1].name).unlink()
    write_phantom(DemoOptions(out=tmp_path / "cut", **options))
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    monkeypatch.setattr(phantom, "phantom_scan", None)  # a whole one is not drawn again
    write_phantom(DemoOptions(out=tmp_path / "whole", **options))


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    options = {"scans": 2, "size": 16, "progress": False}
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(ConfigError, match=r"'thesis\.docx'; try another --out"):
        write_phantom(DemoOptions(out=tmp_path, **options))
    assert files_of(tmp_path) == {"thesis.docx": b""}
    with pytest.raises(ConfigError, match="--out"):
        write_phantom(DemoOptions(out=tmp_path / "thesis.docx", **options))
    write_phantom(DemoOptions(out=tmp_path / "phantom", **options))
    before = files_of(tmp_path)
    with pytest.raises(ConfigError, match=r"got another one \(scans 2 -> 3, seed 0 -> 1\); try another --out"):
        write_phantom(DemoOptions(out=tmp_path / "phantom", **{**options, "scans": 3, "seed": 1}))
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "key"), [({"scans": 0}, "scans"), ({"size": 8}, "size"), ({"rare_share": 0.9}, "rare_share")]
)
def test_wrong_options_are_named_and_nothing_is_written(tmp_path: Path, options: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: need .* from "):
        medsynth.demo(out=tmp_path / "out", progress=False, **options)
    assert not (tmp_path / "out").exists()


def test_unknown_label_lists_the_classes() -> None:
    with pytest.raises(ConfigError, match="normal, solid_nodule, ground_glass"):
        phantom_scan(0, 0, label="cat")
