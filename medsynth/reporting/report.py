"""The report of an evaluation: `report.json` for machines, `report.html` for people."""

from __future__ import annotations

import base64
import contextlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from medsynth.errors import ConfigError
from medsynth.evaluation import Pair
from medsynth.evaluation.fidelity import Sheet
from medsynth.files import write_json, write_text
from medsynth.reporting.charts import distance_figure, downstream_figures
from medsynth.reporting.figures import Figure
from medsynth.reporting.sheets import contact_sheet
from medsynth.reporting.templates import open_templates
from medsynth.reporting.volumes import view_volumes

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture for the report: `png` holds the file, `alt` says what it shows to who cannot see it.

    `planes` is whether it shows volumes, by three planes each, and needs room.
    """

    title: str
    png: bytes
    alt: str
    caption: str = ""
    planes: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where the report was written, and its content."""

    json: Path
    html: Path
    report: Mapping[str, Any]

    @property
    def gate_failed(self) -> bool:
        """Whether the privacy gate was judged, and failed."""
        verdict = self.report["verdict"]["privacy"]
        return verdict is not None and verdict["reading"] == "fail"

    def summary(self) -> str:
        """Return the verdicts in plain sentences with their figures, the notes, and where the page is."""
        lines = []
        verdicts, fidelity = self.report["verdict"], self.report["fidelity"]
        if fidelity is not None:
            for verdict, row in zip(verdicts["fidelity"], fidelity["rows"], strict=True):
                lines.append(f"{verdict['label'] or 'all classes'}: {verdict['sentence']}")
                lines += _figures_line(row["held_out"], fidelity["extractor"]["name"])
        for part in ("privacy", "downstream"):
            if verdicts[part] is not None:
                lines.append(f"{part}: {verdicts[part]['reading']}. {verdicts[part]['sentence']}")
        if self.report.get("reader_study"):
            lines.append(
                f"readers: {self.report['reader_study']['reading']}. {self.report['reader_study']['sentence']}"
            )
        notes = [f"note: {note}" for note in self.report["notes"]]
        return "\n".join([*lines, *notes, verdicts["headline"]["sentence"], f"report: {self.html}"])


def check_report_folder(out: Path | str) -> None:
    """Raise `ConfigError` unless a report can be written into the folder `out`; nothing is left behind.

    An evaluation takes long: ask before it.
    """
    out = Path(out)
    missing: list[Path] = []
    try:
        missing = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def write_report(
    out: Path | str,
    report: Mapping[str, Any],
    *,
    sheets: Sequence[Sheet] = (),
    pairs: Sequence[Pair] = (),
    figures: Sequence[Figure] = (),
    real_pictures: bool = True,
    title: str = "Evaluation of a synthetic set",
) -> ReportFiles:
    """Write `report.json` and `report.html` into the folder `out`, atomically, and return their paths.

    `report` is what `build_report` returned; `sheets` become one contact sheet a class, `pairs` stand in the section on privacy,
    `figures` make one on the training. Without `real_pictures` no real scan is shown.
    The page is one file without requests, and without scripts unless it shows volumes in 3D. Both files hold pictures or figures
    of real scans: they name no patient, but belong in the house. `ConfigError` if they cannot be written.
    """
    files = ReportFiles(json=Path(out) / "report.json", html=Path(out) / "report.html", report=report)
    page = render_page(report, sheets=sheets, pairs=pairs, figures=figures, real_pictures=real_pictures, title=title)
    try:
        write_json(files.json, report)
        write_text(files.html, page)
    except OSError as error:
        raise _unwritable(Path(out), error) from error
    return files


def render_page(
    report: Mapping[str, Any],
    *,
    sheets: Sequence[Sheet] = (),
    pairs: Sequence[Pair] = (),
    figures: Sequence[Figure] = (),
    real_pictures: bool = True,
    title: str,
) -> str:
    """Return `report.html` as text."""
    return (
        report_templates()
        .get_template(_TEMPLATE)
        .render(
            title=title,
            report=report,
            sheets=[_shown(sheet, real_pictures) for sheet in sheets],
            pairs=[_side_by_side(pair) for pair in pairs] if real_pictures else [],
            real_pictures=real_pictures,
            figures=figures,
            view=view_volumes(sheets, real_pictures=real_pictures),
            settings=_flattened(report["settings"]),
        )
    )


def report_templates() -> Environment:
    """Return the templates of the report with the filters that they use."""
    return open_templates(
        aligned=_aligned,
        strip=_strip,
        png=_data_uri,
        duration=_duration,
        downstream_figures=downstream_figures,
        distance_figure=distance_figure,
    )


def _unwritable(out: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{out}: need a folder to write the report into, got {error.strerror or error}; try another --out"
    )


def _figures_line(comparison: Mapping[str, Any] | None, extractor: str) -> list[str]:
    """Return KID and FD beside real against real as one line of text; nothing where there are none."""
    if comparison is None:
        return []
    parts = []
    for name, figure in ((f"KID-{extractor}", comparison["kid"]), (f"FD-{extractor}", comparison["frechet"])):
        shown = [figure["value"], figure["real_low"], figure["real_high"]]
        if None not in shown:
            value, low, high = _aligned(shown)
            parts.append(f"{name} {value} (real against real {low} to {high})")
    # Not every terminal can show a minus sign.
    return ["  " + ", ".join(parts).replace("−", "-")] if parts else []


def _shown(sheet: Sheet, real_pictures: bool) -> Picture:
    if not real_pictures:
        halves = np.array_split(np.asarray(sheet.synthetic), 2)
        png = contact_sheet([("synthetic", half) for half in halves if len(half)], spacing=sheet.spacing)
        return Picture(
            title=sheet.label, png=png, alt=f"Contact sheet of {len(sheet.synthetic)} synthetic scans of {sheet.label}."
        )
    png = contact_sheet(
        [("real", sheet.real), ("nearest real", sheet.nearest), ("synthetic", sheet.synthetic)], spacing=sheet.spacing
    )
    alt = (
        f"Contact sheet of {sheet.label}, {len(sheet.synthetic)} rows, three columns: random real scans; the real training "
        "scan nearest to the synthetic one; synthetic scans."
    )
    return Picture(title=sheet.label, png=png, alt=alt)


def _side_by_side(pair: Pair) -> Picture:
    copy = pair.copy
    found = f"flagged: {copy.reason}" if copy.reason else "not flagged"
    return Picture(
        title=copy.label,
        png=contact_sheet([("synthetic", pair.synthetic[None]), ("real", pair.real[None])], spacing=pair.spacing),
        planes=pair.real.ndim == 4,
        alt=f"Synthetic scan of {copy.label} on the left, the nearest real training scan on the right; {found}.",
        caption=f"{copy.label}, synthetic row {copy.synthetic_row}, real row {copy.donor_row}: distance {copy.pixels:.2f}, "
        f"next patient {copy.second:.2f}; {found}",
    )


def _aligned(values: Sequence[float | None]) -> list[str]:
    """Return numbers with the decimals, up to four, that give the largest three significant digits; a dash for None."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    decimals = min(4, max(0, 2 - math.floor(math.log10(largest)))) if largest else 2
    # Adding zero after rounding turns -0.0 into 0.0.
    return [
        "–" if value is None else f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−") for value in values
    ]


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
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
