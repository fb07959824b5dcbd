"""Gradients of attention over keys that no machine holds alone."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np

import npkernels
from npkernels._arrays import Array
from npkernels._attention_options import Causal
from npkernels._types import AttentionGrads
from npkernels.dask._attention_plan import Plan, four, plan, refuse_dropout
from npkernels.dask._graph import DaskArray, Key, Layer, Tasks, alike, array, tree, unique

DQ, DK, DV, DSINKS = range(4)


def attention_vjp(
    dout: DaskArray,
    q: DaskArray,
    k: DaskArray,
    v: DaskArray,
    o: DaskArray,
    lse: DaskArray,
    *,
    dlse: DaskArray | None = None,
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
    want_dbias: bool = False,
    want_dsinks: bool = False,
) -> AttentionGrads[DaskArray]:
    """Gradients of `attention` for Dask arrays that are chunked along queries and keys.

    The lse of the whole row makes each block's weights those of the whole, so that the gradients of a block of queries
    and a block of keys are exact by themselves: dq is their sum over the blocks of keys, dk and dv over those of the
    queries.

    Parameters
    ----------
    dout, o : Dask array (B, Hq, S, Dv)
        Cotangent of the output, and the output, with its chunks.
    lse : Dask array (B, Hq, S)
        What `attention` gave with it.
    dlse : Dask array (B, Hq, S), optional
        Cotangent of lse; default 0.
    q, k, v, mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths
        As for `attention`.
    dropout_p, dropout_seed, want_dbias
        There is no dropout and no gradient of the bias here: dropout_p must be 0, want_dbias False.
    want_dsinks : bool
        Also return the gradient of `sinks`.

    Returns
    -------
    AttentionGrads
        Dask arrays: dq, dk and dv with shape, dtype and chunks of q, k and v; dsinks (Hq,); dbias is None, always.

    Raises
    ------
    TypeError, ValueError
        At once, if an argument or a chunking does not fit.
    NotImplementedError
        If something is to be dropped, or the gradient of the bias is wanted.

    Notes
    -----
    Sums over blocks are of the compute dtype; for 16-bit arrays each term was rounded once.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> q = da.zeros((2, 4), chunks=(1, 4))
    >>> v = da.from_array(np.array([[1.0], [3.0]]), chunks=(1, 1))
    >>> o, lse = npkernels.dask.attention(q, q, v, causal=True, return_lse=True)
    >>> npkernels.dask.attention_vjp(da.ones_like(o), q, q, v, o, lse, causal=True).dv.compute()
    array([[1.5],
           [0.5]])
    """
    function = "attention_vjp"
    refuse_dropout(function, dropout_p)
    if want_dbias:
        raise NotImplementedError(
            f"{function}: want_dbias is True; expected False, since npkernels.dask has no gradient of the bias "
            "(npkernels.attention_vjp has, for arrays that are whole)"
        )
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
    p = plan(function, q, k, v, given)
    if want_dsinks and sinks is None:
        raise ValueError(f"{function}: want_dsinks is True, but there is no sinks; pass sinks=")
    out_chunks = (*p.q.chunks[:-1], p.v.chunks[-1])
    dout, o = (_like(function, name, x, out_chunks, p.q.dtype) for name, x in (("dout", dout), ("o", o)))
    lse = _like(function, "lse", lse, out_chunks[:-1], p.wide)
    dlse = None if dlse is None else _like(function, "dlse", dlse, out_chunks[:-1], p.wide)
    name = unique(
        function, *((x.name, x.chunks) for x in (p.q, p.k, p.v, dout, o, lse)), dlse, given, want_dsinks
    )
    tasks: Tasks = {}
    terms = _terms(p, tasks, name, (dout, o, lse, dlse), want_dsinks)
    layer = Layer(f"{name}-pairs", tasks, (p.q, p.k, p.v, p.mask, p.bias, dout, o, lse, dlse))
    results = []
    for what, (part, like) in enumerate((("dq", p.q), ("dk", p.k), ("dv", p.v))):
        blocks = _sums(p, f"{name}-{part}", terms[what], like)
        results.append(layer.array(f"{name}-{part}", blocks, like.chunks, like.dtype))
    dsinks = None
    if want_dsinks:
        blocks = {}
        for h in range(len(p.chunks[1])):
            zero = functools.partial(np.zeros, p.chunks[1][h], p.wide)
            blocks[(f"{name}-dsinks", h)] = _sum(blocks, f"{name}-dsinks", (h,), terms[DSINKS], p.wide, zero)
        dsinks = layer.array(f"{name}-dsinks", blocks, (p.chunks[1],), p.wide)
    dq, dk, dv = results
    return AttentionGrads(dq, dk, dv, None, dsinks)


def _like(function: str, name: str, x: Any, chunks: Any, dtype: Any) -> DaskArray:
    given = array(function, name, x)
    alike(
        function, name, given, chunks, "the output" if len(chunks) and name in ("dout", "o") else "lse of q"
    )
    if given.dtype != dtype:
        if name in ("dout", "o"):
            raise TypeError(
                f"{function}: {name} has dtype {given.dtype}; expected that of the output, {dtype}"
            )
        return given.astype(dtype)
    return given


Terms = dict[tuple[int, ...], list[Key]]


def _terms(p: Plan, tasks: Tasks, name: str, others: tuple[Any, ...], want_dsinks: bool) -> list[Terms]:
    """Add a task for each pair of blocks; the keys of the terms of each block of dq, dk, dv and dsinks."""
    dout, o, lse, dlse = others
    terms: list[Terms] = [{} for _ in range(4)]
    for b, h in p.heads():
        for i in range(len(p.chunks[2])):
            query, of_out = p.q_key(p.q, b, h, i), [p.q_key(x, b, h, i) for x in (dout, o)]
            of_lse = [None if x is None else p.lse_key(x, b, h, i) for x in (lse, dlse)]
            blocks: list[int | None] = [*p.needed(b, i)]
            if want_dsinks and not blocks:
                blocks = [None]
            for n, j in enumerate(blocks):
                pair: Key = (f"{name}-pair", b, h, i, -1 if j is None else j)
                sinks = want_dsinks and n == 0
                options = p.options(b, h, i, j, sinks=sinks)
                if j is None:
                    keys: tuple[Any, ...] = (None, None, None, None)
                else:
                    keys = (
                        p.k_key(p.k, b, h, j),
                        p.k_key(p.v, b, h, j),
                        *(p.score_key(x, b, h, i, j) for x in (p.mask, p.bias)),
                    )
                sizes = (p.k.shape[-1], p.v.shape[-1])
                block = functools.partial(_block, options, sinks, sizes)
                tasks[pair] = (block, query, *of_out, *of_lse, *keys)
                blocks_of: dict[int, tuple[int, ...]] = {DQ: (b, h, i)}
                if j is not None:
                    blocks_of |= dict.fromkeys((DK, DV), (b, p.k_head(h), j))
                if sinks:
                    blocks_of[DSINKS] = (h,)
                for what, block_of in blocks_of.items():
                    term: Key = (f"{name}-term", what, *pair[1:])
                    tasks[term] = (operator.itemgetter(what), pair)
                    terms[what].setdefault(block_of, []).append(term)
    return terms


def _block(
    options: dict[str, Any],
    sinks: bool,
    sizes: tuple[int, int],
    q: Array,
    dout: Array,
    o: Array,
    lse: Array,
    dlse: Array | None,
    k: Array | None,
    v: Array | None,
    mask: Array | None,
    bias: Array | None,
) -> tuple[Array | None, ...]:
    """dq, dk, dv and dsinks of one block of queries and one of keys."""
    if k is None or v is None:
        k, v = (np.empty((*q.shape[:-2], 0, n), q.dtype) for n in sizes)
    grads = npkernels.attention_vjp(
        dout, q, k, v, o, lse, dlse=dlse, mask=mask, bias=bias, want_dsinks=sinks, **options
    )
    return grads.dq, grads.dk, grads.dv, grads.dsinks


def _sums(p: Plan, name: str, terms: Terms, like: DaskArray) -> Tasks:
    """The blocks of a gradient: of those that nothing reached, zeros."""
    chunks = four(like.chunks)
    blocks: Tasks = {}
    for at in np.ndindex(*(len(sizes) for sizes in chunks[:3])):
        shape = tuple(chunks[axis][n] for axis, n in enumerate((*at, 0)))[4 - p.ndim :]
        zero = functools.partial(np.zeros, shape, like.dtype)
        here = (name, *(*at, 0)[4 - p.ndim :])
        blocks[here] = _sum(blocks, name, at, terms, p.wide, zero, like.dtype)
    return blocks


def _sum(
    blocks: Tasks, name: str, at: tuple[int, ...], terms: Terms, wide: Any, zero: Any, dtype: Any = None
) -> tuple[Any, ...]:
    """The task that gives a block of a gradient: the sum of its terms, in a tree."""
    keys = terms.get(tuple(at), [])
    if not keys:
        return (zero,)
    key = tree(blocks, (f"{name}-sum", *at), keys, functools.partial(_added, wide))
    return (functools.partial(_cast, wide if dtype is None else dtype), key)


def _added(dtype: Any, parts: list[Array]) -> Array:
    total = parts[0].astype(dtype)
    for part in parts[1:]:
        total += part
    return total


def _cast(dtype: Any, x: Array) -> Array:
    return x.astype(dtype, copy=False)
