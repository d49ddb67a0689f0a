"""Reporting: the results of an evaluation as files that people read."""
