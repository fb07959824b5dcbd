"""Attention of packed sequences: one after the other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from npkernels._arrays import Array, compute_dtype
from npkernels._cli.plain.attention import finite, four, heads, kept, scores, weights
from npkernels._cli.plain.attention_grads import backward
from npkernels._cli.plain.sums import product
from npkernels._types import AttentionGrads
from npkernels.reference._attention_scores import Causal, Options


def attention_varlen(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    *,
    causal: Causal = False,
    window: Sequence[int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    q_offset: Any = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    return_lse: bool = False,
) -> Any:
    """`attention` of each sequence."""
    o = Options(None, None, causal, window, softcap, scale, alibi_slopes, sinks, q_offset)
    total, count = q.shape[:2]
    out = np.zeros((total, count, v.shape[-1]), q.dtype)
    lse = np.zeros((count, total), compute_dtype(q.dtype))
    for queries, keys, numbers, own in _sequences(q, cu_seqlens_q, cu_seqlens_k, o):
        s, _ = scores(_alone(q, queries), _alone(k, keys), own)
        p, lse[:, queries] = (x[0] for x in weights(s, sinks))
        p = kept(p[None], dropout_p, dropout_seed, numbers)
        out[queries] = product(p, heads(finite(_alone(v, keys)), count))[0].swapaxes(0, 1)
    return (out, lse) if return_lse else out


def attention_varlen_vjp(
    dout: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    *,
    dlse: Array | None = None,
    causal: Causal = False,
    window: Sequence[int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    q_offset: Any = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    want_dsinks: bool = False,
) -> AttentionGrads[Array]:
    """`attention_vjp` of each sequence."""
    chosen = Options(None, None, causal, window, softcap, scale, alibi_slopes, sinks, q_offset)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    dsinks = np.zeros(q.shape[1], compute_dtype(q.dtype))
    for queries, keys, numbers, own in _sequences(q, cu_seqlens_q, cu_seqlens_k, chosen):
        d, q1, o1 = (_alone(x, queries) for x in (dout, q, o))
        k1, v1 = _alone(k, keys), _alone(v, keys)
        s, slope = scores(q1, k1, own)
        tops = lse[None, :, queries]
        dtops = None if dlse is None else dlse[None, :, queries]
        *grads, _, part = backward(
            d, q1, k1, v1, o1, tops, dtops, s, slope, sinks, dropout_p, dropout_seed, numbers
        )
        dq[queries], dk[keys], dv[keys] = (x[0].swapaxes(0, 1) for x in grads)
        dsinks += part
    return AttentionGrads(dq, dk, dv, None, dsinks if want_dsinks else None)


def _alone(x: Array, rows: slice) -> Array:
    """(total, H, D) -> (1, H, length, D), in the compute dtype."""
    return four(x[rows].swapaxes(0, 1))


def _sequences(
    q: Array, cu_q: Array, cu_k: Array, o: Options
) -> Iterator[tuple[slice, slice, Array, Options]]:
    """Rows of the queries, rows of the keys, numbers of the rows for dropout, and own options of each sequence."""
    total, count = q.shape[:2]
    numbers = np.arange(count)[:, None] * total + np.arange(total)
    slopes: Any = o.alibi_slopes
    offset: Any = o.q_offset
    starts = zip(np.asarray(cu_q).tolist(), np.asarray(cu_k).tolist(), strict=True)
    for n, ((q0, k0), (q1, k1)) in enumerate(itertools.pairwise(starts)):
        own = dataclasses.replace(
            o,
            alibi_slopes=slopes[n] if slopes is not None and np.ndim(slopes) > 1 else slopes,
            q_offset=offset[n] if offset is not None and np.ndim(offset) else offset,
        )
        yield slice(q0, q1), slice(k0, k1), numbers[None, :, q0:q1], own
