from __future__ import annotations

import io

import numpy as np
from matplotlib import pyplot
from PIL import Image

from medsynth.reporting.figures import Line, line_figure, loss_figure, memorisation_figure


def colours(png: bytes) -> set[tuple[int, ...]]:
    return set(map(tuple, np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3).tolist()))


def test_every_line_with_points_is_drawn_and_others_are_left_out():
    steps = np.arange(50.0)
    lines = [Line(name="a", x=steps, y=steps), Line(name="b", x=steps, y=np.full(50, np.nan))]
    found = colours(line_figure("t", lines, x_label="x", y_label="y", alt="").png)
    assert (0x00, 0x72, 0xB2) in found
    assert (0xD5, 0x5E, 0x00) not in found


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
    assert loss_figure(steps, steps + 1).png == loss_figure(steps, steps + 1).png
    assert pyplot.get_fignums() == []
