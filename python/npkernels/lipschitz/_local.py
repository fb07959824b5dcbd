"""Local constants from values and gradients: secants, ascents, extreme values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array, floating, same_kind
from npkernels.lipschitz._bound import Bound
from npkernels.lipschitz._callables import Function, gradient_of, seen, values_of
from npkernels.lipschitz._weibull import fit_maxima
from npkernels.perturb._arguments import amount, check_samples, finite, norm_code, sides
from npkernels.perturb._attack import distance, generator, in_dtype, positive
from npkernels.perturb._random import random_in_ball
from npkernels.perturb._steps import Norm, pgd_step

ArrayLike = npt.ArrayLike


def slopes_of(name: str, f: Function, x: Array, moved: Array, at_x: Array, norm: int) -> Array:
    """``|f(moved) - f(x)|_2 / |moved - x|``, 0 where nothing moved."""
    there = values_of(name, f, moved)
    if there.shape != at_x.shape:
        raise ValueError(
            f"{name}: f gave {there.shape[1]} numbers for a sample, and before {at_x.shape[1]}; expected as many"
        )
    with np.errstate(invalid="ignore", over="ignore"):  # where f is infinite
        rise, run = distance(there, at_x, 2), distance(moved, x, norm)
    return np.asarray(np.divide(rise, run, out=np.zeros_like(rise), where=run != 0))  # a NaN stays one


def samples_of(name: str, x: Any, radius: Any, norm: Any) -> tuple[Array, Array, int]:
    """The samples, a radius > 0 for each, and the norm as a code."""
    points = floating(name, "x", x)
    code = norm_code(name, norm)
    check_samples(name, "x", points, 1)
    one, each = finite(name, "radius", amount(name, "radius", radius, points, 1))
    r = np.full(len(points), one) if each is None else each
    if not (r > 0).all():
        raise ValueError(f"{name}: radius holds 0; expected numbers > 0")
    return points, r, code


def _column(r: Array, x: Array) -> Array:
    return r.reshape(-1, *(1,) * (x.ndim - 1))


def local_lipschitz(
    f: Function,
    x: ArrayLike,
    radius: ArrayLike,
    *,
    n: int = 100,
    norm: Norm = 2,
    directions: str | ArrayLike = "gaussian",
    quantiles: Sequence[float] = (0.5, 0.9, 0.99),
    rng: np.random.Generator | int = 0,
) -> Bound:
    """Slopes of f along random secants from each sample: ``|f(x + d) - f(x)|_2 / |d|`` with ``|d| = radius``.

    Parameters
    ----------
    f : callable
        x (B, ...) -> (B, ...): one row for each sample.
    x : array_like (B, ...)
        The samples. Any CPU array; f gets its kind.
    radius : float or array_like (B,)
        Length of the secants in `norm`, > 0.
    n : int
        Secants of each sample.
    norm : "inf", 2 or 1
        Of the inputs; outputs are measured by their Euclidean norm.
    directions : "gaussian", "sign" or array_like (n, ...)
        Normal vectors, random signs, or given ones, the same for all samples; scaled to the radius.
    quantiles : sequence of float
        Of the slopes of a sample, in ``details["quantiles"]``, (len(quantiles), B).
    rng : numpy.random.Generator or int
        Of the directions.

    Returns
    -------
    Bound
        kind "lower": value (B,) the largest slope of each sample, direction (B, ...) the perturbation that had it;
        ``details["slopes"]`` is (n, B). A weak bound: in 64 dimensions a hundred directions find about 40 % of a linear
        map's norm. `adversarial_lipschitz` climbs. NaN where f is NaN at one of the points.

    Raises
    ------
    TypeError, ValueError
        If an argument or what f gives has the wrong kind, shape or range.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> b = npkernels.lipschitz.local_lipschitz(lambda x: 3 * x, np.zeros((1, 2)), 0.5, n=10)
    >>> round(float(b), 12), b.kind
    (3.0, 'lower')
    """
    name = "local_lipschitz"
    points, r, code = samples_of(name, x, radius, norm)
    positive(name, "n", n)
    f = seen(name, "f", f, x)
    random = generator(name, rng)
    shares = floating(name, "quantiles", quantiles).astype(np.float64).reshape(-1)
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"{name}: quantiles is {quantiles!r}; expected numbers from 0 to 1")
    shape = points.shape[1:]
    if isinstance(directions, str):
        if directions not in ("gaussian", "sign"):
            raise ValueError(f'{name}: directions is {directions!r}; expected "gaussian", "sign" or an array')
        given = None
    else:
        given = floating(name, "directions", directions).astype(np.float64)
        if given.shape[1:] != shape or not len(given):
            raise ValueError(f"{name}: directions has shape {given.shape}; expected (n, *{shape})")
        if not np.isfinite(given).all():
            raise ValueError(f"{name}: directions holds NaN or inf; expected finite numbers")
        n = len(given)
    at_x = values_of(name, f, points)
    slopes, best = np.zeros((n, len(points))), np.zeros(points.shape)
    for i in range(n):
        if given is not None:
            d = np.broadcast_to(given[i], points.shape)
        else:
            d = random.standard_normal(points.shape)
            d = np.sign(d) if directions == "sign" else d
        size = distance(np.asarray(d), np.zeros(points.shape), code)
        d = d * _column(np.divide(r, size, out=np.zeros_like(r), where=size > 0), points)
        moved = (points.astype(np.float64) + d).astype(points.dtype)
        slopes[i] = slopes_of(name, f, points, moved, at_x, code)
        rose = slopes[i] >= slopes[: i + 1].max(axis=0)
        best = np.where(_column(rose, points), d, best)
    details = {"slopes": slopes, "quantiles": np.quantile(slopes, shares, axis=0)}
    return same_kind(Bound(slopes.max(axis=0), "lower", best, None, details), x)


def adversarial_lipschitz(
    f: Function,
    grad_fn: Function,
    x: ArrayLike,
    radius: ArrayLike,
    *,
    steps: int = 20,
    step: ArrayLike | None = None,
    norm: Norm = 2,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    rng: np.random.Generator | int = 0,
) -> Bound:
    """Largest slope of f along the way of an attack: secants from each sample to the iterates of gradient ascent.

    Parameters
    ----------
    f : callable
        x (B, ...) -> (B, ...): what the slopes are of.
    grad_fn : callable
        x -> gradient of what is climbed, or (losses, gradient): of f itself if it is one number, else of a loss.
    steps, step
        Of the ascent: how many, and how long (without it ``2.5 radius / steps``). The first goes straight to the
        radius.
    bounds : (low, high), optional
        x must lie within, and stays.
    x, radius, norm, rng
        And returns and errors as for `local_lipschitz`; rng is of a random direction where the gradient is 0.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> w = np.array([3.0, 4.0])
    >>> f, g = (lambda x: x @ w), (lambda x: np.tile(w, (len(x), 1)))
    >>> round(float(npkernels.lipschitz.adversarial_lipschitz(f, g, np.zeros((1, 2)), 0.5)), 12)
    5.0
    """
    name = "adversarial_lipschitz"
    points, r, code = samples_of(name, x, radius, norm)
    positive(name, "steps", steps)
    length: Any = r * (2.5 / steps)
    if step is not None:
        one, each = finite(name, "step", amount(name, "step", step, points, 1))
        length = one if each is None else each
    low, high, lows, highs = sides(name, bounds, points)
    a, b = (low if lows is None else lows), (high if highs is None else highs)
    if bounds is not None and not ((points >= a) & (points <= b)).all():
        raise ValueError(f"{name}: x lies outside the bounds; expected low <= x <= high")
    f, grad_fn = seen(name, "f", f, x), seen(name, "grad_fn", grad_fn, x)
    random = generator(name, rng)
    at_x = values_of(name, f, points)
    value, best = np.zeros(len(points)), np.zeros(points.shape)
    now = points
    for k in range(steps + 1):
        g = in_dtype(gradient_of(name, grad_fn, now), points.dtype, code == 0)
        still = (g == 0).all(axis=tuple(range(1, g.ndim)))
        if still.any():
            noise = random.standard_normal(g.shape).astype(g.dtype)
            g = np.where(_column(still, points), noise, g)
        now = pgd_step(now, points, g, r if k == 0 else length, r, norm=norm, bounds=bounds)
        slope = slopes_of(name, f, points, now, at_x, code)
        rose = (slope > value) | np.isnan(slope)
        value = np.where(rose, slope, value)
        best = np.where(_column(rose, points), now.astype(np.float64) - points, best)
    return same_kind(Bound(value, "lower", best, None, {"steps": steps + 1}), x)


def clever(
    grad_fn: Function,
    x: ArrayLike,
    radius: ArrayLike,
    *,
    batches: int = 50,
    batch_size: int = 64,
    norm: Norm = 2,
    rng: np.random.Generator | int = 0,
) -> Bound:
    """CLEVER: the local Lipschitz constant of one function by extreme-value theory on sampled gradient norms.

    Parameters
    ----------
    grad_fn : callable
        x (B, ...) -> gradient of f, of x's shape, or (values, gradient).
    x : array_like (B, ...)
        The samples.
    radius : float or array_like (B,)
        Of the balls in which gradients are sampled, uniformly, > 0.
    batches, batch_size : int
        The largest dual norm of the gradient in each of `batches` batches is kept for each sample.
    norm : "inf", 2 or 1
        Of the inputs; the gradient is measured by the dual norm.
    rng : numpy.random.Generator or int
        Of the points.

    Returns
    -------
    Bound
        kind "estimate": value (B,) is the end point of the reverse Weibull law that fits the maxima best;
        ``details["maxima"]`` is (batches, B), ``details["fits"]`` holds for each sample shape, location, scale and the
        Kolmogorov-Smirnov distance of the fit. Where all maxima are equal the value is that.

    Raises
    ------
    TypeError, ValueError
        If an argument or what grad_fn gives has the wrong kind, shape or range.

    References
    ----------
    .. [1] T.-W. Weng et al., "Evaluating the robustness of neural networks: an extreme value theory approach",
       ICLR 2018.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> g = lambda x: np.tile([3.0, 4.0], (len(x), 1))
    >>> float(npkernels.lipschitz.clever(g, np.zeros((1, 2)), 0.5, batches=5))
    5.0
    """
    name = "clever"
    points, r, code = samples_of(name, x, radius, norm)
    positive(name, "batches", batches)
    positive(name, "batch_size", batch_size)
    grad_fn, random = seen(name, "grad_fn", grad_fn, x), generator(name, rng)
    dual = {0: 1, 1: 0, 2: 2}[code]
    maxima = np.zeros((batches, len(points)))
    for i in range(batches):
        for _ in range(batch_size):
            g = gradient_of(name, grad_fn, random_in_ball(points, r, norm=norm, rng=random))
            maxima[i] = np.maximum(maxima[i], distance(g, np.zeros(g.shape), dual))
    fits = [fit_maxima(column) for column in maxima.T]
    found = np.array([fit.location for fit in fits])
    return same_kind(Bound(found, "estimate", None, None, {"maxima": maxima, "fits": fits}), x)
