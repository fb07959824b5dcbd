"""Advantages of samples within their groups, and statistics of groups that can be merged over machines."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, choice, floating, integers, kernel, number, plain, shape_error
from npkernels._group_keys import rows_of, united
from npkernels._grpo_types import BASELINES, MOST_REWARD, PRESETS, SCALES, GroupAdvantages, Preset
from npkernels._presets import best_of, by_length, others_deviation, per_function, whitened

ArrayLike = npt.ArrayLike
_NONE = SCALES.index("none")
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
Stats = tuple[Array, Array]


@kernel
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
    """Advantages of samples relative to their group: ``(r - baseline) / (deviation + eps)``.

    Parameters
    ----------
    rewards : array_like (B,) or (B, F)
        Of each sample, by F reward functions. NaN where a function does not apply: ``r = nansum(weights * rewards)``;
        a sample whose rewards are all NaN is left out of its group's statistics and gets 0.
    groups : int, or array_like (B,)
        The size G of consecutive groups, or the id of each sample's group: integers in any order, strings, or other
        hashable objects.
    weights : array_like (F,), optional
        Of the reward functions; 1 by default.
    baseline : {"mean", "leave_one_out", "none"}
        What is subtracted: the mean of the group, or of the others in it. Default: the preset's, else "mean".
    scale : {"group", "batch", "none"}
        Whose standard deviation divides. Default: the preset's, else "group".
    ddof : {0, 1}
        The deviation divides by ``count - ddof``. Default: the preset's, else 1.
    eps : float
        Is added to the deviation. Default: the preset's, else 1e-4.
    preset : str, optional
        What a project computes (read in their sources in 2025 and 2026); options that are given override it.

        * "trl": mean, group, 1e-4. "openrlhf" (group_norm): 1e-9. "open_instruct": 1e-8 with ddof 0. "dr_grpo": not
          scaled. "rloo": leave_one_out, not scaled (a lone sample gets 0; verl's loop gives it its reward).
        * "verl": 1e-6; a lone sample has mean 0 and deviation 1.
        * "nemo" (NeMo-RL): leave_one_out over the deviation of the others + 1e-6 where that is not 0.
        * "gdpo" (TRL): each function is normalised within the group, then their weighted sum over the batch.
        * "maxrl" (verl): ``(r - mean) / mean``, 0 where the mean is 0.
        * "reinforce++" (OpenRLHF's baseline): ``r - mean``, whitened over the tokens of the batch; needs `lengths`.
        * "opo" (verl): the baseline is the mean weighted by `lengths`.
        * "pass@k": with `k`, the unbiased gradient of max@k (pass@k for rewards of 0 and 1): the largest rewards of all
          k-subsets that hold the sample, added up over the number of all subsets, centred [1]_. Without `k`,
          as verl has it: only the best sample gets ``(best - second) / (deviation + 1e-6)``.
    lengths : array_like (B,), optional
        Tokens of each sample, for "reinforce++" and "opo".
    k : int, optional
        For "pass@k".

    Returns
    -------
    GroupAdvantages
        ``advantages`` of the dtype of the rewards; ``mean``, ``std``, ``min``, ``max``, ``count``, ``zero_variance`` of
        each group, ``group_index`` of each sample; ``informative`` (which samples to train on) and ``resample`` (which
        prompts to ask again).

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value; if a reward is infinite.

    Notes
    -----
    Computed in float64 from deviations, never from a difference of squares. Whether a group is constant is decided by
    ``max == min``; its advantages are exactly 0 then, unless ``baseline="none"`` and the group does not scale. Rewards
    of any size are fine (up to 1e150 for "nemo", "gdpo" and "reinforce++"). Groups are numbered in the order in which
    they first appear.

    References
    ----------
    .. [1] C. Walder, D. Karkhanis, "Pass@K policy optimization", 2025.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.group_advantages(np.array([1.0, 2, 3, 4, 5, 6]), 3, preset="rloo").advantages
    array([-1.5,  0. ,  1.5, -1.5,  0. ,  1.5])
    >>> g = npkernels.group_advantages([1.0, 0, 1, 1], ["a", "a", "b", "b"])
    >>> g.zero_variance, g.resample.tolist()
    (array([False,  True]), ['b'])
    """
    function = "group_advantages"
    nothing = (
        type(rewards) is np.ndarray and weights is None and lengths is None and k is None and preset is None
    )
    if (
        nothing
        and baseline is None
        and scale is None
        and ddof is None
        and eps is None
        and type(groups) is int
    ):
        common = _core.group_advantages_plain(rewards, groups)
        if common is not None:
            return GroupAdvantages(common[0], common[1], groups)
    r = floating(function, "rewards", rewards)
    o = _options(function, baseline, scale, ddof, eps, preset)
    if r.ndim not in (1, 2):
        shape_error(function, "rewards", r.shape, "(B,) or (B, F)")
    B = len(r)
    w = _weights(function, weights, r)
    tokens = _lengths(function, lengths, B, o, preset)
    _check_k(function, k, o, preset)
    if r.ndim == 2 and np.isinf(r).any():
        _infinite(function)
    index, n, keys = _numbered(function, groups, B)
    dtype = r.dtype
    total = _summed(r, w) if r.ndim == 2 else r
    x = np.ascontiguousarray(total, dtype if dtype in _FLOATS and r.ndim == 1 else np.float64)
    if o.rule == "per function":
        columns = r[:, None] if r.ndim == 1 else r
        z = [_call(np.ascontiguousarray(c, np.float64), index, n, o)[0] for c in columns.T]
        _, stats = _call(x, index, n, o)
        a = per_function(z, columns, w, o)
    elif o.rule in ("best", "by length", "whiten", "others"):
        x = x.astype(np.float64)
        a, stats = _call(x, index, n, o)
        numbers = np.arange(B) // index if isinstance(index, int) else index
        if o.rule == "best":
            a = best_of(x, numbers, stats, k, o)
        elif o.rule == "others":
            a = others_deviation(x, a, numbers, stats, o)
        else:
            assert tokens is not None
            a = by_length(x, numbers, n, tokens) if o.rule == "by length" else whitened(x, a, tokens, o)
    else:
        a, stats = _call(x, index, n, o)
    return GroupAdvantages(a.astype(dtype, copy=False), stats, index, keys)


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
    x = np.ascontiguousarray(r, r.dtype if r.dtype in _FLOATS else np.float64)
    wrong = np.abs(x) > min(MOST_REWARD, float(np.finfo(x.dtype).max))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"{function}: rewards holds {x[at]} at ({at},); expected numbers up to {MOST_REWARD:g}, or NaN"
        )
    index, n, keys = _numbered(function, groups, len(r))
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
    o = _options(function, baseline, scale, ddof, eps, preset)
    if o.rule not in ("", "lone reward", "over mean"):
        raise ValueError(
            f"{function}: preset is {preset!r}, which needs all rewards of a group; use group_advantages"
        )
    if np.isinf(r).any():
        _infinite(function)
    keys, state = _state(function, "stats", stats)
    own, _, names = _numbered(function, groups, len(r))
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
    factor = np.where(numerator == 0, 0, numerator / divisor)
    a = np.where(np.isnan(r), 0, (r - shift[index]) * factor[index])
    empty = count == 0
    parts = [count, np.where(empty, np.nan, mean), std, *np.where(empty, np.nan, [low, high])]
    return a, np.stack(parts, 1)


def _call(x: Array, index: Any, n: int, o: Preset) -> tuple[Array, Array]:
    lone, over_mean = o.rule == "lone reward", o.rule == "over mean"
    scale = SCALES.index(o.scale) if o.rule != "others" else _NONE
    return _core.group_advantages(
        x, index, n, BASELINES.index(o.baseline), scale, o.ddof, o.eps, lone, over_mean
    )


def _infinite(function: str) -> None:
    raise ValueError(
        f"{function}: rewards holds an infinity; expected finite numbers, or NaN where a reward does not apply"
    )


def _options(
    function: str, baseline: str | None, scale: str | None, ddof: Any, eps: Any, preset: str | None
) -> Preset:
    """The preset with what was given in its place."""
    p = Preset()
    if preset is not None:
        choice(function, "preset", preset, tuple(PRESETS))
        p = PRESETS[preset]
    if baseline is not None:
        choice(function, "baseline", baseline, BASELINES)
    if scale is not None:
        choice(function, "scale", scale, SCALES)
    if p.rule not in ("", "lone reward") and (baseline is not None or scale is not None):
        name = "baseline" if baseline is not None else "scale"
        raise ValueError(
            f"{function}: {name} is given, but preset {preset!r} has its own; leave one of them out"
        )
    if ddof is not None and (isinstance(ddof, bool) or ddof not in (0, 1)):
        raise ValueError(f"{function}: ddof is {ddof!r}; expected 0 or 1")
    if eps is not None:
        eps = number(function, "eps", eps)
        if not 0 <= eps < np.inf:
            raise ValueError(f"{function}: eps is {eps!r}; expected a finite number >= 0")
    return Preset(
        baseline or p.baseline,
        scale or p.scale,
        p.ddof if ddof is None else int(ddof),
        p.eps if eps is None else eps,
        p.rule,
        p.lengths,
    )


def _numbered(function: str, groups: Any, B: int) -> tuple[Any, int, Array | None]:
    """The size of consecutive groups or each sample's number; how many groups; their ids, None for a size."""
    if isinstance(groups, int | np.integer) and not isinstance(groups, bool):
        if groups < 1 or B % groups:
            raise ValueError(
                f"{function}: groups is {groups}; expected a size >= 1 that divides the {B} rewards"
            )
        return int(groups), B // int(groups), None
    ids = plain(function, "groups", groups)
    if ids.shape != (B,):
        shape_error(function, "groups", ids.shape, f"a size, or an id for each of the rewards, ({B},)")
    if ids.dtype.kind in "USO":
        numbers: dict[Any, int] = {}
        try:
            index = np.array([numbers.setdefault(i, len(numbers)) for i in ids.tolist()], np.int64)
        except TypeError as error:
            raise TypeError(f"{function}: groups holds an object that cannot be an id: {error}") from error
        keys = np.empty(len(numbers), object)
        keys[:] = list(numbers)
        return index, len(keys), keys
    index, keys = _core.number_groups(integers(function, "groups", groups))
    return index, len(keys), keys


def _state(function: str, name: str, stats: Any) -> Stats:
    if not isinstance(stats, tuple | list) or len(stats) != 2:
        raise TypeError(
            f"{function}: {name} is a {type(stats).__name__}; expected (keys, state) of group_stats"
        )
    keys, state = plain(function, f"{name}[0]", stats[0]), floating(function, f"{name}[1]", stats[1])
    if keys.ndim != 1 or state.shape != (len(keys), 5):
        shape_error(function, f"{name}[1]", state.shape, f"(n, 5) for the {keys.shape} keys")
    return keys, state.astype(np.float64, copy=False)


def _weights(function: str, weights: ArrayLike | None, r: Array) -> Array:
    functions = r.shape[1] if r.ndim == 2 else 1
    if weights is None:
        return np.ones(functions)
    w = floating(function, "weights", weights).astype(np.float64)
    if r.ndim != 2 or w.shape != (functions,):
        shape_error(function, "weights", w.shape, f"one weight for each function of rewards {r.shape}")
    if not np.isfinite(w).all():
        raise ValueError(f"{function}: weights holds {w[~np.isfinite(w)][0]}; expected finite numbers")
    return w


def _summed(r: Array, w: Array) -> Array:
    """nansum(w r), NaN where all are NaN."""
    wide = r.astype(np.float64)
    there = ~np.isnan(wide)
    return np.where(there.any(axis=1), (w * np.where(there, wide, 0)).sum(axis=1), np.nan)


def _lengths(function: str, lengths: Any, B: int, o: Preset, preset: str | None) -> Array | None:
    if o.lengths != (lengths is not None):
        needed = "needs them" if o.lengths else "does not use them"
        raise ValueError(
            f"{function}: lengths is {'given' if lengths is not None else None}, but preset {preset!r} {needed}"
        )
    if lengths is None:
        return None
    tokens = integers(function, "lengths", lengths)
    if tokens.shape != (B,):
        shape_error(function, "lengths", tokens.shape, f"one for each reward, ({B},)")
    if (tokens < 0).any():
        raise ValueError(f"{function}: lengths holds {tokens.min()}; expected numbers >= 0")
    return tokens.astype(np.float64)


def _check_k(function: str, k: Any, o: Preset, preset: str | None) -> None:
    if k is None:
        return
    if o.rule != "best":
        raise ValueError(f"{function}: k is {k!r}, but preset is {preset!r}; k goes with 'pass@k'")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"{function}: k is {k!r}; expected an integer >= 1")
