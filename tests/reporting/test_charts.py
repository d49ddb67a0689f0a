from __future__ import annotations

import re
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import pyplot

from medsynth.reporting.charts import (
    Line,
    distance_figure,
    downstream_figures,
    line_figure,
    training_figure,
    training_figures,
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
    found = line_figure("t", lines, ("x", "y"), alt="").svg.lower()
    assert "#0072b2" in found
    assert "#d55e00" not in found


def loss_figure(values: np.ndarray) -> str:
    curves = {"training": (np.arange(float(len(values))), values)}
    return training_figure("Training loss", curves, y_label="loss", log_y=True).svg


def gain() -> dict:
    """A downstream part with two arms, one of them without a figure, and no curves."""
    known, unknown = ({"value": value, "low": value, "high": value} for value in (0.5, None))
    arms = [
        {"name": name, "kind": "control", "chosen": None, "test": {"auroc": figure}}
        for name, figure in ((HOSTILE, known), ("b", unknown))
    ]
    return {"tiers": [{"arms": arms, "curves": []}], "task": {"rare_class": HOSTILE}, "specificity": 0.9}


def distances() -> dict:
    spreads = {name: {"median": 0.5} for name in ("synthetic", "held_out", "planted")}
    shares = {"synthetic": [0.5, 0.5], "held_out": [1.0, 0.0], "planted": [0.0, 0.0]}
    return {
        "label": HOSTILE,
        "figures": {"pixels": {**spreads, "threshold": 1.0}},
        "histogram": {"edges": [0, 1, 2], **shares},
    }


def charts() -> list[str]:
    forest = downstream_figures(gain())[0]
    return [loss_figure(np.arange(5.0) + 1), forest.svg, distance_figure(distances()).svg]


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
    found = words(loss_figure(np.geomspace(high, low, 50)))
    ticks = [float(word) for word in found if re.fullmatch(r"[0-9.]+(e[+-]?[0-9]+)?", word)]
    assert not [word for word in found if "$" in word or "math" in word]
    # Ten steps of the other axis; the rest belong to this one.
    assert len([tick for tick in ticks if low / 2 <= tick <= high * 2 and tick not in (0, 10, 20, 30, 40, 50)]) >= 2


def test_names_in_two_charts_differ():
    first, second = (set(re.findall(r'id="([^"]+)"', svg)) for svg in charts()[:2])
    assert not first & second


def test_labels_stay_text_and_what_has_no_figure_is_left_out():
    forest, distance = charts()[1:]
    assert HOSTILE in words(forest)
    assert "b" not in words(forest)
    assert "HOSTILE" not in distance_figure(distances()).svg
    assert words(distance)[-3:] == ["held-out real scans", "synthetic scans", "threshold"], "no planted copies"


def test_alt_texts_say_how_the_curves_run():
    steps = np.array([0.0, 10, 20])
    curves = {
        "training": (steps, np.array([1, 0.5, 0.1])),
        "validation": (steps, np.array([np.nan, 0.5, 0.25])),
        "other": (steps, np.full(3, np.nan)),
    }
    alt = training_figure("Training loss", curves, y_label="loss").alt
    assert alt == (
        "Line chart of the loss over the training steps: training from 1 to 0.1; validation from 0.5 to 0.25; other not measured."
    )
    assert "medians: held-out real scans 0.5; synthetic scans 0.5" in distance_figure(distances()).alt


class Metrics:
    """A run with only what its curves need."""

    spec = SimpleNamespace(classes=("common", "rare"))

    def __init__(self, *names: str) -> None:
        self.names = names

    def read_metrics(self) -> dict:
        return {name: (np.arange(3.0), np.array([1.0, 0.5, 0.25])) for name in self.names}


def test_a_run_gives_the_curves_that_it_has_logged():
    kinds = ("sample_median", "held_out_median", "sample_p5", "held_out_p5")
    assert training_figures(Metrics()) == []
    found = training_figures(Metrics("train_loss", *(f"memorisation/rare/{kind}" for kind in kinds)))
    assert [figure.title for figure in found] == ["Training loss", "Memorisation of rare"]
    assert "training from 1 to 0.25" in found[0].alt
    assert "samples, median from 1 to 0.25; held-out real, median from 1 to 0.25" in found[1].alt


def test_figures_are_the_same_each_time_and_leave_pyplot_alone():
    assert charts() == charts()
    assert pyplot.get_fignums() == []
