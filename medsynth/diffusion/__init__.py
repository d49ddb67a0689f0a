"""The maths of diffusion: noise, preconditioning, solvers, guidance, distillation. No networks, no files."""

from medsynth.diffusion.guidance import autoguide, check_guidance, guide
from medsynth.diffusion.inpainting import inpaint
from medsynth.diffusion.precondition import (
    draw_sigma,
    loss_weight,
    match_rank,
    noise_embedding_position,
    precondition,
)
from medsynth.diffusion.solvers import (
    SOLVERS,
    Denoise,
    Solver,
    dpmpp_2m,
    edit_sigmas,
    euler,
    heun,
    noise_levels,
    resolve_solver,
)
from medsynth.diffusion.trajectories import (
    student_solver,
    trace_trajectory,
    trajectory_levels,
    trajectory_losses,
)

__all__ = [
    "SOLVERS", "Denoise", "Solver", "autoguide", "check_guidance", "dpmpp_2m", "draw_sigma", "edit_sigmas", "euler", "guide",
    "heun", "inpaint", "loss_weight", "match_rank", "noise_embedding_position", "noise_levels", "precondition",
    "resolve_solver", "student_solver", "trace_trajectory", "trajectory_levels", "trajectory_losses",
]  # fmt: skip
