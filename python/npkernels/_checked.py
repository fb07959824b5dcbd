"""Comparing every call with the reference: for people who suspect a kernel."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from threading import Lock
from typing import Any

import numpy as np

from npkernels._grpo_types import GroupAdvantages

_by_environment = os.environ.get("NPKERNELS_CHECK", "") not in ("", "0")
_active: ContextVar[bool] = ContextVar("npkernels_checked", default=_by_environment)
_inside: ContextVar[bool] = ContextVar("npkernels_inside_check", default=False)


_lock = Lock()
# How many ask for checks, in any thread; while it is 0 a call need not look further.
users = int(_by_environment)


class MismatchError(AssertionError):
    """A kernel's result differs from its reference by more than rounding explains."""


def enabled() -> bool:
    """Whether calls are compared with the reference here and now."""
    return _active.get() and not _inside.get()


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Compare every call that this thread makes inside the block with `npkernels.reference`.

    Raises `npkernels.MismatchError`, naming the function and the place of the worst mismatch, if a result is further
    from the reference than rounding in its dtype explains. Slow: the reference is plain NumPy. The environment
    variable NPKERNELS_CHECK=1 does the same for a whole process.

    Examples
    --------
    >>> import npkernels
    >>> with npkernels.checked():
    ...     npkernels.softmax([0.0, 0.0])
    array([0.5, 0.5])
    """
    global users
    token = _active.set(True)
    with _lock:
        users += 1
    try:
        yield
    finally:
        with _lock:
            users -= 1
        _active.reset(token)


def compare(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the function, then its reference on copies of the inputs, and return the function's result."""
    from npkernels import reference

    token = _inside.set(True)
    try:
        args = tuple(_twice(a) for a in args)
        kwargs = {key: _twice(value) for key, value in kwargs.items()}
        rng = inspect.signature(function).parameters.get("rng")
        if rng is not None and kwargs.get("rng", rng.default) is None:
            kwargs["rng"] = np.random.default_rng()  # the same new one for both
        copies = tuple(_copy(a) for a in args)
        copied = {key: _copy(value) for key, value in kwargs.items() if key != "out"}
        result = function(*args, **kwargs)
        family = getattr(reference, function.__module__.split(".")[1], reference)
        expected = getattr(family, function.__name__)(*copies, **copied)
        inputs = [
            a for a in (*copies, *copied.values()) if isinstance(a, np.ndarray) and a.dtype.kind in "fV"
        ]
        for place, got, want in _leaves(function.__name__, result, expected):
            _assert_close(place, got, want, inputs)
    finally:
        _inside.reset(token)
    return result


def _twice(value: Any) -> Any:
    """What can be read twice: an iterator as a list."""
    return list(value) if isinstance(value, Iterator) else value


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, np.random.Generator):
        return copy.deepcopy(value)
    if isinstance(value, list | tuple):
        return type(value)(_copy(v) for v in value)
    return value


def _leaves(place: str, result: Any, expected: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(result, tuple):
        for i, (got, want) in enumerate(zip(result, expected, strict=True)):
            yield from _leaves(f"{place}[{i}]", got, want)
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        for field in dataclasses.fields(result):
            yield from _leaves(
                f"{place}.{field.name}", getattr(result, field.name), getattr(expected, field.name)
            )
    elif isinstance(result, GroupAdvantages):
        for name in result.arrays:
            yield f"{place}.{name}", getattr(result, name), getattr(expected, name)
    elif result is not None:
        yield place, np.asarray(result), np.asarray(expected)


def _assert_close(place: str, got: np.ndarray, want: np.ndarray, inputs: list[np.ndarray]) -> None:
    if got.shape != want.shape:
        raise MismatchError(f"{place}: shape {got.shape}, the reference has {want.shape}")
    if got.size == 0:
        return
    if got.dtype.kind in "iub":
        if not np.array_equal(got, want):
            where = np.unravel_index(int(np.argmax(got != want)), got.shape)
            raise MismatchError(
                f"{place}: {got[where]} at {tuple(map(int, where))}, the reference has {want[where]}"
            )
        return
    g, w = got.astype(np.longdouble), want.astype(np.longdouble)
    with np.errstate(all="ignore"):
        rounded = want.astype(got.dtype).astype(np.longdouble)  # what is beyond the dtype is inf
    same = (g == rounded) | (np.isnan(g) & np.isnan(w))
    finite = np.isfinite(w) & np.isfinite(g)
    error = np.where(same, 0, np.where(finite, np.abs(g - np.where(finite, w, 0)), np.inf))
    bound = tolerance(got, w, inputs)
    worst = np.unravel_index(int(np.argmax(error)), error.shape)
    if error[worst] > bound:
        raise MismatchError(
            f"{place}: {got[worst]} at {tuple(map(int, worst))}, the reference has {want[worst]} "
            f"(error {float(error[worst]):.3g}, bound {bound:.3g})"
        )


def tolerance(got: np.ndarray, want: np.ndarray, inputs: list[np.ndarray]) -> float:
    """What rounding explains: some units in the last place of the result and of the arithmetic on the inputs."""
    eps_out = epsilon(got.dtype)
    eps_compute = min(epsilon(np.dtype(np.float32)), eps_out)
    largest = _largest(want)
    scale = max([largest, 1.0, *(_largest(a.astype(np.longdouble)) for a in inputs)])
    terms = max([1, *(a.shape[-1] for a in inputs if a.ndim)])
    return eps_out * largest + 8 * eps_compute * scale * max(1.0, largest) * float(np.sqrt(terms))


def epsilon(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next number of the dtype."""
    return 2.0**-7 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps)


def _largest(a: np.ndarray) -> float:
    finite = np.abs(a[np.isfinite(a)])
    return float(finite.max()) if finite.size else 0.0
