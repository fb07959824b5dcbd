"""Attention in its textbook form, and the merging of partial results.

B batch, Hq/Hkv query/key heads (Hq a multiple of Hkv), S queries, K keys, D head size, Dv value head size.

q (B, Hq, S, D)   k (B, Hkv, K, D)   v (B, Hkv, K, Dv); without B, or without B and H, what is missing is 1

1. scores (B, Hq, S, K), -inf where a key is hidden: see _attention_scores.py
2. weights = softmax of the scores over the allowed keys, and the sink if there is one; all 0 where no key is allowed
   or all allowed scores are -inf. lse is the logarithm of the denominator
3. dropout: weights are 0 or divided by 1 - dropout_p; see dropout.py
4. out = weights @ v, in which a weight of exactly 0 contributes nothing, not even 0 * NaN
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
    to_4d,
    weighted_sum,
)
from ._common import Array, ArrayLike, check_shape, like, working
from .dropout import dense_rows, dropout_factor, dropped
from .softmax import plain_logsumexp, plain_softmax


def forward(z: Scores, v: Array, dropout: Array | None) -> tuple[Array, Array]:
    """Output (B, Hq, S, Dv) and lse (B, Hq, S) of values (B, Hkv, K, Dv)."""
    weights, lse = softmax_of(z)
    return weighted_sum(dropped(weights, dropout), repeat_heads(v, z.s.shape[1])), lse


@np.errstate(all="ignore")
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
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
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """``softmax(scores) @ v`` over the allowed keys; `return_lse` adds the logarithm of the denominators.

    mask: bool, bias: numbers, broadcast to (B, Hq, S, K); True = may attend. scale: 1 / sqrt(D) by default.
    causal: "top_left", "bottom_right", or True where both are the same. window: (left, right), -1 = open.
    softcap: 0 = none. alibi_slopes: (Hq,) or (B, Hq). sinks: (Hq,). q_offset: an integer or (B,).
    kv_lengths: (B,); keys from there on do not exist. dropout_seed: an integer, modulo 2^64.

    Examples
    --------
    >>> q = k = np.zeros((2, 1), np.float32)
    >>> attention(q, k, np.float32([[1], [3]]), causal=True)
    array([[1.],
           [2.]])
    """
    options = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    q, k, v = working("attention", q=q, k=k, v=v)
    check_qk("attention", q, k)
    check_kv("attention", k, v)
    z = scores("attention", to_4d(q), to_4d(k), options)
    rows, keys = dense_rows(z.s.shape[:-1]), z.s.shape[-1]
    dropout = dropout_factor("attention", dropout_p, dropout_seed, rows, keys, q)
    out, lse = forward(z, to_4d(v), dropout)
    return (from_4d(out, q.ndim), from_4d(lse, q.ndim)) if return_lse else from_4d(out, q.ndim)


@np.errstate(all="ignore")
def attention_weights(
    q: ArrayLike,
    k: ArrayLike,
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
) -> Array:
    """The weights (B, Hq, S, K) that `attention` gives to the values; with `sinks` they sum to less than 1.

    Examples
    --------
    >>> q = k = np.zeros((2, 1), np.float32)
    >>> attention_weights(q, k, causal=True)
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    options = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    q, k = working("attention_weights", q=q, k=k)
    check_qk("attention_weights", q, k)
    weights, _ = softmax_of(scores("attention_weights", to_4d(q), to_4d(k), options))
    return from_4d(weights, q.ndim)


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
