"""The page of a reader study: one offline file that shows the scans blinded, takes answers, and exports them as CSV."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from medsynth.evaluation.reader import KEY_FILE, ReaderStudy
from medsynth.files import write_json, write_text
from medsynth.reporting.templates import open_templates
from medsynth.scans.picture import middle_planes, to_grey

PAGE_FILE = "reader_study.html"
_TEMPLATE, _SCRIPT = "reader.html.j2", "reader.js"
_GAP = 4


@dataclass(frozen=True, kw_only=True)
class StudyFiles:
    """The page that readers get, and the key that they must not have."""

    page: Path
    key: Path


def write_reader_study(out: Path | str, study: ReaderStudy) -> StudyFiles:
    """Write `reader_study.html` and `reader_study_key.json` into the folder `out`, each whole or not at all.

    The page shows real scans without naming file or patient; both files belong in the house.
    """
    written = StudyFiles(page=Path(out) / PAGE_FILE, key=Path(out) / KEY_FILE)
    page = render_reader_page(study)
    # The key first: a page without one is worth nothing.
    write_json(written.key, study.key.as_dict())
    write_text(written.page, page)
    return written


def render_reader_page(study: ReaderStudy) -> str:
    """Return the page as text: its pictures inlined, no request, and one script, which its policy names by hash.

    Of the key it holds nothing but classes and fingerprint.
    """
    script = files("medsynth.reporting").joinpath(_SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    pictures = [case_picture(scan) for scan in study.scans]
    content = {
        "study": study.key.study,
        "classes": list(study.key.classes),
        "planes": study.scans.ndim == 5,
        "pictures": [base64.b64encode(picture).decode("ascii") for picture in pictures],
    }
    # The script is ours and the same in every page; what comes from cohorts is in `content`, as escaped JSON.
    return (
        open_templates()
        .get_template(_TEMPLATE)
        .render(content=content, script=Markup(script), script_hash=digest, cases=len(pictures))
    )


def case_picture(scan: np.ndarray) -> bytes:
    """Return an 8-bit grey PNG of a scan `(C, *spatial)` in [-1, 1], without metadata.

    A volume is shown by its central axial, coronal and sagittal planes side by side, each head or front up and with the
    patient's right (or front) on the left side. Nothing here depends on where a scan comes from.
    """
    array = np.asarray(scan, dtype=np.float32)
    planes = [array]
    if array.ndim == 4:
        planes = list(middle_planes(array))
    pictures = [to_grey(plane) for plane in planes]
    height = max(len(picture) for picture in pictures)
    parts = []
    for picture in pictures:
        above = (height - len(picture)) // 2
        parts.append(np.pad(picture, ((above, height - len(picture) - above), (0, 0))))
        parts.append(np.zeros((height, _GAP), dtype=np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(parts[:-1], axis=1)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
