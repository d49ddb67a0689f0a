"""Reporting: the results of an evaluation as files that people read."""

from medsynth.reporting.curves import training_figures
from medsynth.reporting.report import ReportFiles, check_report_folder, write_report

__all__ = ["ReportFiles", "check_report_folder", "training_figures", "write_report"]
