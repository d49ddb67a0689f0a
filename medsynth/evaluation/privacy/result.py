"""What the privacy gate found, its verdict on each class and on the set, and their words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, fisher_exact

from medsynth.evaluation.privacy.membership import MembershipResult
from medsynth.evaluation.privacy.nearness import GateSettings, Lean

MEASURED = ("pixels", "stands_out", "patches_stand_out", "features_stand_out", "features")
_BINS = 30


class Share(NamedTuple):
    """`found` of `of`, with its 95 % interval (Clopper & Pearson 1934, Biometrika 26, 404)."""

    found: int
    of: int

    @classmethod
    def of_those(cls, found: np.ndarray) -> Share:
        """Return the share of those that are true."""
        return cls(int(found.sum()), len(found))

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
        return {"found": self.found, "of": self.of, "share": self.value, "low": low, "high": high}


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
    dropped: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivacyRow:
    """One class. `flagged` of the scans judged (`synthetic` less `dropped`), of these `unmistakable`, of these `identical`.

    `held_out_seen` of the held-out scans are train or val scans, each compared with all patients but its own;
    `held_out_alike` further ones are near-duplicates of training scans and count nowhere; `held_out_unmistakable` of the others
    look like unmistakable copies themselves. `power` is of copies of whole scans. `lean` is by pixels and by features.
    `figures` are distances of `nearness.Nearness` of the synthetic scans, of held-out real scans and of planted copies, with the
    threshold below which copies lie.
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
    held_out_alike: int
    held_out_unmistakable: int
    calibration_patients: int
    false_alarms: Share
    power: Share
    power_of_parts: Share
    power_by_kind: dict[str, Share]
    figures: dict[str, dict[str, Any]]
    lean: dict[str, Lean | None]
    histogram: dict[str, list[float]]

    @property
    def judged(self) -> int:
        """Synthetic scans that were not dropped."""
        return self.synthetic - self.dropped

    def failures(self, settings: GateSettings, classes: int) -> list[str]:
        """Return why the class fails, as clauses; `classes` share the significance of the set-level tests."""

        def are(count: int) -> str:
            return f"{_scans(count)} of {self.judged} {'is' if count == 1 else 'are'}"

        reasons = []
        if self.identical:
            reasons.append(f"{are(self.identical)} identical to a real scan")
        close = self.unmistakable - self.identical
        real = Share(self.held_out_unmistakable, self.held_out_scans)
        # What never happens to real scans needs no second case.
        if close and (real.found == 0 or self._more_often(close, real, settings)):
            what = "an unmistakable copy" if close == 1 else "unmistakable copies"
            reasons.append(f"{are(close)} {what} of real scans")
        permitted = settings.max_false_alarms
        if (
            self.judged
            and binomtest(self.flagged, self.judged, permitted, alternative="greater").pvalue < settings.significance
            and self._more_often(self.flagged, self.false_alarms, settings)
        ):
            reasons.append(
                f"{are(self.flagged)} flagged as copies, more than the {permitted:.0%} that false alarms explain"
            )
        significance = settings.significance / (len(self.lean) * classes)
        for by, lean in self.lean.items():
            if lean is not None and lean.excess >= settings.set_excess and lean.p_value < significance:
                reasons.append(
                    f"the nearest patient in {by} is a training patient for {lean.share:.0%} of the scans "
                    f"({lean.expected:.0%} expected without copying)"
                )
        return reasons

    def doubts(self, settings: GateSettings) -> list[str]:
        """Return why a class that does not fail could not be judged, as clauses."""
        reasons = []
        if self.judged == 0:
            reasons.append("no scan is left to judge")
        if self.held_out_patients < settings.min_patients:
            reasons.append(
                f"too few patients to judge: {self.held_out_patients} real patients to compare with, "
                f"{settings.min_patients} needed"
            )
        if self.false_alarms.interval[0] > settings.max_false_alarms:
            reasons.append(
                f"too many false alarms: {self.false_alarms.found} of {self.false_alarms.of} held-out real scans are flagged"
            )
        if not (self.power.of and self.power.interval[1] >= settings.min_power):
            reasons.append(f"too few planted copies found: {self.power.found} of {self.power.of}")
        if not ((found := self.power_of_parts).of and found.interval[1] >= settings.min_power_parts):
            reasons.append(f"too few planted copies of parts found: {found.found} of {found.of}")
        return reasons

    def verdict(self, settings: GateSettings, classes: int) -> dict[str, str]:
        """Return `label`, `verdict` (`pass`, `fail` or `cannot tell`) and `sentence`."""
        power = (
            f"the gate finds {self.power.found} of {self.power.of} planted copies and "
            f"{self.power_of_parts.found} of {self.power_of_parts.of} of parts, and flags "
            f"{self.false_alarms.found} of {self.false_alarms.of} held-out real scans"
        )
        if failures := self.failures(settings, classes):
            verdict, sentence = "fail", f"Fails: {'; '.join(failures)}."
        elif doubts := self.doubts(settings):
            reasons = "; ".join(doubts)
            verdict, sentence = "cannot tell", f"{reasons[0].upper()}{reasons[1:]} ({power})."
        else:
            verdict, sentence = "pass", f"No sign of copying: {self.flagged} of {self.judged} scans flagged; {power}."
        if self.held_out_alike:
            alike = f"{_scans(self.held_out_alike)} held out that nearly {'repeats' if self.held_out_alike == 1 else 'repeat'}"
            sentence += f" Left out: {alike} training scans; medsynth index lists the pairs."
        return {"label": self.label, "verdict": verdict, "sentence": sentence + _dropped(self.dropped)}

    def as_dict(self, settings: GateSettings, classes: int) -> dict[str, Any]:
        """Return plain values for `report.json`, NaN among them."""
        return {
            **vars(self),
            **self.verdict(settings, classes),
            "judged": self.judged,
            "false_alarms": self.false_alarms.as_dict(),
            "power": self.power.as_dict(),
            "power_of_parts": self.power_of_parts.as_dict(),
            "power_by_kind": {kind: share.as_dict() for kind, share in self.power_by_kind.items()},
            "lean": {by: None if lean is None else asdict(lean) for by, lean in self.lean.items()},
        }

    def _more_often(self, found: int, real: Share, settings: GateSettings) -> bool:
        """Whether the judged scans are found more often than real scans, by Fisher's exact test."""
        table = [[found, self.judged - found], [real.found, real.of - real.found]]
        return float(fisher_exact(table, alternative="greater").pvalue) < settings.significance


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivacyResult:
    """The gate: one row per class, the flagged scans, groups of equal synthetic rows, edits beside their donors, membership.

    `suspects` are the scans that look most like copies, flagged or not, the worst first; `real_pixels` is how many scans hold
    pixels of real ones, as inpainted scans and completed sequences do.
    """

    rows: tuple[PrivacyRow, ...]
    copies: tuple[Copy, ...]
    suspects: tuple[Copy, ...]
    repeated: tuple[tuple[int, ...], ...]
    edits: dict[str, float | int] | None
    membership: MembershipResult | None
    settings: GateSettings
    drop_copies: bool
    real_pixels: int

    def verdict(self) -> dict[str, str]:
        """Return `verdict` and `sentence` of the set: it fails with any class or real pixels, and passes if all classes do."""
        verdicts = [row.verdict(self.settings, len(self.rows)) for row in self.rows]
        failed, unjudged = (
            [each["label"] for each in verdicts if each["verdict"] == verdict] for verdict in ("fail", "cannot tell")
        )
        causes = [f"signs of copying in {_listed(failed)}"] if failed else []
        if self.real_pixels:
            contains = "contains" if self.real_pixels == 1 else "contain"
            causes.append(
                f"{_scans(self.real_pixels)} {contains} pixels of real scans, so the set must stay within your institution"
            )
        if self.membership is not None and self.membership.fails:
            causes.append("the model's loss reveals its training patients")
        dropped = _dropped(sum(row.dropped for row in self.rows))
        if causes:
            return {"verdict": "fail", "sentence": f"The privacy gate fails: {'; '.join(causes)}.{dropped}"}
        if unjudged:
            return {
                "verdict": "cannot tell",
                "sentence": f"The privacy gate could not judge {_listed(unjudged)}.{dropped}",
            }
        judged, flagged = (sum(getattr(row, name) for row in self.rows) for name in ("judged", "flagged"))
        sentence = (
            f"The privacy gate passes: {flagged} of {judged} scans flagged, no more than false alarms explain."
            f"{dropped} The gate looks for copies of scans and of large parts; it can miss small parts and mixtures of patients. "
            "This does not prove that nobody can be recognised."
        )
        return {"verdict": "pass", "sentence": sentence}

    def as_dict(self) -> dict[str, Any]:
        """Return everything for `report.json`: numbers, texts and None, NaN among them. No path, no patient."""
        return {
            **self.verdict(),
            "rows": [row.as_dict(self.settings, len(self.rows)) for row in self.rows],
            "copies": [copy._asdict() for copy in self.copies],
            "suspects": [copy._asdict() for copy in self.suspects],
            "dropped": sum(row.dropped for row in self.rows),
            "drop_copies": self.drop_copies,
            "repeated": [list(rows) for rows in self.repeated],
            "edits": self.edits,
            "membership": None if self.membership is None else self.membership.as_dict(),
            "real_pixels": self.real_pixels,
            "options": asdict(self.settings),
        }


def spread(values: np.ndarray) -> dict[str, float]:
    """Return the 5th percentile, median and 95th percentile of the values that are known; NaN of none."""
    known = values[np.isfinite(values)]
    low, median, high = np.quantile(known, [0.05, 0.5, 0.95]).tolist() if len(known) else [np.nan] * 3
    return {"low": low, "median": median, "high": high}


def count_distances(distances: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Return the share of each set of distances in 30 equal bins from 0 to the largest, and the `edges` of the bins."""
    known = {name: values[np.isfinite(values)] for name, values in distances.items()}
    top = max((float(values.max()) for values in known.values() if len(values)), default=1.0) or 1.0
    edges = np.linspace(0, top, _BINS + 1)
    counts = {name: (np.histogram(values, edges)[0] / max(1, len(values))).tolist() for name, values in known.items()}
    return {"edges": edges.tolist(), **counts}


def _scans(count: int) -> str:
    return f"{count} scan{'' if count == 1 else 's'}"


def _dropped(count: int) -> str:
    return f" {count} flagged scan{' was' if count == 1 else 's were'} set aside." if count else ""


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
