"""The derivatives of attention: backward (vjp) and forward (jvp).

s the scores, P their weights, m what dropout multiplies a weight by (0 or 1 / (1 - p)), O the output.

vjp, from the o and lse that the forward pass gave (flash-attention's backward):

    P = exp(s - lse)                    dV = (m P)^T dO
    delta = rowsum(dO * O) - dlse       dS = P * (m * (dO V^T) - delta)
    dQ = (slope * dS) K                 dK = (slope * dS)^T Q            slope = ds / d(q k^T)
    dbias = dS, summed over the axes along which the bias was broadcast
    dsinks = sum over rows of exp(sink - lse) * (-delta)

jvp:

    T = P * slope * (dQ K^T + Q dK^T)   dO = P dV + T V - rowsum(T) * O

P is 0 where a key is hidden, s = -inf or lse = -inf. What has a factor of exactly 0 out of P, m, dS, T and slope
contributes nothing, whatever its other factors are.

Source: T. Dao, "FlashAttention-2: Faster attention with better parallelism and work partitioning", 2023, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._types import AttentionGrads
from ._attention_scores import (
    Causal,
    Options,
    Scores,
    check_kv,
    check_qk,
    from_4d,
    repeat_heads,
    scores,
    softmax_of,
    sum_groups,
    to_4d,
    weighted_sum,
)
from ._common import Array, ArrayLike, as_array, check_shape, like, working
from .dropout import dense_rows, dropout_factor, dropped
from .softmax import INF


def times(factor: Array, other: Array) -> Array:
    """``factor * other``, and 0 where the factor is 0."""
    product: Array = np.where(factor == 0, 0, factor * other)
    return product


def transposed(x: Array) -> Array:
    """``x^T`` of the last two axes."""
    return np.swapaxes(x, -1, -2)


@dataclass(frozen=True)
class Backward:
    """Gradients (B, H, ...) of the three arrays, the scores (B, Hq, S, K) and, with sinks, of these (Hq,)."""

    dq: Array
    dk: Array
    dv: Array
    ds: Array
    dsinks: Array | None


def backward(
    z: Scores,
    dropout: Array | None,
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    dlse: Array | None,
) -> Backward:
    """All gradients; arrays as (B, H, ...)."""
    heads, kv_heads = q.shape[1], k.shape[1]
    k_, v_ = repeat_heads(k, heads), repeat_heads(v, heads)
    lse = lse[..., None]
    p = np.where((z.s == -INF) | (lse == -INF), 0, np.exp(z.s - lse))
    delta = (dout * o).sum(axis=-1, keepdims=True)
    if dlse is not None:
        delta = delta - dlse[..., None]
    ds = times(p, dropped(dout @ transposed(v_), dropout) - delta)
    dz = np.where((ds == 0) | (z.slope == 0), 0, ds * z.slope)
    dsinks = None
    if z.sinks is not None:
        p_sink = np.where((z.sinks == -INF) | (lse == -INF), 0, np.exp(z.sinks - lse))
        dsinks = times(p_sink, -delta).sum(axis=(0, 2, 3))
    return Backward(
        dq=weighted_sum(dz, k_),
        dk=sum_groups(weighted_sum(transposed(dz), q), kv_heads),
        dv=sum_groups(weighted_sum(transposed(dropped(p, dropout)), dout), kv_heads),
        ds=ds,
        dsinks=dsinks,
    )


def sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum x over the axes along which an array of that shape was broadcast."""
    full = (1,) * (x.ndim - len(shape)) + shape
    axes = tuple(i for i, (n, size) in enumerate(zip(full, x.shape, strict=True)) if n == 1 != size)
    total: Array = x.sum(axis=axes, keepdims=True).reshape(shape)
    return total


@np.errstate(all="ignore")
def attention_vjp(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    o: ArrayLike,
    lse: ArrayLike,
    *,
    dlse: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    window: Sequence[int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    want_dbias: bool = False,
    want_dsinks: bool = False,
) -> AttentionGrads[Any]:
    """The gradients of ``sum(dout * out) + sum(dlse * lse)``; o and lse as `attention` gave them.

    They are taken as they come: P = exp(s - lse) and delta = rowsum(dout * o) - dlse.

    Examples
    --------
    >>> q = k = np.zeros((2, 1), np.float32)
    >>> v = np.float32([[1], [3]])
    >>> grads = attention_vjp(np.float32([[1], [0]]), q, k, v, [[2], [2]], np.log([2, 2]))
    >>> grads.dv.round(4)
    array([[0.5],
           [0.5]])
    """
    name = "attention_vjp"
    options = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    q, k, v = working(name, q=q, k=k, v=v)
    check_qk(name, q, k)
    check_kv(name, k, v)
    dout, o, lse = like(name, "dout", dout, q), like(name, "o", o, q), like(name, "lse", lse, q)
    check_shape(name, "dout", dout, (*q.shape[:-1], v.shape[-1]))
    check_shape(name, "o", o, (*q.shape[:-1], v.shape[-1]))
    check_shape(name, "lse", lse, q.shape[:-1])
    if dlse is not None:
        dlse = like(name, "dlse", dlse, q)
        check_shape(name, "dlse", dlse, lse.shape)
        dlse = dlse.reshape((1,) * (4 - q.ndim) + dlse.shape)
    check_wanted(name, "bias", bias, want_dbias)
    check_wanted(name, "sinks", sinks, want_dsinks)
    z = scores(name, to_4d(q), to_4d(k), options)
    rows, keys = dense_rows(z.s.shape[:-1]), z.s.shape[-1]
    dropout = dropout_factor(name, dropout_p, dropout_seed, rows, keys, q)
    lse = lse.reshape((1,) * (4 - q.ndim) + lse.shape)
    grads = backward(z, dropout, to_4d(dout), to_4d(q), to_4d(k), to_4d(v), to_4d(o), lse, dlse)
    return AttentionGrads(
        dq=from_4d(grads.dq, q.ndim),
        dk=from_4d(grads.dk, q.ndim),
        dv=from_4d(grads.dv, q.ndim),
        dbias=sum_to(grads.ds, as_array(bias).shape) if want_dbias else None,
        dsinks=grads.dsinks if want_dsinks else None,
    )


def check_wanted(function: str, name: str, value: Any, wanted: bool) -> None:
    """Refuse to give the gradient of what is not there."""
    if wanted and value is None:
        raise ValueError(f"{function}: want_d{name} is True, but there is no {name}; pass {name}=")


@np.errstate(all="ignore")
def attention_jvp(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    dq: ArrayLike,
    dk: ArrayLike,
    dv: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    window: Sequence[int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    return_lse: bool = False,
) -> tuple[Array, ...]:
    """``out = attention(q, k, v)`` and its derivative along (dq, dk, dv); `return_lse` adds lse.

    Examples
    --------
    >>> x, d = np.zeros((2, 1), np.float32), np.float32([[1], [3]])
    >>> out, dout = attention_jvp(x, x, x, x, x, d, causal=True)
    >>> dout
    array([[1.],
           [2.]])
    """
    name = "attention_jvp"
    options = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    q, k, v = working(name, q=q, k=k, v=v)
    check_qk(name, q, k)
    check_kv(name, k, v)
    tangents = []
    for argument, tangent, x in (("dq", dq, q), ("dk", dk, k), ("dv", dv, v)):
        tangents.append(like(name, argument, tangent, x))
        check_shape(name, argument, tangents[-1], x.shape)
    ndim = q.ndim
    q, k, v, dq, dk, dv = (to_4d(x) for x in (q, k, v, *tangents))
    heads = q.shape[1]
    k, v, dk, dv = (repeat_heads(x, heads) for x in (k, v, dk, dv))
    z = scores(name, q, k, options)
    p, lse = softmax_of(z)
    out = weighted_sum(p, v)
    along = dq @ transposed(k) + q @ transposed(dk)
    t = times(p, times(z.slope, along))
    dout = weighted_sum(p, dv) + weighted_sum(t, v) - t.sum(axis=-1, keepdims=True) * out
    results = (out, dout, lse) if return_lse else (out, dout)
    return tuple(from_4d(x, ndim) for x in results)
