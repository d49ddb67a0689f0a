"""The scan: pixels in physical units, their place in the patient, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from medsynth.scans.picture import encode_picture, stretch_contrast

# Rows run towards the patient's back (or feet) and columns towards the patient's left, as a radiologist looks at a picture;
# used for formats without geometry. The columns of the matrix are the array's axes, in RAS millimetres.
PICTURE_AFFINE = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float64)
# The same for volumes without geometry: slices run towards the head.
VOLUME_AFFINE = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scan:
    """One image or volume.

    `array` is `(channel, *spatial)` in physical units (HU for CT, stored values otherwise), 2D spatial axes are (row,
    column); `affine` is 4x4 and maps the index along the spatial axes (2D: third index 0) to RAS millimetres.
    `attributes` are known facts such as `diameter_mm`; `provenance` says how a synthetic scan was made.
    """

    array: np.ndarray
    affine: np.ndarray = field(default_factory=PICTURE_AFFINE.copy)
    label: str | None = None
    attributes: Mapping[str, float | str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Length of each spatial axis, in voxels."""
        return tuple(self.array.shape[1:])

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along each spatial axis, in millimetres."""
        return voxel_size(self.affine, self.array.ndim - 1)

    def _repr_png_(self) -> bytes:
        """Return the first channel as a grey PNG, which notebooks show: a picture, or the middle slice along the first axis.

        Black is the 1st percentile of what is shown, white the 99th.
        """
        shown = self.array[0] if self.array.ndim == 3 else self.array[0, self.array.shape[1] // 2]
        return encode_picture(stretch_contrast(shown))


@dataclass(frozen=True, kw_only=True)
class ScanHeader:
    """What is known of a scan before its pixels are read.

    `shape` is `(channel, *spatial)` and `dtype` the NumPy name, both as `read_scan` will return them; `spacing` is the voxel
    size along each spatial axis in millimetres. `modality` is that of a DICOM file (CT, MR, CR, ...), None if it names no
    modality of grey images.
    """

    shape: tuple[int, ...]
    dtype: str
    spacing: tuple[float, ...]
    modality: str | None = None


def voxel_size(affine: np.ndarray, rank: int) -> tuple[float, ...]:
    """Return the voxel size in millimetres along the first `rank` axes."""
    return tuple(float(length) for length in np.linalg.norm(affine[:3, :rank], axis=0))
