"""Statistics of tokens on Dask arrays, whose vocabulary may be cut into chunks."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import npkernels
from npkernels._arrays import Array, compute_dtype, shape_error
from npkernels._tokens import STATISTICS
from npkernels._types import TokenStats
from npkernels.dask._graph import DaskArray, Key, Layer, Tasks, alike, lazy, tree, unique
from npkernels.dask._row_stats import INF, RowStats, empty_or_nan, lse
from npkernels.dask._rows import Rows, rows


def token_log_probs(
    logits: DaskArray,
    ids: Any,
    *,
    temperature: float = 1.0,
    mask: Any = None,
    stats: Sequence[str] = STATISTICS,
) -> TokenStats[DaskArray]:
    """Log-probability of each token and statistics of its distribution, of Dask arrays.

    Parameters
    ----------
    logits : Dask array (..., V)
        Any chunks. Where the vocabulary is in chunks their statistics are merged in a tree, and "rank" costs one read
        more.
    ids : array of int (...)
        The tokens, 0 <= id < V: NumPy, or Dask with the chunks of logits.
    temperature : float
        The distribution is ``softmax(logits / temperature)``.
    mask : array of bool, optional
        NumPy or Dask, broadcasts to logits; False takes an entry of the vocabulary out.
    stats : sequence of str
        Any of "entropy", "lse", "sum_p2", "top1", "rank"; what is not asked for is None in the result.

    Returns
    -------
    TokenStats
        Dask arrays of the shape of ids: float64 for float64 logits, else float32 (``top1`` and ``rank`` int64).

    Raises
    ------
    TypeError, ValueError
        At once, if an argument or a chunking does not fit.
    IndexError
        When it is computed, if an id is outside the vocabulary.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> logits = da.from_array(np.array([[0.0, 0.0, -np.inf, 1.0]]), chunks=(1, 2))
    >>> t = npkernels.dask.token_log_probs(logits, [1], stats=("rank",))
    >>> t.log_prob.compute().round(4), t.rank.compute()
    (array([-1.5514]), array([1]))
    """
    function = "token_log_probs"
    if not getattr(logits, "ndim", 1):
        shape_error(function, "logits", (), "(..., V)")
    r = rows(function, "logits", logits, -1, temperature, mask)
    tokens = lazy(function, "ids", ids, r.other_chunks())
    alike(function, "ids", tokens, r.other_chunks(), "logits without its last axis")
    if tokens.dtype.kind not in "iu" and tokens.size:
        raise TypeError(f"{function}: ids has dtype {tokens.dtype}; expected integers")
    listed = not isinstance(stats, str) and isinstance(stats, Iterable)
    unknown = [s for s in stats if s not in STATISTICS] if listed else [stats]
    if unknown:
        raise ValueError(
            f"{function}: stats holds {unknown[0]!r}; expected a sequence of some of {', '.join(STATISTICS)}"
        )
    wanted = ("log_prob", *(s for s in STATISTICS if s in stats))
    name = unique(function, r.x.name, r.x.chunks, tokens.name, r.mask, r.temperature, wanted)
    tasks: Tasks = {}
    whole = _cut(r, tokens, tasks, name, wanted) if r.cut else _uncut(r, tokens, tasks, name, wanted)
    layer = Layer(f"{name}-stats", tasks, (r.x, tokens, r.mask))
    results = {}
    for statistic in wanted:
        dtype = np.dtype(np.int64) if statistic in ("top1", "rank") else compute_dtype(r.x.dtype)
        own = f"{name}-{statistic}"
        blocks = {(own, *at): (functools.partial(_field, statistic), key) for at, key in whole.items()}
        results[statistic] = layer.array(own, blocks, r.other_chunks(), dtype)
    return TokenStats(results["log_prob"], *(results.get(s) for s in STATISTICS))


def _field(name: str, stats: TokenStats[Array]) -> Array:
    return np.asarray(getattr(stats, name))


def _uncut(
    r: Rows, tokens: DaskArray, tasks: Tasks, name: str, wanted: tuple[str, ...]
) -> dict[tuple[int, ...], Key]:
    call = functools.partial(_block, r.temperature, wanted[1:])
    whole: dict[tuple[int, ...], Key] = {}
    for at in r.blocks():
        whole[at] = (f"{name}-rows", *at)
        tasks[whole[at]] = (call, r.key(at, 0), (tokens.name, *at), r.mask_key(at, 0))
    return whole


def _block(
    temperature: float, stats: tuple[str, ...], logits: Array, ids: Array, mask: Array | None
) -> TokenStats[Array]:
    return npkernels.token_log_probs(logits, ids, temperature=temperature, mask=mask, stats=stats)


def _cut(
    r: Rows, tokens: DaskArray, tasks: Tasks, name: str, wanted: tuple[str, ...]
) -> dict[tuple[int, ...], Key]:
    _, joined = r.statistics(tasks, name)
    V = r.x.shape[-1]
    whole: dict[tuple[int, ...], Key] = {}
    for at in r.blocks():
        ids = (tokens.name, *at)
        some: list[Key] = []
        for j, start in r.chunks():
            some.append((f"{name}-own", *at, j))
            own = functools.partial(_own_logits, start, V)
            tasks[some[-1]] = (own, r.key(at, j), ids, r.mask_key(at, j))
        logits = tree(tasks, (f"{name}-owns", *at), some, _sum)
        larger = None
        if "rank" in wanted:
            some = []
            for j, _ in r.chunks():
                some.append((f"{name}-larger", *at, j))
                tasks[some[-1]] = (_larger, r.key(at, j), logits, r.mask_key(at, j))
            larger = tree(tasks, (f"{name}-rank", *at), some, _sum)
        whole[at] = (f"{name}-rows", *at)
        finish = functools.partial(_finish, r.temperature, r.mask is not None)
        tasks[whole[at]] = (finish, joined[at], logits, larger)
    return whole


def _own_logits(start: int, V: int, x: Array, ids: Array, mask: Array | None) -> Array:
    """The logits of those tokens whose entry is in this chunk, -inf where the mask takes it out; 0 for the others."""
    if ids.size and (ids.min() < 0 or ids.max() >= V):
        wrong = ids[(ids < 0) | (ids >= V)].reshape(-1)[0]
        raise IndexError(f"token_log_probs: ids holds {wrong}; expected 0 <= id < {V}")
    here = (ids >= start) & (ids < start + x.shape[-1])
    at = np.where(here, ids - start, 0)[..., None]
    own = np.take_along_axis(x, at, axis=-1)[..., 0].astype(compute_dtype(x.dtype), copy=False)
    if mask is not None:
        allowed = np.take_along_axis(np.broadcast_to(mask, x.shape), at, axis=-1)[..., 0]
        own = np.where(allowed, own, own.dtype.type(-INF))
    return np.where(here, own, own.dtype.type(0))


def _larger(x: Array, own: Array, mask: Array | None) -> Array:
    """How many logits of this chunk are larger than the tokens' own."""
    larger = x > own[..., None].astype(x.dtype, copy=False)
    return np.asarray((larger if mask is None else larger & mask).sum(axis=-1, dtype=np.int64))


def _sum(parts: list[Array]) -> Array:
    return np.asarray(sum(parts[1:], start=parts[0]))


def _finish(
    temperature: float, masked: bool, whole: RowStats, own: Array, larger: Array | None
) -> TokenStats[Array]:
    with np.errstate(invalid="ignore"):
        log_prob = (own - whole.m) / whole.m.dtype.type(temperature) - whole.l
    nothing = whole.m == -INF
    log_prob = np.where(np.isfinite(whole.m), log_prob, log_prob.dtype.type(np.nan))
    if masked:
        log_prob = np.where(nothing | (own == -INF), log_prob.dtype.type(-INF), log_prob)
    return TokenStats(
        log_prob,
        empty_or_nan(whole, whole.H, masked),
        lse(whole, temperature),
        empty_or_nan(whole, whole.s, masked),
        np.where(nothing & masked, np.int64(-1), whole.top),
        larger,
    )
