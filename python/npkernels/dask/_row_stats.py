"""Statistics of rows that are cut into chunks: of each chunk, and of two joined.

A chunk's statistics are relative to its own maximum m: ``l = log sum exp((x - m) / T)``, so that joining them rounds no
more than one pass does. H is the entropy of the chunk's own distribution, s the sum of its squared probabilities,
`top` the place of its first maximum in the whole row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import npkernels
from npkernels._arrays import Array, compute_dtype

INF = np.inf


class RowStats(NamedTuple):
    """Of each row of a chunk, shapes with the rows' axis left out; H, s and top as the chunk alone has them."""

    m: Array
    l: Array
    H: Array
    s: Array
    top: Array


def of_chunk(axis: int, temperature: float, start: int, x: Array, mask: Array | None) -> RowStats:
    """The statistics of one chunk, which begins at `start` of its axis."""
    rows = np.moveaxis(x, axis, -1)
    allowed = None if mask is None else np.moveaxis(np.broadcast_to(mask, x.shape), axis, -1)
    dtype = compute_dtype(x.dtype)
    seen = rows.astype(dtype, copy=False)
    if allowed is not None:
        seen = np.where(allowed, seen, dtype.type(-INF))
    top = np.asarray(seen.argmax(axis=-1))
    m = np.take_along_axis(seen, top[..., None], axis=-1)[..., 0]
    t = npkernels.token_log_probs(
        rows, top, temperature=temperature, mask=allowed, stats=("entropy", "sum_p2")
    )
    assert t.entropy is not None
    assert t.sum_p2 is not None
    finite = np.isfinite(m)
    l = np.where(finite, -np.asarray(t.log_prob), dtype.type(0))
    H = np.where(finite, t.entropy, dtype.type(0))
    s = np.where(finite, t.sum_p2, dtype.type(0))
    return RowStats(m, l, H, s, top + start)


def shift(part: RowStats, whole: RowStats, temperature: float) -> Array:
    """Logarithm of a part's share of the whole row's sum; NaN where the row has none."""
    with np.errstate(invalid="ignore"):
        apart = (part.m - whole.m) / part.m.dtype.type(temperature)
        return np.asarray(np.where(np.isfinite(whole.m), apart + (part.l - whole.l), np.nan), part.m.dtype)


def join(temperature: float, parts: list[RowStats]) -> RowStats:
    """The statistics of chunks that follow one another."""
    dtype = parts[0].m.dtype
    m = np.max([p.m for p in parts], axis=0)  # NaN if one is
    finite = np.isfinite(m)
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.stack([(p.m - m) / dtype.type(temperature) + p.l for p in parts])
    first = np.max(apart, axis=0)
    at = np.argmax(apart, axis=0)
    others = np.where(np.arange(len(parts)).reshape(-1, *[1] * m.ndim) == at, 0, np.exp(apart - first))
    with np.errstate(invalid="ignore"):
        l = np.where(finite, first + np.log1p(others.sum(axis=0)), dtype.type(0)).astype(dtype)
        logs = apart - l
        shares = np.exp(logs)
        H = sum(
            np.where(w > 0, w * (p.H - g), dtype.type(0)) for w, g, p in zip(shares, logs, parts, strict=True)
        )
    s = sum(np.where(w > 0, w * w * p.s, dtype.type(0)) for w, p in zip(shares, parts, strict=True))
    top = parts[0].top
    best = parts[0].m
    for p in parts[1:]:
        later = (p.m > best) | (np.isnan(p.m) & ~np.isnan(best))
        top, best = np.where(later, p.top, top), np.where(later, p.m, best)
    return RowStats(m, l, np.asarray(H, dtype), np.asarray(s, dtype), top)


def lse(whole: RowStats, temperature: float) -> Array:
    """The logarithm of the row's sum."""
    return np.asarray(whole.m / whole.m.dtype.type(temperature) + whole.l, whole.m.dtype)


def empty_or_nan(whole: RowStats, value: Array, masked: bool) -> Array:
    """A statistic of rows: NaN where the row has NaN or inf, or is -inf without a mask; 0 where nothing is allowed."""
    nothing = value.dtype.type(0 if masked else np.nan)
    value = np.where(np.isfinite(whole.m), value, value.dtype.type(np.nan))
    return np.asarray(np.where(whole.m == -INF, nothing, value))
