"""Advantages of samples within their groups, and statistics of groups that can be merged.

rewards (B,) or (B, F) of F reward functions; groups: the size G of consecutive groups, or an id for each sample. Groups
are numbered in the order in which they first appear. A reward of NaN (the function did not apply) takes no part. All in
longdouble, since the package computes in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._grpo_types import BASELINES, MOST_REWARD, PRESETS, SCALES, GroupAdvantages, Preset
from ._common import Array, ArrayLike, IntArray, as_array, as_index, check_shape, like, total, widest, working

NAN = np.nan


def _rewards(function: str, rewards: ArrayLike) -> Array:
    (r,) = working(function, rewards=rewards)
    if np.isinf(r).any():
        raise ValueError(f"{function}: rewards holds an infinity; expected finite numbers or NaN")
    return r.astype(widest())


def _groups(function: str, groups: Any, B: int) -> tuple[Any, IntArray]:
    """The ids in the order of their first appearance, and the number of each sample's group."""
    if isinstance(groups, int | np.integer) and not isinstance(groups, bool):
        if groups < 1 or B % groups:
            raise ValueError(
                f"{function}: groups is {groups}; expected a size >= 1 that divides the {B} rewards"
            )
        return np.arange(B // groups), np.arange(B) // groups
    array = as_array(groups)
    if isinstance(groups, list) and groups and all(isinstance(i, tuple) for i in groups):
        array = np.empty(len(groups), object)
        array[:] = groups
    ids = array.tolist() if array.dtype.kind in "iuUSO" else as_index(function, "groups", groups).tolist()
    if array.shape != (B,):
        raise ValueError(f"{function}: groups has shape {array.shape}; expected ({B},)")
    numbers: dict[Any, int] = {}
    index = np.array([numbers.setdefault(i, len(numbers)) for i in ids], np.int64)
    keys = np.empty(
        len(numbers),
        (np.uint64 if array.dtype == np.uint64 else np.int64) if array.dtype.kind in "iu" else object,
    )
    keys[:] = list(numbers)
    return keys, index


def _mean(x: Array) -> Any:
    return total(x) / len(x)


def _m2(x: Array) -> Any:
    """The sum of squared deviations, exactly 0 if all are equal."""
    return total((x - _mean(x)) ** 2) if len(x) and x.max() > x.min() else x.dtype.type(0)


def _std(x: Array, ddof: int) -> Any:
    """Exactly 0 if all are equal, or if there are fewer than two."""
    return np.sqrt(_m2(x) / (len(x) - ddof)) if len(x) > ddof else x.dtype.type(0)


def _stats(r: Array, index: IntArray, n: int, ddof: int) -> Array:
    """Count, mean, std, min, max of every group."""
    rows = []
    for g in range(n):
        x = r[(index == g) & ~np.isnan(r)]
        rows.append([len(x), _mean(x), _std(x, ddof), x.min(), x.max()] if len(x) else [0, NAN, 0, NAN, NAN])
    return np.array(rows, widest()).reshape(n, 5)


def _of_group(x: Array, baseline: str, scale: str, ddof: int, eps: float, rule: str) -> Any:
    """Advantages within one group of rewards, none of them NaN."""
    n = len(x)
    constant = n == 0 or x.max() == x.min()
    if n == 1 and rule == "lone reward":
        return x / (1 + x.dtype.type(eps)) if scale == "group" else x
    if rule == "over mean":
        return np.zeros_like(x) if constant or _mean(x) == 0 else (x - _mean(x)) / _mean(x)
    if constant and (baseline != "none" or scale == "group"):
        return np.zeros_like(x)
    if baseline == "mean":
        a = x - _mean(x)
    elif baseline == "leave_one_out":
        a = (x - _mean(x)) * n / (n - 1)  # = x minus the mean of the others
    else:
        a = x
    if rule == "others":
        sigma = np.array([_std(np.delete(x, i), ddof) for i in range(n)])
        return np.where(sigma > 0, a / (sigma + eps), a)
    return a / (_std(x, ddof) + eps) if scale == "group" else a


def _best(x: Array, k: int | None, scale: str, ddof: int, eps: float) -> Array:
    """Without k only the best of a group counts; with k, max@k over all subsets, see `group_advantages`."""
    n = len(x)
    order = np.argsort(x, kind="stable")
    s = x[order]
    a = np.zeros_like(x)
    if k is None:
        if n and s[-1] > s[0]:
            a[order[-1]] = (s[-1] - s[-2]) / (_std(x, ddof) + eps if scale == "group" else 1)
        return a
    if n and s[-1] > s[0]:
        subsets = x.dtype.type(math.comb(n, k))
        for i in range(n):  # i is the largest of its subset, or j is
            a[order[i]] = s[i] * math.comb(i, k - 1) + sum(
                s[j] * math.comb(j - 1, k - 2) for j in range(i + 1, n) if k > 1
            )
        a /= subsets
        a -= a.mean()
    return a


def _options(
    function: str,
    baseline: str | None,
    scale: str | None,
    ddof: int | None,
    eps: float | None,
    preset: str | None,
) -> Preset:
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"{function}: preset is {preset!r}; expected one of {', '.join(PRESETS)}")
    p = Preset() if preset is None else PRESETS[preset]
    chosen = p.changed(baseline, scale, ddof, eps)
    if chosen.baseline not in BASELINES:
        raise ValueError(f"{function}: baseline is {baseline!r}; expected one of {', '.join(BASELINES)}")
    if chosen.scale not in SCALES:
        raise ValueError(f"{function}: scale is {scale!r}; expected one of {', '.join(SCALES)}")
    return chosen


@np.errstate(all="ignore")
def group_advantages(
    rewards: ArrayLike,
    groups: Any,
    *,
    weights: ArrayLike | None = None,
    baseline: str | None = None,
    scale: str | None = None,
    ddof: int | None = None,
    eps: float | None = None,
    preset: str | None = None,
    lengths: ArrayLike | None = None,
    k: int | None = None,
) -> GroupAdvantages:
    """``(r - baseline) / (scale + eps)`` within each group, r = nansum(weights * rewards).

    Examples
    --------
    >>> group_advantages(np.float32([1, 2, 4, 5, 6]), [7, 7, 3, 3, 3], preset="rloo").advantages.astype(float)
    array([-1. ,  1. , -1.5,  0. ,  1.5])
    """
    name = "group_advantages"
    given = _rewards(name, rewards)
    if given.ndim not in (1, 2):
        raise ValueError(f"{name}: rewards has shape {given.shape}; expected (B,) or (B, F)")
    B = len(given)
    columns = given[:, None] if given.ndim == 1 else given
    w = np.ones(columns.shape[1], widest()) if weights is None else like(name, "weights", weights, given)
    check_shape(name, "weights", w, (columns.shape[1],))
    scored = ~np.isnan(columns).all(axis=1)
    r = np.where(scored, np.nansum(w * columns, axis=1), NAN)
    keys, index = _groups(name, groups, B)
    o = _options(name, baseline, scale, ddof, eps, preset)
    if preset == "gdpo":
        z = np.stack([_advantages(columns[:, f], index, o, len(keys), None, None) for f in range(len(w))], 1)
        s = np.where(np.isnan(columns), 0, w * z).sum(axis=1)
        a = np.where(scored, (s - _mean(s[scored])) / (_std(s[scored], o.ddof) + o.eps), 0)
        a = np.zeros_like(a) if _std(s[scored], o.ddof) == 0 else a
    else:
        tokens = None if lengths is None else as_array(lengths).astype(widest())
        a = _advantages(r, index, o, len(keys), tokens, k)
    return GroupAdvantages(a, _stats(r, index, len(keys), o.ddof), index, keys)


def _advantages(r: Array, index: IntArray, o: Preset, n: int, lengths: Array | None, k: int | None) -> Array:
    a = np.zeros_like(r)
    scored = ~np.isnan(r)
    for g in range(n):
        here = (index == g) & scored
        x = r[here]
        if o.rule == "best":
            a[here] = _best(x, k, o.scale, o.ddof, o.eps)
        elif o.rule == "by length" and len(x):
            assert lengths is not None
            N = lengths[here].sum()
            mean = (lengths[here] * x).sum() / N if N else _mean(x)
            a[here] = np.zeros_like(x) if x.max() == x.min() else x - mean
        else:
            a[here] = _of_group(x, o.baseline, o.scale, o.ddof, o.eps, o.rule)
    if o.scale == "batch":
        sigma = _std(r[scored], o.ddof)
        a = a / (sigma + o.eps) if sigma > 0 else np.zeros_like(a)
    if o.rule == "whiten" and scored.any():
        assert lengths is not None
        tokens = np.where(scored, lengths, 0)
        N = tokens.sum()
        if N >= 2:
            mean = (tokens * a).sum() / N
            var = (tokens * (a - mean) ** 2).sum() / (N - o.ddof)
            a = np.where(scored & (var + o.eps > 0), (a - mean) / np.sqrt(var + o.eps), 0)
    return a


def group_stats(rewards: ArrayLike, groups: Any) -> tuple[Any, Array]:
    """The ids of the groups, and (n, 5): count, mean, sum of squared deviations, min and max of each.

    A group without rewards has 0, 0, 0, inf, -inf, which merges with any other.

    Examples
    --------
    >>> keys, state = group_stats(np.float32([1, 3, 5]), [9, 9, 4])
    >>> keys, state.astype(float)
    (array([9, 4]), array([[2., 2., 2., 1., 3.],
           [1., 5., 0., 5., 5.]]))
    """
    r = _rewards("group_stats", rewards)
    if r.ndim != 1:
        raise ValueError(f"group_stats: rewards has shape {r.shape}; expected (B,)")
    if (np.abs(r) > MOST_REWARD).any():
        raise ValueError(f"group_stats: rewards holds a number beyond {MOST_REWARD}, whose square overflows")
    keys, index = _groups("group_stats", groups, len(r))
    rows = []
    for g in range(len(keys)):
        x = r[(index == g) & ~np.isnan(r)]
        rows.append([len(x), _mean(x), _m2(x), x.min(), x.max()] if len(x) else [0, 0, 0, np.inf, -np.inf])
    return keys, np.array(rows, widest()).reshape(len(keys), 5)


def merge_group_stats(a: tuple[Any, ArrayLike], b: tuple[Any, ArrayLike]) -> tuple[Any, Array]:
    """Statistics of the union: the groups of a, then those that only b has (Chan, Golub & LeVeque 1979).

    Examples
    --------
    >>> one, two = group_stats(np.float32([1, 3]), 2), group_stats(np.float32([5]), 1)
    >>> merge_group_stats(one, two)[1].astype(float)
    array([[3., 3., 8., 1., 5.]])
    """
    numbers: dict[Any, int] = {}
    rows: list[Any] = []
    for keys, state in (a, b):
        for key, row in zip(as_array(keys).tolist(), as_array(state).astype(widest()), strict=True):
            if key not in numbers:
                numbers[key] = len(rows)
                rows.append(row)
                continue
            n1, mean1, q1, low1, high1 = rows[numbers[key]]
            n2, mean2, q2, low2, high2 = row
            n, d = n1 + n2, mean2 - mean1
            low, high = min(low1, low2), max(high1, high2)
            constant = not low < high
            rows[numbers[key]] = [
                n,
                low if constant and n else mean1 + d * n2 / n if n else 0,
                0 if constant else q1 + q2 + d * d * n1 * n2 / n,
                low,
                high,
            ]
    keys_a = as_array(a[0])
    merged = np.empty(len(numbers), keys_a.dtype)
    merged[:] = list(numbers)
    return merged, np.array(rows, widest()).reshape(len(rows), 5)


@np.errstate(all="ignore")
def advantages_from_stats(
    rewards: ArrayLike,
    groups: Any,
    stats: tuple[Any, ArrayLike],
    *,
    baseline: str | None = None,
    scale: str | None = None,
    ddof: int | None = None,
    eps: float | None = None,
    preset: str | None = None,
) -> GroupAdvantages:
    """Advantages of some samples of groups whose statistics (of all their samples) are known.

    Examples
    --------
    >>> stats = group_stats(np.float32([1, 2, 3]), 3)
    >>> advantages_from_stats(np.float32([1, 3]), [0, 0], stats, preset="dr_grpo").advantages.astype(float)
    array([-1.,  1.])
    """
    name = "advantages_from_stats"
    r = _rewards(name, rewards)
    o = _options(name, baseline, scale, ddof, eps, preset)
    if o.rule not in ("", "lone reward", "over mean"):
        raise ValueError(f"{name}: preset is {preset!r}, which needs all rewards of a group at once")
    keys, state = as_array(stats[0]), as_array(stats[1]).astype(widest())
    own, number = _groups(name, groups, len(r))
    rows = {key: i for i, key in enumerate(keys.tolist())}
    for key in own.tolist():
        if key not in rows:
            raise ValueError(f"{name}: groups holds {key!r}, of which stats knows nothing")
    index = np.array([rows[key] for key in own.tolist()], np.int64)[number] if len(r) else number
    count, mean, m2, low, high = state.T
    spread = low < high
    std = np.where(spread & (count > o.ddof), np.sqrt(m2 / (count - o.ddof)), 0)
    n, mu, sigma, constant = count[index], mean[index], std[index], ~spread[index]
    centred = {"mean": r - mu, "leave_one_out": (r - mu) * n / (n - 1), "none": r}[o.baseline]
    divisor = sigma + o.eps if o.scale == "group" else np.ones_like(sigma)
    a = np.where(divisor > 0, centred / divisor, 0)
    if o.rule == "over mean":
        a = np.where(mu == 0, 0, (r - mu) / mu)
    if o.baseline != "none" or o.scale == "group" or o.rule == "over mean":
        a = np.where(constant, 0, a)
    if o.rule == "lone reward":
        a = np.where(n == 1, r / (1 + r.dtype.type(o.eps)) if o.scale == "group" else r, a)
    if o.scale == "batch":
        N = count.sum()
        centre = (count * mean).sum() / N
        spread = np.sqrt((m2 + count * (mean - centre) ** 2).sum() / (N - o.ddof))
        a = a / (spread + o.eps) if low.min() < high.max() and o.ddof < N else np.zeros_like(a)
    a = np.where(np.isnan(r), 0, a)
    empty = count == 0
    table = np.stack([count, np.where(empty, NAN, mean), std, *np.where(empty, NAN, [low, high])], 1)
    return GroupAdvantages(a, table, index, keys)
