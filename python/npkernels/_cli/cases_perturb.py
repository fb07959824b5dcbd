"""Cases of steps and projections: samples of every length, layout and size, each norm, each option."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from npkernels._arrays import Array, compute_dtype
from npkernels._cli import gate
from npkernels._cli.cases import INF, NAN, Case, Cases, Inputs

SHORT = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 97)  # vectors hold 2, 4, 8 or 16 entries
LONG = (1023, 1024, 1025, 2053)  # 1024 entries are read at a time
NORMS = ("inf", 2, 1)
B = 5


@dataclass(frozen=True)
class Samples:
    """Inputs, centres and gradients of one shape."""

    label: str
    x: Array
    c: Array
    g: Array
    options: dict[str, Any] = field(default_factory=dict)
    inplace: bool = False


def _like(make: Inputs, x: Array, scale: float = 1.0) -> Array:
    """Normal numbers, in memory like x."""
    like = np.empty_like(x)
    like[...] = make.normal(x.shape, scale)
    return like


def _of(make: Inputs, label: str, x: Array, **more: Any) -> Samples:
    c = (x.astype(np.float64) + 0.3 * make.rng.standard_normal(x.shape)).astype(make.dtype)
    around = np.empty_like(x)
    around[...] = c
    return Samples(label, x, around, _like(make, x), **more)


def _samples(make: Inputs, *, large: bool = False) -> Iterator[Samples]:
    for n in (*SHORT, *LONG):
        yield _of(make, f"{B}x{n}", make.normal((B, n)))
    yield _of(make, "in place", make.normal((B, 1031)), inplace=True)
    yield _of(make, "images", make.normal((3, 3, 7, 5)))
    yield _of(make, "no samples", make.normal((0, 7)))
    yield _of(make, "samples without entries", make.normal((3, 0)))
    yield _of(make, "transposed", make.normal((41, 7)).T)
    yield _of(make, "channels last", make.normal((2, 9, 8, 3)).transpose(0, 3, 1, 2))
    yield _of(make, "every second entry", make.normal((B, 130))[:, ::2])
    yield _of(make, "every second entry, in place", make.normal((B, 130))[:, ::2], inplace=True)
    yield _of(make, "backwards", make.normal((B, 67))[::-1, ::-1])
    yield _of(make, "Fortran order", np.asfortranarray(make.normal((B, 53))))
    yield _of(make, "one entry off alignment", make.normal((B * 37 + 1,))[1:].reshape(B, 37))
    if large:
        n = 16_411
        rows = (8 << 20) // (n * make.dtype.itemsize) + 1
        yield _of(make, f"past the cache, {rows}x{n}", make.normal((rows, n)))


def _options(make: Inputs) -> Iterator[Samples]:
    """Every option, with samples whose centres lie in the bounds."""
    for n in (9, 67, 1031):
        s = _inside(make, (B, n))
        yield replace(s, label=f"bounds, {n}", options={"bounds": (0.0, 1.0)})
        yield replace(s, label=f"one bound, {n}", options={"bounds": (0, INF)})
        low = np.minimum(make.rng.random(n), s.c.astype(np.float64).min(axis=0)).astype(make.dtype)
        yield replace(s, label=f"bounds of columns, {n}", options={"bounds": (low, 1.0)})
        both = np.stack([s.c.astype(np.float64) - 0.1, s.c.astype(np.float64) + 0.2])
        whole = tuple(side.astype(compute_dtype(make.dtype)) for side in both)
        yield replace(s, label=f"bounds of entries, {n}", options={"bounds": whole})
        mask = make.mask((B, n), 0.6)
        mask[0] = False
        yield replace(s, label=f"mask, {n}", options={"mask": mask})
        garbage = make.behind(mask, s.g)
        yield replace(s, label=f"mask and bounds, {n}", g=garbage, options={"mask": mask, "bounds": (0, 1)})
        yield replace(s, label=f"mask of columns, {n}", options={"mask": make.mask((n,)), "bounds": (0, 1)})
    s = _inside(make, (2, 3, 5, 7))
    channels = (np.zeros((3, 1, 1), make.dtype), np.ones((3, 1, 1), make.dtype))
    yield replace(s, label="bounds of channels", options={"bounds": channels})
    yield replace(s, label="bounds, transposed", x=s.x.T, c=s.c.T, g=s.g.T, options={"bounds": (0, 1)})


def _inside(make: Inputs, shape: tuple[int, ...]) -> Samples:
    c = make.rng.random(shape).astype(make.dtype)
    x = np.clip(c.astype(np.float64) + 0.4 * make.rng.standard_normal(shape), 0, 1).astype(make.dtype)
    return Samples("", x, c, make.normal(shape))


def _special(make: Inputs) -> Iterator[Samples]:
    """Gradients and distances that are hard to measure, and NaN."""
    largest, least = gate.largest(make.dtype), float(np.spacing(np.zeros((), make.dtype)))
    for n in (5, 43, 1039):
        s = _of(make, f"special gradients, {n}", make.normal((12, n)))
        g = s.g
        g[0], g[1], g[2] = 0, 1, -1  # nothing, ties
        g[3, n // 2] = NAN
        g[4, 0] = INF
        g[5, 0], g[5, n - 1] = INF, -INF
        g[6] = NAN
        g[7] = largest
        g[8] = least
        g[9] = 0
        g[9, n - 1] = -least
        g[10, ::2] = largest / 2
        g[11] = np.where(np.arange(n) % 2, 0.0, -0.0)
        yield s
        x = make.normal((8, n))
        s = _of(make, f"special distances, {n}", x)
        s.c[...] = 0
        x[0], x[1], x[2] = 0, 1, -1
        x[3], x[4] = largest / 4, least
        x[5] = 0
        x[5, 0] = largest / 2
        x[6, n // 2] = NAN
        x[7] = s.c[7]
        yield s


def _amounts(make: Inputs, x: Array, norm: Any) -> Iterator[tuple[str, Any]]:
    """Lengths: one, one for each sample, and by the norm inf one for each entry."""
    yield "", 0.25
    if x.ndim and len(x) and x.shape[-1] in (9, 67):
        yield ", 0", 0
        yield ", one for each sample", np.linspace(0, 2, len(x))
        if norm == "inf":
            yield ", one for each entry", make.rng.random(x.shape).astype(compute_dtype(make.dtype))
            yield ", one for each column", make.rng.random(x.shape[1:])


def _case(s: Samples, args: tuple[Any, ...], label: str, **more: Any) -> Case:
    return Case(f"{s.label}{label}", args, {**s.options, **more}, 0 if s.inplace else None)


def _every(make: Inputs) -> Iterator[Samples]:
    yield from _samples(make, large=True)
    yield from _options(make)
    yield from _special(make)


def _sign_step(make: Inputs) -> Iterator[Case]:
    for s in _every(make):
        for label, eps in _amounts(make, s.x, "inf"):
            yield _case(s, (s.x, s.g, eps), label)
    s = _inside(make, (B, 67))
    s.g[:, 3] = NAN
    yield _case(s, (s.x, s.g, 0.1), "targeted", targeted=True, bounds=(0, 1))
    yield _case(s, (s.x, s.g, 0.1), "count", return_nan_count=True)
    yield _case(s, (s.x, s.g, 0.1), "count, mask", return_nan_count=True, mask=make.mask((B, 67)))
    yield Case("1-D", (s.x[0], s.g[0], 0.1))


def _by_norms(one: Callable[[Inputs, Samples, Any], Iterator[Case]], norms: tuple[Any, ...] = NORMS) -> Cases:
    def cases(make: Inputs) -> Iterator[Case]:
        for norm in norms:
            for s in _every(make):
                if norm == "inf" or not s.label.startswith("past the cache"):
                    yield from one(make, s, norm)

    return cases


def _steepest(make: Inputs, s: Samples, norm: Any) -> Iterator[Case]:
    for label, step in _amounts(make, s.x, norm):
        yield _case(s, (s.x, s.g, step), f"{label}, {norm}", norm=norm)
    yield _case(s, (s.x, s.g, 3.0), f", targeted, {norm}", norm=norm, targeted=True, return_nan_count=True)


def _project(make: Inputs, s: Samples, norm: Any) -> Iterator[Case]:
    for label, eps in _amounts(make, s.x, norm):
        yield _case(s, (s.x, s.c, eps), f"{label}, {norm}", norm=norm)
    if s.x.size < 10_000:
        for eps in (INF, 3.0, 20.0):
            yield _case(s, (s.x, s.c, eps), f", eps {eps}, {norm}", norm=norm)


def _pgd(make: Inputs, s: Samples, norm: Any) -> Iterator[Case]:
    for label, eps in _amounts(make, s.x, norm):
        yield _case(s, (s.x, s.c, s.g, 0.1, eps), f"{label}, {norm}", norm=norm)
    if s.x.size < 10_000:
        yield _case(s, (s.x, s.c, s.g, 2.0, 1.5), f", targeted, {norm}", norm=norm, targeted=True)


def _momentum(make: Inputs) -> Iterator[Case]:
    for s in _every(make):
        options = {k: v for k, v in s.options.items() if k == "mask"}
        if s.options.keys() <= {"mask"}:
            yield _case(replace(s, options=options), (s.x, s.g), "", decay=0.9)


def _random(make: Inputs) -> Iterator[Case]:
    for norm in NORMS:
        for s in (*_samples(make, large=norm == "inf"), *_options(make)):
            if "mask" in s.options:
                continue
            for label, eps in _amounts(make, s.x, norm):
                yield _case(replace(s, inplace=False), (s.c, eps), f"{label}, {norm}", norm=norm, rng=7)
    yield Case("large key", (make.normal((3, 9)), 1.0), {"rng": 2**64 - 1})


KERNELS: dict[str, Cases] = {
    "perturb.sign_step": _sign_step,
    "perturb.steepest_step": _by_norms(_steepest),
    "perturb.project": _by_norms(_project),
    "perturb.pgd_step": _by_norms(_pgd),
    "perturb.momentum": _momentum,
    "perturb.random_in_ball": _random,
}
