"""The maths of diffusion: noise, preconditioning, solvers, guidance, distillation. No networks, no files."""

from medsynth.diffusion.guidance import autoguide, check_guidance, guide
from medsynth.diffusion.inpainting import inpaint
from medsynth.diffusion.precondition import draw_sigma, loss_weight, match_rank, noise_embedding_position, precondition
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
from medsynth.diffusion.trajectories import student_solver, trace_trajectory, trajectory_levels, trajectory_losses
