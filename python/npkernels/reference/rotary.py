"""Rotary position embedding: pairs of entries turn by an angle that grows with the position.

x (..., S, D), the sequence on axis -2; r = rotary_dim (D by default), even. Pair i (i < r/2) is (x[2i], x[2i
+ 1]) if `interleaved`, else (x[i], x[i + r/2]); at position p it turns by p * base^(-2i/r):

    y_first  = x_first * cos - x_second * sin
    y_second = x_first * sin + x_second * cos

Entries from r on pass through.  Source: Su et al., "RoFormer", 2021; the half-split order is GPT-NeoX's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._common import Array, ArrayLike, IntArray, as_index, check_range, check_shape, like, working


def _check_per_position(
    function: str, name: str, array: npt.NDArray[Any], x: Array, tail: tuple[int, ...]
) -> None:
    """(S, *tail) or (B, S, *tail), with B = x.shape[0] in front of the sequence axis."""
    queries = x.shape[-2]
    shapes = [(queries, *tail)] + ([(x.shape[0], queries, *tail)] if x.ndim > 2 else [])
    if array.shape not in shapes:
        raise ValueError(
            f"{function}: {name} has shape {array.shape}; expected {' or '.join(map(str, shapes))}"
        )


def _positions(function: str, positions: ArrayLike, x: Array) -> IntArray:
    index = as_index(function, "positions", positions)
    _check_per_position(function, "positions", index, x, ())
    return index


def _cos_sin(
    function: str,
    x: Array,
    positions: ArrayLike | None,
    cos: ArrayLike | None,
    sin: ArrayLike | None,
    base: float,
    pairs: int,
) -> tuple[Array, Array]:
    """Cosine and sine of the angles, (S, r/2) or (B, S, r/2)."""
    if (cos is None) != (sin is None):
        raise ValueError(
            f"{function}: cos and sin come together; {'cos' if cos is None else 'sin'} is missing"
        )
    if cos is None or sin is None:
        if not (np.isfinite(base) and base > 0):
            raise ValueError(f"{function}: base is {base}; expected a finite number > 0")
        index = np.arange(x.shape[-2]) if positions is None else _positions(function, positions, x)
        frequency = x.dtype.type(base) ** (-np.arange(pairs, dtype=x.dtype) / max(pairs, 1))
        angle = index[..., None] * frequency
        return np.cos(angle), np.sin(angle)
    c, s = like(function, "cos", cos, x), like(function, "sin", sin, x)
    check_shape(function, "sin", s, c.shape)
    if positions is None:
        _check_per_position(function, "cos", c, x, (pairs,))
        return c, s
    if c.ndim != 2 or c.shape[1] != pairs:
        raise ValueError(f"{function}: cos has shape {c.shape}; expected a table (positions, {pairs})")
    index = _positions(function, positions, x)
    check_range(function, "positions", index, c.shape[0])
    return c[index], s[index]


def _checked(function: str, name: str, x: ArrayLike) -> Array:
    (a,) = working(function, **{name: x})
    if a.ndim < 2:
        raise ValueError(f"{function}: {name} has shape {a.shape}; expected (..., S, D)")
    return a


def rotate(
    function: str,
    a: Array,
    direction: int,
    positions: ArrayLike | None = None,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> Array:
    """The rotation (direction 1) or its transpose (direction -1) of an array in working precision."""
    size = a.shape[-1]
    r = size if rotary_dim is None else rotary_dim
    if r % 2 or not 0 <= r <= size:
        raise ValueError(f"{function}: rotary_dim is {r}; expected an even number from 0 to {size}")
    c, s = _cos_sin(function, a, positions, cos, sin, base, r // 2)
    if c.ndim == 3:  # (B, S, r/2): the axes between B and S share the angles
        c, s = (t.reshape(t.shape[0], *(1,) * (a.ndim - 3), *t.shape[1:]) for t in (c, s))
    s = direction * s
    i = np.arange(r // 2)
    first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + r // 2)
    y: Array = a.copy()
    y[..., first] = a[..., first] * c - a[..., second] * s
    y[..., second] = a[..., first] * s + a[..., second] * c
    return y


@np.errstate(all="ignore")
def rotary_embedding(
    x: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> Array:
    """Turn each pair of x (..., S, D) by the angle of its position.

    positions: integers (S,) or (B, S) with B = x.shape[0]; 0, 1, ... by default. cos, sin in place of `base`:
    tables (P, r/2) that `positions` index, or without positions the values themselves, (S, r/2) or (B, S,
    r/2).

    Examples
    --------
    >>> rotary_embedding(np.float32([[1, 0], [1, 0]])).round(4)
    array([[1.    , 0.    ],
           [0.5403, 0.8415]])
    """
    a = _checked("rotary_embedding", "x", x)
    return rotate("rotary_embedding", a, 1, positions, cos, sin, base, interleaved, rotary_dim)


@np.errstate(all="ignore")
def rotary_embedding_vjp(
    dy: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> Array:
    """Rotate dy by the negative angle, which gives dx.

    Examples
    --------
    >>> x = np.float32([[1, 2], [3, 4]])
    >>> rotary_embedding_vjp(rotary_embedding(x).astype(np.float32)).round(4)
    array([[1., 2.],
           [3., 4.]])
    """
    a = _checked("rotary_embedding_vjp", "dy", dy)
    return rotate("rotary_embedding_vjp", a, -1, positions, cos, sin, base, interleaved, rotary_dim)
