"""Evaluation: the protocols that say what a synthetic set is worth."""

from medsynth.evaluation.evaluate import Evaluation, Pair, evaluate_cohorts
from medsynth.evaluation.handover import Handover, augment_cohort
from medsynth.evaluation.in_memory import compare
from medsynth.evaluation.verdict import build_report
