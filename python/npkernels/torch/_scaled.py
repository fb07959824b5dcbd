"""The derivatives of a loss whose gradient is made together with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npkernels.torch._bridge import compute_dtype
from npkernels.torch._op import Op


def _per_row(d: Tensor, axis: int) -> Tensor:
    return d.unsqueeze(axis) if d.dim() else d


def _pull(gradient: Tensor, d: Tensor, axis: int, anchor: Tensor | None) -> Tensor:
    """Gradient times the cotangent of the loss: one number, or one for each row."""
    if d.dim() == 0 and d.item() == 1:
        return gradient.clone()
    return torch.mul(gradient, _per_row(d, axis).to(compute_dtype(gradient.dtype))).to(gradient.dtype)


def _push(gradient: Tensor, dx: Tensor, axis: int, whole: bool, anchor: Tensor | None) -> Tensor:
    """Sum of gradient times tangent: over everything, or each row."""
    wide = compute_dtype(gradient.dtype)
    product = gradient.to(wide) * dx.to(wide)
    return product.sum() if whole else product.sum(axis)


pulled = Op(
    "loss_backward",
    "(Tensor gradient, Tensor d, int axis, Tensor? anchor) -> Tensor",
    _pull,
    lambda gradient, *rest: torch.empty_like(gradient, memory_format=torch.contiguous_format),
)
pushed = Op("loss_jvp", "", _push)


def keep(ctx: Any, gradient: Tensor, axis: int, whole: bool, anchor: Tensor | None) -> None:
    """Keep what `backward` and `forward_mode` need."""
    ctx.save_for_backward(gradient, anchor)
    ctx.save_for_forward(gradient, anchor)
    ctx.place = axis, whole


def backward(ctx: Any, d: Tensor) -> Tensor:
    """Cotangent of what the loss is of."""
    gradient, anchor = ctx.saved_tensors
    result: Tensor = pulled(gradient, d, ctx.place[0], anchor)
    return result


def forward_mode(ctx: Any, dx: Tensor) -> Tensor:
    """Tangent of the loss."""
    gradient, anchor = ctx.saved_tensors
    result: Tensor = pushed(gradient, dx, *ctx.place, anchor)
    return result
