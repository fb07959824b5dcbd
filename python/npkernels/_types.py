"""Result types that the public API and the reference share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Array = TypeVar("Array")


@dataclass(frozen=True, eq=False)
class TokenStats(Generic[Array]):
    """What `token_log_probs` tells about each token. A statistic that was not asked for is None.

    All fields have the shape of `ids`. `p` is the softmax of a token's row of logits at the given
    temperature.

    Attributes
    ----------
    log_prob : array
        Log-probability of the token, in nats.
    entropy : array or None
        Entropy of `p`, in nats.
    lse : array or None
        log sum exp of the row; what `token_log_probs_vjp` needs to rebuild `p`.
    sum_p2 : array or None
        Sum of the squares of `p`: the chance that two independent draws agree.
    top1 : array of int64 or None
        Index of the first largest logit; -1 where no entry takes part.
    rank : array of int64 or None
        How many logits are strictly larger than the token's own; 0 for the greedy choice.
    """

    log_prob: Array
    entropy: Array | None = None
    lse: Array | None = None
    sum_p2: Array | None = None
    top1: Array | None = None
    rank: Array | None = None
