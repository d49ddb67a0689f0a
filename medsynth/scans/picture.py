"""Scans as grey pictures for people to look at: previews, contact sheets, reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medsynth.files import atomic_path

_GAP = 2
_CAPTION = 16  # height of a caption in pixels
_PAPER = 255


def to_grey(array: np.ndarray) -> np.ndarray:
    """Return uint8 `(height, width)` of the first channel of a scan `(C, *spatial)` in [-1, 1]; values outside are clipped.

    A volume on a model's grid, whose axes run to the patient's head, back and left, is shown by its central axial plane as
    radiologists look at it: front up, the patient's right on the left side.
    """
    pixels = np.asarray(array[0], dtype=np.float32)
    if pixels.ndim == 3:
        pixels = pixels[pixels.shape[0] // 2]
    levels: np.ndarray = np.rint((np.clip(np.nan_to_num(pixels), -1, 1) + 1) * 127.5).astype(np.uint8)
    return levels


def tile(scans: np.ndarray, columns: int, *, gap: int = _GAP) -> np.ndarray:
    """Return one uint8 picture of scans `(N, C, *spatial)` in [-1, 1], row by row in `columns` columns, on white."""
    if len(scans) == 0 or columns < 1:
        raise ValueError(f"need scans and at least one column, got {len(scans)} scans and {columns} columns")
    pictures = [to_grey(scan) for scan in scans]
    height, width = pictures[0].shape
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), _PAPER, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def captioned_rows(rows: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Return one uint8 picture with a row of scans `(N, C, *spatial)` in [-1, 1] under each caption."""
    font, parts = ImageFont.load_default(size=_CAPTION - 4), []
    tiles = [tile(scans, len(scans)) for _, scans in rows]
    width = max(picture.shape[1] for picture in tiles)
    for (caption, _), picture in zip(rows, tiles, strict=True):
        strip = Image.new("L", (width, _CAPTION), color=_PAPER)
        ImageDraw.Draw(strip).text((2, _CAPTION / 2), caption, fill=0, font=font, anchor="lm")
        parts += [np.asarray(strip), np.pad(picture, ((0, 0), (0, width - picture.shape[1])), constant_values=_PAPER)]
    return np.concatenate(parts)


def write_picture(path: Path | str, pixels: np.ndarray) -> None:
    """Write a uint8 picture, `(height, width)` grey or `(height, width, 3)` RGB, as PNG, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
