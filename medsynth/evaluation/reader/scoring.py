"""Scores the answers of readers against the key."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, median

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest
from sklearn.metrics import cohen_kappa_score

from medsynth.errors import DataError
from medsynth.evaluation.reader.answers import Answer, read_answers
from medsynth.evaluation.reader.key import KEY_FILE, StudyKey, find_key
from medsynth.evaluation.reader.result import Agreement, Figures, Reader, ReaderResult, Share
from medsynth.measures.statistics import Resampled, Resamples
from medsynth.seeds import numpy_generator

_SIGNIFICANCE, _POWER = 0.05, 0.8
_RESAMPLES = 2000
_ROUNDING = 1e-9

# Whether an answer is right, 1 or 0; NaN where there is none, or where the figure is about other cases.
_Verdict = Callable[[Answer], float]


def score_files(files: Sequence[Path], folder: Path, *, seed: int = 0) -> ReaderResult:
    """Return the scores of the answers in CSV files to the study whose key lies in a report folder.

    `DataError` without a key there, for files of another study, and for whatever `read_answers` refuses.
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
    verdicts = _verdicts(key)
    readers = tuple(_reader(name, list(own.values()), verdicts) for name, own in by_reader.items())
    pooled = None
    if len(readers) > 1:
        draws = Resamples.draw(
            np.arange(len(key.cases)),
            len(readers),
            generator=numpy_generator(seed, "reader answers"),
            resamples=_RESAMPLES,
        )
        pooled = Figures(
            **{
                name: _pooled_share(_table(by_reader, verdict, len(key.cases)), draws, against_half=name == "accuracy")
                for name, verdict in verdicts.items()
            }
        )
    agreement = tuple(_agreement(one, other, by_reader) for one, other in combinations(by_reader, 2))
    return ReaderResult(key=key, readers=readers, pooled=pooled, agreement=agreement)


def exact_share(right: int, of: int, *, against_half: bool = False) -> Share:
    """Return a share with its Clopper-Pearson interval and, on request, the p-value of the exact two-sided binomial test."""
    if of == 0:
        return Share(right=0, of=0, value=None, low=None, high=None)
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
    """Return the smallest true accuracy above one half that the binomial test of so many answers finds with 80 % power.

    The test is two-sided at 5 %. None where not even answers that are all right would be significant (five or fewer).
    """
    # By symmetry the test rejects from some number of right answers on, and as far below the middle.
    enough = next(
        (right for right in range(answers // 2, answers + 1) if 2 * binom.sf(right - 1, answers, 0.5) < _SIGNIFICANCE),
        None,
    )
    if enough is None:
        return None

    def excess(accuracy: float) -> float:
        found = binom.sf(enough - 1, answers, accuracy) + binom.cdf(answers - enough, answers, accuracy)
        return float(found) - _POWER

    return float(brentq(excess, 0.5, 1.0, xtol=1e-9))


def _verdicts(key: StudyKey) -> dict[str, _Verdict]:
    """Return the figures by name, as functions of an answer."""

    def told(answer: Answer) -> float:
        return float(answer.answer == key.cases[answer.case - 1].source)

    def named(answer: Answer) -> float:
        return math.nan if answer.label is None else float(answer.label == key.cases[answer.case - 1].label)

    def only(source: str, verdict: _Verdict) -> _Verdict:
        return lambda answer: verdict(answer) if key.cases[answer.case - 1].source == source else math.nan

    return {
        "accuracy": told,
        "sensitivity": only("synthetic", told),
        "specificity": only("real", told),
        "class_on_real": only("real", named),
        "class_on_synthetic": only("synthetic", named),
    }


def _reader(name: str, answers: Sequence[Answer], verdicts: dict[str, _Verdict]) -> Reader:
    shares = {}
    for figure, verdict in verdicts.items():
        known = [value for value in map(verdict, answers) if not math.isnan(value)]
        shares[figure] = exact_share(int(sum(known)), len(known), against_half=figure == "accuracy")
    rated = [(verdicts["accuracy"](answer), answer.confidence) for answer in answers if answer.confidence is not None]
    seconds = [answer.seconds for answer in answers if answer.seconds is not None]
    right, wrong = ([rating for verdict, rating in rated if verdict == wanted] for wanted in (1, 0))
    return Reader(
        name=name,
        figures=Figures(**shares),
        smallest_found=smallest_accuracy_found(len(answers)),
        confidence_right=fmean(right) if right else None,
        confidence_wrong=fmean(wrong) if wrong else None,
        seconds=median(seconds) if seconds else None,
    )


def _table(by_reader: dict[str, dict[int, Answer]], verdict: _Verdict, cases: int) -> np.ndarray:
    """Return verdicts `(readers, cases)`, NaN where a reader gave no answer."""
    table = np.full((len(by_reader), cases), np.nan)
    for place, own in enumerate(by_reader.values()):
        for case, answer in own.items():
            table[place, case - 1] = verdict(answer)
    return table


def _pooled_share(table: np.ndarray, draws: Resamples, *, against_half: bool) -> Share:
    """Return the mean over readers of their shares, with the two-way bootstrap interval over readers and cases.

    Where no draw differs (all answers right, say), the exact interval for the number of cases stands in.
    """
    known = ~np.isnan(table)
    right, of = int(np.nansum(table)), int(known.sum())
    if not known.any(axis=1).all():
        return Share(right=right, of=of, value=None, low=None, high=None)
    hits = np.where(known, table, 0.0)
    weights = draws.scans.astype(np.float64)
    with np.errstate(invalid="ignore"):
        drawn = (weights @ hits.T) / (weights @ known.T)
    observed = hits.sum(axis=1) / known.sum(axis=1)
    found = Resampled(observed=observed - 0.5, values=drawn - 0.5, resamples=draws).estimate()
    value = found.value + 0.5
    if found.standard_error < _ROUNDING:
        cases = int(known.any(axis=0).sum())
        exact = exact_share(round(value * cases), cases, against_half=True)
        return replace(exact, right=right, of=of, p_value=exact.p_value if against_half else None)
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return Share(right=right, of=of, value=value, low=None, high=None)
    return Share(
        right=right,
        of=of,
        value=value,
        low=max(0.0, found.low + 0.5),
        high=min(1.0, found.high + 0.5),
        p_value=found.p_value if against_half else None,
    )


def _agreement(one: str, other: str, by_reader: dict[str, dict[int, Answer]]) -> Agreement:
    common = sorted(by_reader[one].keys() & by_reader[other].keys())
    pairs = [(by_reader[one][case], by_reader[other][case]) for case in common]
    return Agreement(
        first=one,
        second=other,
        cases=len(common),
        answer=_kappa([(mine.answer, theirs.answer) for mine, theirs in pairs]),
        label=_kappa([(mine.label, theirs.label) for mine, theirs in pairs if mine.label and theirs.label]),
    )


def _kappa(pairs: Sequence[tuple[str | None, str | None]]) -> float | None:
    """Return Cohen's kappa (1960); None where chance alone would make the two agree always."""
    if len({value for pair in pairs for value in pair}) < 2:
        return None
    return float(cohen_kappa_score([mine for mine, _ in pairs], [theirs for _, theirs in pairs]))
