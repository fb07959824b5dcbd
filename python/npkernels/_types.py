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
        Index of the first largest logit (of the first NaN, if there is one); -1 where no entry takes part.
    rank : array of int64 or None
        How many logits are strictly larger than the token's own; 0 for the greedy choice.
    """

    log_prob: Array
    entropy: Array | None = None
    lse: Array | None = None
    sum_p2: Array | None = None
    top1: Array | None = None
    rank: Array | None = None


@dataclass(frozen=True, eq=False)
class AttentionGrads(Generic[Array]):
    """Gradients that `attention_vjp` and `attention_varlen_vjp` give, each with the shape of what it belongs to.

    Attributes
    ----------
    dq, dk, dv : array
        Gradients of queries, keys and values; of keys and values summed over the query heads that share them.
    dbias : array or None
        Gradient of the bias, summed over the axes along which it was broadcast; None unless asked for.
    dsinks : array (Hq,) or None
        Gradient of the sinks; None unless asked for.
    """

    dq: Array
    dk: Array
    dv: Array
    dbias: Array | None = None
    dsinks: Array | None = None


@dataclass(frozen=True, eq=False)
class MultiHeadGrads(Generic[Array]):
    """Gradients that `multi_head_attention_vjp` gives, each with the shape of what it belongs to.

    Attributes
    ----------
    dx : array
        Gradient of x; without a context that of all three projections.
    dwq, dwk, dwv, dwo : array
        Gradients of the projections.
    dcontext : array or None
        Gradient of the context; None without one.
    dbq, dbk, dbv, dbo : array or None
        Gradients of the biases; None for those that were not given.
    """

    dx: Array
    dwq: Array
    dwk: Array
    dwv: Array
    dwo: Array
    dcontext: Array | None = None
    dbq: Array | None = None
    dbk: Array | None = None
    dbv: Array | None = None
    dbo: Array | None = None
