"""The attention layer: projections around attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from npkernels._arrays import Array
from npkernels._cli.plain.attention import heads as repeated
from npkernels._cli.plain.attention import kept, scores, weights
from npkernels._cli.plain.attention_grads import backward
from npkernels._cli.plain.rotary import rotary_embedding, rotary_embedding_vjp
from npkernels._cli.plain.softmax import _compute
from npkernels._cli.plain.sums import product, total
from npkernels._types import MultiHeadGrads
from npkernels.reference._attention_scores import Causal, Options
from npkernels.reference.multi_head import join, split


def _batch(x: Array) -> Array:
    """(..., S, E) -> (B, S, E), in the compute dtype."""
    return _compute(x).reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def _project(x: Array, w: Array, b: Array | None) -> Array:
    y = product(x, w)
    return y if b is None else y + _compute(b)


def multi_head_attention(
    x: Array,
    wq: Array,
    wk: Array,
    wv: Array,
    wo: Array,
    *,
    heads: int,
    kv_heads: int | None = None,
    context: Array | None = None,
    bq: Array | None = None,
    bk: Array | None = None,
    bv: Array | None = None,
    bo: Array | None = None,
    rotary: Mapping[str, Any] | None = None,
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
) -> Array:
    """``join(attention(x wq, context wk, context wv)) wo``."""
    o = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    _, _, q, k, v = _heads_of(x, context, (wq, wk, wv), (bq, bk, bv), heads, kv_heads, rotary)
    p, _ = weights(scores(q, k, o)[0], sinks)
    out = product(kept(p, dropout_p, dropout_seed), repeated(v, heads))
    y = _project(join(out), _compute(wo), bo)
    return y.reshape(*x.shape[:-1], y.shape[-1]).astype(x.dtype, copy=False)


def _heads_of(
    x: Array,
    context: Array | None,
    projections: tuple[Array, ...],
    biases: tuple[Array | None, ...],
    heads: int,
    kv_heads: int | None,
    rotary: Mapping[str, Any] | None,
) -> tuple[Array, ...]:
    """X and context (B, S, E), and q, k, v (B, H, S, D)."""
    x3, c3 = (_batch(a) for a in (x, x if context is None else context))
    counts = (heads, kv_heads or heads, kv_heads or heads)
    sources = (x3, c3, c3)
    q, k, v = (
        split(_project(a, _compute(w), b), count)
        for a, w, b, count in zip(sources, projections, biases, counts, strict=True)
    )
    if rotary is not None:
        q, k = rotary_embedding(q, **rotary), rotary_embedding(k, **rotary)
    return x3, c3, q, k, v


def multi_head_attention_vjp(
    dy: Array,
    x: Array,
    wq: Array,
    wk: Array,
    wv: Array,
    wo: Array,
    *,
    heads: int,
    kv_heads: int | None = None,
    context: Array | None = None,
    bq: Array | None = None,
    bk: Array | None = None,
    bv: Array | None = None,
    bo: Array | None = None,
    rotary: Mapping[str, Any] | None = None,
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
) -> MultiHeadGrads[Array]:
    """The chain of `attention_vjp` and the matrix products around it."""
    chosen = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    x3, c3, q, k, v = _heads_of(x, context, (wq, wk, wv), (bq, bk, bv), heads, kv_heads, rotary)
    s, slope = scores(q, k, chosen)
    p, lse = weights(s, sinks)
    o = product(kept(p, dropout_p, dropout_seed), repeated(v, heads))
    d = _batch(dy)
    dout = split(product(d, _compute(wo).T), heads)
    dq, dk, dv, *_ = backward(dout, q, k, v, o, lse, None, s, slope, sinks, dropout_p, dropout_seed)
    if rotary is not None:
        dq, dk = rotary_embedding_vjp(dq, **rotary), rotary_embedding_vjp(dk, **rotary)
    dq, dk, dv = join(dq), join(dk), join(dv)
    dx = product(dq, _compute(wq).T)
    dcontext = product(dk, _compute(wk).T) + product(dv, _compute(wv).T)

    def like(array: Array) -> Array:
        return array.astype(x.dtype, copy=False)

    def slope_of(w: Array, a: Array, d: Array) -> Array:
        """``a^T d`` over all rows, for a projection w."""
        return like(product(a.reshape(-1, w.shape[0]).T, d.reshape(-1, w.shape[1])))

    def sums(b: Array | None, d: Array) -> Array | None:
        return None if b is None else like(total(d.reshape(-1, d.shape[-1]), 0))

    return MultiHeadGrads(
        dx=like(dx + dcontext if context is None else dx).reshape(x.shape),
        dwq=slope_of(wq, x3, dq),
        dwk=slope_of(wk, c3, dk),
        dwv=slope_of(wv, c3, dv),
        dwo=slope_of(wo, join(o), d),
        dcontext=None if context is None else like(dcontext).reshape(context.shape),
        dbq=sums(bq, dq),
        dbk=sums(bk, dk),
        dbv=sums(bv, dv),
        dbo=sums(bo, d),
    )
