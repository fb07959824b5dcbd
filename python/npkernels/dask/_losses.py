"""Cross-entropy of Dask arrays: whole rows in a block, sums and counts over the blocks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import npkernels
from npkernels._arrays import Array, choice, compute_dtype, floating, number, shape_error
from npkernels._losses import REDUCTIONS
from npkernels.dask._graph import DaskArray, Key, Layer, Tasks, alike, da, lazy, tree, unique, whole
from npkernels.dask._rows import rows


def cross_entropy(
    logits: DaskArray,
    targets: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
) -> Any:
    """Cross-entropy between logits and target classes, and its gradient, of Dask arrays.

    Parameters
    ----------
    logits : Dask array
        Classes along `axis`, in one chunk.
    targets : array of int
        The shape of logits without the axis: NumPy, or Dask with its chunks.
    axis, weight, ignore_index, label_smoothing, reduction, return_grad
        As for `npkernels.cross_entropy`; weight a NumPy array (V,).

    Returns
    -------
    loss : Dask array
        float64 for float64 logits, else float32; without axes for "mean" and "sum".
    dlogits : Dask array
        Only if `return_grad`: of the shape, dtype and chunks of logits.

    Raises
    ------
    TypeError, ValueError
        At once, if an argument or a chunking does not fit.
    IndexError
        When it is computed, if a target is neither a class nor `ignore_index`.

    Notes
    -----
    "mean" first sums the weights of all targets, which is a task for each block of targets and no read of the logits;
    every block then computes its part of the mean.

    Examples
    --------
    >>> import dask.array as da, npkernels.dask
    >>> loss, dlogits = npkernels.dask.cross_entropy(
    ...     da.zeros((2, 2), chunks=(1, 2)), [0, -100], return_grad=True
    ... )
    >>> float(loss.compute()), dlogits.compute()
    (0.6931471805599..., array([[-0.5,  0.5],
           [ 0. ,  0. ]]))
    """
    function = "cross_entropy"
    r = rows(function, "logits", logits, axis, 1.0, None)
    whole(function, "logits", r.x, r.axis, "the axis of the classes")
    ids = lazy(function, "targets", targets, r.other_chunks())
    alike(function, "targets", ids, r.other_chunks(), "logits without the axis")
    if ids.dtype.kind not in "iu" and ids.size:
        raise TypeError(f"{function}: targets has dtype {ids.dtype}; expected integers")
    choice(function, "reduction", reduction, REDUCTIONS)
    smoothing = number(function, "label_smoothing", label_smoothing)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"{function}: label_smoothing is {label_smoothing!r}; expected a number in [0, 1]")
    if not isinstance(ignore_index, int | np.integer) or isinstance(ignore_index, bool):
        raise TypeError(f"{function}: ignore_index is {ignore_index!r}; expected an integer")
    V, dtype = r.x.shape[r.axis], compute_dtype(r.x.dtype)
    if isinstance(weight, da.Array):
        raise TypeError(f"{function}: weight is a Dask array; expected a NumPy array, which all blocks get")
    w = None if weight is None else floating(function, "weight", weight).astype(dtype)
    if w is not None and w.shape != (V,):
        shape_error(function, "weight", w.shape, f"one weight per class, ({V},)")
    name = unique(
        function, r.x.name, r.x.chunks, ids.name, r.axis, w, ignore_index, smoothing, reduction, return_grad
    )
    tasks: Tasks = {}
    total = None
    if reduction == "mean":
        some: list[Key] = []
        for at in r.blocks():
            some.append((f"{name}-weights", *at))
            tasks[some[-1]] = (functools.partial(_weights, w, V, ignore_index), (ids.name, *at))
        total = tree(tasks, (f"{name}-weight",), some, _sum)
    options = {"axis": r.axis, "ignore_index": int(ignore_index), "label_smoothing": smoothing}
    block = functools.partial(_block, options, w, V, dtype, reduction, return_grad)
    parts: dict[tuple[int, ...], Key] = {}
    for at in r.blocks():
        parts[at] = (f"{name}-rows", *at)
        tasks[parts[at]] = (block, r.key(at, 0), (ids.name, *at), total)
    if reduction != "none":
        sums = [(f"{name}-losses", *at) for at in parts]
        tasks.update({key: (_first, part) for key, part in zip(sums, parts.values(), strict=True)})
        summed = tree(tasks, (f"{name}-sum",), sums, _sum)
    layer = Layer(f"{name}-parts", tasks, (r.x, ids))
    own = f"{name}-loss"
    if reduction == "none":
        losses = {(own, *at): (_first, part) for at, part in parts.items()}
        loss = layer.array(own, losses, r.other_chunks(), dtype)
    else:
        loss = layer.array(own, {(own,): (functools.partial(_scalar, dtype), summed, total)}, (), dtype)
    if not return_grad:
        return loss
    own = f"{name}-grad"
    grads = {(own, *r.index(at, 0)): (_second, part) for at, part in parts.items()}
    return loss, layer.array(own, grads, r.x.chunks, r.x.dtype)


def _weights(w: Array | None, V: int, ignore_index: int, ids: Array) -> Any:
    kept = ids[ids != ignore_index]
    if kept.size and (kept.min() < 0 or kept.max() >= V):
        wrong = kept[(kept < 0) | (kept >= V)][0]
        raise IndexError(
            f"cross_entropy: targets holds {wrong}; expected 0 <= target < {V} or ignore_index {ignore_index}"
        )
    return np.float64(len(kept) if w is None else w[kept].sum(dtype=np.float64))


def _block(
    options: dict[str, Any],
    w: Array | None,
    V: int,
    dtype: Any,
    reduction: str,
    return_grad: bool,
    x: Array,
    ids: Array,
    total: Any,
) -> tuple[Array, Array | None]:
    """Losses of a block (their sum, unless none are to be summed) and its gradient, both over the mean's divisor."""
    scaled = w
    if total is not None and total != 0:
        scaled = ((np.ones(V) if w is None else w) / total).astype(dtype)
    result = npkernels.cross_entropy(
        x, ids, weight=scaled, reduction="none", return_grad=return_grad, **options
    )
    losses, grad = result if return_grad else (result, None)
    if grad is not None and total is not None and total == 0:  # only ignored targets have a gradient then
        with np.errstate(divide="ignore", invalid="ignore"):
            np.divide(
                grad, 0, out=grad, where=np.expand_dims(ids != options["ignore_index"], options["axis"])
            )
    losses = np.asarray(losses)
    return (losses if reduction == "none" else losses.sum(dtype=np.float64)), grad


def _first(part: tuple[Array, Any]) -> Array:
    return part[0]


def _second(part: tuple[Any, Array]) -> Array:
    return part[1]


def _sum(parts: list[Any]) -> Any:
    return sum(parts[1:], start=parts[0])


def _scalar(dtype: Any, loss: Any, total: Any) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(loss / total if total is not None and total == 0 else loss, dtype)
