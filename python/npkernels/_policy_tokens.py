"""What the policy losses make of arrays of tokens, and what they tell about them."""

from __future__ import annotations

from typing import Any

import numpy as np

from npkernels._arrays import Array, floating, shape_error
from npkernels._grpo_types import PolicyMetrics
from npkernels._policy_options import Options
from npkernels._sequences import Layout

_ORDINARY = 1e30  # in the range of every compute dtype


class Tokens:
    """Takes arrays of one entry per token in the compute dtype, contiguous."""

    def __init__(self, function: str, layout: Layout, dtype: np.dtype[Any]) -> None:
        self.function, self.layout, self.dtype = function, layout, dtype

    def take(self, name: str, x: Any) -> Array:
        array = floating(self.function, name, x)
        if array.shape != self.layout.shape:
            shape_error(self.function, name, array.shape, f"one entry per token, {self.layout.shape}")
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, self.dtype)

    def optional(self, name: str, x: Any) -> Array | None:
        return None if x is None else self.take(name, x)

    def advantages(self, x: Any) -> Array:
        array = floating(self.function, "advantages", x)
        if array.shape not in ((self.layout.count,), self.layout.shape):
            expected = f"one per sequence, ({self.layout.count},), or per token, {self.layout.shape}"
            shape_error(self.function, "advantages", array.shape, expected)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, self.dtype)


def weights_of(layout: Layout, there: Array, o: Options) -> tuple[Array, Array]:
    """Kept tokens of each sequence, and the weight of each of them."""
    ends = layout.boundaries
    total = np.append(0, np.cumsum(there.reshape(-1)))
    counts = total[ends[1:]] - total[ends[:-1]]
    N, S = max(int(counts.sum()), 1), max(int((counts > 0).sum()), 1)
    ones = np.ones(len(counts))
    return counts, {
        "token-mean": ones / (N if o.total_tokens is None else o.total_tokens),
        "token-sum": ones,
        "seq-mean-token-sum": ones / S,
        "seq-mean-token-mean": 1 / (S * np.maximum(counts, 1.0)),
        "seq-mean-token-sum-norm": ones / (S * o.max_length),
    }[o.aggregate]


def corrections_of(old: Array, sampler: Array, there: Array, layout: Layout, o: Options) -> Array:
    """The correction between sampler and trainer of each token."""
    with np.errstate(all="ignore"):
        gap = np.where(there, old.astype(np.float64) - sampler, 0).reshape(-1)
        if o.of_sequence:
            sums = [
                gap[a:b].sum() for a, b in zip(layout.boundaries[:-1], layout.boundaries[1:], strict=True)
            ]
            gap = np.repeat(np.array(sums), layout.lengths)
        ratio = np.exp(gap)
        most = o.importance_cap
        c = np.minimum(ratio, most) if o.truncates else np.where(ratio > most, 0, ratio)
        return c.astype(old.dtype).reshape(layout.shape)


def metrics_of(totals: Any, dtype: np.dtype[Any], ref: bool, sampler: bool, entropy: bool) -> PolicyMetrics:
    tokens, sequences, *sums = totals
    means = [rounded(s / max(tokens, 1), dtype) for s in sums]
    ratio, low, high, old_kl, kl, importance, h = means
    return PolicyMetrics(
        tokens=tokens,
        sequences=sequences,
        ratio=ratio,
        clip_low=low,
        clip_high=high,
        old_kl=old_kl,
        kl=kl if ref else None,
        importance=importance if sampler else None,
        entropy=h if entropy else None,
    )


def rounded(x: float, dtype: np.dtype[Any]) -> Any:
    """A number as a scalar of the dtype; inf beyond its range."""
    if abs(x) < _ORDINARY:  # without the context, which takes longer than the rest
        return dtype.type(x)
    with np.errstate(over="ignore"):
        return dtype.type(x)
