"""Rare classes without copying: which way of training and sampling makes scans that a classifier gains from."""
