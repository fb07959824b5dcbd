"""The attention layer of a transformer: projections around attention, and the gradient of each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array, check_out, kernel, shape_error
from npkernels._attention import attention
from npkernels._attention_grads import attention_vjp
from npkernels._attention_options import Causal
from npkernels._multi_head_layer import checked_layer, join, rows_of, same_dtype, split
from npkernels._types import MultiHeadGrads

ArrayLike = npt.ArrayLike


@kernel
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
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: int | ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    out: Array | None = None,
) -> Array:
    """Multi-head attention: ``attention(x @ wq, context @ wk, context @ wv) @ wo``.

    Letters: S queries, K keys, E entries of a token, Hq query heads of D entries, Hkv key/value heads with values of Dv
    entries. The columns of a projection are its heads side by side.

    Parameters
    ----------
    x : array_like (..., S, E)
        Tokens; float32, float64, float16 or bfloat16, as are all other arrays. The leading axes together are the batch
        of `attention`, B.
    wq : array_like (E, Hq * D)
        Projection of the queries. A matrix stored the other way round is passed as ``w.T``.
    wk, wv : array_like (Ec, Hkv * D), (Ec, Hkv * Dv)
        Projections of keys and values.
    wo : array_like (Hq * Dv, Eo)
        Projection of the output.
    heads : int
        Hq.
    kv_heads : int, optional
        Hkv, a divisor of `heads`; default `heads`.
    context : array_like (..., K, Ec), optional
        Tokens that are attended to (cross-attention); default x itself.
    bq, bk, bv, bo : array_like, optional
        Added to the columns of the projections.
    rotary : dict, optional
        Options of `rotary_embedding` (positions, cos, sin, base, interleaved, rotary_dim), with which queries and keys
        are turned; ``{}`` for its defaults.
    mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths, dropout_p, dropout_seed
        As for `attention`; `bias` has the dtype of x.
    out : ndarray (..., S, Eo), optional
        Where the output goes; must not overlap an input.

    Returns
    -------
    ndarray (..., S, Eo)
        Of x's dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value; `out` is untouched then.

    Notes
    -----
    Section 3.2.2 of [1]_. The projections are products of NumPy (its BLAS). 16-bit arrays are computed in float32 and
    rounded once. Memory for q, k, v and the output of the heads, none for the scores.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention is all you need", 2017.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> x, one = np.array([[1.0], [3.0]]), np.ones((1, 1))
    >>> npkernels.multi_head_attention(x, 0 * one, one, one, one, heads=1, causal=True)
    array([[1.],
           [2.]])
    """
    function = "multi_head_attention"
    options = {
        "mask": mask,
        "bias": bias,
        "causal": causal,
        "window": window,
        "softcap": softcap,
        "scale": scale,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "q_offset": q_offset,
        "kv_lengths": kv_lengths,
        "dropout_p": dropout_p,
        "dropout_seed": dropout_seed,
    }
    biases = {"bq": bq, "bk": bk, "bv": bv, "bo": bo}
    weights = {"wq": wq, "wk": wk, "wv": wv, "wo": wo}
    layer = checked_layer(function, x, weights, heads, kv_heads, context, biases, rotary, options)
    shape = (*layer.shape, layer.weights["wo"].shape[1])
    if out is not None:
        check_out(function, out, shape, layer.dtype, layer.given)
    heads_out: Any = attention(*layer.project(), **layer.options)
    joined = join(heads_out)
    if out is not None and out.dtype == joined.dtype and out.flags.c_contiguous:
        y = np.matmul(joined, layer.weights["wo"], out=out.reshape(len(joined), shape[-1]))
    else:
        y = joined @ layer.weights["wo"]
    if layer.biases["bo"] is not None:
        y += layer.biases["bo"]
    if out is None:
        return y.reshape(shape).astype(layer.dtype, copy=False)
    if not np.may_share_memory(y, out):
        out[...] = y.reshape(shape)
    return out


@kernel
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
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: int | ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
) -> MultiHeadGrads[Array]:
    """Gradients of `multi_head_attention`: from the cotangent of its output those of x and of every projection.

    Parameters
    ----------
    dy : array_like (..., S, Eo)
        Cotangent of the output.
    x, wq, wk, wv, wo, heads, kv_heads, context, bq, bk, bv, bo, rotary
        As for `multi_head_attention`.
    mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths, dropout_p, dropout_seed
        As for `multi_head_attention`.

    Returns
    -------
    MultiHeadGrads
        dx, dwq, dwk, dwv, dwo, and those of context and biases that were given. Without a context, dx is the sum over
        the three projections.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value.

    Notes
    -----
    The forward pass is done again; nothing of the size of the scores is stored.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> x, one = np.array([[1.0], [3.0]]), np.ones((1, 1))
    >>> grads = npkernels.multi_head_attention_vjp(np.ones_like(x), x, 0 * one, one, one, one, heads=1, causal=True)
    >>> grads.dwv, grads.dwk  # 1 + 2, the sum of the outputs; keys do not matter as the queries are 0
    (array([[3.]]), array([[0.]]))
    """
    function = "multi_head_attention_vjp"
    options = {
        "mask": mask,
        "bias": bias,
        "causal": causal,
        "window": window,
        "softcap": softcap,
        "scale": scale,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "q_offset": q_offset,
        "kv_lengths": kv_lengths,
        "dropout_p": dropout_p,
        "dropout_seed": dropout_seed,
    }
    biases = {"bq": bq, "bk": bk, "bv": bv, "bo": bo}
    weights = {"wq": wq, "wk": wk, "wv": wv, "wo": wo}
    layer = checked_layer(function, x, weights, heads, kv_heads, context, biases, rotary, options)
    wq, wk, wv, wo = layer.weights.values()
    d = same_dtype(function, "dy", dy, layer.dtype)
    if d.shape != (*layer.shape, wo.shape[1]):
        shape_error(function, "dy", d.shape, str((*layer.shape, wo.shape[1])))
    d = d.astype(wo.dtype, copy=False).reshape(math.prod(layer.shape), wo.shape[1])

    q, k, v = layer.project()
    o, lse = attention(q, k, v, **layer.options, return_lse=True)
    dout = split(d @ wo.T, o.shape[0], layer.heads)
    grads = attention_vjp(dout, q, k, v, o, lse, **layer.options)
    dq, dk, dv = grads.dq, grads.dk, grads.dv
    if layer.rotary is not None:
        dq, dk = (layer.turn(a, inverse=True) for a in (dq, dk))
    dq, dk, dv = join(dq), join(dk), join(dv)
    dx, dcontext = dq @ wq.T, dk @ wk.T + dv @ wv.T
    x2, context2 = rows_of(layer.x), rows_of(layer.context)

    def narrow(a: Array, shape: tuple[int, ...]) -> Array:
        return a.reshape(shape).astype(layer.dtype, copy=False)

    sums = {
        f"d{name}": None if b is None else narrow(a.sum(axis=0), b.shape)
        for (name, b), a in zip(layer.biases.items(), (dq, dk, dv, d), strict=True)
    }
    return MultiHeadGrads(
        dx=narrow(dx + dcontext if context is None else dx, (*layer.shape, x2.shape[1])),
        dwq=narrow(x2.T @ dq, wq.shape),
        dwk=narrow(context2.T @ dk, wk.shape),
        dwv=narrow(context2.T @ dv, wv.shape),
        dwo=narrow(join(o).T @ d, wo.shape),
        dcontext=None if context is None else narrow(dcontext, (*layer.shape[:-1], *layer.context.shape[1:])),
        **sums,
    )
