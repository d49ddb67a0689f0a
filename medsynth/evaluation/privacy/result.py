"""What the privacy gate found, its reading of each class and of the set, and their words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.stats import binomtest, fisher_exact

from medsynth.config import PrivacyOptions
from medsynth.evaluation.privacy.datacopying import Lean
from medsynth.evaluation.privacy.membership import MembershipResult

Reading = Literal["pass", "fail", "cannot tell"]
MEASURED = ("pixels", "stands_out", "features_stand_out", "features")
_BINS = 30


class Share(NamedTuple):
    """`found` of `of`, with its 95 % interval (Clopper & Pearson 1934, Biometrika 26, 404)."""

    found: int
    of: int

    @property
    def value(self) -> float:
        """The share; NaN of none."""
        return self.found / self.of if self.of else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end; 0 and 1 of none."""
        if self.of == 0:
            return 0.0, 1.0
        interval = binomtest(self.found, self.of).proportion_ci(0.95, method="exact")
        return float(interval.low), float(interval.high)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        low, high = self.interval
        return {"found": self.found, "of": self.of, "share": _plain(self.value), "low": low, "high": high}


class Copy(NamedTuple):
    """A suspicious synthetic scan and its likely donor, by row numbers of the synthetic set and of the real cohort.

    Distances as of `nearness.Nearness`; `reason` is empty where it is not flagged; `dropped`: set aside on request.
    """

    synthetic_row: int
    donor_row: int
    label: str
    donor_label: str
    donor_split: str
    reason: str
    unmistakable: bool
    pixels: float
    second: float
    stands_out: float
    features_stand_out: float
    dropped: bool


@dataclass(frozen=True, kw_only=True)
class Spread:
    """5th percentile, median and 95th percentile; NaN of none."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        """Return those of the values that are known."""
        known = values[np.isfinite(values)]
        low, median, high = np.quantile(known, [0.05, 0.5, 0.95]) if len(known) else [np.nan] * 3
        return cls(low=float(low), median=float(median), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A distance of the synthetic scans, of held-out real scans and of planted copies; below `threshold` lie copies."""

    synthetic: Spread
    held_out: Spread
    planted: Spread
    threshold: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivacyRow:
    """One class. `flagged` of the scans judged (`synthetic` less `dropped`), of these `unmistakable`, of these `identical`.

    `held_out_seen` of the held-out scans are train or val scans, each compared with all patients but its own;
    `held_out_unmistakable` of them look like unmistakable copies themselves. `lean` is by pixels and by features.
    """

    label: str
    synthetic: int
    dropped: int
    flagged: int
    identical: int
    unmistakable: int
    held_out_patients: int
    held_out_scans: int
    held_out_seen: int
    held_out_unmistakable: int
    calibration_patients: int
    calibration_scans: int
    false_alarms: Share
    power: Share
    power_by_kind: dict[str, Share]
    figures: dict[str, Figure]
    lean: dict[str, Lean | None]
    histogram: dict[str, list[float]]

    @property
    def judged(self) -> int:
        """Synthetic scans that were not dropped."""
        return self.synthetic - self.dropped

    def failures(self, options: PrivacyOptions, classes: int) -> list[str]:
        """Return why the class fails, as clauses; `classes` share the significance of the set-level tests."""
        reasons = []
        if self.identical:
            reasons.append(
                f"{_counted(self.identical, 'scan')} of {self.judged} {_is(self.identical)} identical to a real scan"
            )
        close = self.unmistakable - self.identical
        real = Share(self.held_out_unmistakable, self.held_out_scans)
        # What never happens to real scans needs no second case.
        if close and (real.found == 0 or self._more_often(close, real, options)):
            what = "an unmistakable copy" if close == 1 else "unmistakable copies"
            reasons.append(f"{_counted(close, 'scan')} of {self.judged} {_is(close)} {what} of real scans")
        permitted = options.max_false_alarms
        if (
            self.judged
            and binomtest(self.flagged, self.judged, permitted, alternative="greater").pvalue < options.significance
            and self._more_often(self.flagged, self.false_alarms, options)
        ):
            reasons.append(
                f"{self.flagged} of {self.judged} are flagged as copies, more than the {permitted:.0%} that false alarms explain"
            )
        for by, lean in self.lean.items():
            if lean is None or lean.excess < options.set_excess:
                continue
            if lean.p_value < options.significance / (len(self.lean) * classes):
                reasons.append(
                    f"the nearest patient in {by} is a training patient for {lean.share:.0%} "
                    f"({lean.expected:.0%} without copying)"
                )
        return reasons

    def doubts(self, options: PrivacyOptions) -> list[str]:
        """Return why nothing can be told of a class that does not fail, as clauses."""
        reasons = []
        if self.judged == 0:
            reasons.append("no scan is left to judge")
        if self.held_out_patients < options.min_patients:
            reasons.append(
                f"there {_is(self.held_out_patients)} {_counted(self.held_out_patients, 'real patient')} to compare with, "
                f"at least {options.min_patients} are needed"
            )
        if self.false_alarms.interval[0] > options.max_false_alarms:
            reasons.append(
                f"{self.false_alarms.found} of {self.false_alarms.of} held-out real scans are flagged themselves"
            )
        if not self.power.value >= options.min_power:
            reasons.append(f"only {self.power.found} of {self.power.of} planted copies are found")
        return reasons

    def verdict(self, options: PrivacyOptions, classes: int) -> dict[str, str]:
        """Return `label`, `reading` and `sentence`."""
        reading: Reading = "pass"
        dropped = f" {_counted(self.dropped, 'scan')} {_was(self.dropped)} dropped before." if self.dropped else ""
        power = (
            f"the gate finds {self.power.found} of {self.power.of} planted copies and flags "
            f"{self.false_alarms.found} of {self.false_alarms.of} held-out real scans"
        )
        if failures := self.failures(options, classes):
            reading, sentence = "fail", f"Fails: {'; '.join(failures)}."
        elif doubts := self.doubts(options):
            reading, sentence = "cannot tell", f"Cannot tell: {'; '.join(doubts)} ({power})."
        else:
            sentence = f"No sign of copying: {self.flagged} of {self.judged} scans flagged; {power}."
        return {"label": self.label, "reading": reading, "sentence": sentence + dropped}

    def as_dict(self, options: PrivacyOptions, classes: int) -> dict[str, Any]:
        """Return plain values for `report.json`."""
        shares = {"false_alarms": self.false_alarms.as_dict(), "power": self.power.as_dict()}
        by_kind = {kind: share.as_dict() for kind, share in self.power_by_kind.items()}
        skipped = ("false_alarms", "power", "power_by_kind", "figures", "lean", "histogram")
        return {
            **self.verdict(options, classes),
            **{name: value for name, value in vars(self).items() if name not in skipped},
            "judged": self.judged,
            **shares,
            "power_by_kind": by_kind,
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "lean": {by: None if lean is None else asdict(lean) for by, lean in self.lean.items()},
            "histogram": self.histogram,
        }

    def _more_often(self, found: int, real: Share, options: PrivacyOptions) -> bool:
        """Whether the judged scans are found more often than real scans, by Fisher's exact test."""
        table = [[found, self.judged - found], [real.found, real.of - real.found]]
        return float(fisher_exact(table, alternative="greater").pvalue) < options.significance


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivacyResult:
    """The gate: one row a class, the flagged scans, groups of equal synthetic rows, edits beside their donors, membership.

    `suspects` are the scans that look most like copies, flagged or not, the worst first; `real_pixels` is how many scans say
    that they hold pixels of real ones, as inpainted scans and completed sequences do.
    """

    rows: tuple[PrivacyRow, ...]
    copies: tuple[Copy, ...]
    suspects: tuple[Copy, ...]
    repeated: tuple[tuple[int, ...], ...]
    edits: dict[str, float | int] | None
    membership: MembershipResult | None
    options: PrivacyOptions
    seed: int
    real_pixels: int = 0

    def verdict(self) -> dict[str, str]:
        """Return `reading` and `sentence` of the set: it fails with any class or real pixels, and passes if all classes do."""
        verdicts = [row.verdict(self.options, len(self.rows)) for row in self.rows]
        failed = [verdict["label"] for verdict in verdicts if verdict["reading"] == "fail"]
        untold = [verdict["label"] for verdict in verdicts if verdict["reading"] == "cannot tell"]
        member = self.membership is not None and self.membership.fails
        judged, dropped = (sum(getattr(row, name) for row in self.rows) for name in ("judged", "dropped"))
        tail = f" {_counted(dropped, 'flagged scan')} {_was(dropped)} dropped." if dropped else ""
        if failed or member or self.real_pixels:
            causes = [f"copying in {_listed(failed)}"] if failed else []
            if self.real_pixels:
                holds = "holds" if self.real_pixels == 1 else "hold"
                causes.append(
                    f"{_counted(self.real_pixels, 'scan')} {holds} pixels of real ones, so the set must stay in the house"
                )
            causes += ["the denoiser's loss tells training patients from new ones"] if member else []
            return {"reading": "fail", "sentence": f"The privacy gate fails: {'; '.join(causes)}.{tail}"}
        if untold:
            return {"reading": "cannot tell", "sentence": f"The privacy gate cannot tell for {_listed(untold)}.{tail}"}
        flagged = sum(row.flagged for row in self.rows)
        return {
            "reading": "pass",
            "sentence": f"The privacy gate passes: {flagged} of {judged} scans flagged, no more than false alarms explain."
            f"{tail} This is no proof that nobody can be recognised.",
        }

    def as_dict(self) -> dict[str, Any]:
        """Return everything for `report.json`: numbers, texts, and None for what cannot be told. No path, no patient."""
        content: dict[str, Any] = {
            **self.verdict(),
            "rows": [row.as_dict(self.options, len(self.rows)) for row in self.rows],
            "copies": [copy._asdict() for copy in self.copies],
            "suspects": [copy._asdict() for copy in self.suspects],
            "dropped": sum(row.dropped for row in self.rows),
            "repeated": [list(rows) for rows in self.repeated],
            "edits": self.edits,
            "membership": None if self.membership is None else self.membership.as_dict(),
            "real_pixels": self.real_pixels,
            "options": asdict(self.options),
        }
        cleaned: dict[str, Any] = _cleaned(content)
        return cleaned


def count_distances(distances: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Return the share of each set of distances in 30 equal bins from 0 to the largest, and the `edges` of the bins."""
    known = {name: values[np.isfinite(values)] for name, values in distances.items()}
    top = max((float(values.max()) for values in known.values() if len(values)), default=1.0) or 1.0
    edges = np.linspace(0, top, _BINS + 1)
    counts = {name: np.histogram(values, edges)[0] / max(1, len(values)) for name, values in known.items()}
    return {"edges": edges.tolist(), **{name: shares.tolist() for name, shares in counts.items()}}


def _cleaned(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _cleaned(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_cleaned(value) for value in content]
    return _plain(content)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
