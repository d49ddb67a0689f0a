"""The report of an evaluation: `report.json` for machines, `report.html` for people."""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from jinja2 import Environment

from medsynth.config import EvaluateOptions
from medsynth.errors import ConfigError
from medsynth.evaluation import Evaluation, Pair
from medsynth.evaluation.fidelity import Sheet
from medsynth.files import PathLike, write_json, write_text
from medsynth.reporting.charts import Figure, distance_figure, downstream_figures, training_figures
from medsynth.reporting.pictures import contact_sheet, view_volumes
from medsynth.reporting.reader_page import write_reader_study
from medsynth.reporting.templates import open_templates
from medsynth.runs import Run

_MOST_CLASSES = 25  # whose figures a page shows: each takes 150 KiB
_WORST_FIRST = ("further", "cannot tell", "as close")


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where the report was written, and its content."""

    json: Path
    html: Path
    report: Mapping[str, Any]
    options: EvaluateOptions | None = None

    @property
    def gate_failed(self) -> bool:
        """Whether the privacy gate was run, and failed, or a synthetic scan is a real one, whatever was evaluated."""
        return self._verdict("privacy") == "fail" or bool(self.report["identical"])

    def summary(self) -> str:
        """Return the result in plain sentences, the notes, where the page is, and the next command."""
        folder, options = self.html.parent, self.options
        real, made = ("COHORT", "SET") if options is None else map(quote, (str(options.real), str(options.synthetic)))
        if self.gate_failed:
            following = "medsynth evaluate ... --drop_copies true, or a new model trained for fewer steps"
        elif self._verdict("privacy") == "pass" and self._verdict("downstream") in ("gain", None):
            following = (
                f"medsynth augment --real {real} --synthetic {made} --report {folder} --out augmented/cohort.csv"
            )
        else:
            following = f"medsynth card --synthetic {made} --report {folder}"
        notes = [f"note: {note}" for note in self.report["notes"]]
        headline = self.report["verdict"]["headline"]["sentence"]
        return "\n".join([headline, *notes, f"report: {self.html}", f"next: {following}"])

    def _verdict(self, part: str) -> str | None:
        found = self.report["verdict"][part]
        return None if found is None else found["verdict"]


def check_report_folder(out: PathLike) -> None:
    """Raise `ConfigError` unless a report can be written into the folder `out`; nothing is left behind."""
    out = Path(out)
    try:
        there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise _unwritable(out, error) from error


def write_report(
    out: PathLike,
    evaluation: Evaluation,
    *,
    run: Run | None = None,
    real_pictures: bool = True,
    options: EvaluateOptions | None = None,
) -> ReportFiles:
    """Write `report.json`, `report.html` and the reader study, if there is one, into the folder `out`, each whole or not at all.

    The page has a contact sheet of each class, the most suspicious pairs, and the training curves of `run`. Without
    `real_pictures` no real scan is shown. It is one file without requests, and without scripts unless it shows volumes in 3D.
    All files hold pictures or figures of real scans: they name no patient, but must stay within your institution. Raises
    `ConfigError` if they cannot be written.
    """
    out = Path(out)
    files = ReportFiles(json=out / "report.json", html=out / "report.html", report=evaluation.report, options=options)
    figures = [] if run is None else training_figures(run)
    page = render_page(evaluation, figures=figures, real_pictures=real_pictures)
    try:
        if evaluation.study is not None:
            write_reader_study(out, evaluation.study)
        write_json(files.json, evaluation.report)
        write_text(files.html, page)
    except OSError as error:
        raise _unwritable(out, error) from error
    return files


def render_page(evaluation: Evaluation, *, figures: Sequence[Figure] = (), real_pictures: bool = True) -> str:
    """Return `report.html` as text; `figures` make its section on the training."""
    template = report_templates().get_template("report.html.j2")
    return template.render(
        report=evaluation.report,
        sheets=evaluation.sheets,
        pairs=evaluation.pairs if real_pictures else (),
        real_pictures=real_pictures,
        figures=figures,
        view=view_volumes(evaluation.sheets, real_pictures=real_pictures),
        settings=_flattened(evaluation.report["settings"]),
        in_full=_in_full(evaluation.report),
    )


def _in_full(report: Mapping[str, Any]) -> set[str | None]:
    """Return the classes (None: all together) whose figures a page shows, where there are many: the furthest first."""
    verdicts = report["verdict"].get("fidelity") or ()
    order = sorted(verdicts, key=lambda one: (one["label"] is not None, _WORST_FIRST.index(one["verdict"])))
    return {one["label"] for one in order[:_MOST_CLASSES]}


def report_templates() -> Environment:
    """Return the templates of the report with the filters that they use."""
    return open_templates(
        aligned=_aligned,
        strip=_strip,
        duration=_duration,
        sheet_picture=_sheet_picture,
        pair_picture=_pair_picture,
        downstream_figures=downstream_figures,
        distance_figure=distance_figure,
    )


def _unwritable(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{out}: the report cannot be written there: {error.strerror or error}; try another --out")


def _sheet_picture(sheet: Sheet, real_pictures: bool) -> str:
    columns = [("real", sheet.real), ("nearest real", sheet.nearest), ("synthetic", sheet.synthetic)]
    if not real_pictures:
        columns = [("synthetic", half) for half in np.array_split(np.asarray(sheet.synthetic), 2) if len(half)]
    return _data_uri(contact_sheet(columns, spacing=sheet.spacing))


def _pair_picture(pair: Pair) -> str:
    """Return a synthetic scan beside the real one that it may copy, as a data URI."""
    columns = [("synthetic", pair.synthetic[None]), ("real", pair.real[None])]
    return _data_uri(contact_sheet(columns, spacing=pair.spacing))


def _aligned(values: Sequence[float | None]) -> list[str]:
    """Return numbers with the decimals, up to four, that give the largest three significant digits; a dash for None."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    decimals = min(4, max(0, 2 - math.floor(math.log10(largest)))) if largest else 2
    # Adding zero after rounding turns -0.0 into 0.0.
    rounded = [None if value is None else round(value, decimals) + 0.0 for value in values]
    return ["–" if value is None else f"{value:.{decimals}f}".replace("-", "−") for value in rounded]


def _strip(values: Sequence[float | None], width: float = 100.0) -> list[float] | None:
    """Return figures as positions on a strip from 0 to `width` that just holds them; None where one is unknown."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or min(known) == max(known):
        return None
    low, high = min(known), max(known)
    return [round((value - low) / (high - low) * width, 2) for value in known]


def _duration(seconds: float) -> str:
    """Return seconds as `12 s`, `3 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
