"""Lesions painted into donors: what is painted, what stays, and where."""

import csv
import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from scipy.ndimage import binary_dilation

import medsynth
from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.cohorts.grid import orient_scan
from medsynth.config import EditOptions, GridOptions, InpaintOptions, NetworkOptions, SolverOptions
from medsynth.errors import ConfigError, DataError
from medsynth.generation import edit_set, write
from medsynth.generation.donors import read_donor
from medsynth.generation.inpaint import blend_weights, lay_region, widen
from medsynth.runs import load_run
from medsynth.scans import Scan, read_scan, write_scan
from medsynth.seeds import numpy_generator
from tests.conftest import TINY

CHOICE = {"method": "inpaint", "donor_class": "healthy", "target_class": "ill", "batch_size": 2, "progress": False}
FEW = SolverOptions(steps=3)
AFFINE = np.diag([-1.0, 1.0, 1.0, 1.0])  # rows run to the left: pictures come out turned


def oriented(file):
    return orient_scan(read_scan(file)).array


def lesion_of(size, number):
    """A square of three pixels, at a place of its own."""
    mask = np.zeros((1, size, size), dtype=np.uint8)
    top, left = 2 + number % 7, 3 + number % 5
    mask[:, top : top + 3, left : left + 3] = 1
    return mask


@pytest.fixture(scope="module")
def ct_slices(tmp_path_factory):
    """Twenty-four int16 slices of 16 x 16, values far beyond the range of the model; every fourth healthy one is of 24 x 24."""
    folder = tmp_path_factory.mktemp("slices")
    rows = []
    for number in range(24):
        random = numpy_generator(0, "slices", number)
        label = "ill" if number % 2 else "healthy"
        size = 24 if number % 8 == 0 else 16
        array = random.integers(-900, 300, (1, size, size)).astype(np.int16)
        array[0, 0, :4] = 3000 + number
        mask = lesion_of(size, number)
        array[mask > 0] += 400 if label == "ill" else 0
        write_scan(Scan(array=array, affine=AFFINE), folder / f"secret-{number}.nii.gz")
        write_scan(Scan(array=mask, affine=AFFINE), folder / f"secret-{number}-mask.nii.gz")
        rows.append(
            Row(
                path=f"secret-{number}.nii.gz",
                label=label,
                patient_id=f"secret-patient-{number}",
                split="train" if number < 16 else "val" if number < 20 else "test",
                mask=f"secret-{number}-mask.nii.gz" if label == "ill" else None,
                attributes={"size": str(10 + number), "side": "left" if number % 3 else "right"},
            )
        )
    write_cohort(Cohort(folder=folder, rows=tuple(rows), roots={}), folder / "cohort.csv")
    return folder / "cohort.csv"


def shown_lesion(number):
    """The lesion as it lies on the run's grid."""
    return orient_scan(Scan(array=lesion_of(16, number), affine=AFFINE)).array > 0


def trained(cohort, folder, **options):
    short = {"max_steps": 2, "batch_size": 4, "intensity": {"method": "range", "low": -1000, "high": 500}}
    quiet = {"monitor": {"validate_every": 0, "preview_every": 0}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY | short | quiet | options))
    config = medsynth.load_config(str(folder / "tiny.yaml"))
    return medsynth.train(**config, cohort=cohort, out=folder / "run", progress=False)


@pytest.fixture(scope="module")
def slice_run(ct_slices, tmp_path_factory):
    return trained(ct_slices, tmp_path_factory.mktemp("inpaint run"))


@pytest.fixture(scope="module")
def knowing_run(ct_slices, tmp_path_factory):
    """A run that generates masks, can observe them, and has attributes."""
    condition = {"mask": True, "observed": 0.5, "attributes": "size,side"}
    return trained(ct_slices, tmp_path_factory.mktemp("knowing run"), condition=condition)


@pytest.fixture
def paint(slice_run, ct_slices, tmp_path):
    def call(name, run=slice_run, cohort=ct_slices, inpaint=InpaintOptions(margin_mm=1.0), **options):
        options = {"count": 6, "solver": FEW, **CHOICE, **options}
        return medsynth.edit(run=run.folder, cohort=cohort, out=tmp_path / name, inpaint=inpaint, **options)

    return call


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def arrays_of(made):
    """Array and mask of each scan."""
    return [(read_scan(made.file_of(row)).array, read_scan(made.mask_of(row)).array > 0) for row in made.rows]


def on_grid(array):
    """A 24 x 24 slice on a grid of 16 x 16: means over areas of 1.5 x 1.5 pixels, as torch takes them, converted once."""
    pooled = torch.nn.functional.interpolate(
        torch.from_numpy(array.astype(np.float32))[None], size=(16, 16), mode="area"
    )
    return pooled[0].double().clamp(-1000, 500).numpy()


def test_outside_of_the_region_a_scan_is_its_donor_to_the_last_bit(paint, ct_slices):
    """Of a donor on the run's own grid these are its stored values, also those beyond the range that the model sees."""
    made = paint("set", count=8)
    real = medsynth.read_cohort(ct_slices)
    resampled = 0
    for row, (array, mask) in zip(made.rows, arrays_of(made), strict=True):
        donor = oriented(real.file_of(real.rows[int(row.attributes["donor"])]))
        assert array.dtype == donor.dtype == np.int16
        if donor.shape == array.shape:
            assert np.array_equal(array[~mask], donor[~mask])
            assert array.max() >= 3000
        else:
            resampled += 1
            assert np.abs(array[~mask] - on_grid(donor)[~mask]).max() <= 0.501, "rounded once"
        assert (array[mask] != donor[:, :16, :16][mask]).mean() > 0.9
        assert array[mask].max() <= 500
    assert resampled == 2


def test_rows_say_what_is_real_and_where_the_region_is_from(paint, ct_slices, tmp_path):
    made = paint("set", count=12)
    real = medsynth.read_cohort(ct_slices).rows
    with (tmp_path / "set" / "cohort.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["contains_real_pixels"] for row in rows} == {"1"}
    assert {(row["label"], row["method"], row["split"], row["synthetic"]) for row in rows} == {
        ("ill", "edit", "train", "1")
    }
    sources = [int(row["region_from"]) for row in rows]
    assert {(real[source].label, real[source].split) for source in sources} == {("ill", "train")}
    assert sorted(Counter(sources[:8]).values()) == [1] * 8, "each once before any again"
    assert max(Counter(sources).values()) == 2
    for source, (_, mask) in zip(sources, arrays_of(made), strict=True):
        lesion = shown_lesion(source)[0]
        assert np.array_equal(mask[0], binary_dilation(lesion)), "wider by the pixels within a millimetre"
    provenance = json.loads((tmp_path / "set" / "provenance.json").read_text())
    assert provenance["contains_real_pixels"] is True
    assert provenance["edit"] == "inpaint"
    assert "must stay within your institution" in provenance["notice"]
    assert provenance["region"]["from"] == "class"
    scan = read_scan(made.file_of(made.rows[0]))
    assert scan.provenance["contains_real_pixels"] == "YES"
    assert all("secret" not in name and b"secret" not in data for name, data in content(tmp_path / "set").items())


def test_the_region_of_the_donor_and_that_of_a_file(paint, tmp_path):
    made = paint("own", donor_class="ill", inpaint=InpaintOptions(region="donor", margin_mm=0.0), count=8)
    for row, (_, mask) in zip(made.rows, arrays_of(made), strict=True):
        assert "region_from" not in row.attributes
        assert np.array_equal(mask, shown_lesion(int(row.attributes["donor"])))
    square = np.zeros((1, 16, 16), dtype=np.uint8)
    square[:, 5:9, 6:10] = 7
    write_scan(Scan(array=square, affine=AFFINE), tmp_path / "secret-mask.nii.gz")
    made = paint("file", inpaint=InpaintOptions(region=str(tmp_path / "secret-mask.nii.gz"), margin_mm=0.0))
    shown = oriented(tmp_path / "secret-mask.nii.gz") > 0
    assert all(np.array_equal(mask, shown) for _, mask in arrays_of(made))
    provenance = (tmp_path / "file" / "provenance.json").read_text()
    assert json.loads(provenance)["region"]["from"] == "file"
    assert "secret" not in provenance


def test_same_seed_same_set_whatever_the_batch_and_more_begin_with_the_fewer(paint, tmp_path):
    """Batches differ in rounding only, outside of regions in nothing."""
    one, two = paint("one"), paint("two")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    more = paint("more", count=8)
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(arrays_of(one), arrays_of(more), strict=False))
    for (a, mask), (b, other) in zip(arrays_of(two), arrays_of(paint("batch", batch_size=3)), strict=True):
        assert np.array_equal(mask, other)
        assert np.array_equal(a[~mask], b[~mask])
        assert np.abs(a[mask].astype(int) - b[mask]).max() <= 1
    other = paint("seed", seed=1)
    assert [row.attributes["donor"] for row in other.rows] != [row.attributes["donor"] for row in one.rows]


def test_an_interrupted_set_is_completed_bit_for_bit(paint, tmp_path, monkeypatch):
    written = []

    def write_three(scan, path):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write_scan(scan, path)

    with monkeypatch.context() as patched:
        patched.setattr(write, "write_scan", write_three)
        with pytest.raises(KeyboardInterrupt):
            paint("killed")
    paint("killed")
    paint("whole")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"region\.margin_mm 1\.0 -> 2\.0"):
        paint("whole", inpaint=InpaintOptions(margin_mm=2.0))
    with pytest.raises(ConfigError, match="contains_real_pixels True -> False"):
        paint("whole", method="counterfactual")


def test_a_run_that_makes_masks_is_shown_the_lesion(paint, knowing_run, ct_slices):
    """Its mask is the lesion itself, not the wider region; wanted attributes are written."""
    made = paint("knowing", run=knowing_run, where="side=right", inpaint=InpaintOptions(margin_mm=2.0))
    real = medsynth.read_cohort(ct_slices)
    for row, (array, mask) in zip(made.rows, arrays_of(made), strict=True):
        lesion = shown_lesion(int(row.attributes["region_from"]))
        assert np.array_equal(mask, lesion)
        assert row.attributes["side"] == "right"
        donor = oriented(real.file_of(real.rows[int(row.attributes["donor"])]))
        if donor.shape == array.shape:
            outside = ~widen(lesion[0], (1.0, 1.0), 2.0)
            assert np.array_equal(array[0][outside], donor[0][outside])
    unasked = paint("unasked", run=knowing_run, count=2)
    assert all("side" not in row.attributes for row in unasked.rows)


def test_counterfactuals_are_conditioned_on_what_is_wanted(paint, knowing_run, slice_run, tmp_path):
    edit = {"method": "counterfactual", "count": 3, "run": knowing_run}
    made = paint("wanted", where="size=12..16", **edit)
    assert all(12 <= float(row.attributes["size"]) <= 16 for row in made.rows)
    facts = json.loads((tmp_path / "wanted" / "provenance.json").read_text())
    assert (facts["where"], facts["where_from"]) == ("size=12..16", "scans")
    plain = paint("plain", **edit)
    assert all("size" not in row.attributes for row in plain.rows)
    with pytest.raises(ConfigError, match=r"where: this run was trained without condition\.attributes"):
        paint("none", where="size=12..16", method="counterfactual", run=slice_run)


def with_rows(folder, cohort, change):
    """The cohort with its rows changed, elsewhere."""
    real = medsynth.read_cohort(cohort)
    rows = tuple(change(dataclasses.replace(row, root="real")) for row in real.rows)
    write_cohort(Cohort(folder=folder, rows=rows, roots={"real": real.folder}), folder / "cohort.csv")
    return folder / "cohort.csv"


def test_faults_are_named_and_leave_no_folder_behind(paint, ct_slices, tmp_path):
    without = with_rows(tmp_path / "without", ct_slices, lambda row: dataclasses.replace(row, mask=None))
    with pytest.raises(
        DataError, match=r"inpaint\.region: need at least one mask of a training scan of 'ill', got none"
    ):
        paint("set", cohort=without)
    with pytest.raises(DataError, match=r"inpaint\.region: need at least one mask of a training scan of 'healthy'"):
        paint("set", inpaint=InpaintOptions(region="donor"))
    for name, size, value, message in (
        ("empty", 16, 0, r"empty\.nii\.gz: need a mask with a region on the run's grid, got an empty one"),
        ("full", 16, 1, r"full\.nii\.gz: need a region that leaves part of the donor, got all of it"),
        ("other", 20, 1, r"other\.nii\.gz: need the geometry of its scan"),
    ):
        file = ct_slices.parent / f"{name}.nii.gz"
        write_scan(Scan(array=np.full((1, size, size), value, dtype=np.uint8), affine=AFFINE), file)
        spoilt = with_rows(
            tmp_path / name,
            ct_slices,
            lambda row, name=name: dataclasses.replace(row, mask=f"{name}.nii.gz") if row.label == "ill" else row,
        )
        with pytest.raises(DataError, match=message):
            paint("set", cohort=spoilt)
    with pytest.raises(DataError, match=r"other\.nii\.gz: need the geometry of the donors, or the run's grid"):
        paint("set", inpaint=InpaintOptions(region=str(ct_slices.parent / "other.nii.gz")))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inpaint": InpaintOptions(margin_mm=-1.0)}, r"inpaint\.margin_mm: need a number from 0 to 1,000"),
        ({"inpaint": InpaintOptions(repeats=0)}, r"inpaint\.repeats: need"),
        ({"inpaint": InpaintOptions(region="")}, r"inpaint\.region: need class, donor or the path"),
        ({"strength": 2.0}, r"strength: only counterfactuals have a strength"),
    ],
)
def test_a_wrong_option_is_named(paint, tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        paint("set", **wrong)
    assert not (tmp_path / "set").exists()


def test_a_latent_run_is_refused(slice_run, ct_slices, tmp_path):
    run = load_run(slice_run.folder)
    spec = dataclasses.replace(
        run.spec, autoencoder=medsynth.config.AutoencoderOptions(), network=NetworkOptions(stem="latent")
    )
    options = EditOptions(
        run="", cohort="", out=tmp_path / "set", donor_class="healthy", target_class="ill", count=2, method="inpaint"
    )
    with pytest.raises(
        ConfigError, match=r"method: need a run with network\.stem haar or pixel to inpaint, got latent"
    ):
        edit_set(dataclasses.replace(run, spec=spec), medsynth.read_cohort(ct_slices), options)


def test_stored_voxels_are_kept_where_the_grid_is_the_same(slice_run, ct_slices):
    run, cohort = load_run(slice_run.folder), medsynth.read_cohort(ct_slices)
    for row in cohort.rows[:9]:
        own = oriented(cohort.file_of(row))
        model, stored = read_donor(run, cohort, row)
        assert stored["path"].dtype == np.int16
        assert np.array_equal(stored["path"], own) == (own.shape == (1, 16, 16))
        assert model.dtype == np.float32
        assert np.abs(model).max() <= 1


def test_a_mask_smaller_than_a_voxel_of_the_grid_is_not_lost(slice_run):
    run = load_run(slice_run.folder)
    fine = np.zeros((1, 160, 160), dtype=np.uint8)
    fine[0, 31, 77] = 1
    region, spacing = lay_region(Scan(array=fine, affine=AFFINE), run=run)
    assert np.argwhere(region).tolist() == [[3, 7]]
    assert spacing == pytest.approx((10.0, 10.0))
    coarse = np.zeros((1, 4, 4), dtype=np.uint8)
    coarse[0, 1, 2] = 1
    region, _ = lay_region(Scan(array=coarse, affine=np.diag([-4.0, -4.0, 1.0, 1.0])), run=run)
    assert np.array_equal(region, np.kron(coarse[0], np.ones((4, 4))) > 0)
    padded = dataclasses.replace(
        run, options=run.options | {"grid": dataclasses.asdict(GridOptions(size=16, padding="edge"))}
    )
    wide = np.zeros((1, 8, 16), dtype=np.uint8)
    wide[0, 0] = 1
    region, _ = lay_region(Scan(array=wide, affine=AFFINE), run=padded)
    assert region.sum() == 16, "what is padded is no lesion"


def test_margins_are_millimetres():
    dot = np.zeros((9, 9), dtype=bool)
    dot[4, 4] = True
    assert widen(dot, (1.0, 2.0), 2.0).sum() == 5 + 2, "two rows each way, one column each way"
    assert np.array_equal(widen(dot, (1.0, 1.0), 0.0), dot)


def test_the_border_is_soft_and_lies_inside():
    region = np.zeros((20, 20), dtype=bool)
    region[4:15, 4:15] = True
    weights = blend_weights(region, 3)
    assert weights.dtype == np.float32
    assert np.array_equal(weights > 0, region)
    line = weights[9, 4:15]
    share = np.arange(1, 5) / 4
    np.testing.assert_allclose(line[:4], share**2 * (3 - 2 * share), atol=1e-6)
    assert (line[3:8] == 1).all()
    assert np.array_equal(blend_weights(region, 0), region)
    small = np.zeros((5, 5), dtype=bool)
    small[2, 2] = True
    assert blend_weights(small, 3)[2, 2] == 1
