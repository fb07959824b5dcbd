"""Attention of `KVCache.attend`: the rows of a cache brought together, then attention over as many as there are.

k (B, Hkv, capacity, D), or with a block table (pages, Hkv, page_size, D): token j of sequence b lies in row
j % page_size of page block_table[b, j // page_size]; v likewise. int8 rows are multiplied by their scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._common import Array, ArrayLike, as_index, working
from .attention import attention


def _rows(x: npt.NDArray[Any], scale: Array | None, table: npt.NDArray[np.int64] | None) -> Array:
    """(B, Hkv, capacity, D), in numbers that hold every dtype of a cache exactly."""
    (wide,) = working("cached_attention", x=x.astype(np.float32) if x.dtype == np.int8 else x)
    if scale is not None:
        wide = wide * scale[..., None]
    if table is None:
        return wide
    pages = np.where(table < 0, 0, table)  # what has no page is behind the length
    gathered: Array = np.moveaxis(wide[pages], 2, 1)  # (B, Hkv, pages, page_size, D)
    batch, heads, count, size, dim = gathered.shape
    return gathered.reshape(batch, heads, count * size, dim)


def cached_attention(
    q: ArrayLike,
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    lengths: ArrayLike,
    *,
    block_table: npt.NDArray[np.int64] | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    causal: bool = True,
    window: Sequence[int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: Any = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """``attention`` of the last S tokens of each sequence over all of its keys.

    Examples
    --------
    >>> q, k, v = np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 4, 1)), np.arange(4.0).reshape(1, 1, 4, 1)
    >>> float(cached_attention(q, k, v, [3])[0, 0, 0, 0])
    1.0
    """
    tokens = as_index("cached_attention", "lengths", lengths)
    (wide,) = working("cached_attention", q=q)
    rows = [_rows(x, scale, block_table) for x, scale in ((k, k_scale), (v, v_scale))]
    return attention(
        wide,
        *rows,
        causal="bottom_right" if causal else False,
        q_offset=tokens - wide.shape[2] if q_offset is None else q_offset,
        kv_lengths=tokens,
        window=window,
        softcap=softcap,
        scale=scale,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        return_lse=return_lse,
    )
