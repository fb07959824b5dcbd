"""softmax, log_softmax and logsumexp as JAX functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import npkernels
from npkernels._arrays import compute_dtype
from npkernels.jax._primitive import Array, Op, Shaped, bind, boolean, floating, jnp, with_axes


@dataclass(frozen=True)
class Rows(Op):
    """A function of rows: x, then the mask if there is one. `axis` counts from the end."""

    kind: str
    axes: int
    axis: int
    temperature: float

    @property
    def name(self) -> str:
        """The function, for messages."""
        return self.kind

    @property
    def rank(self) -> int:
        """The axes of x."""
        return self.axes

    @property
    def options(self) -> dict[str, Any]:
        """What every kernel of the family takes."""
        return {"axis": self.axis, "temperature": self.temperature}

    def result(self, x: Shaped) -> Shaped:
        """Shape and dtype of the function's value."""
        shape, dtype = x
        if self.kind != "logsumexp":
            return x
        at = len(shape) + self.axis
        return shape[:at] + shape[at + 1 :], compute_dtype(np.dtype(dtype))

    def results(self, *arguments: Shaped) -> list[Shaped]:
        """As `Op` says."""
        return [self.result(arguments[0])]

    def run(self, lead: tuple[int, ...], outs: Sequence[Array], *arguments: Array) -> None:
        """As `Op` says."""
        x, *mask = arguments
        getattr(npkernels, self.kind)(x, **self.options, mask=mask[0] if mask else None, out=outs[0])

    def derivative(self, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """As `Op` says; only x has a tangent."""
        (y,) = bind(self, *primals)
        x, *mask = primals
        of = RowsLinear(self.kind, self.axes, self.axis, self.temperature, False)
        return [y], bind(of, x, y, *mask, tangents[0])


@dataclass(frozen=True)
class RowsLinear(Rows):
    """The derivative at x, where the value is y, or its transpose: x, y, the mask, what it is applied to."""

    back: bool

    @property
    def linear(self) -> int:
        """One argument."""
        return 1

    def results(self, *arguments: Shaped) -> list[Shaped]:
        """As `Op` says."""
        return [arguments[0] if self.back else self.result(arguments[0])]

    def run(self, lead: tuple[int, ...], outs: Sequence[Array], *arguments: Array) -> None:
        """As `Op` says. Softmax's derivative is its own transpose, and needs the value only."""
        x, y, *masks, d = arguments
        mask, out = masks[0] if masks else None, outs[0]
        if self.kind == "softmax":
            npkernels.softmax_vjp(d, y, **self.options, mask=mask, out=out)
        elif self.kind == "log_softmax":
            if self.back:
                npkernels.log_softmax_vjp(d, y, **self.options, mask=mask, out=out)
            else:
                npkernels.log_softmax_jvp(x, d, **self.options, mask=mask, out=(np.empty_like(out), out))
        elif self.back:
            npkernels.logsumexp_vjp(d, x, y, **self.options, mask=mask, out=out)
        else:
            out[...] = npkernels.logsumexp_jvp(x, d, **self.options, mask=mask)[1]

    def transposed(self) -> RowsLinear:
        """As `Op` says."""
        return RowsLinear(self.kind, self.axes, self.axis, self.temperature, not self.back)


def _rows(kind: str, x: Any, axis: int, temperature: float, mask: Any) -> Any:
    x = floating(kind, "x", x)
    # the kernel itself says what is wrong with the options
    getattr(npkernels, kind)(np.zeros((1,) * x.ndim), axis, temperature=temperature)
    axis = int(axis)
    op = Rows(kind, x.ndim, axis - x.ndim if axis >= 0 else axis, float(temperature))
    masks = [] if mask is None else [with_axes(kind, "mask", boolean(kind, mask), x.shape, "the shape of x")]
    return bind(op, x, *masks)[0]


def softmax(x: Any, axis: int = -1, *, temperature: float = 1.0, mask: Any = None) -> Any:
    """`npkernels.softmax` in JAX: ``exp(x / temperature)`` over its sum along an axis.

    Works under `jit`, `vmap`, `grad` and `jvp`, on CPU.

    Parameters
    ----------
    x : array_like
        float32, float64 (if JAX has 64-bit numbers enabled), float16 or bfloat16; others become JAX's float.
    axis : int
        Static.
    temperature : float
        Static, > 0.
    mask : array_like of bool, optional
        Broadcasts to x; entries where it is False get 0. May be traced.

    Returns
    -------
    jax.Array
        Of x's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value; when the call is traced.

    Examples
    --------
    >>> import jax, npkernels.jax
    >>> jax.jit(npkernels.jax.softmax)(jax.numpy.zeros(4))
    Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    return _rows("softmax", x, axis, temperature, mask)


def log_softmax(x: Any, axis: int = -1, *, temperature: float = 1.0, mask: Any = None) -> Any:
    """`npkernels.log_softmax` in JAX.

    Parameters, errors and transformations as for `softmax`; masked entries get -inf.

    Examples
    --------
    >>> import jax, npkernels.jax
    >>> jax.grad(lambda x: npkernels.jax.log_softmax(x)[0])(jax.numpy.zeros(2))
    Array([ 0.5, -0.5], dtype=float32)
    """
    return _rows("log_softmax", x, axis, temperature, mask)


def logsumexp(
    x: Any, axis: int = -1, *, temperature: float = 1.0, mask: Any = None, keepdims: bool = False
) -> Any:
    """`npkernels.logsumexp` in JAX.

    Parameters, errors and transformations as for `softmax`; `keepdims` leaves the axis with length 1. The result is
    float32 for 16-bit inputs.

    Examples
    --------
    >>> import jax, npkernels.jax
    >>> jax.vmap(npkernels.jax.logsumexp)(jax.numpy.array([[0.0, 0.0], [1.0, -jax.numpy.inf]]))
    Array([0.6931472, 1.       ], dtype=float32)
    """
    lse = _rows("logsumexp", x, axis, temperature, mask)
    return jnp.expand_dims(lse, axis) if keepdims else lse
