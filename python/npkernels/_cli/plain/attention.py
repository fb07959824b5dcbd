"""Attention, and the merging of its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from npkernels._arrays import Array, compute_dtype
from npkernels._cli.plain.softmax import _compute, _logsumexp, _softmax
from npkernels._cli.plain.sums import product
from npkernels.reference._attention_scores import Causal, Options
from npkernels.reference.dropout import dropout_kept

INF = np.inf


def scores(q: Array, k: Array, o: Options) -> tuple[Array, Any]:
    """Scores (B, Hq, S, K) of 4-D q and k, and their slope by the product; the sinks are left to `weights`."""
    factor = q.dtype.type(1 / math.sqrt(max(q.shape[-1], 1)) if o.scale is None else o.scale)
    s = product(q, heads(k, q.shape[1]).swapaxes(-1, -2))
    s *= factor
    slope: Any = factor
    if o.softcap:
        cap = s.dtype.type(o.softcap)
        t = np.tanh(s / cap)
        s, slope = t * cap, (1 - t * t) * factor
    if o.bias is not None:
        s += _compute(o.bias)
    queries, keys = s.shape[-2:]
    ends: Any = keys if o.kv_lengths is None else np.reshape(o.kv_lengths, (-1, 1, 1, 1))
    offset: Any = o.q_offset
    if offset is None:
        offset = ends - queries if o.causal == "bottom_right" else 0
    p, j = np.reshape(offset, (-1, 1, 1, 1)) + np.arange(queries)[:, None], np.arange(keys)
    if o.alibi_slopes is not None:
        s -= np.asarray(o.alibi_slopes, s.dtype)[..., None, None] * np.abs(p - j).astype(s.dtype)
    left, right = o.window or (-1, -1)
    if o.kv_lengths is not None:
        s = _hide(s, j < ends)
    if o.causal:
        s = _hide(s, j <= p)
    if left >= 0:
        s = _hide(s, p - j <= left)
    if right >= 0:
        s = _hide(s, j - p <= right)
    return (s if o.mask is None else _hide(s, o.mask)), slope


def _hide(s: Array, allowed: Any) -> Array:
    return np.where(allowed, s, s.dtype.type(-INF))


def weights(s: Array, sinks: Any) -> tuple[Array, Array]:
    """Softmax of the scores, and lse (B, Hq, S); a sink is one more key."""
    if sinks is None:
        return _softmax(s, -1), _logsumexp(s, -1)[..., 0]
    column = np.broadcast_to(np.asarray(sinks, s.dtype)[:, None, None], (*s.shape[:-1], 1))
    z = np.concatenate([s, column], axis=-1)
    return _softmax(z, -1)[..., :-1], _logsumexp(z, -1)[..., 0]


def kept(w: Array, p: float, seed: int | None, rows: Array | None = None) -> Array:
    """Weights, or what else stands in their place, after dropout."""
    if not p:
        return w
    numbers = np.arange(math.prod(w.shape[:-1])).reshape(w.shape[:-1]) if rows is None else rows
    chosen = dropout_kept(p, seed or 0, numbers, w.shape[-1])
    zero: Array = w.dtype.type(0)
    return np.where(chosen, w / w.dtype.type(1 - p), zero)


def heads(x: Array, count: int) -> Array:
    """(B, Hkv, K, D) -> (B, count, K, D)."""
    group = count // max(x.shape[1], 1)
    repeated: Array = x if group == 1 else np.repeat(x, group, axis=1)
    return repeated


def four(x: Array) -> Array:
    """Array in the compute dtype with the axes (B, H, ...) that were left out."""
    x = _compute(x)
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def rows_of(x: Array, q: Array) -> Array:
    """Statistics of rows, (..., S), as (B, H, S)."""
    return np.asarray(x, compute_dtype(q.dtype)).reshape((1,) * (4 - q.ndim) + x.shape)


def back(x: Array, q: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """A result (B, H, ...) with as many axes as q, and of its dtype if none is named."""
    return x.reshape(x.shape[4 - q.ndim :]).astype(dtype or q.dtype, copy=False)


def finite(x: Array) -> Array:
    """For products with weights of zero: what a mask hides may be anything, and 0 * NaN is not 0."""
    return np.where(np.isfinite(x), x, x.dtype.type(0))


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: Causal = False,
    window: Sequence[int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    q_offset: Any = None,
    kv_lengths: Array | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    return_lse: bool = False,
) -> Any:
    """``softmax(scale * q @ k^T + bias) @ v``."""
    o = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    q4, k4, v4 = four(q), four(k), four(v)
    s, _ = scores(q4, k4, o)
    p, lse = weights(s, sinks)
    out = product(kept(p, dropout_p, dropout_seed), heads(finite(v4), q4.shape[1]))
    return (back(out, q), back(lse, q, lse.dtype)) if return_lse else back(out, q)


def attention_weights(
    q: Array,
    k: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: Causal = False,
    window: Sequence[int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    q_offset: Any = None,
    kv_lengths: Array | None = None,
) -> Array:
    """``softmax(scale * q @ k^T + bias)``."""
    o = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    s, _ = scores(four(q), four(k), o)
    return back(weights(s, sinks)[0], q)


def merge_attention(outs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]:
    """``sum_i exp(lses[i] - lse) * outs[i]`` and ``lse = logsumexp(lses)``."""
    dtype = compute_dtype(outs[0].dtype)
    tops = np.stack([np.asarray(lse, dtype) for lse in lses], axis=-1)
    shares = _softmax(tops, -1)
    out = np.zeros(outs[0].shape, dtype)
    for i, part in enumerate(outs):
        w = shares[..., i, None]
        out += np.where(w == 0, 0, w * _compute(part))
    return out.astype(outs[0].dtype, copy=False), _logsumexp(tops, -1)[..., 0]
