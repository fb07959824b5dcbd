"""Attention of sequences that are packed one after the other, without padding.

q (total_q, Hq, D)   k (total_k, Hkv, D)   v (total_k, Hkv, Dv)   cu_seqlens_q, cu_seqlens_k (N + 1,)
out (total_q, Hq, Dv)   lse (Hq, total_q), as in flash-attention

Sequence n has the queries cu_seqlens_q[n] to cu_seqlens_q[n + 1] and the keys cu_seqlens_k[n] to cu_seqlens_k[n + 1],
and is attended to as if it were alone: positions are counted from its first key, and "bottom_right" means its own
lengths. Only dropout numbers the rows over all sequences: row r = h * total_q + the row of the query.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._types import AttentionGrads
from ._attention_scores import (
    Causal,
    Options,
    Scores,
    check_causal,
    check_heads,
    check_scale,
    check_softcap,
    check_window,
    is_true,
    offsets,
    scores,
)
from ._common import Array, ArrayLike, IntArray, as_index, check_shape, like, working
from .attention import forward
from .attention_grads import backward, check_wanted
from .dropout import check_dropout, dropout_factor


def _starts(function: str, name: str, cu_seqlens: ArrayLike, total: int) -> IntArray:
    """The checked (N + 1,) boundaries of the sequences."""
    starts = as_index(function, name, cu_seqlens)
    if starts.ndim != 1 or len(starts) == 0:
        raise ValueError(f"{function}: {name} has shape {starts.shape}; expected (N + 1,)")
    if (np.diff(starts) < 0).any():
        n = int(np.argmax(np.diff(starts) < 0))
        raise ValueError(
            f"{function}: {name} falls from {starts[n]} to {starts[n + 1]} at [{n + 1}]; it must not decrease"
        )
    if starts[0] != 0 or starts[-1] != total:
        raise ValueError(f"{function}: {name} goes from {starts[0]} to {starts[-1]}; expected 0 to {total}")
    return starts


@dataclass(frozen=True)
class _Packed:
    """The checked arguments."""

    function: str
    q: Array
    k: Array
    v: Array
    starts_q: IntArray
    starts_k: IntArray
    options: Options
    dropout_p: float
    dropout_seed: int | None

    def sequences(self) -> Iterator[tuple[slice, slice, Scores, Array | None]]:
        """Rows of its queries, rows of its keys, scores and factor of dropout (1, Hq, S, K) of each sequence."""
        total, heads = self.q.shape[:2]
        rows = np.arange(heads)[:, None] * total + np.arange(total)
        starts = zip(self.starts_q.tolist(), self.starts_k.tolist(), strict=True)
        for n, ((q0, k0), (q1, k1)) in enumerate(itertools.pairwise(starts)):
            queries, keys = slice(q0, q1), slice(k0, k1)
            z = scores(self.function, alone(self.q, queries), alone(self.k, keys), self._of(n))
            numbers = rows[None, :, queries]
            yield (
                queries,
                keys,
                z,
                dropout_factor(self.function, self.dropout_p, self.dropout_seed, numbers, k1 - k0, z.s),
            )

    def _of(self, n: int) -> Options:
        """The options of sequence n."""
        o = self.options
        slopes, offset = o.alibi_slopes, o.q_offset
        if isinstance(slopes, np.ndarray) and slopes.ndim > 1:
            slopes = slopes[n]
        return replace(o, alibi_slopes=slopes, q_offset=offset[n] if isinstance(offset, np.ndarray) else None)


def alone(x: Array, rows: slice) -> Array:
    """(total, H, D) -> (1, H, length, D): one sequence."""
    return np.swapaxes(x[rows], 0, 1)[None]


def packed(x: Array) -> Array:
    """(1, H, length, D) -> (length, H, D)."""
    return np.swapaxes(x[0], 0, 1)


def _check(
    function: str,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    o: Options,
    dropout_p: float,
    dropout_seed: int | None,
) -> _Packed:
    q, k, v = working(function, q=q, k=k, v=v)
    for name, x, rows in (
        ("q", q, "total_q, Hq, D"),
        ("k", k, "total_k, Hkv, D"),
        ("v", v, "total_k, Hkv, Dv"),
    ):
        if x.ndim != 3:
            raise ValueError(f"{function}: {name} has shape {x.shape}; expected ({rows})")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"{function}: k has head size {k.shape[-1]}, q has {q.shape[-1]}; they must agree")
    check_heads(function, q.shape[1], k.shape[1])
    check_shape(function, "v", v, (*k.shape[:2], v.shape[-1]))
    starts_q = _starts(function, "cu_seqlens_q", cu_seqlens_q, len(q))
    starts_k = _starts(function, "cu_seqlens_k", cu_seqlens_k, len(k))
    if len(starts_q) != len(starts_k):
        raise ValueError(
            f"{function}: cu_seqlens_k has {len(starts_k)} entries, cu_seqlens_q has {len(starts_q)}; "
            "they must agree"
        )
    count, heads = len(starts_q) - 1, q.shape[1]
    # what the sequences would check, were there any
    check_scale(function, o.scale, q.shape[-1], q)
    check_softcap(function, o.softcap)
    check_window(function, o.window)
    check_causal(function, o.causal)
    check_dropout(function, dropout_p, dropout_seed)
    if o.q_offset is not None:
        o = replace(o, q_offset=offsets(function, "q_offset", o.q_offset, count))
    elif is_true(o.causal) and (wrong := np.diff(starts_q) != np.diff(starts_k)).any():
        n = int(np.argmax(wrong))
        raise ValueError(
            f"{function}: causal=True with {np.diff(starts_q)[n]} queries and {np.diff(starts_k)[n]} keys in "
            f"sequence {n} has two meanings; say causal='top_left', causal='bottom_right' or give q_offset"
        )
    if o.alibi_slopes is not None:
        slopes = like(function, "alibi_slopes", o.alibi_slopes, q)
        if slopes.shape not in ((heads,), (count, heads)):
            raise ValueError(
                f"{function}: alibi_slopes has shape {slopes.shape}; expected ({heads},) or ({count}, {heads})"
            )
        o = replace(o, alibi_slopes=slopes)
    if o.sinks is not None:
        sinks = like(function, "sinks", o.sinks, q)
        check_shape(function, "sinks", sinks, (heads,))
        o = replace(o, sinks=sinks)
    return _Packed(function, q, k, v, starts_q, starts_k, o, dropout_p, dropout_seed)


@np.errstate(all="ignore")
def attention_varlen(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    causal: Causal = False,
    window: Sequence[int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """`attention` of every sequence by itself; options as there, with N sequences for the batch.

    Examples
    --------
    >>> q = k = np.zeros((3, 1, 1), np.float32)
    >>> v = np.float32([1, 3, 7]).reshape(3, 1, 1)
    >>> attention_varlen(q, k, v, [0, 2, 3], [0, 2, 3], causal=True)[:, 0, 0]
    array([1., 2., 7.])
    """
    options = Options(None, None, causal, window, softcap, scale, alibi_slopes, sinks, q_offset)
    p = _check("attention_varlen", q, k, v, cu_seqlens_q, cu_seqlens_k, options, dropout_p, dropout_seed)
    total, heads = p.q.shape[:2]
    out = np.empty((total, heads, p.v.shape[-1]), dtype=p.q.dtype)
    lse = np.empty((heads, total), dtype=p.q.dtype)
    for queries, keys, z, dropout in p.sequences():
        part, tops = forward(z, alone(p.v, keys), dropout)
        out[queries], lse[:, queries] = packed(part), tops[0]
    return (out, lse) if return_lse else out


@np.errstate(all="ignore")
def attention_varlen_vjp(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    o: ArrayLike,
    lse: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    dlse: ArrayLike | None = None,
    causal: Causal = False,
    window: Sequence[int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    want_dsinks: bool = False,
) -> AttentionGrads[Any]:
    """`attention_vjp` of every sequence by itself; the gradient of the sinks is summed over all.

    Examples
    --------
    >>> q = k = v = o = np.zeros((3, 1, 1), np.float32)
    >>> lse = np.log([[2, 2, 1]])
    >>> grads = attention_varlen_vjp(np.float32([1, 1, 5]).reshape(3, 1, 1), q, k, v, o, lse, [0, 2, 3], [0, 2, 3])
    >>> grads.dv[:, 0, 0].round(4)
    array([1., 1., 5.])
    """
    name = "attention_varlen_vjp"
    options = Options(None, None, causal, window, softcap, scale, alibi_slopes, sinks, q_offset)
    p = _check(name, q, k, v, cu_seqlens_q, cu_seqlens_k, options, dropout_p, dropout_seed)
    check_wanted(name, "sinks", sinks, want_dsinks)
    total, heads = p.q.shape[:2]
    d, out, tops = like(name, "dout", dout, p.q), like(name, "o", o, p.q), like(name, "lse", lse, p.q)
    check_shape(name, "dout", d, (total, heads, p.v.shape[-1]))
    check_shape(name, "o", out, d.shape)
    check_shape(name, "lse", tops, (heads, total))
    dtops = np.zeros_like(tops) if dlse is None else like(name, "dlse", dlse, p.q)
    check_shape(name, "dlse", dtops, tops.shape)
    dq, dk, dv = np.zeros_like(p.q), np.zeros_like(p.k), np.zeros_like(p.v)
    dsinks = np.zeros(heads, dtype=p.q.dtype)
    for queries, keys, z, dropout in p.sequences():
        grads = backward(
            z,
            dropout,
            alone(d, queries),
            alone(p.q, queries),
            alone(p.k, keys),
            alone(p.v, keys),
            alone(out, queries),
            tops[None, :, queries],
            dtops[None, :, queries],
        )
        dq[queries], dk[keys], dv[keys] = packed(grads.dq), packed(grads.dk), packed(grads.dv)
        if grads.dsinks is not None:
            dsinks += grads.dsinks
    return AttentionGrads(dq=dq, dk=dk, dv=dv, dsinks=dsinks if want_dsinks else None)
