"""Generation: from a run and seeds to scans in memory and synthetic sets on disk."""

from medsynth.generation.generate import SyntheticScan, generate, parse_counts
from medsynth.generation.sample import sample_set

__all__ = ["SyntheticScan", "generate", "parse_counts", "sample_set"]
