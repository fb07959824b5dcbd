"""Attention in its textbook form, and the merging of partial results.

B batch, Hq/Hkv query/key heads (Hq a multiple of Hkv), S queries, K keys, D head size, Dv value head size.

q (B, Hq, S, D)   k (B, Hkv, K, D)   v (B, Hkv, K, Dv); without B, or without B and H, what is missing is 1

1. scores (B, Hq, S, K) = scale * q @ k^T + bias; query head h uses key head h // (Hq / Hkv)
2. allowed: `mask`, and with `causal` the keys j <= i + offset of query i
3. weights = softmax of the scores over the allowed keys; all 0 where no key is allowed or all allowed scores
are -inf 4. out = weights @ v, in which a weight of exactly 0 contributes nothing, not even 0 * NaN
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ._common import (
    Array,
    ArrayLike,
    BoolArray,
    IntArray,
    as_array,
    as_index,
    as_mask,
    broadcast,
    check_shape,
    like,
    working,
)
from .softmax import plain_logsumexp, plain_softmax

Causal = bool | Literal["top_left", "bottom_right"]


def _to_4d(x: Array) -> Array:
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _from_4d(x: Array, ndim: int) -> Array:
    """A result (B, Hq, ...) for inputs of `ndim` dimensions: without the leading ones that were added."""
    return x.reshape(x.shape[4 - ndim :])


def _check_qk(function: str, q: Array, k: Array) -> None:
    if q.ndim not in (2, 3, 4):
        raise ValueError(f"{function}: q has shape {q.shape}; expected (B, H, S, D), (H, S, D) or (S, D)")
    if k.ndim != q.ndim:
        raise ValueError(f"{function}: k has {k.ndim} dimensions, q has {q.ndim}; they must agree")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"{function}: k has head size {k.shape[-1]}, q has {q.shape[-1]}; they must agree")
    if q.ndim == 4 and k.shape[0] != q.shape[0]:
        raise ValueError(f"{function}: k has batch {k.shape[0]}, q has {q.shape[0]}; they must agree")
    if q.ndim > 2:
        heads_q, heads_k = q.shape[-3], k.shape[-3]
        if heads_q % heads_k if heads_k else heads_q:
            raise ValueError(
                f"{function}: k has {heads_k} heads, q has {heads_q}; q heads must be a multiple of k heads"
            )


def _repeat_heads(x: Array, heads: int) -> Array:
    """(B, Hkv, K, D) -> (B, heads, K, D): each key head is used by heads / Hkv query heads in a row."""
    return np.repeat(x, heads // x.shape[1], axis=1) if x.shape[1] else x


def _offset(function: str, causal: Causal, q_offset: Any, batch: int, queries: int, keys: int) -> IntArray:
    """(B, 1, 1, 1): query i stands at key position i + offset."""
    if q_offset is not None:
        offset = as_index(function, "q_offset", q_offset)
        if offset.shape not in ((), (batch,)):
            raise ValueError(
                f"{function}: q_offset has shape {offset.shape}; expected an integer or ({batch},)"
            )
    else:
        offset = np.asarray(keys - queries if causal == "bottom_right" else 0)
    return np.broadcast_to(offset, (batch,)).reshape(batch, 1, 1, 1)


def _allowed(
    function: str, mask: ArrayLike | None, causal: Causal, q_offset: Any, shape: tuple[int, int, int, int]
) -> BoolArray:
    """Which query may attend to which key, at the shape of the scores."""
    batch, _, queries, keys = shape
    if causal not in (False, True, "top_left", "bottom_right"):
        raise ValueError(
            f"{function}: causal is {causal!r}; expected False, True, 'top_left' or 'bottom_right'"
        )
    if causal is True and q_offset is None and queries != keys:
        raise ValueError(
            f"{function}: causal=True with {queries} queries and {keys} keys has two meanings; "
            "say causal='top_left', causal='bottom_right' or give q_offset"
        )
    offset = _offset(function, causal, q_offset, batch, queries, keys)
    allowed = as_mask(function, mask, shape)
    if allowed is None:
        allowed = np.ones(shape, dtype=bool)
    if causal:
        i, j = np.arange(queries)[:, None], np.arange(keys)
        allowed = allowed & (j <= i + offset)
    return allowed


def _masked_scores(
    function: str,
    q: Array,
    k: Array,
    mask: ArrayLike | None,
    bias: ArrayLike | None,
    causal: Causal,
    scale: float | None,
    q_offset: Any,
) -> tuple[Array, BoolArray]:
    """The scores (B, Hq, S, K), -inf where a query may not attend to a key, and where it may."""
    q, k = _to_4d(q), _to_4d(k)
    if scale is None:
        scale = 1 / np.sqrt(q.dtype.type(max(q.shape[-1], 1)))
    elif not math.isfinite(scale):
        raise ValueError(f"{function}: scale is {scale}; expected a finite number")
    s: Array = scale * (q @ np.swapaxes(_repeat_heads(k, q.shape[1]), -1, -2))
    if bias is not None:
        if as_array(bias).dtype == np.bool_:
            raise TypeError(f"{function}: bias has dtype bool; expected numbers (mask= takes bool)")
        s = s + broadcast(function, "bias", like(function, "bias", bias, s), s.shape)
    allowed = _allowed(function, mask, causal, q_offset, s.shape)
    return np.where(allowed, s, -np.inf), allowed


def weighted_sum(weights: Array, values: Array) -> Array:
    """``weights (..., S, K) @ values (..., K, D)``, in which a weight of exactly 0 contributes nothing.

    That differs from a matrix product only at the values that are not finite, so those are added key by key.
    """
    total: Array = weights @ np.where(np.isfinite(values), values, 0)
    wild = ~np.isfinite(values)
    for key in np.flatnonzero(wild.any(axis=tuple(i for i in range(values.ndim) if i != values.ndim - 2))):
        w = weights[..., key, None]
        terms = w * np.where(wild, values, 0)[..., key, None, :]
        total = total + np.where(w == 0, 0, terms)
    return total


@np.errstate(all="ignore")
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    scale: float | None = None,
    q_offset: ArrayLike | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """``softmax(scale * q @ k^T + bias) @ v`` over the allowed keys; `return_lse` adds the scores' logsumexp.

    `mask` is bool, True = may attend. `scale` is 1 / sqrt(D) by default. `causal` sets the offset of the
    queries: "top_left" 0, "bottom_right" K - S; an explicit `q_offset` (integer or (B,)) goes before both.
    True means "top_left" and is refused where the two differ.

    Examples
    --------
    >>> q = k = np.zeros((2, 1), np.float32)
    >>> attention(q, k, np.float32([[1], [3]]), causal=True)
    array([[1.],
           [2.]])
    """
    q, k, v = working("attention", q=q, k=k, v=v)
    _check_qk("attention", q, k)
    if v.shape[:-1] != k.shape[:-1]:
        raise ValueError(
            f"attention: v has shape {v.shape}, k has {k.shape}; all but the last dimension must agree"
        )
    s, allowed = _masked_scores("attention", q, k, mask, bias, causal, scale, q_offset)
    weights = plain_softmax(s, allowed, -1)
    out = weighted_sum(weights, _repeat_heads(_to_4d(v), s.shape[1]))
    if not return_lse:
        return _from_4d(out, q.ndim)
    return _from_4d(out, q.ndim), _from_4d(plain_logsumexp(s, -1)[..., 0], q.ndim)


@np.errstate(all="ignore")
def attention_weights(
    q: ArrayLike,
    k: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    scale: float | None = None,
    q_offset: ArrayLike | None = None,
) -> Array:
    """The weights (B, Hq, S, K) that `attention` gives to the values.

    Examples
    --------
    >>> q = k = np.zeros((2, 1), np.float32)
    >>> attention_weights(q, k, causal=True)
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    q, k = working("attention_weights", q=q, k=k)
    _check_qk("attention_weights", q, k)
    s, allowed = _masked_scores("attention_weights", q, k, mask, bias, causal, scale, q_offset)
    return _from_4d(plain_softmax(s, allowed, -1), q.ndim)


@np.errstate(all="ignore")
def merge_attention(outs: Sequence[ArrayLike], lses: Sequence[ArrayLike]) -> tuple[Array, Array]:
    """Attention over all keys from attention over disjoint parts of them.

    outs: (..., S, Dv) each, lses: (..., S) each. lse = logsumexp(lses), out = sum_i exp(lse_i - lse) * out_i.
    A part with lse_i = -inf saw no key and contributes nothing; if all are, out is 0 and lse -inf.

    Examples
    --------
    >>> out, lse = merge_attention(np.float32([[[1]], [[3]]]), np.float32([[0], [0]]))
    >>> out, lse.round(4)
    (array([[2.]]), array([0.6931]))
    """
    if len(outs) == 0 or len(outs) != len(lses):
        raise ValueError(
            f"merge_attention: {len(outs)} outs and {len(lses)} lses; expected as many, at least one"
        )
    parts = working("merge_attention", **{f"outs[{i}]": out for i, out in enumerate(outs)})
    tops = [like("merge_attention", f"lses[{i}]", lse, parts[0]) for i, lse in enumerate(lses)]
    for i, (part, top) in enumerate(zip(parts, tops, strict=True)):
        check_shape("merge_attention", f"outs[{i}]", part, parts[0].shape)
        check_shape("merge_attention", f"lses[{i}]", top, part.shape[:-1])
    stacked = np.stack(tops, axis=-1)
    weights = plain_softmax(stacked, np.ones(stacked.shape, dtype=bool), -1)
    out: Array = np.zeros_like(parts[0])
    for i, part in enumerate(parts):
        w = weights[..., i, None]
        out = out + np.where(tops[i][..., None] == -np.inf, 0, w * part)
    return out, plain_logsumexp(stacked, -1)[..., 0]
