"""Softmax, token statistics and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from npkernels._arrays import Array, compute_dtype
from npkernels._cli.plain.sums import product, total
from npkernels._types import TokenStats

INF = np.inf


def _compute(x: Any) -> Array:
    array = np.asarray(x)
    return array.astype(compute_dtype(array.dtype), copy=False)


def _scores(x: Array, temperature: float, mask: Array | None) -> Array:
    z: Array = _compute(x)
    if temperature != 1:
        z = z / temperature
    if mask is not None:
        z = np.where(mask, z, z.dtype.type(-INF))
    return z


def _allowed(x: Array, mask: Array | None) -> Array:
    return x if mask is None else np.where(mask, x, x.dtype.type(0))


def _top(z: Array, axis: int) -> Array:
    top: Array = z.max(axis=axis, keepdims=True, initial=-INF)
    return top


def _softmax(z: Array, axis: int) -> Array:
    e: Array = np.exp(z - _top(z, axis))
    e /= total(e, axis, keepdims=True)
    return e


def _log_softmax(z: Array, axis: int) -> Array:
    d = z - _top(z, axis)
    d -= np.log(total(np.exp(d), axis, keepdims=True))
    return d


def _logsumexp(z: Array, axis: int) -> Array:
    m = _top(z, axis)
    lse: Array = m + np.log(total(np.exp(z - m), axis, keepdims=True))
    return lse


def _entropy(log_p: Array, axis: int) -> Array:
    p = np.exp(log_p)
    h: Array = -total(np.where(p == 0, 0, p * log_p), axis)
    return h


def softmax(x: Array, axis: int = -1, *, temperature: float = 1.0, mask: Array | None = None) -> Array:
    """``exp(z - m) / sum exp(z - m)``."""
    return _softmax(_scores(x, temperature, mask), axis).astype(x.dtype, copy=False)


def log_softmax(x: Array, axis: int = -1, *, temperature: float = 1.0, mask: Array | None = None) -> Array:
    """``(z - m) - log(sum exp(z - m))``."""
    return _log_softmax(_scores(x, temperature, mask), axis).astype(x.dtype, copy=False)


def logsumexp(
    x: Array, axis: int = -1, *, temperature: float = 1.0, mask: Array | None = None, keepdims: bool = False
) -> Array:
    """``m + log(sum exp(z - m))``."""
    lse: Array = _logsumexp(_scores(x, temperature, mask), axis)
    return lse if keepdims else np.squeeze(lse, axis)


def entropy(logits: Array, axis: int = -1, *, temperature: float = 1.0, mask: Array | None = None) -> Array:
    """``-sum p log p``."""
    return _entropy(_log_softmax(_scores(logits, temperature, mask), axis), axis)


def softmax_vjp(
    dy: Array, y: Array, axis: int = -1, *, temperature: float = 1.0, mask: Array | None = None
) -> Array:
    """``y * (dy - sum(dy * y)) / temperature``."""
    d, p = _allowed(_compute(dy), mask), _allowed(_compute(y), mask)
    dx: Array = p * (d - total(d * p, axis, keepdims=True)) / temperature
    return dx.astype(y.dtype, copy=False)


def log_softmax_vjp(
    dy: Array, y: Array, axis: int = -1, *, temperature: float = 1.0, mask: Array | None = None
) -> Array:
    """``(dy - exp(y) * sum(dy)) / temperature``."""
    d = _allowed(_compute(dy), mask)
    dx = (d - np.exp(_compute(y)) * total(d, axis, keepdims=True)) / temperature
    return _allowed(dx, mask).astype(y.dtype, copy=False)


def logsumexp_vjp(
    d: Array, x: Array, lse: Array, axis: int = -1, *, temperature: float = 1.0, mask: Array | None = None
) -> Array:
    """``d * exp(z - lse) / temperature``."""
    p = np.exp(_scores(x, temperature, mask) - np.expand_dims(lse, axis))
    dx = np.expand_dims(d, axis) * p / temperature
    return _allowed(dx, mask).astype(x.dtype, copy=False)


def softmax_jvp(
    x: Array, dx: Array, axis: int = -1, *, temperature: float = 1.0, mask: Array | None = None
) -> tuple[Array, Array]:
    """``y`` and ``y * (dx - sum(y * dx)) / temperature``."""
    y, d = _softmax(_scores(x, temperature, mask), axis), _allowed(_compute(dx), mask)
    dy = y * (d - total(y * d, axis, keepdims=True)) / temperature
    return y.astype(x.dtype, copy=False), dy.astype(x.dtype, copy=False)


def log_softmax_jvp(
    x: Array, dx: Array, axis: int = -1, *, temperature: float = 1.0, mask: Array | None = None
) -> tuple[Array, Array]:
    """``y`` and ``(dx - sum(exp(y) * dx)) / temperature``."""
    y, d = _log_softmax(_scores(x, temperature, mask), axis), _allowed(_compute(dx), mask)
    dy = _allowed((d - total(np.exp(y) * d, axis, keepdims=True)) / temperature, mask)
    return y.astype(x.dtype, copy=False), dy.astype(x.dtype, copy=False)


def logsumexp_jvp(
    x: Array, dx: Array, axis: int = -1, *, temperature: float = 1.0, mask: Array | None = None
) -> tuple[Array, Array]:
    """``lse`` and ``sum(exp(z - lse) * dx) / temperature``."""
    z, d = _scores(x, temperature, mask), _allowed(_compute(dx), mask)
    lse = _logsumexp(z, axis)
    dlse = total(np.exp(z - lse) * d, axis) / temperature
    return lse.squeeze(axis), np.asarray(dlse, dtype=lse.dtype)


def token_log_probs(
    logits: Array,
    ids: Array,
    *,
    temperature: float = 1.0,
    mask: Array | None = None,
    stats: Sequence[str] = ("entropy", "lse", "sum_p2", "top1", "rank"),
) -> TokenStats[Array]:
    """``log p[id]`` and what is asked for beside it."""
    z = _scores(logits, temperature, mask)
    log_p = _log_softmax(z, -1)
    at = np.asarray(ids)[..., None]
    top1 = z.argmax(axis=-1)
    nothing = np.zeros(top1.shape, np.bool_) if mask is None else _top(z, -1)[..., 0] == -INF
    return TokenStats(
        log_prob=np.take_along_axis(log_p, at, -1)[..., 0],
        entropy=_entropy(log_p, -1) if "entropy" in stats else None,
        lse=_logsumexp(z, -1)[..., 0] if "lse" in stats else None,
        sum_p2=total(np.exp(2 * log_p), -1) if "sum_p2" in stats else None,
        top1=np.where(nothing, -1, top1) if "top1" in stats else None,
        rank=(z > np.take_along_axis(z, at, -1)).sum(axis=-1) if "rank" in stats else None,
    )


def token_log_probs_vjp(
    dlogp: Array,
    logits: Array,
    ids: Array,
    lse: Array,
    *,
    dentropy: Array | None = None,
    entropy: Array | None = None,
    temperature: float = 1.0,
    mask: Array | None = None,
) -> Array:
    """``(dlogp * (onehot(id) - p) - dentropy * p * (log p + entropy)) / temperature``."""
    log_p = _scores(logits, temperature, mask) - np.asarray(lse)[..., None]
    p = np.exp(log_p)
    d = np.asarray(dlogp)[..., None]
    dx = p * -d
    at = np.asarray(ids)[..., None]
    np.put_along_axis(dx, at, np.take_along_axis(dx, at, -1) + d, -1)
    if dentropy is not None and entropy is not None:
        slope = np.where(p == 0, 0, p * (log_p + np.asarray(entropy)[..., None]))
        dx -= np.asarray(dentropy)[..., None] * slope
    if temperature != 1:
        dx /= temperature
    return _allowed(dx, mask).astype(logits.dtype, copy=False)


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    axis: int = -1,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
) -> Any:
    """``(1 - eps) w[y] nll[y] + eps / V sum_c w[c] nll[c]``, and ``p sum(g) - g`` with g the weight of each nll."""
    z = np.moveaxis(_compute(logits), axis, -1)
    eps, classes = label_smoothing, z.shape[-1]
    log_p = _log_softmax(z, -1)
    at, kept, w = _targets(z, targets, weight, ignore_index)
    w_y = w[at[..., 0]] * kept
    loss = -w_y * (1 - eps) * np.take_along_axis(log_p, at, -1)[..., 0]
    if eps:
        loss = loss - kept * product(log_p, w) * (eps / classes)
    loss, divisor = _reduce(loss, w_y, kept, reduction)
    if not return_grad:
        return loss
    grad = np.exp(log_p)
    grad *= ((1 - eps) * w_y + eps / classes * total(w, 0))[..., None]
    if eps:
        grad -= eps / classes * w
    np.put_along_axis(grad, at, np.take_along_axis(grad, at, -1) - (1 - eps) * w_y[..., None], -1)
    grad *= (kept / divisor)[..., None]
    return loss, np.moveaxis(grad.astype(logits.dtype, copy=False), -1, axis)


def nll_loss(
    log_probs: Array,
    targets: Array,
    *,
    axis: int = -1,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    return_grad: bool = False,
) -> Any:
    """``-w[y] log_probs[y]``, and its slope -w[y] at y."""
    x = np.moveaxis(_compute(log_probs), axis, -1)
    at, kept, w = _targets(x, targets, weight, ignore_index)
    w_y = w[at[..., 0]] * kept
    loss, divisor = _reduce(-w_y * np.take_along_axis(x, at, -1)[..., 0], w_y, kept, reduction)
    if not return_grad:
        return loss
    grad = np.zeros_like(x)
    np.put_along_axis(grad, at, -w_y[..., None] / divisor, -1)
    return loss, np.moveaxis(grad.astype(log_probs.dtype, copy=False), -1, axis)


def _targets(x: Array, targets: Array, weight: Array | None, ignore_index: int) -> tuple[Array, Array, Array]:
    """Places (..., 1) of the targets, which rows are kept (1 or 0), and the weights of the classes."""
    kept = np.asarray(targets) != ignore_index
    at = np.where(kept, targets, 0)[..., None]
    w = np.ones(x.shape[-1], x.dtype) if weight is None else _compute(weight).astype(x.dtype)
    return at, kept.astype(x.dtype), w


def _reduce(loss: Array, w_y: Array, kept: Array, reduction: str) -> tuple[Any, Any]:
    """The loss, and what the gradient of the sum is divided by."""
    one = loss.dtype.type(1)
    loss = np.where(kept == 0, 0, loss)
    if reduction == "none":
        return loss, one
    if reduction == "sum":
        return total(loss, None), one
    return total(loss, None) / total(w_y, None), total(w_y, None)


def perplexity(log_probs: Array, mask: Array | None = None, axis: int | None = -1) -> Array:
    """``exp(-mean)``, in float64."""
    x = np.asarray(log_probs).astype(np.float64)
    kept = np.ones(x.shape, np.bool_) if mask is None else np.broadcast_to(mask, x.shape)
    result: Array = np.exp(-total(np.where(kept, x, 0), axis) / kept.sum(axis=axis))
    return result
