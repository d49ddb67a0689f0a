from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from medsynth.evaluation.downstream.gain import score_downstream
from medsynth.reporting.charts import downstream_figures
from medsynth.reporting.report import report_templates
from tests.evaluation.downstream.made_task import QUICK, QUICK_SETTINGS, real_cohort, synthetic_set

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict[str, Any]:
    """A report with every part of the section; one subgroup's name is markup."""
    real = real_cohort()
    sites = np.where(np.arange(len(real.labels)) % 2, HOSTILE, "b")
    real = replace(real, rows=tuple(SimpleNamespace(attributes={"site": site}) for site in sites))
    further = synthetic_set(real, "fresh", 5, count=40)
    made = synthetic_set(real, "fresh")
    options = replace(QUICK, subgroups="auto")
    result = score_downstream(
        real,
        made,
        further=further,
        options=options,
        settings=QUICK_SETTINGS,
        folder=tmp_path_factory.mktemp("scores"),
        progress=False,
    )
    return json.loads(json.dumps(result.as_dict()))


def render(part: dict[str, Any]) -> str:
    return report_templates().get_template("downstream.html.j2").render(report={"downstream": part})


def elements(page: str) -> ElementTree.Element:
    """The section as XML, which it is as well, so unclosed elements are found."""
    return ElementTree.fromstring(f"<body>{page}</body>")


def test_section_says_the_verdict_and_every_arm(report):
    page = render(report)
    text = "".join(elements(page).itertext())
    assert report["verdict"]["sentence"] in text
    for arm in report["tiers"][0]["arms"]:
        assert arm["name"] in text
        assert f"{arm['test']['auroc']['value']:.3f}" in text
    assert "ceiling: all real rare scans" in text
    assert HOSTILE not in page
    assert HOSTILE in text
    assert "None" not in text


def test_pictures_have_texts_and_lie_inside_their_frames(report):
    page = render(report)
    pictures = [each for each in elements(page).iter("svg") if each.get("class") != "chart"]
    assert len(pictures) == 3 + 1
    titles = [each.text for each in elements(page).iter("figcaption")]
    assert titles == ["All arms", "ROC curves", "Calibration"]
    for picture in pictures:
        assert len(picture.get("aria-label", "")) > 30
        width, height = (float(number) for number in picture.get("viewBox", "").split()[2:])
        for element in picture.iter():
            for name, value in element.attrib.items():
                if name in ("x", "x1", "x2", "cx"):
                    assert 0 <= float(value) <= width, (element.tag, name)
                if name in ("y", "y1", "y2", "cy"):
                    assert 0 <= float(value) <= height, (element.tag, name)


def test_the_forest_shows_the_adjusted_interval_of_the_baseline(report):
    first = next(each for each in elements(render(report)).iter("svg") if each.get("class") != "chart")
    found = report["tiers"][0]["differences"][0]["figures"]["auroc"]
    shown = f"AUROC {found['value']:+.3f}, interval {found['adjusted_low']:+.3f} to {found['adjusted_high']:+.3f}"
    assert shown.replace("-", "−") in first.get("aria-label", "")


def test_subgroups_that_are_not_there_are_left_out(report):
    part = report | {"subgroups": {"groups": [], "too_small": 0}}
    assert "Subgroup" in "".join(elements(render(report)).itertext())
    assert "Subgroup" not in "".join(elements(render(part)).itertext())


def test_what_cannot_be_told_is_a_dash(report):
    part = json.loads(json.dumps(report))
    for figure in part["tiers"][0]["differences"][0]["figures"].values():
        for name in figure:
            if name != "value":
                figure[name] = None
    for curve in part["tiers"][0]["curves"]:
        curve["roc"]["y"] = [None] * len(curve["roc"]["x"])
    root = elements(render(part))
    rows = [[cell.text for cell in row] for row in root.iter("tr")]
    value = part["tiers"][0]["differences"][0]["figures"]["auroc"]["value"]
    assert ["AUROC", f"{value:+.3f}", "–", "–"] in rows
    assert "None" not in "".join(root.itertext())
    # A forest without an interval would be an empty picture.
    assert len([each for each in root.iter("svg") if each.get("class") != "chart"]) == 2 + 1


def test_charts_show_the_chosen_arms(report):
    tier = report["tiers"][0]
    forest, roc, calibration = downstream_figures(report)
    of_arm = {arm["name"]: arm["test"] for arm in tier["arms"]}
    for name in (tier["baseline"], tier["synthetic"]):
        assert f"{name} {of_arm[name]['auroc']['value']:.3f}" in forest.alt
        assert f"{name} has a sensitivity of {of_arm[name]['sensitivity']['value']:.0%}" in roc.alt
        assert f"{name} {of_arm[name]['ece']['value']:.3f}" in calibration.alt
        assert name in forest.svg
    for curve in tier["curves"]:
        found = dict(zip(curve["roc"]["x"], curve["roc"]["y"], strict=True))
        assert found[1.0] == 1
        area = np.trapezoid(curve["roc"]["y"], curve["roc"]["x"])
        assert area == pytest.approx(of_arm[curve["arm"]]["auroc"]["value"], abs=0.03)
