"""npkernels on Dask arrays: the same functions on arrays that are larger than a machine.

Dask arrays in, lazy Dask arrays out. Nothing is computed before `compute()`; a chunking that cannot work is an error at
once. The functions have the names of those of `npkernels` whose blocks they are made of.
"""

from __future__ import annotations

from npkernels.dask._attention import attention
from npkernels.dask._attention_vjp import attention_vjp
from npkernels.dask._groups import LazyAdvantages, advantages_from_stats, group_advantages, group_stats
from npkernels.dask._losses import cross_entropy
from npkernels.dask._perturb import pgd_step, project, random_in_ball, sign_step, steepest_step
from npkernels.dask._softmax import entropy, log_softmax, logsumexp, softmax
from npkernels.dask._tokens import token_log_probs

__all__ = [
    "LazyAdvantages",
    "advantages_from_stats",
    "attention",
    "attention_vjp",
    "cross_entropy",
    "entropy",
    "group_advantages",
    "group_stats",
    "log_softmax",
    "logsumexp",
    "pgd_step",
    "project",
    "random_in_ball",
    "sign_step",
    "softmax",
    "steepest_step",
    "token_log_probs",
]
