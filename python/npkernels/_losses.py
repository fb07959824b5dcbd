"""Losses over classes: PyTorch's semantics, with the gradient in the same call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import (
    Array,
    axis_index,
    boolean,
    check_out,
    choice,
    compute_dtype,
    floating,
    integers,
    kernel,
    number,
    same_view,
    shape_error,
)

ArrayLike = npt.ArrayLike
REDUCTIONS = ("none", "mean", "sum")


@kernel
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Cross-entropy between logits and target classes, and its gradient.

    Parameters
    ----------
    logits : array_like
        float32, float64, float16 or bfloat16; classes along `axis`, V of them.
    targets : array_like of int
        The shape of logits without the axis; 0 <= target < V, or `ignore_index`.
    axis : int
        The axis of the classes.
    weight : array_like (V,), optional
        Weight of each class.
    ignore_index : int
        Rows with this target give loss 0 and gradient 0 and are not counted by "mean".
    label_smoothing : float
        In [0, 1]: this share of the target's mass is spread evenly over all classes.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the sum of the targets' weights (NaN if every row is ignored).
    return_grad : bool
        Also return the gradient of the result (of its sum, for "none").
    out : ndarray, optional
        Where the gradient goes, with `return_grad`; of the shape and dtype of logits, logits itself is allowed.

    Returns
    -------
    loss : scalar or ndarray
        float64 for float64 logits, else float32.
    dlogits : ndarray
        Only if `return_grad`: of the shape and dtype of logits.

    Raises
    ------
    IndexError
        If a target is neither a class nor `ignore_index`.
    TypeError, ValueError
        If an argument has the wrong dtype, shape or range.

    Notes
    -----
    ``(1 - s) w[t] (lse - x[t]) + s / V * sum_c w[c] (lse - x[c])`` per row with smoothing s, as
    ``torch.nn.functional.cross_entropy`` has it.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> loss, dlogits = npkernels.cross_entropy(np.zeros((1, 2)), [0], return_grad=True)
    >>> float(loss), dlogits
    (0.69314718055994..., array([[-0.5,  0.5]]))
    """
    function = "cross_entropy"
    x = floating(function, "logits", logits)
    dtype = compute_dtype(x.dtype)
    choice(function, "reduction", reduction, REDUCTIONS)
    if out is not None and not return_grad:
        raise ValueError(f"{function}: out takes the gradient; pass return_grad=True with it")
    smoothing = number(function, "label_smoothing", label_smoothing)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"{function}: label_smoothing is {label_smoothing!r}; expected a number in [0, 1]")
    axis, ids, w, total = _classes(function, x, targets, axis, weight, ignore_index)
    with np.errstate(all="ignore"):  # NaN and inf are results
        weight_sum = float(x.shape[axis]) if w is None else float(w.sum(dtype=np.float64))
        scale = 1.0 / total if reduction == "mean" and total else 1.0
        losses, grad = _core.cross_entropy(x, ids, axis, w, weight_sum, smoothing, scale, return_grad, out)
        loss = _reduce(losses, reduction, total, dtype)
        if not return_grad:
            return loss
        if reduction == "mean" and not total:  # a division by 0, as the loss has it
            np.divide(grad, np.expand_dims(ids < 0, axis).astype(grad.dtype), out=grad)
    return loss, grad


@kernel
def nll_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    return_grad: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """Negative log-likelihood of target classes, given log-probabilities, and its gradient.

    Parameters, results and errors as for `cross_entropy`, whose first step is already done: log_probs is what
    `log_softmax` gives.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.nll_loss(np.log([[0.25, 0.75]]), [1])
    np.float64(0.28768207245178...)
    """
    function = "nll_loss"
    x = floating(function, "log_probs", log_probs)
    dtype = compute_dtype(x.dtype)
    choice(function, "reduction", reduction, REDUCTIONS)
    if out is not None and not return_grad:
        raise ValueError(f"{function}: out takes the gradient; pass return_grad=True with it")
    axis, ids, w, total = _classes(function, x, targets, axis, weight, ignore_index)
    check_out(function, out, x.shape, x.dtype, [ids, w])
    if out is not None and not same_view(out, x):
        check_out(function, out, x.shape, x.dtype, [x])
    at = np.expand_dims(np.maximum(ids, 0), axis)
    row_weight = (
        np.where(ids < 0, 0, 1.0 if w is None else w[np.maximum(ids, 0)])
        if x.shape[axis]
        else np.zeros(ids.shape)
    )
    chosen = (
        np.take_along_axis(x, at, axis).squeeze(axis).astype(np.float64)
        if x.shape[axis]
        else np.zeros(ids.shape)
    )
    with np.errstate(all="ignore"):  # NaN and inf are results
        losses = np.where(ids < 0, 0, -row_weight * chosen).astype(dtype)
        loss = _reduce(losses, reduction, total, dtype)
        if not return_grad:
            return loss
        grad = np.empty_like(x) if out is None else out
        grad[...] = 0
        if x.shape[axis]:
            slope = np.where(ids < 0, 0, -row_weight / (total if reduction == "mean" else 1.0))
            np.put_along_axis(grad, at, np.expand_dims(slope, axis).astype(x.dtype), axis)
    return loss, grad


def _classes(
    function: str, x: Array, targets: Any, axis: Any, weight: Any, ignore_index: Any
) -> tuple[int, Array, Array | None, float]:
    """Check what both losses share: the axis, ids (-1 where ignored), weights, and the sum of the targets' weights."""
    axis = axis_index(function, axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{function}: axis {axis} is out of bounds for an array with {x.ndim} axes")
    axis %= x.ndim
    classes = x.shape[axis]
    ids = integers(function, "targets", targets)
    expected = x.shape[:axis] + x.shape[axis + 1 :]
    if ids.shape != expected:
        shape_error(function, "targets", ids.shape, f"one target per row, {expected}")
    if not isinstance(ignore_index, int | np.integer) or isinstance(ignore_index, bool):
        raise TypeError(f"{function}: ignore_index is {ignore_index!r}; expected an integer")
    ignored = ids == ignore_index
    bad = ~ignored & ((ids < 0) | (ids >= classes))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise IndexError(
            f"{function}: targets holds {ids[where]} at {where}; "
            f"expected 0 <= target < {classes} or ignore_index {ignore_index}"
        )
    ids = np.where(ignored, -1, ids)
    if weight is None:
        return axis, ids, None, float(np.count_nonzero(~ignored))
    with np.errstate(all="ignore"):
        w = np.ascontiguousarray(floating(function, "weight", weight), dtype=compute_dtype(x.dtype))
        if w.shape != (classes,):
            shape_error(function, "weight", w.shape, f"one weight per class, ({classes},)")
        return axis, ids, w, float(w[ids[~ignored]].sum(dtype=np.float64))


def _reduce(losses: Array, reduction: str, total: float, dtype: np.dtype[Any]) -> Array:
    if reduction == "none":
        return losses[()]
    loss = losses.sum(dtype=np.float64)
    if reduction == "mean":
        loss = loss / total
    return dtype.type(loss)  # type: ignore[no-any-return]


@kernel
def perplexity(log_probs: ArrayLike, mask: ArrayLike | None = None, axis: int | None = -1) -> Array:
    """Perplexity of tokens: ``exp(-mean(log_probs))`` along an axis, in float64.

    Parameters
    ----------
    log_probs : array_like
        Log-probabilities of tokens, in nats, as `token_log_probs` gives them.
    mask : array_like of bool, optional
        Broadcasts to log_probs; False leaves a token out, whatever it holds.
    axis : int or None
        The axis of the tokens; None takes all of them. No tokens give NaN.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.perplexity(np.log([0.5, 0.125]))
    np.float64(4.0)
    """
    function = "perplexity"
    x = floating(function, "log_probs", log_probs).astype(np.float64)
    if axis is not None:
        axis = axis_index(function, axis)
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"{function}: axis {axis} is out of bounds for an array with {x.ndim} axes")
    keep = np.ones(x.shape, dtype=np.bool_)
    if mask is not None:
        allowed = boolean(function, "mask", mask)
        try:
            keep = np.broadcast_to(allowed, x.shape)
        except ValueError:
            shape_error(function, "mask", allowed.shape, f"one that broadcasts to {x.shape}")
    count = np.asarray(keep.sum(axis=axis))
    with np.errstate(all="ignore"):  # NaN and inf are results
        total = np.where(keep, x, 0.0).sum(axis=axis)
        return np.exp(-np.where(count > 0, total / np.maximum(count, 1), np.nan))[()]
