"""One JAX primitive for all kernels: what JAX's transformations do with a call of a kernel.

An `Op` says what one call is. JAX gives its buffers to the host function without a copy, and the kernel writes the
results where JAX wants them (`jax.experimental.buffer_callback`, a handler of XLA's foreign function interface that
comes with JAX). Every argument of a call has the same number of leading axes before its own, those of `vmap`; their
lengths are that of the batch, or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._party import party

Array = npt.NDArray[Any]
Shaped = tuple[tuple[int, ...], Any]  # shape and dtype

OLDEST = "0.6.2"
jax, jnp, ad, batching, mlir, core, callbacks = (
    party("npkernels.jax", name, OLDEST, "npkernels[jax]")
    for name in (
        "jax",
        "jax.numpy",
        "jax.interpreters.ad",
        "jax.interpreters.batching",
        "jax.interpreters.mlir",
        "jax.extend.core",
        "jax.experimental.buffer_callback",
    )
)


@dataclass(frozen=True)
class Op:
    """A call with its static options. It is linear in its last `linear` arguments; 0 for the functions themselves."""

    @property
    def name(self) -> str:
        """The function, for messages."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """How many axes the first argument has without those of `vmap`."""
        raise NotImplementedError

    @property
    def linear(self) -> int:
        """The number of linear arguments."""
        return 0

    def results(self, *arguments: Shaped) -> list[Shaped]:
        """Shapes and dtypes of the results, without the axes of `vmap`."""
        raise NotImplementedError

    def run(self, lead: tuple[int, ...], outs: Sequence[Array], *arguments: Array) -> None:
        """Compute into `outs`; each argument has the axes `lead` before its own."""
        raise NotImplementedError

    def derivative(self, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Results and their tangents; symbolic zeros are `ad.Zero`."""
        raise NotImplementedError

    def transposed(self) -> Op:
        """From cotangents of the results of a linear call to those of its linear arguments."""
        raise NotImplementedError

    def check_runs(self) -> None:
        """Raise if this call can be traced, to be transposed, but not run."""


primitive = core.Primitive("npkernels")
primitive.multiple_results = True


def bind(op: Op, *arguments: Any) -> list[Any]:
    """Call the kernel, in whatever transformation we are.

    Linear arguments get the axes of `vmap` at full length, as their cotangents have them.
    """
    if op.linear:
        n = arguments[0].ndim - op.rank
        lead = np.broadcast_shapes(*(a.shape[:n] for a in arguments))
        wide = [jnp.broadcast_to(a, lead + a.shape[n:]) for a in arguments[-op.linear :]]
        arguments = (*arguments[: -op.linear], *wide)
    results: list[Any] = primitive.bind(*arguments, op=op)
    return results


def only_first(name: str) -> str:
    """Say that there are no second derivatives, and whose function has them."""
    theirs = {"attention": "dot_product_attention", "token_log_probs": "log_softmax"}.get(name, name)
    return f"npkernels.jax has first derivatives only; jax.nn.{theirs} has second ones"


def nonzero(tangents: Sequence[Any]) -> list[bool]:
    """Which tangents are not symbolic zeros."""
    return [type(tangent) is not ad.Zero for tangent in tangents]


def zero(value: Any) -> Any:
    """Return the symbolic zero that is the tangent of a constant."""
    return ad.Zero(jax.typeof(value).to_tangent_aval())


def _results(arguments: Sequence[Any], op: Op) -> list[Shaped]:
    n = arguments[0].ndim - op.rank
    lead = np.broadcast_shapes(*(a.shape[:n] for a in arguments))
    return [
        (lead + shape, dtype) for shape, dtype in op.results(*((a.shape[n:], a.dtype) for a in arguments))
    ]


def _abstract(*arguments: Any, op: Op) -> list[Any]:
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in _results(arguments, op)]


def _lowered(*arguments: Any, op: Op) -> list[Any]:
    op.check_runs()
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in _results(arguments, op)]

    def host(_: Any, outs: Sequence[Any], *buffers: Any) -> None:
        arrays = [np.asarray(b) for b in buffers]
        n = arrays[0].ndim - op.rank
        lead = np.broadcast_shapes(*(a.shape[:n] for a in arrays))
        arrays = [a if a.shape[:n] == lead else np.broadcast_to(a, lead + a.shape[n:]) for a in arrays]
        results = [np.asarray(out) for out in outs]
        if any(r.size for r in results):
            op.run(lead, results, *arrays)

    called: list[Any] = callbacks.buffer_callback(host, shapes)(*arguments)
    return called


def _batched(arguments: Sequence[Any], axes: Sequence[Any], op: Op) -> tuple[list[Any], list[int]]:
    """Put the new axis before the others, with length 1 where an argument does not have it."""
    moved = [
        a.reshape(1, *a.shape) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(arguments, axes, strict=True)
    ]
    results = bind(op, *moved)
    return results, [0] * len(results)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, op: Op) -> tuple[list[Any], list[Any]]:
    if not op.linear:
        return op.derivative(primals, tangents)
    if any(nonzero(tangents[: -op.linear])):
        raise NotImplementedError(f"{op.name}: its derivative was differentiated. {only_first(op.name)}")
    moved = [ad.instantiate_zeros(t) for t in tangents[-op.linear :]]
    return bind(op, *primals), bind(op, *primals[: -op.linear], *moved)


def _transpose(cotangents: Sequence[Any], *arguments: Any, op: Op) -> list[Any]:
    known, linear = arguments[: -op.linear], arguments[-op.linear :]
    given = [ad.instantiate_zeros(c) for c in cotangents]
    results = bind(op.transposed(), *known, *given)
    back = [
        r if ad.is_undefined_primal(argument) else None for r, argument in zip(results, linear, strict=True)
    ]
    return [None] * len(known) + back


def _call(*arguments: Any, op: Op) -> list[Any]:
    return bind(op, *arguments)


primitive.def_impl(jax.jit(_call, static_argnames=("op",)))
primitive.def_abstract_eval(_abstract)
mlir.register_lowering(primitive, mlir.lower_fun(_lowered, multiple_results=True), platform="cpu")
batching.primitive_batchers[primitive] = _batched
ad.primitive_jvps[primitive] = _jvp
ad.primitive_transposes[primitive] = _transpose


def floating(function: str, name: str, x: Any) -> Any:
    """Return x as a JAX array of a floating dtype; integers and booleans become JAX's float."""
    x = jnp.asarray(x)
    if x.dtype in (jnp.float32, jnp.float64, jnp.float16, jnp.bfloat16):
        return x
    if x.dtype != np.bool_ and not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"{function}: {name} has dtype {x.dtype}; expected float32, float64, float16, bfloat16 or integers"
        )
    return x.astype(jnp.result_type(float))


def boolean(function: str, x: Any) -> Any:
    """Return a mask as a JAX array."""
    x = jnp.asarray(x)
    if x.dtype != np.bool_:
        raise TypeError(f"{function}: mask has dtype {x.dtype}; expected bool (True = takes part)")
    return x


def with_axes(function: str, name: str, x: Any, shape: tuple[int, ...], meaning: str) -> Any:
    """Return x with as many axes as `shape`, to which it must broadcast."""
    try:
        fits = np.broadcast_shapes(x.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{function}: {name} has shape {x.shape}; expected one that broadcasts to {meaning} = {shape}"
        )
    return x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
