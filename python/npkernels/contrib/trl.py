"""TRL's group advantages, number for number, from the options of its `GRPOConfig`. TRL itself is not needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._advantages import group_advantages
from npkernels._arrays import choice, kernel, plain, shape_error

__all__ = ["advantages"]

_AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")


@kernel
def _advantages(rewards_per_func: Any, groups: int, weights: Any, preset: str, scale: str | None) -> Any:
    return group_advantages(rewards_per_func, groups, weights=weights, preset=preset, scale=scale).advantages


def advantages(
    rewards_per_func: npt.ArrayLike,
    config: Any = None,
    *,
    num_generations: int | None = None,
    reward_weights: npt.ArrayLike | None = None,
    scale_rewards: str | bool | None = None,
    multi_objective_aggregation: str | None = None,
) -> Any:
    """Advantages as TRL's `GRPOTrainer` computes them.

    Parameters
    ----------
    rewards_per_func : array_like (B, F)
        Rewards of B completions, those of one prompt together, by F reward functions; NaN where a function returned
        None. Any CPU array.
    config : object, optional
        A `GRPOConfig`, or anything with the attributes of the options below.
    num_generations : int
        Completions of one prompt; from config if not given.
    reward_weights : array_like (F,), optional
        1 by default.
    scale_rewards : {"group", "batch", "none"} or bool
        Whose standard deviation divides; True is "group", False is "none". "group" by default.
    multi_objective_aggregation : {"sum_then_normalize", "normalize_then_sum"}
        The first by default. With the second each function is normalised within the group, and then the weighted sum
        over the batch, whatever `scale_rewards` says.

    Returns
    -------
    array (B,)
        Of the kind and dtype of the rewards. Completions without any reward get 0 and take no part, as in TRL. Groups
        whose rewards are all equal get exactly 0, where TRL's can differ from 0 by its rounding over 1e-4.

    Raises
    ------
    TypeError, ValueError
        If an option is none of these; if num_generations does not divide B; if a reward is infinite.

    Notes
    -----
    ``r = nansum(weights * rewards)``, ``(r - nanmean(r)) / (nanstd(r) + 1e-4)``, ddof 1. Read in TRL 1.10.

    Examples
    --------
    >>> import numpy as np, npkernels.contrib.trl
    >>> rewards = np.array([[1.0, 0.5], [0.0, np.nan], [1.0, 0.5], [1.0, 0.5]])
    >>> npkernels.contrib.trl.advantages(rewards, num_generations=2, scale_rewards="none")
    array([ 0.75, -0.75,  0.  ,  0.  ])
    """
    function = "trl.advantages"

    def option(name: str, given: Any, default: Any) -> Any:
        value = getattr(config, name, None) if given is None else given
        return default if value is None else value

    group = option("num_generations", num_generations, None)
    if group is None:
        raise TypeError(f"{function}: num_generations is missing; pass it, or a config that has it")
    scale = option("scale_rewards", scale_rewards, "group")
    scale = {True: "group", False: "none"}.get(scale, scale) if isinstance(scale, bool) else scale
    choice(function, "scale_rewards", scale, ("group", "batch", "none"))
    aggregation = option("multi_objective_aggregation", multi_objective_aggregation, _AGGREGATIONS[0])
    choice(function, "multi_objective_aggregation", aggregation, _AGGREGATIONS)
    shape = plain(function, "rewards_per_func", rewards_per_func).shape
    if len(shape) != 2:
        shape_error(function, "rewards_per_func", shape, "(B, F)")
    if not isinstance(group, int | np.integer) or isinstance(group, bool) or group < 1 or shape[0] % group:
        raise ValueError(
            f"{function}: num_generations is {group!r}; expected an integer >= 1 that divides the {shape[0]} "
            "completions"
        )
    weights = option("reward_weights", reward_weights, None)
    apart = aggregation == "normalize_then_sum"
    preset, scale = ("gdpo", None) if apart else ("trl", scale)
    return _advantages(rewards_per_func, int(group), weights, preset, scale)
