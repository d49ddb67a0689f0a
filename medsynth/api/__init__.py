"""The verbs: what the command line runs and what a research pipeline calls."""

from medsynth.api.verbs import (
    VERBS,
    augment,
    card,
    demo,
    distill,
    doctor,
    edit,
    evaluate,
    fetch,
    index,
    load_run,
    run_verb,
    sample,
    train,
)

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
    "load_run",
    "run_verb",
    "sample",
    "train",
]
