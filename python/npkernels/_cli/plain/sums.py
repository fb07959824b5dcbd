"""Sums in a chosen order.

The error of a sum depends on the order of its terms, which a formula leaves open. One order may be lucky, so the
accuracy gate evaluates the plain formulas in several.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np

from npkernels._arrays import Array

_order: ContextVar[int] = ContextVar("npkernels_sum_order", default=0)


@contextlib.contextmanager
def order(k: int) -> Iterator[None]:
    """Take the terms of every `total` and `product` in the k-th order: 0 as they come, 1 backwards, others at random.

    Examples
    --------
    >>> x = np.float32([2**24, 1, 1])
    >>> with order(1):
    ...     float(total(x, 0)) - 2**24
    2.0
    >>> float(total(x, 0)) - 2**24
    0.0
    """
    token = _order.set(k)
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
    k = _order.get()
    return np.take(x, _places(k, x.shape[axis]), axis) if k else x


@functools.lru_cache(maxsize=64)
def _places(k: int, n: int) -> Array:
    return np.arange(n)[::-1] if k == 1 else np.random.default_rng([k, n]).permutation(n)
