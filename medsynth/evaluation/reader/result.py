"""What a reader study found, for `report.json`, with plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from medsynth.errors import DataError
from medsynth.evaluation.reader.key import StudyKey

Reading = Literal["told apart", "not told apart", "cannot tell"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """`right` of `of` answers, as a share with its 95 % interval; all three are None without answers.

    The interval of one reader is exact (Clopper & Pearson 1934), that over readers a two-way bootstrap. `p_value` is two-sided,
    of the hypothesis that the truth is one half; None where a guess is not right half of the time.
    """

    right: int
    of: int
    value: float | None
    low: float | None
    high: float | None
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How often answers are right: real or synthetic at all, of the synthetic and of the real scans; and the class, on either."""

    accuracy: Share
    sensitivity: Share
    specificity: Share
    class_on_real: Share
    class_on_synthetic: Share


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One reader, by pseudonym.

    `smallest_found` is the smallest true accuracy that so many answers would tell from one half with 80 % power, None where none
    would. `confidence` is the mean over right and over wrong answers, `seconds` the median a case; None where none was given.
    """

    name: str
    figures: Figures
    smallest_found: float | None
    confidence_right: float | None
    confidence_wrong: float | None
    seconds: float | None

    @property
    def reading(self) -> Reading:
        return reading_of(self.figures.accuracy, cannot_tell=self.smallest_found is None)

    def sentence(self) -> str:
        """Return what the reader could tell."""
        return _counted(self.name, self.figures.accuracy)

    def power(self) -> str:
        """Return what so many answers of a reader can show."""
        answers = self.figures.accuracy.of
        if self.smallest_found is None:
            return f"{answers} answers are too few to tell any reader from guessing."
        return (
            f"{answers} answers of one reader find a true accuracy of {math.ceil(100 * self.smallest_found)} % or more four "
            "times out of five; a lower one may go unseen."
        )


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Cohen's kappa of two readers on the cases that both answered, for real or synthetic and for the class.

    None where it is not defined: no common cases, or both always said the same.
    """

    first: str
    second: str
    cases: int
    answer: float | None
    label: float | None


@dataclass(frozen=True, kw_only=True)
class ReaderResult:
    """A scored study: its readers, and where these are several, all of them together and how far they agree."""

    key: StudyKey
    readers: tuple[Reader, ...]
    pooled: Figures | None
    agreement: tuple[Agreement, ...]

    @property
    def reading(self) -> Reading:
        """What the readers together could tell."""
        return self.readers[0].reading if self.pooled is None else reading_of(self.pooled.accuracy)

    def sentence(self) -> str:
        """Return what the readers together could tell."""
        if self.pooled is None:
            return f"{self.readers[0].sentence()} {self.readers[0].power()}"
        share = self.pooled.accuracy
        return _counted(f"{len(self.readers)} readers together", share)

    def check_sets(self, sets: Mapping[str, str]) -> None:
        """Refuse (`DataError`) answers to a study of other scans than those with these hashes."""
        if dict(self.key.sets) != dict(sets):
            raise DataError(
                "reader_answers: need answers about these real and synthetic scans, got a study of others; "
                "try the cohorts that the study was made from"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the part `reader_study` of `report.json`; it names readers by pseudonym and no scan."""
        sources = [case.source for case in self.key.cases]
        return {
            "study": self.key.study,
            "cases": {"real": sources.count("real"), "synthetic": sources.count("synthetic")},
            "classes": list(self.key.classes),
            "real_splits": self.key.real_splits(),
            "readers": [
                asdict(reader) | {"reading": reader.reading, "sentence": reader.sentence(), "power": reader.power()}
                for reader in self.readers
            ],
            "pooled": None if self.pooled is None else asdict(self.pooled),
            "agreement": [asdict(pair) for pair in self.agreement],
            "reading": self.reading,
            "sentence": self.sentence(),
            "notes": [*self.key.notes(), *self._open_cases()],
        }

    def _open_cases(self) -> list[str]:
        answered: Mapping[str, int] = {reader.name: reader.figures.accuracy.of for reader in self.readers}
        return [
            f"{name} left {len(self.key.cases) - count} of {len(self.key.cases)} cases open."
            for name, count in answered.items()
            if count < len(self.key.cases)
        ]


def reading_of(share: Share, *, cannot_tell: bool = False) -> Reading:
    """Return whether answers tell real from synthetic; also answers that are wrong more often than guessing do."""
    if cannot_tell or share.p_value is None:
        return "cannot tell"
    return "told apart" if share.p_value < 0.05 else "not told apart"


def spoken(share: Share) -> str:
    """Return a share with its interval and p-value in words."""
    if share.value is None or share.low is None or share.high is None:
        return "no interval"
    text = f"{_percent(share.value)}, 95 % interval {_percent(share.low)} to {_percent(share.high)}"
    if share.p_value is None:
        return text
    return f"{text}, p {'< 0.001' if share.p_value < 0.001 else f'= {share.p_value:.3f}'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _counted(who: str, share: Share) -> str:
    told = f"{who} called {share.right} of {share.of} scans rightly real or synthetic"
    return f"{told} ({spoken(share)}): {_judged(share)}"


def _judged(share: Share) -> str:
    if share.p_value is None or share.value is None:
        return "nothing can be said."
    if share.p_value >= 0.05:
        return "guessing could explain it."
    if share.value > 0.5:
        return "more than guessing explains."
    return "fewer than guessing explains, so the two kinds look different, and the synthetic one is taken for real."
