"""Advantages of samples within their groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, floating, integers, kernel, shape_error
from npkernels._group_options import FLOATS, infinite, numbered, options_of
from npkernels._grpo_types import BASELINES, SCALES, GroupAdvantages, Preset
from npkernels._presets import Scaled, best_of, by_length, others_deviation, per_function, whitened

ArrayLike = npt.ArrayLike
_LARGE = 1 << 60  # sizes that fit into an int64
_NONE = SCALES.index("none")


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
        The size G of consecutive groups, or the id of each sample's group: integers in any order, strings, tuples, or
        other hashable objects.
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
        What a project computes (read in their sources in 2026); options that are given override it.

        * "trl": mean, group, 1e-4. "openrlhf" (group_norm): 1e-9. "open_instruct" (standard): 1e-8 with ddof 0.
          "dr_grpo": not scaled. "rloo": leave_one_out, not scaled (a lone sample gets 0; verl's loop gives it its
          reward).
        * "verl": 1e-6; a lone sample has mean 0 and deviation 1.
        * "nemo" (NeMo-RL): leave_one_out over the deviation of the others + 1e-6 where that is not 0.
          ``baseline="mean"`` and ``scale="none"`` are its switches.
        * "gdpo" (TRL): each function is normalised within the group, then their weighted sum over the batch. verl
          weighs that by tokens; NeMo-RL leaves one out, and adds nothing to the last deviation.
        * "maxrl" [2]_: ``(r - mean) / mean``, 0 where the mean is 0; for rewards that are not negative.
        * "reinforce++" (verl's baseline variant): ``r - mean``, less its mean over the tokens of the batch, over
          ``sqrt(variance + 1e-8)``; needs `lengths`. OpenRLHF and NeMo-RL: ddof 0, and max(variance, 1e-8). A lone
          sample has deviation 0 here, its reward in verl.
        * "opo" (verl): the baseline is the mean weighted by `lengths`; a lone sample gets 0, in verl its reward.
        * "pass@k": with `k`, the unbiased gradient of max@k (pass@k for rewards of 0 and 1): the largest rewards of all
          k-subsets that hold the sample, added up over the number of all subsets, centred [1]_. Without `k`,
          as verl has it: only the best sample gets ``(best - second) / (deviation + 1e-6)``, or, with
          ``scale="none"``, ``best - second``.
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
    of any size are fine. Groups are numbered in the order in which they first appear.

    References
    ----------
    .. [1] C. Walder, D. Karkhanis, "Pass@K policy optimization", 2025.
    .. [2] F. Tajwar et al., "Maximum likelihood reinforcement learning", 2026.

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
        and 0 < groups < _LARGE
    ):
        common = _core.group_advantages_plain(rewards, groups)
        if common is not None:
            return GroupAdvantages(common[0], common[1], groups)
    r = floating(function, "rewards", rewards)
    o = options_of(function, baseline, scale, ddof, eps, preset)
    if r.ndim not in (1, 2):
        shape_error(function, "rewards", r.shape, "(B,) or (B, F)")
    B = len(r)
    w = _weights(function, weights, r)
    tokens = _lengths(function, lengths, B, o, preset)
    _check_k(function, k, o, preset, scale)
    if r.ndim == 2 and np.isinf(r).any():
        infinite(function)
    index, n, keys = numbered(function, groups, B)
    dtype = r.dtype
    total = _summed(function, r, w) if r.ndim == 2 else r
    x = np.ascontiguousarray(total, dtype if dtype in FLOATS and r.ndim == 1 else np.float64)
    a, stats = _call(x, index, n, o)
    if o.rule == "per function":
        columns = r[:, None] if r.ndim == 1 else r
        z = [_call(np.ascontiguousarray(c, np.float64), index, n, o)[0] for c in columns.T]
        a = per_function(z, columns, w, o)
    elif o.rule in ("best", "by length", "whiten", "others"):
        numbers = np.arange(B) // index if isinstance(index, int) else index
        scaled = Scaled.of(x.astype(np.float64), numbers, stats)
        if o.rule == "best":
            a = best_of(scaled, k, o)
        elif o.rule == "others":
            a = others_deviation(scaled, o)
        else:
            assert tokens is not None
            a = by_length(scaled, tokens) if o.rule == "by length" else whitened(scaled, tokens, o)
    with np.errstate(over="ignore"):
        return GroupAdvantages(a.astype(dtype, copy=False), stats, index, keys)


def _call(x: Array, index: Any, n: int, o: Preset) -> tuple[Array, Array]:
    lone, over_mean = o.rule == "lone reward", o.rule == "over mean"
    scale = SCALES.index(o.scale) if o.rule != "others" else _NONE
    return _core.group_advantages(
        x, index, n, BASELINES.index(o.baseline), scale, o.ddof, o.eps, lone, over_mean
    )


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


def _summed(function: str, r: Array, w: Array) -> Array:
    """nansum(w r), NaN where all are NaN."""
    wide = r.astype(np.float64)
    there = ~np.isnan(wide)
    with np.errstate(over="ignore", invalid="ignore"):
        total = (w * np.where(there, wide, 0)).sum(axis=1)
    if not np.isfinite(total).all():
        at = int((~np.isfinite(total)).argmax())
        raise ValueError(
            f"{function}: weights times rewards at ({at},) is {total[at]}, beyond float64; expected finite sums"
        )
    return np.where(there.any(axis=1), total, np.nan)


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


def _check_k(function: str, k: Any, o: Preset, preset: str | None, scale: str | None) -> None:
    if k is None:
        return
    if o.rule != "best":
        raise ValueError(f"{function}: k is {k!r}, but preset is {preset!r}; k goes with 'pass@k'")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"{function}: k is {k!r}; expected an integer >= 1")
    if scale is not None:
        raise ValueError(
            f"{function}: scale is {scale!r}, but with k = {k} nothing is scaled; leave one of them out"
        )
