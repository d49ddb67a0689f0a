"""Contact sheets: scans side by side under headings, enlarged so that they can be judged by eye."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medsynth.scans.picture import to_grey

_LEGIBLE = 128  # pixels that a picture is enlarged to, at least
_GAP = 4
_PAPER, _INK = 255, 40


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
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
