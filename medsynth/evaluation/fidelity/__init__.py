"""The fidelity table: how far synthetic scans are from real ones, beside how far real ones are from each other."""

from medsynth.evaluation.fidelity.table import FidelityResult, Sheet, check_options, score_fidelity

__all__ = ["FidelityResult", "Sheet", "check_options", "score_fidelity"]
