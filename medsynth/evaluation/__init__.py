"""Evaluation: the protocols that say what a synthetic set is worth."""
