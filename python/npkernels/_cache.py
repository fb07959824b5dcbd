"""Keys and values that grow token by token, and attention over them: decoding."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import (
    Array,
    check_out,
    compute_dtype,
    floating,
    integers,
    is_bfloat16,
    kernel,
    plain,
    shape_error,
)
from npkernels._attention_options import heads, options

ArrayLike = npt.ArrayLike
_INT8 = np.dtype(np.int8)


class KVCache:
    """Keys and values of a batch of sequences, each of its own length, and attention over them.

    Rows are appended in place and read where they lie; the heads of a group (GQA) read each key and value once. With
    `page_size` the rows lie in pages of that many tokens that sequences take as they grow (paged attention [1]_).

    Parameters
    ----------
    batch : int
        Sequences.
    kv_heads : int
        Key/value heads.
    capacity : int
        Most tokens of a sequence.
    head_dim : int
        Head size of keys, and of values unless `value_dim` says otherwise.
    dtype : dtype
        float32, float64, float16, bfloat16, or int8: then each row has a scale of its own, its largest magnitude / 127.
    page_size : int, optional
        Tokens of a page; default: one piece per sequence.
    value_dim : int, optional
        Head size of values.

    Attributes
    ----------
    lengths : ndarray of int64 (batch,)
        Tokens that each sequence has; may be set, for example to drop rejected tokens (`truncate` checks).
    block_table : ndarray of int64 (batch, pages) or None
        Page of each run of `page_size` tokens; -1 where none is needed yet.
    k, v : ndarray
        (batch, kv_heads, capacity, D), or (pages, kv_heads, page_size, D).
    k_scale, v_scale : ndarray or None
        float32 scales of int8 rows: the shape of k and v without the last axis.

    References
    ----------
    .. [1] W. Kwon et al., "Efficient memory management for large language model serving with PagedAttention", 2023.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> cache = npkernels.KVCache(batch=1, kv_heads=1, capacity=8, head_dim=4, dtype=np.float32)
    >>> for token in range(3):
    ...     cache.append(np.zeros((1, 1, 1, 4)), np.full((1, 1, 1, 4), token))
    >>> cache.attend(np.zeros((1, 2, 1, 4), np.float32))[0, :, 0, 0]  # two query heads; the mean of 0, 1, 2
    array([1., 1.], dtype=float32)
    """

    k: Array
    v: Array
    k_scale: Array | None
    v_scale: Array | None
    lengths: Array
    block_table: Array | None

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: npt.DTypeLike = np.float32,
        page_size: int | None = None,
        value_dim: int | None = None,
    ) -> None:
        sizes = {"batch": batch, "kv_heads": kv_heads, "capacity": capacity, "head_dim": head_dim}
        batch, kv_heads, capacity, head_dim = (_size(name, n, 0) for name, n in sizes.items())
        value_dim = head_dim if value_dim is None else _size("value_dim", value_dim, 0)
        kind = _cache_dtype("dtype", np.dtype(dtype))
        if page_size is None:
            rows = (batch, kv_heads, capacity)
            table = None
        else:
            page_size = _size("page_size", page_size, 1)
            pages = -(-capacity // page_size)
            rows = (batch * pages, kv_heads, page_size)
            table = np.full((batch, pages), -1, dtype=np.int64)
        scales = [np.zeros(rows, np.float32) if kind == _INT8 else None for _ in range(2)]
        self._set(
            np.zeros((*rows, head_dim), kind),
            np.zeros((*rows, value_dim), kind),
            np.zeros(batch, np.int64),
            table,
            *scales,
            capacity=capacity,
        )

    @classmethod
    def from_arrays(
        cls,
        k: Array,
        v: Array,
        lengths: ArrayLike,
        block_table: ArrayLike | None = None,
        *,
        k_scale: Array | None = None,
        v_scale: Array | None = None,
    ) -> KVCache:
        """Make a cache over memory that the caller owns; `append` writes into it.

        Parameters
        ----------
        k, v : ndarray
            (batch, kv_heads, capacity, D) and (..., Dv); with a block table (pages, kv_heads, page_size, D). Contiguous
            last axis.
        lengths : array_like of int (batch,)
            Tokens that are there already. An int64 array is updated in place.
        block_table : array_like of int (batch, pages), optional
            Page of each run of page_size tokens; `append` takes only pages that are listed, -1 ends a row.
        k_scale, v_scale : ndarray of float32, optional
            Scales of int8 rows, contiguous, with the shape of k and v without the last axis.
        """
        name = "KVCache.from_arrays"
        for what, x in (("k", k), ("v", v)):
            if not isinstance(x, np.ndarray):
                raise TypeError(f"{name}: {what} is a {type(x).__name__}; expected a NumPy array")
            if x.ndim != 4:
                shape_error(name, what, x.shape, "(batch or pages, kv_heads, rows, head size)")
            _cache_dtype(what, x.dtype, name)
            if x.shape[-1] > 1 and x.strides[-1] != x.itemsize:
                raise ValueError(f"{name}: the last axis of {what} must be contiguous")
        if v.shape[:3] != k.shape[:3] or v.dtype != k.dtype:
            raise ValueError(
                f"{name}: v is {v.dtype} {v.shape}, k is {k.dtype} {k.shape}; "
                "expected the same dtype and all axes but the last alike"
            )
        for what, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
            if (scale is None) != (k.dtype != _INT8):
                raise ValueError(f"{name}: {what} belongs to int8 arrays, and k is {k.dtype}")
            if scale is not None and (
                scale.dtype != np.float32 or scale.shape != k.shape[:3] or not scale.flags.c_contiguous
            ):
                raise ValueError(
                    f"{name}: {what} is {scale.dtype} {scale.shape}; expected contiguous float32 {k.shape[:3]}"
                )
        table, capacity, batch = None, k.shape[2], k.shape[0]
        if block_table is not None:
            table = integers(name, "block_table", block_table)
            if table.ndim != 2:
                shape_error(name, "block_table", table.shape, "(batch, pages)")
            _check_pages(name, table, len(k))
            batch, capacity = table.shape[0], table.shape[1] * k.shape[2]
        tokens = integers(name, "lengths", lengths)
        if tokens.shape != (batch,):
            shape_error(name, "lengths", tokens.shape, f"one per sequence, ({batch},)")
        self = cls.__new__(cls)
        self._set(k, v, tokens, table, k_scale, v_scale, capacity=capacity)
        _check_lengths(name, tokens, capacity, table, k.shape[2])
        return self

    def _set(
        self,
        k: Array,
        v: Array,
        lengths: Array,
        table: Array | None,
        k_scale: Array | None,
        v_scale: Array | None,
        *,
        capacity: int,
    ) -> None:
        self.k, self.v, self.k_scale, self.v_scale = k, v, k_scale, v_scale
        self.lengths, self.block_table, self.capacity = lengths, table, capacity
        self._owned = table is not None and bool((table == -1).all())  # pages are this cache's to give out
        self._free = list(range(len(k)))[::-1] if self._owned else []

    def append(self, k: ArrayLike, v: ArrayLike, counts: ArrayLike | None = None) -> None:
        """Add the keys and values of the next tokens of every sequence.

        Parameters
        ----------
        k : array_like (batch, kv_heads, n, D)
            Rounded to the dtype of the cache (int8: with a scale per row).
        v : array_like (batch, kv_heads, n, Dv)
        counts : array_like of int (batch,), optional
            How many of the n tokens each sequence takes, from the first on; default all.

        Raises
        ------
        ValueError, TypeError
            If a shape or dtype does not fit, or a sequence would outgrow the capacity or its pages; the cache is
            unchanged then.
        """
        name = "KVCache.append"
        new = [floating(name, what, x) for what, x in (("k", k), ("v", v))]
        batch = len(self.lengths)
        for what, x, own in (("k", new[0], self.k), ("v", new[1], self.v)):
            expected = (batch, own.shape[1], "n", own.shape[3])
            if x.ndim != 4 or (x.shape[0], x.shape[1], x.shape[3]) != (batch, own.shape[1], own.shape[3]):
                shape_error(name, what, x.shape, str(expected))
        n = new[0].shape[2]
        if new[1].shape[2] != n:
            raise ValueError(f"{name}: v has {new[1].shape[2]} tokens, k has {n}; expected as many")
        taken = np.full(batch, n, np.int64) if counts is None else integers(name, "counts", counts)
        if taken.shape != (batch,):
            shape_error(name, "counts", taken.shape, f"one per sequence, ({batch},)")
        if taken.size and (taken.min() < 0 or taken.max() > n):
            raise ValueError(f"{name}: counts holds {taken.min()} to {taken.max()}; expected 0 to {n}")
        full = np.flatnonzero(self.lengths + taken > self.capacity)
        if full.size:
            b = int(full[0])
            raise ValueError(
                f"{name}: sequence {b} has {self.lengths[b]} tokens and would get {taken[b]} more; "
                f"the capacity is {self.capacity}"
            )
        rounded = [(_quantised(x) if self.k.dtype == _INT8 else (x, None)) for x in new]
        table = self._table_for(name, self.lengths + taken)
        if table is None and batch and (self.lengths == self.lengths[0]).all() and (taken == n).all():
            rows = slice(int(self.lengths[0]), int(self.lengths[0]) + n)
            self._write(slice(None), rows, rounded, slice(None), slice(None))
        else:
            for b in range(batch):
                self._append_one(b, int(taken[b]), rounded, table)
        if table is not None and table is not self.block_table:
            assert self.block_table is not None
            self.block_table[...] = table
            self._free = self._free[: len(self._free) - self._given]
        self.lengths += taken

    def _table_for(self, name: str, lengths: Array) -> Array | None:
        """Return the block table for these lengths, with pages that are still free where one is missing."""
        self._given = 0
        if self.block_table is None:
            return None
        missing = _missing(lengths, self.block_table, self.k.shape[2])
        if not missing.any():
            return self.block_table
        count = int(missing.sum())
        if count > len(self._free):
            b, page = (int(i) for i in np.argwhere(missing)[0])
            raise ValueError(
                f"{name}: sequence {b} needs a page at block_table[{b}, {page}], which is "
                f"{self.block_table[b, page]}; expected the number of a free page there"
            )
        table: Array = self.block_table.copy()
        table[missing] = self._free[-1 : -count - 1 : -1]
        self._given = count
        return table

    def _append_one(
        self, b: int, count: int, rounded: list[tuple[Array, Array | None]], table: Array | None
    ) -> None:
        """Write the first `count` new rows of sequence b, page by page."""
        start = int(self.lengths[b])
        if table is None:
            self._write(b, slice(start, start + count), rounded, b, slice(count))
            return
        size, done = self.k.shape[2], 0
        while done < count:
            page, row = divmod(start + done, size)
            part = min(size - row, count - done)
            self._write(int(table[b, page]), slice(row, row + part), rounded, b, slice(done, done + part))
            done += part

    def _write(
        self, at: Any, rows: slice, rounded: list[tuple[Array, Array | None]], entry: Any, new: slice
    ) -> None:
        for target, scales, (x, scale) in (
            (self.k, self.k_scale, rounded[0]),
            (self.v, self.v_scale, rounded[1]),
        ):
            target[at, :, rows] = x[entry, :, new]
            if scales is not None and scale is not None:
                scales[at, :, rows] = scale[entry, :, new]

    def truncate(self, lengths: ArrayLike) -> None:
        """Forget the tokens from these lengths (batch,) on, none of which may be beyond what is there."""
        name = "KVCache.truncate"
        tokens = integers(name, "lengths", lengths)
        if tokens.shape != self.lengths.shape:
            shape_error(name, "lengths", tokens.shape, f"one per sequence, {self.lengths.shape}")
        if tokens.size and ((tokens < 0) | (tokens > self.lengths)).any():
            raise ValueError(f"{name}: lengths is {tokens}; expected 0 to {self.lengths}")
        self.lengths[...] = tokens
        if self.block_table is not None and self._owned:
            unused = np.arange(self.block_table.shape[1]) >= -(-tokens // self.k.shape[2])[:, None]
            back = self.block_table[unused & (self.block_table >= 0)]
            self._free.extend(int(page) for page in back[::-1])
            self.block_table[unused] = -1

    def attend(
        self,
        q: ArrayLike,
        *,
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
        """Attention of the last S tokens of each sequence over all that it has.

        Parameters
        ----------
        q : array_like (batch, Hq, S, D)
            Queries of the last S tokens, whose keys and values were appended. float64 for a float64 cache, else
            float32, float16 or bfloat16.
        causal : bool
            Whether a token sees only itself and those before it ("bottom_right").
        window, softcap, scale, alibi_slopes, sinks, return_lse
            As for `attention`.
        q_offset : int or array_like of int (batch,), optional
            The position of the first query; default: the length less S.
        out : ndarray (batch, Hq, S, Dv), optional
            With a contiguous last axis; must not overlap an input or the cache.

        Returns
        -------
        out : ndarray (batch, Hq, S, Dv)
            Of q's dtype. Sequences without tokens give 0.
        lse : ndarray (batch, Hq, S)
            Only if `return_lse`.

        Notes
        -----
        The keys are cut into parts whose results are merged in order: the same bits for any number of threads.
        """
        return cached_attention(
            q,
            self.k,
            self.v,
            self.lengths,
            block_table=self.block_table,
            k_scale=self.k_scale,
            v_scale=self.v_scale,
            causal=causal,
            window=window,
            softcap=softcap,
            scale=scale,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            q_offset=q_offset,
            return_lse=return_lse,
            out=out,
        )


@kernel
def cached_attention(
    q: ArrayLike,
    k: Array,
    v: Array,
    lengths: Array,
    *,
    block_table: Array | None,
    k_scale: Array | None,
    v_scale: Array | None,
    causal: bool,
    q_offset: Any,
    return_lse: bool,
    out: Any,
    **given: Any,
) -> Any:
    """What `KVCache.attend` does, as a function of the cache's arrays."""
    name = "KVCache.attend"
    q = heads(name, "q", q)
    batch, kv_heads = len(lengths), k.shape[1]
    if q.ndim != 4 or q.shape[0] != batch or q.shape[3] != k.shape[3]:
        shape_error(name, "q", q.shape, str((batch, "Hq", "S", k.shape[3])))
    if q.shape[1] % kv_heads if kv_heads else q.shape[1]:
        raise ValueError(
            f"{name}: the cache has {kv_heads} heads, q has {q.shape[1]}; q heads must be a multiple of them"
        )
    if (q.dtype == np.float64) != (k.dtype == np.float64):
        raise TypeError(
            f"{name}: q has dtype {q.dtype}, the cache has {k.dtype}; float64 goes with float64 only"
        )
    if block_table is not None:
        _check_pages(name, block_table, len(k))
    capacity = k.shape[2] * (1 if block_table is None else block_table.shape[1])
    _check_lengths(name, lengths, capacity, block_table, k.shape[2])
    chosen = options(
        name,
        q,
        q.shape[2],
        capacity,
        batch,
        causal="bottom_right" if causal else False,
        q_offset=lengths - q.shape[2] if q_offset is None else q_offset,
        kv_lengths=lengths,
        **given,
    )
    shape = (*q.shape[:3], v.shape[3])
    if out is not None:
        check_out(name, out, shape, q.dtype, [q, k, v, k_scale, v_scale, lengths])
        if out.shape[-1] > 1 and out.strides[-1] != out.itemsize:
            raise ValueError(f"{name}: the last axis of out must be contiguous")
    result = np.empty(shape, q.dtype) if out is None else out
    lse = _core.attention_cached(q, k, v, k_scale, v_scale, block_table, chosen, bool(return_lse), result)
    return (result, lse) if return_lse else result


def _check_lengths(function: str, lengths: Array, capacity: int, table: Array | None, page_size: int) -> None:
    """Raise unless every sequence fits and has a page for each of its tokens."""
    wrong = np.flatnonzero((lengths < 0) | (lengths > capacity))
    if wrong.size:
        b = int(wrong[0])
        raise ValueError(f"{function}: lengths[{b}] is {lengths[b]}; expected 0 to the capacity, {capacity}")
    if table is None:
        return
    missing = _missing(lengths, table, page_size)
    if missing.any():
        b, page = (int(i) for i in np.argwhere(missing)[0])
        raise ValueError(
            f"{function}: block_table[{b}, {page}] is {table[b, page]}, but sequence {b} has {lengths[b]} tokens; "
            "expected a page there"
        )


def _missing(lengths: Array, table: Array, page_size: int) -> Array:
    """Where sequences of these lengths need a page and have none."""
    needed: Array = -(-lengths // page_size)
    return (np.arange(table.shape[1]) < needed[:, None]) & (table < 0)


def _size(name: str, n: Any, least: int) -> int:
    try:
        size = operator.index(n)
    except TypeError:
        raise TypeError(f"KVCache: {name} is {n!r}; expected an integer") from None
    if size < least:
        raise ValueError(f"KVCache: {name} is {size}; expected at least {least}")
    return size


def _cache_dtype(name: str, dtype: np.dtype[Any], function: str = "KVCache") -> np.dtype[Any]:
    if dtype not in (np.float32, np.float64, np.float16, np.int8) and not is_bfloat16(dtype):
        raise TypeError(
            f"{function}: {name} is {dtype}; expected float32, float64, float16, bfloat16 or int8"
        )
    return dtype


def _check_pages(function: str, table: Array, pages: int) -> None:
    wrong = np.argwhere((table < -1) | (table >= pages))
    if wrong.size:
        b, page = (int(i) for i in wrong[0])
        raise IndexError(
            f"{function}: block_table[{b}, {page}] is {table[b, page]}; expected -1 or a page below {pages}"
        )


def _quantised(x: Array) -> tuple[Array, Array]:
    """Rows as int8 and their scales: the largest magnitude becomes 127."""
    wide = plain("KVCache.append", "k", x).astype(compute_dtype(x.dtype), copy=False)
    largest = np.abs(wide).max(axis=-1, initial=0.0)
    if not np.isfinite(largest).all():
        raise ValueError("KVCache.append: k or v holds NaN or an infinity, for which int8 has no scale")
    scale = (largest / 127).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scale[..., None] > 0, wide / scale[..., None], 0)
    return np.rint(np.clip(steps, -127, 127)).astype(np.int8), scale
