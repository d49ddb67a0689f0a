"""Reporting: the results of an evaluation as files that people read."""

from medsynth.reporting.card import CardFiles, write_card
from medsynth.reporting.card_schema import CheckedCard, check_card
from medsynth.reporting.charts import training_figures
from medsynth.reporting.report import ReportFiles, check_report_folder, write_report
