"""The fidelity table: how far synthetic scans are from real ones, beside how far real ones are from each other."""

from medsynth.evaluation.fidelity.comparison import TOO_FEW, FidelitySettings
from medsynth.evaluation.fidelity.table import FidelityResult, Sheet, score_fidelity
