"""Softmax, its logarithm, normaliser and entropy, with their derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import npkernels
from npkernels._torch_memory import to_numpy, to_torch
from npkernels.torch._bridge import axis_of, compute_dtype, floats, numpy_or_none, others
from npkernels.torch._op import Op

_OPTIONS = "int axis, float temperature, Tensor? mask"


def _options(axis: int, temperature: float, mask: Tensor | None) -> dict[str, Any]:
    return {"axis": axis, "temperature": temperature, "mask": numpy_or_none(mask)}


def _like(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _without(x: Tensor, axis: int) -> list[Any]:
    at = axis % max(x.dim(), 1)
    return [n for i, n in enumerate(x.shape) if i != at]


def _rows(x: Tensor, axis: int, *rest: Any) -> Tensor:
    return torch.empty(_without(x, axis), dtype=compute_dtype(x.dtype), device=x.device)


def _contiguous(function: Any, x: Tensor, *rest: Tensor, **options: Any) -> Tensor:
    """Call a function whose result is made in the order of memory that the operators promise."""
    if all(a.is_contiguous() for a in rest):
        return to_torch(function(*(to_numpy(a) for a in rest), **options))
    y = torch.empty(x.shape, dtype=x.dtype)
    function(*(to_numpy(a) for a in rest), **options, out=to_numpy(y))
    return y


# softmax and log_softmax differ in names only.


def _elementwise(name: str) -> Op:
    value, vjp, jvp = (getattr(npkernels, name + suffix) for suffix in ("", "_vjp", "_jvp"))

    def forward(x: Tensor, axis: int, temperature: float, mask: Tensor | None) -> Tensor:
        return _contiguous(value, x, x, **_options(axis, temperature, mask))

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        x, axis, temperature, mask = inputs
        ctx.save_for_backward(output, mask)
        ctx.save_for_forward(x, mask)
        ctx.options = axis, temperature

    def pull(dy: Tensor, y: Tensor, axis: int, temperature: float, mask: Tensor | None) -> Tensor:
        return _contiguous(vjp, y, dy, y, **_options(axis, temperature, mask))

    def backward(ctx: Any, dy: Tensor) -> Any:
        y, mask = ctx.saved_tensors
        return pulled(dy, y, *ctx.options, mask), None, None, None

    def push(x: Tensor, dx: Tensor, axis: int, temperature: float, mask: Tensor | None) -> Tensor:
        return to_torch(jvp(to_numpy(x), to_numpy(dx), **_options(axis, temperature, mask))[1])

    def forward_mode(ctx: Any, dx: Tensor, *rest: Any) -> Any:
        x, mask = ctx.saved_tensors
        return pushed(x, dx, *ctx.options, mask)

    pulled = Op(f"{name}_backward", f"(Tensor dy, Tensor y, {_OPTIONS}) -> Tensor", pull, _like)
    pushed = Op(f"{name}_jvp", "", push)
    return Op(name, f"(Tensor x, {_OPTIONS}) -> Tensor", forward, _like, setup, backward, forward_mode)


_softmax, _log_softmax = _elementwise("softmax"), _elementwise("log_softmax")


def _logsumexp_forward(x: Tensor, axis: int, temperature: float, mask: Tensor | None) -> Tensor:
    return to_torch(npkernels.logsumexp(to_numpy(x), **_options(axis, temperature, mask)))


def _logsumexp_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, axis, temperature, mask = inputs
    ctx.save_for_backward(x, output, mask)
    ctx.save_for_forward(x, output, mask)
    ctx.options = axis, temperature


def _logsumexp_pull(
    d: Tensor, x: Tensor, lse: Tensor, axis: int, temperature: float, mask: Tensor | None
) -> Tensor:
    return _contiguous(npkernels.logsumexp_vjp, x, d, x, lse, **_options(axis, temperature, mask))


def _logsumexp_backward(ctx: Any, d: Tensor) -> Any:
    x, lse, mask = ctx.saved_tensors
    return _logsumexp_pulled(d, x, lse, *ctx.options, mask), None, None, None


def _logsumexp_push(x: Tensor, dx: Tensor, axis: int, temperature: float, mask: Tensor | None) -> Tensor:
    return to_torch(
        npkernels.logsumexp_jvp(to_numpy(x), to_numpy(dx), **_options(axis, temperature, mask))[1]
    )


def _logsumexp_forward_mode(ctx: Any, dx: Tensor, *rest: Any) -> Any:
    x, _, mask = ctx.saved_tensors
    return _logsumexp_pushed(x, dx, *ctx.options, mask)


_logsumexp_pulled = Op(
    "logsumexp_backward",
    f"(Tensor d, Tensor x, Tensor lse, {_OPTIONS}) -> Tensor",
    _logsumexp_pull,
    lambda d, x, *rest: _like(x),
)
_logsumexp_pushed = Op("logsumexp_jvp", "", _logsumexp_push)
_logsumexp = Op(
    "logsumexp",
    f"(Tensor x, {_OPTIONS}) -> Tensor",
    _logsumexp_forward,
    _rows,
    _logsumexp_setup,
    _logsumexp_backward,
    _logsumexp_forward_mode,
)


def _checked(function: str, x: Tensor, axis: Any, mask: Tensor | None) -> int:
    floats(function, x=x)
    others(function, mask=mask)
    return axis_of(function, x, axis)


def softmax(x: Tensor, axis: int = -1, *, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """`npkernels.softmax` with derivatives of first order, backward and forward.

    Parameters
    ----------
    x : Tensor
        float32, float64, float16 or bfloat16, in CPU memory, any strides.
    axis : int
        The axis whose entries sum to 1.
    temperature : float
        Positive and finite.
    mask : Tensor of bool, optional
        Broadcasts to x; False takes an entry out. A row without entries gives 0.

    Returns
    -------
    Tensor
        Of x's shape and dtype, contiguous.

    Raises
    ------
    TypeError, ValueError
        If an argument is no CPU tensor, or has the wrong dtype, shape or range.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    >>> npkernels.torch.softmax(x)[0].backward()
    >>> x.grad
    tensor([ 0.2500, -0.2500], dtype=torch.float64)
    """
    axis = _checked("softmax", x, axis, mask)
    y: Tensor = _softmax(x, axis, temperature, mask)
    return y


def log_softmax(x: Tensor, axis: int = -1, *, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """`npkernels.log_softmax` with derivatives of first order, backward and forward; arguments as for `softmax`.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    >>> npkernels.torch.log_softmax(x)[0].backward()
    >>> x.grad
    tensor([ 0.5000, -0.5000], dtype=torch.float64)
    """
    axis = _checked("log_softmax", x, axis, mask)
    y: Tensor = _log_softmax(x, axis, temperature, mask)
    return y


def logsumexp(
    x: Tensor,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    keepdims: bool = False,
) -> Tensor:
    """`npkernels.logsumexp` with derivatives of first order, backward and forward; arguments as for `softmax`.

    `keepdims` leaves the axis with length 1. The result is float64 for float64, float32 for all other dtypes.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    >>> npkernels.torch.logsumexp(x).backward()
    >>> x.grad
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    axis = _checked("logsumexp", x, axis, mask)
    y: Tensor = _logsumexp(x, axis, temperature, mask)
    return y.unsqueeze(axis) if keepdims else y
