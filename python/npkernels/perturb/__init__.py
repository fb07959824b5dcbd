"""Adversarial perturbations: fused steps, exact projections, and the attacks that are made of them.

The first axis of every array counts samples; norms are taken over all that is behind it.
"""

from npkernels.perturb._attacks import apgd, fgsm, mi_fgsm, pgd
from npkernels.perturb._differences import FiniteDifferenceGradient, finite_difference_gradient
from npkernels.perturb._random import random_in_ball
from npkernels.perturb._result import AttackError, AttackResult
from npkernels.perturb._sklearn import SklearnGradient, sklearn_gradient
from npkernels.perturb._steps import momentum, pgd_step, project, sign_step, steepest_step

__all__ = [
    "AttackError",
    "AttackResult",
    "FiniteDifferenceGradient",
    "SklearnGradient",
    "apgd",
    "fgsm",
    "finite_difference_gradient",
    "mi_fgsm",
    "momentum",
    "pgd",
    "pgd_step",
    "project",
    "random_in_ball",
    "sign_step",
    "sklearn_gradient",
    "steepest_step",
]
