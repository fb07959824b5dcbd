"""Gradients of losses that can only be evaluated: central differences, along the axes or along random directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array, _is_foreign, _to_kind, choice, floating, is_bfloat16, plain, real
from npkernels._uniform import _mix
from npkernels.perturb._arguments import Bounds, check_samples, sides
from npkernels.perturb._random import random_in_ball

ArrayLike = npt.ArrayLike
Loss = Callable[..., Any]
NAME = "finite_difference_gradient"
KINDS = ("sign", "sphere")


class FiniteDifferenceGradient:
    """What `finite_difference_gradient` makes: call it with samples, and it gives ``(losses, gradient)``.

    Attributes
    ----------
    evaluations : int
        How many points the loss was asked for so far.
    """

    def __init__(
        self,
        f: Loss,
        args: tuple[Array, ...],
        step: float | None,
        bounds: Bounds,
        directions: int | None,
        kind: str,
        seed: int,
        losses: bool,
        max_bytes: int,
    ) -> None:
        self.f, self.args, self.step, self.bounds = f, args, step, bounds
        self.directions, self.kind, self.seed = directions, kind, seed
        self.losses, self.max_bytes = losses, max_bytes
        self.evaluations = self._calls = 0

    def __call__(self, x: ArrayLike) -> Any:
        """Return losses (B,), float64, and the gradient, of x's shape and float64 for float64, else float32."""
        foreign = x if _is_foreign(x) else None
        a = floating(NAME, "x", x)
        check_samples(NAME, "x", a, 0)
        for i, arg in enumerate(self.args):
            if len(arg) != len(a):
                raise ValueError(
                    f"{NAME}: args[{i}] has {len(arg)} entries for {len(a)} samples; expected one for each"
                )
        wide = np.float64 if a.dtype == np.float64 else np.float32
        work = _Points(self, a.reshape(len(a), -1) if a.size else a.reshape(len(a), 0), a.shape, foreign)
        g = work.along_axes() if self.directions is None else work.along_random(self.directions)
        self._calls += 1
        result: Any = g.astype(wide, copy=False).reshape(a.shape)
        if self.losses:
            result = work.losses(), result
        return result if foreign is None else _to_kind(result, foreign)


class _Points:
    """One evaluation of a gradient at samples x (B, d)."""

    def __init__(
        self, owner: FiniteDifferenceGradient, x: Array, shape: tuple[int, ...], foreign: Any
    ) -> None:
        self.owner, self.x, self.shape, self.foreign = owner, x, shape, foreign
        low, high, lows, highs = sides(NAME, owner.bounds, x.reshape(shape))
        self.low, self.high = (
            s if a is None else np.broadcast_to(a, shape).reshape(x.shape)
            for s, a in ((low, lows), (high, highs))
        )
        self.block = max(2, owner.max_bytes // max(1, x.shape[1] * x.itemsize))

    def _evaluate(self, points: Array, samples: Array) -> Array:
        """Losses of points (n, d) that belong to these samples, float64."""
        given = [points.reshape(len(points), *self.shape[1:]), *(a[samples] for a in self.owner.args)]
        if self.foreign is not None:
            given = [_to_kind(a, self.foreign) for a in given]
        self.owner.evaluations += len(points)
        values: Any = self.owner.f(*given)
        values = real(NAME, "what f gave", values.detach() if hasattr(values, "detach") else values)
        if values.shape != (len(points),):
            raise ValueError(
                f"{NAME}: f gave shape {values.shape} for {len(points)} points; expected one loss for each"
            )
        return np.array(values, np.float64)  # a copy: f may give the same memory every time

    def losses(self) -> Array:
        """Losses at x itself."""
        every = np.arange(len(self.x))
        parts = [self._evaluate(self.x[b].copy(), every[b]) for b in _blocks(len(every), self.block)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _step(self, x: Array) -> Array:
        """How far to go on either side: the cube root of the rounding error balances it with the cut of the series."""
        if self.owner.step is not None:
            return np.full(x.shape, self.owner.step)
        eps = 2.0**-7 if is_bfloat16(x.dtype) else float(np.finfo(x.dtype).eps)
        h: Array = np.cbrt(eps) * np.maximum(1, np.abs(x.astype(np.float64)))
        return h

    def _pair(self, x: Array, ahead: Array, limits: tuple[Any, Any]) -> tuple[Array, Array]:
        """Points of x's dtype on either side, within the bounds."""
        with np.errstate(over="ignore", invalid="ignore"):  # of infinite entries
            there, back = (
                np.clip(x.astype(np.float64) + s * ahead, *limits).astype(x.dtype) for s in (1, -1)
            )
        return there, back

    def along_axes(self) -> Array:
        B, d = self.x.shape
        g = np.zeros((B, d))
        flat = g.reshape(-1)
        for block in _blocks(B * d, self.block // 2):
            sample, axis = np.divmod(np.arange(block.start, block.stop), d)
            x = self.x[sample, axis]
            limits = _at(self.low, sample, axis), _at(self.high, sample, axis)
            there, back = self._pair(x, self._step(x), limits)
            n = len(sample)
            points = np.concatenate([self.x[sample], self.x[sample]])
            points[np.arange(n), axis] = there
            points[n + np.arange(n), axis] = back
            values = self._evaluate(points, np.concatenate([sample, sample]))
            flat[block] = _quotient(_change(values, n), there.astype(np.float64) - back.astype(np.float64))
        return g

    def along_random(self, directions: int) -> Array:
        B, d = self.x.shape
        g = np.zeros((B, d))
        for i in range(directions if d else 0):
            u = self._direction(i)
            for block in _blocks(B, self.block // 2):
                x = self.x[block]
                h = (
                    self._step(x).max(axis=1, initial=0)[:, None]
                    if self.owner.step is None
                    else self.owner.step
                )
                there, back = self._pair(x, h * u[block], (_at(self.low, block), _at(self.high, block)))
                sample, n = np.arange(block.start, block.stop), len(x)
                values = self._evaluate(np.concatenate([there, back]), np.concatenate([sample, sample]))
                g[block] += (_change(values, n)[:, None] / (2 * h)) * u[block]
        return g / directions

    def _direction(self, i: int) -> Array:
        """Number i of this call: ±1 each, or a point of the sphere of radius sqrt(d). Both have E[u u^T] = 1."""
        call = (_mixed(self.owner.seed) + self.owner._calls) % 2**64
        key = (_mixed(call) + i) % 2**64
        ball = np.zeros(self.x.shape)
        if self.owner.kind == "sign":
            return np.where(random_in_ball(ball, 1.0, rng=key) < 0, -1.0, 1.0)
        u = random_in_ball(ball, 1.0, norm=2, rng=key)
        length = np.sqrt((u * u).sum(axis=1, keepdims=True))
        scaled: Array = u * (np.sqrt(u.shape[1]) / np.where(length > 0, length, 1))
        return scaled


def _mixed(n: int) -> int:
    return int(_mix(np.array([n], np.uint64))[0])


def _at(limit: Any, *places: Any) -> Any:
    return limit[places] if isinstance(limit, np.ndarray) else limit


def _change(values: Array, n: int) -> Array:
    """From the second n losses to the first; NaN where both are infinite."""
    with np.errstate(invalid="ignore"):
        return np.asarray(values[:n] - values[n:])


def _quotient(change: Array, distance: Array) -> Array:
    """The slope; 0 where the bounds leave no room."""
    return np.asarray(np.where(distance == 0, 0, change / np.where(distance == 0, 1, distance)))


def _blocks(n: int, size: int) -> Iterator[slice]:
    for first in range(0, n, size):
        yield slice(first, min(n, first + size))


def finite_difference_gradient(
    f: Loss,
    *,
    args: Sequence[ArrayLike] = (),
    step: float | None = None,
    bounds: Bounds = None,
    directions: int | None = None,
    kind: str = "sign",
    seed: int = 0,
    losses: bool = True,
    max_bytes: int = 2**26,
) -> FiniteDifferenceGradient:
    """Make a `grad_fn` for the attacks of a loss that can only be evaluated, by central differences.

    For models without gradients: ONNX Runtime sessions, trees, programs behind an interface. Without `directions` each
    entry is moved by itself, two evaluations an entry; with them the whole sample is moved along random directions,
    two evaluations each, and the mean of ``(f(x + h u) - f(x - h u)) / (2 h) u`` estimates the gradient (SPSA [1]_, and
    NES [2]_ with antithetic pairs).

    Parameters
    ----------
    f : callable
        ``f(points, *args)`` -> losses (n,): points (n, ...) of x's kind, dtype and shape of a sample, n any number, and
        the entries of `args` for the samples to which the points belong.
    args : sequence of array_like (B, ...)
        What f needs to know of each sample: labels.
    step : float, optional
        How far to go on either side, in the units of x. Default: the cube root of the rounding error of x's dtype
        times ``max(1, |x|)``, as in SciPy: 6e-6 for float64, 5e-3 for float32. A loss that is only float32 inside
        needs a step for that, also for x of float64.
    bounds : (low, high), optional
        As for `sign_step`. Points are clipped to them, and along the axes the quotient is taken over the distance that
        is left.
    directions : int, optional
        Random directions, in place of the axes.
    kind : {"sign", "sphere"}
        Of the directions: entries of ±1 (SPSA), or uniform on the sphere (NES).
    seed : int
        In [0, 2^64). Entry j of direction i of sample b in call c is a function of these and the seed, from the
        counter of `random_in_ball`.
    losses : bool
        Give the losses at x, too (one evaluation a sample), by which the attacks choose.
    max_bytes : int
        Of the points of one evaluation: so many are given to f at once, at least two.

    Returns
    -------
    FiniteDifferenceGradient
        x -> (losses (B,), gradient of x's shape), or the gradient alone; arrays of the kind that came in. float64
        for float64, else float32. ``.evaluations`` counts the points.

    Raises
    ------
    TypeError, ValueError
        If an argument, or later what f gives, has the wrong type, shape or range. What f raises goes through.

    References
    ----------
    .. [1] J. Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation",
       IEEE Trans. Automatic Control 37, 1992.
    .. [2] A. Ilyas et al., "Black-box adversarial attacks with limited queries and information", ICML 2018.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> perturb = npkernels.perturb
    >>> def loss(x, y):  # of a model that cannot be differentiated
    ...     return ((x - y[:, None]) ** 2).sum(axis=1)
    >>> grad_fn = perturb.finite_difference_gradient(loss, args=([1.0],))
    >>> losses, gradient = grad_fn(np.zeros((1, 3)))
    >>> losses, gradient.round(6), grad_fn.evaluations
    (array([3.]), array([[-2., -2., -2.]]), 7)
    >>> perturb.pgd(np.zeros((1, 3)), grad_fn, eps=0.5, steps=5).x
    array([[-0.5, -0.5, -0.5]])
    """
    if not callable(f):
        raise TypeError(f"{NAME}: f is {f!r}; expected a callable")
    if isinstance(args, np.ndarray | str) or not isinstance(args, Sequence):
        raise TypeError(f"{NAME}: args is a {type(args).__name__}; expected a tuple of arrays")
    if step is not None and not (isinstance(step, int | float | np.number) and 0 < step < np.inf):
        raise ValueError(f"{NAME}: step is {step!r}; expected a finite number > 0")
    choice(NAME, "kind", kind, KINDS)
    for name, value, least, most in (
        ("directions", 1 if directions is None else directions, 1, None),
        ("seed", seed, 0, 2**64),
        ("max_bytes", max_bytes, 1, None),
    ):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value >= most):
            end = "" if most is None else " below 2^64"
            raise ValueError(f"{NAME}: {name} is {value!r}; expected an integer >= {least}{end}")
    given = tuple(plain(NAME, f"args[{i}]", a) for i, a in enumerate(args))
    for i, a in enumerate(given):
        if a.ndim == 0:
            raise ValueError(f"{NAME}: args[{i}] is a single number; expected an entry for each sample")
    return FiniteDifferenceGradient(
        f,
        given,
        None if step is None else float(step),
        bounds,
        None if directions is None else int(directions),
        kind,
        int(seed),
        bool(losses),
        int(max_bytes),
    )
