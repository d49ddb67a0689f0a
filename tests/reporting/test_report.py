from __future__ import annotations

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from medsynth.errors import ConfigError
from medsynth.evaluation import Evaluation
from medsynth.evaluation.fidelity import FidelityResult, FidelitySettings, score_fidelity
from medsynth.evaluation.verdict import build_report, headline
from medsynth.reporting.charts import training_figure
from medsynth.reporting.pictures import contact_sheet
from medsynth.reporting.report import (
    ReportFiles,
    _aligned,
    _duration,
    _strip,
    check_report_folder,
    render_page,
    write_report,
)
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
    settings = FidelitySettings(repeats=20, ssim_pairs=20, sheet_scans=2)
    return score_fidelity(made_cohort(counts, seed=0), made, settings=settings, extractor=Pixels(), progress=False)


def page_of(report: dict, sheets: tuple = (), *, real_pictures: bool = True) -> str:
    return render_page(Evaluation(report=report, sheets=sheets), real_pictures=real_pictures)


@pytest.fixture(scope="module")
def html(result: FidelityResult) -> str:
    steps = np.arange(1.0, 9)
    figure = training_figure("Training loss", {"training": (steps, 1 / steps)}, y_label="loss")
    return render_page(Evaluation(report=build_report(result), sheets=result.sheets), figures=[figure])


def test_page_needs_nothing_from_outside_and_runs_nothing(html):
    page = Page(html)
    policies = [about["content"] for tag, about in page.elements if tag == "meta" and "http-equiv" in about]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "form"}
    names = {about["id"] for _, about in page.elements if "id" in about}
    for _, about in page.elements:
        assert (about.get("href") or about.get("xlink:href") or "#")[0] == "#"
    assert {about["href"].removeprefix("#") for tag, about in page.elements if tag == "a"} <= names
    assert not re.search(r"url\((?!#)", html)
    assert not [about for _, about in page.elements if any(name.startswith("on") for name in about)]


def test_labels_cannot_become_markup(html):
    assert HOSTILE not in html
    assert HOSTILE in Page(html).text


def test_pictures_are_inlined_with_alt_texts(html, result):
    pictures = [about for tag, about in Page(html).elements if tag == "img"]
    assert len(pictures) == len(result.sheets)
    assert [
        about
        for tag, about in Page(html).elements
        if tag == "svg" and "Line chart of the loss" in about.get("aria-label", "")
    ]
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
    assert "Not evaluated: privacy, downstream gain" in text
    assert all(verdict["sentence"] in text for verdict in build_report(result)["verdict"]["fidelity"])


def test_the_other_comparisons_are_folded_away(html, result):
    page = Page(html)
    assert [tag for tag, _ in page.elements].count("details") == len(result.rows) + 1
    assert "open" not in {name for tag, about in page.elements if tag == "details" for name in about}
    tables = [about for tag, about in page.elements if tag == "table"]
    assert len(tables) == sum(
        found is not None for row in result.rows for found in (row.held_out, row.seen, row.real_seen)
    )


def test_what_was_left_out_and_what_is_not_comparable_is_said(html, result):
    assert "Left out: scans of 12 x 12 are too small for two scales of MS-SSIM." in Page(html).text
    report = build_report(result)
    row = report["fidelity"]["rows"][0]
    named = dict(row, held_out=dict(row["held_out"], fid=row["held_out"]["frechet"]))
    for comparable in (False, True):
        named["held_out"]["fid_comparable"] = comparable
        page = page_of({**report, "fidelity": {**report["fidelity"], "rows": [named]}})
        assert ("not comparable</span>" in page) is not comparable
        assert '<th scope="row">FID</th>' in page


def test_parts_that_were_not_evaluated_are_left_out_of_the_page(result):
    whole = build_report(result)
    sentence = "A sentence of its own."
    for part, said, badge in (
        ("privacy", "pass", "good"),
        ("privacy", "cannot tell", "plain"),
        ("downstream", "harm", "bad"),
        ("downstream", "no gain", "plain"),
    ):
        verdict = build_report()["verdict"] | {part: {"verdict": said, "sentence": sentence}}
        page = page_of({**whole, "fidelity": None, "verdict": verdict})
        assert f'<span class="badge {badge}">{said}</span> {sentence}' in page
        assert re.search("Not evaluated: .*fidelity", page)
        assert ">Fidelity</h2>" not in page
    assert not re.search("Not evaluated: .*fidelity", page_of(whole))


def test_both_files_are_written(tmp_path, result):
    report = build_report(result)
    files = write_report(tmp_path / "out", Evaluation(report=report, sheets=result.sheets))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]
    assert json.loads(files.json.read_text()) == report
    assert files.html.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("privacy", "downstream", "following"),
    [
        ("fail", "gain", "medsynth evaluate ... --drop_copies true"),
        ("pass", "gain", "medsynth augment --real COHORT --synthetic SET --report {out} --out augmented/cohort.csv"),
        ("pass", "no gain", "medsynth card --synthetic SET --report {out}"),
        ("cannot tell", None, "medsynth card --synthetic SET --report {out}"),
    ],
)
def test_the_summary_is_the_headline_the_notes_and_the_next_command(tmp_path, privacy, downstream, following):
    report = build_report(notes=["Something else."])
    parts = {"privacy": privacy, "downstream": downstream}
    report["verdict"] |= {part: said and {"verdict": said, "sentence": "."} for part, said in parts.items()}
    files = ReportFiles(json=tmp_path / "report.json", html=tmp_path / "report.html", report=report)
    assert files.gate_failed is (privacy == "fail")
    *lines, command = files.summary().splitlines()
    assert lines == [report["verdict"]["headline"]["sentence"], "note: Something else.", f"report: {files.html}"]
    assert command.startswith(f"next: {following.format(out=tmp_path)}")


def test_notes_are_on_the_page_and_cannot_become_markup(result):
    page = page_of(build_report(result, notes=["Plain note.", HOSTILE]))
    assert "Plain note." in page
    assert HOSTILE not in page
    assert ">Notes<" not in page_of(build_report(result))


@pytest.mark.parametrize("below", ["file", "file/deeper/out", "n" * 300])
def test_a_folder_that_cannot_be_written_is_refused_before_and_after(tmp_path, result, below):
    (tmp_path / "file").write_text("in the way")
    for attempt in (check_report_folder, lambda out: write_report(out, Evaluation(report=build_report(result)))):
        with pytest.raises(ConfigError, match=r"the report cannot be written there: .+; try another --out"):
            attempt(tmp_path / below)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    check_report_folder(tmp_path / "new" / "deeper")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "report.json").write_text("{}")
    check_report_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_numbers_of_a_row_have_the_same_decimals():
    assert _aligned([0.01234, -0.5, None]) == ["0.012", "−0.500", "–"]
    assert _aligned([1234.5, 2.0]) == ["1234", "2"]
    assert _aligned([0.00001, -0.00002]) == ["0.0000", "0.0000"]
    assert _aligned([0.0, None]) == ["0.00", "–"]


def test_strip_spans_the_figures():
    assert _strip([1.0, 2.0, 5.0]) == [0, 25, 100]
    assert _strip([1.0, None]) is None
    assert _strip([2.0, 2.0]) is None


def test_verdicts_of_too_few_scans_are_not_coloured(result):
    report = build_report(result)
    few, enough = (
        [row for row in report["fidelity"]["rows"] if row["held_out"]["too_few"] is which] for which in (True, False)
    )
    for rows, coloured in ((few, False), (enough, True)):
        assert rows
        alone = {
            **report,
            "fidelity": {**report["fidelity"], "rows": [{**row, "seen": None, "real_seen": None} for row in rows]},
        }
        badges = [
            about["class"]
            for tag, about in Page(page_of(alone)).elements
            if tag == "span" and about.get("class", "").startswith("badge")
        ]
        assert badges
        assert ("badge plain" not in badges) if coloured else (set(badges) == {"badge plain"})


def test_real_scans_may_be_left_out_of_the_pictures(result):
    page = page_of(build_report(result), result.sheets, real_pictures=False)
    pictures = [about for tag, about in Page(page).elements if tag == "img"]
    assert [picture["alt"].split(" scans of ")[0] for picture in pictures] == ["Contact sheet of 2 synthetic"] * 2
    sheet = result.sheets[0]
    alone = contact_sheet([("synthetic", sheet.synthetic[:1]), ("synthetic", sheet.synthetic[1:])])
    assert base64.b64decode(pictures[0]["src"].removeprefix("data:image/png;base64,")) == alone
    assert "All scans shown on this page are synthetic" in page
    assert "shows real and synthetic" not in page


@pytest.mark.parametrize(
    ("privacy", "downstream", "tone", "says"),
    [
        ("fail", "gain", "bad", "Do not use this set"),
        ("pass", "harm", "bad", "Do not train with this set"),
        ("pass", "gain", "good", "use it for training within your institution"),
        ("cannot tell", "gain", "plain", "do not hand it over"),
        (None, "gain", "plain", "was not checked: do not hand it over"),
        ("pass", "no gain", "plain", "There is no reason to use this set"),
        ("pass", "cannot tell", "plain", "could not be judged; there is no sign that it copies patients"),
        ("pass", None, "plain", "the synthetic scans differ from real ones more"),
    ],
)
def test_the_headline_is_one_plain_sentence(privacy, downstream, tone, says):
    verdict = {
        "privacy": privacy and {"verdict": privacy},
        "downstream": downstream and {"verdict": downstream},
        "fidelity": [{"label": "a", "verdict": "further"}, {"label": "b", "verdict": "as close"}],
    }
    found = headline(verdict, "viral")
    assert found["tone"] == tone
    assert says in found["sentence"]
    assert found["sentence"].count(".") == 1


def test_durations_are_said_in_the_unit_that_fits():
    assert [_duration(seconds) for seconds in (0.4, 89, 90, 600, 9000)] == ["0 s", "89 s", "2 min", "10 min", "2.5 h"]
