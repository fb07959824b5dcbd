"""Keys and values that grow token by token, and attention over them: decoding."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import (
    Array,
    compute_dtype,
    entries_apart,
    floating,
    integers,
    is_bfloat16,
    plain,
    shape_error,
)
from npkernels._cached_attention import cached_attention, check_rows, pages_missing

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
        Tokens that each sequence has. Setting it, or entries of it, says that so many rows are valid: fewer, to drop
        tokens, or more, after writing into `k` and `v` by hand. `truncate` also gives pages back.
    capacity : int
        Most tokens of a sequence.
    block_table : ndarray of int64 (batch, pages) or None
        Page of each run of `page_size` tokens; -1 where there is none yet. It, or entries of it, may be set. Rows may
        name the same page, for a prefix that sequences share: what one of them appends there, all of them have.
    k, v : ndarray
        (batch, kv_heads, capacity, D), or (pages, kv_heads, page_size, D).
    k_scale, v_scale : ndarray or None
        float32 scales of int8 rows: the shape of k and v without the last axis.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer or is negative, a page has no tokens, or the dtype is another one.

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
    capacity: int
    _lengths: Array
    _table: Array | None
    _gives_pages: bool  # whether pages that no row of the table names are this cache's to give out

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
        kind = _dtype_of_rows(dtype)
        rows, table = (batch, kv_heads, capacity), None
        if page_size is not None:
            page_size = _size("page_size", page_size, 1)
            pages = -(-capacity // page_size)
            rows, table = (batch * pages, kv_heads, page_size), np.full((batch, pages), -1, np.int64)
        self.k, self.v = np.zeros((*rows, head_dim), kind), np.zeros((*rows, value_dim), kind)
        self.k_scale, self.v_scale = (np.zeros(rows, np.float32) if kind == _INT8 else None for _ in range(2))
        self._table, self.capacity = table, capacity
        self._lengths, self._gives_pages = np.zeros(batch, np.int64), table is not None

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
        k, v : ndarray, or a CPU array with ``__dlpack__``
            (batch, kv_heads, capacity, D) and (..., Dv); with a block table (pages, kv_heads, page_size, D). Any
            strides with a contiguous last axis.
        lengths : array_like of int (batch,)
            Tokens that are there already. A contiguous int64 array is updated in place; anything else is copied, and
            `KVCache.lengths` alone is up to date then.
        block_table : array_like of int (batch, pages), optional
            Page of each run of page_size tokens; -1 where there is none. The caller gives pages out: `append` takes
            only those that are listed. A contiguous int64 array is read where it is: pages may be added later.
        k_scale, v_scale : ndarray of float32, optional
            Scales of int8 rows, contiguous, with the shape of k and v without the last axis.

        Returns
        -------
        KVCache

        Raises
        ------
        TypeError, ValueError, IndexError
            If shapes, dtypes or strides do not fit one another, a length is beyond the capacity, or a page that is
            needed is missing or out of range.

        Examples
        --------
        >>> import numpy as np, npkernels
        >>> k, v, lengths = np.zeros((1, 1, 8, 4)), np.zeros((1, 1, 8, 4)), np.array([2])
        >>> cache = npkernels.KVCache.from_arrays(k, v, lengths)
        >>> cache.append(np.ones((1, 1, 1, 4)), np.ones((1, 1, 1, 4)))
        >>> lengths, k[0, 0, :4, 0]
        (array([3]), array([0., 0., 1., 0.]))
        """
        name = "KVCache.from_arrays"
        k, v = _rows(name, "k", k), _rows(name, "v", v)
        if v.shape[:3] != k.shape[:3] or v.dtype != k.dtype:
            raise ValueError(
                f"{name}: v is {v.dtype} {v.shape}, k is {k.dtype} {k.shape}; "
                "expected the same dtype and all axes but the last alike"
            )
        k_scale, v_scale = (
            _scales(name, what, x, k) for what, x in (("k_scale", k_scale), ("v_scale", v_scale))
        )
        table, (batch, _, capacity, _) = None, k.shape
        if block_table is not None:
            table = integers(name, "block_table", block_table)
            if table.ndim != 2:
                shape_error(name, "block_table", table.shape, "(batch, pages)")
            if k.shape[2] == 0:
                shape_error(name, "k", k.shape, "pages of at least one token")
            batch, capacity = table.shape[0], table.shape[1] * k.shape[2]
        tokens = integers(name, "lengths", lengths)
        if tokens.shape != (batch,):
            shape_error(name, "lengths", tokens.shape, f"one per sequence, ({batch},)")
        check_rows(name, tokens, capacity, table, k.shape)
        self = cls.__new__(cls)
        self.k, self.v, self.k_scale, self.v_scale = k, v, k_scale, v_scale
        self._table, self.capacity = table, capacity
        self._lengths, self._gives_pages = tokens, False
        return self

    @property
    def lengths(self) -> Array:
        """Tokens that each sequence has, int64 (batch,)."""
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: ArrayLike) -> None:
        tokens = self._per_sequence("KVCache.lengths", "lengths", lengths)
        check_rows("KVCache.lengths", tokens, self.capacity, self.block_table, self.k.shape)
        self._lengths[...] = tokens

    @property
    def block_table(self) -> Array | None:
        """Page of each run of page_size tokens, int64 (batch, pages), or None."""
        return self._table

    @block_table.setter
    def block_table(self, table: ArrayLike) -> None:
        name = "KVCache.block_table"
        if self._table is None:
            raise ValueError(f"{name}: the cache has no pages; make it with page_size or block_table")
        pages = integers(name, "block_table", table)
        if pages.shape != self._table.shape:
            shape_error(name, "block_table", pages.shape, str(self._table.shape))
        check_rows(name, self._lengths, self.capacity, pages, self.k.shape)
        self._table[...] = pages

    def append(self, k: ArrayLike, v: ArrayLike, counts: ArrayLike | None = None) -> None:
        """Add the keys and values of the next tokens of every sequence.

        Parameters
        ----------
        k : array_like (batch, kv_heads, n, D)
            Rounded to the dtype of the cache (int8: with a scale per row).
        v : array_like (batch, kv_heads, n, Dv)
        counts : array_like of int (batch,), optional
            How many of the n tokens each sequence takes, from the first on; default all. The others are not looked at.

        Raises
        ------
        TypeError, ValueError, IndexError
            If a shape or dtype does not fit, a sequence would outgrow the capacity or its pages, a row for int8 holds
            NaN or an infinity, or the caller's arrays cannot be written. The cache is unchanged then.

        Examples
        --------
        >>> import numpy as np, npkernels
        >>> cache = npkernels.KVCache(batch=2, kv_heads=1, capacity=8, head_dim=4, page_size=2)
        >>> cache.append(np.ones((2, 1, 3, 4)), np.ones((2, 1, 3, 4)), counts=[3, 1])
        >>> cache.lengths, cache.block_table
        (array([3, 1]), array([[ 0,  1, -1, -1],
               [ 2, -1, -1, -1]]))
        """
        name = "KVCache.append"
        new = [floating(name, what, x) for what, x in (("k", k), ("v", v))]
        batch = len(self._lengths)
        for what, x, own in (("k", new[0], self.k), ("v", new[1], self.v)):
            expected = (batch, own.shape[1], own.shape[3])
            if x.ndim != 4 or (x.shape[0], x.shape[1], x.shape[3]) != expected:
                shape_error(name, what, x.shape, "({}, {}, n, {})".format(*expected))
        n = new[0].shape[2]
        if new[1].shape[2] != n:
            raise ValueError(f"{name}: v has {new[1].shape[2]} tokens, k has {n}; expected as many")
        taken = np.full(batch, n) if counts is None else self._per_sequence(name, "counts", counts)
        if taken.size and (taken.min() < 0 or taken.max() > n):
            raise ValueError(f"{name}: counts holds {taken.min()} to {taken.max()}; expected 0 to {n}")
        check_rows(name, self._lengths, self.capacity, self.block_table, self.k.shape)
        lengths = self._lengths + taken
        if lengths.size and lengths.max() > self.capacity:
            b = int(np.argmax(lengths > self.capacity))
            raise ValueError(
                f"{name}: sequence {b} has {self._lengths[b]} tokens and would get {taken[b]} more; "
                f"the capacity is {self.capacity}"
            )
        self._check_writeable(name)
        fresh = np.arange(n) < taken[:, None]
        rounded = [self._rounded(name, what, x, fresh) for what, x in (("k", new[0]), ("v", new[1]))]
        table = self._table_for(name, lengths)  # the last that may fail
        together = bool((taken == n).all()) and bool((self._lengths == self._lengths[:1]).all())
        if table is None and batch and together:
            start = int(self._lengths[0])
            self._write(slice(None), slice(start, start + n), rounded, slice(None), slice(n))
        else:
            for b in range(batch):
                self._append_one(b, int(taken[b]), rounded, table)
        if table is not None and self.block_table is not None and table is not self.block_table:
            self.block_table[...] = table
        self._lengths += taken

    def truncate(self, lengths: ArrayLike) -> None:
        """Forget the tokens from these lengths on, and give the pages back that nobody needs then.

        Parameters
        ----------
        lengths : array_like of int (batch,)
            Tokens that each sequence keeps.

        Raises
        ------
        TypeError, ValueError
            If a length is not an integer, is negative or is more than there is; the cache is unchanged then.

        Examples
        --------
        >>> import numpy as np, npkernels
        >>> cache = npkernels.KVCache(batch=1, kv_heads=1, capacity=8, head_dim=4, page_size=2)
        >>> cache.append(np.ones((1, 1, 5, 4)), np.ones((1, 1, 5, 4)))
        >>> cache.truncate(cache.lengths - 2)  # two tokens were rejected
        >>> cache.lengths, cache.block_table
        (array([3]), array([[ 0,  1, -1, -1]]))
        """
        name = "KVCache.truncate"
        tokens = self._per_sequence(name, "lengths", lengths)
        if ((tokens < 0) | (tokens > self._lengths)).any():
            raise ValueError(f"{name}: lengths is {tokens}; expected 0 to {self._lengths}")
        self._lengths[...] = tokens
        if self.block_table is not None and self._gives_pages:
            needed = -(-tokens // self.k.shape[2])
            self.block_table[np.arange(self.block_table.shape[1]) >= needed[:, None]] = -1

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

        Raises
        ------
        TypeError, ValueError, IndexError
            If an argument has the wrong dtype, shape or value, or `lengths` or `block_table` were set to something that
            the cache does not hold; `out` is untouched then.

        Notes
        -----
        The keys are cut into parts whose results are merged in order: the same bits for any number of threads. Rows
        behind the lengths are never read.

        Examples
        --------
        >>> import numpy as np, npkernels
        >>> cache = npkernels.KVCache(batch=1, kv_heads=1, capacity=8, head_dim=1)
        >>> cache.append(np.zeros((1, 1, 3, 1)), np.arange(3.0).reshape(1, 1, 3, 1))
        >>> cache.attend(np.zeros((1, 1, 2, 1), np.float32)).ravel()  # of tokens 0 and 1; of tokens 0, 1, 2
        array([0.5, 1. ], dtype=float32)
        """
        return cached_attention(
            q,
            self.k,
            self.v,
            self._lengths,
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

    def _per_sequence(self, function: str, name: str, x: Any) -> Array:
        array = integers(function, name, x)
        if array.shape != self._lengths.shape:
            shape_error(function, name, array.shape, f"one per sequence, {self._lengths.shape}")
        return array

    def _check_writeable(self, function: str) -> None:
        """Raise if memory of the caller cannot take new rows."""
        held = {"k": self.k, "v": self.v, "k_scale": self.k_scale, "v_scale": self.v_scale}
        for name, x in {**held, "lengths": self._lengths}.items():
            if x is not None and not x.flags.writeable:
                raise ValueError(f"{function}: the cache's {name} is read-only; make it of writeable arrays")
            if x is not None and not entries_apart(x):
                raise ValueError(
                    f"{function}: the cache's {name} has strides {x.strides}, so its rows may share memory"
                )

    def _rounded(self, function: str, name: str, x: Array, fresh: Array) -> tuple[Array, Array | None]:
        """New rows in the dtype of the cache, apart from its memory, and for int8 their scales."""
        if self.k.dtype == _INT8:
            return _quantised(function, name, x, fresh)
        if x.dtype != self.k.dtype:
            with np.errstate(all="ignore"):
                return x.astype(self.k.dtype), None
        own = np.may_share_memory(x, self.k) or np.may_share_memory(x, self.v)
        return (x.copy() if own else x), None

    def _table_for(self, function: str, lengths: Array) -> Array | None:
        """Return the block table for these lengths, with pages that nobody has where one is missing."""
        if self.block_table is None:
            return None
        missing = pages_missing(lengths, self.block_table, self.k.shape[2])
        count = int(missing.sum())
        if not count:
            return self.block_table
        free = np.zeros(0, np.int64)
        if self._gives_pages:
            free = np.flatnonzero(~np.isin(np.arange(len(self.k)), self.block_table))
        if count > len(free):
            b, page = np.argwhere(missing)[0].tolist()
            raise ValueError(
                f"{function}: sequence {b} needs a page at block_table[{b}, {page}], which is -1, and {len(free)} "
                "pages are free; expected the number of a page there"
            )
        table: Array = self.block_table.copy()
        table[missing] = free[:count]
        return table

    def _append_one(
        self, b: int, count: int, rounded: list[tuple[Array, Array | None]], table: Array | None
    ) -> None:
        """Write the first `count` new rows of sequence b, page by page."""
        start = int(self._lengths[b])
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


def _size(name: str, n: Any, least: int) -> int:
    try:
        size = operator.index(n)
    except TypeError:
        raise TypeError(f"KVCache: {name} is {n!r}; expected an integer") from None
    if size < least:
        raise ValueError(f"KVCache: {name} is {size}; expected at least {least}")
    return size


def _dtype_of_rows(dtype: Any) -> np.dtype[Any]:
    try:
        kind: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(
            f"KVCache: dtype is {dtype!r}; expected float32, float64, float16, bfloat16 or int8"
        ) from error
    _check_dtype("KVCache", "dtype", kind)
    return kind


def _check_dtype(function: str, name: str, dtype: np.dtype[Any]) -> None:
    if dtype not in (np.float32, np.float64, np.float16, np.int8) and not is_bfloat16(dtype):
        raise TypeError(
            f"{function}: {name} is {dtype}; expected float32, float64, float16, bfloat16 or int8"
        )


def _rows(function: str, name: str, x: Any) -> Array:
    """Keys or values of the caller, as it lies in memory."""
    if not (isinstance(x, np.ndarray) or hasattr(x, "__dlpack__")):
        raise TypeError(f"{function}: {name} is a {type(x).__name__}; expected a NumPy array")
    array = plain(function, name, x)
    if array.ndim != 4:
        shape_error(function, name, array.shape, "(batch or pages, kv_heads, rows, head size)")
    _check_dtype(function, name, array.dtype)
    if array.size and array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
        raise ValueError(f"{function}: the last axis of {name} must be contiguous")
    if not array.flags.aligned:
        raise ValueError(f"{function}: {name} is not aligned to its dtype; pass an ordinary array")
    return array


def _scales(function: str, name: str, x: Any, k: Array) -> Array | None:
    """Scales of the caller, which int8 rows and no others have."""
    if (x is None) != (k.dtype != _INT8):
        raise ValueError(f"{function}: {name} goes with int8 arrays and only with them; k is {k.dtype}")
    if x is None:
        return None
    array = plain(function, name, x)
    in_order = array.flags.c_contiguous and array.flags.aligned
    if array.dtype != np.float32 or array.shape != k.shape[:3] or not in_order:
        raise ValueError(
            f"{function}: {name} is {array.dtype} {array.shape}; expected contiguous float32 {k.shape[:3]}"
        )
    return array


def _quantised(function: str, name: str, x: Array, fresh: Array) -> tuple[Array, Array]:
    """Rows as int8 and their scales: the largest magnitude becomes 127; rows that are not `fresh` become anything."""
    wide = x.astype(compute_dtype(x.dtype), copy=False)
    with np.errstate(all="ignore"):
        largest = np.where(fresh[:, None], np.abs(wide).max(axis=-1, initial=0.0), 0)
        scale = (largest / 127).astype(np.float32)
        if not np.isfinite(scale).all():
            raise ValueError(
                f"{function}: {name} holds NaN, an infinity or a number beyond float32; int8 cannot"
            )
        steps = np.where(scale[..., None] > 0, wide / scale[..., None], 0)
        return np.rint(np.clip(steps, -127, 127)).astype(np.int8), scale
