"""Damaged DICOM files: never a traceback, never a word on the terminal."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from medsynth.config import Loading
from medsynth.errors import DataError
from medsynth.scans import read_header, read_scan
from tests.dicom_files import (
    compressed,
    dataset,
    enhanced_of,
    noise,
    runs,
    series_of,
    write,
)


def bases(folder: Path) -> list[Path]:
    made = enhanced_of(series_of(noise(3, 6, 8), slope=1, intercept=-1024))
    made["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    rle = dataset(noise(6, 8, dtype="uint8"), modality="CR")
    return [
        write(series_of(noise(1, 6, 8), slope=1, intercept=-1024)[0], folder / "explicit.dcm"),
        write(series_of(noise(1, 6, 8))[0], folder / "implicit.dcm", syntax=uid.ImplicitVRLittleEndian),
        write(made, folder / "enhanced.dcm"),
        compressed(rle, [runs(noise(6, 8, dtype="uint8"))], folder / "rle.dcm", uid.RLELossless),
    ]


@pytest.mark.parametrize("number", range(4), ids=["explicit", "implicit", "enhanced", "rle"])
def test_damaged_bytes_never_end_in_a_traceback(tmp_path, number, capfd):
    path = bases(tmp_path)[number]
    whole, random = path.read_bytes(), np.random.default_rng(number)
    messages = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(300):
            content = bytearray(whole)
            for _ in range(random.integers(1, 6)):
                kind, at = random.integers(4), int(random.integers(128, len(content)))
                if kind == 0:
                    content[at] = random.integers(256)
                elif kind == 1:
                    content[at : at + 4] = b"\xff\xff\xff\xff"
                elif kind == 2:
                    del content[at : at + int(random.integers(1, 20))]
                else:
                    content[at:at] = random.bytes(int(random.integers(1, 20)))
            path.write_bytes(bytes(content))
            for read in (read_header, read_scan):
                try:
                    read(path, loading=Loading(max_mib=1))
                except DataError as error:
                    messages.append(str(error))
    assert len(messages) > 50
    assert all(message.startswith(str(path)) and "\n" not in message for message in messages)
    assert capfd.readouterr() == ("", "")


def test_hypothesis_any_bytes_behind_the_mark(tmp_path):
    hypothesis = pytest.importorskip("hypothesis")
    path = tmp_path / "one.dcm"

    @hypothesis.settings(max_examples=150, deadline=None)
    @hypothesis.given(hypothesis.strategies.binary(max_size=300))
    def check(content: bytes) -> None:
        path.write_bytes(bytes(128) + b"DICM" + content)
        with pytest.raises(DataError):
            read_scan(path)

    check()
