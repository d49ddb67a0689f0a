"""Generation: from a run, seeds and donors to scans in memory and synthetic sets on disk."""

from medsynth.generation.edit import edit_set
from medsynth.generation.generator import Generator, SyntheticScan, parse_counts
from medsynth.generation.sample import generate, sample_set
