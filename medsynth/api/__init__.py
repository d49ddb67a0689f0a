"""The verbs: what the command line runs and what a pipeline calls. Signatures and docs here, bodies in the rooms.

Bodies import lazily, so that `import medsynth` and `medsynth --help` load no torch. For the same reason annotations are not
postponed here: to evaluate postponed ones, the parser would import what the results are made of.
"""

from collections.abc import Callable
from typing import Any

from medsynth.api.cohort import demo, index
from medsynth.api.distillation import distill
from medsynth.api.evaluation import augment, card, evaluate, select
from medsynth.api.generation import edit, sample
from medsynth.api.installation import doctor, fetch
from medsynth.api.training import train

# In the order in which they are used.
VERBS: dict[str, Callable[..., Any]] = {
    verb.__name__: verb
    for verb in (demo, index, train, distill, sample, edit, select, evaluate, augment, card, fetch, doctor)
}

__all__ = [
    "VERBS",
    "augment",
    "card",
    "demo",
    "distill",
    "doctor",
    "edit",
    "evaluate",
    "fetch",
    "index",
    "sample",
    "select",
    "train",
]
