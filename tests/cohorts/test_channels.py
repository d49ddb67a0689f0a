"""Sequences and masks as channels: the files' own voxels, on one grid, or refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import medsynth
from medsynth.cohorts import Cohort, Row, hash_cohort, prepare_cohort, read_cohort, write_cohort
from medsynth.cohorts.channels import are_channels, parse_channels, select_channels, with_mask
from medsynth.cohorts.grid import resize_mask
from medsynth.cohorts.phantom import phantom_scan
from medsynth.config import GridOptions, IntensityOptions, Loading
from medsynth.errors import ConfigError, DataError
from medsynth.scans import Intensity, Scan, read_scan, write_scan

RANGE = IntensityOptions(method="range", low=0, high=255)
SIZE = 8


def write(path, seed, *, size=SIZE, shift=0.0, high=256):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[0, 3] = shift
    array = np.random.default_rng(seed).integers(0, high, (1, size, size, size)).astype(np.uint8)
    write_scan(Scan(array=array, affine=affine), path)


@pytest.fixture
def cohort(tmp_path):
    """Four volumes of two further sequences; two have a mask."""
    rows = []
    for number in range(4):
        for place, name in enumerate(("ct", "t1", "t2")):
            write(tmp_path / f"{name}/{number}.nii.gz", 10 * number + place)
        mask = None
        if number % 2 == 0:
            mask = f"masks/{number}.nii.gz"
            write(tmp_path / mask, 100 + number, high=2)
        rows.append(
            Row(
                path=f"ct/{number}.nii.gz",
                label="ab"[number % 2],
                patient_id=f"P{number}",
                split="train",
                mask=mask,
                sequences={"t1": f"t1/{number}.nii.gz", "t2": f"t2/{number}.nii.gz"},
                attributes={"age": str(number)},
            )
        )
    return Cohort(folder=tmp_path, rows=tuple(rows))


def prepare(cohort, **options):
    return prepare_cohort(
        cohort, **{"grid": GridOptions(size=SIZE), "intensity": RANGE, "loading": Loading(progress=False), **options}
    )


def test_a_cohort_of_sequences_comes_back_as_it_was(cohort):
    write_cohort(cohort, cohort.folder / "cohort.csv")
    header = (cohort.folder / "cohort.csv").read_text().splitlines()[0]
    assert header == "path,label,patient_id,split,mask,path_t1,path_t2,age"
    again = read_cohort(cohort.folder / "cohort.csv")
    assert again.rows == cohort.rows
    assert again.sequences == ("t1", "t2")
    assert [file.parent.name for file in again.files_of(again.rows[0]).values()] == ["ct", "t1", "t2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t1": "../outside.nii.gz"}, "could leave its root"),
        ({"t1": "ct/1.nii.gz"}, "each scan once, got 'ct/1.nii.gz' twice"),
        ({"a/b": "t1/0.nii.gz"}, "sequences named by letters and digits, got 'a/b'"),
        ({"mask": "t1/0.nii.gz"}, "sequences named by letters and digits, got 'mask'"),
    ],
)
def test_sequences_that_no_cohort_may_have(cohort, change, message):
    rows = (replace(cohort.rows[0], sequences=change), *cohort.rows[1:])
    with pytest.raises(DataError, match=message):
        write_cohort(replace(cohort, rows=rows), cohort.folder / "wrong.csv")


def test_an_attribute_must_not_look_like_a_sequence(cohort):
    rows = (replace(cohort.rows[0], attributes={"path_t3": "x"}), *cohort.rows[1:])
    with pytest.raises(DataError, match="path_t3"):
        write_cohort(replace(cohort, rows=rows), cohort.folder / "wrong.csv")


def test_channels_are_the_voxels_of_the_files(cohort):
    prepared = prepare(cohort)
    assert prepared.channels == ("path", "t1", "t2")
    # RAS files on the grid of pictures: slices towards the head, rows towards the back, columns towards the left.
    for number, row in enumerate(cohort.rows):
        for channel, file in enumerate(cohort.files_of(row).values()):
            voxels = read_scan(file).array[0].transpose(2, 1, 0)[:, ::-1, ::-1].astype(np.float32) / 255 * 2 - 1
            np.testing.assert_allclose(prepared.scans[number, channel], voxels, atol=1e-3)
    assert prepared.key != prepare(select_channels(cohort, ("path",))).key


def test_each_channel_is_measured_by_itself(cohort):
    for row in cohort.rows:
        array = read_scan(cohort.folder / row.sequences["t2"]).array
        write_scan(Scan(array=array.astype(np.float32) / 1000, affine=np.eye(4)), cohort.folder / row.sequences["t2"])
    prepared = prepare(cohort, intensity=IntensityOptions(method="minmax"), mask=True)
    assert prepared.intensity.high == pytest.approx((255, 255, 0.255, 1), abs=3e-3)
    assert prepared.intensity.low == pytest.approx((0, 0, 0, 0), abs=3e-3)


def test_the_mask_is_a_channel_where_resize_mask_puts_it(cohort):
    grid = GridOptions(size=(6, 8, 8), spacing=1.4, centre="scan")
    prepared = prepare(cohort, grid=grid, mask=True)
    assert prepared.channels == ("path", "t1", "t2", "mask")
    for number, row in enumerate(cohort.rows):
        if row.mask is None:
            assert (prepared.scans[number, -1] == -1).all(), "a scan without a mask has an empty one"
            continue
        voxels = read_scan(cohort.mask_of(row)).array.transpose(0, 3, 2, 1)[:, :, ::-1, ::-1]
        expected = resize_mask(Scan(array=voxels, affine=np.eye(4)), grid=grid)
        np.testing.assert_array_equal(prepared.scans[number, -1:], expected * 2.0 - 1)
    np.testing.assert_array_equal(prepared.scans[:, :3], prepare(cohort, grid=grid).scans)


def test_masks_count_for_the_cache_only_where_they_are_a_channel(cohort):
    before, with_masks = prepare(cohort).key, prepare(cohort, mask=True).key
    write(cohort.mask_of(cohort.rows[0]), 7, high=2)
    assert prepare(cohort).key == before
    changed = prepare(cohort, mask=True)
    assert changed.key != with_masks
    np.testing.assert_array_equal(
        prepare(cohort, mask=True, intensity=changed.intensity).scans, changed.scans
    )  # the ends of the mask may be given


def test_any_value_but_zero_is_inside(cohort):
    file = cohort.mask_of(cohort.rows[0])
    array = read_scan(file).array
    expected = prepare(cohort, mask=True).scans[0, -1]
    write_scan(Scan(array=array.astype(np.int16) * -300, affine=np.eye(4)), file)
    np.testing.assert_array_equal(prepare(cohort, mask=True).scans[0, -1], expected)


@pytest.mark.parametrize("wrong", [{"size": SIZE + 1}, {"shift": 0.5}])
@pytest.mark.parametrize("name", ["t2/3.nii.gz", "masks/2.nii.gz"])
def test_another_geometry_is_refused_by_name(cohort, wrong, name):
    write(cohort.folder / name, 5, **wrong)
    with pytest.raises(DataError, match=f"{name}: need the geometry of"):
        prepare(cohort, mask=True)


def test_missing_files_are_refused_by_name(cohort):
    rows = (*cohort.rows[:3], replace(cohort.rows[3], sequences={"t1": "t1/3.nii.gz"}))
    with pytest.raises(DataError, match=r"ct/3.nii.gz: need a file of the sequence t2"):
        prepare(replace(cohort, rows=rows))
    with pytest.raises(DataError, match="need a mask of at least one scan"):
        prepare(replace(cohort, rows=cohort.rows[1::2]), mask=True)


def test_the_content_of_a_cohort_is_that_of_all_of_its_sequences(cohort):
    before = hash_cohort(cohort)
    assert hash_cohort(select_channels(cohort, ("path",))) != before
    write(cohort.folder / "t2/1.nii.gz", 77)
    assert hash_cohort(cohort) != before


def test_some_files_of_a_cohort(cohort):
    whole = prepare(cohort).scans
    np.testing.assert_array_equal(prepare(select_channels(cohort, ("t2", "path"))).scans, whole[:, [0, 2]])
    np.testing.assert_array_equal(prepare(select_channels(cohort, ("t2", "t1"))).scans, whole[:, [1, 2]])
    turned = replace(
        cohort, rows=tuple(replace(row, sequences=dict([*row.sequences.items()][::-1])) for row in cohort.rows)
    )
    np.testing.assert_array_equal(prepare(turned).scans, whole)
    with pytest.raises(ConfigError, match="got flair"):
        select_channels(cohort, ("flair",))


def test_the_ends_of_a_mask():
    both = with_mask(Intensity(low=(-1000,), high=(400,)), 2)
    assert (both.low, both.high) == ((-1000, -1000, 0), (400, 400, 1))
    assert with_mask(both, 2) == both


def test_index_keeps_columns_of_sequences(cohort, tmp_path):
    lines = ["path,label,patient_id,mask,path_t1,path_t2,age"]
    for row in cohort.rows:
        files = [row.mask or "", *row.sequences.values()]
        lines.append(",".join([row.path, row.label, row.patient_id, *files, row.attributes["age"]]))
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    options = {"scans": tmp_path, "labels": tmp_path / "labels.csv", "progress": False, "allow_tiny": True}
    found = medsynth.index(out=tmp_path / "found.csv", **options).cohort
    assert [row.sequences for row in found.rows] == [row.sequences for row in cohort.rows]
    assert [row.attributes for row in found.rows] == [row.attributes for row in cohort.rows]
    (tmp_path / "labels.csv").write_text("\n".join(lines).replace("t2/3", "t2/9"))
    with pytest.raises(DataError, match=r"need an existing file in the column 'path_t2', got none at 't2/9.nii.gz'"):
        medsynth.index(out=tmp_path / "found.csv", **options)


@pytest.mark.parametrize(
    ("names", "can_be"),
    [
        (("path",), True),
        (("path", "path", "t1", "mask"), True),
        (("path", "mask"), True),
        (("t1", "path"), False),
        (("path", "t1", "path"), False),
        (("path", "mask", "t1"), False),
        (("path", "mask", "mask"), False),
        (("path", "a b"), False),
        (("path", 3), False),
        (("mask",), False),
    ],
)
def test_what_channels_can_be_called(names, can_be):
    assert are_channels(names) is can_be


def test_channels_of_an_option():
    assert parse_channels(" mask, t1 ", ("path", "path", "t1", "mask"), option="o") == ("t1", "mask")
    for wrong, got in (("flair", "got 'flair'"), ("path,t1,mask", "got all of them"), (" , ", "got none")):
        with pytest.raises(ConfigError, match=f"o: need some of the run's channels path, t1, mask, but not all, {got}"):
            parse_channels(wrong, ("path", "path", "t1", "mask"), option="o")


@pytest.mark.parametrize("volume", [False, True])
def test_contrasts_of_the_phantom_show_its_anatomy(volume):
    options = {"label": "solid_nodule", "size": 48, "volume": volume}
    plain, drawn, again = (phantom_scan(3, 0, **options, contrasts=wanted) for wanted in (False, True, True))
    np.testing.assert_array_equal(plain.scan.array, drawn.scan.array)
    assert plain.contrasts == {}
    for name in ("t1", "t2"):
        array = drawn.contrasts[name].array
        np.testing.assert_array_equal(array, again.contrasts[name].array)
        assert array.dtype == np.int16
        np.testing.assert_array_equal(drawn.contrasts[name].affine, drawn.scan.affine)
        lungs = (drawn.regions["lungs"] > 0.99) & (drawn.regions["vessels"] == 0) & ~drawn.mask
        assert array[0][drawn.mask].mean() > 2 * array[0][lungs].mean(), "a nodule is brighter than lung"
    fat = (drawn.scan.array[0] > -130) & (drawn.scan.array[0] < -70)
    assert drawn.contrasts["t1"].array[0][fat].mean() > drawn.contrasts["t2"].array[0][fat].mean()


def test_the_demo_writes_contrasts(tmp_path):
    cohort = medsynth.demo(out=tmp_path / "demo", scans=4, size=24, contrasts=True, progress=False)
    assert cohort.sequences == ("t1", "t2")
    assert prepare(cohort, grid=GridOptions(size=24)).scans.shape == (4, 3, 24, 24)
    before = [file.read_bytes() for row in cohort.rows for file in cohort.files_of(row).values()]
    (tmp_path / "demo/cohort.csv").unlink()
    again = medsynth.demo(out=tmp_path / "demo", scans=4, size=24, contrasts=True, progress=False)
    assert again == cohort
    assert [file.read_bytes() for row in again.rows for file in again.files_of(row).values()] == before
    with pytest.raises(ConfigError, match="contrasts"):
        medsynth.demo(out=tmp_path / "demo", scans=4, size=24, progress=False)
