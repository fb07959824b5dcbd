"""Rotary position embedding and its gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, compute_dtype, floating, kernel, number, plain, shape_error

ArrayLike = npt.ArrayLike


@kernel
def rotary_embedding(
    x: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    out: Array | None = None,
) -> Array:
    """Rotary position embedding: turn pairs of each row by angles that grow with its position.

    Parameters
    ----------
    x : array_like (..., S, D)
        Queries or keys; float32, float64, float16 or bfloat16.
    positions : array_like of int (S,) or (B, S), optional
        B is x's first axis. Default ``arange(S)``.
    cos, sin : array_like, optional
        Tables (P, rotary_dim / 2) that positions index; or, without positions, one row per position already:
        (S, rotary_dim / 2) or (B, S, rotary_dim / 2). Default: pair i turns by
        ``position * base ** (-2 i / rotary_dim)``.
    base : float
        The base of the default angles.
    interleaved : bool
        Pairs are (x[2i], x[2i+1]) (GPT-J, the original paper) instead of (x[i], x[i + rotary_dim/2]) (GPT-NeoX, Llama).
    rotary_dim : int, optional
        Even; only the first rotary_dim entries turn, the others pass through. Default D.
    out : ndarray, optional
        Of x's shape and dtype; x itself is allowed.

    Returns
    -------
    ndarray
        Of x's shape and dtype.

    Notes
    -----
    ``(a, b) -> (a cos - b sin, b cos + a sin)`` [1]_.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced transformer with rotary position embedding", 2021, eq. 34.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.rotary_embedding(np.array([[1.0, 0.0], [1.0, 0.0]])).round(4)
    array([[1.    , 0.    ],
           [0.5403, 0.8415]])
    """
    return _rotary(
        "rotary_embedding", "x", x, positions, cos, sin, base, interleaved, rotary_dim, out, inverse=False
    )


@kernel
def rotary_embedding_vjp(
    dy: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    out: Array | None = None,
) -> Array:
    """Cotangent of rotary_embedding's input: dy turned back by the same angles.

    Parameters as for `rotary_embedding`.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> npkernels.rotary_embedding_vjp(npkernels.rotary_embedding(x)).round(12)
    array([[1., 2.],
           [3., 4.]])
    """
    name = "rotary_embedding_vjp"
    return _rotary(name, "dy", dy, positions, cos, sin, base, interleaved, rotary_dim, out, inverse=True)


def _rotary(
    function: str,
    name: str,
    x: Any,
    positions: Any,
    cos: Any,
    sin: Any,
    base: Any,
    interleaved: bool,
    rotary_dim: int | None,
    out: Array | None,
    *,
    inverse: bool,
) -> Array:
    array = floating(function, name, x)
    if array.ndim < 2:
        shape_error(function, name, array.shape, "(..., S, D)")
    if array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
        array = np.ascontiguousarray(array)
    dim = array.shape[-1] if rotary_dim is None else rotary_dim
    if not isinstance(dim, int | np.integer) or dim % 2 or not 0 <= dim <= array.shape[-1]:
        raise ValueError(
            f"{function}: rotary_dim is {dim!r}; expected an even number from 0 to {array.shape[-1]}"
        )
    c, s = _angles(function, array, positions, cos, sin, base, int(dim))
    return _core.rotary(array, c, s, bool(interleaved), inverse, out)


def _angles(
    function: str, x: Array, positions: Any, cos: Any, sin: Any, base: Any, dim: int
) -> tuple[Array, Array]:
    """Return cosines and sines as views of x's shape with dim / 2 entries at the end."""
    dtype = compute_dtype(x.dtype)
    length, half = x.shape[-2], dim // 2
    where = None
    if positions is not None:
        where = plain(function, "positions", positions)
        if where.dtype.kind not in "iu":
            raise TypeError(f"{function}: positions has dtype {where.dtype}; expected integers")
        _check_per_batch(function, "positions", where, x, (length,))
    if (cos is None) != (sin is None):
        raise ValueError(f"{function}: {'cos' if cos is None else 'sin'} is None; cos and sin go together")
    if cos is None:
        b = number(function, "base", base)
        if not b > 0 or not math.isfinite(b):
            raise ValueError(f"{function}: base is {base!r}; expected a positive finite number")
        frequency = b ** (-np.arange(half) * 2.0 / max(dim, 1))
        angle = (np.arange(length) if where is None else where)[..., None] * frequency
        tables = [np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)]
    else:
        tables = [_table(function, n, t, x, where, half, dtype) for n, t in (("cos", cos), ("sin", sin))]
    shape = (*x.shape[:-1], half)
    views = []
    for table in tables:
        if table.ndim == 3:
            table = table.reshape(table.shape[0], *(1,) * (x.ndim - 3), length, half)
        views.append(np.broadcast_to(table, shape))
    return views[0], views[1]


def _check_per_batch(function: str, name: str, array: Array, x: Array, shape: tuple[int, ...]) -> None:
    """Raise unless the array has this shape or, if x has a batch axis, one of it for each batch."""
    allowed = [shape] if x.ndim < 3 else [shape, (x.shape[0], *shape)]
    if array.shape not in allowed:
        shape_error(function, name, array.shape, " or ".join(map(str, allowed)))


def _table(
    function: str, name: str, table: Any, x: Array, where: Array | None, half: int, dtype: np.dtype[Any]
) -> Array:
    """Return the rows of a given table: (S, half) or (B, S, half)."""
    array = np.ascontiguousarray(floating(function, name, table), dtype=dtype)
    length = x.shape[-2]
    if where is None:
        _check_per_batch(function, name, array, x, (length, half))
        return array
    if array.ndim != 2 or array.shape[1] != half:
        shape_error(function, name, array.shape, f"(positions, {half})")
    if where.size and (where.min() < 0 or where.max() >= array.shape[0]):
        raise IndexError(
            f"{function}: positions hold {where.min()} to {where.max()}; "
            f"expected 0 <= position < {array.shape[0]}, the rows of {name}"
        )
    return array[where]
