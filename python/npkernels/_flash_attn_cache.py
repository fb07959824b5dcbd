"""flash-attention's decoding step: new keys and values go into the cache in place, then attention over the cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from npkernels._arrays import Array, integers, shape_error
from npkernels._attention_options import options as check_options
from npkernels._cache import KVCache
from npkernels._flash_attn_calls import as_given, as_numpy, is_tensor, options_of, pages_needed, small
from npkernels._rotary import rotary_embedding

_FUNCTION = "flash_attn_with_kvcache"


def flash_attn_with_kvcache(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Any = None,
    v: Any = None,
    rotary_cos: Any = None,
    rotary_sin: Any = None,
    cache_seqlens: Any = None,
    cache_batch_idx: Any = None,
    cache_leftpad: Any = None,
    block_table: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Any = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """Attention over a cache, to which k and v are appended in place first; without gradients.

    Letters: B batch, S queries, n new tokens, C capacity of the cache, Hq and Hk query and key heads, D head size.

    Parameters
    ----------
    q : tensor or ndarray (B, S, Hq, D)
        float32, float64, float16 or bfloat16, on the CPU.
    k_cache, v_cache : like q (Bc, C, Hk, D), or (pages, page_size, Hk, D) with a block table
        Written to; with a contiguous last axis. Pages may have any size.
    k, v : like q (B, n, Hk, D), optional
        New keys and values: they go to the rows from ``cache_seqlens[b]`` on.
    rotary_cos, rotary_sin : like q (P, rotary_dim / 2), optional
        Rotary embedding of the first rotary_dim entries: row p of the tables turns what stands at position p. k stands
        at ``cache_seqlens[b]`` and on; q too if `causal` or there is a window, else all of q stands at
        ``cache_seqlens[b]``. Only together with k and v.
    cache_seqlens : int or int (B,), optional
        Rows of the cache that are taken, without the new ones; default all. Needed with k and v.
    cache_batch_idx : int (B,), optional
        The row of the cache of each entry of the batch; default ``arange(B)``. Not with a block table.
    cache_leftpad : int (B,), optional
        The first row that counts; default 0. Not with a block table.
    block_table : int (B, blocks), optional
        The pages of each sequence.
    softmax_scale, causal, window_size, softcap, alibi_slopes
        As for `flash_attn_func`, with K the taken rows and the new ones.
    rotary_interleaved : bool
        Pairs are (x[2i], x[2i+1]) instead of (x[i], x[i + rotary_dim/2]).
    num_splits : int
        Taken and ignored: how keys are cut into parts is chosen here, and does not depend on the number of threads.
    return_softmax_lse : bool
        Also return the logarithm of each row's softmax denominator.

    Returns
    -------
    out : like q (B, S, Hq, Dv)
    softmax_lse : (B, Hq, S)
        Only if `return_softmax_lse`.

    Raises
    ------
    TypeError, ValueError, IndexError
        If an argument has the wrong kind, dtype, shape or value, the cache is too small for the new rows, or two
        arguments exclude each other. The cache is unchanged then.

    Examples
    --------
    >>> import numpy as np
    >>> from npkernels.flash_attn import flash_attn_with_kvcache
    >>> k_cache, v_cache = np.zeros((2, 1, 8, 1, 4))
    >>> new = np.ones((1, 1, 1, 4))
    >>> out = flash_attn_with_kvcache(new, k_cache, v_cache, new, new, cache_seqlens=1)
    >>> out[0, 0, 0].round(4)  # the weight of the new key, 1 / (1 + exp(-2))
    array([0.8808, 0.8808, 0.8808, 0.8808])
    >>> k_cache[0, :3, 0, 0]
    array([0., 1., 0.])
    """
    arrays = {"q": q, "k_cache": k_cache, "v_cache": v_cache}
    if (k is None) != (v is None):
        raise ValueError(f"{_FUNCTION}: {'k' if k is None else 'v'} is None; k and v go together")
    if k is not None:
        arrays |= {"k": k, "v": v}
    if (rotary_cos is None) != (rotary_sin is None):
        missing = "rotary_cos" if rotary_cos is None else "rotary_sin"
        raise ValueError(f"{_FUNCTION}: {missing} is None; rotary_cos and rotary_sin go together")
    if rotary_cos is not None and k is None:
        raise ValueError(f"{_FUNCTION}: rotary_cos is given without k and v; expected new keys to turn")
    if k is not None and cache_seqlens is None:
        raise ValueError(
            f"{_FUNCTION}: cache_seqlens is None; expected it with k and v, to know where they go"
        )
    if block_table is not None:
        for name, other in (("cache_batch_idx", cache_batch_idx), ("cache_leftpad", cache_leftpad)):
            if other is not None:
                raise ValueError(f"{_FUNCTION}: {name} and block_table are given; expected one of them")
    tensor = is_tensor(_FUNCTION, **arrays)
    x = {name: as_numpy(_FUNCTION, name, array) for name, array in arrays.items()}
    _check(x)
    batch, new = len(x["q"]), x["k"].shape[1] if k is not None else 0
    lengths, table, first = _places(x, new, cache_seqlens, cache_batch_idx, cache_leftpad, block_table)
    options = options_of(_FUNCTION, softmax_scale, causal, window_size, softcap, alibi_slopes)
    queries = x["q"].swapaxes(1, 2)
    check_options(_FUNCTION, queries, queries.shape[2], 0, batch, **{**options, "causal": False})
    options["causal"] = bool(causal)
    if rotary_cos is not None:
        tables = {
            "cos": small(_FUNCTION, "rotary_cos", rotary_cos),
            "sin": small(_FUNCTION, "rotary_sin", rotary_sin),
            "interleaved": bool(rotary_interleaved),
        }
        moving = causal or options["window"] != (-1, -1)
        x["q"] = _turned(x["q"], lengths, tables, moving=moving)
        x["k"] = _turned(x["k"], lengths, tables, moving=True)
    k_rows, v_rows = (x[name].swapaxes(1, 2) for name in ("k_cache", "v_cache"))
    cache = KVCache.from_arrays(k_rows, v_rows, lengths.copy(), table)
    if k is not None:
        cache.append(x["k"].swapaxes(1, 2), x["v"].swapaxes(1, 2))
    queries = x["q"].swapaxes(1, 2)
    out = np.empty((batch, x["q"].shape[1], x["q"].shape[2], x["v_cache"].shape[3]), x["q"].dtype)
    heads_first = out.swapaxes(1, 2)
    lse: Array
    if first is None:
        _, lse = cache.attend(queries, return_lse=True, out=heads_first, **options)
    else:
        lse = np.empty(queries.shape[:3], np.float64 if out.dtype == np.float64 else np.float32)
        rows = np.arange(batch) if table is None else table[:, 0]
        slopes = options.pop("alibi_slopes")
        for b, (row, start) in enumerate(zip(rows.tolist(), first.tolist(), strict=True)):
            one = KVCache.from_arrays(
                k_rows[row : row + 1, :, start:],
                v_rows[row : row + 1, :, start:],
                cache.lengths[b : b + 1] - start,
            )
            own = slopes[b] if slopes is not None and np.ndim(slopes) == 2 else slopes
            _, lse[b : b + 1] = one.attend(
                queries[b : b + 1], return_lse=True, alibi_slopes=own, out=heads_first[b : b + 1], **options
            )
    result = as_given(out, tensor)
    return (result, as_given(lse, tensor)) if return_softmax_lse else result


def _check(x: dict[str, Array]) -> None:
    """Raise unless shapes and dtypes belong together."""
    q, k_cache, v_cache = x["q"], x["k_cache"], x["v_cache"]
    for name, array in x.items():
        if array.ndim != 4:
            shape_error(_FUNCTION, name, array.shape, "4 axes, (B, S, H, D)")
        if array.dtype != q.dtype:
            raise TypeError(
                f"{_FUNCTION}: {name} has dtype {array.dtype}, q has {q.dtype}; expected the same dtype"
            )
    if v_cache.shape[:3] != k_cache.shape[:3]:
        shape_error(
            _FUNCTION, "v_cache", v_cache.shape, f"that of k_cache but for the head size, {k_cache.shape}"
        )
    if k_cache.shape[3] != q.shape[3]:
        raise ValueError(
            f"{_FUNCTION}: k_cache has head size {k_cache.shape[3]}, q has {q.shape[3]}; expected the same"
        )
    if (q.shape[2] % k_cache.shape[2] if k_cache.shape[2] else q.shape[2]) != 0:
        raise ValueError(
            f"{_FUNCTION}: k_cache has {k_cache.shape[2]} heads, q has {q.shape[2]}; "
            "q heads must be a multiple of k_cache heads"
        )
    if "k" in x:
        n = x["k"].shape[1]
        for name, cache in (("k", k_cache), ("v", v_cache)):
            expected = (len(q), n, *cache.shape[2:])
            if x[name].shape != expected:
                shape_error(_FUNCTION, name, x[name].shape, f"{expected}")


def _places(
    x: dict[str, Array],
    new: int,
    cache_seqlens: Any,
    cache_batch_idx: Any,
    cache_leftpad: Any,
    block_table: Any,
) -> tuple[Array, Array | None, Array | None]:
    """Return the taken rows of each entry, the table of pages if there is one, and the first row that counts."""
    batch, (entries, size) = len(x["q"]), x["k_cache"].shape[:2]
    capacity, given = size, None
    if block_table is not None:
        given = integers(_FUNCTION, "block_table", small(_FUNCTION, "block_table", block_table))
        if given.ndim != 2 or len(given) != batch:
            shape_error(_FUNCTION, "block_table", given.shape, f"({batch}, blocks)")
        capacity = given.shape[1] * size
    lengths = np.full(batch, capacity, np.int64)
    if cache_seqlens is not None:
        lengths = integers(_FUNCTION, "cache_seqlens", small(_FUNCTION, "cache_seqlens", cache_seqlens))
        if lengths.shape not in ((), (batch,)):
            shape_error(
                _FUNCTION, "cache_seqlens", lengths.shape, f"an integer or one per sequence, ({batch},)"
            )
        lengths = np.array(np.broadcast_to(lengths, batch))
    if lengths.size and (lengths.min() < 0 or lengths.max() + new > capacity):
        wrong = int(lengths[(lengths < 0) | (lengths + new > capacity)][0])
        raise ValueError(
            f"{_FUNCTION}: cache_seqlens holds {wrong}, and {new} rows are new; expected 0 to the capacity, {capacity}"
        )
    first = None
    if cache_leftpad is not None:
        first = integers(_FUNCTION, "cache_leftpad", small(_FUNCTION, "cache_leftpad", cache_leftpad))
        if first.shape != (batch,):
            shape_error(_FUNCTION, "cache_leftpad", first.shape, f"one per sequence, ({batch},)")
        if ((first < 0) | (first > lengths)).any():
            raise ValueError(f"{_FUNCTION}: cache_leftpad is {first}; expected 0 to cache_seqlens, {lengths}")
    if given is not None:
        return lengths, pages_needed(_FUNCTION, given, lengths + new, size, entries), None
    if cache_batch_idx is None:
        if entries != batch:
            raise ValueError(
                f"{_FUNCTION}: k_cache has batch size {entries}, q has {batch}; expected the same"
            )
        return lengths, None, first
    index = integers(_FUNCTION, "cache_batch_idx", small(_FUNCTION, "cache_batch_idx", cache_batch_idx))
    if index.shape != (batch,):
        shape_error(_FUNCTION, "cache_batch_idx", index.shape, f"one per sequence, ({batch},)")
    if index.size and (index.min() < 0 or index.max() >= entries):
        raise IndexError(
            f"{_FUNCTION}: cache_batch_idx is {index}; expected rows of the cache, 0 to {entries - 1}"
        )
    return lengths, index[:, None], first  # a row of the cache is a page that holds a whole sequence


def _turned(x: Array, lengths: Array, tables: dict[str, Any], *, moving: bool) -> Array:
    """Turn (B, S, H, D) by the angles of its positions."""
    positions = lengths[:, None] + (np.arange(x.shape[1]) if moving else np.zeros(x.shape[1], np.int64))
    dim = 2 * np.shape(tables["cos"])[-1]
    result: Any = rotary_embedding(x.swapaxes(1, 2), positions, rotary_dim=dim, **tables)
    turned: Array = result.swapaxes(1, 2)
    return turned
