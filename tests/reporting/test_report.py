from __future__ import annotations

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from medsynth.config import FidelityOptions
from medsynth.evaluation.fidelity import FidelityResult, score_fidelity
from medsynth.evaluation.verdict import build_report
from medsynth.reporting.figures import loss_figure
from medsynth.reporting.report import _aligned, _strip, render_page, write_report
from tests.evaluation.made import Pixels, made_cohort

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def result() -> FidelityResult:
    counts = {"common": {"train": 40, "test": 40}, HOSTILE: {"train": 8, "test": 3}}
    made = made_cohort({"common": {"train": 20}, HOSTILE: {"train": 20}}, seed=1)
    options = FidelityOptions(repeats=20, ssim_pairs=20, sheet_scans=2)
    return score_fidelity(
        made_cohort(counts, seed=0), made, options=options, extractor=Pixels(), seed=0, progress=False
    )  # fmt: skip


@pytest.fixture(scope="module")
def html(result: FidelityResult) -> str:
    steps = np.arange(1.0, 9)
    return render_page(
        build_report(result), sheets=result.sheets, figures=[loss_figure(steps, 1 / steps)], title="Trial"
    )


def test_page_needs_nothing_from_outside_and_runs_nothing(html):
    page = Page(html)
    policies = [about["content"] for tag, about in page.elements if tag == "meta" and "http-equiv" in about]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "a", "form"}
    assert "url(" not in html
    assert not [about for _, about in page.elements if any(name.startswith("on") for name in about)]


def test_labels_cannot_become_markup(html):
    assert HOSTILE not in html
    assert HOSTILE in Page(html).text


def test_pictures_are_inlined_with_alt_texts(html, result):
    pictures = [about for tag, about in Page(html).elements if tag == "img"]
    assert len(pictures) == len(result.sheets) + 1
    for picture in pictures:
        assert len(picture["alt"]) > 40
        content = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"))
        assert content.startswith(b"\x89PNG")


def test_table_shows_every_figure_beside_real_against_real(html, result):
    text = re.sub(r"\s+", " ", Page(html).text)
    found = result.rows[0].held_out.frechet
    value, low, high, real, real_low, real_high = _aligned(dataclasses.astuple(found)[:6])
    assert f"FD-Pixels {value}{low} to {high} {real}{real_low} to {real_high}" in text
    assert "KID-Pixels" in text
    assert "Too few scans" in text
    assert "privacy was not evaluated" in text
    assert all(verdict["sentence"] in text for verdict in build_report(result)["verdict"]["fidelity"])


def test_both_files_are_written(tmp_path, result):
    report = build_report(result)
    files = write_report(tmp_path / "out", report, sheets=result.sheets)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]
    assert json.loads(files.json.read_text()) == report
    assert files.html.read_text().startswith("<!DOCTYPE html>")


def test_numbers_of_a_row_have_the_same_decimals():
    assert _aligned([0.01234, -0.5, None]) == ["0.012", "−0.500", "–"]
    assert _aligned([1234.5, 2.0]) == ["1234", "2"]
    assert _aligned([0.00001, -0.00002]) == ["0.0000", "0.0000"]
    assert _aligned([0.0, None]) == ["0.00", "–"]


def test_strip_spans_the_figures():
    assert _strip([1.0, 2.0, 5.0]) == [0, 25, 100]
    assert _strip([1.0, None]) is None
    assert _strip([2.0, 2.0]) is None
