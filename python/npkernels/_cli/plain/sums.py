"""Sums in a chosen order.

The error of a sum depends on the order of its terms, which a formula leaves open. One order may be lucky, so the
accuracy gate evaluates the plain formulas in each of `ORDERS`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np

from npkernels._arrays import Array

ORDERS = ("as it is", "backwards", "odd places first", "from the middle")
_order: ContextVar[str] = ContextVar("npkernels_sum_order", default=ORDERS[0])


@contextlib.contextmanager
def order(name: str) -> Iterator[None]:
    """Take the terms of every `total` and `product` in this order.

    Examples
    --------
    >>> x = np.float32([2**24, 1, 1])
    >>> with order("backwards"):
    ...     float(total(x, 0)) - 2**24
    2.0
    >>> float(total(x, 0)) - 2**24
    0.0
    """
    token = _order.set(name)
    try:
        yield
    finally:
        _order.reset(token)


def total(x: Array, axis: int | None, keepdims: bool = False) -> Array:
    """``x.sum(axis)``."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    result: Array = _arranged(x, axis).sum(axis=axis, keepdims=keepdims)
    return result


def product(a: Array, b: Array) -> Array:
    """``a @ b``."""
    result: Array = _arranged(a, -1) @ _arranged(b, -2 if b.ndim > 1 else 0)
    return result


def _arranged(x: Array, axis: int) -> Array:
    name, n = _order.get(), x.shape[axis]
    if name == ORDERS[0]:
        return x
    places = np.arange(n)
    if name == ORDERS[1]:
        places = places[::-1]
    elif name == ORDERS[2]:
        places = np.concatenate([places[1::2], places[::2]])
    else:
        places = np.roll(places, n // 2)
    return np.take(x, places, axis)
