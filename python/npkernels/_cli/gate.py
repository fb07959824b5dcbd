"""The accuracy gate: how far a kernel's result may be from the reference.

    error <= 2 x the error of the plain formula + 2 ulp of the largest entry

Errors are the largest over an array, against `npkernels.reference` (float64; longdouble for float64 inputs). The plain
formula is the same function as `plain` has it: NumPy in the dtype of the input, float32 for 16-bit inputs, rounded once
to the dtype of the result. The ulp is that of the result's dtype at the reference's largest finite entry. The rule is
flash-attention's (|out - ref| <= 2 |low-precision ref - ref| + a little), with the "little" stated in ulp.

The formula leaves the order of its sums open, and one order may be lucky, above all where a single row decides the
error of an array. So the error of the plain formula is the largest over `MOST` orders: 2 x that is beyond 4 standard
deviations of a result that is as exact. More orders only allow more, so they are tried until a result passes.

NaN and inf are exact: they must stand where the reference, rounded to the dtype of the result, has them. Where only the
plain formula is not finite, that entry earns no allowance. Integers and booleans must be equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from npkernels import reference
from npkernels._arrays import Array
from npkernels._cli import plain
from npkernels._cli.plain import sums
from npkernels._grpo_types import GroupAdvantages

FIRST, MOST = 4, 40  # orders of summation that are tried at once, and at most


@dataclass(frozen=True)
class Verdict:
    """One array of a result beside the reference.

    Attributes
    ----------
    place : str
        Which array: "" for a lone one, "[1]" of a tuple, ".entropy" of a dataclass.
    error, allowance : float
        Largest absolute error, and how large it may be; error is inf for a wrong NaN, inf, integer, shape or dtype.
    ulp : float
        The distance between neighbours at the largest entry.
    text : str
        What is wrong, and where; empty if nothing is.
    """

    place: str
    error: float
    allowance: float
    ulp: float
    text: str

    @property
    def passed(self) -> bool:
        """Whether the error is within its allowance."""
        return not self.text

    @property
    def error_in_ulp(self) -> float:
        """The error in ulp of the largest entry."""
        return self.error / self.ulp if self.error else 0.0

    @property
    def share(self) -> float:
        """The error as a share of its allowance; above 1 is a failure."""
        if not self.error:
            return 0.0
        return self.error / self.allowance if self.allowance else np.inf


@dataclass
class _Leaf:
    """What one array of a result is judged by."""

    exact: Array  # the reference, wide
    dtype: np.dtype[Any]
    ulp: float
    plain_error: float = 0.0

    @classmethod
    def of(cls, exact: Array, dtype: np.dtype[Any]) -> _Leaf:
        if dtype.kind in "iub":
            return cls(exact, dtype, 1.0)
        sizes = np.abs(exact)
        return cls(exact, dtype, ulp(float(sizes[sizes <= largest(dtype)].max(initial=0.0)), dtype))

    @property
    def allowance(self) -> float:
        return 0.0 if self.dtype.kind in "iub" else 2 * self.plain_error + 2 * self.ulp

    def allow(self, narrow: Array) -> None:
        """Take note of what the plain formula gave."""
        if self.dtype.kind in "iub":  # exact
            return
        errors = _errors(narrow, self.exact)
        self.plain_error = max(self.plain_error, float(errors[np.isfinite(errors)].max(initial=0.0)))

    def judge(self, place: str, got: Array) -> Verdict:
        error, text = np.inf, ""
        if got.dtype != self.dtype or got.shape != self.exact.shape:
            text = f"{got.dtype}{got.shape} came; expected {self.dtype}{self.exact.shape}"
        elif self.dtype.kind in "iub":
            wrong = got != self.exact
            error = np.inf if wrong.any() else 0.0
            text = self._worst(got, wrong)
        else:
            errors = _errors(got, self.exact)
            error = float(errors.max(initial=0.0))
            text = self._worst(got, errors) if error > self.allowance else ""
        return Verdict(place, error, self.allowance, self.ulp, text)

    def _worst(self, got: Array, errors: Array) -> str:
        if not errors.any():
            return ""
        where = np.unravel_index(int(np.argmax(errors)), got.shape)
        index = ", ".join(str(int(i)) for i in where)
        wrong = f"{got[where]} came at [{index}]; the reference has {self.exact[where]}"
        if self.dtype.kind in "iub" or not np.isfinite(errors[where]):
            return wrong
        return f"{wrong} (error {float(errors[where]):.3g}, allowance {self.allowance:.3g})"


class Expectation:
    """What a call has to give, and how exactly; made once, judges any number of results.

    The arguments must stay as they are meanwhile.
    """

    def __init__(self, function: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._call = (function, args, kwargs)
        self._orders = 1
        with np.errstate(all="ignore"):
            exact = dict(arrays(attrgetter(function)(reference)(*args, **kwargs)))
            narrow = self._plain()
        self.leaves = {place: _Leaf.of(exact[place], narrow[place].dtype) for place in exact}
        for place, leaf in self.leaves.items():
            leaf.allow(narrow[place])
        if all(x.size < 1 << 17 for x in exact.values()):  # larger ones have many sums of their own
            self._try_orders(FIRST)

    def judge(self, result: Any) -> list[Verdict]:
        """Compare a result of the function with the reference, array by array."""
        got = dict(arrays(result))
        if got.keys() != self.leaves.keys():
            text = f"the result has {sorted(got)}; expected {sorted(self.leaves)}"
            return [Verdict("", np.inf, 0.0, 1.0, text)]
        while True:
            verdicts = [leaf.judge(place, got[place]) for place, leaf in self.leaves.items()]
            refused = any(not v.passed and np.isfinite(v.error) for v in verdicts)
            if not refused or self._orders >= MOST:
                return verdicts
            self._try_orders(min(2 * self._orders, MOST))

    def _plain(self) -> dict[str, Array]:
        function, args, kwargs = self._call
        return dict(arrays(attrgetter(function)(plain)(*args, **kwargs)))

    def _try_orders(self, end: int) -> None:
        for k in range(self._orders, end):
            with sums.order(k), np.errstate(all="ignore"):
                narrow = self._plain()
            for place, leaf in self.leaves.items():
                leaf.allow(narrow[place])
        self._orders = end


def expect(function: str, *args: Any, **kwargs: Any) -> Expectation:
    """Evaluate the reference and the plain formula of a function for these arguments.

    Examples
    --------
    >>> expectation = expect("softmax", np.float32([1, 1]))
    >>> (verdict,) = expectation.judge(np.float32([0.5, 0.5]))
    >>> verdict.passed, verdict.error
    (True, 0.0)
    >>> (verdict,) = expectation.judge(np.float32([0.5, 0.75]))
    >>> verdict.text
    '0.75 came at [1]; the reference has 0.5 (error 0.25, allowance 1.19e-07)'
    """
    return Expectation(function, args, kwargs)


def assert_passes(result: Any, function: str, *args: Any, **kwargs: Any) -> None:
    """Raise AssertionError unless a result of `function` for these arguments passes the gate.

    Examples
    --------
    >>> assert_passes(np.float32([0.5, 0.5]), "softmax", np.float32([1, 1]))
    """
    for verdict in expect(function, *args, **kwargs).judge(result):
        if not verdict.passed:
            raise AssertionError(f"{function}{verdict.place}: {verdict.text}")


def ulp(value: float, dtype: np.dtype[Any]) -> float:
    """Return the distance from |value| to the next larger number of the dtype.

    Examples
    --------
    >>> ulp(-1.5, np.dtype(np.float16)) == 2.0**-10
    True
    """
    with np.errstate(over="ignore"):
        return float(np.spacing(np.abs(np.asarray(value).astype(dtype))))


def largest(dtype: np.dtype[Any]) -> float:
    """Return the largest finite number of a floating dtype."""
    return float.fromhex("0x1.fep127") if dtype.name == "bfloat16" else float(np.finfo(dtype).max)


def arrays(result: Any) -> Iterator[tuple[str, Array]]:
    """Give the arrays of a result, by place; what is None is left out."""
    if isinstance(result, tuple):
        for i, part in enumerate(result):
            yield f"[{i}]", np.asarray(part)
    elif isinstance(result, GroupAdvantages):
        for name in result.arrays:
            yield f".{name}", np.asarray(getattr(result, name))
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            if (part := getattr(result, field.name)) is not None:
                for place, array in arrays(part):
                    yield f".{field.name}{place}", array
    else:
        yield "", np.asarray(result)


def _errors(got: Array, exact: Array) -> Array:
    """Absolute errors; 0 for a NaN or inf where it should be, inf where only one of the two has one."""
    wide = got.astype(exact.dtype)
    with np.errstate(invalid="ignore"):
        errors: Array = np.asarray(np.abs(wide - exact))
    special = ~np.isfinite(errors)
    if special.any():
        with np.errstate(over="ignore"):
            rounded = exact[special].astype(got.dtype).astype(exact.dtype)
        came = wide[special]
        same = (came == rounded) | (np.isnan(came) & np.isnan(rounded))
        errors[special] = np.where(same, 0, np.inf)
    return errors
