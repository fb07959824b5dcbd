"""Attention, the merging of its parts, and rotary embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from npkernels._arrays import Array, compute_dtype
from npkernels._cli.plain.softmax import _compute, _logsumexp, _softmax
from npkernels._cli.plain.sums import product

INF = np.inf


def _scores(
    q: Array,
    k: Array,
    mask: Array | None,
    bias: Array | None,
    causal: bool | str,
    scale: float | None,
    q_offset: Any,
) -> Array:
    """(B, Hq, S, K) of 4-D q and k."""
    factor = 1 / math.sqrt(max(q.shape[-1], 1)) if scale is None else scale
    group = q.shape[1] // max(k.shape[1], 1)
    s = product(q, np.repeat(k, group, axis=1).swapaxes(-1, -2))
    s *= s.dtype.type(factor)
    if bias is not None:
        s += _compute(bias)
    if causal:
        queries, keys = s.shape[-2:]
        offset = (keys - queries if causal == "bottom_right" else 0) if q_offset is None else q_offset
        last = np.reshape(offset, (-1, 1, 1, 1)) + np.arange(queries)[:, None]
        s = np.where(np.arange(keys) <= last, s, s.dtype.type(-INF))
    return s if mask is None else np.where(mask, s, s.dtype.type(-INF))


def _4d(x: Array) -> Array:
    x = _compute(x)
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: bool | str = False,
    scale: float | None = None,
    q_offset: Any = None,
    return_lse: bool = False,
) -> Any:
    """``softmax(scale * q @ k^T + bias) @ v``."""
    q4, k4, v4 = _4d(q), _4d(k), _4d(v)
    s = _scores(q4, k4, mask, bias, causal, scale, q_offset)
    v4 = np.where(np.isfinite(v4), v4, 0)  # 0 * NaN: what a mask hides may be anything
    out = product(_softmax(s, -1), np.repeat(v4, q4.shape[1] // max(v4.shape[1], 1), axis=1))
    out = out.reshape(out.shape[4 - q.ndim :]).astype(q.dtype, copy=False)
    if not return_lse:
        return out
    lse = _logsumexp(s, -1)[..., 0]
    return out, lse.reshape(lse.shape[4 - q.ndim :])


def attention_weights(
    q: Array,
    k: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: bool | str = False,
    scale: float | None = None,
    q_offset: Any = None,
) -> Array:
    """``softmax(scale * q @ k^T + bias)``."""
    weights = _softmax(_scores(_4d(q), _4d(k), mask, bias, causal, scale, q_offset), -1)
    return weights.reshape(weights.shape[4 - q.ndim :]).astype(q.dtype, copy=False)


def merge_attention(outs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]:
    """``sum_i exp(lses[i] - lse) * outs[i]`` and ``lse = logsumexp(lses)``."""
    dtype = compute_dtype(outs[0].dtype)
    tops = np.stack([np.asarray(lse, dtype) for lse in lses], axis=-1)
    weights = _softmax(tops, -1)
    out = np.zeros(outs[0].shape, dtype)
    for i, part in enumerate(outs):
        w = weights[..., i, None]
        out += np.where(w == 0, 0, w * _compute(part))
    return out.astype(outs[0].dtype, copy=False), _logsumexp(tops, -1)[..., 0]


def rotary_embedding(
    x: Array,
    positions: Array | None = None,
    *,
    cos: Array | None = None,
    sin: Array | None = None,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> Array:
    """``(a cos - b sin, a sin + b cos)`` for each pair."""
    return _rotate(x, positions, cos, sin, base, interleaved, rotary_dim, 1)


def rotary_embedding_vjp(
    dy: Array,
    positions: Array | None = None,
    *,
    cos: Array | None = None,
    sin: Array | None = None,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> Array:
    """The same with the negative angle."""
    return _rotate(dy, positions, cos, sin, base, interleaved, rotary_dim, -1)


def _rotate(
    x: Array,
    positions: Array | None,
    cos: Array | None,
    sin: Array | None,
    base: float,
    interleaved: bool,
    rotary_dim: int | None,
    direction: int,
) -> Array:
    r = x.shape[-1] if rotary_dim is None else rotary_dim
    a = _compute(x)
    if (
        cos is None or sin is None
    ):  # angles in float64: those of float32 would be off by the position times its ulp
        where = np.arange(x.shape[-2]) if positions is None else positions
        angle = np.asarray(where)[..., None] * base ** (-np.arange(r // 2) * 2.0 / max(r, 1))
        c, s = np.cos(angle).astype(a.dtype), np.sin(angle).astype(a.dtype)
    else:
        c, s = _compute(cos).astype(a.dtype), _compute(sin).astype(a.dtype)
        if positions is not None:
            c, s = c[positions], s[positions]
    if c.ndim == 3:
        c, s = (t.reshape(t.shape[0], *(1,) * (x.ndim - 3), *t.shape[1:]) for t in (c, s))
    first, second = (slice(0, r, 2), slice(1, r, 2)) if interleaved else (slice(0, r // 2), slice(r // 2, r))
    y: Array = a.copy()
    y[..., first] = a[..., first] * c - direction * s * a[..., second]
    y[..., second] = direction * s * a[..., first] + c * a[..., second]
    return y.astype(x.dtype, copy=False)
