"""Runs of several channels: sequences and masks are generated, written, and observed."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml

import medsynth
from medsynth.cohorts import Cohort, Row, prepare_cohort, write_cohort
from medsynth.config import GuidanceOptions, Loading, ObservedOptions, SampleOptions, SolverOptions
from medsynth.diffusion import resolve_solver
from medsynth.errors import ConfigError, DataError
from medsynth.generation.generator import Chunk, plan_job, wrap_scans
from medsynth.generation.observed import change_mask, find_observed
from medsynth.generation.write import FileForm
from medsynth.networks import draw_observed, observe_channels, sample_scans
from medsynth.runs import RunSpec
from medsynth.scans import Scan, read_scan, write_scan
from tests.conftest import TINY
from tests.made_report import passed_report

AFFINE = np.array([[0, -1.5, 0, 8], [-1.5, 0, 0, 9], [0, 0, 1.5, 3], [0, 0, 0, 1]])
STEPS = SolverOptions(steps=3)
QUIET = Loading(progress=False)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Forty pictures of two sequences; those of the class `ill` have a spot, its mask, and its size."""
    folder = tmp_path_factory.mktemp("sequences")
    rows = []
    for number in range(40):
        random = np.random.default_rng(number)
        label = "ill" if number % 2 else "well"
        y, x = np.mgrid[:16, :16]
        size = random.uniform(2, 4)
        spot = ((y - random.uniform(5, 11)) ** 2 + (x - random.uniform(5, 11)) ** 2 < size**2) & (label == "ill")
        first = np.where(spot, 800, -500) + random.normal(0, 30, (16, 16))
        name = f"secret-{number:02d}.nii.gz"
        files = {
            "path": first.astype(np.int16),
            "t2": ((first + 1000) / 2000).astype(np.float32),
        }
        for kind, array in files.items():
            write_scan(Scan(array=array[None], affine=AFFINE), folder / kind / name)
        if label == "ill":
            write_scan(Scan(array=spot[None].astype(np.uint8), affine=AFFINE), folder / "mask" / name)
        rows.append(
            Row(
                path=f"path/{name}",
                label=label,
                patient_id=f"secret-patient-{number}",
                split="train" if number < 24 else "val" if number < 30 else "test",
                mask=f"mask/{name}" if label == "ill" else None,
                sequences={"t2": f"t2/{name}"},
                attributes={"size": f"{size:.3f}"} if label == "ill" else {},
            )
        )
    write_cohort(Cohort(folder=folder, rows=tuple(rows)), folder / "cohort.csv")
    return folder / "cohort.csv"


def trained(cohort, folder, **options):
    path = folder / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            TINY
            | {
                "max_steps": 4,
                "intensity": {"method": "minmax"},
                "monitor": {"validate_every": 2, "preview_every": 4},
            }
            | options
        )
    )
    return medsynth.train(**medsynth.load_config(str(path)), cohort=cohort, out=folder / "run", progress=False)


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    condition = {"mask": True, "observed": 0.5, "attributes": "size"}
    augment = {"probability": 1.0, "contrast": 0.3}
    return trained(cohort, tmp_path_factory.mktemp("joint"), condition=condition, augment=augment)


def sample(run, out, **options):
    return medsynth.sample(
        run=run.folder,
        out=out,
        **{"count": "ill=3,well=2", "batch_size": 2, "solver": STEPS, "progress": False, "accelerator": "cpu"}
        | options,
    )


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_says_what_its_channels_are(run):
    spec = run.spec
    assert spec.channels == ("path", "t2", "mask")
    assert (spec.mask, spec.observed, spec.shape) == (True, True, (3, 16, 16))
    assert spec.dtypes == ("int16", "float32")
    assert spec.files == {"path": (slice(0, 1), "int16"), "t2": (slice(1, 2), "float32")}
    assert spec.intensity.high[2] == 1
    assert spec.intensity.low[2] == 0
    assert len(spec.image_intensity.low) == 2
    assert RunSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
    assert (run.folder / "previews/step_0000004.png").is_file()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels", ["path", "t2"]),
        ("channels", ["path", "../t2", "mask"]),
        ("channels", ["mask", "path", "t2"]),
        ("channels", ["path", {"a": 1}, "mask"]),
        ("dtypes", ["int16"]),
        ("dtypes", ["int16", "object"]),
        ("dtypes", ["int16", 3]),
    ],
)
def test_channels_of_an_untrusted_run(run, key, value):
    with pytest.raises((ValueError, TypeError)):
        RunSpec.from_dict(run.spec.as_dict() | {key: value})


def test_sets_have_all_files_of_a_scan(run, tmp_path):
    made = sample(run, tmp_path / "set")
    assert made.sequences == ("t2",)
    row = made.rows[0]
    assert (row.path, row.mask) == ("ill/000000.nii.gz", "ill/000000_mask.nii.gz")
    assert row.sequences == {"t2": "ill/000000_t2.nii.gz"}
    memory = list(medsynth.generate(run, count="ill=3,well=2", batch_size=2, solver=STEPS))
    assert len(content(tmp_path / "set")) == 3 * 5 + 2
    for each, expected in zip(made.rows, memory, strict=True):
        files = made.files_of(each)
        first, second, mask = (read_scan(file) for file in (files["path"], files["t2"], made.mask_of(each)))
        np.testing.assert_array_equal(first.array, expected.scan.array)
        np.testing.assert_array_equal(second.array, expected.sequences["t2"].array)
        np.testing.assert_array_equal(mask.array, expected.mask.array)
        assert (first.array.dtype, second.array.dtype, mask.array.dtype) == (np.int16, np.float32, np.uint8)
        assert set(np.unique(mask.array)) <= {0, 1}
        assert second.array.max() < 1.2, "a sequence keeps its own units"
        for other in (second, mask):
            np.testing.assert_allclose(other.affine, first.affine)
    assert all("secret" not in name and b"secret" not in data for name, data in content(tmp_path / "set").items())
    again = prepare_cohort(made, grid=run.grid, intensity=run.spec.intensity, mask=True, loading=QUIET)
    assert again.scans.shape == (5, 3, 16, 16)


def test_masks_of_the_model_are_cut_halfway(run):
    job = plan_job(run, SampleOptions(run="", out="", count=1), {"ill": 1})
    scans = torch.linspace(-1, 1, 16 * 16).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    (made,) = wrap_scans(job, scans, Chunk(label="ill", start=0, stop=1), [0], {}, [{}])
    np.testing.assert_array_equal(made.mask.array[0], (scans[0, 2] > 0).numpy())
    low, high = (ends[0] for ends in (run.spec.intensity.low, run.spec.intensity.high))
    assert (made.scan.array.min(), made.scan.array.max()) == (round(low), round(high))


def test_a_scan_is_there_when_all_of_its_files_are(run, tmp_path):
    sample(run, tmp_path / "set")
    whole = content(tmp_path / "set")
    for name in ("cohort.csv", "ill/000001_mask.nii.gz", "well/000000_t2.nii.gz"):
        (tmp_path / "set" / name).unlink()
    sample(run, tmp_path / "set")
    assert content(tmp_path / "set") == whole
    size = sum(len(whole[f"ill/000000{end}.nii.gz"]) for end in ("", "_t2", "_mask"))
    foreseen = FileForm(suffix=".nii.gz", modality=None, masks=True).scan_bytes(run.spec)
    assert size <= foreseen == 16 * 16 * 3 * 4 + 3 * 4096


def test_npz_and_png_hold_masks_too(run, tmp_path):
    for name, suffix in (("npz", ".npz"), ("png", ".png")):
        made = sample(run, tmp_path / name, format=name, count="ill=1")
        assert made.rows[0].mask == f"ill/000000_mask{suffix}"
        assert set(np.unique(read_scan(made.mask_of(made.rows[0])).array)) <= {0, 1}


def test_dicom_takes_no_sequences(run, tmp_path):
    with pytest.raises(ConfigError, match="need nifti, png or npz for 2 sequences"):
        sample(run, tmp_path / "set", format="dicom", modality="MR")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("names", ["mask", "path", "t2,mask", "path, t2"])
def test_observed_channels_come_back_bit_for_bit(run, cohort, names):
    found = find_observed(run, ObservedOptions(cohort=str(cohort), channels=names, split="val"), ["ill"], seed=3)
    assert found is not None
    real = prepare_cohort(
        medsynth.read_cohort(cohort), grid=run.grid, intensity=run.spec.intensity, mask=True, loading=QUIET
    )
    denoiser = run.load_denoiser()
    observed = found.condition("ill", range(3), [1, 2, 3])
    options = {"shape": run.spec.shape, "solver": resolve_solver(STEPS), "guidance": GuidanceOptions(scale=2.0)}
    wanted = denoiser.embedding.make(torch.zeros(3, dtype=torch.int64), None, observed)
    scans = sample_scans(denoiser, wanted, [1, 2, 3], **options).numpy()
    known = [name in [part.strip() for part in names.split(",")] for name in run.spec.channels]
    for number in range(3):
        row = found.real.rows[found.source("ill", number)]
        assert (real.rows[row].split, real.rows[row].label) == ("val", "ill")
        np.testing.assert_array_equal(scans[number][known], real.scans[row][known].astype(np.float32))
        assert not np.array_equal(scans[number][np.invert(known)], real.scans[row][np.invert(known)])


def test_each_source_serves_once_before_any_serves_again(run, cohort):
    found = find_observed(run, ObservedOptions(cohort=str(cohort), channels="mask"), ["ill", "well"], seed=3)
    for label in ("ill", "well"):
        turns = [found.source(label, number) for number in range(30)]
        assert sorted(turns[:12]) == sorted(turns[12:24]) == [p for p, name in enumerate(found.labels) if name == label]
        assert turns[:12] != turns[12:24]
    assert (found.real.scans[found.source("well", 0)][2] == -1).all()


def test_observed_masks_make_a_set(run, cohort, tmp_path):
    options = {"observed": ObservedOptions(cohort=str(cohort), channels="mask")}
    made = sample(run, tmp_path / "set", **options)
    real = medsynth.read_cohort(cohort)
    for row in made.rows:
        source = real.rows[int(row.attributes["observed_from"])]
        assert (source.split, source.label, row.split) == ("train", row.label, "train")
        assert row.attributes["contains_real_pixels"] == "0"
        wanted = np.zeros((1, 16, 16)) if source.mask is None else read_scan(real.mask_of(source)).array
        np.testing.assert_array_equal(read_scan(made.mask_of(row)).array, wanted)
        if source.attributes:  # the network is conditioned on what the source shows, but not to the last digit
            assert float(row.attributes["size"]) == pytest.approx(float(source.attributes["size"]), abs=0.5)
            assert row.attributes["size"] != source.attributes["size"]
    said = json.loads((tmp_path / "set/provenance.json").read_text())
    assert said["observed"] == {
        "channels": ["mask"],
        "split": "train",
        "change": False,
        "scans": 24,
        "patients": 24,
        "sha256": said["observed"]["sha256"],
    }
    assert said["contains_real_pixels"] is False
    assert all("secret" not in name and b"secret" not in data for name, data in content(tmp_path / "set").items())
    whole = content(tmp_path / "set")
    (tmp_path / "set/cohort.csv").unlink()
    (tmp_path / "set/ill/000002_mask.nii.gz").unlink()
    sample(run, tmp_path / "set", **options)
    assert content(tmp_path / "set") == whole
    with pytest.raises(ConfigError, match="observed"):
        sample(run, tmp_path / "set")


def test_a_set_does_not_depend_on_the_number_of_processes(run, cohort, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for devices in (1, 2):
        sample(
            run,
            tmp_path / str(devices),
            devices=devices,
            observed=ObservedOptions(cohort=str(cohort), channels="mask", change=True),
        )
    torch.set_num_threads(threads)
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_a_missing_sequence_is_made_for_the_scans_of_a_split(run, cohort, tmp_path):
    """The first file may be the missing one; observed images are real pixels, and the set says so."""
    made = sample(
        run, tmp_path / "set", count="ill=2", observed=ObservedOptions(cohort=str(cohort), channels="t2", split="test")
    )
    real = medsynth.read_cohort(cohort)
    for row in made.rows:
        source = real.rows[int(row.attributes["observed_from"])]
        assert (source.split, row.split, row.attributes["contains_real_pixels"]) == ("test", "test", "1")
        observed, true = (read_scan(each.files_of(one)["t2"]).array for each, one in ((made, row), (real, source)))
        low, high = (ends[1] for ends in (run.spec.intensity.low, run.spec.intensity.high))
        np.testing.assert_allclose(observed, true.clip(low, high), atol=(high - low) * 1e-3)  # float16 and the range
    assert "must stay within your institution" in json.loads((tmp_path / "set/provenance.json").read_text())["notice"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": "mask"}, "observed.cohort: need the cohort"),
        ({"channels": "flair", "cohort": "c"}, "channels path, t2, mask, but not all, got 'flair'"),
        ({"channels": "t2,path,mask", "cohort": "c"}, "got all of them"),
        ({"channels": "", "cohort": "c"}, "got none"),
        ({"channels": "mask,t2", "cohort": "c", "change": True}, "observed.change: changes masks only"),
        ({"change": True}, "observed.change: changes observed masks"),
    ],
)
def test_options_that_observe_nothing(run, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        sample(run, tmp_path / "set", observed=ObservedOptions(**options))
    assert not (tmp_path / "set").exists()


def test_other_runs_observe_nothing(tiny_run, run, cohort):
    with pytest.raises(ConfigError, match=r"need a run trained with condition\.observed above 0"):
        find_observed(tiny_run, ObservedOptions(cohort=str(cohort), channels="path"), ["dark"], seed=0)
    with pytest.raises(DataError, match="need val scans of 'other', got none"):
        find_observed(run, ObservedOptions(cohort=str(cohort), channels="mask", split="val"), ["other"], seed=0)


@pytest.mark.parametrize("shape", [(24, 32), (12, 16, 20)])
def test_a_changed_mask_is_another_one_of_about_its_size(shape):
    mask = -np.ones(shape, dtype=np.float32)
    mask[tuple(slice(length // 3, 2 * length // 3) for length in shape)] = 1
    sizes = []
    for seed in range(20):
        changed = change_mask(mask, seed)
        assert set(np.unique(changed)) == {-1, 1}
        np.testing.assert_array_equal(changed, change_mask(mask, seed))
        assert not np.array_equal(changed, mask)
        sizes.append((changed > 0).sum() / (mask > 0).sum())
    assert 0.5 < min(sizes) < np.mean(sizes) < max(sizes) < 2
    assert np.mean(sizes) == pytest.approx(1, abs=0.2)
    corner = -np.ones(shape, dtype=np.float32)
    corner[(0,) * len(shape)] = 1
    assert all((change_mask(corner, seed) > 0).any() for seed in range(20)), "never lost"
    np.testing.assert_array_equal(change_mask(-np.ones(shape), 0), -np.ones(shape))


def test_the_set_is_judged_and_handed_over_with_its_masks(run, cohort, tmp_path):
    sample(run, tmp_path / "set", count="ill=4,well=4")
    medsynth.evaluate(
        real=cohort,
        synthetic=tmp_path / "set",
        run=run.folder,
        out=tmp_path / "report",
        parts=["privacy", "fidelity"],
        cache_dir=tmp_path / "cache",
        progress=False,
    )
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["settings"]["grid"] == "16 x 16"
    assert "masks" not in (report["privacy"]["membership"]["reason"] or "")
    passed_report(tmp_path / "report", tmp_path / "passed")  # so few patients cannot tell
    medsynth.augment(
        real=cohort,
        synthetic=tmp_path / "set",
        report=tmp_path / "passed",
        out=tmp_path / "augmented/cohort.csv",
        progress=False,
    )
    with (tmp_path / "augmented/cohort.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["synthetic"] == "1"]
    assert all(row["mask"].endswith("_mask.nii.gz") and row["path_t2"].endswith("_t2.nii.gz") for row in rows)
    handed = medsynth.read_cohort(tmp_path / "augmented/cohort.csv")
    joint = prepare_cohort(handed, grid=run.grid, intensity=run.spec.intensity, mask=True, loading=QUIET)
    assert joint.scans.shape == (32, 3, 16, 16)
    medsynth.card(synthetic=tmp_path / "set", report=tmp_path / "report")


def test_volumes_with_masks_are_written_as_dicom_with_a_segmentation(tmp_path):
    pytest.importorskip("highdicom")
    import pydicom

    medsynth.demo(out=tmp_path / "phantom", scans=9, size=16, volumes=True, rare_share=0.3, progress=False)
    folder = tmp_path / "trained"
    folder.mkdir()
    run = trained(
        tmp_path / "phantom/cohort.csv",
        folder,
        max_steps=2,
        grid={"size": 16},
        condition={"mask": True},
        monitor={"validate_every": 0, "preview_every": 0},
    )
    made = sample(run, tmp_path / "set", count="normal=2", format="dicom", modality="CT")
    whole = content(tmp_path / "set")
    memory = list(medsynth.generate(run, count="normal=2", batch_size=2, solver=STEPS))
    for row, expected in zip(made.rows, memory, strict=True):
        assert (row.path, row.mask) == (row.path, f"{row.path}_mask.dcm")
        mask = pydicom.dcmread(tmp_path / "set" / row.mask)
        assert (mask.Modality, mask.PatientID) == ("SEG", row.patient_id)
        assert mask.pixel_array.sum() == expected.mask.array.sum()
    (tmp_path / "set/cohort.csv").unlink()
    (tmp_path / "set/normal/000001_mask.dcm").unlink()
    sample(run, tmp_path / "set", count="normal=2", format="dicom", modality="CT")
    assert content(tmp_path / "set") == whole
    flat = dataclasses.replace(run.spec, shape=(2, 16, 16), modality="CR")
    with pytest.raises(ConfigError, match="need CT or MR for scans with masks"):
        FileForm.of(flat, SampleOptions(run="", out="", count=1, format="dicom"))


def test_the_run_and_the_start_must_agree_on_masks(run, cohort, tmp_path):
    with pytest.raises(ConfigError, match=r"condition\.mask: need True as in start"):
        trained(cohort, tmp_path, start=str(run.folder))
    rows = tuple(dataclasses.replace(row, sequences={}) for row in medsynth.read_cohort(cohort).rows)
    single = cohort.parent / "single.csv"
    write_cohort(Cohort(folder=cohort.parent, rows=rows), single)
    with pytest.raises(ConfigError, match="need scans of several channels"):
        trained(single, tmp_path, condition={"observed": 0.5})


def test_never_all_channels_are_observed():
    generator = torch.Generator().manual_seed(0)
    known = draw_observed(4000, 4, 0.6, generator)
    assert not known.all(1).any()
    assert float(known.any(1).float().mean()) == pytest.approx(0.6, abs=0.03)
    counts = known[known.any(1)].sum(1)
    assert [float((counts == number).float().mean()) for number in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.04)
    np.testing.assert_allclose(known[known.any(1)].float().mean(0), 0.5, atol=0.05)
    assert not draw_observed(50, 1, 1.0, generator).any()


def test_the_loss_does_not_see_observed_channels(run):
    from medsynth.training.module import denoising_errors

    denoiser = run.load_denoiser()
    clean = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    known = torch.tensor([[True, False, True], [False, True, False]])
    sigma = torch.tensor([0.5, 2.0])
    condition = denoiser.embedding.make(torch.tensor([0, 1]), None, observe_channels(clean, known))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    errors = denoising_errors(denoiser, clean, noise, sigma, condition)
    denoised = denoiser(clean + sigma[:, None, None, None] * noise, sigma, condition)
    by_hand = [(denoised - clean)[row][~known[row]].square().mean() for row in (0, 1)]
    torch.testing.assert_close(errors, torch.stack(by_hand))
    torch.testing.assert_close(denoised[0, [0, 2]], clean[0, [0, 2]], rtol=0, atol=0)
    other = torch.where(known[..., None, None], torch.randn_like(noise), noise)
    torch.testing.assert_close(denoising_errors(denoiser, clean, other, sigma, condition), errors)
