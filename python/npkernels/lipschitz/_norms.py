"""Operator norms between other norms, and the product of layers."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array, floating, same_kind
from npkernels.lipschitz._bound import Bound
from npkernels.lipschitz._spectral import spectral_norm
from npkernels.perturb._arguments import INF, norm_code
from npkernels.perturb._attack import generator

ArrayLike = npt.ArrayLike
STARTS, ROUNDS = 32, 200  # of the ascent where no closed form is known


def operator_norm(w: ArrayLike, p: Any = 2, q: Any = 2, *, rng: np.random.Generator | int = 0) -> Bound:
    """Norm of a matrix as a map from norm p to norm q: ``max |w x|_q / |x|_p``.

    Parameters
    ----------
    w : array_like (m, n)
        The map x -> w x.
    p, q : "inf", 2 or 1
        1 -> q is the largest q-norm of a column, p -> inf the largest dual norm of a row, 2 -> 2 the spectral norm: in
        closed form. inf -> 2, inf -> 1 and 2 -> 1 are hard (the first two NP-hard [1]_); the best of 32 ascents is a
        lower bound.
    rng : numpy.random.Generator or int
        Of the ascents' starts.

    Returns
    -------
    Bound
        kind "upper" where the norm is exact, "lower" where it is what was found; with the x of norm 1 that attains it.

    Raises
    ------
    TypeError, ValueError
        If w is no matrix, or a norm is not in the list.

    References
    ----------
    .. [1] J. Rohn, "Computing the norm |A|_{inf,1} is NP-hard", Linear Multilinear Algebra 47, 2000.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> w = np.array([[1.0, -2.0], [3.0, 0.5]])
    >>> [float(npkernels.lipschitz.operator_norm(w, p, q)) for p, q in ((1, 1), ("inf", "inf"), (1, "inf"))]
    [4.0, 3.5, 3.0]
    """
    name = "operator_norm"
    a = floating(name, "w", w).astype(np.float64)
    if a.ndim != 2 or not a.size:
        raise ValueError(f"{name}: w has shape {a.shape}; expected a matrix with entries")
    source, target = norm_code(name, p), norm_code(name, q)
    if source == target == 2:
        return spectral_norm(w)
    top = float(np.abs(a).max())
    if not np.isfinite(top):
        return same_kind(Bound(top, "upper"), w)
    scale = 1.0
    if top > 0 and not 1e-100 < top < 1e100:  # squares stay in range
        scale = float(np.ldexp(1.0, int(np.clip(-np.frexp(top)[1], -1000, 1000))))
    b = _scaled(a * scale, source, target, generator(name, rng))
    with np.errstate(over="ignore"):
        return same_kind(Bound(float(np.divide(b.value, scale)), b.kind, b.direction), w)


def _scaled(a: Array, source: int, target: int, rng: np.random.Generator) -> Bound:
    """The norm of a matrix whose entries can be squared."""
    if source == 1:
        sizes = _size(a, target, axis=0)
        column = int(sizes.argmax())
        return Bound(float(sizes[column]), "upper", np.eye(a.shape[1])[column])
    if target == 0:
        sizes = _size(a, {0: 1, 2: 2}[source], axis=1)
        row, size = a[sizes.argmax()], float(sizes.max())
        if size == 0:  # of a zero matrix any direction will do
            return Bound(0.0, "upper", np.eye(a.shape[1])[0])
        return Bound(size, "upper", np.where(row < 0, -1.0, 1.0) if source == 0 else row / size)
    return _ascend(a, source, target, rng)


def _size(a: Array, code: int, axis: int) -> Array:
    if code == 0:
        return np.asarray(np.abs(a).max(axis=axis))
    return np.asarray(np.abs(a).sum(axis=axis) if code == 1 else np.sqrt((a * a).sum(axis=axis)))


def _ascend(a: Array, source: int, target: int, rng: np.random.Generator) -> Bound:
    """Climb by linearisation: x = argmax <g, x> over the ball of norm `source`, g the gradient of |a x|_target."""
    x = rng.standard_normal((a.shape[1], STARTS))
    x = np.sign(x) if source == 0 else x / _size(x, 2, axis=0)
    value = _size(a @ x, target, axis=0)
    for _ in range(ROUNDS):
        y = a @ x
        g = a.T @ (np.sign(y) if target == 1 else y)
        if source == 0:
            new = np.where(g >= 0, 1.0, -1.0)
        else:
            size = _size(g, 2, axis=0)
            new = np.where(size > 0, g / np.where(size > 0, size, 1), x)
        risen = _size(a @ new, target, axis=0)
        better = risen > value * (1 + 1e-15)
        if not better.any():
            break
        x, value = np.where(better, new, x), np.where(better, risen, value)
    best = int(value.argmax())
    return Bound(float(value[best]), "lower", x[:, best])


def product_bound(layers: Sequence[Any], *, norm: Any = 2) -> Bound:
    """Upper bound of a network's Lipschitz constant: the product of its layers' norms.

    Parameters
    ----------
    layers : sequence
        In any order: matrices (out, in) whose operator norm is taken, numbers (known constants, such as 1 for ReLU or
        1/4 for the logistic function), or `Bound` of kind "upper"; constants and bounds are taken to be of that norm.
    norm : "inf", 2 or 1
        Of inputs and outputs.

    Returns
    -------
    Bound
        kind "upper"; `details` holds the factors.

    Raises
    ------
    TypeError, ValueError
        If a layer is none of these; a bound of kind "lower" or "estimate" bounds nothing from above.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> float(npkernels.lipschitz.product_bound([np.diag([2.0, 1.0]), 0.25, np.array([[3.0, 0.0]])]))
    1.5
    """
    name = "product_bound"
    norm_code(name, norm)
    if not isinstance(layers, Sequence) or isinstance(layers, str | bytes):
        raise TypeError(f"{name}: layers is a {type(layers).__name__}; expected a sequence")
    factors = [_factor(name, i, layer, norm) for i, layer in enumerate(layers)]
    # a layer that is constant makes the network constant, whatever the others are
    value = 0.0 if 0.0 in factors and not np.isnan(factors).any() else _product(factors)
    return Bound(value, "upper", None, None, {"factors": factors})


def _product(factors: list[float]) -> float:
    """The product of numbers > 0, in any order: none between is lost, and what is below all numbers is the least."""
    value, exponent = 1.0, 0
    for factor in factors:
        mantissa, power = math.frexp(factor)
        value, shift = math.frexp(value * mantissa)
        exponent += power + shift
    if not 0 < value < INF:
        return value
    if exponent > sys.float_info.max_exp:
        return INF
    return max(math.ldexp(value, exponent), 5e-324)


def _factor(name: str, i: int, layer: Any, norm: Any) -> float:
    if isinstance(layer, Bound):
        if layer.kind != "upper":
            raise ValueError(f'{name}: layers[{i}] is a bound of kind "{layer.kind}"; expected "upper"')
        return float(layer)
    if isinstance(layer, int | float | np.integer | np.floating) and not isinstance(layer, bool):
        if not layer >= 0:
            raise ValueError(f"{name}: layers[{i}] is {layer}; expected a constant >= 0")
        return float(layer)
    w = floating(name, f"layers[{i}]", layer)
    if w.ndim != 2 or not w.size:
        raise ValueError(f"{name}: layers[{i}] has shape {w.shape}; expected a matrix, a number or a Bound")
    return float(operator_norm(w, norm, norm))
