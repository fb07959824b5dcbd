"""Norms of linear maps by their definitions, for small sizes: dense matrices, and all corners of a cube.

Examples
--------
>>> float(operator_norm(np.array([[1.0, -2.0], [3.0, 0.5]]), 1, 1))
4.0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._common import Array, ArrayLike, as_array
from .perturb import power

__all__ = ["convolution_matrix", "jacobian_matrix", "operator_norm", "spectral_norm"]

INF = np.inf


def spectral_norm(a: ArrayLike) -> float:
    """Largest singular value of a matrix.

    Examples
    --------
    >>> spectral_norm([[3.0, 0.0], [0.0, -4.0]])
    4.0
    """
    return float(np.linalg.svd(as_array(a).astype(np.float64), compute_uv=False)[0])


def operator_norm(w: ArrayLike, p: Any = 2, q: Any = 2) -> float:
    """``max |w x|_q`` over ``|x|_p <= 1``: a convex function has its maximum at a corner of the ball.

    The corners of the L1 ball are unit vectors, those of the cube sign vectors; both can be tried. For p = 2 the dual
    map ``|w^T y|_2`` over the corners of the dual ball of q is the same norm.

    Examples
    --------
    >>> operator_norm([[1.0, 2.0], [3.0, -4.0]], "inf", 1)
    8.0
    """
    a = as_array(w).astype(np.float64)
    source, target = power("operator_norm", p), power("operator_norm", q)
    if source == 2 and target == 2:
        return spectral_norm(a)
    if source == 2:  # |w|_{2 -> q} = |w^T|_{q* -> 2}
        return _over_corners(a.T, INF if target == 1 else 1.0, 2.0)
    return _over_corners(a, source, target)


def _over_corners(a: Array, source: float, target: float) -> float:
    n = a.shape[1]
    corners = np.eye(n) if source == 1 else 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    return float(max(np.linalg.norm(a @ x, target) for x in corners))


def convolution_matrix(kernel: ArrayLike, shape: Sequence[int], stride: int = 1, padding: int = 0) -> Array:
    """The correlation of inputs (in, *shape) with a kernel (out, in, *size) as a matrix, entry by entry.

    Examples
    --------
    >>> convolution_matrix([[[1.0, 2.0]]], (3,))
    array([[1., 2., 0.],
           [0., 1., 2.]])
    """
    k = as_array(kernel).astype(np.float64)
    size = k.shape[2:]
    lengths = [(n + 2 * padding - m) // stride + 1 for n, m in zip(shape, size, strict=True)]
    rows = []
    for o in range(k.shape[0]):
        for place in np.ndindex(*lengths):
            padded = np.zeros((k.shape[1], *(n + 2 * padding for n in shape)))
            spans = [slice(p * stride, p * stride + m) for p, m in zip(place, size, strict=True)]
            met = (slice(None), *spans)
            padded[met] = k[o]
            inner = (slice(None), *(slice(padding, padding + n) for n in shape))
            rows.append(padded[inner].reshape(-1))
    return np.stack(rows)


def jacobian_matrix(f: Callable[[Array], Any], x: ArrayLike, h: float = 1e-6) -> Array:
    """The Jacobian of f at x by central differences, (outputs, inputs).

    Examples
    --------
    >>> jacobian_matrix(lambda x: x**2, [1.0, 2.0]).round(6)
    array([[2., 0.],
           [0., 4.]])
    """
    point = as_array(x).astype(np.float64)
    columns = []
    for i in np.ndindex(point.shape):
        step = np.zeros_like(point)
        step[i] = h
        columns.append((np.asarray(f(point + step)) - np.asarray(f(point - step))).reshape(-1) / (2 * h))
    return np.stack(columns, axis=1)
