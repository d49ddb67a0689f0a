"""The report in a browser: legible at any width, light and dark, accessible, and silent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medsynth.evaluation import Evaluation, Pair, build_report
from medsynth.evaluation.downstream.gain import score_downstream
from medsynth.evaluation.fidelity import FidelitySettings, score_fidelity
from medsynth.evaluation.privacy import GateSettings
from medsynth.reporting.charts import training_figure
from medsynth.reporting.report import render_page
from tests.browser import start_browser
from tests.evaluation.downstream.made_task import QUICK, QUICK_SETTINGS, real_cohort, synthetic_set
from tests.evaluation.made import Pixels, made_cohort
from tests.evaluation.privacy.test_gate import cohort, judge, made_of, pictures

# Texts of charts that lie on one another, or are too small to be read: pairs and texts.
_LABELS = """
const shown = (box) => box.width > 0 && box.height > 0;
const found = [];
for (const chart of document.querySelectorAll('svg')) {
  const texts = [...chart.querySelectorAll('text')].map((each) => [each.textContent.trim(), each.getBoundingClientRect()])
    .filter(([text, box]) => text && shown(box));
  const frame = chart.getBoundingClientRect();
  texts.forEach(([text, box], place) => {
    if (box.height < 7) found.push('small: ' + text);
    if (box.left < frame.left - 2 || box.right > frame.right + 2) found.push('cut off: ' + text);
    for (const [other, at] of texts.slice(place + 1)) {
      const across = Math.min(box.right, at.right) - Math.max(box.left, at.left);
      const down = Math.min(box.bottom, at.bottom) - Math.max(box.top, at.top);
      if (across > 2 && down > 3) found.push(text + ' on ' + other);
    }
  });
}
return found;
"""
_EMPTY = """
return [...document.querySelectorAll('svg.chart')].filter((chart) => chart.getBoundingClientRect().width > 0)
  .filter((chart) => [...chart.querySelectorAll('path')].filter((path) => path.getBoundingClientRect().width > 1).length < 4)
  .map((chart) => chart.getAttribute('aria-label'));
"""
_BROKEN = "return [...document.images].filter((image) => !image.naturalWidth || !image.alt).length"
_UNFOLD = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report with every section that there is: copies, subgroups, a ceiling, training curves."""
    folder = tmp_path_factory.mktemp("report")
    counts = {"common": {"train": 40, "test": 40}, "rare": {"train": 8, "test": 3}}
    made = made_cohort({"common": {"train": 20}, "rare": {"train": 20}}, seed=1)
    table = score_fidelity(
        made_cohort(counts, seed=0), made, settings=FidelitySettings(repeats=20, ssim_pairs=20, sheet_scans=2),
        extractor=Pixels(), seed=0, progress=False,
    )  # fmt: skip
    labels = np.repeat([0, 1], 60)
    scans = np.concatenate([pictures(60, 0, 1), pictures(60, 1, 1)])
    splits = np.tile(["train", "test"], 60)
    real = cohort(scans, labels, splits, range(120))
    offered = np.concatenate([pictures(10, 0, 2), pictures(10, 1, 2)])
    offered[3], offered[15] = scans[2], scans[80]
    gate = judge(real, made_of(offered, np.repeat([0, 1], 10)), planted=GateSettings().planted // 8)
    pairs = [
        Pair(copy=each, synthetic=offered[each.synthetic_row], real=scans[each.donor_row]) for each in gate.suspects
    ]
    task = real_cohort()
    sites = tuple(SimpleNamespace(attributes={"site": "ab"[number % 2]}) for number in range(len(task.labels)))
    task = replace(task, rows=sites)
    further, fresh = synthetic_set(task, "fresh", 5, count=40), synthetic_set(task, "fresh")
    gain = score_downstream(
        task, fresh, further=further, options=replace(QUICK, subgroups="auto"), settings=QUICK_SETTINGS,
        folder=folder / "scores", progress=False,
    )  # fmt: skip
    steps = np.arange(100.0, 3000, 100)
    report = build_report(
        table, privacy=gate, downstream=gain, notes=["A note."],
        cost={"seconds": {"privacy": 12.0, "fidelity": 100.0}, "processor": "x86_64", "cores": 2, "threads": 2, "gpu": None,
              "training_seconds": 4000.0},
    )  # fmt: skip
    losses = {"training": (steps, 1 / steps), "validation": (steps, 1.1 / steps)}
    distances = {
        "samples, median": (steps, 0.5 - steps / 1e4),
        "held-out real, median": (steps, np.full(len(steps), 0.4)),
    }
    figures = [
        training_figure("Training loss", losses, y_label="loss", log_y=True),
        training_figure("Memorisation of rare", distances, y_label="distance to nearest training scan"),
    ]
    path = folder / "report.html"
    path.write_text(render_page(Evaluation(report=report, sheets=table.sheets, pairs=tuple(pairs)), figures=figures))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with start_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overlaps_is_cut_off_or_empty(page, browser, width, dark):
    browser.open(page, width=width, dark=dark)
    browser.driver.execute_script(_UNFOLD)
    assert not browser.overflows()
    assert browser.driver.execute_script(_LABELS) == []
    assert browser.driver.execute_script(_EMPTY) == []
    assert browser.driver.execute_script(_BROKEN) == 0
    assert len(browser.driver.find_elements("css selector", "svg.chart")) >= 7
    assert browser.console() == []
    assert browser.outside_requests() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_accessible(page, browser, width, dark):
    browser.open(page, width=width, dark=dark)
    browser.driver.execute_script(_UNFOLD)
    assert browser.findings() == []


def test_links_lead_to_the_sections_and_words_unfold(page, browser):
    browser.open(page)
    links = browser.driver.find_elements("css selector", "nav a")
    assert [link.text for link in links] == [
        "Privacy", "Downstream gain", "Fidelity", "Pictures", "Training", "Settings, versions, cost"
    ]  # fmt: skip
    links[2].click()
    heading = browser.driver.find_element("id", "fidelity")
    assert -5 < browser.driver.execute_script("return arguments[0].getBoundingClientRect().top", heading) < 100
    words = browser.driver.find_element("css selector", "details.glossary")
    assert "Held-out real scans, false alarms" not in words.text
    words.find_element("tag name", "summary").click()
    assert "Held-out real scans, false alarms" in words.text


def test_it_prints_black_on_white(page, browser):
    browser.open(page, dark=True)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    colours = browser.driver.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    assert colours == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert not browser.driver.find_element("css selector", "nav").is_displayed()
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
