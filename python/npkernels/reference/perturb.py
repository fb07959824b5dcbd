"""Steps of adversarial perturbation and projections onto balls, as formulas.

x (B, ...): the first axis counts the samples, and norms are taken over everything behind it. g is the gradient, c the
centre of the ball, eps its radius. A step goes along the direction that gains most for its length,

    argmax <g, d> over |d|_p <= 1:   sign(g)    g / |g|_2    all on the largest |g_i| (ties share)     p = inf, 2, 1

Entries where the gradient is NaN do not move, and a gradient of zeros moves nothing. Infinite entries are the largest
there are. An entry whose mask is False keeps its value and counts nowhere. Bounds are applied last:
step, projection, clip. Only the projection onto the L1 ball takes them in: it is that onto the ball within the box.

A sample that is NaN somewhere, or infinitely far from its centre, has no projection by the norms 1 and 2: it is NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._common import Array, ArrayLike, BoolArray, as_array, as_mask, broadcast, check_shape, like, working
from ._philox import uniforms_of

__all__ = ["momentum", "pgd_step", "project", "random_in_ball", "sign_step", "steepest_step"]

INF = np.inf
Bounds = tuple[ArrayLike, ArrayLike] | None


# --- arguments


def power(function: str, norm: Any) -> float:
    """The norm as a number: 1, 2 or inf."""
    for p in (1.0, 2.0, INF):
        if not isinstance(norm, bool) and (norm == p or (p == INF and norm == "inf")):
            return p
    raise ValueError(f'{function}: norm is {norm!r}; expected "inf", 2 or 1')


def check_samples(function: str, name: str, x: Array, p: float) -> None:
    if x.ndim < (1 if p == INF else 2):
        raise ValueError(
            f"{function}: {name} has shape {x.shape}; expected samples along the first axis (pass x[None])"
        )


def radius(function: str, name: str, value: Any, x: Array, p: float) -> Array:
    """One number for each entry of x: from one for all, one for each sample, or (inf) one for each entry."""
    r = like(function, name, value, x)
    if r.ndim and r.shape == x.shape[:1]:
        r = r.reshape(-1, *(1,) * (x.ndim - 1))
    elif r.ndim and p != INF:
        raise ValueError(f"{function}: {name} has shape {r.shape}; expected one number or {x.shape[:1]}")
    if not (r >= 0).all():
        raise ValueError(f"{function}: {name} holds {r.min()}; expected numbers >= 0")
    return np.asarray(broadcast(function, name, r, x.shape))


def box(function: str, bounds: Bounds, x: Array, given: ArrayLike) -> tuple[Array, Array]:
    """The lower and the upper bound of each entry, rounded to the dtype of x as it was given."""
    low, high = (-INF, INF) if bounds is None else bounds
    a = broadcast(function, "bounds[0]", like(function, "bounds[0]", low, x), x.shape)
    b = broadcast(function, "bounds[1]", like(function, "bounds[1]", high, x), x.shape)
    if not (a <= b).all():
        raise ValueError(f"{function}: bounds are not in order; expected low <= high everywhere")
    dtype = as_array(given).dtype
    if dtype.kind in "biu":
        return a, b
    return a.astype(dtype).astype(x.dtype), b.astype(dtype).astype(x.dtype)


def check_inside(function: str, center: Array, low: Array, high: Array) -> None:
    if ((center < low) | (center > high)).any():
        raise ValueError(f"{function}: center lies outside the bounds; expected low <= center <= high")


# --- the formulas, on wide arrays of one shape


def over_samples(reduce: Any, x: Array) -> Array:
    """A reduction over everything but the first axis, which stays broadcastable."""
    return np.asarray(reduce(x, axis=tuple(range(1, x.ndim)), keepdims=True, initial=0))


def steepest(g: Array, p: float) -> Array:
    """The direction of norm 1 that gains most; g without NaN."""
    if p == INF:
        return np.asarray(np.sign(g))
    top = over_samples(np.max, np.abs(g))
    largest = (np.abs(g) == top) & (top > 0)
    signs = np.where(largest, np.sign(g), 0)
    if p == 1:
        return np.asarray(signs / np.maximum(over_samples(np.sum, largest.astype(g.dtype)), 1))
    scaled = np.where(top == INF, signs, g / np.where((top > 0) & (top < INF), top, 1))
    length = np.sqrt(over_samples(np.sum, scaled**2))
    return np.asarray(scaled / np.where(length > 0, length, 1))


def threshold(a: Array, room: Array, eps: Any) -> Any:
    """The t with ``sum(min(max(a - t, 0), room)) = eps``; a, room >= 0 and the sum at t = 0 is larger than eps.

    The sum falls from kink to kink in straight lines, and the kinks are known: the entries of a and of a - room.
    """
    kinks = np.unique(np.maximum(np.concatenate([[0], a, np.where(np.isfinite(room), a - room, 0)]), 0))

    def total(t: Any) -> Any:
        return np.minimum(np.maximum(a - t, 0), room).sum()

    first, last = 0, len(kinks) - 1  # total(first) > eps >= total(last) = 0
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if total(kinks[middle]) > eps else (first, middle)
    above, below = total(kinks[first]), total(kinks[last])
    return kinks[first] + (kinks[last] - kinks[first]) * (above - eps) / (above - below)


def onto_l1(x: Array, c: Array, eps: Array, low: Array, high: Array, moves: BoolArray) -> Any:
    """The nearest point of the L1 ball within the box, sample by sample."""
    y = x.copy()
    for b in range(len(x)):
        m = moves[b]
        d, r = (x[b] - c[b])[m], eps[b].flat[0] if eps[b].size else 0
        a, room = np.abs(d), np.where(d > 0, high[b][m] - c[b][m], c[b][m] - low[b][m])
        inside = np.minimum(a, room).sum()
        if inside <= r:
            continue
        if not np.isfinite(a).all():
            y[b][m] = np.nan
            continue
        t = threshold(a, room, r)
        y[b][m] = c[b][m] + np.sign(d) * np.minimum(np.maximum(a - t, 0), room)
    return y


def onto_l2(x: Array, c: Array, eps: Array, moves: BoolArray) -> Array:
    """``c + (x - c) min(1, eps / |x - c|)``."""
    d = np.where(moves, x - c, 0)
    top = over_samples(np.max, np.abs(d))
    scale = np.where(top > 0, top, 1)
    length = scale * np.sqrt(over_samples(np.sum, (d / scale) ** 2))
    length = np.where(top == INF, INF, length)
    shrunk = np.where(np.isfinite(length), c + d * (eps / np.where(length > 0, length, 1)), np.nan)
    return np.asarray(np.where(length <= eps, x, shrunk))


def clip(x: Array, low: Array, high: Array) -> Array:
    return np.asarray(np.minimum(np.maximum(x, low), high))


def onto_ball(x: Array, c: Array, eps: Array, low: Array, high: Array, moves: BoolArray, p: float) -> Array:
    """The projection, and then the clip."""
    if p == INF:
        return clip(clip(x, c - eps, c + eps), low, high)
    if p == 1:
        return clip(onto_l1(x, c, eps, low, high, moves), low, high)
    return clip(onto_l2(x, c, eps, moves), low, high)


def _moves(function: str, mask: ArrayLike | None, x: Array) -> BoolArray:
    allowed = as_mask(function, mask, x.shape)
    return np.ones(x.shape, bool) if allowed is None else allowed


def _stepped(
    x: Array, g: Array, step: Array, p: float, targeted: bool, moves: BoolArray
) -> tuple[Array, int]:
    """Give x after the step, and how many entries of the gradient are NaN."""
    unknown = np.isnan(g) & moves
    d = steepest(np.where(unknown | ~moves, 0, g), p)
    move = np.where(d == 0, 0, step * d)
    return x - move if targeted else x + move, int(unknown.sum())


def _answer(y: Array, nans: int, want_count: bool) -> Any:
    return (y, nans) if want_count else y


# --- the functions


@np.errstate(all="ignore")
def sign_step(
    x: ArrayLike,
    grad: ArrayLike,
    eps: ArrayLike,
    *,
    bounds: Bounds = None,
    targeted: bool = False,
    mask: ArrayLike | None = None,
    return_nan_count: bool = False,
) -> Any:
    """``clip(x + eps * sign(grad))``, minus if targeted.

    Examples
    --------
    >>> sign_step(np.float32([[0.5, 0.5, 0.9]]), np.float32([[2, 0, 1]]), 0.25, bounds=(0, 1))
    array([[0.75, 0.5 , 1.  ]])
    """
    return _step("sign_step", x, grad, eps, "eps", "inf", bounds, targeted, mask, return_nan_count)


@np.errstate(all="ignore")
def steepest_step(
    x: ArrayLike,
    grad: ArrayLike,
    step: ArrayLike,
    *,
    norm: Any = "inf",
    bounds: Bounds = None,
    targeted: bool = False,
    mask: ArrayLike | None = None,
    return_nan_count: bool = False,
) -> Any:
    """``clip(x + step * d)`` with the d of norm 1 that gains most.

    Examples
    --------
    >>> steepest_step(np.zeros((1, 2), np.float32), np.float32([[3, -4]]), 10.0, norm=2)
    array([[ 6., -8.]])
    >>> steepest_step(np.zeros((1, 2), np.float32), np.float32([[3, -4]]), 10.0, norm=1)
    array([[  0., -10.]])
    """
    return _step("steepest_step", x, grad, step, "step", norm, bounds, targeted, mask, return_nan_count)


def _step(
    function: str,
    x: ArrayLike,
    grad: ArrayLike,
    length: ArrayLike,
    name: str,
    norm: Any,
    bounds: Bounds,
    targeted: bool,
    mask: ArrayLike | None,
    want_count: bool,
) -> Any:
    given = x
    x, g = working(function, x=x, grad=grad)
    p = power(function, norm)
    check_samples(function, "x", x, p)
    check_shape(function, "grad", g, x.shape)
    moves = _moves(function, mask, x)
    low, high = box(function, bounds, x, given)
    y, nans = _stepped(x, g, radius(function, name, length, x, p), p, targeted, moves)
    return _answer(np.where(moves, clip(y, low, high), x), nans, want_count)


@np.errstate(all="ignore")
def project(
    x: ArrayLike,
    center: ArrayLike,
    eps: ArrayLike,
    *,
    norm: Any = "inf",
    bounds: Bounds = None,
    mask: ArrayLike | None = None,
) -> Array:
    """The point of the ball around center that is nearest to x; with norm 1 of the ball within the bounds.

    Examples
    --------
    >>> project(np.float32([[3, 4]]), np.float32([[0, 0]]), 1.0, norm=2)
    array([[0.6, 0.8]])
    >>> project(np.float32([[3, 4]]), np.float32([[0, 0]]), 1.0, norm=1)
    array([[0., 1.]])
    """
    given = x
    x, c = working("project", x=x, center=center)
    p = power("project", norm)
    check_samples("project", "x", x, p)
    check_shape("project", "center", c, x.shape)
    moves = _moves("project", mask, x)
    low, high = box("project", bounds, x, given)
    check_inside("project", c, low, high)
    y = onto_ball(x, c, radius("project", "eps", eps, x, p), low, high, moves, p)
    return np.asarray(np.where(moves, y, x))


@np.errstate(all="ignore")
def pgd_step(
    x: ArrayLike,
    center: ArrayLike,
    grad: ArrayLike,
    step: ArrayLike,
    eps: ArrayLike,
    *,
    norm: Any = "inf",
    bounds: Bounds = None,
    targeted: bool = False,
    mask: ArrayLike | None = None,
    momentum: ArrayLike | None = None,
    decay: float = 1.0,
    return_nan_count: bool = False,
) -> Any:
    """`steepest_step` without bounds, then `project`, then clip; along `momentum` of the gradient if that is given.

    Examples
    --------
    >>> x, g = np.float32([[0.5, 0.5]]), np.float32([[1, -1]])
    >>> pgd_step(x, x, g, 0.5, 0.25, bounds=(0, 0.6)).round(4)
    array([[0.6 , 0.25]])
    """
    given = x
    x, c, g = working("pgd_step", x=x, center=center, grad=grad)
    p = power("pgd_step", norm)
    check_samples("pgd_step", "x", x, p)
    check_shape("pgd_step", "center", c, x.shape)
    check_shape("pgd_step", "grad", g, x.shape)
    moves = _moves("pgd_step", mask, x)
    low, high = box("pgd_step", bounds, x, given)
    if p != INF:
        check_inside("pgd_step", c, low, high)
    length = radius("pgd_step", "step", step, x, p)
    direction = g
    if momentum is not None:
        v = like("pgd_step", "momentum", momentum, x)
        check_shape("pgd_step", "momentum", v, x.shape)
        direction = np.where(moves, _momentum("pgd_step", v, g, decay, moves), 0)
    z, _ = _stepped(x, direction, length, p, targeted, moves)
    nans = int((np.isnan(g) & moves).sum())
    y = onto_ball(z, c, radius("pgd_step", "eps", eps, x, p), low, high, moves, p)
    return _answer(np.where(moves, y, x), nans, return_nan_count)


@np.errstate(all="ignore")
def momentum(
    velocity: ArrayLike, grad: ArrayLike, *, decay: float = 1.0, mask: ArrayLike | None = None
) -> Array:
    """``decay * velocity + grad / |grad|_1`` for each sample (Dong et al. 2018, eq. 6).

    Examples
    --------
    >>> momentum(np.float32([[1, 0]]), np.float32([[1, -3]]))
    array([[ 1.25, -0.75]])
    """
    v, g = working("momentum", velocity=velocity, grad=grad)
    check_samples("momentum", "velocity", v, 1)
    check_shape("momentum", "grad", g, v.shape)
    moves = _moves("momentum", mask, v)
    return np.asarray(np.where(moves, _momentum("momentum", v, g, decay, moves), v))


def _momentum(function: str, v: Array, g: Array, decay: float, moves: BoolArray) -> Array:
    if not 0 <= decay < INF:
        raise ValueError(f"{function}: decay is {decay}; expected a finite number >= 0")
    g = np.where(np.isnan(g) | ~moves, 0, g)
    top = over_samples(np.max, np.abs(g))
    infinite = np.where(np.abs(g) == INF, np.sign(g), 0)
    scaled = np.where(top == INF, infinite, g / np.where((top > 0) & (top < INF), top, 1))
    size = over_samples(np.sum, np.abs(scaled))
    return np.asarray(decay * v + scaled / np.where(size > 0, size, 1))


@np.errstate(all="ignore")
def random_in_ball(
    center: ArrayLike, eps: ArrayLike, *, norm: Any = "inf", rng: Any, bounds: Bounds = None
) -> Array:
    """A point of the ball around center, uniformly, for each sample; then clipped to the bounds.

    inf: each entry by itself. 2: a normal vector over its length, times ``U^(1/d)``. 1: d of d + 1 exponentials over
    their sum, with random signs (both: Calafiore, Dabbene and Tempo 1998). The numbers are those of a counter (see
    `_philox`): entry j of sample b has the same for any number of samples.

    Examples
    --------
    >>> y = random_in_ball(np.zeros((2, 3), np.float32), [0, 1], norm=2, rng=7)
    >>> y[0].tolist(), bool((y[1] ** 2).sum() < 1)
    ([0.0, 0.0, 0.0], True)
    """
    (c,) = working("random_in_ball", center=center)
    p = power("random_in_ball", norm)
    check_samples("random_in_ball", "center", c, p)
    low, high = box("random_in_ball", bounds, c, center)
    check_inside("random_in_ball", c, low, high)
    r = radius("random_in_ball", "eps", eps, c, p)
    if not np.isfinite(r).all():
        raise ValueError("random_in_ball: eps is not finite")
    entries = int(np.prod(c.shape[1:]))
    u, signs, extra = uniforms_of(rng, len(c), entries)
    d = unit_ball(u.astype(c.dtype), signs.astype(c.dtype), extra.astype(c.dtype), entries, p)
    return clip(c + r * d.reshape(c.shape), low, high)


def unit_ball(u: Array, signs: Array, extra: Array, entries: int, p: float) -> Array:
    """Points of the unit ball from uniform numbers."""
    if p == INF:
        return 2 * u[:, :entries] - 1
    if p == 1:
        e = -np.log(u[:, :entries])
        return np.asarray(signs[:, :entries] * e / (e.sum(axis=1, keepdims=True) - np.log(extra)))
    n = normals(u)[:, :entries]
    length = np.sqrt((n**2).sum(axis=1, keepdims=True))
    return np.asarray(n * (extra ** (n.dtype.type(1) / max(entries, 1)) / length))


def normals(u: Array) -> Array:
    """Pairs of uniform numbers to pairs of normal ones (Box and Muller 1958)."""
    first, second = u[:, ::2], u[:, 1::2]
    length, angle = np.sqrt(-2 * np.log(first)), 8 * np.arctan(u.dtype.type(1)) * second
    d: Array = np.stack([length * np.cos(angle), length * np.sin(angle)], axis=-1)
    return d.reshape(u.shape)
