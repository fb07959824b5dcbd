"""Advantage estimators for verl: its signature and its numbers, by `npkernels.group_advantages`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from npkernels._advantages import group_advantages
from npkernels._party import party

__all__ = ["ESTIMATORS", "estimator", "register"]

# The names of verl, and by which preset the advantage is had. `lone`: a sample alone in its group keeps its reward.
ESTIMATORS: dict[str, dict[str, Any]] = {
    "grpo": {"preset": "verl"},
    "rloo": {"preset": "rloo", "lone": True},
    "opo": {"preset": "opo", "lone": True},
    "grpo_passk": {"preset": "pass@k"},
    "reinforce_plus_plus_baseline": {"preset": "verl", "scale": "none", "whiten": True},
}
_SCALED = ("grpo", "grpo_passk")  # those that verl's norm_adv_by_std_in_grpo is for
_WHITE = 1e-8  # added to the variance by verl when it whitens


@functools.cache  # the same function each time: verl refuses another one of the same name
def estimator(name: str) -> Callable[..., tuple[Any, Any]]:
    """Give an advantage estimator with the signature of those in verl's `core_algos`.

    Parameters
    ----------
    name : str
        "grpo", "rloo", "opo", "grpo_passk" or "reinforce_plus_plus_baseline".

    Returns
    -------
    callable
        ``f(token_level_rewards, response_mask, index, epsilon=1e-6, norm_adv_by_std_in_grpo=True, config=None, **_)
        -> (advantages, returns)``, all PyTorch tensors (B, T), on any device (the scores, (B,), go to the CPU). `index`
        holds the id of each sample's group, of any kind.

    Raises
    ------
    ValueError
        If the name is none of these.

    Notes
    -----
    The score of a sample is the sum of its rewards. Groups whose scores are all equal get exactly 0, those with a NaN
    are NaN. Read in verl as of 2026.

    Examples
    --------
    >>> import numpy as np, torch, npkernels.contrib.verl
    >>> f = npkernels.contrib.verl.estimator("rloo")
    >>> rewards, mask = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2)
    >>> f(rewards, mask, np.array(["a", "a"], dtype=object))[0]
    tensor([[ 1.,  1.],
            [-1., -1.]])
    """
    if name not in ESTIMATORS:
        raise ValueError(f"verl.estimator: name is {name!r}; expected one of {', '.join(ESTIMATORS)}")
    rule = ESTIMATORS[name]

    def compute(
        token_level_rewards: Any,
        response_mask: Any,
        index: Any,
        epsilon: float = 1e-6,
        norm_adv_by_std_in_grpo: bool | None = None,
        config: Any = None,
        **_: Any,
    ) -> tuple[Any, Any]:
        scores = token_level_rewards.detach().sum(dim=-1)
        lengths = response_mask.detach().sum(dim=-1).cpu().long().numpy()
        options: dict[str, Any] = {k: v for k, v in rule.items() if k in ("preset", "scale")}
        if name in _SCALED:
            options["eps"] = epsilon
            if not _scaled(norm_adv_by_std_in_grpo, config):
                options["scale"] = "none"
        if name == "opo":
            options["lengths"] = lengths
        x = scores.cpu().double().numpy()
        g = group_advantages(x, np.asarray(index), **options)
        a = (
            np.where(np.asarray(g.count)[g.group_index] == 1, x, g.advantages)
            if "lone" in rule
            else g.advantages
        )
        # To group_advantages NaN is a reward that does not apply.
        broken = np.bincount(g.group_index, np.isnan(x)) > 0
        a = np.where(broken[g.group_index], np.nan, a)
        if "whiten" in rule:
            a = _whitened(a, lengths)
        spread = scores.new_tensor(a).unsqueeze(-1) * response_mask
        return spread, spread

    compute.__name__ = f"npkernels_{name}"
    return compute


def _scaled(given: bool | None, config: Any) -> bool:
    if given is not None:
        return bool(given)
    get = getattr(config, "get", None)
    return bool(get("norm_adv_by_std_in_grpo", True)) if get else True


def _whitened(a: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """To mean 0 and variance 1 over all tokens."""
    n = lengths.sum()
    if n < 2:
        raise ValueError(f"verl.estimator: response_mask has {n} tokens; expected 2 or more, to whiten")
    centred = a - (lengths * a).sum() / n
    return np.asarray(centred / np.sqrt((lengths * centred**2).sum() / (n - 1) + _WHITE))


def register(prefix: str = "npkernels_") -> list[str]:
    """Register all `ESTIMATORS` with verl, by `verl.trainer.ppo.core_algos.register_adv_est`.

    Then ``algorithm.adv_estimator=npkernels_grpo`` in verl's configuration chooses one.

    Parameters
    ----------
    prefix : str
        Put before the names; verl's own names are taken already.

    Returns
    -------
    list of str
        The names.

    Raises
    ------
    ImportError
        If verl is missing.
    """
    core = party("npkernels.contrib.verl", "verl.trainer.ppo.core_algos", "", "verl")
    names = [f"{prefix}{name}" for name in ESTIMATORS]
    for name in ESTIMATORS:
        core.register_adv_est(f"{prefix}{name}")(estimator(name))
    return names
