"""Cross-entropy, with its gradient made in the same call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import npkernels
from npkernels._torch_memory import to_numpy, to_torch
from npkernels.torch import _scaled
from npkernels.torch._bridge import axis_of, compute_dtype, floats, numpy_or_none, others
from npkernels.torch._op import Op, anchor, derivative_wanted


def _forward(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    axis: int,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    want_grad: bool,
    anchor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    options: dict[str, Any] = {
        "weight": numpy_or_none(weight),
        "axis": axis,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
    }
    x, ids = to_numpy(logits), to_numpy(targets)
    if not want_grad:
        return to_torch(npkernels.cross_entropy(x, ids, **options)), logits.new_empty(0)
    grad = torch.empty(logits.shape, dtype=logits.dtype)
    loss, _ = npkernels.cross_entropy(x, ids, **options, return_grad=True, out=to_numpy(grad))
    return to_torch(loss), grad


def _fake(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    axis: int,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    want_grad: bool,
    anchor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    shape = targets.shape if reduction == "none" else ()
    loss = torch.empty(shape, dtype=compute_dtype(logits.dtype), device=logits.device)
    grad = torch.empty(logits.shape if want_grad else 0, dtype=logits.dtype, device=logits.device)
    return loss, grad


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    axis, reduction, anchored = inputs[3], inputs[6], inputs[8]
    ctx.mark_non_differentiable(output[1])
    _scaled.keep(ctx, output[1], axis, reduction != "none", anchored)


def _backward(ctx: Any, d: Tensor, *rest: Any) -> Any:
    return (_scaled.backward(ctx, d), *(None,) * 8)


def _forward_mode(ctx: Any, dx: Tensor, *rest: Any) -> Any:
    return _scaled.forward_mode(ctx, dx), None


_cross_entropy = Op(
    "cross_entropy",
    "(Tensor logits, Tensor targets, Tensor? weight, int axis, SymInt ignore_index, float label_smoothing, "
    "str reduction, bool want_grad, Tensor? anchor) -> (Tensor, Tensor)",
    _forward,
    _fake,
    _setup,
    _backward,
    _forward_mode,
)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    axis: int = -1,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """`npkernels.cross_entropy` with derivatives of first order with respect to the logits, backward and forward.

    Where a derivative will be asked for, the gradient is made together with the loss and kept instead of the logits;
    `backward` multiplies it by the cotangent of the loss.

    Parameters
    ----------
    logits : Tensor
        float32, float64, float16 or bfloat16, in CPU memory; classes along `axis`, V of them.
    targets : Tensor of int
        The shape of logits without the axis; 0 <= target < V, or `ignore_index`.
    axis : int
        The axis of the classes; 1 for PyTorch's own order (N, C, d1, ...).
    weight : Tensor (V,), optional
        Weight of each class; constant.
    ignore_index, label_smoothing, reduction
        As for `npkernels.cross_entropy`.

    Returns
    -------
    Tensor
        The loss: float64 for float64 logits, else float32.

    Raises
    ------
    IndexError
        If a target is neither a class nor `ignore_index`.
    TypeError, ValueError
        If an argument is no CPU tensor, or has the wrong dtype, shape or range.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> npkernels.torch.cross_entropy(x, torch.tensor([0])).backward()
    >>> x.grad
    tensor([[-0.5000,  0.5000]])
    """
    function = "cross_entropy"
    floats(function, logits=logits)
    others(function, targets=targets, weight=weight)
    axis = axis_of(function, logits, axis)
    want = derivative_wanted(logits)
    loss: Tensor = _cross_entropy(
        logits,
        targets,
        weight,
        axis,
        ignore_index,
        label_smoothing,
        reduction,
        want,
        anchor(logits) if want else None,
    )[0]
    return loss
