"""Attention over a cache: its rows brought together, then attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from npkernels._arrays import Array, compute_dtype
from npkernels._cli.plain.attention import attention


def cached_attention(
    q: Array,
    k: Array,
    v: Array,
    lengths: Array,
    *,
    block_table: Array | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    causal: bool = True,
    window: Sequence[int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    q_offset: Any = None,
    return_lse: bool = False,
) -> Any:
    """`attention` over the keys of each sequence."""
    return attention(
        q,
        _rows(k, k_scale, block_table, q),
        _rows(v, v_scale, block_table, q),
        causal="bottom_right" if causal else False,
        window=window,
        softcap=softcap,
        scale=scale,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        q_offset=lengths - q.shape[2] if q_offset is None else q_offset,
        kv_lengths=lengths,
        return_lse=return_lse,
    )


def _rows(x: Array, scale: Array | None, table: Array | None, q: Array) -> Array:
    """(B, Hkv, capacity, D) in the compute dtype of q; pages that the table names one after the other."""
    rows = x.astype(compute_dtype(q.dtype))
    if scale is not None:
        rows *= scale[..., None]
    if table is None:
        return rows
    paged: Array = rows[table].swapaxes(1, 2)
    batch, heads, count, size, dim = paged.shape
    return paged.reshape(batch, heads, count * size, dim)
