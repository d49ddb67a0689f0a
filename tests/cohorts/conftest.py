"""Small folders of scans, written without the code under test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsynth.cohorts import Cohort, Row


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def noise_image(number: int, shape: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, size=shape, dtype=np.uint8)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes `<label>/<patient>_<scan>.png` for `{label: patients}` below `tmp_path/scans`."""

    def write(patients: dict[str, int], *, scans: int = 1, shape: tuple[int, int] = (16, 16)) -> Path:
        number = 0
        for label, count in patients.items():
            for patient in range(count):
                for scan in range(scans):
                    write_png(tmp_path / "scans" / label / f"{label}{patient}_{scan}.png", noise_image(number, shape))
                    number += 1
        return tmp_path / "scans"

    return write


@pytest.fixture
def png_cohort(tmp_path: Path) -> Callable[..., Cohort]:
    """Return a function that writes 2D images as PNG and returns their cohort: labels a/b, every fifth in val."""

    def write(images: list[np.ndarray]) -> Cohort:
        rows = []
        for number, pixels in enumerate(images):
            write_png(tmp_path / f"images/{number}.png", pixels)
            split = "val" if number % 5 == 4 else "train"
            rows.append(Row(path=f"images/{number}.png", label="ab"[number % 2], patient_id=f"P{number}", split=split))
        return Cohort(folder=tmp_path, rows=tuple(rows))

    return write
