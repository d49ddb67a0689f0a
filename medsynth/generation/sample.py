"""`medsynth sample`: a synthetic set of new scans."""

from __future__ import annotations

from functools import partial

from medsynth.cohorts import Cohort
from medsynth.generation.generate import generate_chunk, scan_seed
from medsynth.generation.sets import Method, SetPlan, write_set


def sample_set(plan: SetPlan) -> Cohort:
    """Write a set of new scans and return its cohort; restarts and errors as in `write_set`."""
    return write_set(plan, _method)


def _method(plan: SetPlan) -> Method:
    return Method(
        name="sample",
        notice="Every scan in this folder is synthetic. It shows no patient and must not be used for diagnosis.",
        make=partial(generate_chunk, plan.run, seed=plan.seed, solver=plan.solver, guidance=plan.guidance),
        seed_of=partial(scan_seed, plan.seed),
    )
