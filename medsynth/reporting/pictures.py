"""Scans on the pages of a report: contact sheets, the pictures of a reader study, and volumes to look through in 3D."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from medsynth.evaluation.fidelity import Sheet
from medsynth.reporting.templates import page_script
from medsynth.scans.picture import middle_planes, to_grey

MOST_VOLUMES = 10
_LEGIBLE = 128  # small scans are enlarged to at least this many pixels
_GAP = 4
_PAPER, _INK = 255, 40
_LARGEST = 96  # voxels along an axis of a volume on a page: more would make the page heavy
_VIEWER, _LICENSES, _SCRIPT = ("assets", "niivue.umd.js"), ("assets", "niivue.LICENSES.txt"), ("volumes.js",)


def contact_sheet(columns: Sequence[tuple[str, np.ndarray]], *, spacing: Sequence[float] | None = None) -> bytes:
    """Return a grey PNG with one column of scans under each heading.

    `columns` holds (heading, scans `(rows, C, *spatial)` in [-1, 1]); a column may be shorter than others, or empty. Small
    scans are enlarged by a whole factor with bicubic interpolation; volumes show the three planes through their middle, in
    proportion where `spacing`, the voxel size along each spatial axis, is known.
    """
    pictures = [(heading, [to_grey(scan, spacing=spacing) for scan in scans]) for heading, scans in columns]
    shapes = {picture.shape for _, some in pictures for picture in some}
    if len(shapes) != 1:
        raise ValueError(f"need scans of one shape on a contact sheet, got {sorted(shapes)}")
    height, width = shapes.pop()
    scale = max(1, -(-_LEGIBLE // max(height, width)))
    height, width = height * scale, width * scale
    rows = max(len(some) for _, some in pictures)
    across = len(columns) * (width + _GAP) - _GAP
    # Pages show the sheet at any width, so the headings keep a fixed proportion to it.
    volumes = any(np.ndim(scans) == 5 for _, scans in columns)  # whose sheets are wide and stand alone in a row
    text = max(12, across // (40 if volumes else 22))
    top = 2 * text
    sheet = Image.new("L", (across, top + rows * (height + _GAP) - _GAP), color=_PAPER)
    drawing, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=text)
    for index, (heading, some) in enumerate(pictures):
        left = index * (width + _GAP)
        drawing.text((left + width / 2, top / 2), heading, fill=_INK, font=font, anchor="mm")
        for row, levels in enumerate(some):
            picture = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(picture, (left, top + row * (height + _GAP)))
    return _png(sheet)


def case_picture(scan: np.ndarray) -> bytes:
    """Return an 8-bit grey PNG of a scan `(C, *spatial)` in [-1, 1], without metadata, for a reader study.

    A volume is shown by its central axial, coronal and sagittal planes side by side, front or head up, the patient's right (or
    front) on the left. Nothing here depends on where a scan comes from.
    """
    array = np.asarray(scan, dtype=np.float32)
    pictures = [to_grey(plane) for plane in (middle_planes(array) if array.ndim == 4 else [array])]
    height = max(len(picture) for picture in pictures)
    parts = []
    for picture in pictures:
        above = (height - len(picture)) // 2
        parts.append(np.pad(picture, ((above, height - len(picture) - above), (0, _GAP))))
    return _png(Image.fromarray(np.concatenate(parts, axis=1)[:, :-_GAP]))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def view_volumes(sheets: Sequence[Sheet], *, real_pictures: bool) -> dict[str, Any] | None:
    """Return what a page needs to show up to ten volumes, taken from the classes in turn; None if the sheets hold no volumes.

    These are the `content` for its script, the `scripts`, their `hashes` for the policy, and the `licenses` of the viewer. With
    `real_pictures` each synthetic volume is followed by a random real one of its class, where there is one.
    """
    chosen: list[tuple[str, str, Sheet, np.ndarray]] = []
    volumes = [sheet for sheet in sheets if np.ndim(sheet.synthetic) == 5]
    for row in range(max((len(sheet.synthetic) for sheet in volumes), default=0)):
        for sheet in volumes:
            for kind, scans in (("SYNTHETIC", sheet.synthetic), ("REAL", sheet.real if real_pictures else ())):
                if row < len(scans):
                    chosen.append((kind, f"{kind}: {sheet.label}, number {row + 1}", sheet, scans[row]))
    if not chosen:
        return None
    low, high = _ends(chosen[0][2])
    found = []
    for kind, name, sheet, scan in chosen[:MOST_VOLUMES]:
        image = page_volume(scan, sheet)
        image.header["descrip"] = "SYNTHETIC, not for diagnosis" if kind == "SYNTHETIC" else "real scan of a patient"
        packed = base64.b64encode(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
        found.append({"kind": kind, "name": name, "nifti": packed.decode("ascii")})
    scripts, hashes = zip(*(page_script(*path) for path in (_VIEWER, _SCRIPT)), strict=True)
    licenses = files("medsynth.reporting").joinpath(*_LICENSES).read_text(encoding="utf-8")
    content = {"low": low, "high": high, "volumes": found}
    return {"content": content, "scripts": scripts, "hashes": hashes, "licenses": licenses}


def page_volume(scan: np.ndarray, sheet: Sheet) -> nibabel.Nifti1Image:
    """Return the first channel of a volume `(C, *spatial)` in [-1, 1] as a NIfTI image of uint8, axes to right, front and head.

    The header scales it to the intensities of the sheet. An axis of more than 96 voxels is averaged to 96.
    """
    array = np.nan_to_num(np.clip(np.asarray(scan[0], dtype=np.float32), -1, 1))
    extents = np.array(array.shape) * np.array(sheet.spacing or (1.0, 1.0, 1.0))
    shape = tuple(min(length, _LARGEST) for length in array.shape)
    if shape != array.shape:
        tensor = torch.from_numpy(array)[None, None]
        array = torch.nn.functional.interpolate(tensor, size=shape, mode="area")[0, 0].numpy()
    # The grid's axes run to the head, the back and the left.
    levels = np.rint((array + 1) * 127.5).astype(np.uint8).transpose(2, 1, 0)[::-1, ::-1]
    lengths = (extents / shape)[::-1]
    affine = np.diag([*lengths, 1.0])
    affine[:3, 3] = -lengths * (np.array(levels.shape) - 1) / 2
    image = nibabel.Nifti1Image(np.ascontiguousarray(levels), affine)
    low, high = _ends(sheet)
    image.header.set_slope_inter((high - low) / 255, low)
    image.header["cal_min"], image.header["cal_max"] = low, high
    return image


def _ends(sheet: Sheet) -> tuple[float, float]:
    """Return the intensities of black and white; model values where the range is empty."""
    low, high = sheet.ends
    return (low, high) if low < high else (-1.0, 1.0)
