"""Scaled dot-product attention and its companions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import (
    Array,
    boolean,
    check_out,
    compute_dtype,
    floating,
    kernel,
    number,
    plain,
    shape_error,
    statistic,
)
from npkernels._softmax import softmax

ArrayLike = npt.ArrayLike
Causal = bool | Literal["top_left", "bottom_right"]


@kernel
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    scale: float | None = None,
    q_offset: int | ArrayLike | None = None,
    return_lse: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Scaled dot-product attention: ``softmax(scale * q @ k.T + bias) @ v`` over the allowed keys.

    Letters: B batch, Hq query heads, Hkv key/value heads (Hq a multiple: query head h reads key head
    ``h // (Hq / Hkv)``), S queries, K keys, D head size, Dv value head size.

    Parameters
    ----------
    q : array_like (B, Hq, S, D), (H, S, D) or (S, D)
        float32 or float64; integers become float64. Any strides with a contiguous last axis are read in place, so a
        (B, S, H, D) array is passed as ``x.transpose(0, 2, 1, 3)``; with another last axis a copy is made.
    k : array_like (B, Hkv, K, D), ...
    v : array_like (B, Hkv, K, Dv), ...
    mask : array_like of bool, optional
        Broadcasts to (B, Hq, S, K); True = may attend.
    bias : array_like, optional
        Of q's dtype, broadcasts to (B, Hq, S, K); added to the scores. -inf forbids.
    causal : bool, "top_left" or "bottom_right"
        Query i, at key position i + offset, attends to keys up to there. "top_left": offset 0 (PyTorch);
        "bottom_right": offset K - S (flash-attention, decoding); True means "top_left" and needs S == K.
    scale : float, optional
        Default ``1 / sqrt(D)``.
    q_offset : int or array_like of int (B,), optional
        The offset itself, instead of the one that `causal` implies; may be negative.
    return_lse : bool
        Also return the logarithm of each row's softmax denominator.
    out : ndarray, optional
        (B, Hq, S, Dv) with a contiguous last axis; must not overlap an input.

    Returns
    -------
    out : ndarray (B, Hq, S, Dv)
        Of q's dtype and memory order. A query with nothing to attend to gives 0.
    lse : ndarray (B, Hq, S)
        Only if `return_lse`; -inf for a query with nothing to attend to.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value; `out` is untouched then.

    Notes
    -----
    Tiles of scores stay in cache and are never stored [1]_; extra memory is a few tiles per thread. A weight of zero
    contributes nothing: keys that are masked may hold NaN or inf.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention: Fast and memory-efficient exact attention with IO-awareness", 2022.

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
    q, k, v = (_heads(function, name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    ndim = q.ndim
    _check_shapes(function, q, k, v)
    q4, k4, v4 = _to_4d(q), _to_4d(k), _to_4d(v)
    batch, _, queries, dim = q4.shape
    allowed = None if mask is None else boolean(function, "mask", mask)
    added = None if bias is None else _bias(function, bias, q)
    offset = _offset(function, causal, q_offset, batch, queries, k4.shape[2])
    factor = _scale(function, scale, dim)
    target = None if out is None else _out_4d(function, out, ndim)
    target = _core.attention_output(q4, k4, v4, target)
    filled, lse = _core.attention(
        q4, k4, v4, allowed, added, causal is not False, factor, offset, bool(return_lse), target
    )
    result = out if out is not None else filled.reshape(filled.shape[4 - ndim :])
    return (result, lse.reshape(lse.shape[4 - ndim :])) if return_lse else result


def _heads(function: str, name: str, x: Any) -> Array:
    array = floating(function, name, x)
    if not 2 <= array.ndim <= 4:
        shape_error(function, name, array.shape, "(S, D), (H, S, D) or (B, H, S, D)")
    if array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
        array = np.ascontiguousarray(array)
    return array


def _to_4d(x: Array) -> Array:
    return x if x.ndim == 4 else x[(None,) * (4 - x.ndim)]


def _check_shapes(function: str, q: Array, k: Array, v: Array | None) -> None:
    others = [("k", k)] if v is None else [("k", k), ("v", v)]
    for name, x in others:
        if x.ndim != q.ndim:
            shape_error(function, name, x.shape, f"{q.ndim} axes as q, which has shape {q.shape}")
        if x.dtype != q.dtype:
            raise TypeError(
                f"{function}: {name} has dtype {x.dtype}, q has {q.dtype}; expected the same dtype"
            )
        if q.ndim == 4 and x.shape[0] != q.shape[0]:
            raise ValueError(
                f"{function}: {name} has batch size {x.shape[0]}, q has {q.shape[0]}; expected the same"
            )
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"{function}: k has head size {k.shape[-1]}, q has {q.shape[-1]}; expected the same")
    if v is not None and v.shape[-2] != k.shape[-2]:
        raise ValueError(f"{function}: v has {v.shape[-2]} keys, k has {k.shape[-2]}; expected the same")
    if q.ndim == 2:
        return
    q_heads, k_heads = q.shape[-3], k.shape[-3]
    if (q_heads % k_heads if k_heads else q_heads) != 0:
        raise ValueError(
            f"{function}: k has {k_heads} heads, q has {q_heads}; q heads must be a multiple of k heads"
        )
    if v is not None and v.shape[-3] != k_heads:
        raise ValueError(f"{function}: v has {v.shape[-3]} heads, k has {k_heads}; expected the same")


def _bias(function: str, bias: Any, q: Array) -> Array:
    array = plain(function, "bias", bias)
    if array.dtype == np.bool_:
        raise TypeError(f"{function}: bias has dtype bool; expected {q.dtype} (pass booleans as mask)")
    array = floating(function, "bias", array)
    if array.dtype != q.dtype:
        raise TypeError(f"{function}: bias has dtype {array.dtype}; expected q's dtype {q.dtype}")
    return array


def _offset(function: str, causal: Any, q_offset: Any, batch: int, queries: int, keys: int) -> Array | None:
    """Return the key position of query 0 per batch; None means 0."""
    if not isinstance(causal, bool):
        if not isinstance(causal, str) or causal not in ("top_left", "bottom_right"):
            raise ValueError(
                f"{function}: causal is {causal!r}; expected False, True, 'top_left' or 'bottom_right'"
            )
    elif causal and queries != keys and q_offset is None:
        raise ValueError(
            f"{function}: causal=True with {queries} queries and {keys} keys is ambiguous; "
            "say 'top_left' (PyTorch), 'bottom_right' (flash-attention), or give q_offset"
        )
    if q_offset is None:
        return np.full(batch, keys - queries, dtype=np.int64) if causal == "bottom_right" else None
    offset = plain(function, "q_offset", q_offset)
    if offset.dtype.kind not in "iu":
        raise TypeError(f"{function}: q_offset has dtype {offset.dtype}; expected integers")
    if offset.shape not in ((), (batch,)):
        shape_error(function, "q_offset", offset.shape, f"an integer or one per batch, ({batch},)")
    # i + offset must not overflow
    values = np.broadcast_to(offset, (batch,)).tolist()
    return np.array([min(max(value, -(2**62)), 2**62) for value in values], dtype=np.int64)


def _scale(function: str, scale: Any, dim: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(dim) if dim else 1.0
    value = number(function, "scale", scale)
    if not math.isfinite(value):
        raise ValueError(f"{function}: scale is {scale!r}; expected a finite number")
    return value


def _out_4d(function: str, out: Any, ndim: int) -> Array:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{function}: out is a {type(out).__name__}; expected a NumPy array")
    if out.ndim != ndim:
        shape_error(function, "out", out.shape, f"{ndim} axes as q")
    return _to_4d(out)


@kernel
def attention_weights(
    q: ArrayLike,
    k: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    scale: float | None = None,
    q_offset: int | ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Probabilities with which queries attend to keys, (B, Hq, S, K): for looking at, memory S x K.

    Parameters and errors as for `attention`. A query with nothing to attend to has a row of zeros.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.attention_weights(np.zeros((2, 4)), np.zeros((2, 4)), causal=True)
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    function = "attention_weights"
    q, k = _heads(function, "q", q), _heads(function, "k", k)
    _check_shapes(function, q, k, None)
    q4, k4 = _to_4d(q), _to_4d(k)
    batch, q_heads, queries, dim = q4.shape
    k_heads, keys = k4.shape[1:3]
    shape = (batch, q_heads, queries, keys)
    factor = _scale(function, scale, dim)
    allowed = np.ones((1, 1), dtype=np.bool_) if mask is None else boolean(function, "mask", mask)
    added = None if bias is None else _bias(function, bias, q)
    check_out(function, out, shape[4 - q.ndim :], q.dtype, [q, k, allowed, added])
    allowed = _scores(function, "mask", allowed, shape)
    added = None if added is None else _scores(function, "bias", added, shape)
    offset = _offset(function, causal, q_offset, batch, queries, keys)
    if causal:
        start = np.zeros(batch, dtype=np.int64) if offset is None else offset
        position = start[:, None, None, None] + np.arange(queries)[:, None]
        allowed = allowed & (np.arange(keys) <= position)
    work = compute_dtype(q.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        q4, k4 = q4.astype(work, copy=False), k4.astype(work, copy=False)
        grouped = q4.reshape(batch, k_heads, q_heads // max(k_heads, 1), queries, dim)
        scores = (grouped @ np.swapaxes(k4, -1, -2)[:, :, None]).reshape(shape)
        scores *= q4.dtype.type(factor)
        if added is not None:
            scores += added
    weights = softmax(scores, mask=allowed, out=scores).reshape(shape[4 - q.ndim :])
    if out is None:
        return weights.astype(q.dtype, copy=False)
    out[...] = weights
    return out


def _scores(function: str, name: str, x: Array, shape: tuple[int, ...]) -> Array:
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


@kernel
def rotary_embedding(
    x: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    out: Array | None = None,
) -> Array:
    """Rotary position embedding: turn pairs of each row by angles that grow with its position.

    Parameters
    ----------
    x : array_like (..., S, D)
        Queries or keys; float32, float64, float16 or bfloat16.
    positions : array_like of int (S,) or (B, S), optional
        B is x's first axis. Default ``arange(S)``.
    cos, sin : array_like, optional
        Tables (P, rotary_dim / 2) that positions index; or, without positions, one row per position already:
        (S, rotary_dim / 2) or (B, S, rotary_dim / 2). Default: pair i turns by
        ``position * base ** (-2 i / rotary_dim)``.
    base : float
        The base of the default angles.
    interleaved : bool
        Pairs are (x[2i], x[2i+1]) (GPT-J, the original paper) instead of (x[i], x[i + rotary_dim/2]) (GPT-NeoX, Llama).
    rotary_dim : int, optional
        Even; only the first rotary_dim entries turn, the others pass through. Default D.
    out : ndarray, optional
        Of x's shape and dtype; x itself is allowed.

    Returns
    -------
    ndarray
        Of x's shape and dtype.

    Notes
    -----
    ``(a, b) -> (a cos - b sin, b cos + a sin)`` [1]_.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced transformer with rotary position embedding", 2021, eq. 34.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.rotary_embedding(np.array([[1.0, 0.0], [1.0, 0.0]])).round(4)
    array([[1.    , 0.    ],
           [0.5403, 0.8415]])
    """
    return _rotary(
        "rotary_embedding", "x", x, positions, cos, sin, base, interleaved, rotary_dim, out, inverse=False
    )


@kernel
def rotary_embedding_vjp(
    dy: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    out: Array | None = None,
) -> Array:
    """Cotangent of rotary_embedding's input: dy turned back by the same angles.

    Parameters as for `rotary_embedding`.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> npkernels.rotary_embedding_vjp(npkernels.rotary_embedding(x)).round(12)
    array([[1., 2.],
           [3., 4.]])
    """
    name = "rotary_embedding_vjp"
    return _rotary(name, "dy", dy, positions, cos, sin, base, interleaved, rotary_dim, out, inverse=True)


def _rotary(
    function: str,
    name: str,
    x: Any,
    positions: Any,
    cos: Any,
    sin: Any,
    base: Any,
    interleaved: bool,
    rotary_dim: int | None,
    out: Array | None,
    *,
    inverse: bool,
) -> Array:
    array = floating(function, name, x)
    if array.ndim < 2:
        shape_error(function, name, array.shape, "(..., S, D)")
    if array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
        array = np.ascontiguousarray(array)
    dim = array.shape[-1] if rotary_dim is None else rotary_dim
    if not isinstance(dim, int | np.integer) or dim % 2 or not 0 <= dim <= array.shape[-1]:
        raise ValueError(
            f"{function}: rotary_dim is {dim!r}; expected an even number from 0 to {array.shape[-1]}"
        )
    c, s = _angles(function, array, positions, cos, sin, base, int(dim))
    return _core.rotary(array, c, s, bool(interleaved), inverse, out)


def _angles(
    function: str, x: Array, positions: Any, cos: Any, sin: Any, base: Any, dim: int
) -> tuple[Array, Array]:
    """Return cosines and sines as views of x's shape with dim / 2 entries at the end."""
    dtype = compute_dtype(x.dtype)
    length, half = x.shape[-2], dim // 2
    where = None
    if positions is not None:
        where = plain(function, "positions", positions)
        if where.dtype.kind not in "iu":
            raise TypeError(f"{function}: positions has dtype {where.dtype}; expected integers")
        _check_per_batch(function, "positions", where, x, (length,))
    if (cos is None) != (sin is None):
        raise ValueError(f"{function}: {'cos' if cos is None else 'sin'} is None; cos and sin go together")
    if cos is None:
        b = number(function, "base", base)
        if not b > 0 or not math.isfinite(b):
            raise ValueError(f"{function}: base is {base!r}; expected a positive finite number")
        frequency = b ** (-np.arange(half) * 2.0 / max(dim, 1))
        angle = (np.arange(length) if where is None else where)[..., None] * frequency
        tables = [np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)]
    else:
        tables = [_table(function, n, t, x, where, half, dtype) for n, t in (("cos", cos), ("sin", sin))]
    shape = (*x.shape[:-1], half)
    views = []
    for table in tables:
        if table.ndim == 3:
            table = table.reshape(table.shape[0], *(1,) * (x.ndim - 3), length, half)
        views.append(np.broadcast_to(table, shape))
    return views[0], views[1]


def _check_per_batch(function: str, name: str, array: Array, x: Array, shape: tuple[int, ...]) -> None:
    """Raise unless the array has this shape or, if x has a batch axis, one of it for each batch."""
    allowed = [shape] if x.ndim < 3 else [shape, (x.shape[0], *shape)]
    if array.shape not in allowed:
        shape_error(function, name, array.shape, " or ".join(map(str, allowed)))


def _table(
    function: str, name: str, table: Any, x: Array, where: Array | None, half: int, dtype: np.dtype[Any]
) -> Array:
    """Return the rows of a given table: (S, half) or (B, S, half)."""
    array = np.ascontiguousarray(floating(function, name, table), dtype=dtype)
    length = x.shape[-2]
    if where is None:
        _check_per_batch(function, name, array, x, (length, half))
        return array
    if array.ndim != 2 or array.shape[1] != half:
        shape_error(function, name, array.shape, f"(positions, {half})")
    if where.size and (where.min() < 0 or where.max() >= array.shape[0]):
        raise IndexError(
            f"{function}: positions hold {where.min()} to {where.max()}; "
            f"expected 0 <= position < {array.shape[0]}, the rows of {name}"
        )
    return array[where]
