"""Cross entropy and negative log-likelihood with PyTorch's options.

The class axis has V entries; targets has the shape of the array without it. w (V,) is the weight of each
class, 1 by default. A row whose target is `ignore_index` is left out: loss 0, gradient 0, whatever the row
holds.

reduction  "none": the loss of every row, "sum": their sum, "mean": the sum over the sum of the targets'
weights
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ._common import (
    Array,
    ArrayLike,
    BoolArray,
    as_index,
    check_axis,
    check_range,
    check_shape,
    like,
    working,
)
from .softmax import plain_log_softmax, plain_softmax

Reduction = Literal["mean", "sum", "none"]


def _prepare(
    function: str,
    name: str,
    x: Array,
    targets: ArrayLike,
    axis: int,
    weight: ArrayLike | None,
    ignore_index: int,
    reduction: str,
) -> tuple[Array, BoolArray, BoolArray, Array]:
    """Give x with its class axis last, onehot of the targets, which rows are kept, and w."""
    axis = check_axis(function, name, x, axis)
    index = as_index(function, "targets", targets)
    check_shape(function, "targets", index, x.shape[:axis] + x.shape[axis + 1 :])
    check_range(function, "targets", index, x.shape[axis], ignore=ignore_index)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{function}: reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")
    classes = x.shape[axis]
    w = np.ones(classes, dtype=x.dtype) if weight is None else like(function, "weight", weight, x)
    check_shape(function, "weight", w, (classes,))
    kept = index != ignore_index
    onehot = (np.arange(classes) == index[..., None]) & kept[..., None]
    return np.moveaxis(x, axis, -1), onehot, kept, w


def _nll(log_p: Array, onehot: BoolArray, w: Array) -> Array:
    """``-w_y log p_y`` of every row."""
    loss: Array = np.where(onehot, -w * log_p, 0).sum(axis=-1)
    return loss


def _reduce(
    row_loss: Array, onehot: BoolArray, kept: BoolArray, w: Array, reduction: str
) -> tuple[Array, Array]:
    """The loss, and the number that the gradient of the summed loss is divided by."""
    row_loss = np.where(kept, row_loss, 0)
    one = np.ones((), dtype=row_loss.dtype)
    if reduction == "none":
        return row_loss, one
    if reduction == "sum":
        return row_loss.sum(), one
    total = np.where(onehot, w, 0).sum()
    return row_loss.sum() / total, total


@np.errstate(all="ignore")
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    return_grad: bool = False,
) -> Array | tuple[Array, Array]:
    """``(1 - eps) * w_y * -log p_y + eps / V * sum_c w_c * -log p_c``, eps the label smoothing.

    p = softmax(logits), y the target. With `return_grad` also the gradient of the result (of its sum for
    "none") with respect to the logits, which is p * sum(g) - g for g the weight of each -log p in the
    formula.

    Examples
    --------
    >>> loss, grad = cross_entropy(np.float32([[0, 0]]), [1], return_grad=True)
    >>> float(loss.round(4)), grad
    (0.6931, array([[ 0.5, -0.5]]))
    """
    (x,) = working("cross_entropy", logits=logits)
    z, onehot, kept, w = _prepare(
        "cross_entropy", "logits", x, targets, axis, weight, ignore_index, reduction
    )
    eps = float(label_smoothing)
    if not 0 <= eps <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}; expected a number in [0, 1]")
    classes = z.shape[-1]
    log_p = plain_log_softmax(z, None, -1)
    row_loss = _nll(log_p, onehot, w)
    if eps > 0:
        row_loss = (1 - eps) * row_loss + eps * (w * -log_p).sum(axis=-1) / classes
    loss, divisor = _reduce(row_loss, onehot, kept, w, reduction)
    if not return_grad:
        return loss
    g = (1 - eps) * w * onehot + eps * w / classes
    grad = (plain_softmax(z, None, -1) * g.sum(axis=-1, keepdims=True) - g) / divisor
    return loss, np.moveaxis(np.where(kept[..., None], grad, 0), -1, axis)


@np.errstate(all="ignore")
def nll_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    return_grad: bool = False,
) -> Array | tuple[Array, Array]:
    """``w_y * -log_probs_y``, y the target.

    With `return_grad` also the gradient of the result (of its sum for "none") with respect to log_probs.

    Examples
    --------
    >>> loss, grad = nll_loss(np.float32([[-1, -2], [-3, -4]]), [1, 0], return_grad=True)
    >>> float(loss), grad
    (2.5, array([[ 0. , -0.5],
           [-0.5,  0. ]]))
    """
    (x,) = working("nll_loss", log_probs=log_probs)
    log_p, onehot, kept, w = _prepare(
        "nll_loss", "log_probs", x, targets, axis, weight, ignore_index, reduction
    )
    loss, divisor = _reduce(_nll(log_p, onehot, w), onehot, kept, w, reduction)
    if not return_grad:
        return loss
    return loss, np.moveaxis(np.where(onehot, -w / divisor, 0), -1, axis)
