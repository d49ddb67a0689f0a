from __future__ import annotations

import os
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medsynth.cohorts import Cohort, Row, ScanDataset, cache, channels, hash_cohort, prepare_cohort
from medsynth.config import GridOptions, IntensityOptions, Loading
from medsynth.errors import ConfigError, DataError
from medsynth.files import read_facts, write_facts
from medsynth.scans import Intensity, Scan, read_scan, write_scan
from tests.cohorts.conftest import write_png

RANGE = IntensityOptions(method="range", low=0, high=255)
GRID = GridOptions(size=8)


def random_images(count: int, shape: tuple[int, int] = (16, 16)) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, 256, size=shape, dtype=np.uint8) for n in range(count)]


def prepare(cohort: Cohort, **options):
    """Prepare; options of `Loading` may stand beside the others."""
    loading = Loading(
        progress=False, **{name: options.pop(name) for name in ("cache_dir", "max_mib") if name in options}
    )
    return prepare_cohort(cohort, **{"grid": GRID, "intensity": RANGE, "loading": loading, **options})


@pytest.fixture
def no_reading(monkeypatch):
    """Make any decoding of a scan fail the test."""

    def fail(*_args, **_options):
        raise AssertionError("a scan was decoded")

    monkeypatch.setattr(channels, "read_scan", fail)
    monkeypatch.setattr(channels, "read_header", fail)


def test_values_equal_block_means_and_percentiles_of_the_training_split(png_cohort):
    images = random_images(10)
    images[4][:] = 255  # validation: must not move the percentiles
    images[9] //= 4
    prepared = prepare(png_cohort(images), intensity=IntensityOptions(method="percentiles", low=5, high=80))
    train = np.concatenate([images[n].ravel() for n in range(10) if n % 5 != 4])
    low, high = np.percentile(train, [5, 80])
    means = np.stack(images).reshape(10, 8, 2, 8, 2).mean(axis=(2, 4))
    expected = 2 * np.clip((means - low) / (high - low), 0, 1) - 1
    assert prepared.scans.dtype == np.float16
    assert prepared.scans.shape == (10, 1, 8, 8)
    assert np.allclose(prepared.scans[:, 0], expected, atol=1e-3)  # float16 keeps 11 bits
    assert prepared.intensity.low == pytest.approx((low,))
    assert prepared.intensity.high == pytest.approx((high,))


def test_what_is_known_about_the_scans(png_cohort):
    cohort = png_cohort(random_images(10))
    prepared = prepare(cohort)
    assert prepared.classes == ("a", "b")
    assert prepared.labels.tolist() == [0, 1] * 5
    assert prepared.indices("val").tolist() == [4, 9]
    assert prepared.indices("train", 1).tolist() == [1, 3, 5, 7]
    assert prepared.indices(("train", "val")).tolist() == list(range(10))
    assert len(set(prepared.patients.tolist())) == 10
    assert np.allclose(prepared.affine[:3, :2], [[0, -2], [-2, 0], [0, 0]])
    assert prepare(cohort, classes=("z", "b", "a")).labels.tolist() == [2, 1] * 5
    with pytest.raises(DataError, match="'b'"):
        prepare(cohort, classes=("a",))


def test_a_second_call_decodes_no_scan(png_cohort, request):
    cohort = png_cohort(random_images(5))
    first = prepare(cohort)
    request.getfixturevalue("no_reading")
    second = prepare(cohort)
    assert isinstance(second.scans, np.memmap)
    assert not second.scans.flags.writeable
    assert np.array_equal(first.scans, second.scans)
    assert np.array_equal(first.affine, second.affine)
    assert (first.key, first.intensity) == (second.key, second.intensity)
    with pytest.raises(AssertionError, match="decoded"):
        prepare(cohort, grid=GridOptions(size=4))


def test_the_key_follows_content_and_options(png_cohort, tmp_path):
    cohort = png_cohort(random_images(5))
    key = prepare(cohort).key
    assert prepare(cohort, cache_dir=tmp_path / "elsewhere").key == key
    assert prepare(cohort, max_mib=3).key == key
    others = [
        prepare(cohort, grid=GridOptions(size=8, fit="crop")).key,
        prepare(cohort, intensity=IntensityOptions(method="minmax")).key,
        prepare(cohort, intensity=Intensity(low=(0.0,), high=(9.0,))).key,
        prepare(cohort, classes=("b", "a")).key,
        prepare(replace(cohort, rows=cohort.rows[::-1])).key,
        prepare(replace(cohort, rows=(replace(cohort.rows[0], split="test"), *cohort.rows[1:]))).key,
    ]
    image = np.asarray(Image.open(tmp_path / "images/3.png")).copy()
    image[0, 0] ^= 255
    Image.fromarray(image).save(tmp_path / "images/3.png")
    others.append(prepare(cohort).key)
    assert len({key, *others}) == 8
    assert np.allclose(prepare(cohort).scans[3, 0, 0, 0], image[:2, :2].mean() / 127.5 - 1, atol=1e-3)


def test_files_are_hashed_again_only_if_they_changed(png_cohort, monkeypatch):
    cohort = png_cohort(random_images(3))
    monkeypatch.setattr(cache, "_FRESH_SECONDS", -1)
    key, known = prepare(cohort).key, hash_cohort(cohort)
    hashed: list[str] = []
    sha256 = cache.hash_file
    monkeypatch.setattr(cache, "hash_file", lambda path: hashed.append(path.name) or sha256(path))
    assert prepare(cohort).key == key
    assert hashed == []
    os.utime(cohort.file_of(cohort.rows[1]), (1e9, 2e9))
    assert prepare(cohort).key == key
    assert hashed == ["1.png"]
    file = cohort.file_of(cohort.rows[2])
    content, times = bytearray(file.read_bytes()), file.stat()
    content[-5] ^= 1  # of the check sum at the end
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hash_cohort(cohort) != known  # same size and a restored time of modification


def test_a_hash_that_was_made_up_is_not_believed_at_hand_over(png_cohort, tmp_path, monkeypatch):
    cohort, loading = png_cohort(random_images(3)), Loading(cache_dir=tmp_path / "cache", progress=False)
    monkeypatch.setattr(cache, "_FRESH_SECONDS", -1)
    honest = hash_cohort(cohort, loading=loading)
    (store,) = (tmp_path / "cache").glob("hashes-*.json")
    entries = read_facts(store)
    write_facts(store, {name: [*entry[:-1], "0" * 64] for name, entry in entries.items()})
    assert hash_cohort(cohort, loading=loading) != honest
    assert hash_cohort(cohort, loading=loading, anew=True) == honest


def test_processes_keep_the_hashes_of_each_other(png_cohort, tmp_path, monkeypatch):
    cohort, loading = png_cohort(random_images(2)), Loading(cache_dir=tmp_path / "cache", progress=False)
    monkeypatch.setattr(cache, "_FRESH_SECONDS", -1)
    sha256, first = cache.hash_file, replace(cohort, rows=cohort.rows[:1])

    def slow(path):
        monkeypatch.setattr(cache, "hash_file", sha256)
        hash_cohort(replace(cohort, rows=cohort.rows[1:]), loading=loading)  # another process, meanwhile
        return sha256(path)

    monkeypatch.setattr(cache, "hash_file", slow)
    hash_cohort(first, loading=loading)
    (store,) = (tmp_path / "cache").glob("hashes-*.json")
    assert len(read_facts(store)) == 2


@pytest.mark.parametrize("pattern", ["hashes-*.json", "[0-9a-f]*.json"])
def test_what_the_cache_knows_is_not_believed_once_a_digit_of_it_changed(png_cohort, tmp_path, monkeypatch, pattern):
    cohort, loading = png_cohort(random_images(3)), Loading(cache_dir=tmp_path / "cache", progress=False)
    monkeypatch.setattr(cache, "_FRESH_SECONDS", -1)
    options = {"grid": GridOptions(size=16), "intensity": IntensityOptions(method="minmax"), "loading": loading}
    first, known = prepare_cohort(cohort, **options), hash_cohort(cohort, loading=loading)
    (file,) = (tmp_path / "cache").glob(pattern)
    text = file.read_text()
    place = max(place for place, letter in enumerate(text) if letter.isdigit())
    file.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    again = prepare_cohort(cohort, **options)
    assert (again.key, again.intensity, again.affine.tolist()) == (first.key, first.intensity, first.affine.tolist())
    assert hash_cohort(cohort, loading=loading) == known


def test_equal_scans_are_prepared_once_and_no_cohort_folder_is_written(png_cohort, tmp_path, request):
    cohort = png_cohort(random_images(3))
    before = sorted(cohort.folder.rglob("*"))
    key = prepare(cohort).key
    assert sorted(cohort.folder.rglob("*")) == before
    shutil.copytree(cohort.folder, tmp_path / "elsewhere")
    request.getfixturevalue("no_reading")
    assert prepare(replace(cohort, folder=tmp_path / "elsewhere")).key == key


def test_a_cache_that_came_with_a_cohort_is_not_believed(png_cohort):
    cohort = png_cohort(random_images(3))
    planted = cohort.folder / ".medsynth_cache"
    first = np.array(prepare(cohort, cache_dir=planted).scans)
    (file,) = planted.glob("*.npy")
    np.save(file, np.zeros_like(first))
    change = read_facts(file.with_suffix(".json")) | {"sha256": cache.hash_file(file)}
    write_facts(file.with_suffix(".json"), change)
    assert np.array_equal(prepare(cohort).scans, first)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "facts", "delete"])
def test_a_damaged_cache_is_rebuilt(png_cohort, tmp_path, damage):
    cohort = png_cohort(random_images(5))
    first = prepare(cohort, cache_dir=tmp_path / "cache")
    expected = np.array(first.scans)
    (file,) = (tmp_path / "cache").glob("*.npy")
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-7])
    elif damage == "flip":
        content[-1] ^= 255
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "facts":
        file.with_suffix(".json").write_text("{")
    else:
        file.unlink()
    again = prepare(cohort, cache_dir=tmp_path / "cache")
    assert np.array_equal(again.scans, expected)


def test_a_copied_cache_is_used(png_cohort, tmp_path, request):
    cohort = png_cohort(random_images(3))
    prepare(cohort, cache_dir=tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        os.utime(file, (1e9, 1e9))
    request.getfixturevalue("no_reading")
    assert prepare(cohort, cache_dir=tmp_path / "cache").scans.shape == (3, 1, 8, 8)


def test_the_cache_names_no_patient_and_no_file(png_cohort, tmp_path):
    cohort = png_cohort(random_images(3))
    secret = tuple(replace(row, patient_id=f"Jane{n}") for n, row in enumerate(cohort.rows))
    prepare(replace(cohort, rows=secret), cache_dir=tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        assert not any(word in file.read_bytes() for word in (b"Jane", b"images", b".png"))


def test_a_constant_scan_gives_no_nan(png_cohort):
    images = [np.full((16, 16), 7, dtype=np.uint8), *random_images(2)]
    assert np.isfinite(prepare(png_cohort(images), intensity=IntensityOptions(method="minmax")).scans).all()


@pytest.mark.filterwarnings("ignore:intensity")
def test_a_constant_cohort_gives_no_nan(png_cohort):
    images = [np.full((16, 16), 7, dtype=np.uint8)] * 3
    prepared = prepare(png_cohort(images), intensity=IntensityOptions(method="percentiles"))
    assert (np.array(prepared.scans) == -1).all()


def volume_cohort(folder, scans: list[Scan]) -> Cohort:
    for number, scan in enumerate(scans):
        write_scan(scan, folder / f"{number}.npz")
    rows = (Row(path=f"{n}.npz", label="x", patient_id=f"P{n}", split="train") for n in range(len(scans)))
    return Cohort(folder=folder, rows=tuple(rows))


def test_volumes_of_mixed_orientation_and_spacing_come_to_one_geometry(tmp_path):
    pixels = np.random.default_rng(0).uniform(0, 255, size=(8, 8, 8))
    upright = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    first = Scan(array=pixels[None], affine=upright)
    ras = np.flip(pixels, axis=(1, 2)).transpose(2, 1, 0)
    second = Scan(array=ras[None], affine=np.diag([3.0, 3.0, 3.0, 1.0]))
    third = Scan(array=pixels[None], affine=upright @ np.diag([3.0, 3.0, 3.0, 1.0]))
    prepared = prepare(volume_cohort(tmp_path, [first, second, third]))
    assert np.array_equal(prepared.scans[0], prepared.scans[1])
    assert np.linalg.norm(prepared.affine[:3, :3], axis=0) == pytest.approx([3, 3, 3])
    assert np.allclose(prepared.affine @ [3.5, 3.5, 3.5, 1], [0, 0, 0, 1])


def masked_volumes(folder):
    """Two volumes with a bright ball off their middle and its mask, one turned and with thick slices."""
    scans, masks = [], []
    for spacing, shape, at, turn in (
        ((1, 1, 1), (30, 30, 30), (8, 20, 14), 1),
        ((2.5, 1, 1), (12, 30, 30), (4, 9, 21), -1),
    ):
        place = [np.arange(count) * size for count, size in zip(shape, spacing, strict=True)]
        middle = [index * size for index, size in zip(at, spacing, strict=True)]
        far = sum((axis - centre) ** 2 for axis, centre in zip(np.meshgrid(*place, indexing="ij"), middle, strict=True))
        ball = (far <= 16).astype(np.float32)
        affine = np.diag([spacing[0] * turn, spacing[1], spacing[2], 1.0])
        scans.append(Scan(array=ball[None] * 100, affine=affine))
        masks.append(Scan(array=ball[None].astype(np.uint8), affine=affine))
    cohort = volume_cohort(folder, scans)
    for number, mask in enumerate(masks):
        write_scan(mask, folder / f"mask{number}.nii.gz")
    rows = tuple(replace(row, mask=f"mask{number}.nii.gz") for number, row in enumerate(cohort.rows))
    return replace(cohort, rows=rows)


def test_lesions_come_to_the_middle_at_their_size_in_millimetres(tmp_path):
    cohort = masked_volumes(tmp_path)
    grid = GridOptions(size=12, spacing=1.0, centre="mask")
    prepared = prepare(cohort, grid=grid, intensity=IntensityOptions(method="range", low=0, high=100))
    balls = prepared.scans[:, 0] > 0
    for ball in balls:
        # A ball of radius 4 mm holds 268 cubic millimetres, and sticks out of no side.
        assert ball.sum() == pytest.approx(268, rel=0.2)
        assert np.abs(np.argwhere(ball).mean(axis=0) - 5.5).max() <= 1
    assert np.allclose(np.abs(np.linalg.det(prepared.affine[:3, :3])), 1)
    elsewhere = prepare(
        cohort, grid=replace(grid, centre="scan"), intensity=IntensityOptions(method="range", low=0, high=100)
    )
    assert np.abs(np.argwhere(elsewhere.scans[0, 0] > 0).mean(axis=0) - 5.5).max() > 2
    assert elsewhere.key != prepared.key


def test_masks_that_are_missing_or_elsewhere_are_refused(tmp_path):
    cohort = masked_volumes(tmp_path)
    grid = GridOptions(size=12, spacing=1.0, centre="mask")
    bare = replace(cohort, rows=(cohort.rows[0], replace(cohort.rows[1], mask=None)))
    with pytest.raises(DataError, match="need a mask for its centre"):
        prepare(bare, grid=grid)
    swapped = replace(cohort, rows=(cohort.rows[0], replace(cohort.rows[1], mask="mask0.nii.gz")))
    with pytest.raises(DataError, match="need the geometry of its scan"):
        prepare(swapped, grid=grid)


def test_another_mask_is_another_content(tmp_path):
    cohort = masked_volumes(tmp_path)
    grid = GridOptions(size=12, spacing=1.0, centre="mask")
    before = prepare(cohort, grid=grid).key
    mask = read_scan(tmp_path / "mask0.nii.gz")
    write_scan(replace(mask, array=np.roll(mask.array, 3, axis=2)), tmp_path / "mask0.nii.gz")
    assert prepare(cohort, grid=grid).key != before


def test_mixed_channels_and_axes_are_refused_naming_the_file(tmp_path):
    flat, deep = Scan(array=np.ones((1, 4, 4))), Scan(array=np.ones((1, 4, 4, 4)))
    two = Scan(array=np.ones((2, 4, 4)))
    with pytest.raises(DataError, match=r"1\.npz: need 2 spatial axes like the first scan, got 3"):
        prepare(volume_cohort(tmp_path, [flat, deep]))
    with pytest.raises(DataError, match=r"1\.npz: need 1 channels like the first scan, got 2"):
        prepare(volume_cohort(tmp_path, [flat, two]))


def test_an_unreadable_scan_leaves_no_cache(png_cohort, tmp_path):
    cohort = png_cohort(random_images(3))
    content = (tmp_path / "images/2.png").read_bytes()
    (tmp_path / "images/2.png").write_bytes(content[:-60])
    with pytest.raises(DataError, match=r"2\.png"):
        prepare(cohort, cache_dir=tmp_path / "cache")
    assert [file.name for file in (tmp_path / "cache").iterdir() if not file.name.startswith("hashes-")] == []


def test_an_unwritable_folder_is_reported(png_cohort, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--cache_dir"):
        prepare(png_cohort(random_images(2)), cache_dir=tmp_path / "file/cache")


def test_without_a_folder_of_ones_own_cache_dir_is_asked_for(png_cohort, tmp_path, monkeypatch):
    cohort = png_cohort(random_images(2))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for call in (prepare, hash_cohort):
        with pytest.raises(
            ConfigError, match=r"file/medsynth: need a private folder .*Not a directory; try --cache_dir"
        ):
            call(cohort)


def test_a_full_disk_is_reported(png_cohort, tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write_array", full)
    with pytest.raises(ConfigError, match=r"No space left.*--cache_dir"):
        prepare(png_cohort(random_images(2)), cache_dir=tmp_path / "cache")


def test_intensities_need_training_scans(png_cohort):
    cohort = png_cohort(random_images(5)).select(split="val")
    with pytest.raises(DataError, match="training scans"):
        prepare(cohort, intensity=IntensityOptions(method="minmax"))
    assert len(prepare(cohort).scans) == 1
    with pytest.raises(DataError, match="at least one scan"):
        prepare(cohort.select(split="test"))


def test_memory_does_not_grow_with_the_cohort(png_cohort):
    def peak(count: int) -> int:
        cohort = png_cohort(random_images(count, (64, 64)))
        tracemalloc.start()
        prepare(cohort, grid=GridOptions(size=64), intensity=IntensityOptions(method="minmax"))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(3)  # what is loaded and kept once
    few = peak(50)
    # 150 scans more are 1.2 MB of float16 and 2.4 MB of float32; what is kept of one (path, facts) is below 1 kB.
    assert peak(200) - few < 400_000


def test_items_of_one_npz(tmp_path):
    images = np.stack(random_images(4, (8, 8)))
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=np.zeros((4, 1), dtype=int))
    rows = (Row(path=f"set.npz#train/{n}", label="x", patient_id=str(n), split="train") for n in (2, 0))
    prepared = prepare(Cohort(folder=tmp_path, rows=tuple(rows)))
    assert np.allclose(prepared.scans[:, 0], images[[2, 0]] / 127.5 - 1, atol=1e-3)


def test_dataset_items(png_cohort):
    prepared = prepare(png_cohort(random_images(6)))
    dataset = ScanDataset(prepared, prepared.indices("train", 1))
    assert len(dataset) == 3
    item = dataset[2]
    assert (item["label"], item["index"], item["synthetic"]) == (1, 5, False)
    assert item.keys() == {"scan", "label", "index", "synthetic"}
    assert item["scan"].dtype.is_floating_point
    assert np.array_equal(item["scan"].numpy(), prepared.scans[5].astype(np.float32))
    assert len(ScanDataset(prepared)) == 6


def test_dataset_items_hold_attributes_text_and_whether_they_are_synthetic(png_cohort):
    cohort = png_cohort(random_images(2))
    rows = (cohort.rows[0], replace(cohort.rows[1], attributes={"synthetic": "1"}))
    values = np.arange(4, dtype=np.float32).reshape(2, 2)
    prepared = replace(prepare(replace(cohort, rows=rows)), attributes=values, text=values + 10)
    items = list(ScanDataset(prepared))
    assert [item["synthetic"] for item in items] == [False, True]
    assert [item["attributes"].tolist() for item in items] == [[0, 1], [2, 3]]
    assert [item["text"].tolist() for item in items] == [[10, 11], [12, 13]]


def test_facts_beside_the_cache_are_json(png_cohort, tmp_path):
    prepared = prepare(png_cohort(random_images(2)), cache_dir=tmp_path / "cache")
    facts = read_facts(tmp_path / "cache" / f"{prepared.key[:32]}.json")
    assert facts["key"] == prepared.key
    assert facts["shape"] == [2, 1, 8, 8]


def test_what_was_abandoned_in_the_cache_is_removed(png_cohort, tmp_path):
    (tmp_path / "cache").mkdir()
    for name, when in (("old", 1e9), ("new", 4e9)):
        (tmp_path / "cache" / f".partial-abcdefgh-{name}.npy").touch()
        os.utime(tmp_path / "cache" / f".partial-abcdefgh-{name}.npy", (when, when))
    prepare(png_cohort(random_images(2)), cache_dir=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").glob(".partial-*")] == [".partial-abcdefgh-new.npy"]


def test_the_hash_of_a_cohort_is_that_of_every_column_but_names_and_places(png_cohort, tmp_path):
    cohort = png_cohort([np.full((4, 4), 10 * number, dtype=np.uint8) for number in range(5)])
    mask = tmp_path / "mask.png"
    write_png(mask, np.eye(4, dtype=np.uint8))
    first = replace(cohort.rows[0], mask="mask.png", attributes={"synthetic": "1", "donor": "3", "text": "small"})
    cohort = replace(cohort, rows=(first, *cohort.rows[1:]))
    loading = Loading(progress=False)
    before = hash_cohort(cohort, loading=loading)

    def changed(**facts):
        return hash_cohort(replace(cohort, rows=(replace(first, **facts), *cohort.rows[1:])), loading=loading)

    assert changed(patient_id="another name") == before
    for facts in (
        {"label": "b"},
        {"split": "test"},
        {"patient_id": cohort.rows[1].patient_id},
        {"mask": None},
        {"attributes": {**first.attributes, "donor": "2"}},
        {"attributes": {**first.attributes, "contains_real_pixels": "1"}},
        {"attributes": {"synthetic": "1", "donor": "3"}},
    ):
        assert changed(**facts) != before, facts
    write_png(mask, np.zeros((4, 4), dtype=np.uint8))
    assert hash_cohort(cohort, loading=loading, anew=True) != before
