"""Calls of functions that somebody else wrote: they see the kind of array that came in, and copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from npkernels._arrays import Array, _is_foreign, _to_kind, floating, real

Function = Callable[..., Any]


def seen(name: str, what: str, f: Any, x: Any) -> Function:
    """The function f of arrays of x's kind, as one of NumPy arrays."""
    if not callable(f):
        raise TypeError(f"{name}: {what} is {f!r}; expected a callable")
    if not _is_foreign(x):
        function: Function = f
        return function
    return lambda *arrays: f(*(_to_kind(a, x) for a in arrays))


def values(name: str, what: str, given: Any) -> Array:
    """What a callable gave, as a NumPy array."""
    return real(name, what, given.detach() if hasattr(given, "detach") else given)


def values_of(name: str, f: Function, x: Array) -> Array:
    """Outputs of f as (B, anything), float64."""
    y = values(name, "what f gave", f(x.copy()))
    if y.ndim < 1 or y.shape[0] != len(x):
        raise ValueError(f"{name}: f gave shape {y.shape} for {len(x)} samples; expected {len(x)} rows")
    return np.asarray(y, np.float64).reshape(len(x), int(np.prod(y.shape[1:])))


def gradient_of(name: str, grad_fn: Function, x: Array) -> Array:
    """What grad_fn gives at x, without its losses."""
    given = grad_fn(x.copy())
    given = given[1] if isinstance(given, tuple) and len(given) == 2 else given
    g = floating(name, "what grad_fn gave", given.detach() if hasattr(given, "detach") else given)
    if g.shape != x.shape:
        raise ValueError(f"{name}: grad_fn gave shape {g.shape}; expected {x.shape}")
    return g
