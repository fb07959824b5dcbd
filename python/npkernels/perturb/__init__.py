"""Adversarial perturbations: fused steps, exact projections, and the attacks that are made of them.

The first axis of every array counts samples; norms are taken over all that is behind it.
"""

from npkernels.perturb._random import random_in_ball
from npkernels.perturb._steps import momentum, pgd_step, project, sign_step, steepest_step

__all__ = [
    "momentum",
    "pgd_step",
    "project",
    "random_in_ball",
    "sign_step",
    "steepest_step",
]
