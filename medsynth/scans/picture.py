"""Scans as grey pictures for people: previews, contact sheets, reports, notebooks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from medsynth.files import write_bytes

_GAP = 2
_CAPTION = 16  # height of a caption in pixels
_BLACK, _WHITE = 0, 255
_SMALLEST, _LARGEST = 96, 1024  # pixels along the longest side of a plane


def to_grey(array: np.ndarray, *, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Return uint8 `(height, width)` of the first channel of a scan `(C, *spatial)` in [-1, 1]; values outside are clipped.

    A 2D scan gives one pixel per pixel. A volume is shown by its three `middle_planes` side by side, with square pixels in
    millimetres if `spacing` (the voxel size along each spatial axis) is given; small planes are enlarged by a whole factor.
    Values between voxels are interpolated linearly.
    """
    pixels = np.asarray(array[:1], dtype=np.float32)
    if pixels.ndim != 4:
        return _levels(pixels[0])
    shape = pixels.shape[1:]
    head, back, left = _shown_lengths(shape, (1.0,) * len(shape) if spacing is None else spacing)
    planes = zip(middle_planes(pixels), ((back, left), (head, left), (head, back)), strict=True)
    return _side_by_side([_resized(_levels(plane[0]), size) for plane, size in planes], background=_BLACK)


def middle_planes(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the axial, coronal and sagittal plane `(C, rows, columns)` through the middle of a volume `(C, *spatial)`.

    The volume's axes run towards the patient's head, back and left, as on a model's grid; the planes are shown as radiologists
    look at them: front or head up, the patient's right, or front, on the left side.
    """
    head, back, left = (length // 2 for length in volume.shape[1:])
    return volume[:, head], volume[:, ::-1, back], volume[:, ::-1, :, left]


def captioned_rows(rows: Sequence[tuple[str, np.ndarray]], *, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Return one uint8 picture with a row of scans `(N, C, *spatial)` in [-1, 1] under each caption."""
    font, parts = ImageFont.load_default(size=_CAPTION - 4), []
    pictures = [
        _side_by_side([to_grey(scan, spacing=spacing) for scan in scans], background=_WHITE) for _, scans in rows
    ]
    width = max(picture.shape[1] for picture in pictures)
    for (caption, _), picture in zip(rows, pictures, strict=True):
        strip = Image.new("L", (width, _CAPTION), color=_WHITE)
        ImageDraw.Draw(strip).text((2, _CAPTION / 2), caption, fill=_BLACK, font=font, anchor="lm")
        parts += [np.asarray(strip), np.pad(picture, ((0, 0), (0, width - picture.shape[1])), constant_values=_WHITE)]
    return np.concatenate(parts)


def stretch_contrast(values: np.ndarray) -> np.ndarray:
    """Return uint8 grey levels of values in any unit: 0 at the 1st percentile and below, 255 at the 99th and above."""
    finite = np.nan_to_num(np.asarray(values, dtype=np.float64))
    low, high = np.percentile(finite, (1, 99))
    return _levels((finite - low) / (high - low) * 2 - 1 if high > low else np.full(finite.shape, -1.0))


def encode_picture(pixels: np.ndarray, info: PngInfo | None = None) -> bytes:
    """Return the PNG bytes of a picture: grey `(height, width)` in uint8 or uint16, or RGB `(height, width, 3)` in uint8."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()


def write_picture(path: Path | str, pixels: np.ndarray) -> None:
    """Write a picture of `encode_picture` atomically."""
    write_bytes(path, encode_picture(pixels))


def _levels(pixels: np.ndarray) -> np.ndarray:
    """Return grey levels of values in [-1, 1]."""
    levels: np.ndarray = np.rint((np.clip(np.nan_to_num(pixels), -1, 1) + 1) * 127.5).astype(np.uint8)
    return levels


def _side_by_side(pictures: Sequence[np.ndarray], *, background: int) -> np.ndarray:
    """Return pictures in a row with a gap between them, each centred vertically."""
    height = max(len(picture) for picture in pictures)
    sheet = np.full((height, sum(picture.shape[1] + _GAP for picture in pictures) - _GAP), background, dtype=np.uint8)
    left = 0
    for picture in pictures:
        top = (height - len(picture)) // 2
        sheet[top : top + len(picture), left : left + picture.shape[1]] = picture
        left += picture.shape[1] + _GAP
    return sheet


def _shown_lengths(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """Return the pixels along each axis of a volume: a whole number per voxel if voxels are cubes, else proportional to mm."""
    extents = np.array(shape) * np.array(spacing, dtype=np.float64)
    pixel = max(min(spacing), max(extents) / _LARGEST)
    lengths = np.maximum(1, np.rint(extents / pixel)).astype(int)
    return tuple((lengths * max(1, -(-_SMALLEST // int(max(lengths))))).tolist())


def _resized(levels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a picture of `size` (height, width), interpolated linearly."""
    if levels.shape == size:
        return levels
    return np.asarray(Image.fromarray(np.ascontiguousarray(levels)).resize(size[::-1], Image.Resampling.BILINEAR))
