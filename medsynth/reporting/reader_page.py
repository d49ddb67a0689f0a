"""The page of a reader study: one offline file that shows the scans blinded, records answers, and exports them as CSV."""

from __future__ import annotations

import base64
from pathlib import Path

from medsynth.evaluation.reader import KEY_FILE, ReaderStudy
from medsynth.files import write_json, write_text
from medsynth.reporting.pictures import case_picture
from medsynth.reporting.templates import open_templates, page_script

PAGE_FILE = "reader_study.html"


def write_reader_study(out: Path, study: ReaderStudy) -> Path:
    """Write `reader_study.html` and its key into the folder `out`, each whole or not at all, and return the page.

    The page shows real scans without naming file or patient; both files must stay within your institution, and readers must not
    see the key.
    """
    page = render_reader_page(study)
    # The key first: a page without one is worth nothing.
    write_json(out / KEY_FILE, study.key.as_dict())
    write_text(out / PAGE_FILE, page)
    return out / PAGE_FILE


def render_reader_page(study: ReaderStudy) -> str:
    """Return the page as text, which makes no request; of the key it holds only the classes and the fingerprint."""
    script, digest = page_script("reader.js")
    pictures = [base64.b64encode(case_picture(scan)).decode("ascii") for scan in study.scans]
    key, planes = study.key, study.scans.ndim == 5
    content = {"study": key.study, "classes": list(key.classes), "planes": planes, "pictures": pictures}
    template = open_templates().get_template("reader.html.j2")
    return template.render(content=content, script=script, script_hash=digest, cases=len(pictures))
