"""The verdict on the downstream gain in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from medsynth.evaluation.downstream.judging import PRIMARY, Difference, Verdict
from medsynth.evaluation.downstream.task import Task

NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "sensitivity": "rare sensitivity",
    "specificity": "specificity",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
}
_HOW = {"probe": "a linear classifier on fixed features", "full": "a classifier trained on pixels"}


def verdict_sentence(
    verdict: Verdict, difference: Difference, task: Task, *, baseline: str, harmed: Sequence[str], tier: str
) -> str:
    """Return the verdict with the figures behind it, and a warning where a subgroup is harmed."""
    if verdict.reading == "cannot tell":
        return f"Cannot tell: {verdict.reason}."
    shown = verdict.figures or PRIMARY
    figures = "; ".join(_figure(name, difference) for name in shown)
    of = f"{_HOW[tier]} that tells {task.rare_class} from the rest"
    if verdict.reading == "gain":
        text = f"Gain: with the synthetic scans {of} does better than the strongest cheap baseline ({baseline}): {figures}."
    elif verdict.reading == "harm":
        text = (
            f"Harm: with the synthetic scans {of} does worse than the strongest cheap baseline ({baseline}): {figures}."
        )
    else:
        text = f"No gain: with the synthetic scans {of} does no better than the strongest cheap baseline ({baseline}): {figures}."
        if verdict.reason:
            text += f" It looks better than the baseline, but {verdict.reason}."
    if harmed:
        text += f" Harm for some: {', '.join(harmed)}."
    return text


def _figure(name: str, difference: Difference) -> str:
    low, high = difference.bounds[name]
    value = difference.estimates[name].value
    return f"{NAMES[name]} {value:+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−")
