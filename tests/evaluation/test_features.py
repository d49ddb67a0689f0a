from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from medsynth.errors import ConfigError, DataError
from medsynth.evaluation import features as module
from medsynth.evaluation.features import cached_features


@dataclass(frozen=True, kw_only=True, eq=False)
class Keyed:
    scans: np.ndarray
    key: str = "a key"


class Counting:
    """Features are the first four pixels; counts the scans it has seen, and may fail after some."""

    name = "Counting"
    title = "the first pixels"

    def __init__(self, sha256: str = "0" * 64, fail_after: int | None = None) -> None:
        self.sha256, self.seen, self._fail_after = sha256, 0, fail_after

    def __call__(self, scans: torch.Tensor) -> torch.Tensor:
        if self._fail_after is not None and self.seen + len(scans) > self._fail_after:
            raise KeyboardInterrupt
        self.seen += len(scans)
        return scans.flatten(1)[:, :4]


@pytest.fixture
def prepared(monkeypatch) -> Keyed:
    monkeypatch.setattr(module, "_CHUNK", 20)
    return Keyed(scans=np.random.default_rng(0).uniform(-1, 1, size=(50, 1, 4, 4)).astype(np.float16))


def expected(prepared: Keyed) -> np.ndarray:
    return prepared.scans.reshape(50, -1)[:, :4].astype(np.float32)


def cached(prepared: Keyed, extractor: Counting, folder: Path) -> np.ndarray:
    return cached_features(prepared, extractor, folder=folder, progress=False)


def test_features_are_mapped_and_extracted_once(tmp_path, prepared):
    folder = tmp_path / "new" / "cache"
    extractor = Counting()
    for _ in range(2):
        found = cached(prepared, extractor, folder)
        assert isinstance(found, np.memmap)
        assert (found.dtype, found.flags.writeable) == (np.float32, False)
        np.testing.assert_array_equal(found, expected(prepared))
    assert extractor.seen == 50
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npy"]


def test_other_scans_or_weights_are_extracted_anew(tmp_path, prepared):
    cached(prepared, Counting(), tmp_path)
    for extractor, scans in (
        (Counting(sha256="1" * 64), prepared),
        (Counting(), Keyed(scans=prepared.scans, key="another")),
    ):
        cached(scans, extractor, tmp_path)
        assert extractor.seen == 50
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_an_interrupted_extraction_goes_on_after_the_last_whole_chunk(tmp_path, prepared):
    with pytest.raises(KeyboardInterrupt):
        cached(prepared, Counting(fail_after=45), tmp_path)
    assert list(tmp_path.glob("*.npy")) == []
    again = Counting()
    np.testing.assert_array_equal(cached(prepared, again, tmp_path), expected(prepared))
    assert again.seen == 10


def test_damaged_files_are_extracted_anew(tmp_path, prepared):
    cached(prepared, Counting(), tmp_path)
    file = next(tmp_path.glob("*.npy"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    again = Counting()
    np.testing.assert_array_equal(cached(prepared, again, tmp_path), expected(prepared))
    assert again.seen == 50
    # A damaged chunk of an interrupted extraction, too.
    with pytest.raises(KeyboardInterrupt):
        cached(prepared, Counting(sha256="1" * 64, fail_after=45), tmp_path)
    next(tmp_path.glob("*.parts/*")).write_bytes(b"")
    np.testing.assert_array_equal(cached(prepared, Counting(sha256="1" * 64), tmp_path), expected(prepared))


def test_what_cannot_be_extracted_is_refused(tmp_path, prepared):
    with pytest.raises(DataError, match="got none"):
        cached(Keyed(scans=prepared.scans[:0]), Counting(), tmp_path)
    scans = prepared.scans.copy()
    scans[33] = np.nan
    with pytest.raises(DataError, match="row 33"):
        cached(Keyed(scans=scans), Counting(), tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"file: need a folder with room for features, got .+; try"):
        cached(prepared, Counting(), tmp_path / "file")


@dataclass(frozen=True)
class ProcessNoted:
    """Makes extractors that note the process in which they work."""

    folder: Path

    def __call__(self) -> Counting:
        (self.folder / str(os.getpid())).touch()
        return Counting()


def test_two_processes_extract_the_features_of_one(tmp_path, prepared):
    """Three chunks, one of them there already: one for each of two processes, none for the one that asks."""
    np.save(tmp_path / "scans.npy", prepared.scans)
    scans = np.load(tmp_path / "scans.npy", mmap_mode="r")
    with pytest.raises(KeyboardInterrupt):
        cached(Keyed(scans=scans), Counting(fail_after=20), tmp_path / "cache")
    noted, asking = tmp_path / "processes", Counting()
    noted.mkdir()
    found = cached_features(
        Keyed(scans=scans), asking, folder=tmp_path / "cache", devices=2, reopen=ProcessNoted(noted), progress=False
    )
    np.testing.assert_array_equal(found, expected(prepared))
    assert asking.seen == 0
    assert len({*noted.iterdir()} - {noted / str(os.getpid())}) == 2
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]
