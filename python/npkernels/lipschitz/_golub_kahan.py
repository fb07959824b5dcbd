"""Golub-Kahan bidiagonalisation: the largest singular value of a map that is known by its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from npkernels._arrays import Array
from npkernels.lipschitz._bound import Bound
from npkernels.lipschitz._callables import values
from npkernels.perturb._attack import generator

Map = Callable[[Array], Any]
BASIS = 48  # vectors that are kept before a restart: memory is this many inputs and outputs
APART = 0.01  # of the norm: by so much <u, A v> and <A^T u, v> may differ, which is much for any rounding


def golub_kahan(
    name: str,
    jvp: Map,
    vjp: Map,
    shape: tuple[int, ...],
    tol: float,
    max_iter: int,
    rng: Any,
    check: bool = True,
) -> Bound:
    """The largest singular value of the map of inputs of that shape, and its right direction."""
    if not (isinstance(tol, float | int | np.floating) and tol > 0):
        raise ValueError(f"{name}: tol is {tol!r}; expected a number > 0")
    if not isinstance(max_iter, int | np.integer) or max_iter < 1:
        raise ValueError(f"{name}: max_iter is {max_iter!r}; expected a positive integer")
    start = generator(name, rng).standard_normal(shape).reshape(-1)
    if not start.size:
        return Bound(0.0, "lower", start.reshape(shape), 0.0, {"iterations": 0, "converged": True})
    products = _Products(name, jvp, vjp, shape)
    v = start / np.linalg.norm(start)
    done, value, residual = 0, 0.0, np.inf

    def bound(direction: Array | None) -> Bound:
        details = {"iterations": done, "converged": bool(residual <= tol)}
        at = None if direction is None else direction.reshape(shape)
        return Bound(value / products.scale, "lower", at, residual, details)

    rights = np.empty((BASIS + 1, v.size))  # v_0, v_1, ...; what is not reached is never touched
    lefts: Array | None = None
    while done < max_iter:
        rights[0] = v
        alphas: list[float] = []
        betas: list[float] = []
        for k in range(min(BASIS, max_iter - done)):
            u = products.ahead(rights[k])
            done += 1
            if lefts is None:
                lefts = np.empty((BASIS, u.size))
            u = _apart(u, lefts[:k])
            alphas.append(float(np.linalg.norm(u)))
            if not np.isfinite(alphas[k]):
                value = residual = np.nan
                return bound(None)
            if alphas[k] <= (1e-14 * value if k else 0.0):  # nothing is left: what was found is invariant
                alphas[k] = residual = 0.0
                _, s, right = np.linalg.svd(np.diag(alphas) + np.diag(betas, 1))
                value = float(s[0])
                return bound(right[0] @ rights[: k + 1])
            lefts[k] = u / alphas[k]
            back = products.back(lefts[k])
            w = _apart(back, rights[: k + 1])
            betas.append(float(np.linalg.norm(w)))
            if not np.isfinite(betas[k]):
                value = residual = np.nan
                return bound(None)
            left, s, right = np.linalg.svd(np.diag(alphas) + np.diag(betas[:-1], 1))
            value = float(s[0])
            if check:
                _check_transpose(name, alphas[k], float(back @ rights[k]), max(value, betas[k]))
            residual = betas[k] * abs(float(left[-1, 0])) / value if value > 0 else 0.0
            if residual <= tol or betas[k] <= 1e-14 * value:
                return bound(right[0] @ rights[: k + 1])
            rights[k + 1] = w / betas[k]
        v = right[0] @ rights[: k + 1]
        v = v / np.linalg.norm(v)
    return bound(v)


class _Products:
    """Products with a map and its transpose, of flat float64 vectors, scaled so that their squares are numbers."""

    def __init__(self, name: str, jvp: Map, vjp: Map, shape: tuple[int, ...]) -> None:
        self.name, self.jvp, self.vjp, self.shape = name, jvp, vjp, shape
        self.out_shape: tuple[int, ...] | None = None
        self.scale = 1.0

    def ahead(self, x: Array) -> Array:
        """A x."""
        y = values(self.name, "what jvp gave", self.jvp(x.reshape(self.shape).copy()))
        flat = np.array(y, np.float64).reshape(-1)
        if self.out_shape is None:
            self.out_shape = y.shape
            top = float(np.abs(flat).max(initial=0))
            if 0 < top < np.inf and not 1e-100 < top < 1e100:
                self.scale = float(np.ldexp(1.0, int(np.clip(-np.frexp(top)[1], -1000, 1000))))
        elif y.shape != self.out_shape:
            raise ValueError(
                f"{self.name}: jvp gave shape {y.shape}, and before {self.out_shape}; expected the same"
            )
        return flat * self.scale

    def back(self, y: Array) -> Array:
        """A^T y."""
        assert self.out_shape is not None
        x = values(self.name, "what vjp gave", self.vjp(y.reshape(self.out_shape).copy()))
        if x.shape != self.shape:
            raise ValueError(f"{self.name}: vjp gave shape {x.shape}; expected {self.shape}")
        return np.asarray(np.array(x, np.float64).reshape(-1) * self.scale)


def _check_transpose(name: str, there: float, back: float, norm: float) -> None:
    """Raise if <u, A v> and <A^T u, v> are different numbers: no direction would attain the value then."""
    if abs(there - back) > APART * norm:
        raise ValueError(
            f"{name}: vjp is not the transpose of jvp: <u, A v> is {there:.6g} and <A^T u, v> is {back:.6g}"
        )


def _apart(v: Array, basis: Array) -> Array:
    """What of v is orthogonal to the rows; twice is enough (Parlett)."""
    for _ in range(2 if len(basis) else 0):
        v = v - (basis @ v) @ basis
    return v
