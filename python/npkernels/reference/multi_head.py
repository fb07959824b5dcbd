"""The attention layer of a transformer: projections, rotary embedding, attention, projection.

x (..., S, E)   context (..., K, Ec), x itself by default   wq (E, Hq D)   wk (Ec, Hkv D)   wv (Ec, Hkv Dv)
wo (Hq Dv, Eo)   bq (Hq D,)   bk (Hkv D,)   bv (Hkv Dv,)   bo (Eo,)   y (..., S, Eo)

q = x wq + bq, k = context wk + bk, v = context wv + bv, each cut into heads of columns that stand side by side;
q and k are turned by `rotary`; y = heads of attention(q, k, v) side by side, times wo, + bo. The leading axes of x
together are the batch of attention.

Source: A. Vaswani et al., "Attention is all you need", 2017, section 3.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._types import MultiHeadGrads
from ._attention_scores import Causal, Options, Scores, check_heads, scores
from ._common import Array, ArrayLike, as_array, check_shape, like, working
from .attention import forward
from .attention_grads import backward
from .dropout import dense_rows, dropout_factor
from .rotary import rotate

ROTARY = ("positions", "cos", "sin", "base", "interleaved", "rotary_dim")


@dataclass(frozen=True)
class _Layer:
    """The checked arguments, and the forward pass up to the output of the heads."""

    x: Array  # (B, S, E)
    context: Array  # (B, K, Ec)
    weights: tuple[Array, Array, Array, Array]
    biases: tuple[Array | None, ...]
    rotary: dict[str, Any] | None
    q: Array  # (B, Hq, S, D), turned
    k: Array
    v: Array
    z: Scores
    dropout: Array | None
    o: Array  # (B, Hq, S, Dv)
    lse: Array


def split(x: Array, heads: int) -> Array:
    """(B, S, H * D) -> (B, H, S, D)."""
    batch, length, columns = x.shape
    heads_first: Array = x.reshape(batch, length, heads, columns // heads).transpose(0, 2, 1, 3)
    return heads_first


def join(x: Array) -> Array:
    """(B, H, S, D) -> (B, S, H * D)."""
    batch, heads, length, size = x.shape
    joined: Array = x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
    return joined


def _check_heads(function: str, heads: int, kv_heads: int) -> None:
    for name, count in (("heads", heads), ("kv_heads", kv_heads)):
        if count < 1:
            raise ValueError(f"{function}: {name} is {count}; expected a number > 0")
    check_heads(function, heads, kv_heads)


def _check_columns(function: str, name: str, w: Array, heads: int, size: int | None = None) -> int:
    """The head size of a projection with that many heads."""
    if w.shape[1] % heads or (size is not None and w.shape[1] != heads * size):
        each = "a multiple of" if size is None else f"{size} for each of"
        raise ValueError(f"{function}: {name} has {w.shape[1]} columns; expected {each} {heads} heads")
    return int(w.shape[1]) // heads


def _rotary(function: str, rotary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if rotary is None:
        return None
    if unknown := [name for name in rotary if name not in ROTARY]:
        raise ValueError(f"{function}: rotary has {unknown[0]!r}; expected options out of {ROTARY}")
    return dict(rotary)


def _layer(
    function: str,
    x: ArrayLike,
    wq: ArrayLike,
    wk: ArrayLike,
    wv: ArrayLike,
    wo: ArrayLike,
    heads: int,
    kv_heads: int | None,
    context: ArrayLike | None,
    biases: tuple[ArrayLike | None, ...],
    rotary: Mapping[str, Any] | None,
    options: Options,
    dropout_p: float,
    dropout_seed: int | None,
) -> _Layer:
    kv_heads = heads if kv_heads is None else kv_heads
    _check_heads(function, heads, kv_heads)
    x, wq, wk, wv, wo = working(function, x=x, wq=wq, wk=wk, wv=wv, wo=wo)
    other = x if context is None else like(function, "context", context, x)
    if x.ndim < 2:
        raise ValueError(f"{function}: x has shape {x.shape}; expected (..., S, E)")
    if other.shape[:-2] != x.shape[:-2] or other.ndim != x.ndim:
        raise ValueError(
            f"{function}: context has shape {other.shape}, x has {x.shape}; expected (..., K, Ec)"
        )
    for name, w in (("wq", wq), ("wk", wk), ("wv", wv), ("wo", wo)):
        if w.ndim != 2:
            raise ValueError(f"{function}: {name} has shape {w.shape}; expected a matrix")
    check_shape(function, "wq", wq, (x.shape[-1], wq.shape[1]))
    check_shape(function, "wk", wk, (other.shape[-1], wk.shape[1]))
    check_shape(function, "wv", wv, (other.shape[-1], wv.shape[1]))
    size = _check_columns(function, "wq", wq, heads)
    _check_columns(function, "wk", wk, kv_heads, size)
    value_size = _check_columns(function, "wv", wv, kv_heads)
    check_shape(function, "wo", wo, (heads * value_size, wo.shape[1]))
    given: list[Array | None] = []
    for name, b, w in zip(("bq", "bk", "bv", "bo"), biases, (wq, wk, wv, wo), strict=True):
        given.append(None if b is None else like(function, name, b, x))
        if b is not None:
            check_shape(function, name, given[-1], (w.shape[1],))  # type: ignore[arg-type]

    def project(a: Array, w: Array, b: Array | None, count: int) -> Array:
        return split(a @ w if b is None else a @ w + b, count)

    batch = int(np.prod(x.shape[:-2], dtype=np.int64))
    x, other = x.reshape(batch, *x.shape[-2:]), other.reshape(batch, *other.shape[-2:])
    q = project(x, wq, given[0], heads)
    k = project(other, wk, given[1], kv_heads)
    v = project(other, wv, given[2], kv_heads)
    turn = _rotary(function, rotary)
    if turn is not None:
        q, k = rotate(function, q, 1, **turn), rotate(function, k, 1, **turn)
    z = scores(function, q, k, options)
    rows, keys = dense_rows(z.s.shape[:-1]), z.s.shape[-1]
    dropout = dropout_factor(function, dropout_p, dropout_seed, rows, keys, q)
    o, lse = forward(z, v, dropout)
    return _Layer(x, other, (wq, wk, wv, wo), tuple(given), turn, q, k, v, z, dropout, o, lse)


@np.errstate(all="ignore")
def multi_head_attention(
    x: ArrayLike,
    wq: ArrayLike,
    wk: ArrayLike,
    wv: ArrayLike,
    wo: ArrayLike,
    *,
    heads: int,
    kv_heads: int | None = None,
    context: ArrayLike | None = None,
    bq: ArrayLike | None = None,
    bk: ArrayLike | None = None,
    bv: ArrayLike | None = None,
    bo: ArrayLike | None = None,
    rotary: Mapping[str, Any] | None = None,
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
) -> Array:
    """The layer; `rotary` holds options of `rotary_embedding`, the rest are options of `attention`.

    Examples
    --------
    >>> x, one = np.float32([[1], [3]]), np.ones((1, 1), np.float32)
    >>> multi_head_attention(x, 0 * one, one, one, one, heads=1, bo=[10])
    array([[12.],
           [12.]])
    """
    name = "multi_head_attention"
    options = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    biases = (bq, bk, bv, bo)
    a = _layer(
        name, x, wq, wk, wv, wo, heads, kv_heads, context, biases, rotary, options, dropout_p, dropout_seed
    )
    y: Array = join(a.o) @ a.weights[3]
    if a.biases[3] is not None:
        y = y + a.biases[3]
    return y.reshape((*as_array(x).shape[:-1], y.shape[-1]))


@np.errstate(all="ignore")
def multi_head_attention_vjp(
    dy: ArrayLike,
    x: ArrayLike,
    wq: ArrayLike,
    wk: ArrayLike,
    wv: ArrayLike,
    wo: ArrayLike,
    *,
    heads: int,
    kv_heads: int | None = None,
    context: ArrayLike | None = None,
    bq: ArrayLike | None = None,
    bk: ArrayLike | None = None,
    bv: ArrayLike | None = None,
    bo: ArrayLike | None = None,
    rotary: Mapping[str, Any] | None = None,
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
) -> MultiHeadGrads[Any]:
    """The gradients of ``sum(dy * y)``; without a context, dx is that of all three projections.

    Examples
    --------
    >>> x, one = np.float32([[1], [3]]), np.ones((1, 1), np.float32)
    >>> grads = multi_head_attention_vjp([[1], [0]], x, 0 * one, one, one, one, heads=1)
    >>> grads.dwv
    array([[2.]])
    """
    name = "multi_head_attention_vjp"
    options = Options(mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths)
    biases = (bq, bk, bv, bo)
    a = _layer(
        name, x, wq, wk, wv, wo, heads, kv_heads, context, biases, rotary, options, dropout_p, dropout_seed
    )
    wq, wk, wv, wo = a.weights
    d = like(name, "dy", dy, a.x)
    check_shape(name, "dy", d, (*as_array(x).shape[:-1], wo.shape[1]))
    d = d.reshape(*a.x.shape[:2], wo.shape[1])

    grads = backward(a.z, a.dropout, split(d @ wo.T, heads), a.q, a.k, a.v, a.o, a.lse, None)
    dq, dk, dv = grads.dq, grads.dk, grads.dv
    if a.rotary is not None:
        dq, dk = rotate(name, dq, -1, **a.rotary), rotate(name, dk, -1, **a.rotary)
    dq, dk, dv = join(dq), join(dk), join(dv)
    dx, dcontext = dq @ wq.T, dk @ wk.T + dv @ wv.T

    def product(a: Array, b: Array) -> Array:
        """(B, S, E), (B, S, F) -> (E, F): a^T b, summed over the batch."""
        total: Array = np.tensordot(a, b, axes=((0, 1), (0, 1)))
        return total

    def column_sums(b: Array | None, d: Array) -> Array | None:
        return None if b is None else d.sum(axis=(0, 1))

    return MultiHeadGrads(
        dx=(dx + dcontext if context is None else dx).reshape(as_array(x).shape),
        dcontext=None if context is None else dcontext.reshape(as_array(context).shape),
        dwq=product(a.x, dq),
        dwk=product(a.context, dk),
        dwv=product(a.context, dv),
        dwo=product(join(a.o), d),
        dbq=column_sums(a.biases[0], dq),
        dbk=column_sums(a.biases[1], dk),
        dbv=column_sums(a.biases[2], dv),
        dbo=column_sums(a.biases[3], d),
    )
