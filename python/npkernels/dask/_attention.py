"""Attention over keys that no machine holds alone: partial results of blocks of keys, merged in a tree."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import npkernels
from npkernels._arrays import Array
from npkernels._attention_options import Causal
from npkernels.dask._attention_plan import Plan, plan, refuse_dropout
from npkernels.dask._graph import DaskArray, Key, Layer, Tasks, tree, unique

Part = tuple[Array, Array]


def attention(
    q: DaskArray,
    k: DaskArray,
    v: DaskArray,
    *,
    mask: Any = None,
    bias: Any = None,
    causal: Causal = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    q_offset: Any = None,
    kv_lengths: Any = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    return_lse: bool = False,
) -> Any:
    """Scaled dot-product attention of Dask arrays, chunked along queries and keys alike (context parallel).

    Each block of queries meets each block of keys in a task of its own, which gives a partial output and its lse;
    `npkernels.merge_attention` joins these in a tree. Blocks that `causal`, `window` or `kv_lengths` rule out are no
    task and their keys go nowhere.

    Parameters
    ----------
    q : Dask array (B, Hq, S, D), (H, S, D) or (S, D)
        Chunked along all axes but the last.
    k, v : Dask array (B, Hkv, K, D), (B, Hkv, K, Dv)
        With the same chunks but for the last axis; along the batch as q, along the heads so that each block of query
        heads reads one block of key heads, along the keys as you like.
    mask, bias : array that broadcasts to (B, Hq, S, K), optional
        A NumPy array is cut as it is needed. A Dask array must have, on each axis that is not of length 1, the chunks
        of the batch, the query heads, the queries and the keys.
    causal, window, softcap, scale, q_offset, kv_lengths, alibi_slopes, sinks
        As for `npkernels.attention`, in positions of the whole arrays; NumPy arrays where they are arrays.
    dropout_p, dropout_seed
        There is no dropout here: dropout_p must be 0.
    return_lse : bool
        Also return the logarithm of each row's softmax denominator.

    Returns
    -------
    out : Dask array (B, Hq, S, Dv)
        Of q's dtype, with q's chunks.
    lse : Dask array (B, Hq, S)
        Only if `return_lse`; float32, or float64 for float64.

    Raises
    ------
    TypeError, ValueError
        At once, if an argument or a chunking does not fit.
    NotImplementedError
        If something is to be dropped.

    Notes
    -----
    A task gets one block of q, k, v (and of mask and bias), never more; a task of the tree gets four partial outputs.
    16-bit partial outputs travel as float32 and are rounded once more at the end.

    References
    ----------
    .. [1] H. Liu, M. Zaharia, P. Abbeel, "Ring attention with blockwise transformers for near-infinite context", 2023.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> q = da.zeros((4, 8), chunks=(2, 8))
    >>> v = da.from_array(np.arange(4.0)[:, None], chunks=(2, 1))
    >>> npkernels.dask.attention(q, q, v, causal=True).compute()
    array([[0. ],
           [0.5],
           [1. ],
           [1.5]])
    """
    refuse_dropout("attention", dropout_p)
    given = {
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
    }
    p = plan("attention", q, k, v, given)
    name = unique("attention", *((x.name, x.chunks) for x in (p.q, p.k, p.v)), given)
    tasks: Tasks = {}
    whole = {
        (b, h, i): _merged(p, tasks, name, b, h, i) for b, h in p.heads() for i in range(len(p.chunks[2]))
    }
    layer = Layer(f"{name}-parts", tasks, (p.q, p.k, p.v, p.mask, p.bias))
    finish = functools.partial(_finish, p.q.dtype)
    outs = {(f"{name}-out", *(*at, 0)[4 - p.ndim :]): (finish, key) for at, key in whole.items()}
    out = layer.array(f"{name}-out", outs, (*p.q.chunks[:-1], p.v.chunks[-1]), p.q.dtype)
    if not return_lse:
        return out
    lses = {(f"{name}-lse", *at[4 - p.ndim :]): (_lse, key) for at, key in whole.items()}
    return out, layer.array(f"{name}-lse", lses, p.q.chunks[:-1], p.wide)


def _merged(p: Plan, tasks: Tasks, name: str, b: int, h: int, i: int) -> Key:
    """Add the tasks of one block of queries; the key of its output and lse."""
    needed = p.needed(b, i)
    query = p.q_key(p.q, b, h, i)
    if not needed:
        key = (f"{name}-empty", b, h, i)
        sizes = (p.k.shape[-1], p.v.shape[-1])
        tasks[key] = (functools.partial(no_keys, p.options(b, h, i, None, sinks=True), *sizes), query)
        return key
    wide = p.wide if len(needed) > 1 else p.q.dtype
    parts: list[Key] = []
    for j in needed:
        block = functools.partial(partial_attention, p.options(b, h, i, j, sinks=not parts), wide)
        keys = (p.k_key(p.k, b, h, j), p.k_key(p.v, b, h, j))
        scores = (p.score_key(x, b, h, i, j) for x in (p.mask, p.bias))
        parts.append((f"{name}-part", b, h, i, j))
        tasks[parts[-1]] = (block, query, *keys, *scores)
    return tree(tasks, (f"{name}-merge", b, h, i), parts, merge)


def partial_attention(
    options: dict[str, Any], dtype: Any, q: Array, k: Array, v: Array, mask: Any = None, bias: Any = None
) -> Part:
    """Attention to some of the keys: output, in the dtype in which it travels, and lse."""
    out, lse = npkernels.attention(q, k, v, mask=mask, bias=bias, return_lse=True, **options)
    return out.astype(dtype, copy=False), lse


def merge(parts: list[Part]) -> Part:
    """Join partial results over disjoint keys."""
    return npkernels.merge_attention([out for out, _ in parts], [lse for _, lse in parts])


def no_keys(options: dict[str, Any], dim: int, value_dim: int, q: Array) -> Part:
    """Attention to nothing: 0, and the lse of the sinks or -inf."""
    k, v = (np.empty((*q.shape[:-2], 0, n), q.dtype) for n in (dim, value_dim))
    out, lse = npkernels.attention(q, k, v, return_lse=True, **options)
    return out, lse


def _finish(dtype: Any, part: Part) -> Array:
    return part[0].astype(dtype, copy=False)


def _lse(part: Part) -> Array:
    return part[1]
