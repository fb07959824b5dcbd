"""The state of an attack: where the samples are, which have succeeded, what was best, and the calls of callables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from npkernels._arrays import Array, _is_foreign, _to_kind, floating, plain
from npkernels.perturb._arguments import (
    INF,
    amount,
    check_broadcasts,
    check_samples,
    finite,
    mask_of,
    norm_code,
    sides,
)
from npkernels.perturb._random import random_in_ball
from npkernels.perturb._result import AttackError, AttackResult

Gradient = Callable[[Any], Any]
Flag = Callable[[Any], Any]


class Attack:
    """One attack on a batch. The callables see the kind of array that came in."""

    def __init__(
        self,
        name: str,
        x: Any,
        grad_fn: Any,
        eps: Any,
        norm: Any,
        bounds: Any,
        mask: Any,
        success: Any,
        targeted: bool,
    ) -> None:
        self.name, self.norm, self.targeted = name, norm, bool(targeted)
        self.foreign = x if _is_foreign(x) else None
        self.clean = floating(name, "x", x)
        self.code = norm_code(name, norm)
        check_samples(name, "x", self.clean, self.code)
        for what, f in (("grad_fn", grad_fn), ("success", success)):
            if not callable(f) and not (f is None and what == "success"):
                raise TypeError(f"{name}: {what} is {f!r}; expected a callable")
        self.grad_fn, self.success = grad_fn, success
        self.eps = eps
        finite(name, "eps", amount(name, "eps", eps, self.clean, self.code))
        low, high, lows, highs = sides(name, bounds, self.clean)
        inside = (self.clean >= (low if lows is None else lows)) & (
            self.clean <= (high if highs is None else highs)
        )
        if bounds is not None and not inside.all():
            raise ValueError(f"{name}: x lies outside the bounds; expected low <= x <= high")
        allowed = mask_of(name, mask)
        if allowed is not None:
            check_broadcasts(name, "mask", allowed, self.clean)
        self.options = {"norm": norm, "bounds": bounds, "mask": allowed}
        B = len(self.clean)
        self.x = self.clean.copy()
        self.best = self.x
        self.loss: Array | None = None
        self.best_loss = np.full(B, -INF)
        self.found = np.zeros(B, bool)
        self.found_step = np.full(B, -1, np.int64)
        self.steps = self.nans = 0

    # --- the callables

    def gradient(self) -> Array:
        """The gradient at x; losses, if they come with it, say which x is best."""
        given = self._call("grad_fn", self.grad_fn)
        losses, g = given if isinstance(given, tuple) and len(given) == 2 else (None, given)
        g = self._result("grad_fn", g, self.clean.shape)
        self.loss = None if losses is None else self._result("grad_fn (losses)", losses, self.clean.shape[:1])
        if self.loss is not None:
            value = -self.loss if self.targeted else self.loss
            self._keep((value > self.best_loss) & ~self.found, np.asarray(value, np.float64))
        self.nans += int(np.isnan(g).sum())
        return in_dtype(g, self.clean.dtype)

    def look(self) -> None:
        """Ask which samples have succeeded now; these stay."""
        if self.success is None:
            return
        flags = plain(self.name, "success", self._call("success", self.success))
        if flags.shape != self.found.shape or flags.dtype != np.bool_:
            raise ValueError(
                f"{self.name}: success gave shape {flags.shape} and dtype {flags.dtype}; "
                f"expected bool of shape {self.found.shape}"
            )
        new = flags & ~self.found
        self._keep(new)
        self.found = self.found | flags
        self.found_step[new] = self.steps

    def _call(self, what: str, f: Callable[[Any], Any]) -> Any:
        try:
            return f(self.x if self.foreign is None else _to_kind(self.x, self.foreign))
        except Exception as error:
            raise AttackError(
                f"{self.name}: {what} raised {type(error).__name__} after {self.steps} steps: {error}; "
                "what was found before is in .result",
                self.result(),
            ) from error

    def _result(self, what: str, value: Any, shape: tuple[int, ...]) -> Array:
        value = value.detach() if hasattr(value, "detach") else value
        array = floating(self.name, what, value)
        if array.shape != shape:
            raise ValueError(f"{self.name}: {what} gave shape {array.shape}; expected {shape}")
        return array

    # --- the samples

    def move(self, x: Array) -> None:
        """Go on to the next points, but for samples that have succeeded."""
        self.steps += 1
        self.x = self.where(self.found, self.best, x) if self.found.any() else x
        if self.success is None and self.loss is None:
            self.best = self.x

    def restart(self, rng: np.random.Generator) -> None:
        """Go to random points of the ball."""
        options = {k: v for k, v in self.options.items() if k != "mask"}
        x = random_in_ball(self.clean, self.eps, rng=rng, **options)
        if self.options["mask"] is not None:
            x = np.where(self.options["mask"], x, self.clean)
        self.x = self.where(self.found, self.best, x)

    def finish_run(self) -> None:
        """Judge the last points."""
        self.look()
        if self.loss is not None and not self.finished():
            self.gradient()
        elif self.loss is None:
            self.best = self.where(self.found, self.best, self.x)

    def finished(self) -> bool:
        """Whether every sample has succeeded."""
        return bool(self.found.all()) and self.success is not None

    def _keep(self, which: Array, value: Array | None = None) -> None:
        self.best = self.where(which, self.x, self.best)
        if value is not None:
            self.best_loss = np.where(which, value, self.best_loss)

    def where(self, which: Array, a: Array, b: Array) -> Array:
        """Samples of a where `which`, else of b."""
        return np.where(which.reshape(-1, *(1,) * (self.clean.ndim - 1)), a, b)

    def result(self) -> AttackResult:
        """What is known now."""
        judged = self.success is not None
        losses = -self.best_loss if self.targeted else self.best_loss
        found = AttackResult(
            self.best,
            self.found.copy() if judged else None,
            self.found_step.copy() if judged else None,
            distance(self.best, self.clean, self.code),
            self.norm,
            None if self.loss is None else losses,
            self.steps,
            self.nans,
        )
        return found if self.foreign is None else _to_kind(found, self.foreign)


def distance(x: Array, clean: Array, code: int) -> Array:
    """The norm of the difference of each sample."""
    d = np.abs(x.astype(np.float64) - clean.astype(np.float64)).reshape(len(x), int(np.prod(x.shape[1:])))
    if code == 0:
        return np.asarray(d.max(axis=1, initial=0))
    return np.asarray(d.sum(axis=1) if code == 1 else np.sqrt((d**2).sum(axis=1)))


def in_dtype(g: Array, dtype: np.dtype[Any]) -> Array:
    """The gradient in another dtype; scaled for each sample where rounding could lose it (no direction changes)."""
    if g.dtype == dtype:
        return g
    if g.dtype.itemsize > dtype.itemsize:
        size = np.abs(np.where(np.isfinite(g), g, 0)).reshape(len(g), int(np.prod(g.shape[1:])))
        top = size.max(axis=1, initial=0).reshape(-1, *(1,) * (g.ndim - 1))
        g = g / np.where(top > 0, top, 1)
    return g.astype(dtype)


def positive(name: str, what: str, n: Any) -> int:
    """A positive integer."""
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
        raise ValueError(f"{name}: {what} is {n!r}; expected a positive integer")
    return int(n)


def generator(name: str, rng: Any) -> np.random.Generator:
    """A generator: the one given, or one from a seed."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0:
        return np.random.default_rng(int(rng))
    raise TypeError(f"{name}: rng is {rng!r}; random starts need a numpy.random.Generator or an integer >= 0")


def counted(n: int, what: str, shown: bool) -> Iterable[int]:
    """Give 0 .. n-1, with a bar if that is wanted and possible."""
    if not shown:
        return range(n)
    from npkernels._cli.progress import progress

    return progress(range(n), what)
