"""The rules of presets that mean, scale and ddof cannot say. All in float64; x rewards (B,), index their groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._grpo_types import Preset

Array = npt.NDArray[Any]


def per_function(z: Sequence[Array], columns: Array, w: Array, o: Preset) -> Array:
    """The weighted sum of what each function gives, normalised over the batch (GDPO in TRL)."""
    there = ~np.isnan(columns)
    s = (w * np.where(there, np.stack(z, 1), 0)).sum(axis=1)
    scored = there.any(axis=1)
    t = s[scored]
    if len(t) < 2 or t.max() == t.min():
        return np.zeros_like(s)
    return np.where(scored, (s - t.mean()) / (t.std(ddof=o.ddof) + o.eps), 0)


def by_length(x: Array, index: Array, n: int, tokens: Array) -> Array:
    """Rewards less the mean weighted by length (Hao et al. 2025, as in verl)."""
    scored = ~np.isnan(x)
    r, t = np.where(scored, x, 0), np.where(scored, tokens, 0)
    total = np.bincount(index, t, n)
    t = np.where(total[index] > 0, t, scored)  # a group without tokens: the ordinary mean
    first = np.zeros(n)
    first[index[scored]] = x[
        scored
    ]  # deviations from one of the group's own rewards keep constant groups exact
    deviation = np.where(scored, r - first[index], 0)
    mean = np.bincount(index, t * deviation, n) / np.maximum(np.bincount(index, t, n), 1e-300)
    a: Array = np.where(scored, deviation - mean[index], 0)
    return a


def whitened(x: Array, a: Array, tokens: Array, o: Preset) -> Array:
    """Advantages to mean 0 and variance 1 over the tokens of the batch (REINFORCE++, Hu 2025)."""
    t = np.where(np.isnan(x), 0, tokens)
    N = t.sum()
    if N < 2:
        return a
    centred = a - (t * a).sum() / N
    variance = (t * centred**2).sum() / (N - 1)
    return np.where(np.isnan(x), 0, centred / np.sqrt(variance + o.eps))


def others_deviation(x: Array, a: Array, index: Array, stats: Array, o: Preset) -> Array:
    """Leave-one-out advantages over the deviation of the others, where that is not 0 (NeMo-RL)."""
    count, mean, low, high = stats[:, 0], stats[:, 1], stats[:, 3], stats[:, 4]
    n, d = count[index], np.where(np.isnan(x), 0, x - mean[index])
    m2 = np.bincount(index, d * d, len(stats))[index]
    at_low, at_high = (np.bincount(index, x == edge[index], len(stats))[index] for edge in (low, high))
    # what is left when one goes is constant if it was the only one that differed
    alone = (at_low == n - 1) & (x == high[index]) | (at_high == n - 1) & (x == low[index])
    with np.errstate(all="ignore"):
        variance = np.maximum(m2 - d * d * n / (n - 1), 0) / (n - 1 - o.ddof)
        sigma = np.where((n - 1 <= o.ddof) | alone | (low == high)[index], 0, np.sqrt(variance))
        return np.where(sigma > 0, a / (sigma + o.eps), a)


def best_of(x: Array, index: Array, stats: Array, k: int | None, o: Preset) -> Array:
    """Advantages of the best of a group only, or, with k, of max@k over all subsets."""
    scored = np.flatnonzero(~np.isnan(x))
    order = scored[np.lexsort((x[scored], index[scored]))]
    count = stats[:, 0].astype(np.int64)
    least, why = (2, "two rewards") if k is None else (k, f"k = {k} rewards")
    short = (count > 0) & (count < least)
    if short.any():
        raise ValueError(
            f"group_advantages: groups has one of {count[short][0]} rewards; preset 'pass@k' needs {why} in each"
        )
    a = np.zeros_like(x)
    for g, end in enumerate(np.cumsum(count)):
        places = order[end - count[g] : end]
        s = x[places]
        if len(s) and s[-1] > s[0]:
            a[places] = _best(s, float(stats[g, 2]), o.eps) if k is None else _max_at_k(s, k)
    return a


def _best(s: Array, deviation: float, eps: float) -> Array:
    a = np.zeros_like(s)
    a[-1] = (s[-1] - s[-2]) / (deviation + eps)
    return a


def _max_at_k(s: Array, k: int) -> Array:
    """For rewards in rising order. Sample i is the largest of C(i, k-1) subsets; beside it, j > i is of C(j-1, k-2)."""
    n = len(s)
    own, beside = np.zeros(n), np.zeros(n)  # those numbers over C(n, k)
    own[-1] = k / n
    for i in range(n - 1, 0, -1):
        own[i - 1] = own[i] * max(0, i - k + 1) / i
    if k > 1:
        beside[-1] = k * (k - 1) / (n * (n - 1))
        for j in range(n - 1, 1, -1):
            beside[j - 1] = beside[j] * max(0, j - k + 1) / (j - 1)
    d = s - s[0]  # a constant added to all rewards changes nothing
    later = np.cumsum((d * beside)[::-1])[::-1]
    a = d * own + np.append(later[1:], 0)
    a = a[np.searchsorted(s, s)]  # equal rewards share one number
    result: Array = a - a.mean()
    return result
