"""Scores the answers of readers against the key, and states the result in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest

from medsynth.errors import DataError
from medsynth.evaluation.reader.answers import Answer, read_answers
from medsynth.evaluation.reader.study import KEY_FILE, StudyKey, find_key
from medsynth.measures.statistics import Resampled, Resamples
from medsynth.seeds import numpy_generator

_SIGNIFICANCE, _POWER = 0.05, 0.8
_RESAMPLES = 2000
_ROUNDING = 1e-9
_FEWEST = 6  # answers; five that are all right are not significant

Verdict = Literal["told apart", "not told apart", "cannot tell"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """`right` of `of` answers, as a share with its 95 % interval; all three are None without answers.

    The interval of one reader is exact (Clopper & Pearson 1934), that over readers a two-way bootstrap. `p_value` is two-sided,
    of the hypothesis that the truth is one half; None where guessing would not be right half of the time.
    """

    right: int
    of: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether answers differ from guessing, also by being wrong more often."""
        if self.p_value is None:
            return "cannot tell"
        return "told apart" if self.p_value < _SIGNIFICANCE else "not told apart"

    def sentence(self, who: str) -> str:
        """Return the share of `who` with its interval, its p-value and what follows from it."""
        if self.value is None or self.low is None or self.high is None or self.p_value is None:
            return f"{who} identified {self.right} of {self.of} scans correctly: too few answers to judge."
        p_value = "< 0.001" if self.p_value < 0.001 else f"= {self.p_value:.3f}"
        if self.p_value >= _SIGNIFICANCE:
            meaning = "consistent with guessing"
        elif self.value > 0.5:
            meaning = "better than guessing"
        else:
            meaning = "worse than guessing: the two kinds look different, but the synthetic scans are taken for real"
        return (
            f"{who} identified {self.right} of {self.of} scans correctly as real or synthetic ({_percent(self.value)}, "
            f"95 % interval {_percent(self.low)} to {_percent(self.high)}, p {p_value}): {meaning}."
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Shares of right answers: whether scans are real, on all, synthetic and real ones; and which class, on either kind."""

    accuracy: Share
    sensitivity: Share
    specificity: Share
    class_on_real: Share
    class_on_synthetic: Share


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One reader, by pseudonym.

    `smallest_found` is the smallest true accuracy that this number of answers distinguishes from one half with 80 % power, None
    if they are too few. `confidence` is the mean over right and over wrong answers, `seconds` the median per case; None without
    any.
    """

    name: str
    figures: Figures
    smallest_found: float | None
    confidence_right: float | None
    confidence_wrong: float | None
    seconds: float | None

    @property
    def verdict(self) -> Verdict:
        """Whether this reader can tell the scans apart."""
        return "cannot tell" if self.smallest_found is None else self.figures.accuracy.verdict

    def sentence(self) -> str:
        """Return how well the reader told real from synthetic."""
        return self.figures.accuracy.sentence(self.name)

    def power(self) -> str:
        """Return what this number of answers of a reader can show."""
        answers = self.figures.accuracy.of
        if self.smallest_found is None:
            return f"Too few answers to judge: {answers}, at least {_FEWEST} needed."
        return (
            f"{answers} answers of one reader detect a true accuracy of {math.ceil(100 * self.smallest_found)} % or more four "
            "times out of five; a lower one may be missed."
        )


@dataclass(frozen=True, kw_only=True)
class ReaderResult:
    """A scored study: its readers, and where these are several, all of them together."""

    key: StudyKey
    readers: tuple[Reader, ...]
    pooled: Figures | None

    @property
    def verdict(self) -> Verdict:
        """Whether the readers together can tell the scans apart."""
        return self.readers[0].verdict if self.pooled is None else self.pooled.accuracy.verdict

    def sentence(self) -> str:
        """Return how well the readers together told real from synthetic."""
        if self.pooled is None:
            return f"{self.readers[0].sentence()} {self.readers[0].power()}"
        return self.pooled.accuracy.sentence(f"{len(self.readers)} readers together")

    def check_sets(self, sets: Mapping[str, str]) -> None:
        """Raise `DataError` if the study is about other scans than those with these hashes."""
        if dict(self.key.sets) != dict(sets):
            raise DataError(
                "reader_answers: need answers about these real and synthetic scans, got a study of others; "
                "try the cohorts that the study was made from"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the part `reader_study` of `report.json`; it names readers by pseudonym and no scan."""
        sources = [case.source for case in self.key.cases]
        answered = {reader.name: reader.figures.accuracy.of for reader in self.readers}
        return {
            "study": self.key.study,
            "cases": {"real": sources.count("real"), "synthetic": sources.count("synthetic")},
            "classes": list(self.key.classes),
            "real_splits": self.key.real_splits(),
            "readers": [
                asdict(reader) | {"verdict": reader.verdict, "sentence": reader.sentence(), "power": reader.power()}
                for reader in self.readers
            ],
            "pooled": None if self.pooled is None else asdict(self.pooled),
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "notes": [
                *self.key.notes(),
                *(
                    f"{name} did not answer {len(sources) - count} of {len(sources)} cases."
                    for name, count in answered.items()
                    if count < len(sources)
                ),
            ],
        }


def score_files(files: Sequence[Path], folder: Path, *, seed: int = 0) -> ReaderResult:
    """Return the scores of the answers in CSV files to the study whose key is in a report folder.

    `DataError` without a key there, for files of another study, and as for `read_answers`.
    """
    key = find_key(folder)
    if key is None:
        raise DataError(
            f"{folder / KEY_FILE}: need the key of the study that was answered, got none; try the --out of that --reader_study"
        )
    return score_answers(read_answers(files, key), key, seed=seed)


def score_answers(answers: Sequence[Answer], key: StudyKey, *, seed: int = 0) -> ReaderResult:
    """Return the scores of one reader or several, in the order of their first answers; `DataError` without answers.

    Several readers are also taken together: accuracies are averaged over readers, and the bootstrap draws cases and readers,
    so that the interval holds for other scans and for other readers like these.
    """
    by_reader: dict[str, dict[int, Answer]] = {}
    for answer in answers:
        by_reader.setdefault(answer.reader, {})[answer.case] = answer
    if not by_reader:
        raise DataError("reader_answers: need at least one answer, got none; try the CSV that the page exports")
    tables = _tables(by_reader, key)
    readers = tuple(
        _reader(name, list(own.values()), key, {figure: table[place] for figure, table in tables.items()})
        for place, (name, own) in enumerate(by_reader.items())
    )
    pooled = None
    if len(readers) > 1:
        cases = np.arange(len(key.cases))
        generator = numpy_generator(seed, "reader answers")
        draws = Resamples.draw(cases, len(readers), generator=generator, resamples=_RESAMPLES)
        pooled = Figures(
            **{name: _pooled_share(table, draws, against_half=name == "accuracy") for name, table in tables.items()}
        )
    return ReaderResult(key=key, readers=readers, pooled=pooled)


def exact_share(right: int, of: int, *, against_half: bool = False) -> Share:
    """Return a share with its Clopper-Pearson interval and, on request, the p-value of the exact two-sided binomial test."""
    if of == 0:
        return Share(right=0, of=0)
    test = binomtest(right, of, 0.5)
    interval = test.proportion_ci(0.95, method="exact")
    return Share(
        right=right,
        of=of,
        value=right / of,
        low=float(interval.low),
        high=float(interval.high),
        p_value=float(test.pvalue) if against_half else None,
    )


def smallest_accuracy_found(answers: int) -> float | None:
    """Return the smallest true accuracy above one half that the binomial test of the answers finds with 80 % power.

    The test is two-sided at 5 %. None where even answers that are all right would not be significant (five or fewer).
    """
    if answers < _FEWEST:
        return None
    # By symmetry the test rejects from some number of right answers on, and as far below the middle.
    enough = next(
        right for right in range(answers // 2, answers + 1) if 2 * binom.sf(right - 1, answers, 0.5) < _SIGNIFICANCE
    )

    def excess(accuracy: float) -> float:
        found = binom.sf(enough - 1, answers, accuracy) + binom.cdf(answers - enough, answers, accuracy)
        return float(found) - _POWER

    return float(brentq(excess, 0.5, 1.0, xtol=1e-9))


def _tables(by_reader: Mapping[str, Mapping[int, Answer]], key: StudyKey) -> dict[str, np.ndarray]:
    """Return for each figure whether answers are right, `(readers, cases)`: 1 or 0, NaN for no answer and for other cases."""
    answered, named = (np.full((len(by_reader), len(key.cases)), np.nan) for _ in range(2))
    for place, own in enumerate(by_reader.values()):
        for number, answer in own.items():
            case = key.cases[number - 1]
            answered[place, number - 1] = answer.answer == case.source
            if answer.label is not None:
                named[place, number - 1] = answer.label == case.label
    real = np.array([case.source == "real" for case in key.cases])
    return {
        "accuracy": answered,
        "sensitivity": np.where(real, np.nan, answered),
        "specificity": np.where(real, answered, np.nan),
        "class_on_real": np.where(real, named, np.nan),
        "class_on_synthetic": np.where(real, np.nan, named),
    }


def _reader(name: str, answers: Sequence[Answer], key: StudyKey, rows: Mapping[str, np.ndarray]) -> Reader:
    shares = {
        figure: exact_share(int(np.nansum(row)), int((~np.isnan(row)).sum()), against_half=figure == "accuracy")
        for figure, row in rows.items()
    }
    rated: dict[bool, list[int]] = {True: [], False: []}
    for answer in answers:
        if answer.confidence is not None:
            rated[answer.answer == key.cases[answer.case - 1].source].append(answer.confidence)
    seconds = [answer.seconds for answer in answers if answer.seconds is not None]
    return Reader(
        name=name,
        figures=Figures(**shares),
        smallest_found=smallest_accuracy_found(len(answers)),
        confidence_right=fmean(rated[True]) if rated[True] else None,
        confidence_wrong=fmean(rated[False]) if rated[False] else None,
        seconds=median(seconds) if seconds else None,
    )


def _pooled_share(table: np.ndarray, draws: Resamples, *, against_half: bool) -> Share:
    """Return the mean over readers of their shares, with the two-way bootstrap interval over readers and cases.

    Where no draw differs (all answers right, say), the exact interval for the number of cases is used instead.
    """
    known = ~np.isnan(table)
    right, of = int(np.nansum(table)), int(known.sum())
    if not known.any(axis=1).all():
        return Share(right=right, of=of)
    hits = np.where(known, table, 0.0)
    weights = draws.scans.astype(np.float64)
    with np.errstate(invalid="ignore"):
        drawn = (weights @ hits.T) / (weights @ known.T)
    observed = hits.sum(axis=1) / known.sum(axis=1)
    found = Resampled(observed=observed - 0.5, values=drawn - 0.5, resamples=draws).estimate()
    value = found.value + 0.5
    if found.standard_error < _ROUNDING:
        cases = int(known.any(axis=0).sum())
        return replace(exact_share(round(value * cases), cases, against_half=against_half), right=right, of=of)
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return Share(right=right, of=of, value=value)
    return Share(
        right=right,
        of=of,
        value=value,
        low=max(0.0, found.low + 0.5),
        high=min(1.0, found.high + 0.5),
        p_value=found.p_value if against_half else None,
    )
