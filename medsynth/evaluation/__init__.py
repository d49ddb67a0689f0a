"""Evaluation: the protocols that say what a synthetic set is worth."""

from medsynth.evaluation.evaluate import Evaluation, Pair, evaluate_cohorts
from medsynth.evaluation.fidelity import FidelityResult, score_fidelity
from medsynth.evaluation.handover import Handover, augment_cohort
from medsynth.evaluation.selection import Selection, select_scans
from medsynth.evaluation.verdict import build_report

__all__ = [
    "Evaluation",
    "FidelityResult",
    "Handover",
    "Pair",
    "Selection",
    "augment_cohort",
    "build_report",
    "evaluate_cohorts",
    "score_fidelity",
    "select_scans",
]
