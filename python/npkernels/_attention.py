"""Scaled dot-product attention, its weights, and the joining of partial results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, check_out, compute_dtype, floating, kernel, shape_error, statistic
from npkernels._attention_options import Causal, check_shapes, heads, options, to_4d
from npkernels._softmax import softmax

ArrayLike = npt.ArrayLike


@kernel
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
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
    return_lse: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Scaled dot-product attention: ``softmax(scores) @ v`` over the allowed keys.

    The scores are ``scale * q @ k.T``, then softcap, then bias and ALiBi, then what the masks allow.

    Letters: B batch, Hq query heads, Hkv key/value heads (Hq a multiple: query head h reads key head
    ``h // (Hq / Hkv)``), S queries, K keys, D head size, Dv value head size.

    Parameters
    ----------
    q : array_like (B, Hq, S, D), (H, S, D) or (S, D)
        float32, float64, float16 or bfloat16; integers become float64. Any strides with a contiguous last axis are
        read in place, so a (B, S, H, D) array is passed as ``x.transpose(0, 2, 1, 3)``; with another last axis a copy
        is made.
    k : array_like (B, Hkv, K, D), ...
    v : array_like (B, Hkv, K, Dv), ...
    mask : array_like of bool, optional
        Broadcasts to (B, Hq, S, K); True = may attend.
    bias : array_like, optional
        Of q's dtype, broadcasts to (B, Hq, S, K); added to the scores. -inf forbids.
    causal : bool, "top_left" or "bottom_right"
        Query i, at key position p = i + offset, attends to keys up to p. "top_left": offset 0 (PyTorch);
        "bottom_right": offset K - S (flash-attention, decoding); True means "top_left" and needs S == K.
    window : (int, int), optional
        (left, right): a query at position p attends to keys from p - left to p + right; -1 = open on that side.
    softcap : float
        c > 0 bounds the scaled products: s becomes ``c * tanh(s / c)``.
    scale : float, optional
        Default ``1 / sqrt(D)``.
    alibi_slopes : array_like (Hq,) or (B, Hq), optional
        ``-slope * |p - j|`` is added to the score of key j [2]_.
    sinks : array_like (Hq,), optional
        A logit per head that takes part in the denominator only [3]_; the lse includes it.
    q_offset : int or array_like of int (B,), optional
        The offset of the positions itself, instead of the one that `causal` implies; may be negative.
    kv_lengths : array_like of int (B,), optional
        How many keys each entry of the batch has; what lies behind them is not read. "bottom_right" is meant from
        there.
    dropout_p : float
        The share of weights that are dropped, from 0 to below 1; the others are divided by 1 - dropout_p. The lse does
        not change.
    dropout_seed : int, optional
        Which are dropped, needed where dropout_p > 0: a function of seed, head, query and key alone.
    return_lse : bool
        Also return the logarithm of each row's softmax denominator.
    out : ndarray, optional
        (B, Hq, S, Dv) with a contiguous last axis; must not overlap an input.

    Returns
    -------
    out : ndarray (B, Hq, S, Dv)
        Of q's dtype and memory order. A query with nothing to attend to gives 0.
    lse : ndarray (B, Hq, S)
        Only if `return_lse`; float32, or float64 for float64. -inf for a query with nothing to attend to.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value; `out` is untouched then.

    Notes
    -----
    Tiles of scores stay in cache and are never stored [1]_; extra memory is a few tiles per thread. Tiles in which
    nothing is allowed are not computed. A weight of zero contributes nothing: keys that are masked may hold NaN or inf.
    16-bit inputs are computed and accumulated in float32 and rounded once.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention: Fast and memory-efficient exact attention with IO-awareness", 2022.
    .. [2] O. Press et al., "Train short, test long: attention with linear biases enables input length extrapolation",
       2022.
    .. [3] G. Xiao et al., "Efficient streaming language models with attention sinks", 2024.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> q = np.zeros((2, 4), np.float32)  # two queries that see all their keys alike
    >>> v = np.array([[1, 2], [3, 4]], np.float32)
    >>> npkernels.attention(q, q, v, causal=True)
    array([[1., 2.],
           [2., 3.]], dtype=float32)
    """
    function = "attention"
    if (
        (mask is None and bias is None and window is None and alibi_slopes is None)
        and (sinks is None and q_offset is None and kv_lengths is None and out is None)
        and (type(softcap) is float and softcap == 0 and type(dropout_p) is float and dropout_p == 0)
        and dropout_seed is None
    ):
        quick: Array | tuple[Array, Array] | None
        quick = _core.attention_quick(q, k, v, causal, bool(return_lse), scale)
        if quick is not None:
            return quick
    q, k, v = (heads(function, name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    ndim = q.ndim
    check_shapes(function, q, k, v)
    q4, k4, v4 = to_4d(q), to_4d(k), to_4d(v)
    chosen = options(
        function,
        q4,
        q4.shape[2],
        k4.shape[2],
        q4.shape[0],
        mask=mask,
        bias=bias,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        q_offset=q_offset,
        kv_lengths=kv_lengths,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
    )
    target = None if out is None else _out_4d(function, out, ndim)
    target = _core.attention_output(function, q4, k4, v4, target)
    filled, lse = _core.attention(q4, k4, v4, chosen, bool(return_lse), None, None, target)
    result = out if out is not None else filled.reshape(filled.shape[4 - ndim :])
    return (result, lse.reshape(lse.shape[4 - ndim :])) if return_lse else result


def _out_4d(function: str, out: Any, ndim: int) -> Array:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{function}: out is a {type(out).__name__}; expected a NumPy array")
    if out.ndim != ndim:
        shape_error(function, "out", out.shape, f"{ndim} axes as q")
    return to_4d(out)


@kernel
def attention_weights(
    q: ArrayLike,
    k: ArrayLike,
    *,
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
    out: Array | None = None,
) -> Array:
    """Probabilities with which queries attend to keys, (B, Hq, S, K): for looking at, memory S x K.

    Parameters and errors as for `attention`. A query with nothing to attend to has a row of zeros; what `sinks` take is
    missing from the rows' sums.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.attention_weights(np.zeros((2, 4)), np.zeros((2, 4)), causal=True)
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    function = "attention_weights"
    q, k = heads(function, "q", q), heads(function, "k", k)
    check_shapes(function, q, k, None)
    q4, k4 = to_4d(q), to_4d(k)
    batch, q_heads, queries, dim = q4.shape
    k_heads, keys = k4.shape[1:3]
    shape = (batch, q_heads, queries, keys)
    allowed, added, slopes, sink, is_causal, left, right, cap, factor, offset, lengths, _, _ = options(
        function,
        q4,
        queries,
        keys,
        batch,
        mask=mask,
        bias=bias,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        q_offset=q_offset,
        kv_lengths=kv_lengths,
    )
    check_out(function, out, shape[4 - q.ndim :], q.dtype, [q, k, allowed, added, slopes, sink])
    start = np.zeros(batch, dtype=np.int64) if offset is None else offset
    ahead = (start[:, None] + np.arange(queries))[:, None, :, None] - np.arange(keys)  # of the query, in keys
    seen = _scores(function, "mask", np.True_ if allowed is None else allowed, shape)
    for limited, inside in (
        (is_causal, ahead >= 0),
        (left >= 0, ahead <= left),
        (right >= 0, -ahead <= right),
        (lengths is not None, np.arange(keys) < np.reshape(0 if lengths is None else lengths, (-1, 1, 1, 1))),
    ):
        seen = seen & inside if limited else seen
    work = compute_dtype(q.dtype)
    with np.errstate(all="ignore"):
        q4, k4 = q4.astype(work, copy=False), k4.astype(work, copy=False)
        grouped = q4.reshape(batch, k_heads, q_heads // max(k_heads, 1), queries, dim)
        scores = (grouped @ np.swapaxes(k4, -1, -2)[:, :, None]).reshape(shape)
        scores *= work.type(factor / (cap or 1.0))
        if cap:
            np.tanh(scores, out=scores)
            scores *= work.type(cap)
        if added is not None:
            scores += _scores(function, "bias", added, shape)
        if slopes is not None:
            scores -= np.reshape(slopes, (-1, q_heads, 1, 1)) * abs(ahead).astype(work)
    if sink is None:
        weights = softmax(scores, mask=seen, out=scores)
    else:  # as one more key without a value
        last = np.broadcast_to(sink[:, None, None], (*shape[:3], 1))
        with_sink = np.concatenate([scores, last], axis=-1)
        weights = softmax(with_sink, mask=np.concatenate([seen, last != -np.inf], axis=-1))[..., :-1]
    weights = weights.reshape(shape[4 - q.ndim :])
    with np.errstate(all="ignore"):
        if out is None:
            return np.ascontiguousarray(weights.astype(q.dtype, copy=False))
        out[...] = weights
    return out


def _scores(function: str, name: str, x: Any, shape: tuple[int, ...]) -> Array:
    """Return a view of x with the shape of the scores."""
    try:
        return np.broadcast_to(x, shape)
    except ValueError:
        shape_error(function, name, x.shape, f"one that broadcasts to (B, Hq, S, K) = {shape}")


@kernel
def merge_attention(
    outs: Sequence[ArrayLike], lses: Sequence[ArrayLike], *, out: Array | None = None
) -> tuple[Array, Array]:
    """Join partial attention results over disjoint keys into the result over all of them.

    Parameters
    ----------
    outs : sequence of array_like (..., S, Dv)
        Partial outputs, of one shape and dtype.
    lses : sequence of array_like (..., S)
        Their log-sum-exps, as `attention` returns them. A part with -inf saw no key and is not read.
    out : ndarray, optional
        Where the joined output goes: (..., S, Dv), contiguous last axis; one of outs itself is allowed.

    Returns
    -------
    out : ndarray (..., S, Dv)
        ``sum_i exp(lses[i] - lse) * outs[i]``; 0 where every part has -inf.
    lse : ndarray (..., S)
        ``logsumexp(lses)``.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> out, lse = npkernels.merge_attention([[[2.0]], [[4.0]]], [[0.0], [0.0]])
    >>> float(out[0, 0]), float(lse[0])  # the mean; log(2)
    (3.0, 0.69314718055994...)
    """
    function = "merge_attention"
    for name, given in (("outs", outs), ("lses", lses)):
        if not isinstance(given, Sequence | np.ndarray):
            raise TypeError(f"{function}: {name} is a {type(given).__name__}; expected a sequence of arrays")
    if len(outs) == 0 or len(outs) != len(lses):
        raise ValueError(
            f"{function}: got {len(outs)} outs and {len(lses)} lses; expected as many, at least one"
        )
    parts = [floating(function, f"outs[{i}]", x) for i, x in enumerate(outs)]
    for i, part in enumerate(parts):
        if part.ndim < 1:
            shape_error(function, f"outs[{i}]", part.shape, "(..., S, Dv)")
        if part.shape[-1] > 1 and part.strides[-1] != part.itemsize:
            parts[i] = np.ascontiguousarray(part)
    dtype = compute_dtype(parts[0].dtype)
    norms = [statistic(function, f"lses[{i}]", x, dtype) for i, x in enumerate(lses)]
    return _core.merge_attention(parts, norms, out)
