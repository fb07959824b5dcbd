"""Steps, projections and random points as NumPy users write them; the L1 projection by sorting."""

from __future__ import annotations

from typing import Any

import numpy as np

from npkernels._arrays import Array, compute_dtype
from npkernels._cli.plain.sums import total
from npkernels.reference import perturb as exact

Bounds = tuple[Any, Any] | None
INF = np.inf


def _compute(x: Any) -> Array:
    array = np.asarray(x)
    return array.astype(compute_dtype(array.dtype), copy=False)


def _length(value: Any, x: Array) -> Array:
    r = np.asarray(value, dtype=x.dtype)
    return r.reshape(len(x), *(1,) * (x.ndim - 1)) if r.ndim and r.shape == x.shape[:1] else r


def _flat(x: Array) -> Array:
    return x.reshape(len(x), int(np.prod(x.shape[1:])))


def _sum(x: Array) -> Array:
    """The sum over each sample, broadcastable."""
    return total(_flat(x), -1).reshape(len(x), *(1,) * (x.ndim - 1))


def _moves(mask: Array | None, x: Array) -> Array:
    return np.broadcast_to(True if mask is None else mask, x.shape)


def _direction(g: Array, norm: Any) -> Array:
    if norm in ("inf", INF):
        return np.asarray(np.sign(g))
    size = np.abs(g)
    if norm == 1:
        most = (size == _flat(size).max(axis=1, initial=0).reshape(len(g), *(1,) * (g.ndim - 1))) & (size > 0)
        ties = np.maximum(_sum(most.astype(g.dtype)), 1)
        return np.asarray(np.sign(g) * most / ties)
    length = np.sqrt(_sum(g * g))
    return np.asarray(g / np.where(length > 0, length, 1))


def _clip(x: Array, bounds: Bounds) -> Array:
    if bounds is None:
        return x
    low, high = (np.asarray(b, dtype=x.dtype) for b in bounds)
    return np.asarray(np.minimum(np.maximum(x, low), high))


def _moved(x: Array, grad: Any, step: Any, norm: Any, targeted: bool, moves: Array) -> Array:
    g = _compute(grad)
    d = _direction(np.where(moves & ~np.isnan(g), g, g.dtype.type(0)), norm)
    move = np.where(d == 0, d.dtype.type(0), _length(step, x) * d)
    return x - move if targeted else x + move


def _onto_l1(x: Array, c: Array, eps: Array) -> Array:
    """Duchi et al. 2008: sort, find the last entry that stays, shrink (all samples at once)."""
    d = _flat(x - c)
    if not d.size:
        return x
    a = np.abs(d)
    r = np.broadcast_to(eps.reshape(-1, 1), (len(d), 1))
    falling = -np.sort(-a, axis=1)
    sums = np.cumsum(falling, axis=1, dtype=x.dtype) - r
    ranks = np.arange(1, d.shape[1] + 1, dtype=x.dtype)
    last = np.count_nonzero(falling * ranks > sums, axis=1, keepdims=True) - 1
    t = np.take_along_axis(sums, np.maximum(last, 0), axis=1) / (np.maximum(last, 0) + 1).astype(x.dtype)
    y = np.sign(d) * np.maximum(a - t, 0)
    return np.where(total(a, 1)[:, None] <= r, _flat(x), _flat(c) + y).reshape(x.shape)


def _onto_l1_in_box(x: Array, c: Array, eps: Array, bounds: Any, moves: Array) -> Array:
    """The formula of the reference, in the dtype of x."""
    low, high = (np.broadcast_to(np.asarray(b, dtype=x.dtype), x.shape) for b in bounds)
    return np.asarray(exact.onto_l1(x, c, np.broadcast_to(eps, x.shape), low, high, moves))


def _onto(x: Array, c: Array, eps: Any, norm: Any, bounds: Bounds, moves: Array) -> Array:
    r = _length(eps, x)
    if norm in ("inf", INF):
        return _clip(np.minimum(np.maximum(x, c - r), c + r), bounds)
    if norm == 1 and (bounds is not None or not moves.all()):
        return _clip(_onto_l1_in_box(x, c, r, bounds or (-INF, INF), moves), bounds)
    if norm == 1:
        return _onto_l1(x, c, r)
    d = np.where(moves, x - c, x.dtype.type(0))
    length = np.sqrt(_sum(d * d))
    return _clip(np.where(length <= r, x, c + d * (r / np.where(length > 0, length, 1))), bounds)


def sign_step(x: Array, grad: Array, eps: Any, **options: Any) -> Any:
    """``clip(x + eps * sign(grad))``."""
    return steepest_step(x, grad, eps, **options)


def steepest_step(
    x: Array,
    grad: Array,
    step: Any,
    *,
    norm: Any = "inf",
    bounds: Bounds = None,
    targeted: bool = False,
    mask: Array | None = None,
    return_nan_count: bool = False,
) -> Any:
    """``clip(x + step * d)``."""
    z, moves = _compute(x), _moves(mask, x)
    y = _clip(_moved(z, grad, step, norm, targeted, moves), bounds)
    y = np.where(moves, y, z).astype(x.dtype, copy=False)
    return (y, int((np.isnan(grad) & moves).sum())) if return_nan_count else y


def project(
    x: Array, center: Array, eps: Any, *, norm: Any = "inf", bounds: Bounds = None, mask: Array | None = None
) -> Array:
    """``center + d * ...``, clipped."""
    z, moves = _compute(x), _moves(mask, x)
    y = _onto(z, _compute(center), eps, norm, bounds, moves)
    return np.where(moves, y, z).astype(x.dtype, copy=False)


def pgd_step(
    x: Array,
    center: Array,
    grad: Array,
    step: Any,
    eps: Any,
    *,
    norm: Any = "inf",
    bounds: Bounds = None,
    targeted: bool = False,
    mask: Array | None = None,
    momentum: Array | None = None,
    decay: float = 1.0,
    return_nan_count: bool = False,
) -> Any:
    """Step, project, clip."""
    z, moves = _compute(x), _moves(mask, x)
    along = grad if momentum is None else _momentum(momentum, grad, decay, mask)
    z = _moved(z, along, step, norm, targeted, moves)
    y = _onto(z, _compute(center), eps, norm, bounds, moves)
    y = np.where(moves, y, _compute(x)).astype(x.dtype, copy=False)
    return (y, int((np.isnan(grad) & moves).sum())) if return_nan_count else y


def _momentum(velocity: Array, grad: Array, decay: float, mask: Array | None) -> Array:
    v, g, moves = _compute(velocity), _compute(grad), _moves(mask, grad)
    g = np.where(moves & ~np.isnan(g), g, g.dtype.type(0))
    size = _sum(np.abs(g))
    new = v.dtype.type(decay) * v + g / np.where(size > 0, size, 1)
    return np.where(moves, new, v).astype(velocity.dtype, copy=False)


def momentum(velocity: Array, grad: Array, *, decay: float = 1.0, mask: Array | None = None) -> Array:
    """``decay * velocity + grad / |grad|_1``."""
    return _momentum(velocity, grad, decay, mask)


def random_in_ball(center: Array, eps: Any, *, norm: Any = "inf", rng: Any, bounds: Bounds = None) -> Array:
    """The reference's numbers, in float64, rounded to the dtype of center before they are added."""
    c = _compute(center)
    d = exact.random_in_ball(np.zeros(c.shape, np.float32), 1.0, norm=norm, rng=rng)
    return _clip(c + (_length(eps, c) * d).astype(c.dtype), bounds).astype(center.dtype, copy=False)
