"""Policy losses with their gradients with respect to the log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, check_out, compute_dtype, floating, kernel
from npkernels._grpo_types import PolicyLoss
from npkernels._policy_options import options_of
from npkernels._policy_tokens import Tokens, metrics_of, rounded
from npkernels._sequences import kept_bytes, layout_of

ArrayLike = npt.ArrayLike
Pair = Sequence[float]


@kernel
def policy_loss(
    logp: ArrayLike,
    old_logp: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    ref_logp: ArrayLike | None = None,
    clip: Pair = (0.2, 0.2),
    loss: str = "grpo",
    level: str | None = None,
    aggregate: str | None = None,
    kl: str = "k3",
    beta: float = 0.0,
    kl_clamp: Pair | None = None,
    dual_clip: float | None = None,
    delta: float | None = None,
    tau: Pair | None = None,
    max_length: int | None = None,
    total_tokens: float | None = None,
    sampler_logp: ArrayLike | None = None,
    importance: tuple[str, float] | None = None,
    entropy: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    return_grad: bool = True,
    out: Array | None = None,
) -> PolicyLoss:
    """The loss of GRPO, PPO and their relatives, its gradient and metrics, in one pass.

    Parameters
    ----------
    logp, old_logp : array_like (B, T), or packed (total,)
        Log-probabilities of the sampled tokens now, and when they were sampled.
    advantages : array_like (B,), or of the shape of logp
        Of each sequence, or of each token; where packed arrays have as many sequences as tokens, of each sequence.
    mask : array_like of the shape of logp, optional
        Booleans, or 0 and 1: which tokens take part. What stands in the others is ignored, NaN and inf too.
    ref_logp : array_like, optional
        Under the reference policy, for the KL term.
    clip : (float, float)
        How far the ratio may be below and above 1. For "cispo" the second is the largest ratio itself (TRL, Liger):
        give it, say 5; for "gmpo" both are bounds of the log ratio.
    loss : str
        With ``rho = exp(logp - old_logp)`` and advantage A:

        * "grpo", "ppo", "bnpo", "dapo", "dr_grpo": ``-min(rho A, clip(rho) A)`` [1]_; they differ in their aggregate.
        * "gspo": the same with the ratio of the whole sequence, ``exp(mean(logp - old_logp))`` [2]_.
        * "cispo": ``-min(rho, clip[1]) A logp`` with the ratio held constant, "cispo_clip": ``clip(rho)`` instead
          (verl, NeMo-RL) [3]_.
        * "sapo": ``-4 / tau sigmoid(tau (rho - 1)) A``, tau by the sign of A [4]_.
        * "gmpo": ``-rho A`` with the geometric mean of the clipped ratios of a sequence [5]_.
        * "gpg": ``-A logp``.
    level : {"token", "sequence"}, optional
        Whose ratio it is; default: the loss's own.
    aggregate : str, optional
        "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean" or "seq-mean-token-sum-norm" (over
        `max_length`). Sequences without a token are left out (TRL counts them). Default: "seq-mean-token-mean" for
        grpo, gspo, sapo, gmpo; "seq-mean-token-sum-norm" for dr_grpo; "token-mean" for the others.
    kl : {"k1", "k2", "k3", "k3+"}
        As for `kl_divergence`.
    beta : float
        What the KL estimate is multiplied by in the loss.
    kl_clamp : (float, float), optional
        ``clamp`` of `kl_divergence`; no gradient where it holds.
    dual_clip : float, optional
        Where A < 0 the loss is at most ``-dual_clip A`` [6]_; above 1.
    delta : float, optional
        Upper bound of the ratio that is not clipped (TRL).
    tau : (float, float), optional
        Of "sapo", for positive and for other advantages; (1.0, 1.05).
    max_length : int, optional
        T, or the longest packed sequence, if not given.
    total_tokens : float, optional
        What "token-mean" divides by, if not by the tokens of this batch.
    sampler_logp : array_like, optional
        Log-probabilities of the engine that sampled; corrects for its difference from ``old_logp``.
    importance : (str, float), optional
        How: "token-truncate", "token-mask", "sequence-truncate" or "sequence-mask", and the largest ratio (inf: any).
        Default ("sequence-mask", 3.0), as in TRL. The KL term is not corrected.
    entropy : array_like, optional
        Of each token, for its mean in the metrics.
    cu_seqlens : array_like (B + 1,), optional
        Where packed sequences begin and end.
    return_grad : bool
        Whether dlogp is wanted.
    out : ndarray, optional
        Where dlogp goes; of the shape and dtype of logp.

    Returns
    -------
    PolicyLoss
        ``loss``, ``metrics``, and ``dlogp`` of the shape and dtype of logp.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value.

    Notes
    -----
    ``sum(w * (c * l + beta * kl))`` over the tokens, w the weight of the aggregate and c the correction, both constant.
    A token whose advantage is 0 gives no loss, whatever its ratio. 16-bit and non-contiguous inputs are copied. Where
    the projects differ from this and from each other: docs/api.md.

    References
    ----------
    .. [1] J. Schulman et al., "Proximal policy optimization algorithms", 2017; Z. Shao et al., "DeepSeekMath", 2024.
    .. [2] C. Zheng et al., "Group sequence policy optimization", 2025.
    .. [3] MiniMax, "MiniMax-M1", 2025.
    .. [4] C. Gao et al., "Soft adaptive policy optimization", 2025.
    .. [5] Y. Zhao et al., "Geometric-mean policy optimization", 2025.
    .. [6] D. Ye et al., "Mastering complex control in MOBA games", 2020.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> logp, old = np.log([[0.5, 1.0, 1.5]]), np.zeros((1, 3))
    >>> r = npkernels.policy_loss(logp, old, [[1.0, -1.0, 2.0]], loss="ppo")
    >>> r.loss.round(4), r.dlogp.round(4), r.metrics.clip_high.round(4)
    (np.float64(-0.6333), array([[-0.1667,  0.3333,  0.    ]]), np.float64(0.3333))
    """
    function = "policy_loss"
    lp = floating(function, "logp", logp)
    layout = layout_of(function, "logp", lp.shape, cu_seqlens)
    dtype = compute_dtype(lp.dtype)
    tokens = Tokens(function, layout, dtype)
    o = options_of(function, loss, level, aggregate, clip, kl, beta, kl_clamp, dual_clip, delta, tau, max_length,
                   total_tokens, importance, layout, sampler_logp is not None, ref_logp is not None)  # fmt: skip
    old = tokens.take("old_logp", old_logp)
    A = tokens.advantages(advantages)
    kept = kept_bytes(function, mask, layout.shape)
    ref, sampler, h = (
        tokens.optional(name, x)
        for name, x in (("ref_logp", ref_logp), ("sampler_logp", sampler_logp), ("entropy", entropy))
    )
    if out is not None and not return_grad:
        raise ValueError(f"{function}: out takes the gradient; leave it out with return_grad=False")
    check_out(function, out, lp.shape, lp.dtype, [lp, old, A, kept, ref, sampler, h])
    x = tokens.take("logp", lp)
    straight = out is not None and out.dtype == dtype and out.flags.c_contiguous
    grad = (out if straight else np.empty(lp.shape, dtype)) if return_grad else None
    totals = _core.policy_loss(
        x, old, A, kept, ref, sampler, h, layout.count, layout.length, layout.ends, o.numbers(), grad
    )
    if grad is not None and grad is not out:
        with np.errstate(over="ignore"):
            grad = _into(out, grad, lp.dtype)
    return PolicyLoss(
        loss=rounded(totals[0], dtype),
        metrics=metrics_of(totals[1:], dtype, ref is not None, sampler is not None, h is not None),
        dlogp=grad,
    )


def _into(out: Array | None, x: Array, dtype: np.dtype[Any]) -> Array:
    if out is None:
        return x.astype(dtype, copy=False)
    out[...] = x
    return out
