"""The maths of diffusion: noise, preconditioning, solvers, guidance. No networks, no files."""

from medsynth.diffusion.guidance import ConditionalDenoise, ConditionRows, check_guidance, guide, join_conditions
from medsynth.diffusion.precondition import (
    Preconditioning,
    draw_sigma,
    loss_weight,
    match_rank,
    noise_embedding_position,
    precondition,
)
from medsynth.diffusion.solvers import SOLVERS, Denoise, Solver, dpmpp_2m, edit_sigmas, euler, heun, karras_sigmas

__all__ = [
    "SOLVERS",
    "ConditionRows",
    "ConditionalDenoise",
    "Denoise",
    "Preconditioning",
    "Solver",
    "check_guidance",
    "dpmpp_2m",
    "draw_sigma",
    "edit_sigmas",
    "euler",
    "guide",
    "heun",
    "join_conditions",
    "karras_sigmas",
    "loss_weight",
    "match_rank",
    "noise_embedding_position",
    "precondition",
]
