"""Policy losses from the logits to their gradient: rows are read once at token level, twice at sequence level."""

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
    compute_dtype,
    floating,
    integers,
    kernel,
    number,
    same_view,
    shape_error,
)
from npkernels._grpo_types import PolicyLoss
from npkernels._policy_options import Options, options_of
from npkernels._policy_tokens import Tokens, corrections_of, metrics_of, rounded, weights_of
from npkernels._sequences import Layout, kept_bytes, layout_of
from npkernels._softmax import logsumexp

ArrayLike = npt.ArrayLike
Pair = Sequence[float]
_ENTROPY, _LOGP = 7, 8  # columns of the sums of a token


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
    tokens = Tokens(function, layout, dtype)
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
        whole = out is x or (isinstance(out, np.ndarray) and same_view(out, x))
        check_out(
            function, out, x.shape, x.dtype, [index, old, A, kept, ref, sampler, *([] if whole else [x])]
        )
    if o.sequence_level:
        return _in_two_reads(
            x, index, there, old, A, kept, ref, sampler, layout, o, t, entropy, return_grad, out
        )
    counts, weights = weights_of(layout, there, o)
    c = None if sampler is None else corrections_of(old, sampler, there, layout, o)
    A = A if A.shape == layout.shape and not layout.per_sequence(A) else np.repeat(A, layout.lengths)
    sums, grad = _core.token_policy_loss(
        x,
        index,
        old,
        np.ascontiguousarray(A.reshape(layout.shape)),
        ref,
        c,
        np.repeat(weights, layout.lengths).reshape(layout.shape),
        t,
        bool(entropy),
        o.numbers(),
        bool(return_grad),
        out,
    )
    with np.errstate(all="ignore"):
        _, kl_sum, ratio, gap, low, high, corrections, h, _ = sums.sum(axis=0)
        by_token = sums[:, 0] + (o.beta * sums[:, 1] if o.beta else 0.0)
        total = (np.repeat(weights, layout.lengths) * by_token).sum()
    parts = (int(counts.sum()), int((counts > 0).sum()), ratio, low, high, -gap, kl_sum, corrections, h)
    metrics = metrics_of(parts, dtype, ref is not None, sampler is not None, bool(entropy))
    return PolicyLoss(loss=rounded(total, dtype), metrics=metrics, dlogits=grad)


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
    metrics = metrics_of(totals[1:], dtype, ref is not None, sampler is not None, bool(entropy))
    dlogits = None
    if grad is not None:
        ids = np.maximum(index, 0)
        lse = _normalisers(x, ids, there, lp, t, dtype)
        with np.errstate(over="ignore"):
            slope = grad.astype(dtype)
        dlogits = _core.token_log_probs_vjp(slope, x, ids, lse, None, None, t, None, out)
        if kept is not None:
            dlogits[~there] = 0  # 0 times what a masked row holds may be NaN
    return PolicyLoss(loss=rounded(totals[0], dtype), metrics=metrics, dlogits=dlogits)


def _normalisers(x: Array, ids: Array, there: Array, lp: Array, t: float, dtype: np.dtype[Any]) -> Array:
    """The normalisers of the rows, from the logits that were chosen and their log-probabilities."""
    chosen = np.take_along_axis(x, ids[..., None], -1)[..., 0] if x.size else np.zeros(ids.shape, dtype)
    with np.errstate(all="ignore"):
        lse = np.where(there, chosen.astype(np.float64) / t - lp, 0).astype(dtype)
    lost = there & (lp == -np.inf)  # -inf less -inf
    if lost.any():
        lse[lost] = logsumexp(x[lost], temperature=t)
    return lse
