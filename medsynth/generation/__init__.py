"""Generation: from a run, seeds and donors to scans in memory and synthetic sets on disk."""

from medsynth.generation.edit import chosen_before, edit_set, try_edits
from medsynth.generation.generator import Generator, SyntheticScan, parse_counts
from medsynth.generation.sample import generate, sample_set

__all__ = [
    "Generator",
    "SyntheticScan",
    "chosen_before",
    "edit_set",
    "generate",
    "parse_counts",
    "sample_set",
    "try_edits",
]
