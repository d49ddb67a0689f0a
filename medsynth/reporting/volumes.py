"""The volumes of a report to turn and leaf through in the browser: what its page holds for that."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import nibabel
import numpy as np
import torch
from markupsafe import Markup

from medsynth.evaluation.fidelity import Sheet

MOST_VOLUMES = 10
_LARGEST = 96  # voxels along an axis: more would make the page heavy
_ASSETS, _VIEWER, _LICENSES, _SCRIPT = "assets", "niivue.umd.js", "niivue.LICENSES.txt", "volumes.js"


@dataclass(frozen=True, kw_only=True)
class VolumeView:
    """What the page needs: `content` for its script, the scripts themselves, their hashes for the page's policy, the licences."""

    content: dict[str, Any]
    scripts: tuple[Markup, ...]
    hashes: tuple[str, ...]
    licenses: str

    @property
    def real(self) -> bool:
        """Whether volumes of patients are among them."""
        return any(volume["kind"] == "REAL" for volume in self.content["volumes"])


def view_volumes(sheets: Sequence[Sheet], *, real_pictures: bool) -> VolumeView | None:
    """Return the view of up to ten volumes, taken from the classes in turn; None where the sheets hold no volumes.

    With `real_pictures` each synthetic volume is followed by a random real one of its class, where there is one.
    """
    chosen: list[tuple[str, str, Sheet, np.ndarray]] = []
    volumes = [sheet for sheet in sheets if np.ndim(sheet.synthetic) == 5]
    for row in range(max((len(sheet.synthetic) for sheet in volumes), default=0)):
        for sheet in volumes:
            for kind, scans in (("SYNTHETIC", sheet.synthetic), ("REAL", sheet.real if real_pictures else ())):
                if row < len(scans) and len(chosen) < MOST_VOLUMES:
                    chosen.append((kind, f"{sheet.label}, number {row + 1}", sheet, scans[row]))
    if not chosen:
        return None
    low, high = _ends(chosen[0][2])
    content = {
        "low": low,
        "high": high,
        "volumes": [
            {"kind": kind, "name": f"{kind}: {name}", "nifti": _nifti(scan, sheet, kind)}
            for kind, name, sheet, scan in chosen
        ],
    }
    folder = files("medsynth.reporting")
    texts = [
        folder.joinpath(_ASSETS, _VIEWER).read_text(encoding="utf-8"),
        folder.joinpath(_SCRIPT).read_text(encoding="utf-8"),
    ]
    return VolumeView(
        content=content,
        # Both are the same in every page; what comes from cohorts is in `content`, as escaped JSON.
        scripts=tuple(Markup(text) for text in texts),
        hashes=tuple(base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") for text in texts),
        licenses=folder.joinpath(_ASSETS, _LICENSES).read_text(encoding="utf-8"),
    )


def page_volume(scan: np.ndarray, sheet: Sheet) -> nibabel.Nifti1Image:
    """Return the first channel of a volume `(C, *spatial)` in [-1, 1] as a NIfTI image of uint8, axes to right, front and head.

    The header scales it to the intensities of the sheet. An axis of more than 96 voxels is averaged to 96.
    """
    array = np.nan_to_num(np.clip(np.asarray(scan[0], dtype=np.float32), -1, 1))
    extents = np.array(array.shape) * np.array(sheet.spacing or (1.0, 1.0, 1.0))
    shape = tuple(min(length, _LARGEST) for length in array.shape)
    if shape != array.shape:
        array = torch.nn.functional.interpolate(torch.from_numpy(array)[None, None], size=shape, mode="area")[
            0, 0
        ].numpy()
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


def _nifti(scan: np.ndarray, sheet: Sheet, kind: str) -> str:
    """Return a volume as base64 of a gzipped NIfTI file, which says in its header what it is."""
    image = page_volume(scan, sheet)
    image.header["descrip"] = "SYNTHETIC, not for diagnosis" if kind == "SYNTHETIC" else "real scan of a patient"
    return base64.b64encode(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)).decode("ascii")


def _ends(sheet: Sheet) -> tuple[float, float]:
    """Return what black and white stand for; model values where the range is empty."""
    low, high = sheet.ends
    return (low, high) if low < high else (-1.0, 1.0)
