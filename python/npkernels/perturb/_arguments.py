"""The arguments that the functions of `npkernels.perturb` share: norms, lengths, bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array, boolean, compute_dtype, floating, number

ArrayLike = npt.ArrayLike
Bounds = tuple[ArrayLike, ArrayLike] | None
Sides = tuple[float, float, Array | None, Array | None]

INF = np.inf
OPEN: Sides = (-INF, INF, None, None)
_NUMBERS = (float, int)


def norm_code(function: str, norm: Any) -> int:
    """0 for the largest entry, else 1 or 2: as the compiled functions want it."""
    if isinstance(norm, str) and norm == "inf":
        return 0
    if isinstance(norm, int | float | np.number) and not isinstance(norm, bool):
        if norm == INF:
            return 0
        if norm in (1, 2):
            return int(norm)
    raise ValueError(f'{function}: norm is {norm!r}; expected "inf", 2 or 1')


def check_samples(function: str, name: str, x: Array, norm: int) -> None:
    """Raise unless x has an axis of samples, and by the norms 1 and 2 something behind it."""
    if x.ndim < (2 if norm else 1):
        raise ValueError(
            f"{function}: {name} has shape {x.shape}; expected samples along the first axis"
            f" (pass {name}[None] for one sample)"
        )


def amount(function: str, name: str, value: Any, x: Array, norm: int) -> tuple[float, Array | None]:
    """A length: one number, or float64 (B,), or of the compute dtype and x's number of axes."""
    if type(value) is float and value >= 0:
        return value, None
    if isinstance(value, int | float | np.integer | np.floating):
        single = number(function, name, value)
        if not single >= 0:
            raise ValueError(f"{function}: {name} is {value!r}; expected a number >= 0")
        return single, None
    array = floating(function, name, value)
    if array.size and not np.all(array >= 0):
        wrong = array[~(array >= 0)].reshape(-1)[0]
        raise ValueError(f"{function}: {name} holds {wrong}; expected numbers >= 0")
    if array.ndim == 0:
        return float(array), None
    if array.shape == x.shape[:1]:
        return 0.0, np.ascontiguousarray(array, dtype=np.float64)
    if norm:
        raise ValueError(
            f"{function}: {name} has shape {array.shape}; expected one number, or one for each sample, "
            f'{x.shape[:1]} (each entry its own only with norm "inf")'
        )
    check_broadcasts(function, name, array, x)
    if array.size == 1:
        return float(array.reshape(())), None
    array = array.astype(compute_dtype(x.dtype), copy=False)
    return 0.0, array.reshape((1,) * (x.ndim - array.ndim) + array.shape)


def sides(function: str, bounds: Any, x: Array) -> Sides:
    """The lower and the upper bound, rounded to x's dtype: each a number or an array of the compute dtype."""
    if bounds is None:
        return OPEN
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise TypeError(f"{function}: bounds is {bounds!r}; expected a pair (low, high)")
    if type(bounds[0]) in _NUMBERS and type(bounds[1]) in _NUMBERS and x.itemsize > 2:  # nothing needs NumPy
        low, high = number(function, "bounds[0]", bounds[0]), number(function, "bounds[1]", bounds[1])
        if low <= high:
            return low, high, None, None
    a, b = (_side(function, f"bounds[{i}]", side, x) for i, side in enumerate(bounds))
    if not np.all(np.less_equal(a, b)):
        raise ValueError(f"{function}: bounds are not in order; expected low <= high everywhere")
    a, b = _in_dtype(a, x.dtype), _in_dtype(b, x.dtype)
    return (
        -INF if isinstance(a, np.ndarray) else a,
        INF if isinstance(b, np.ndarray) else b,
        a if isinstance(a, np.ndarray) else None,
        b if isinstance(b, np.ndarray) else None,
    )


def _side(function: str, name: str, value: Any, x: Array) -> float | Array:
    if isinstance(value, int | float | np.integer | np.floating):
        return number(function, name, value)
    array = floating(function, name, value)
    if array.ndim == 0:
        return float(array)
    check_broadcasts(function, name, array, x)
    return array


def _in_dtype(side: float | Array, dtype: np.dtype[Any]) -> float | Array:
    """A bound as x's dtype has it, in the compute dtype: what is clipped to it then lies within."""
    with np.errstate(over="ignore"):
        if isinstance(side, np.ndarray):
            return side.astype(dtype, copy=False).astype(compute_dtype(dtype), copy=False)
        return float(np.asarray(side).astype(dtype))


def check_broadcasts(function: str, name: str, array: Array, x: Array) -> None:
    """Raise unless the array broadcasts to x."""
    try:
        np.broadcast_to(array, x.shape)
    except ValueError:
        raise ValueError(
            f"{function}: {name} has shape {array.shape}, which does not broadcast to {x.shape}"
        ) from None


def mask_of(function: str, mask: Any) -> Array | None:
    """The mask as booleans, or None."""
    return None if mask is None else boolean(function, "mask", mask)


def gradient(function: str, name: str, grad: Any, x: Array) -> Array:
    """An array that goes with x; the compiled function checks that it does."""
    if type(grad) is np.ndarray and grad.dtype is x.dtype and grad.flags.aligned:
        return grad
    return floating(function, name, grad)


def flag(function: str, name: str, value: Any) -> bool:
    """True or False; a label or an array of them is neither."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: {name} is {value!r}; expected True or False")
    return bool(value)


def decay_of(function: str, decay: Any) -> float:
    """A finite number >= 0."""
    value = number(function, "decay", decay)
    if not 0 <= value < INF:
        raise ValueError(f"{function}: decay is {decay!r}; expected a finite number >= 0")
    return value


def finite(function: str, name: str, length: tuple[float, Array | None]) -> tuple[float, Array | None]:
    """Raise for a length that is infinite somewhere."""
    value, array = length
    if not (value < INF if array is None else np.isfinite(array).all()):
        raise ValueError(f"{function}: {name} is infinite; expected finite numbers")
    return length
