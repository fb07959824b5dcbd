"""Policy losses with their gradients, and estimates of the KL divergence.

logp (B, T) with a mask, or packed (total,) with the boundaries cu_seqlens. Letters: rho = exp(logp - old_logp) the
ratio of a token, A its advantage, c the correction between sampler and trainer, n the tokens of a sequence that the
mask allows, w the weight that the aggregation gives each of them:

    loss = sum over tokens of w (c l(rho, A) + beta kl)

Whatever stands in masked places takes no part.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._grpo_types import AGGREGATES, IMPORTANCES, KLS, LEVELS, LOSSES, PolicyLoss, PolicyMetrics
from ._common import Array, ArrayLike, BoolArray, as_array, as_index, check_shape, like, total, working
from .token_stats import token_log_probs, token_log_probs_vjp

INF = np.inf
Clamp = Sequence[float] | None


def _choice(name: str, argument: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name}: {argument} is {value!r}; expected one of {', '.join(allowed)}")
    return value


def _kl(x: Array, kind: str, clamp: Clamp) -> tuple[Array, Array]:
    """The estimate and its slope with respect to logp, for x = ref_logp - logp."""
    inner, outer = (INF, INF) if clamp is None else clamp
    y = np.clip(x, -inner, inner)
    if kind == "k1":
        value, slope = -y, -np.ones_like(y)
    elif kind == "k2":
        value, slope = y * y / 2, y
    else:
        value, slope = np.where(y == INF, INF, np.expm1(y) - y), np.expm1(y)
    open_ = (np.abs(x) <= inner) & (np.abs(value) <= outer)
    if kind == "k3+":  # straight through: the value of k3, the gradient of k2
        return np.clip(value, -outer, outer), -x
    return np.clip(value, -outer, outer), np.where(open_, -slope, 0)


@np.errstate(all="ignore")
def kl_divergence(
    logp: ArrayLike, ref_logp: ArrayLike, estimator: str = "k3", *, clamp: Clamp = None
) -> Array:
    """k1 = -x, k2 = x^2 / 2, k3 = exp(x) - 1 - x for x = ref_logp - logp (Schulman 2020).

    Examples
    --------
    >>> kl_divergence(np.float32([-1, -1]), np.float32([0, -15])).round(4)
    array([ 0.7183, 13.    ])
    """
    lp, ref = working("kl_divergence", logp=logp, ref_logp=ref_logp)
    check_shape("kl_divergence", "ref_logp", ref, lp.shape)
    return _kl(ref - lp, _choice("kl_divergence", "estimator", estimator, KLS), clamp)[0]


def _surrogate(
    kind: str,
    rho: Array,
    A: Array,
    lp: Array,
    clip: Sequence[float],
    dual: float,
    delta: float,
    tau: Sequence[float],
) -> tuple[Array, Array, Array]:
    """The loss l of each token, its slope with respect to log rho, and its direct slope with respect to logp."""
    low, high = clip
    nothing = np.zeros_like(rho)
    if kind == "clip":
        free, held = np.minimum(rho, delta) * A, np.clip(rho, 1 - low, 1 + high) * A
        loss = -np.minimum(free, held)
        slope = np.where((free > held) | (rho > delta), 0, -rho * A)
        worst = (A < 0) & (loss > -dual * A)
        loss, slope, direct = np.where(worst, -dual * A, loss), np.where(worst, 0, slope), nothing
    elif kind in ("cap", "range"):  # the ratio is a constant weight of the log-probability
        r = np.minimum(rho, high) if kind == "cap" else np.clip(rho, 1 - low, 1 + high)
        loss, slope, direct = np.where(r == 0, 0, -r * A * lp), nothing, -r * A
    elif kind == "gate":
        positive, negative = np.array(tau, rho.dtype)
        t = np.where(A > 0, positive, negative)
        s = 1 / (1 + np.exp(-t * (rho - 1)))
        steep = s * (1 - s)  # falls faster than rho rises
        loss, slope, direct = -A * 4 / t * s, np.where(steep == 0, 0, -A * 4 * steep * rho), nothing
    elif kind == "log":
        loss, slope, direct = -A * lp, nothing, -A
    else:
        loss, slope, direct = -A * rho, -A * rho, nothing
    zero = A == 0
    return np.where(zero, 0, loss), np.where(zero, 0, slope), np.where(zero, 0, direct)


def _correction(name: str, gap: Array, kept: BoolArray, spans: list[slice], importance: Any) -> Array:
    """What the loss of each token is multiplied by; gap = old_logp - sampler_logp."""
    mode, cap = ("sequence-mask", 3.0) if importance is None else importance
    _choice(name, "importance", mode, IMPORTANCES)
    summed = gap.copy()
    if mode.startswith("sequence"):
        for s in spans:
            summed[s] = total(gap[s])
    ratio = np.exp(summed)
    return np.minimum(ratio, cap) if mode.endswith("truncate") else np.where(ratio > cap, 0, ratio)


def _weights(
    aggregate: str, counts: list[int], max_length: int, total_tokens: float | None, one: Any
) -> list[Any]:
    """The weight of each token, by sequence. Sequences without tokens are left out."""
    N, S = sum(counts), sum(n > 0 for n in counts)
    if aggregate == "token-mean":
        return [one / (N if total_tokens is None else total_tokens)] * len(counts)
    if aggregate == "token-sum":
        return [one] * len(counts)
    if aggregate == "seq-mean-token-sum":
        return [one / S if S else one] * len(counts)
    if aggregate == "seq-mean-token-mean":
        return [one / (S * n) if n else one for n in counts]
    return [one / (S * max_length) if S else one] * len(counts)


@np.errstate(all="ignore")
def policy_loss(
    logp: ArrayLike,
    old_logp: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    ref_logp: ArrayLike | None = None,
    clip: Sequence[float] = (0.2, 0.2),
    loss: str = "grpo",
    level: str | None = None,
    aggregate: str | None = None,
    kl: str = "k3",
    beta: float = 0.0,
    kl_clamp: Clamp = None,
    dual_clip: float | None = None,
    delta: float | None = None,
    tau: Sequence[float] | None = None,
    max_length: int | None = None,
    total_tokens: float | None = None,
    sampler_logp: ArrayLike | None = None,
    importance: tuple[str, float] | None = None,
    entropy: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    return_grad: bool = True,
) -> PolicyLoss:
    """The loss, its gradient with respect to logp, and metrics; see `npkernels.policy_loss` for the options.

    Examples
    --------
    >>> old = np.zeros((1, 3), np.float32)
    >>> r = policy_loss(np.log(np.float32([[0.5, 1, 1.5]])), old, np.float32([[1, -1, 2]]), loss="ppo")
    >>> float(r.loss.round(4))
    -0.6333
    """
    name = "policy_loss"
    shaped, old, A = working(name, logp=logp, old_logp=old_logp, advantages=advantages)
    shape = shaped.shape
    check_shape(name, "old_logp", old, shape)
    lengths = [shape[-1]] * shape[0] if cu_seqlens is None else np.diff(as_array(cu_seqlens)).tolist()
    ends = np.cumsum([0, *lengths])
    spans = [slice(a, b) for a, b in itertools.pairwise(ends)]

    def tokens(value: ArrayLike, argument: str) -> Array:
        array = like(name, argument, value, shaped)
        check_shape(name, argument, array, shape)
        return np.where(kept, array.reshape(-1), 0)

    kept = np.ones(shaped.size, bool) if mask is None else as_array(mask).astype(bool).reshape(-1)
    if A.shape == (len(spans),):
        A = np.repeat(A, lengths)
    lp, A = tokens(logp, "logp"), np.where(kept, A.reshape(-1), 0)
    d = tokens(shaped - old, "old_logp")
    about = LOSSES[_choice(name, "loss", loss, tuple(LOSSES))]
    level = _choice(name, "level", level or about.level, LEVELS)
    aggregate = _choice(name, "aggregate", aggregate or about.aggregate, AGGREGATES)
    low, high = clip

    counts = [int(kept[s].sum()) for s in spans]
    N = sum(counts)
    longest = max_length or max(lengths, default=1)
    w = np.repeat(np.array(_weights(aggregate, counts, longest, total_tokens, lp.dtype.type(1))), lengths)
    n = np.repeat(np.array(counts), lengths)

    log_rho, free = d, np.ones_like(d)  # free: d log rho / d logp of the token's own sequence, times n
    if about.surrogate == "geometric":
        clipped = np.clip(d, -low, high)  # holds back where that makes the loss larger; no ratio for A = 0
        held = np.where(A > 0, np.minimum(d, clipped), np.where(A < 0, np.maximum(d, clipped), 0))
        log_rho, free = held, np.where((held == d) & (A != 0), 1, 0)
    if level == "sequence":
        log_rho = np.concatenate(
            [np.full(m, total(log_rho[s])) for m, s in zip(lengths, spans, strict=True)] or [d]
        )
        log_rho = np.where(kept, log_rho / np.maximum(n, 1), 0)
    rho = np.exp(log_rho)
    dual, most = dual_clip or INF, delta or INF
    value, slope, direct = _surrogate(about.surrogate, rho, A, lp, clip, dual, most, tau or (1.0, 1.05))

    c = np.ones_like(d)
    if sampler_logp is not None:
        gap = tokens(old - like(name, "sampler_logp", sampler_logp, shaped), "sampler_logp")
        c = _correction(name, gap, kept, spans, importance)
        value, slope, direct = (np.where(c == 0, 0, x) for x in (value, slope, direct))
    if level == "sequence":
        for s in spans:
            each = total((c * slope * w)[s]) / max(kept[s].sum(), 1)
            slope[s] = np.where(free[s] > 0, each, 0)
        grad = slope + w * c * direct
    else:
        grad = w * c * (slope + direct)
    loss_sum = total((w * c * value)[kept])

    def mean(x: npt.NDArray[Any]) -> Any:
        return total(x[kept].astype(lp.dtype)) / lp.dtype.type(max(N, 1))

    kl_mean = None
    if ref_logp is not None:
        x = tokens(like(name, "ref_logp", ref_logp, shaped) - shaped, "ref_logp")
        kl_value, kl_slope = _kl(x, _choice(name, "kl", kl, KLS), kl_clamp)
        kl_mean = mean(kl_value)
        if beta:
            loss_sum = loss_sum + beta * total((w * kl_value)[kept])
            grad = grad + beta * w * kl_slope

    ratio, least, most = {
        "clip": (rho, 1 - low, 1 + high),
        "range": (rho, 1 - low, 1 + high),
        "cap": (rho, -INF, high),
        "geometric": (d, -low, high),
    }.get(about.surrogate, (rho, -INF, INF))
    metrics = PolicyMetrics(
        tokens=N,
        sequences=sum(m > 0 for m in counts),
        ratio=mean(rho),
        clip_low=mean((ratio < least) & (A < 0)),
        clip_high=mean((ratio > most) & (A > 0)),
        old_kl=mean(-d),
        kl=kl_mean,
        importance=None if sampler_logp is None else mean(c),
        entropy=None if entropy is None else mean(tokens(entropy, "entropy")),
    )
    dlogp = np.where(kept, grad, 0).reshape(shape) if return_grad else None
    return PolicyLoss(loss=loss_sum, metrics=metrics, dlogp=dlogp)


@np.errstate(all="ignore")
def token_policy_loss(
    logits: ArrayLike,
    ids: ArrayLike,
    old_logp: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    temperature: float = 1.0,
    ref_logp: ArrayLike | None = None,
    clip: Sequence[float] = (0.2, 0.2),
    loss: str = "grpo",
    level: str | None = None,
    aggregate: str | None = None,
    kl: str = "k3",
    beta: float = 0.0,
    kl_clamp: Clamp = None,
    dual_clip: float | None = None,
    delta: float | None = None,
    tau: Sequence[float] | None = None,
    max_length: int | None = None,
    total_tokens: float | None = None,
    sampler_logp: ArrayLike | None = None,
    importance: tuple[str, float] | None = None,
    entropy: bool = False,
    cu_seqlens: ArrayLike | None = None,
    return_grad: bool = True,
) -> PolicyLoss:
    """`policy_loss` of the tokens' log-probabilities, and its gradient with respect to the logits.

    Examples
    --------
    >>> r = token_policy_loss(np.zeros((1, 1, 2)), [[0]], np.log([[0.5]]), [1.0])
    >>> float(r.loss), r.dlogits.astype(float)
    (-1.0, array([[[-0.5,  0.5]]]))
    """
    name = "token_policy_loss"
    (x,) = working(name, logits=logits)
    kept = np.ones(x.shape[:-1], bool) if mask is None else as_array(mask).astype(bool)
    index = np.where(kept, as_index(name, "ids", ids), 0)
    x = np.where(kept[..., None], x, 0)
    stats = token_log_probs(x.astype(as_array(logits).dtype), index, temperature=temperature)

    def narrow(a: Any) -> Any:
        return None if a is None else like(name, "tokens", a, x)

    result = policy_loss(
        stats.log_prob,
        narrow(old_logp),
        narrow(advantages),
        mask,
        ref_logp=narrow(ref_logp),
        clip=clip,
        loss=loss,
        level=level,
        aggregate=aggregate,
        kl=kl,
        beta=beta,
        kl_clamp=kl_clamp,
        dual_clip=dual_clip,
        delta=delta,
        tau=tau,
        max_length=max_length,
        total_tokens=total_tokens,
        sampler_logp=narrow(sampler_logp),
        importance=importance,
        entropy=stats.entropy if entropy else None,
        cu_seqlens=cu_seqlens,
    )
    dlogits = None
    if return_grad:
        assert stats.lse is not None
        dlogits = token_log_probs_vjp(result.dlogp, x, index, stats.lse, temperature=temperature)
        dlogits = np.where(kept[..., None], dlogits, 0)
    return PolicyLoss(loss=result.loss, metrics=result.metrics, dlogits=dlogits)
