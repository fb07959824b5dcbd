"""The softmax family on Dask arrays: block by block, or over rows that are cut into chunks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import npkernels
from npkernels._arrays import Array, compute_dtype
from npkernels.dask._graph import DaskArray, Layer, Tasks, da, unique
from npkernels.dask._row_stats import INF, RowStats, empty_or_nan, lse, shift
from npkernels.dask._rows import rows


def softmax(x: DaskArray, axis: int = -1, *, temperature: float = 1.0, mask: Any = None) -> DaskArray:
    """Softmax along an axis of a Dask array, which may be chunked along it.

    Parameters
    ----------
    x : Dask array
        Logits, any shape and chunks; integers become float64.
    axis : int
        The axis whose entries sum to 1. Where it is in chunks, the maximum and the sum of each are merged in a tree and
        the chunks are scaled by them: x is read twice, and what travels is a few numbers for each row.
    temperature : float
        Positive and finite.
    mask : array of bool, optional
        NumPy or Dask, broadcasts to x; False takes an entry out. A Dask array is rechunked as x is.

    Returns
    -------
    Dask array
        Of x's shape, dtype and chunks.

    Raises
    ------
    TypeError, ValueError
        At once, if an argument does not fit.

    Notes
    -----
    What a row holds decides what it gives, as for `npkernels.softmax`, however it is cut.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> x = da.from_array(np.array([0.0, 0.0, -np.inf, 0.0]), chunks=2)
    >>> npkernels.dask.softmax(x).compute().round(4)
    array([0.3333, 0.3333, 0.    , 0.3333])
    """
    return _entries("softmax", x, axis, temperature, mask)


def log_softmax(x: DaskArray, axis: int = -1, *, temperature: float = 1.0, mask: Any = None) -> DaskArray:
    """Logarithm of the softmax along an axis of a Dask array, which may be chunked along it.

    Parameters, results and errors as for `softmax`; masked entries give -inf.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> npkernels.dask.log_softmax(da.from_array(np.array([0.0, 100.0]), chunks=1)).compute()
    array([-1.00000000e+02, -3.72007598e-44])
    """
    return _entries("log_softmax", x, axis, temperature, mask)


def logsumexp(
    x: DaskArray, axis: int = -1, *, temperature: float = 1.0, mask: Any = None, keepdims: bool = False
) -> DaskArray:
    """Logarithm of the sum of exponentials along an axis of a Dask array, which may be chunked along it.

    Parameters and errors as for `softmax`; `keepdims` leaves the axis with length 1.

    Returns
    -------
    Dask array
        x's shape without the axis; float64 for float64, float32 for all other dtypes.

    Examples
    --------
    >>> import dask.array as da, npkernels.dask
    >>> float(npkernels.dask.logsumexp(da.full(4, 1000.0, chunks=2)).compute() - 1000)  # log(4)
    1.386294361119...
    """
    result = _reduced("logsumexp", "x", x, axis, temperature, mask)
    return da.expand_dims(result, axis) if keepdims else result


def entropy(logits: DaskArray, axis: int = -1, *, temperature: float = 1.0, mask: Any = None) -> DaskArray:
    """Shannon entropy of ``softmax(logits / temperature)`` along an axis, which may be chunked.

    Parameters and errors as for `softmax`.

    Returns
    -------
    Dask array
        The shape of logits without the axis; float64 for float64, float32 for all other dtypes.

    Notes
    -----
    With w the share of a chunk in the row's sum: ``H = sum w (H_chunk - log w)``, all of whose terms are positive.

    Examples
    --------
    >>> import dask.array as da, npkernels.dask
    >>> float(npkernels.dask.entropy(da.zeros(4, chunks=2)).compute())  # log(4)
    1.386294361119...
    """
    return _reduced("entropy", "logits", logits, axis, temperature, mask)


def _entries(function: str, x: Any, axis: Any, temperature: Any, mask: Any) -> DaskArray:
    r = rows(function, "x", x, axis, temperature, mask)
    name = unique(function, r.x.name, r.x.chunks, r.mask, r.axis, r.temperature)
    tasks: Tasks = {}
    blocks: Tasks = {}
    call = functools.partial(_block, function, r.axis, r.temperature)
    if r.cut:
        parts, whole = r.statistics(tasks, name)
        call = functools.partial(_scaled, function, r.axis, r.temperature)
    for at in r.blocks():
        for j in range(len(r.x.chunks[r.axis])):
            stats = (parts[at, j], whole[at]) if r.cut and (at, j) in parts else ()
            what = call if stats or not r.cut else functools.partial(_block, function, r.axis, r.temperature)
            here = (name, *r.index(at, j))
            blocks[here] = (what, r.key(at, j), r.mask_key(at, j), *stats)
    layer = Layer(f"{name}-stats", tasks, (r.x, r.mask))
    return layer.array(name, blocks, r.x.chunks, r.x.dtype)


def _reduced(function: str, argument: str, x: Any, axis: Any, temperature: Any, mask: Any) -> DaskArray:
    r = rows(function, argument, x, axis, temperature, mask)
    name = unique(function, r.x.name, r.x.chunks, r.mask, r.axis, r.temperature)
    tasks: Tasks = {}
    blocks: Tasks = {}
    if r.cut:
        _, whole = r.statistics(tasks, name)
        masked = r.mask is not None
        call: Any = functools.partial(_lse, r.temperature)
        if function == "entropy":
            call = functools.partial(_entropy, masked)
        blocks = {(name, *at): (call, whole[at]) for at in r.blocks()}
    else:
        call = functools.partial(_block, function, r.axis, r.temperature)
        blocks = {(name, *at): (call, r.key(at, 0), r.mask_key(at, 0)) for at in r.blocks()}
    layer = Layer(f"{name}-stats", tasks, (r.x, r.mask))
    return layer.array(name, blocks, r.other_chunks(), compute_dtype(r.x.dtype))


def _block(function: str, axis: int, temperature: float, x: Array, mask: Array | None) -> Array:
    """A block that holds whole rows."""
    result: Array = getattr(npkernels, function)(x, axis, temperature=temperature, mask=mask)
    return np.asarray(result)


def _scaled(
    function: str,
    axis: int,
    temperature: float,
    x: Array,
    mask: Array | None,
    part: RowStats,
    whole: RowStats,
) -> Array:
    """A chunk of rows: its own softmax (or logarithm), scaled by its share in the row's sum."""
    share = shift(part, whole, temperature)
    if mask is not None:
        share = np.where(whole.m == -INF, share.dtype.type(0), share)
    share = np.expand_dims(share, axis)
    wide = x.astype(share.dtype, copy=False)
    some = mask if mask is not None or np.isfinite(part.m).all() else np.True_
    y: Array = getattr(npkernels, function)(wide, axis, temperature=temperature, mask=some)
    if function == "softmax":
        y *= np.exp(share)
        nothing = 0.0
    else:
        y += share
        nothing = -INF
    if mask is not None:
        np.copyto(y, nothing, where=~np.broadcast_to(mask, y.shape))
    return y.astype(x.dtype, copy=False)


def _lse(temperature: float, whole: RowStats) -> Array:
    return lse(whole, temperature)


def _entropy(masked: bool, whole: RowStats) -> Array:
    return empty_or_nan(whole, whole.H, masked)
