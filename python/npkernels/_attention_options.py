"""The arguments that all attention functions share: what they may be, and the form in which the kernels take them."""

from __future__ import annotations

import math
import operator
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from npkernels._arrays import (
    Array,
    boolean,
    compute_dtype,
    floating,
    integers,
    is_bfloat16,
    number,
    plain,
    shape_error,
)

Causal = bool | Literal["top_left", "bottom_right"]
# mask, bias, alibi_slopes, sinks, causal, left, right, softcap, scale, offset, kv_lengths, dropout_p, dropout_seed
Options: TypeAlias = tuple[
    Array | None,
    Array | None,
    Array | None,
    Array | None,
    bool,
    int,
    int,
    float,
    float,
    Array | None,
    Array | None,
    float,
    int,
]
_FARTHEST = 2**60  # key positions beyond it would overflow


def heads(function: str, name: str, x: Any) -> Array:
    """Return q, k, v or their like with 2 to 4 axes and a contiguous last one."""
    array = floating(function, name, x)
    if not 2 <= array.ndim <= 4:
        shape_error(function, name, array.shape, "(S, D), (H, S, D) or (B, H, S, D)")
    if array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
        array = np.ascontiguousarray(array)
    return array


def to_4d(x: Array) -> Array:
    """Put axes of length 1 before an array with fewer than 4."""
    return x if x.ndim == 4 else x[(None,) * (4 - x.ndim)]


def check_like(function: str, name: str, x: Array, like_name: str, like: Array) -> None:
    """Raise unless x has the shape and dtype of another array."""
    if x.shape != like.shape:
        shape_error(function, name, x.shape, f"that of {like_name}, {like.shape}")
    if x.dtype != like.dtype:
        raise TypeError(
            f"{function}: {name} has dtype {x.dtype}, {like_name} has {like.dtype}; expected the same dtype"
        )


def output_like(q: Array, v: Array) -> Array:
    """Return something with the shape and dtype of the output, and the memory of one number."""
    shape = (*q.shape[:-1], v.shape[-1])
    like: Array = np.ndarray(shape, q.dtype, bytes(q.itemsize), strides=(0,) * len(shape))
    return like


def new_like(x: Array) -> Array:
    """Return memory for x's shape and dtype: the last axis contiguous, the others in the order of x's strides."""
    like: Array
    if x.flags.c_contiguous:
        like = np.empty(x.shape, x.dtype)
        return like
    order = sorted(range(x.ndim - 1), key=lambda axis: -abs(x.strides[axis]))
    memory = np.empty([*(x.shape[axis] for axis in order), x.shape[-1]], x.dtype)
    like = memory.transpose([*np.argsort(order), x.ndim - 1])
    return like


def check_shapes(function: str, q: Array, k: Array, v: Array | None) -> None:
    """Raise unless q, k and v belong together."""
    others = [("k", k)] if v is None else [("k", k), ("v", v)]
    for name, x in others:
        if x.ndim != q.ndim:
            shape_error(function, name, x.shape, f"{q.ndim} axes as q, which has shape {q.shape}")
        if x.dtype != q.dtype:
            mixed = " (integers count as float64)" if np.float64 in (x.dtype, q.dtype) else ""
            raise TypeError(
                f"{function}: {name} has dtype {x.dtype}, q has {q.dtype}; expected the same dtype{mixed}"
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


def options(
    function: str,
    q: Array,
    queries: npt.NDArray[np.int64] | int,
    keys: npt.NDArray[np.int64] | int,
    entries: int,
    *,
    mask: Any = None,
    bias: Any = None,
    causal: Any = False,
    window: Any = None,
    softcap: Any = 0.0,
    scale: Any = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    q_offset: Any = None,
    kv_lengths: Any = None,
    dropout_p: Any = 0.0,
    dropout_seed: Any = None,
) -> Options:
    """Check the options of a call with q (B, Hq, S, D), and give them as the kernels take them.

    `queries` and `keys` are those of each entry of the batch (or sequence), of which there are `entries`.
    """
    _, q_heads, _, dim = q.shape
    dtype = compute_dtype(q.dtype)
    if isinstance(causal, np.bool_):
        causal = bool(causal)
    lengths = None
    if kv_lengths is not None:
        most = keys if isinstance(keys, int) else int(np.max(keys, initial=0))
        lengths = _lengths(function, kv_lengths, entries, most)
        keys = lengths
    left, right = _window(function, window)
    seed = _dropout(function, dropout_p, dropout_seed)
    return (
        None if mask is None else _mask(function, mask),
        None if bias is None else _bias(function, bias, q),
        None if alibi_slopes is None else _slopes(function, alibi_slopes, entries, q_heads, dtype),
        None if sinks is None else _per_head(function, "sinks", sinks, (q_heads,), dtype),
        causal is not False,
        left,
        right,
        _softcap(function, softcap),
        _scale(function, scale, dim),
        _offset(function, causal, q_offset, entries, queries, keys),
        lengths,
        0.0 if seed is None else float(dropout_p),
        0 if seed is None else seed,
    )


def _mask(function: str, mask: Any) -> Array:
    array = plain(function, "mask", mask)
    if array.dtype.kind == "f" or is_bfloat16(array.dtype):
        raise TypeError(
            f"{function}: mask has dtype {array.dtype}; expected bool (True = may attend); "
            "numbers that are added to the scores are passed as bias"
        )
    return boolean(function, "mask", array)


def _bias(function: str, bias: Any, q: Array) -> Array:
    array = plain(function, "bias", bias)
    if array.dtype == np.bool_:
        raise TypeError(f"{function}: bias has dtype bool; expected {q.dtype} (pass booleans as mask)")
    array = floating(function, "bias", array)
    if array.dtype != q.dtype:
        raise TypeError(f"{function}: bias has dtype {array.dtype}; expected q's dtype {q.dtype}")
    return array


def _per_head(function: str, name: str, x: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    array = floating(function, name, x)
    if array.shape != shape:
        shape_error(function, name, array.shape, f"one number per query head, {shape}")
    return np.ascontiguousarray(array, dtype=dtype)


def _slopes(function: str, slopes: Any, entries: int, q_heads: int, dtype: np.dtype[Any]) -> Array:
    array = floating(function, "alibi_slopes", slopes)
    if array.shape not in ((q_heads,), (entries, q_heads)):
        shape_error(function, "alibi_slopes", array.shape, f"({q_heads},) or ({entries}, {q_heads})")
    return np.ascontiguousarray(array, dtype=dtype)


def _lengths(function: str, kv_lengths: Any, entries: int, keys: int) -> Array:
    array = integers(function, "kv_lengths", kv_lengths)
    if array.shape != (entries,):
        shape_error(function, "kv_lengths", array.shape, f"one length per entry of the batch, ({entries},)")
    wrong = next((n for n in array.tolist() if not 0 <= n <= keys), None)
    if wrong is not None:
        raise ValueError(f"{function}: kv_lengths holds {wrong}; expected lengths from 0 to {keys}")
    return array


def _window(function: str, window: Any) -> tuple[int, int]:
    if window is None:
        return -1, -1
    expected = "a pair (left, right) of integers, -1 = open"
    if isinstance(window, np.ndarray):
        window = window.tolist()
    if not isinstance(window, tuple | list):
        raise TypeError(f"{function}: window is {window!r}; expected {expected}")
    if len(window) != 2:
        raise ValueError(f"{function}: window is {window!r}; expected {expected}")
    try:
        sides = [operator.index(side) for side in window]
    except TypeError:
        raise TypeError(f"{function}: window is {window!r}; expected {expected}") from None
    if min(sides) < -1:
        raise ValueError(f"{function}: window is {window!r}; expected {expected}")
    return min(sides[0], _FARTHEST), min(sides[1], _FARTHEST)


def _softcap(function: str, softcap: Any) -> float:
    value = number(function, "softcap", softcap)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"{function}: softcap is {softcap!r}; expected a positive finite number, or 0 for none"
        )
    return value


def _dropout(function: str, dropout_p: Any, dropout_seed: Any) -> int | None:
    """Return the seed, or None where nothing is dropped."""
    share = number(function, "dropout_p", dropout_p)
    if share == 0 and dropout_seed is None:
        return None
    if not 0 <= share < 1:
        raise ValueError(f"{function}: dropout_p is {dropout_p!r}; expected a share from 0 to below 1")
    if dropout_seed is None:
        raise ValueError(f"{function}: dropout_p is {dropout_p!r}, which needs dropout_seed, an integer")
    try:
        seed = operator.index(dropout_seed) % 2**64
    except TypeError:
        raise TypeError(f"{function}: dropout_seed is {dropout_seed!r}; expected an integer") from None
    return seed if share > 0 else None


def _scale(function: str, scale: Any, dim: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(dim) if dim else 1.0
    value = number(function, "scale", scale)
    if not math.isfinite(value):
        raise ValueError(f"{function}: scale is {scale!r}; expected a finite number")
    return value


def _offset(
    function: str,
    causal: Any,
    q_offset: Any,
    entries: int,
    queries: npt.NDArray[np.int64] | int,
    keys: npt.NDArray[np.int64] | int,
) -> Array | None:
    """Return the key position of query 0 per entry; None means 0."""
    if not isinstance(causal, bool):
        if not isinstance(causal, str) or causal not in ("top_left", "bottom_right"):
            raise ValueError(
                f"{function}: causal is {causal!r}; expected False, True, 'top_left' or 'bottom_right'"
            )
    elif causal and q_offset is None and np.any(np.not_equal(queries, keys)):
        place = np.argmax(np.not_equal(queries, keys))
        counts = (int(np.broadcast_to(n, (max(entries, 1),))[place]) for n in (queries, keys))
        raise ValueError(
            "{}: causal=True with {} queries and {} keys is ambiguous; say 'top_left' (PyTorch), "
            "'bottom_right' (flash-attention), or give q_offset".format(function, *counts)
        )
    if q_offset is None:
        if causal != "bottom_right":
            return None
        return np.full(entries, np.subtract(keys, queries), dtype=np.int64)
    if type(q_offset) is int and not -(2**63) <= q_offset < 2**63:
        raise ValueError(f"{function}: q_offset is {q_offset}; expected an integer of 64 bits")
    offset = plain(function, "q_offset", q_offset)
    if offset.dtype.kind not in "iu":
        raise TypeError(f"{function}: q_offset has dtype {offset.dtype}; expected integers")
    if offset.shape not in ((), (entries,)):
        shape_error(function, "q_offset", offset.shape, f"an integer or one per batch, ({entries},)")
    # i + offset must not overflow
    values = offset.tolist() if offset.ndim else [offset.item()] * entries
    return np.array([min(max(value, -_FARTHEST), _FARTHEST) for value in values], dtype=np.int64)
