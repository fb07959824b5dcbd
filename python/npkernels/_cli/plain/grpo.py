"""The GRPO family: the formulas of the reference, in the dtype of the input."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from npkernels import reference
from npkernels._arrays import Array, compute_dtype
from npkernels._cli.plain import softmax
from npkernels._cli.plain.sums import total
from npkernels._grpo_types import GroupAdvantages, PolicyLoss
from npkernels.reference._common import in_input_dtype

F = TypeVar("F", bound=Callable[..., Any])


def _as_reference(function: F) -> F:
    """Say that a function takes what its reference takes: it hands everything on."""
    function.__signature__ = inspect.signature(getattr(reference, function.__name__))  # type: ignore[attr-defined]
    return function


def _add(x: Array) -> Any:
    return total(x, None)


def _floating(x: Any) -> np.dtype[Any]:
    dtype = np.asarray(x).dtype
    return dtype if dtype.kind == "f" or dtype.name == "bfloat16" else np.dtype(np.float64)


def _advantages(name: str, rewards: Any, *args: Any, **kwargs: Any) -> GroupAdvantages:
    with in_input_dtype(_add):
        result: GroupAdvantages = getattr(reference, name)(rewards, *args, **kwargs)
    a = result.advantages.astype(_floating(rewards))
    return GroupAdvantages(a, result.stats, result.group_index, result.keys)


@_as_reference
def group_advantages(rewards: Any, groups: Any, **kwargs: Any) -> GroupAdvantages:
    """In float64."""
    return _advantages("group_advantages", rewards, groups, **kwargs)


@_as_reference
def advantages_from_stats(rewards: Any, groups: Any, stats: Any, **kwargs: Any) -> GroupAdvantages:
    """In float64."""
    return _advantages("advantages_from_stats", rewards, groups, stats, **kwargs)


def group_stats(rewards: Any, groups: Any) -> tuple[Any, Array]:
    """In float64."""
    with in_input_dtype(_add):
        return reference.group_stats(rewards, groups)


def merge_group_stats(a: Any, b: Any) -> tuple[Any, Array]:
    """In float64."""
    with in_input_dtype(_add):
        return reference.merge_group_stats(a, b)


@_as_reference
def policy_loss(logp: Any, *args: Any, **kwargs: Any) -> PolicyLoss:
    """In the dtype of logp."""
    with in_input_dtype(_add):
        r = reference.policy_loss(logp, *args, **kwargs)
    dtype = compute_dtype(_floating(logp))

    def narrow(value: Any) -> Any:
        return value if value is None or isinstance(value, int) else dtype.type(value)

    fields = {f.name: narrow(getattr(r.metrics, f.name)) for f in dataclasses.fields(r.metrics)}
    dlogp = None if r.dlogp is None else r.dlogp.astype(_floating(logp))
    return PolicyLoss(dtype.type(r.loss), dataclasses.replace(r.metrics, **fields), dlogp)


@_as_reference
def token_policy_loss(
    logits: Array,
    ids: Array,
    old_logp: Array,
    advantages: Array,
    mask: Array | None = None,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    **kwargs: Any,
) -> PolicyLoss:
    """The chain of log-probabilities, loss and gradient."""
    kept = np.ones(logits.shape[:-1], np.bool_) if mask is None else np.asarray(mask, np.bool_)
    x, at = np.where(kept[..., None], logits, logits.dtype.type(0)), np.where(kept, ids, 0)
    t = softmax.token_log_probs(x, at, temperature=temperature, stats=("lse", "entropy"))
    h = t.entropy if entropy else None
    r = policy_loss(t.log_prob, old_logp, advantages, mask, entropy=h, **kwargs)
    assert t.lse is not None
    dlogits = softmax.token_log_probs_vjp(r.dlogp, x, at, t.lse, temperature=temperature)
    return PolicyLoss(r.loss, r.metrics, None, dlogits)


@_as_reference
def kl_divergence(logp: Any, ref_logp: Any, estimator: str = "k3", **kwargs: Any) -> Array:
    """In the dtype of logp."""
    with in_input_dtype(_add):
        return reference.kl_divergence(logp, ref_logp, estimator, **kwargs)


@_as_reference
def discounted_returns(rewards: Any, gamma: Any, **kwargs: Any) -> Array:
    """In the dtype of rewards."""
    with in_input_dtype(_add):
        return reference.discounted_returns(rewards, gamma, **kwargs).astype(_floating(rewards))


@_as_reference
def gae(rewards: Any, values: Any, **kwargs: Any) -> tuple[Array, Array]:
    """In the dtype of rewards."""
    with in_input_dtype(_add):
        A, R = reference.gae(rewards, values, **kwargs)
    return A.astype(_floating(rewards)), R.astype(_floating(rewards))


def pass_at_k(n: Any, c: Any, k: Any) -> Array:
    """In float64."""
    return np.asarray(reference.pass_at_k(n, c, k)).astype(np.float64)


@_as_reference
def sample(logits: Any, **kwargs: Any) -> Array:
    """As the reference has it: tokens are exact."""
    return reference.sample(logits, **kwargs)


def beam_step(log_probs: Any, scores: Any, beam_width: int) -> tuple[Array, Array, Array]:
    """In the dtype of log_probs."""
    with in_input_dtype(_add):
        return reference.beam_step(log_probs, scores, beam_width)
