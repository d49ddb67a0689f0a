"""Reporting: the results of an evaluation as files that people read."""

from medsynth.reporting.curves import training_figures
from medsynth.reporting.report import ReportFiles, write_report

__all__ = ["ReportFiles", "training_figures", "write_report"]
