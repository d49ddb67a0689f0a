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
_LEGIBLE, _LARGEST = 96, 1024  # pixels of the longest side of a plane, at least and at most


def to_grey(array: np.ndarray, *, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Return uint8 `(height, width)` of the first channel of a scan `(C, *spatial)` in [-1, 1]; values outside are clipped.

    A picture comes back pixel by pixel. A volume is shown by its three `middle_planes` side by side, the pixels square in
    millimetres where `spacing` (the voxel size along each spatial axis) is known, and small ones enlarged by a whole factor,
    linear between voxels.
    """
    pixels = np.asarray(array[:1], dtype=np.float32)
    if pixels.ndim != 4:
        return _levels(pixels[0])
    shape = pixels.shape[1:]
    head, back, left = _shown_lengths(shape, (1.0,) * len(shape) if spacing is None else spacing)
    planes = zip(middle_planes(pixels), ((back, left), (head, left), (head, back)), strict=True)
    parts = [_resized(_levels(plane[0]), size) for plane, size in planes]
    height = max(len(part) for part in parts)
    sheet = np.zeros((height, sum(part.shape[1] + _GAP for part in parts) - _GAP), dtype=np.uint8)
    right = 0
    for part in parts:
        top = (height - len(part)) // 2
        sheet[top : top + len(part), right : right + part.shape[1]] = part
        right += part.shape[1] + _GAP
    return sheet


def middle_planes(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the axial, coronal and sagittal plane `(C, rows, columns)` through the middle of a volume `(C, *spatial)`.

    The volume's axes run to the patient's head, back and left, as on a model's grid; the planes are as radiologists look at
    them: front or head up, the patient's right, or front, on the left side.
    """
    head, back, left = (length // 2 for length in volume.shape[1:])
    return volume[:, head], volume[:, ::-1, back], volume[:, ::-1, :, left]


def tile(scans: np.ndarray, columns: int, *, gap: int = _GAP, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Return one uint8 picture of scans `(N, C, *spatial)` in [-1, 1], row by row in `columns` columns, on white."""
    if len(scans) == 0 or columns < 1:
        raise ValueError(f"need scans and at least one column, got {len(scans)} scans and {columns} columns")
    pictures = [to_grey(scan, spacing=spacing) for scan in scans]
    height, width = pictures[0].shape
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), _PAPER, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def captioned_rows(rows: Sequence[tuple[str, np.ndarray]], *, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Return one uint8 picture with a row of scans `(N, C, *spatial)` in [-1, 1] under each caption."""
    font, parts = ImageFont.load_default(size=_CAPTION - 4), []
    tiles = [tile(scans, len(scans), spacing=spacing) for _, scans in rows]
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


def _levels(pixels: np.ndarray) -> np.ndarray:
    """Return grey levels of values in [-1, 1]."""
    levels: np.ndarray = np.rint((np.clip(np.nan_to_num(pixels), -1, 1) + 1) * 127.5).astype(np.uint8)
    return levels


def _shown_lengths(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """Return the pixels for each axis of a volume: a whole number a voxel where voxels are equal, else of equal millimetres."""
    extents = np.array(shape) * np.array(spacing, dtype=np.float64)
    pixel = max(min(spacing), max(extents) / _LARGEST)
    lengths = np.maximum(1, np.rint(extents / pixel)).astype(int)
    return tuple((lengths * max(1, -(-_LEGIBLE // int(max(lengths))))).tolist())


def _resized(levels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a picture at `size` (height, width), linear between pixels."""
    if levels.shape == size:
        return levels
    return np.asarray(Image.fromarray(np.ascontiguousarray(levels)).resize(size[::-1], Image.Resampling.BILINEAR))
