"""The stored values of a DICOM file, one frame at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGExtended12Bit

from medsynth.errors import DataError
from medsynth.scans.dicom.codecs import INSTALL, TWELVE_BITS, check_codestream
from medsynth.scans.dicom.elements import quiet
from medsynth.scans.dicom.instance import Instance
from medsynth.scans.dicom.source import open_pixels
from medsynth.scans.limits import damage_as_data_error, one_line


def read_frames(instance: Instance, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield frames by their numbers, each `(rows, columns)` in physical units and of the instance's `dtype`.

    Values of MONOCHROME1 are mirrored within the range of stored bits where `inverted` says so; a rescale slope and
    intercept are applied in float64. Windows (VOI LUT) are not applied, and padding keeps its value.
    Raises `DataError` for pixels that cannot be decoded, or whose codestream is of another size than the header.
    """
    assert instance.problem is None, instance.problem
    with open_pixels(instance.source, count=instance.frames * instance.frame_bytes) as stream:
        for number in numbers:
            with damage_as_data_error(instance.name, "DICOM"):
                yield _physical(_decode(stream, instance, number), instance, number)


def _decode(stream: Any, instance: Instance, number: int) -> np.ndarray:
    source = instance.source
    assert source.pixels is not None
    options: dict[str, Any] = {
        "rows": instance.rows,
        "columns": instance.columns,
        "number_of_frames": instance.frames,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": instance.bits,
        "bits_stored": instance.bits_stored,
        "pixel_representation": int(instance.signed),
        "pixel_keyword": "PixelData",
        "pixel_vr": source.pixels.vr,
    }
    with quiet():
        decoder = get_decoder(source.syntax)
        if not source.syntax.is_encapsulated:
            return decoder.as_array(stream, index=number, raw=True, **options)[0]
        if source.pixels.tables:
            options["extended_offsets"] = source.pixels.tables
        frame = get_frame(
            stream, number, number_of_frames=instance.frames, extended_offsets=options.get("extended_offsets")
        )
        check_codestream(instance.name, source.syntax, frame, instance.rows, instance.columns, instance.bits)
        try:
            return decoder.as_array(stream, index=number, raw=True, **options)[0]
        except Exception as error:  # whatever the decoders of others raise
            reason = one_line(" ".join(str(error).split()))[:200]
            raise DataError(
                f"{instance.name}: need pixels that a decoder of {source.syntax.name} reads, got {reason}; "
                f"try {INSTALL}{', ' + TWELVE_BITS if source.syntax == JPEGExtended12Bit else ''}, or another copy"
            ) from error


def _physical(stored: np.ndarray, instance: Instance, number: int) -> np.ndarray:
    plane = instance.planes[number]
    if instance.inverted:
        stored = ~stored if instance.signed else stored.dtype.type((1 << instance.bits_stored) - 1) - stored
    if plane.slope == 1 and plane.intercept == 0:
        return stored.astype(instance.dtype, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are refused or counted by the reader
        return (stored.astype(np.float64) * plane.slope + plane.intercept).astype(instance.dtype)
