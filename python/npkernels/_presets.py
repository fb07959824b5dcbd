"""The rules of presets that mean, scale and ddof cannot say. All in float64; x rewards (B,), index their groups.

Groups of extreme rewards are worked on in a unit of their own, a power of two, so that no square overflows or vanishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._grpo_types import Preset

Array = npt.NDArray[Any]
_MOST_POWER = 1000  # a small eps over 2**-1000 is still a number


def per_function(z: Sequence[Array], columns: Array, w: Array, o: Preset) -> Array:
    """The weighted sum of what each function gives, normalised over the batch (GDPO in TRL)."""
    there = ~np.isnan(columns)
    power = int(_powers(np.abs(w).max(initial=0)))
    s = (np.ldexp(w, -power) * np.where(there, np.stack(z, 1), 0)).sum(axis=1)
    scored = there.any(axis=1)
    t = s[scored]
    if len(t) < 2 or t.max() == t.min():
        return np.zeros_like(s)
    unit = int(_powers(np.abs(t).max()))
    s, t = np.ldexp(s, -unit), np.ldexp(t, -unit)
    return np.where(scored, (s - t.mean()) / (t.std(ddof=o.ddof) + np.ldexp(o.eps, -power - unit)), 0)


@dataclass(frozen=True)
class Scaled:
    """Rewards by group, each group over the power of two that its rewards are about as large as; 0 where NaN."""

    scored: Array  # (B,) whether there is a reward
    index: Array  # (B,) the number of the group
    stats: Array  # (n, 5), not scaled
    power: Array  # (n,)
    x: Array  # (B,)

    @classmethod
    def of(cls, x: Array, index: Array, stats: Array) -> Scaled:
        """From rewards as they are."""
        scored = ~np.isnan(x)
        power = _powers(np.maximum(np.abs(stats[:, 3]), np.abs(stats[:, 4])))
        return cls(scored, index, stats, power, np.ldexp(np.where(scored, x, 0), -power[index]))

    def column(self, i: int) -> Array:
        """A statistic of each group in its unit."""
        scaled: Array = np.ldexp(self.stats[:, i], -self.power)
        return scaled

    def deviations(self) -> Array:
        """Rewards less the mean of their group."""
        return np.where(self.scored, self.x - self.column(1)[self.index], 0)

    def back(self, a: Array) -> Array:
        """As they were: times the power of two."""
        with np.errstate(over="ignore"):
            wide: Array = np.ldexp(a, self.power[self.index])
        return wide


def _powers(size: Any) -> Array:
    """The binary exponent of sizes that are extreme; 0 of ordinary ones."""
    ordinary = (size > 1e-100) & (size < 1e100)
    exponent = np.clip(np.frexp(np.where(np.isfinite(size), size, 0))[1], -_MOST_POWER, None)
    return np.where(ordinary, 0, exponent)


def by_length(r: Scaled, tokens: Array) -> Array:
    """Rewards less the mean weighted by length (Hao et al. 2025, as in verl)."""
    n, index = len(r.stats), r.index
    t = np.where(r.scored, tokens, 0)
    total = np.bincount(index, t, n)
    t = np.where(total[index] > 0, t, r.scored)  # a group without tokens: the ordinary mean
    # deviations from one of the group's own rewards keep constant groups exact
    deviation = np.where(r.scored, r.x - r.column(3)[index], 0)
    mean = np.bincount(index, t * deviation, n) / np.maximum(np.bincount(index, t, n), 1e-300)
    return r.back(np.where(r.scored, deviation - mean[index], 0))


def whitened(r: Scaled, tokens: Array, o: Preset) -> Array:
    """Deviations from the group's mean to mean 0 and variance 1 over the tokens of the batch (REINFORCE++, Hu 2025)."""
    t = np.where(r.scored, tokens, 0)
    N = t.sum()
    if N < 2:
        return r.back(r.deviations())
    power = int(np.max(r.power[r.index[r.scored]]))
    a = np.ldexp(r.deviations(), r.power[r.index] - power)
    centred = a - (t * a).sum() / N
    sigma = np.sqrt((t * centred**2).sum() / (N - o.ddof))
    divisor = np.hypot(sigma, np.ldexp(np.sqrt(o.eps), -power))  # sqrt(variance + eps)
    return np.where(r.scored & (divisor > 0), centred / (divisor or 1), 0)


def others_deviation(r: Scaled, o: Preset) -> Array:
    """Leave-one-out advantages over the deviation of the others, where that is not 0 (NeMo-RL)."""
    index, n = r.index, r.stats[r.index, 0]
    low, high = (r.column(i)[index] for i in (3, 4))
    d = r.deviations()
    m2 = np.bincount(index, d * d, len(r.stats))[index]
    at_low, at_high = (
        np.bincount(index, r.scored & (r.x == edge), len(r.stats))[index] for edge in (low, high)
    )
    # what is left when one goes is constant if it was the only one that differed
    alone = (at_low == n - 1) & (r.x == high) | (at_high == n - 1) & (r.x == low)
    with np.errstate(all="ignore"):
        a = np.where(low < high, d * n / (n - 1), 0)
        variance = np.maximum(m2 - d * d * n / (n - 1), 0) / (n - 1 - o.ddof)
        sigma = np.where((n - 1 <= o.ddof) | alone | ~(low < high), 0, np.sqrt(variance))
        scaled = a / (sigma + np.ldexp(o.eps, -r.power)[index])
        return np.where(sigma > 0, scaled, r.back(a))


def best_of(r: Scaled, k: int | None, o: Preset) -> Array:
    """Advantages of the best of a group only, or, with k, of max@k over all subsets."""
    scored = np.flatnonzero(r.scored)
    order = scored[np.lexsort((r.x[scored], r.index[scored]))]
    count = r.stats[:, 0].astype(np.int64)
    least, why = (2, "two rewards") if k is None else (k, f"k = {k} rewards")
    short = (count > 0) & (count < least)
    if short.any():
        raise ValueError(
            f"group_advantages: groups has one of {count[short][0]} rewards; preset 'pass@k' needs {why} in each"
        )
    a = np.zeros_like(r.x)
    deviation, eps = r.column(2), np.ldexp(o.eps, -r.power)
    by_deviation = k is None and o.scale == "group"
    for g, end in enumerate(np.cumsum(count)):
        places = order[end - count[g] : end]
        s = r.x[places]
        if len(s) and s[-1] > s[0]:
            a[places] = _best(s) if k is None else _max_at_k(s, k)
            if by_deviation:
                a[places] /= deviation[g] + eps[g]
    return a if by_deviation else r.back(a)


def _best(s: Array) -> Array:
    """For rewards in rising order: the last, less the one before it."""
    a = np.zeros_like(s)
    a[-1] = s[-1] - s[-2]
    return a


def _max_at_k(s: Array, k: int) -> Array:
    """For rewards in rising order. Sample i is the largest of C(i, k-1) subsets; beside it, j > i is of C(j-1, k-2)."""
    n, wide = len(s), np.longdouble  # the sums cancel to the last digits
    i = np.arange(1, n, dtype=wide)
    own, beside = np.full(n, wide(k) / n), np.zeros(n, wide)  # those numbers over C(n, k)
    own[:-1] *= _products(np.maximum(0, i - k + 1) / i)
    if k > 1:
        beside[1:] = wide(k * (k - 1)) / (n * (n - 1))
        beside[1:-1] *= _products(np.maximum(0, i[1:] - k + 1) / i[:-1])
    d = s - s[0]  # a constant added to all rewards changes nothing
    later = np.cumsum((d * beside)[::-1])[::-1]
    a = d * own + np.append(later[1:], 0)
    a = a[np.searchsorted(s, s)]  # equal rewards share one number
    result: Array = (a - a.mean()).astype(np.float64)
    return result


def _products(factors: Array) -> Array:
    """Of each factor and all behind it."""
    products: Array = np.cumprod(factors[::-1])[::-1]
    return products
