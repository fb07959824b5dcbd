"""The derivatives of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from npkernels._arrays import Array
from npkernels._cli.plain.attention import back, finite, four, heads, kept, rows_of, scores, weights
from npkernels._cli.plain.sums import product, total
from npkernels._types import AttentionGrads
from npkernels.reference._attention_scores import Causal, Options

INF = np.inf


def attention_vjp(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    *,
    dlse: Array | None = None,
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
    want_dbias: bool = False,
    want_dsinks: bool = False,
) -> AttentionGrads[Array]:
    """``dS = P * (dO V^T - delta)``, ``dQ = dS K``, ``dK = dS^T Q``, ``dV = P^T dO``."""
    chosen = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    d4, q4, k4, v4, o4 = four(dout), four(q), four(k), four(v), four(o)
    lse4 = rows_of(lse, q)
    s, slope = scores(q4, k4, chosen)
    dq, dk, dv, ds, dsinks = backward(
        d4,
        q4,
        k4,
        v4,
        o4,
        lse4,
        None if dlse is None else rows_of(dlse, q),
        s,
        slope,
        sinks,
        dropout_p,
        dropout_seed,
    )
    dbias = None
    if want_dbias and bias is not None:
        full = (1,) * (4 - np.ndim(bias)) + np.shape(bias)
        for axis, (n, size) in enumerate(zip(full, ds.shape, strict=True)):
            ds = total(ds, axis, keepdims=True) if n == 1 != size else ds
        dbias = ds.reshape(np.shape(bias)).astype(q.dtype, copy=False)
    return AttentionGrads(
        back(dq, q), back(dk, q), back(dv, q), dbias, dsinks if want_dsinks and sinks is not None else None
    )


def backward(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    dlse: Array | None,
    s: Array,
    slope: Any,
    sinks: Array | None,
    dropout_p: float,
    dropout_seed: int | None,
    rows: Array | None = None,
) -> tuple[Array, Array, Array, Array, Array]:
    """dq, dk, dv, ds and dsinks of arrays (B, H, ...); dsinks is zero where there are no sinks."""
    zero, count = s.dtype.type(0), k.shape[1]
    p = np.where(s == -INF, zero, np.exp(s - lse[..., None]))
    delta = total(dout * o, -1, keepdims=True)
    if dlse is not None:
        delta = delta - dlse[..., None]
    dp = kept(product(dout, heads(v, q.shape[1]).swapaxes(-1, -2)), dropout_p, dropout_seed, rows)
    ds = np.where(p == 0, zero, p * (dp - delta))
    dz = np.where(ds == 0, zero, ds * slope)
    dq = product(dz, heads(finite(k), q.shape[1]))
    dk = _groups(product(dz.swapaxes(-1, -2), finite(q)), count)
    dv = _groups(product(kept(p, dropout_p, dropout_seed, rows).swapaxes(-1, -2), finite(dout)), count)
    dsinks = np.zeros(q.shape[1], s.dtype)
    if sinks is not None:
        share = np.where(lse == -INF, zero, np.exp(np.asarray(sinks, s.dtype)[:, None] - lse))
        dsinks = total((share * -delta[..., 0]).swapaxes(0, 1).reshape(q.shape[1], -1), -1)
    return dq, dk, dv, ds, dsinks


def _groups(x: Array, count: int) -> Array:
    """Sum (B, Hq, K, D) over the query heads that share a key head."""
    if x.shape[1] == count:
        return x
    return total(x.reshape(x.shape[0], count, x.shape[1] // max(count, 1), *x.shape[2:]), 2)


def attention_jvp(
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
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
    return_lse: bool = False,
) -> tuple[Array, ...]:
    """``T = P * (dQ K^T + Q dK^T)`` and ``dO = P dV + T V - rowsum(T) * O``."""
    o = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    q4, k4, v4, dq4, dk4, dv4 = (four(x) for x in (q, k, v, dq, dk, dv))
    k4, v4, dk4, dv4 = (heads(x, q4.shape[1]) for x in (k4, v4, dk4, dv4))
    s, slope = scores(q4, k4, o)
    p, lse = weights(s, sinks)
    out = product(p, finite(v4))
    along = product(dq4, k4.swapaxes(-1, -2)) + product(q4, dk4.swapaxes(-1, -2))
    t = np.where((p == 0) | (slope == 0), p.dtype.type(0), p * (slope * along))
    dout = product(p, finite(dv4)) + product(t, finite(v4)) - total(t, -1, keepdims=True) * out
    results = (back(out, q), back(dout, q))
    return (*results, back(lse, q, lse.dtype)) if return_lse else results
