"""Cases of the softmax family: rows of every length and layout, then what each function takes beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from npkernels import reference
from npkernels._arrays import Array, compute_dtype
from npkernels._cli import gate
from npkernels._cli.cases import INF, NAN, Case, Cases, Inputs

SHORT = (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 63, 97)  # vectors hold 2, 4, 8 or 16 entries
LONG = (257, 1023, 1024, 1025, 2053, 5003)  # 256 entries are written, 1024 read at a time
ROWS = 16  # the largest error of so many rows says something about the kernel; that of one row is chance
PAST_CACHE = 8 << 20  # bytes from which on outputs bypass the cache


@dataclass(frozen=True)
class Rows:
    """An array whose rows along `axis` are the inputs of a function, and the options that go with it."""

    label: str
    x: Array
    axis: int = -1
    options: dict[str, Any] = field(default_factory=dict)
    inplace: bool = False

    @property
    def reduced(self) -> tuple[int, ...]:
        """The shape without the axis."""
        axis = self.axis % self.x.ndim
        return self.x.shape[:axis] + self.x.shape[axis + 1 :]


def _lengths(make: Inputs) -> Iterator[Rows]:
    scales = (0.1, 1.0, 5.0, 20.0)
    for i, n in enumerate((*SHORT, *LONG)):
        rows = 19 if n in SHORT else ROWS
        yield Rows(f"{rows}x{n}", make.normal((rows, n), scales[i % 4]))
    for n in (7, 97, 1031):
        x = make.normal((ROWS, n), 1.5)
        yield Rows(f"in place {ROWS}x{n}", x, inplace=True)
        yield Rows(f"temperature 0.5, {ROWS}x{n}", x, options={"temperature": 0.5})
        yield Rows(f"temperature 3, {ROWS}x{n}", x, options={"temperature": 3.0})
    yield Rows("1-D", make.normal((101,)))
    yield Rows("no rows", make.normal((0, 5)))


def _layouts(make: Inputs) -> Iterator[Rows]:
    yield Rows("axis 0, 33x17", make.normal((33, 17)), 0)
    yield Rows("axis 0, 1031x16", make.normal((1031, ROWS), 4.0), 0)
    yield Rows("axis 1, 3x37x19", make.normal((3, 37, 19)), 1)
    yield Rows("axis -3, 17x2x3", make.normal((17, 2, 3)), -3)
    yield Rows("transposed", make.normal((41, 23)).T)
    yield Rows("permuted axes", make.normal((5, 3, 67)).transpose(1, 0, 2))
    yield Rows("every second entry", make.normal((7, 134))[:, ::2])
    yield Rows("every second entry, long", make.normal((ROWS, 2600))[:, ::2])
    yield Rows("every third row", make.normal((21, 35))[::3])
    yield Rows("backwards", make.normal((7, 67))[::-1, ::-1])
    yield Rows("Fortran order", np.asfortranarray(make.normal((9, 53))))
    yield Rows("one row repeated", np.broadcast_to(make.normal((71,)), (4, 71)))
    yield Rows("one entry off alignment", make.normal((6 * 37 + 1,))[1:].reshape(6, 37))
    yield Rows("in place, every second entry", make.normal((5, 70))[:, ::2], inplace=True)


def _masked(make: Inputs) -> Iterator[Rows]:
    for rows, n in ((9, 1), (9, 37), (ROWS, 1033)):
        mask = make.mask((rows, n))
        mask[0] = False  # nothing takes part
        mask[1] = True
        mask[2] = False
        mask[2, n // 2] = True  # one entry does
        x = make.normal((rows, n), 3.0)
        x[3:4] = np.where(mask[3:4], -INF, x[3:4])  # all that take part are -inf
        yield Rows(f"mask {rows}x{n}, garbage behind", make.behind(mask, x), options={"mask": mask})
    x = make.normal((ROWS, 45), 3.0)
    both = {"temperature": 0.7, "mask": make.mask((ROWS, 45))}
    yield Rows("mask of columns", x, options={"mask": make.mask((45,))})
    yield Rows("mask of rows", x, options={"mask": make.mask((ROWS, 1), 0.5)})
    yield Rows("mask of one", x, options={"mask": np.array(False)})
    yield Rows("mask and temperature", x, options=both)
    yield Rows("mask, in place", x, options=both, inplace=True)
    yield Rows("mask, axis 0", x, 0, {"mask": make.mask((ROWS, 45), 0.5)})
    yield Rows("mask, transposed", x.T, -1, {"mask": make.mask((ROWS, 45), 0.5).T})


def _special(make: Inputs) -> Iterator[Rows]:
    """Rows of what is hard to compute with; entries stand in the first vector, in a later one and in the tail."""
    largest = gate.largest(make.dtype)
    for n in (43, 1039):
        for name, value in (("-inf", -INF), ("NaN", NAN), ("+inf", INF), ("the largest number", largest)):
            x = make.normal((ROWS, n), 2.0)
            for row, place in enumerate((0, 20, n - 1)):
                x[row, place] = value
            yield Rows(f"{name} in rows of {n}", x)
        far = (900 + make.normal((ROWS, n)).astype(np.float64)).astype(make.dtype)
        yield Rows(f"far from 0, {n}", far)
        yield Rows(f"far from 0, temperature 0.7, {n}", far, options={"temperature": 0.7})
        x = make.normal((ROWS + 9, n), 2.0)
        x[0] = -INF
        x[1] = -INF
        x[1, n // 2] = 1  # one entry that counts
        x[2] = 3  # constant
        x[3] = -1000
        x[3, -1] = 0  # one that dominates
        x[4] = 1 / largest  # below the normal numbers
        x[5] = 0
        x[5, ::2] = -0.0
        x[6] = -largest
        x[6, 0] = largest
        x[7] = np.linspace(-120, 0, n)  # down to where exp underflows
        x[8] = -9  # small terms that a large one must not swallow
        x[8, 0] = 0
        yield Rows(f"-inf, constants and extremes, {n}", x)
        y = np.full((3, n), NAN).astype(make.dtype)
        y[0, 1:] = -INF
        y[1, 0] = INF
        yield Rows(f"NaN beside inf, {n}", y)


def _large(make: Inputs) -> Iterator[Rows]:
    n = 16_411
    rows = PAST_CACHE // (n * make.dtype.itemsize) + 1
    yield Rows(f"past the cache, {rows}x{n}", make.normal((rows, n)))


def _rows(make: Inputs, *, large: bool = False) -> Iterator[Rows]:
    yield from _lengths(make)
    yield Rows("rows without entries", make.normal((3, 0)))
    yield from _layouts(make)
    yield from _masked(make)
    yield from _special(make)
    if large:
        yield from _large(make)


def _case(rows: Rows, *args: Any, out: int = 0, **more: Any) -> Case:
    axis = {} if rows.axis == -1 else {"axis": rows.axis}
    return Case(rows.label, args, {**axis, **rows.options, **more}, out if rows.inplace else None)


def _round(x: Any, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(dtype)


def _same_layout(make: Inputs, x: Array) -> Array:
    """Random numbers, in memory like x."""
    if 0 in x.strides:
        return make.normal(x.shape)
    like = np.empty_like(x)
    like[...] = make.normal(x.shape)
    return like


def _of_x(make: Inputs) -> Iterator[Case]:
    """Give the cases of f(x) with a result as large as x."""
    for rows in _rows(make, large=True):
        yield _case(rows, rows.x)


def _statistic(make: Inputs) -> Iterator[Case]:
    for rows in _rows(make):
        yield replace(_case(rows, rows.x), inplace=None)


def _logsumexp(make: Inputs) -> Iterator[Case]:
    yield from _statistic(make)
    yield Case("keepdims", (make.normal((3, 17, 2)), 1), {"keepdims": True})


def _vjp_of(forward: Callable[..., Array]) -> Cases:
    """Give the cases of f_vjp(dy, y): y is the forward result, rounded."""

    def cases(make: Inputs) -> Iterator[Case]:
        for rows in _rows(make, large=True):
            y = _round(forward(rows.x, rows.axis, **rows.options), make.dtype)
            dy = _same_layout(make, rows.x)
            if "mask" in rows.options:
                mask = np.broadcast_to(rows.options["mask"], y.shape)
                dy, y = make.behind(mask, dy), make.behind(mask, y)
            yield _case(rows, dy, y)

    return cases


def _logsumexp_vjp(make: Inputs) -> Iterator[Case]:
    for rows in _rows(make, large=True):
        dtype = compute_dtype(make.dtype)
        lse = _round(reference.logsumexp(rows.x, rows.axis, **rows.options), dtype)
        yield _case(rows, make.normal(rows.reduced).astype(dtype), rows.x, lse, out=1)


def _jvp(make: Inputs, *, large: bool = True) -> Iterator[Case]:
    for rows in _rows(make, large=large):
        dx = _same_layout(make, rows.x)
        if "mask" in rows.options:
            dx = make.behind(np.broadcast_to(rows.options["mask"], dx.shape), dx)
        yield replace(_case(rows, rows.x, dx), inplace=None)


def _token_rows(make: Inputs, *, large: bool = False) -> Iterator[tuple[Rows, Array]]:
    """Rows along the last axis, and an id for each."""
    for rows in _rows(make, large=large):
        if rows.axis == -1 and rows.x.shape[-1] > 0:
            yield rows, make.integers(rows.x.shape[-1], rows.reduced)


def _token_log_probs(make: Inputs) -> Iterator[Case]:
    for rows, ids in _token_rows(make):
        yield replace(_case(rows, rows.x, ids), inplace=None)
    x, ids = make.normal((5, 129), 3.0), make.integers(129, (5,))
    x[:, 7] = x[:, 100] = 50  # equal maxima
    yield Case("equal maxima", (x, np.full(5, 100)))
    for stats in ((), ("entropy",), ("lse",), ("sum_p2",), ("top1", "rank"), ("entropy", "lse")):
        yield Case(f"stats {', '.join(stats) or 'none'}", (x, ids), {"stats": stats})


def _token_log_probs_vjp(make: Inputs) -> Iterator[Case]:
    dtype = compute_dtype(make.dtype)
    for rows, ids in _token_rows(make, large=True):
        stats = reference.token_log_probs(rows.x, ids, **rows.options)
        dlogp, dentropy = (make.normal(ids.shape).astype(dtype) for _ in range(2))
        lse, entropy = _round(stats.lse, dtype), _round(stats.entropy, dtype)
        if not rows.label.startswith("past the cache"):
            yield _case(rows, dlogp, rows.x, ids, lse, out=1)
        both = _case(rows, dlogp, rows.x, ids, lse, out=1, dentropy=dentropy, entropy=entropy)
        yield replace(both, label=f"{rows.label}, with entropy")


def _losses(make: Inputs, prepare: Callable[[Array, int], Array]) -> Iterator[Case]:
    for rows in _rows(make, large=True):
        if rows.options or not rows.x.size:
            continue
        targets = make.integers(rows.x.shape[rows.axis], rows.reduced)
        kwargs = {"axis": rows.axis, "reduction": "none", "return_grad": True}
        yield Case(rows.label, (prepare(rows.x, rows.axis), targets), kwargs)
    x = prepare(make.normal((23, 67), 3.0), -1)
    targets = make.integers(67, (23,))
    targets[[2, 11]] = -100
    weight = make.rng.random(67).astype(make.dtype)
    for reduction in ("mean", "sum", "none"):
        kwargs = {"reduction": reduction, "return_grad": True}
        yield Case(reduction, (x, targets), kwargs)
        yield Case(f"{reduction} weight", (x, targets), {**kwargs, "weight": weight})
        every = np.where(targets == -100, 0, targets)
        yield Case(f"{reduction} ignore_index", (x, every), {**kwargs, "ignore_index": int(every[5])})
    yield Case("without gradient", (x, targets))
    yield Case("every row left out", (x, np.full(23, -100)), {"return_grad": True})


def _cross_entropy(make: Inputs) -> Iterator[Case]:
    yield from _losses(make, lambda x, axis: x)
    x, targets = make.normal((23, 67), 3.0), make.integers(67, (23,))
    weight = make.rng.random(67).astype(make.dtype)
    for smoothing in (0.1, 1.0):
        for reduction in ("mean", "sum", "none"):
            kwargs = {"label_smoothing": smoothing, "reduction": reduction, "return_grad": True}
            yield Case(f"{reduction} smoothing {smoothing}", (x, targets), kwargs)
            yield Case(
                f"{reduction} smoothing {smoothing} weight", (x, targets), {**kwargs, "weight": weight}
            )


def _nll_loss(make: Inputs) -> Iterator[Case]:
    yield from _losses(make, lambda x, axis: _round(reference.log_softmax(x, axis), make.dtype))


def _perplexity(make: Inputs) -> Iterator[Case]:
    for n in (0, 1, 17, 1025):
        x = -np.abs(make.normal((5, n), 2.0))
        yield Case(f"5x{n}", (x,))
        mask = make.mask((5, n))
        mask[0] = False
        yield Case(f"mask 5x{n}, garbage behind", (make.behind(mask, x), mask))
    x = -np.abs(make.normal((4, 6, 3)))
    yield Case("axis 0", (x,), {"axis": 0})
    yield Case("all axes", (x,), {"axis": None})


KERNELS: dict[str, Cases] = {
    "softmax": _of_x,
    "log_softmax": _of_x,
    "logsumexp": _logsumexp,
    "entropy": _statistic,
    "softmax_vjp": _vjp_of(reference.softmax),
    "log_softmax_vjp": _vjp_of(reference.log_softmax),
    "logsumexp_vjp": _logsumexp_vjp,
    "softmax_jvp": _jvp,
    "log_softmax_jvp": _jvp,
    "logsumexp_jvp": lambda make: _jvp(make, large=False),
    "token_log_probs": _token_log_probs,
    "token_log_probs_vjp": _token_log_probs_vjp,
    "cross_entropy": _cross_entropy,
    "nll_loss": _nll_loss,
    "perplexity": _perplexity,
}
