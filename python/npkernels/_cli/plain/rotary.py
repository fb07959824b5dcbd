"""Rotary embedding."""

from __future__ import annotations

import numpy as np

from npkernels._arrays import Array
from npkernels._cli.plain.softmax import _compute


def rotary_embedding(
    x: Array,
    positions: Array | None = None,
    *,
    cos: Array | None = None,
    sin: Array | None = None,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> Array:
    """``(a cos - b sin, a sin + b cos)`` for each pair."""
    return _rotate(x, positions, cos, sin, base, interleaved, rotary_dim, 1)


def rotary_embedding_vjp(
    dy: Array,
    positions: Array | None = None,
    *,
    cos: Array | None = None,
    sin: Array | None = None,
    base: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> Array:
    """The same with the negative angle."""
    return _rotate(dy, positions, cos, sin, base, interleaved, rotary_dim, -1)


def _rotate(
    x: Array,
    positions: Array | None,
    cos: Array | None,
    sin: Array | None,
    base: float,
    interleaved: bool,
    rotary_dim: int | None,
    direction: int,
) -> Array:
    r = x.shape[-1] if rotary_dim is None else rotary_dim
    a = _compute(x)
    if (
        cos is None or sin is None
    ):  # angles in float64: those of float32 would be off by the position times its ulp
        where = np.arange(x.shape[-2]) if positions is None else positions
        angle = np.asarray(where)[..., None] * base ** (-np.arange(r // 2) * 2.0 / max(r, 1))
        c, s = np.cos(angle).astype(a.dtype), np.sin(angle).astype(a.dtype)
    else:
        c, s = _compute(cos).astype(a.dtype), _compute(sin).astype(a.dtype)
        if positions is not None:
            c, s = c[positions], s[positions]
    if c.ndim == 3:
        c, s = (t.reshape(t.shape[0], *(1,) * (x.ndim - 3), *t.shape[1:]) for t in (c, s))
    first, second = (slice(0, r, 2), slice(1, r, 2)) if interleaved else (slice(0, r // 2), slice(r // 2, r))
    y: Array = a.copy()
    y[..., first] = a[..., first] * c - direction * s * a[..., second]
    y[..., second] = direction * s * a[..., first] + c * a[..., second]
    return y.astype(x.dtype, copy=False)
