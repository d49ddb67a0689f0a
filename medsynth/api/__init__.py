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
    index,
    load_run,
    run_verb,
    sample,
    train,
)
