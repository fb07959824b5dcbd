"""Results and tables of the GRPO family that the public API and the reference share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class GroupAdvantages:
    """What `group_advantages` gives: an advantage for each sample, and statistics of each group.

    Groups are numbered in the order in which they first appear. A reward of NaN is left out of all statistics and its
    advantage is 0.

    Attributes
    ----------
    advantages : array (B,)
        Of the dtype of the rewards.
    stats : array (n, 5) of float64
        The columns count, mean, std, min and max of the n groups. std is 0 for fewer than two rewards; mean, min and
        max are NaN where a group has none.
    """

    __slots__ = ("_groups", "_keys", "_kind", "_table", "advantages")
    arrays: ClassVar[tuple[str, ...]] = (
        "advantages",
        "mean",
        "std",
        "min",
        "max",
        "count",
        "zero_variance",
        "group_index",
    )

    def __init__(
        self, advantages: Any, stats: Array, groups: Any, keys: Any = None, kind: Any = None
    ) -> None:
        self.advantages = advantages
        self._table = stats
        self._groups = groups  # int: the size of consecutive groups; else the group of each sample
        self._keys = keys
        self._kind = kind  # makes the caller's kind of array of NumPy's

    def _given(self, array: Array) -> Any:
        return array if self._kind is None else self._kind(array)

    @property
    def stats(self) -> Any:
        """All statistics of the groups, (n, 5)."""
        return self._given(self._table)

    @property
    def count(self) -> Any:
        """How many rewards of each group are not NaN, int64."""
        return self._given(self._table[:, 0].astype(np.int64))

    @property
    def mean(self) -> Any:
        """Mean reward of each group."""
        return self._given(self._table[:, 1])

    @property
    def std(self) -> Any:
        """Standard deviation of each group's rewards, with the ddof that was asked for."""
        return self._given(self._table[:, 2])

    @property
    def min(self) -> Any:
        """Smallest reward of each group."""
        return self._given(self._table[:, 3])

    @property
    def max(self) -> Any:
        """Largest reward of each group."""
        return self._given(self._table[:, 4])

    def _constant(self) -> Array:
        return ~(self._table[:, 3] < self._table[:, 4])

    def _index(self) -> Array:
        if isinstance(self._groups, int):
            return np.arange(len(self.advantages)) // self._groups
        index: Array = self._groups
        return index

    @property
    def zero_variance(self) -> Any:
        """Which groups tell nothing: all their rewards are equal, exactly, or there are none."""
        return self._given(self._constant())

    @property
    def group_index(self) -> Any:
        """The number of each sample's group, int64 (B,)."""
        return self._given(self._index())

    @property
    def keys(self) -> Array:
        """The id of each group, a NumPy array: 0, 1, ... for groups given by their size."""
        return np.arange(len(self._table)) if self._keys is None else self._keys

    @property
    def informative(self) -> Any:
        """Which samples belong to a group whose rewards differ, bool (B,): those that DAPO keeps."""
        return self._given(~self._constant()[self._index()])

    @property
    def resample(self) -> Array:
        """The ids of the groups that tell nothing: the prompts that DAPO's dynamic sampling asks again."""
        keys: Array = self.keys[self._constant()]
        return keys

    def of_kind(self, kind: Any) -> GroupAdvantages:
        """The same, giving arrays of another kind."""
        return GroupAdvantages(kind(self.advantages), self._table, self._groups, self._keys, kind)

    def __repr__(self) -> str:
        return f"GroupAdvantages({len(self.advantages)} samples, {len(self._table)} groups)"


@dataclass(frozen=True, eq=False)
class PolicyMetrics:
    """What `policy_loss` tells about a batch; means are over the tokens that the mask allows.

    Attributes
    ----------
    tokens, sequences : int
        How many tokens the mask allows, and how many sequences have one.
    ratio : scalar
        Mean of the ratio between new and old policy that the loss uses (of a token, or of its sequence).
    clip_low, clip_high : scalar
        Share of the tokens whose ratio is below the range while the advantage is negative, and above it while the
        advantage is positive: those that the clip holds back.
    old_kl : scalar
        Mean of ``old_logp - logp``, the k1 estimate of how far the policy moved.
    kl : scalar or None
        Mean of the KL estimate between the policy and the reference; None without `ref_logp`.
    importance : scalar or None
        Mean of the correction between sampler and trainer; None without `sampler_logp`.
    entropy : scalar or None
        Mean entropy; None if it was not given.
    """

    tokens: int
    sequences: int
    ratio: Any
    clip_low: Any
    clip_high: Any
    old_kl: Any
    kl: Any = None
    importance: Any = None
    entropy: Any = None


@dataclass(frozen=True, eq=False)
class PolicyLoss:
    """A policy loss, its gradient and its metrics.

    Attributes
    ----------
    loss : scalar
        What is minimised; float64 for float64 inputs, else float32.
    metrics : PolicyMetrics
    dlogp : array or None
        Gradient with respect to the log-probabilities, 0 where the mask is False; None if it was not asked for.
    dlogits : array or None
        Gradient with respect to the logits, from `token_policy_loss`.
    """

    loss: Any
    metrics: PolicyMetrics
    dlogp: Any = None
    dlogits: Any = None


@dataclass(frozen=True)
class Preset:
    """How a project computes advantages; `rule` names what mean, scale and ddof cannot say."""

    baseline: str = "mean"
    scale: str = "group"
    ddof: int = 1
    eps: float = 1e-4
    rule: str = ""
    lengths: bool = False  # whether it needs them
    baselines: tuple[str, ...] = ("mean", "leave_one_out", "none")  # which may be asked for in its place
    scales: tuple[str, ...] = ("group", "batch", "none")

    def changed(self, baseline: str | None, scale: str | None, ddof: int | None, eps: float | None) -> Preset:
        """The same with what is given in its place."""
        new = replace(
            self,
            baseline=baseline or self.baseline,
            scale=scale or self.scale,
            ddof=self.ddof if ddof is None else ddof,
            eps=self.eps if eps is None else eps,
        )
        if self.rule == "others" and (new.baseline, new.scale) != ("leave_one_out", "group"):
            return replace(new, rule="")  # without either the deviation of the others is not asked for
        return new


_NO: tuple[str, ...] = ()
PRESETS = {
    "trl": Preset(),
    "verl": Preset(eps=1e-6, rule="lone reward"),
    "openrlhf": Preset(eps=1e-9),
    "nemo": Preset(
        baseline="leave_one_out",
        eps=1e-6,
        rule="others",
        baselines=("mean", "leave_one_out"),
        scales=("group", "none"),
    ),
    "open_instruct": Preset(ddof=0, eps=1e-8),
    "dr_grpo": Preset(scale="none"),
    "rloo": Preset(baseline="leave_one_out", scale="none"),
    "gdpo": Preset(rule="per function", baselines=_NO, scales=_NO),
    "maxrl": Preset(scale="none", rule="over mean", baselines=_NO, scales=_NO),
    "reinforce++": Preset(scale="none", eps=1e-8, rule="whiten", lengths=True, baselines=_NO, scales=_NO),
    "opo": Preset(scale="none", rule="by length", lengths=True, baselines=_NO, scales=_NO),
    "pass@k": Preset(eps=1e-6, rule="best", baselines=_NO, scales=("group", "none")),
}
BASELINES = ("mean", "leave_one_out", "none")
SCALES = ("group", "batch", "none")
STATE = ("count", "mean", "m2", "min", "max")  # the columns of group_stats
MOST_REWARD = 1e150  # beyond it squares overflow: group_stats refuses, group_advantages scales


@dataclass(frozen=True)
class Loss:
    """A policy loss by name: what is summed, at which level, aggregated how."""

    surrogate: str
    level: str
    aggregate: str


LOSSES = {
    "grpo": Loss("clip", "token", "seq-mean-token-mean"),
    "ppo": Loss("clip", "token", "token-mean"),
    "bnpo": Loss("clip", "token", "token-mean"),
    "dapo": Loss("clip", "token", "token-mean"),
    "dr_grpo": Loss("clip", "token", "seq-mean-token-sum-norm"),
    "cispo": Loss("cap", "token", "token-mean"),
    "cispo_clip": Loss("range", "token", "token-mean"),
    "gspo": Loss("clip", "sequence", "seq-mean-token-mean"),
    "sapo": Loss("gate", "token", "seq-mean-token-mean"),
    "gmpo": Loss("geometric", "sequence", "seq-mean-token-mean"),
    "gpg": Loss("log", "token", "token-mean"),
}
LEVELS = ("token", "sequence")
AGGREGATES = (
    "token-mean",
    "token-sum",
    "seq-mean-token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)
KLS = ("k1", "k2", "k3", "k3+")
IMPORTANCES = ("token-truncate", "token-mask", "sequence-truncate", "sequence-mask")
