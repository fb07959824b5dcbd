"""Tangent and normal directions of data, and how a function differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array, floating, same_kind
from npkernels.lipschitz._callables import Function, gradient_of, seen, values_of
from npkernels.lipschitz._local import samples_of, slopes_of
from npkernels.perturb._attack import distance, generator, in_dtype, positive
from npkernels.perturb._steps import Norm, steepest_step

ArrayLike = npt.ArrayLike
CLASSES = ("natural", "random", "tangent", "normal", "adversarial")


def tangent_basis(
    x: ArrayLike,
    neighbors: ArrayLike,
    *,
    k: int = 20,
    dim: int | None = None,
    variance: float | None = None,
    robust: bool = False,
) -> Array:
    """Orthonormal basis of the directions in which the neighbours of a point spread: local principal components.

    Parameters
    ----------
    x : array_like
        One point, of any shape.
    neighbors : array_like (N, ...)
        Points of the same kind (the same class); the k nearest to x that are finite and not x itself are used.
    k : int
        How many.
    dim, variance : int or float in (0, 1]
        How many components: so many, or as many as hold that share of the neighbours' variance (0.9 without either).
    robust : bool
        Leave out neighbours that are more than 3 times the median distance away from the median of all.

    Returns
    -------
    ndarray (q, ...)
        float64, orthonormal rows of x's shape, the largest variance first. None (q = 0) if the neighbours are all one
        point and dim is not given.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or range, or there are fewer than 2 neighbours.

    Notes
    -----
    Eigenvectors of the k x k Gram matrix of the centred neighbours, not of the covariance of all entries.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> t = np.linspace(-1, 1, 9)[:, None]
    >>> npkernels.lipschitz.tangent_basis(np.zeros(2), t * [3.0, 4.0], dim=1).round(6) ** 2
    array([[0.36, 0.64]])
    """
    name = "tangent_basis"
    point, pool = (
        floating(name, "x", x).astype(np.float64),
        floating(name, "neighbors", neighbors).astype(np.float64),
    )
    if pool.ndim != point.ndim + 1 or pool.shape[1:] != point.shape:
        raise ValueError(f"{name}: neighbors has shape {pool.shape}; expected (N, *{point.shape})")
    positive(name, "k", k)
    if dim is not None and variance is not None:
        raise ValueError(f"{name}: dim and variance are both given; expected one of them")
    if variance is not None and not (isinstance(variance, int | float | np.number) and 0 < variance <= 1):
        raise ValueError(f"{name}: variance is {variance!r}; expected a number in (0, 1]")
    near = _nearest(point.reshape(-1), pool.reshape(len(pool), point.size), k)
    if robust and len(near):
        away = np.linalg.norm(near - np.median(near, axis=0), axis=1)
        if (middle := np.median(away)) > 0:  # more than half of them are one point: no distance is unusual
            near = near[away <= 3 * middle]
    if len(near) < 2:
        raise ValueError(f"{name}: neighbors leaves {len(near)} points beside x; expected at least 2")
    centred = near - near.mean(axis=0)
    top = float(np.abs(centred).max(initial=0))
    centred = centred / (top if top > 0 else 1)  # lengths of any size
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    rank = int((values > 1e-12 * values[0]).sum())
    if dim is not None:
        q = positive(name, "dim", dim)
        if q > rank:
            raise ValueError(f"{name}: dim is {dim}; the neighbours span {rank} directions")
    else:
        share = 0.9 if variance is None else variance
        q = min(rank, int(np.searchsorted(np.cumsum(values) / max(values.sum(), 1e-300), share - 1e-12)) + 1)
    basis = _orthonormal((vectors[:, :q] / np.sqrt(values[:q])).T @ centred)
    return same_kind(np.asarray(basis.reshape(q, *point.shape)), x, neighbors)


def _orthonormal(rows: Array) -> Array:
    """What the small eigenvalues of a Gram matrix leave of orthogonality, mended; no row turns round."""
    q, r = np.linalg.qr(rows.T)
    return np.asarray((q * np.where(np.diag(r) < 0, -1.0, 1.0)).T)


def _nearest(point: Array, pool: Array, k: int) -> Array:
    """The k nearest points that are not x itself; what is not finite is nowhere near."""
    pool = pool[np.isfinite(pool).all(axis=1)]
    away = distance(pool, np.broadcast_to(point, pool.shape), 2)
    order = np.argsort(away, kind="stable")
    return np.asarray(pool[order[away[order] > 0][:k]])


def split(delta: ArrayLike, basis: ArrayLike) -> tuple[Array, Array]:
    """Split perturbations into their part in a tangent space and the rest, normal to it.

    Parameters
    ----------
    delta : array_like (..., *s)
        One perturbation of shape s or many.
    basis : array_like (q, *s)
        Orthonormal rows, as `tangent_basis` gives them.

    Returns
    -------
    tangent, normal : ndarray
        float64, of delta's shape; their sum is delta.

    Raises
    ------
    TypeError, ValueError
        If the shapes do not fit, or the rows are not orthonormal.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.lipschitz.split([3.0, 4.0], [[1.0, 0.0]])
    (array([3., 0.]), array([0., 4.]))
    """
    d, rows = (
        floating("split", "delta", delta).astype(np.float64),
        floating("split", "basis", basis).astype(np.float64),
    )
    shape = rows.shape[1:]
    if rows.ndim < 2 or d.shape[d.ndim - len(shape) :] != shape or d.ndim < len(shape):
        raise ValueError(
            f"split: delta has shape {d.shape}, basis {rows.shape}; expected (..., *s) and (q, *s)"
        )
    flat = rows.reshape(len(rows), int(np.prod(shape)))
    if not np.allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-6):
        raise ValueError(
            "split: the rows of basis are not orthonormal; expected a basis as tangent_basis gives"
        )
    return same_kind(_split(d, flat), delta, basis)


def _split(d: Array, rows: Array) -> tuple[Array, Array]:
    flat = d.reshape(d.size // rows.shape[1] if rows.shape[1] else 0, rows.shape[1])
    tangent = ((flat @ rows.T) @ rows).reshape(d.shape)
    return tangent, d - tangent


@dataclass(frozen=True, eq=False)
class Anisotropy:
    """Slopes of a function by class of direction.

    Attributes
    ----------
    slopes : dict
        For "natural", "random", "tangent", "normal" and "adversarial": (n, B) slopes ``|f(x + d) - f(x)| / |d|_2``.
    radius : array (B,)
        Length of the artificial directions in the norm that was asked for.
    tangent_share : array (B,)
        Which part of the squared length of the adversarial perturbation is tangent.
    """

    slopes: dict[str, Array]
    radius: Array
    tangent_share: Array

    def median(self, kind: str) -> float:
        """The median slope of a class, over directions and samples."""
        return float(np.median(self.slopes[kind]))

    def ratio(self, kind: str, to: str = "natural") -> float:
        """The median over samples of one class's median slope over another's; samples where both are 0 say nothing."""
        a, b = (np.median(self.slopes[c], axis=0) for c in (kind, to))
        known = (a != 0) | (b != 0)
        if not known.any():
            return float("nan")
        return float(np.median(np.divide(a, b, out=np.full(len(a), np.inf), where=b != 0)[known]))

    def table(self) -> str:
        """Median, 90 % quantile and ratio to natural of each class, as text."""
        lines = [f"{'direction':<12} {'median':>10} {'90 %':>10} {'to natural':>11}"]
        for kind, s in self.slopes.items():
            lines.append(
                f"{kind:<12} {np.median(s):>10.3g} {np.quantile(s, 0.9):>10.3g} {self.ratio(kind):>11.3g}"
            )
        return "\n".join(lines)


def anisotropy(
    f: Function,
    grad_fn: Function,
    x: ArrayLike,
    neighbors: ArrayLike | Sequence[ArrayLike],
    radius: ArrayLike,
    *,
    k: int = 10,
    dim: int | None = None,
    n: int = 20,
    norm: Norm = 2,
    rng: np.random.Generator | int = 0,
) -> Anisotropy:
    """Measure how steep a function is along natural, random, tangent, normal and adversarial directions.

    Parameters
    ----------
    f : callable
        x (B, ...) -> (B, ...), such as logits or losses.
    grad_fn : callable
        x -> gradient of the loss that the adversarial direction raises, or (losses, gradient).
    x : array_like (B, ...)
        The samples.
    neighbors : array_like (N, ...), or a sequence of B of them
        Natural points: one pool for all samples, or one for each (its class). Natural slopes are to the k nearest; the
        tangent space is that of `tangent_basis` with the same k and dim.
    radius : float or array_like (B,)
        Length of the artificial directions, > 0.
    n : int
        Random, tangent and normal directions of each sample.
    norm : "inf", 2 or 1
        By which the adversarial step is steepest and has the length radius. With "inf" the random directions are signs.
        Tangent and normal directions get the Euclidean length of the adversarial one, or that of a step of radius where
        the gradient is 0. Where there are none (a basis of all directions has no normal) their slopes are 0.
    rng : numpy.random.Generator or int
        Of the directions.

    Returns
    -------
    Anisotropy
        ``.slopes`` by class, ``.median(kind)``, ``.ratio(kind, to)``, ``.table()``, ``.tangent_share``.

    Raises
    ------
    TypeError, ValueError
        If an argument or what a callable gives has the wrong kind, shape or range.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> w = np.array([0.0, 10.0])  # flat along the data, steep across
    >>> data = np.linspace(-1, 1, 21)[:, None] * [1.0, 0.0]
    >>> f, g = (lambda x: x @ w + x[:, 0]), (lambda x: np.tile(w, (len(x), 1)))
    >>> report = npkernels.lipschitz.anisotropy(f, g, data[5:8], data, 0.1, dim=1)
    >>> round(report.median("natural"), 9), round(report.median("adversarial"), 9)
    (1.0, 10.0)
    """
    name = "anisotropy"
    points, r, code = samples_of(name, x, radius, norm)
    positive(name, "n", n)
    f, grad_fn = seen(name, "f", f, x), seen(name, "grad_fn", grad_fn, x)
    if not len(points):
        raise ValueError(f"{name}: x has shape {points.shape}; expected at least one sample")
    pools = _pools(name, neighbors, points)
    bases = [tangent_basis(p, pool, k=k, dim=dim) for p, pool in zip(points, pools, strict=True)]
    flat = [basis.reshape(len(basis), points[0].size) for basis in bases]
    random = generator(name, rng)
    at_x = values_of(name, f, points)

    def slopes(moved: Array) -> Array:
        return slopes_of(name, f, points, np.asarray(moved, points.dtype), at_x, 2)

    g = gradient_of(name, grad_fn, points)
    worst = steepest_step(points, in_dtype(g, points.dtype, code == 0), r, norm=norm)
    delta = worst.astype(np.float64) - points
    size = distance(worst, points, 2)
    euclid = np.where(
        size > 0, size, r * np.sqrt(points[0].size) if code == 0 else r
    )  # where the gradient is 0
    rows: dict[str, list[Array]] = {kind: [] for kind in CLASSES}
    near = [
        _nearest(p.reshape(-1).astype(np.float64), q.reshape(len(q), p.size), k)
        for p, q in zip(points, pools, strict=True)
    ]
    for i in range(min(len(m) for m in near)):
        rows["natural"].append(slopes(np.stack([m[i] for m in near]).reshape(points.shape)))
    for _ in range(n):
        d = random.standard_normal(points.shape)
        signs = np.sign(d) * r.reshape(-1, *(1,) * (points.ndim - 1)) if code == 0 else _scaled(d, euclid)
        rows["random"].append(slopes(points + signs))
        parts = [_split(one_d, basis) for one_d, basis in zip(d, flat, strict=True)]
        least = 1e-12 * distance(d, np.zeros(d.shape), 2)  # less is rounding: there are no such directions
        for kind, part in (("tangent", 0), ("normal", 1)):
            rows[kind].append(slopes(points + _scaled(np.stack([p[part] for p in parts]), euclid, least)))
    rows["adversarial"].append(slopes(worst))
    tangents = np.stack([_split(d, basis)[0] for d, basis in zip(delta, flat, strict=True)])
    share = (distance(tangents, np.zeros(tangents.shape), 2) / euclid) ** 2
    return Anisotropy({kind: np.stack(s) for kind, s in rows.items()}, r, share)


def _scaled(d: Array, length: Array, least: Any = 0.0) -> Array:
    """Each sample's d at that length; 0 where it is no longer than `least`."""
    size = distance(d, np.zeros(d.shape), 2)
    factor = np.divide(length, size, out=np.zeros_like(length), where=size > least)
    return np.asarray(d * factor.reshape(-1, *(1,) * (d.ndim - 1)))


def _pools(name: str, neighbors: Any, x: Array) -> list[Array]:
    if not isinstance(neighbors, list | tuple) and np.ndim(neighbors) == 0:
        raise TypeError(
            f"{name}: neighbors is {neighbors!r}; expected one array of points, or one for each sample"
        )
    one_for_all = not isinstance(neighbors, list | tuple) and np.ndim(neighbors) == x.ndim
    given = [neighbors] if one_for_all else list(neighbors)
    if not one_for_all and len(given) != len(x):
        raise ValueError(
            f"{name}: neighbors holds {len(given)} pools; expected one, or one for each of {len(x)} samples"
        )
    arrays = [floating(name, f"neighbors[{i}]", p).astype(np.float64) for i, p in enumerate(given)]
    for i, pool in enumerate(arrays):
        if pool.shape[1:] != x.shape[1:]:
            raise ValueError(f"{name}: neighbors[{i}] has shape {pool.shape}; expected (N, *{x.shape[1:]})")
    return arrays * len(x) if one_for_all else arrays


def off_manifold(score: ArrayLike, delta: ArrayLike, kappa: float) -> Array:
    """Test each perturbation by the score of a density: ``<score, delta> > kappa``.

    Parameters
    ----------
    score : array_like (B, ...)
        Gradient of the score at each sample. With the gradient of log P the test finds perturbations that climb the
        density; with its negative, those that leave the data.
    delta : array_like
        Perturbations, of the shape of score.
    kappa : float
        The threshold.

    Returns
    -------
    ndarray of bool (B,)
        Whether the product is larger, for each sample.

    Raises
    ------
    TypeError, ValueError
        If the shapes do not agree or kappa is no number.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> x = np.array([[1.0, 0.0], [1.0, 0.0]])  # of a standard normal density: grad log P = -x
    >>> npkernels.lipschitz.off_manifold(x, [[0.5, 0.0], [-0.5, 0.0]], 0.1)
    array([ True, False])
    """
    name = "off_manifold"
    s, d = (
        floating(name, "score", score).astype(np.float64),
        floating(name, "delta", delta).astype(np.float64),
    )
    if s.shape != d.shape or not s.ndim:
        raise ValueError(
            f"{name}: delta has shape {d.shape}, score {s.shape}; expected the same, samples first"
        )
    if not isinstance(kappa, int | float | np.integer | np.floating) or np.isnan(kappa):
        raise TypeError(f"{name}: kappa is {kappa!r}; expected a number")
    with np.errstate(over="ignore", invalid="ignore"):  # a product may be infinite
        product = (s * d).reshape(len(s), int(np.prod(s.shape[1:]))).sum(axis=1)
    return same_kind(np.asarray(product > kappa), score, delta)
