"""Attention over the rows of a cache, as a function of the arrays that `KVCache` holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, check_out, kernel, shape_error
from npkernels._attention_options import heads, options

ArrayLike = npt.ArrayLike


@kernel
def cached_attention(
    q: ArrayLike,
    k: Array,
    v: Array,
    lengths: Array,
    *,
    block_table: Array | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    causal: bool = True,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: int | ArrayLike | None = None,
    return_lse: bool = False,
    out: Array | None = None,
) -> Any:
    """What `KVCache.attend` does; see there. The arrays are those of a cache, which has checked them."""
    name = "KVCache.attend"
    q = heads(name, "q", q)
    batch, kv_heads = len(lengths), k.shape[1]
    if q.ndim != 4 or q.shape[0] != batch or q.shape[3] != k.shape[3]:
        shape_error(name, "q", q.shape, f"({batch}, Hq, S, {k.shape[3]})")
    if q.shape[1] % kv_heads if kv_heads else q.shape[1]:
        raise ValueError(
            f"{name}: the cache has {kv_heads} heads, q has {q.shape[1]}; q heads must be a multiple of them"
        )
    if (q.dtype == np.float64) != (k.dtype == np.float64):
        raise TypeError(
            f"{name}: q has dtype {q.dtype}, the cache has {k.dtype}; float64 goes with float64 only"
        )
    if not isinstance(causal, bool | np.bool_):
        raise TypeError(f"{name}: causal is {causal!r}; expected True or False")
    capacity = k.shape[2] * (1 if block_table is None else block_table.shape[1])
    check_rows(name, lengths, capacity, block_table, k.shape)
    chosen = options(
        name,
        q,
        q.shape[2],
        capacity,
        batch,
        causal="bottom_right" if causal else False,
        window=window,
        softcap=softcap,
        scale=scale,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        q_offset=lengths - q.shape[2] if q_offset is None else q_offset,
        kv_lengths=lengths,
    )
    shape = (*q.shape[:3], v.shape[3])
    if out is not None:
        check_out(name, out, shape, q.dtype, [q, k, v, k_scale, v_scale, lengths, block_table])
        if out.size and out.shape[-1] > 1 and out.strides[-1] != out.itemsize:
            raise ValueError(f"{name}: the last axis of out must be contiguous")
    result = np.empty(shape, q.dtype) if out is None else out
    lse = _core.attention_cached(q, k, v, k_scale, v_scale, block_table, chosen, bool(return_lse), result)
    return (result, lse) if return_lse else result


def check_rows(
    function: str, lengths: Array, capacity: int, table: Array | None, shape: tuple[int, ...]
) -> None:
    """Raise unless every sequence fits and has a page for each of its tokens; `shape` is that of k."""
    for b, length in enumerate(lengths.tolist()):
        if not 0 <= length <= capacity:
            raise ValueError(f"{function}: lengths[{b}] is {length}; expected 0 to the capacity, {capacity}")
    if table is None:
        return
    pages, _, size, _ = shape
    if table.size and (table.min() < -1 or table.max() >= pages):
        b, page = np.argwhere((table < -1) | (table >= pages))[0].tolist()
        raise IndexError(
            f"{function}: block_table[{b}, {page}] is {table[b, page]}; expected -1 or a page below {pages}"
        )
    missing = pages_missing(lengths, table, size)
    if missing.any():
        b, page = np.argwhere(missing)[0].tolist()
        raise ValueError(
            f"{function}: block_table[{b}, {page}] is {table[b, page]}, but sequence {b} has {lengths[b]} tokens; "
            "expected a page there"
        )


def pages_missing(lengths: Array, table: Array, page_size: int) -> Array:
    """Where sequences of these lengths need a page and have none."""
    needed: Array = -(-lengths // page_size)
    return (np.arange(table.shape[1]) < needed[:, None]) & (table < 0)
