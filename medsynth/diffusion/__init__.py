"""The maths of diffusion: noise, preconditioning, solvers, guidance. No networks, no files."""

from medsynth.diffusion.consistency import (
    check_consistency,
    consistency_losses,
    consistency_weight,
    difference_size,
    lower_sigma,
    stage_of,
)
from medsynth.diffusion.guidance import (
    ConditionalDenoise,
    ConditionRows,
    autoguide,
    check_guidance,
    guide,
    join_conditions,
)
from medsynth.diffusion.inpainting import DrawNoise, inpaint
from medsynth.diffusion.precondition import (
    Preconditioning,
    draw_sigma,
    loss_weight,
    match_rank,
    noise_embedding_position,
    precondition,
)
from medsynth.diffusion.solvers import (
    SOLVERS,
    Denoise,
    Renoise,
    Solver,
    consistency,
    dpmpp_2m,
    edit_sigmas,
    euler,
    heun,
    noise_levels,
    settle_solver,
)
from medsynth.diffusion.trajectories import (
    student_solver,
    trace_trajectory,
    trajectory_levels,
    trajectory_losses,
)

__all__ = [
    "SOLVERS",
    "ConditionRows",
    "ConditionalDenoise",
    "Denoise",
    "DrawNoise",
    "Preconditioning",
    "Renoise",
    "Solver",
    "autoguide",
    "check_consistency",
    "check_guidance",
    "consistency",
    "consistency_losses",
    "consistency_weight",
    "difference_size",
    "dpmpp_2m",
    "draw_sigma",
    "edit_sigmas",
    "euler",
    "guide",
    "heun",
    "inpaint",
    "join_conditions",
    "loss_weight",
    "lower_sigma",
    "match_rank",
    "noise_embedding_position",
    "noise_levels",
    "precondition",
    "settle_solver",
    "stage_of",
    "student_solver",
    "trace_trajectory",
    "trajectory_levels",
    "trajectory_losses",
]
