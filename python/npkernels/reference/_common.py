"""What the reference functions share: the working precision and the checks of their arguments."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ArrayLike = npt.ArrayLike

_EXACT_IN_FLOAT64 = ("float16", "bfloat16", "float32")


def as_array(value: Any) -> npt.NDArray[Any]:
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return np.from_dlpack(value)
    return np.asarray(value)


def _as_real(function: str, name: str, value: Any) -> npt.NDArray[Any]:
    array = as_array(value)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise TypeError(
            f"{function}: {name} has dtype {array.dtype}; expected real numbers "
            "(float16, bfloat16, float32, float64 or integers)"
        )
    return array


Sum = Callable[[npt.NDArray[Any]], Any]
_narrow: ContextVar[Sum | None] = ContextVar("npkernels_reference_narrow", default=None)


@contextlib.contextmanager
def in_input_dtype(add: Sum) -> Iterator[None]:
    """Compute in the dtype of the inputs (float32 for 16 bits) instead of a wider one, to see what rounding does.

    `add` is how the terms of a sum are added.
    """
    token = _narrow.set(add)
    try:
        yield
    finally:
        _narrow.reset(token)


def total(x: npt.NDArray[Any]) -> Any:
    """The sum of all entries."""
    add = _narrow.get()
    return x.sum() if add is None else add(x)


def widest() -> np.dtype[Any]:
    """Where a function is computed in float64 whatever its inputs are: that, or longdouble to judge it."""
    return np.dtype(np.longdouble if _narrow.get() is None else np.float64)


def working(function: str, **arguments: Any) -> list[Array]:
    """The arguments in one working precision, which is wider than that of the widest argument.

    float64, and what is taken as float64 (integers, bools, Python numbers), is computed in longdouble; the
    shorter types, each of which float64 holds exactly, are computed in float64.
    """
    arrays = [_as_real(function, name, value) for name, value in arguments.items()]
    short = all(array.dtype.name in _EXACT_IN_FLOAT64 for array in arrays)
    if _narrow.get() is not None:
        return [array.astype(np.float32 if short else np.float64) for array in arrays]
    return [array.astype(np.float64 if short else np.longdouble) for array in arrays]


def like(function: str, name: str, value: Any, other: Array) -> Array:
    """`value` in the working precision of `other`."""
    return _as_real(function, name, value).astype(other.dtype)


def as_index(function: str, name: str, value: Any) -> IntArray:
    array = as_array(value)
    if array.size == 0 and array.dtype == np.float64 and not hasattr(value, "dtype"):
        array = array.astype(np.int64)  # an empty list
    if array.dtype.kind not in "iu":
        raise TypeError(f"{function}: {name} has dtype {array.dtype}; expected integers")
    return array.astype(np.int64)


def as_mask(function: str, mask: Any, shape: tuple[int, ...]) -> BoolArray | None:
    """The mask at the full shape; None stays None, as a mask of True and no mask are different things."""
    if mask is None:
        return None
    array = as_array(mask)
    if array.dtype != np.bool_:
        raise TypeError(f"{function}: mask has dtype {array.dtype}; expected bool, True = takes part")
    return broadcast(function, "mask", array, shape)


def broadcast(function: str, name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{function}: {name} has shape {array.shape}, which does not broadcast to {shape}"
        ) from None


def check_shape(function: str, name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{function}: {name} has shape {array.shape}; expected {shape}")


def check_axis(function: str, name: str, array: npt.NDArray[Any], axis: int) -> int:
    """The axis counted from the front."""
    axis = operator.index(axis)
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"{function}: axis {axis} is out of range for {name} with {array.ndim} dimensions")
    return axis % array.ndim


def check_temperature(function: str, temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{function}: temperature is {temperature}; expected a finite number > 0")


def check_range(function: str, name: str, index: IntArray, size: int, ignore: int | None = None) -> None:
    """IndexError at the first entry that is outside [0, size) and is not `ignore`."""
    wrong = ((index < 0) | (index >= size)) & (True if ignore is None else index != ignore)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        where = f"{name}[{', '.join(map(str, place))}]" if place else name
        raise IndexError(f"{function}: {where} is {index[place]}, outside [0, {size})")
