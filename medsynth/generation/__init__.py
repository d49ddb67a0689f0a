"""Generation: from a run, seeds and donors to scans in memory and synthetic sets on disk."""

from medsynth.generation.edit import edit_counts, edit_set
from medsynth.generation.generate import SyntheticScan, generate, parse_counts
from medsynth.generation.inpaint import inpaint_set
from medsynth.generation.prompt import plan_prompt
from medsynth.generation.sample import sample_set
from medsynth.generation.sets import plan_set

__all__ = [
    "SyntheticScan",
    "edit_counts",
    "edit_set",
    "generate",
    "inpaint_set",
    "parse_counts",
    "plan_prompt",
    "plan_set",
    "sample_set",
]
