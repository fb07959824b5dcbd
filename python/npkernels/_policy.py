"""Policy losses with their gradients, and estimates of the KL divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import (
    Array,
    check_out,
    choice,
    compute_dtype,
    floating,
    integers,
    kernel,
    number,
    shape_error,
)
from npkernels._grpo_types import KLS, PolicyLoss, PolicyMetrics
from npkernels._policy_options import Options, options_of, pair
from npkernels._sequences import Layout, kept_bytes, layout_of

ArrayLike = npt.ArrayLike
Pair = Sequence[float]
_ENTROPY, _LOGP = 7, 8  # columns of the sums of a token


@kernel
def kl_divergence(
    logp: ArrayLike,
    ref_logp: ArrayLike,
    estimator: str = "k3",
    *,
    clamp: Pair | None = None,
    out: Array | None = None,
) -> Array:
    """Estimate of the KL divergence to a reference policy, of each token.

    Parameters
    ----------
    logp, ref_logp : array_like (...)
        Log-probabilities of the sampled tokens under the policy and under the reference.
    estimator : {"k1", "k2", "k3", "k3+"}
        With ``x = ref_logp - logp``: ``-x``, ``x**2 / 2``, ``exp(x) - 1 - x`` [1]_; "k3+" has the value of k3 (and in
        `policy_loss` the gradient of k2).
    clamp : (float, float), optional
        Bounds of the size of x and of the result; (20, 10) in verl and NeMo-RL, none in TRL.
    out : ndarray, optional
        Of the shape of logp and of float64 for float64, else float32.

    Returns
    -------
    ndarray (...)
        float64 for float64 inputs, else float32. k3 keeps its digits near 0.

    References
    ----------
    .. [1] J. Schulman, "Approximating KL divergence", 2020.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.kl_divergence(np.array([-1.0, -1.0]), np.array([0.0, -15.0])).round(4)
    array([ 0.7183, 13.    ])
    """
    function = "kl_divergence"
    lp, ref = floating(function, "logp", logp), floating(function, "ref_logp", ref_logp)
    choice(function, "estimator", estimator, KLS)
    inner, outer = (np.inf, np.inf) if clamp is None else pair(function, "clamp", clamp)
    if ref.shape != lp.shape:
        shape_error(function, "ref_logp", ref.shape, f"that of logp, {lp.shape}")
    dtype = compute_dtype(lp.dtype)
    check_out(function, out, lp.shape, dtype, [lp, ref])
    with np.errstate(all="ignore"):
        x = np.clip(ref.astype(dtype, copy=False) - lp.astype(dtype, copy=False), -inner, inner)
        if estimator == "k1":
            value = -x
        elif estimator == "k2":
            value = x * x / 2
        else:  # below 1e-2 the series, where exp(x) - 1 - x would cancel
            value = np.where(np.abs(x) < 1e-2, x * x * _k3_series(x), np.expm1(x) - x)
        result = np.asarray(np.clip(value, -outer, outer), dtype)
    if out is None:
        return result
    out[...] = result
    return out


def _k3_series(x: Array) -> Array:
    """(exp(x) - 1 - x) / x^2 up to 1e-2: the next term is below 1e-18."""
    total = np.zeros_like(x)
    for divisor in (40320, 5040, 720, 120, 24, 6, 2):
        total = total * x + x.dtype.type(1) / x.dtype.type(divisor)
    return total


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
        Of each sequence, or of each token.
    mask : array_like of the shape of logp, optional
        Booleans, or 0 and 1: which tokens take part. What stands in the others is ignored, NaN and inf too.
    ref_logp : array_like, optional
        Under the reference policy, for the KL term.
    clip : (float, float)
        How far the ratio may be below and above 1. For "cispo" the second is the largest ratio itself (TRL, Liger);
        for "gmpo" both are bounds of the log ratio.
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
        How: "token-truncate", "token-mask", "sequence-truncate" or "sequence-mask", and the largest ratio. Default
        ("sequence-mask", 3.0), as in TRL. The KL term is not corrected.
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
    A token whose advantage is 0 gives no loss, whatever its ratio. 16-bit and non-contiguous inputs are copied.

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
    tokens = _Tokens(function, layout, dtype)
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
        loss=dtype.type(totals[0]),
        metrics=_metrics(totals[1:], dtype, ref is not None, sampler is not None, h is not None),
        dlogp=grad,
    )


@kernel
def token_policy_loss(
    logits: ArrayLike,
    ids: ArrayLike,
    old_logp: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    temperature: float = 1.0,
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
    entropy: bool = False,
    cu_seqlens: ArrayLike | None = None,
    return_grad: bool = True,
    out: Array | None = None,
) -> PolicyLoss:
    """`policy_loss` from the logits, with its gradient with respect to them: one read and one write of the logits.

    Parameters
    ----------
    logits : array_like (B, T, V), or packed (total, V)
        float32, float64, float16 or bfloat16.
    ids : array_like of int (B, T), or (total,)
        The sampled tokens. Those that the mask leaves out may be anything.
    old_logp, advantages, mask
        As for `policy_loss`.
    temperature : float
        Logits are divided by it.
    ref_logp, clip, loss, level, aggregate, kl, beta, kl_clamp, dual_clip, delta, tau, max_length, total_tokens
        As for `policy_loss`.
    sampler_logp, importance, cu_seqlens
        As for `policy_loss`.
    entropy : bool
        Whether the mean entropy of the tokens' distributions is among the metrics.
    return_grad : bool
        Whether dlogits is wanted.
    out : ndarray, optional
        Where dlogits goes; of the shape and dtype of logits, logits itself is allowed.

    Returns
    -------
    PolicyLoss
        ``loss``, ``metrics``, and ``dlogits`` of the shape and dtype of logits.

    Notes
    -----
    At token level a row of logits is read, and its gradient written while it is still in cache. At sequence level the
    log-probabilities of all rows come first, then the gradients: two reads.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> r = npkernels.token_policy_loss(np.zeros((1, 1, 2)), [[0]], np.log([[0.5]]), [1.0])
    >>> r.loss, r.dlogits
    (np.float64(-1.0), array([[[-0.5,  0.5]]]))
    """
    function = "token_policy_loss"
    x = floating(function, "logits", logits)
    if x.ndim == 0:
        shape_error(function, "logits", x.shape, "(B, T, V), or (total, V) with cu_seqlens")
    layout = layout_of(function, "logits", x.shape[:-1], cu_seqlens, ", V")
    dtype = compute_dtype(x.dtype)
    tokens = _Tokens(function, layout, dtype)
    o = options_of(function, loss, level, aggregate, clip, kl, beta, kl_clamp, dual_clip, delta, tau, max_length,
                   total_tokens, importance, layout, sampler_logp is not None, ref_logp is not None)  # fmt: skip
    t = number(function, "temperature", temperature)
    if not 0 < t < np.inf:
        raise ValueError(f"{function}: temperature is {temperature!r}; expected a positive finite number")
    index = integers(function, "ids", ids)
    if index.shape != layout.shape:
        shape_error(function, "ids", index.shape, f"one id per row of logits, {layout.shape}")
    old = tokens.take("old_logp", old_logp)
    A = tokens.advantages(advantages)
    kept = kept_bytes(function, mask, layout.shape)
    ref, sampler = tokens.optional("ref_logp", ref_logp), tokens.optional("sampler_logp", sampler_logp)
    if not isinstance(entropy, bool | np.bool_):
        raise TypeError(f"{function}: entropy is a {type(entropy).__name__}; expected True or False")
    there = np.ones(layout.shape, np.bool_) if kept is None else kept != 0
    index = np.where(there, index, -1)
    bad = there & ((index < 0) | (index >= x.shape[-1]))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        came = integers(function, "ids", ids)[where]
        raise IndexError(f"{function}: ids holds {came} at {where}; expected 0 <= id < {x.shape[-1]}")
    if out is not None:
        if not return_grad:
            raise ValueError(f"{function}: out takes the gradient; leave it out with return_grad=False")
        whole = out is x or (isinstance(out, np.ndarray) and _same_view(out, x))
        check_out(
            function, out, x.shape, x.dtype, [index, old, A, kept, ref, sampler, *([] if whole else [x])]
        )
    if o.sequence_level:
        return _in_two_reads(
            x, index, there, old, A, kept, ref, sampler, layout, o, t, entropy, return_grad, out
        )
    counts, weights = _weights(layout, there, o)
    c = None if sampler is None else _corrections(old, sampler, there, layout, o)
    A = A if A.shape == layout.shape and not layout.per_sequence(A) else np.repeat(A, layout.lengths())
    sums, grad = _core.token_policy_loss(
        x,
        index,
        old,
        np.ascontiguousarray(A.reshape(layout.shape)),
        ref,
        c,
        np.repeat(weights, layout.lengths()).reshape(layout.shape),
        t,
        bool(entropy),
        o.numbers(),
        bool(return_grad),
        out,
    )
    _, kl_sum, ratio, gap, low, high, corrections, h, _ = sums.sum(axis=0)
    by_token = sums[:, 0] + (o.beta * sums[:, 1] if o.beta else 0.0)
    total = (np.repeat(weights, layout.lengths()) * by_token).sum()
    parts = (int(counts.sum()), int((counts > 0).sum()), ratio, low, high, -gap, kl_sum, corrections, h)
    metrics = _metrics(parts, dtype, ref is not None, sampler is not None, bool(entropy))
    return PolicyLoss(loss=dtype.type(total), metrics=metrics, dlogits=grad)


def _in_two_reads(
    x: Array,
    index: Array,
    there: Array,
    old: Array,
    A: Array,
    kept: Array | None,
    ref: Array | None,
    sampler: Array | None,
    layout: Layout,
    o: Options,
    t: float,
    entropy: bool,
    return_grad: bool,
    out: Array | None,
) -> PolicyLoss:
    """Log-probabilities of all tokens, their loss in float64, then the gradients of all rows."""
    dtype = old.dtype
    first = replace(o, surrogate="log", sequence_level=False).numbers()
    zero, one = np.zeros(layout.shape, dtype), np.ones(layout.shape)
    sums, _ = _core.token_policy_loss(
        x, index, old, zero, None, None, one, t, bool(entropy), first, False, None
    )
    lp = np.ascontiguousarray(sums[:, _LOGP]).reshape(layout.shape)
    h = np.ascontiguousarray(sums[:, _ENTROPY]).reshape(layout.shape) if entropy else None
    wide = [None if a is None else a.astype(np.float64) for a in (old, A, ref, sampler)]
    assert wide[0] is not None
    assert wide[1] is not None
    grad = np.empty(layout.shape) if return_grad else None
    where = (layout.count, layout.length, layout.ends)
    totals = _core.policy_loss(lp, wide[0], wide[1], kept, wide[2], wide[3], h, *where, o.numbers(), grad)
    metrics = _metrics(totals[1:], dtype, ref is not None, sampler is not None, bool(entropy))
    dlogits = None
    if grad is not None:
        ids = np.maximum(index, 0)
        chosen = np.take_along_axis(x, ids[..., None], -1)[..., 0] if x.size else zero
        with np.errstate(all="ignore"):
            lse = np.where(there, chosen.astype(np.float64) / t - lp, 0).astype(dtype)
        dlogits = _core.token_log_probs_vjp(grad.astype(dtype), x, ids, lse, None, None, t, None, out)
        if kept is not None:
            dlogits[~there] = 0  # 0 times what a masked row holds may be NaN
    return PolicyLoss(loss=dtype.type(totals[0]), metrics=metrics, dlogits=dlogits)


class _Tokens:
    """Takes arrays of one entry per token in the compute dtype, contiguous."""

    def __init__(self, function: str, layout: Layout, dtype: np.dtype[Any]) -> None:
        self.function, self.layout, self.dtype = function, layout, dtype

    def take(self, name: str, x: Any) -> Array:
        array = floating(self.function, name, x)
        if array.shape != self.layout.shape:
            shape_error(self.function, name, array.shape, f"one entry per token, {self.layout.shape}")
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, self.dtype)

    def optional(self, name: str, x: Any) -> Array | None:
        return None if x is None else self.take(name, x)

    def advantages(self, x: Any) -> Array:
        array = floating(self.function, "advantages", x)
        if array.shape not in ((self.layout.count,), self.layout.shape):
            expected = f"one per sequence, ({self.layout.count},), or per token, {self.layout.shape}"
            shape_error(self.function, "advantages", array.shape, expected)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, self.dtype)


def _weights(layout: Layout, there: Array, o: Options) -> tuple[Array, Array]:
    """Kept tokens of each sequence, and the weight of each of them."""
    ends = layout.boundaries()
    total = np.append(0, np.cumsum(there.reshape(-1)))
    counts = total[ends[1:]] - total[ends[:-1]]
    N, S = max(int(counts.sum()), 1), max(int((counts > 0).sum()), 1)
    ones = np.ones(len(counts))
    return counts, {
        "token-mean": ones / (N if o.total_tokens is None else o.total_tokens),
        "token-sum": ones,
        "seq-mean-token-sum": ones / S,
        "seq-mean-token-mean": 1 / (S * np.maximum(counts, 1.0)),
        "seq-mean-token-sum-norm": ones / (S * o.max_length),
    }[o.aggregate]


def _corrections(old: Array, sampler: Array, there: Array, layout: Layout, o: Options) -> Array:
    """The correction between sampler and trainer of each token."""
    with np.errstate(all="ignore"):
        gap = np.where(there, old.astype(np.float64) - sampler, 0).reshape(-1)
        if o.of_sequence:
            sums = [
                gap[a:b].sum() for a, b in zip(layout.boundaries()[:-1], layout.boundaries()[1:], strict=True)
            ]
            gap = np.repeat(np.array(sums), layout.lengths())
        ratio = np.exp(gap)
    most = o.importance_cap
    c = np.minimum(ratio, most) if o.truncates else np.where(ratio > most, 0, ratio)
    return c.astype(old.dtype).reshape(layout.shape)


def _metrics(totals: Any, dtype: np.dtype[Any], ref: bool, sampler: bool, entropy: bool) -> PolicyMetrics:
    tokens, sequences, *sums = totals
    means = [dtype.type(s / max(tokens, 1)) for s in sums]
    ratio, low, high, old_kl, kl, importance, h = means
    return PolicyMetrics(
        tokens=tokens,
        sequences=sequences,
        ratio=ratio,
        clip_low=low,
        clip_high=high,
        old_kl=old_kl,
        kl=kl if ref else None,
        importance=importance if sampler else None,
        entropy=h if entropy else None,
    )


def _same_view(a: Array, b: Array) -> bool:
    return a.ctypes.data == b.ctypes.data and a.shape == b.shape and a.strides == b.strides


def _into(out: Array | None, x: Array, dtype: np.dtype[Any]) -> Array:
    if out is None:
        return x.astype(dtype, copy=False)
    out[...] = x
    return out
