from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import pyplot

from medsynth.reporting.figures import (
    Interval,
    Line,
    Steps,
    forest_figure,
    line_figure,
    loss_figure,
    memorisation_figure,
    steps_figure,
)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>$x$</script>"


def drawn(svg: str) -> ElementTree.Element:
    """The chart as XML, as a page has it."""
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def words(svg: str) -> list[str]:
    return ["".join(each.itertext()) for each in drawn(svg).iter(f"{SVG}text")]


def test_every_line_with_points_is_drawn_and_others_are_left_out():
    steps = np.arange(50.0)
    lines = [Line(name="a", x=steps, y=steps), Line(name="b", x=steps, y=np.full(50, np.nan))]
    found = line_figure("t", lines, x_label="x", y_label="y", alt="").svg.lower()
    assert "#0072b2" in found
    assert "#d55e00" not in found


def charts() -> list[str]:
    steps = np.arange(5.0)
    rows = [Interval(name=HOSTILE, value=0.5, low=0.4, high=0.6), Interval(name="b", value=None, low=None, high=None)]
    return [
        loss_figure(steps, steps + 1).svg,
        forest_figure("t", rows, x_label="x", alt=HOSTILE, reference=0.5).svg,
        steps_figure(
            "t", [0, 1, 2], [Steps(name=HOSTILE, shares=[0.5, 0.5])], x_label="x", y_label="y", alt="", limit=1
        ).svg,
    ]


@pytest.mark.parametrize("number", range(3))
def test_a_chart_is_an_element_that_changes_nothing_around_it(number):
    svg = charts()[number]
    root = drawn(svg)
    assert root.get("role") == "img"
    assert not list(root.iter(f"{SVG}style"))
    assert not list(root.iter(f"{SVG}script"))
    assert "currentColor" in svg
    assert "#010203" not in svg
    names = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(names) == len(set(names))
    used = re.findall(r'(?:url\(|href=")#([^)"]+)', svg)
    assert set(used) <= set(names)
    assert svg == charts()[number]


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.7), (0.02, 3.0), (1e-5, 1e3)])
def test_logarithmic_axes_are_labelled_with_plain_numbers(low, high):
    steps = np.arange(50.0)
    found = words(loss_figure(steps, np.geomspace(high, low, 50)).svg)
    ticks = [float(word) for word in found if re.fullmatch(r"[0-9.]+(e[+-]?[0-9]+)?", word)]
    assert not [word for word in found if "$" in word or "math" in word]
    # Ten steps of the other axis; the rest belong to this one.
    assert len([tick for tick in ticks if low / 2 <= tick <= high * 2 and tick not in (0, 10, 20, 30, 40, 50)]) >= 2


def test_names_in_two_charts_differ():
    first, second = (set(re.findall(r'id="([^"]+)"', svg)) for svg in charts()[:2])
    assert not first & second


def test_labels_stay_text():
    assert HOSTILE in words(charts()[1])
    assert HOSTILE in words(charts()[2])
    assert "b" not in words(charts()[1])


def test_alt_texts_say_how_the_curves_run():
    steps = np.array([0.0, 10, 20])
    gap = np.array([np.nan, 0.5, 0.25])
    assert "training from 1 to 0.1; validation from 0.5 to 0.25" in loss_figure(steps, np.array([1, 0.5, 0.1]), gap).alt
    curve = memorisation_figure(steps, gap, np.full(3, 0.7), sample_p5=np.full(3, np.nan), label="rare")
    assert curve.title == "Memorisation curve of rare"
    assert "samples, median from 0.5 to 0.25; held-out real, median from 0.7 to 0.7" in curve.alt
    assert "samples, 5th percentile not measured" in curve.alt


def test_figures_are_the_same_each_time_and_leave_pyplot_alone():
    steps = np.arange(5.0)
    assert loss_figure(steps, steps + 1) == loss_figure(steps, steps + 1)
    assert pyplot.get_fignums() == []
