"""Statistics of groups that can be merged over machines, and the advantages that follow from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, floating, kernel, plain, shape_error
from npkernels._group_keys import rows_of, united
from npkernels._group_options import FLOATS, infinite, numbered, options_of
from npkernels._grpo_types import MOST_REWARD, GroupAdvantages, Preset

ArrayLike = npt.ArrayLike
Stats = tuple[Array, Array]


@kernel
def group_stats(rewards: ArrayLike, groups: Any) -> Stats:
    """Statistics of groups that can be merged with those of other machines: see `merge_group_stats`.

    Parameters
    ----------
    rewards : array_like (B,)
        NaN is left out.
    groups : int, or array_like (B,)
        As for `group_advantages`.

    Returns
    -------
    keys : ndarray (n,)
        The ids of the groups in the order of their first appearance.
    state : ndarray (n, 5) of float64
        Count, mean, sum of squared deviations, min and max of each; 0, 0, 0, inf, -inf for a group of NaN only.
        Squares of deviations below 1e-160 vanish: with ``eps=0`` their advantages are 0.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; if a reward is larger than 1e150, whose square overflows.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.group_stats(np.array([1.0, 3.0, 5.0]), [9, 9, 4])
    (array([9, 4]), array([[2., 2., 2., 1., 3.],
           [1., 5., 0., 5., 5.]]))
    """
    function = "group_stats"
    r = floating(function, "rewards", rewards)
    if r.ndim != 1:
        shape_error(function, "rewards", r.shape, "(B,)")
    x = np.ascontiguousarray(r, r.dtype if r.dtype in FLOATS else np.float64)
    wrong = np.abs(x) > min(MOST_REWARD, float(np.finfo(x.dtype).max))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"{function}: rewards holds {x[at]} at ({at},); expected numbers up to {MOST_REWARD:g}, or NaN"
        )
    index, n, keys = numbered(function, groups, len(r))
    return (np.arange(n) if keys is None else keys), _core.group_stats(x, index, n)


@kernel
def merge_group_stats(a: Stats, b: Stats) -> Stats:
    """Statistics of the union of two sets of samples, from those of each [1]_.

    Parameters
    ----------
    a, b : (keys, state)
        Of `group_stats`, or merged already.

    Returns
    -------
    keys : ndarray (n,)
        Those of a, then the new ones of b.
    state : ndarray (n, 5) of float64
        Merging in the same order gives the same bits, on any number of threads.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or has a group twice.

    References
    ----------
    .. [1] T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
       1979.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> one, two = npkernels.group_stats(np.array([1.0, 3]), 2), npkernels.group_stats(np.array([5.0]), 1)
    >>> npkernels.merge_group_stats(one, two)
    (array([0]), array([[3., 3., 8., 1., 5.]]))
    """
    function = "merge_group_stats"
    (keys_a, x), (keys_b, y) = _state(function, "a", a), _state(function, "b", b)
    keys, at = united(keys_a, keys_b)
    state = np.tile([0, 0, 0, np.inf, -np.inf], (len(keys), 1))
    state[: len(x)] = x
    n1, mean1, m1, low1, high1 = state[at].T
    n2, mean2, m2, low2, high2 = y.T
    n, d = n1 + n2, mean2 - mean1
    low, high = np.minimum(low1, low2), np.maximum(high1, high2)
    share = n2 / np.maximum(n, 1)
    constant = ~(low < high)
    mean = np.where(constant, np.where(n > 0, low, 0), mean1 + d * share)
    spread = np.where(constant, 0, m1 + m2 + d * d * (n1 * share))
    state[at] = np.stack([n, mean, spread, low, high], 1)
    return keys, state


@kernel
def advantages_from_stats(
    rewards: ArrayLike,
    groups: Any,
    stats: Stats,
    *,
    baseline: str | None = None,
    scale: str | None = None,
    ddof: int | None = None,
    eps: float | None = None,
    preset: str | None = None,
) -> GroupAdvantages:
    """Advantages of some samples of groups whose statistics, over all machines, are known.

    Parameters
    ----------
    rewards : array_like (B,)
        Of the samples at hand.
    groups : int, or array_like (B,)
        Their groups, with ids that stats has.
    stats : (keys, state)
        Of all samples, by `group_stats` and `merge_group_stats`.
    baseline, scale, ddof, eps, preset
        As for `group_advantages`; presets that need all rewards of a group at once are refused.

    Returns
    -------
    GroupAdvantages
        Its groups are those of stats.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or a group is not among the keys.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> stats = npkernels.group_stats(np.array([1.0, 2.0, 3.0]), 3)
    >>> npkernels.advantages_from_stats(np.array([1.0, 3.0]), [0, 0], stats, preset="dr_grpo").advantages
    array([-1.,  1.])
    """
    function = "advantages_from_stats"
    r = floating(function, "rewards", rewards)
    if r.ndim != 1:
        shape_error(function, "rewards", r.shape, "(B,)")
    o = options_of(function, baseline, scale, ddof, eps, preset)
    if o.rule not in ("", "lone reward", "over mean"):
        raise ValueError(
            f"{function}: preset is {preset!r}, which needs all rewards of a group; use group_advantages"
        )
    if np.isinf(r).any():
        infinite(function)
    keys, state = _state(function, "stats", stats)
    own, _, names = numbered(function, groups, len(r))
    names = np.arange(len(r) // own if isinstance(own, int) else 0) if names is None else names
    numbers = np.arange(len(r)) // own if isinstance(own, int) else own
    index = rows_of(function, keys, names)[numbers]
    with np.errstate(all="ignore"):
        a, table = _from_state(r.astype(np.float64), index, state, o)
        return GroupAdvantages(a.astype(r.dtype), table, index, keys)


def _from_state(r: Array, index: Array, state: Array, o: Preset) -> tuple[Array, Array]:
    count, mean, m2, low, high = state.T
    constant = ~(low < high)
    std = np.where(constant | (count <= o.ddof), 0, np.sqrt(m2 / (count - o.ddof)))
    divisor: Any = std + o.eps if o.scale == "group" else np.ones(len(state))
    numerator = count / (count - 1) if o.baseline == "leave_one_out" else np.ones(len(state))
    shift = np.zeros(len(state)) if o.baseline == "none" else mean
    if o.rule == "over mean":
        divisor, numerator = mean, np.where(mean == 0, 0, 1)
    if o.scale == "batch":
        N = count.sum()
        centre = (count * mean).sum() / N
        sigma = np.sqrt((m2 + count * (mean - centre) ** 2).sum() / (N - o.ddof))
        divisor, numerator = divisor * (sigma + o.eps), numerator * (low.min() < high.max() and o.ddof < N)
    if o.baseline != "none" or o.scale == "group" or o.rule:
        numerator = np.where(constant, 0, numerator)
    if o.rule == "lone reward":
        lone = count == 1
        shift, numerator = np.where(lone, 0, shift), np.where(lone, 1, numerator)
        divisor = np.where(lone, 1 + o.eps if o.scale == "group" else 1, divisor)
    factor = np.where((numerator == 0) | (divisor == 0), 0, numerator / divisor)
    a = np.where(np.isnan(r), 0, (r - shift[index]) * factor[index])
    empty = count == 0
    parts = [count, np.where(empty, np.nan, mean), std, *np.where(empty, np.nan, [low, high])]
    return a, np.stack(parts, 1)


def _state(function: str, name: str, stats: Any) -> Stats:
    if not isinstance(stats, tuple | list) or len(stats) != 2:
        raise TypeError(
            f"{function}: {name} is a {type(stats).__name__}; expected (keys, state) of group_stats"
        )
    keys, state = plain(function, f"{name}[0]", stats[0]), floating(function, f"{name}[1]", stats[1])
    if keys.ndim != 1 or state.shape != (len(keys), 5):
        shape_error(function, f"{name}[1]", state.shape, f"(n, 5) for the {keys.shape} keys")
    seen: set[Any] = set()
    for key in keys.tolist():
        if key in seen:
            raise ValueError(f"{function}: {name}[0] holds {key!r} twice; expected each group once")
        seen.add(key)
    return keys, state.astype(np.float64, copy=False)
