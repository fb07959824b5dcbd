"""The state of an attack: where the samples are, which have succeeded, what was best, and the calls of callables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from npkernels._arrays import Array, _is_foreign, _to_kind, compute_dtype, floating, plain
from npkernels.perturb._arguments import (
    amount,
    check_broadcasts,
    check_samples,
    finite,
    flag,
    mask_of,
    norm_code,
    sides,
)
from npkernels.perturb._random import random_start
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
        self.name, self.norm, self.targeted = name, norm, flag(name, "targeted", targeted)
        self.foreign = x if _is_foreign(x) else None
        self.clean = floating(name, "x", x)
        self.code = norm_code(name, norm)
        self.signs = self.code == 0  # nothing else of a gradient counts
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
        self.best_loss = np.full(B, np.nan)  # of `best`; NaN where it is not known
        self.found = np.zeros(B, bool)
        self.found_step = np.full(B, -1, np.int64)
        self.steps = self.nans = 0

    # --- the callables

    def gradient(self) -> Array:
        """The gradient at x; losses, if they come with it, say which x is best."""
        given = self._call("grad_fn", self.grad_fn)
        losses, g = given if isinstance(given, tuple) and len(given) == 2 else (None, given)
        g = self._result("grad_fn", g, self.clean.shape)
        self.loss = None
        if losses is not None:  # a copy: a callable may give the same memory every time
            self.loss = np.array(self._result("grad_fn (losses)", losses, self.clean.shape[:1]), np.float64)
            value = -self.loss if self.targeted else self.loss
            better = (value > self.best_loss) | np.isnan(self.best_loss)
            # a sample that has succeeded is at its best
            self._keep(np.where(self.found, np.isnan(self.best_loss), better & ~np.isnan(value)), value)
        return in_dtype(g, self.clean.dtype, self.signs)

    def look(self) -> None:
        """Ask which samples have succeeded now; these stay."""
        if self.success is None:
            return
        flags = plain(self.name, "what success gave", self._call("success", self.success))
        if flags.shape != self.found.shape or flags.dtype != np.bool_:
            raise ValueError(
                f"{self.name}: success gave shape {flags.shape} and dtype {flags.dtype}; "
                f"expected bool of shape {self.found.shape}"
            )
        new = flags & ~self.found
        self._keep(new, np.full(len(new), np.nan))
        self.found = self.found | flags
        self.found_step[new] = self.steps

    def _call(self, what: str, f: Callable[[Any], Any]) -> Any:
        try:
            x = self.x.copy()  # a callable may scale it in place
            return f(x if self.foreign is None else _to_kind(x, self.foreign))
        except Exception as error:
            raise AttackError(
                f"{self.name}: {what} raised {type(error).__name__} after {self.steps} steps: {error}; "
                "what was found before is in .result",
                self.result(),
            ) from error

    def _result(self, what: str, value: Any, shape: tuple[int, ...]) -> Array:
        value = value.detach() if hasattr(value, "detach") else value
        array = floating(self.name, f"what {what} gave", value)
        if array.shape != shape:
            raise ValueError(f"{self.name}: {what} gave shape {array.shape}; expected {shape}")
        return array

    # --- the samples

    def move(self, x: Array, g: Array) -> None:
        """Go on to the next points, where the gradient led, but for samples that have succeeded."""
        self.steps += 1
        self.nans += int(np.isnan(g).sum())
        self.x = self.where(self.found, self.best, x) if self.found.any() else x

    def restart(self, rng: np.random.Generator) -> None:
        """Go to random points of the ball."""
        x = random_start(self.name, self.clean, self.eps, rng, **self.options)
        self.x = self.where(self.found, self.best, x)

    def finish_run(self) -> None:
        """Judge the last points."""
        self.look()
        self.complete()

    def complete(self) -> None:
        """Ask for the losses of the last points, and of those that have succeeded, where losses are given."""
        if self.loss is not None and (not self.finished() or np.isnan(self.best_loss).any()):
            self.gradient()

    def finished(self) -> bool:
        """Whether every sample has succeeded."""
        return bool(self.found.all()) and self.success is not None

    def _keep(self, which: Array, value: Array) -> None:
        self.best = self.where(which, self.x, self.best)
        self.best_loss = np.where(which, value, self.best_loss)

    def where(self, which: Array, a: Array, b: Array) -> Array:
        """Samples of a where `which`, else of b."""
        return np.where(which.reshape(-1, *(1,) * (self.clean.ndim - 1)), a, b)

    def result(self) -> AttackResult:
        """What is known now."""
        judged = self.success is not None
        losses = -self.best_loss if self.targeted else self.best_loss
        best = self.where(self.found, self.best, self.x) if self.loss is None else self.best
        found = AttackResult(
            best,
            self.found.copy() if judged else None,
            self.found_step.copy() if judged else None,
            distance(best, self.clean, self.code),
            self.norm,
            None if self.loss is None else losses,
            self.steps,
            self.nans,
        )
        return found if self.foreign is None else _to_kind(found, self.foreign)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the attack bears what was found before as `result`: a wrong shape, Ctrl-C."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, AttackError):
                error.result = self.result()  # type: ignore[attr-defined]
            raise


def distance(x: Array, clean: Array, code: int) -> Array:
    """The norm of the difference of each sample, of any size."""
    d = np.abs(x.astype(np.float64) - clean.astype(np.float64)).reshape(len(x), int(np.prod(x.shape[1:])))
    top = d.max(axis=1, initial=0)
    if code == 0:
        return np.asarray(top)
    if code == 1:
        return np.asarray(d.sum(axis=1))
    scale = np.exp2(
        np.frexp(np.where(np.isfinite(top), top, 1))[1].clip(-1000, 1000)
    )  # squares stay in range
    return np.asarray(scale * np.sqrt(((d / scale[:, None]) ** 2).sum(axis=1)))


def in_dtype(g: Array, dtype: np.dtype[Any], signs: bool = False) -> Array:
    """The gradient in another dtype; scaled for each sample where rounding could lose it (no direction changes).

    Where only its signs count, these: float16 has no room for entries that are 10^8 times smaller than others.
    """
    if g.dtype == dtype:
        return g
    if signs:
        return np.asarray(np.sign(g).astype(dtype))
    if g.dtype.itemsize >= dtype.itemsize:  # bfloat16 reaches further than float16
        g = g.astype(compute_dtype(g.dtype), copy=False)
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
