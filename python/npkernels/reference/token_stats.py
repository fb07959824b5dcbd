"""Statistics of tokens under their logits, and perplexity.

logits (..., V), ids (...): one row of V logits per token. The distribution of a row is
p = softmax(logits / temperature) over the entries that the mask allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._types import TokenStats
from ._common import (
    Array,
    ArrayLike,
    BoolArray,
    IntArray,
    as_index,
    as_mask,
    check_range,
    check_shape,
    like,
    working,
)
from .softmax import INF, only, plain_entropy, plain_log_softmax, plain_logsumexp, plain_softmax, scores

STATS = ("entropy", "lse", "sum_p2", "top1", "rank")


def _take(rows: npt.NDArray[Any], ids: IntArray) -> npt.NDArray[Any]:
    """rows[..., ids]: the entry of each token."""
    taken: npt.NDArray[Any] = np.take_along_axis(rows, ids[..., None], axis=-1)
    return taken[..., 0]


def _top1(logits: Array, allowed: BoolArray | None) -> IntArray:
    """Index of the first maximum (of the first NaN if there is one); -1 for a row with nothing to choose."""
    if logits.shape[-1] == 0:
        return np.full(logits.shape[:-1], -1, dtype=np.int64)
    if allowed is None:
        return np.asarray(np.argmax(logits, axis=-1), dtype=np.int64)
    logits = np.where(allowed, logits, -INF)
    nothing = (logits == -INF).all(axis=-1)
    return np.asarray(np.where(nothing, -1, np.argmax(logits, axis=-1)), dtype=np.int64)


def _rank(logits: Array, allowed: BoolArray | None, ids: IntArray) -> IntArray:
    """How many logits are strictly larger than the token's own; a masked entry counts as -inf."""
    if allowed is not None:
        logits = np.where(allowed, logits, -INF)
    larger: IntArray = (logits > _take(logits, ids)[..., None]).sum(axis=-1, dtype=np.int64)
    return larger


@np.errstate(all="ignore")
def token_log_probs(
    logits: ArrayLike,
    ids: ArrayLike,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    stats: Sequence[str] = STATS,
) -> TokenStats[Any]:
    """``log p[id]`` of every token, and what else `stats` asks for; see `TokenStats`.

    Examples
    --------
    >>> stats = token_log_probs(np.float32([[0, 0, 0, 0]]), [2])
    >>> stats.log_prob.round(4), stats.entropy.round(4), stats.rank
    (array([-1.3863]), array([1.3863]), array([0]))
    """
    unknown = [name for name in ([stats] if isinstance(stats, str) else stats) if name not in STATS]
    if unknown or isinstance(stats, str):
        raise ValueError(f"token_log_probs: stats is {stats!r}; expected a sequence of names out of {STATS}")
    (x,) = working("token_log_probs", logits=logits)
    index = as_index("token_log_probs", "ids", ids)
    if x.ndim == 0:
        raise ValueError("token_log_probs: logits is a scalar; expected (..., V)")
    check_shape("token_log_probs", "ids", index, x.shape[:-1])
    check_range("token_log_probs", "ids", index, x.shape[-1])
    z, allowed = scores("token_log_probs", x, temperature, mask)
    p = plain_softmax(z, allowed, -1)
    log_p = plain_log_softmax(z, allowed, -1)
    return TokenStats(
        log_prob=_take(log_p, index),
        entropy=plain_entropy(p, log_p, -1) if "entropy" in stats else None,
        lse=plain_logsumexp(z, -1)[..., 0] if "lse" in stats else None,
        sum_p2=(p * p).sum(axis=-1) if "sum_p2" in stats else None,
        top1=_top1(x, allowed) if "top1" in stats else None,
        rank=_rank(x, allowed, index) if "rank" in stats else None,
    )


@np.errstate(all="ignore")
def token_log_probs_vjp(
    dlogp: ArrayLike,
    logits: ArrayLike,
    ids: ArrayLike,
    lse: ArrayLike,
    *,
    dentropy: ArrayLike | None = None,
    entropy: ArrayLike | None = None,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
) -> Array:
    """``dlogits = (dlogp * (onehot(id) - p) - dentropy * p * (log p + entropy)) / temperature``.

    p = exp(logits / temperature - lse); p log p is 0 where p = 0. Masked entries get 0, and with a mask so
    does every entry of a row with lse = -inf.

    Examples
    --------
    >>> token_log_probs_vjp(np.float32([1]), np.float32([[0, 0]]), [1], np.log(np.float32([2]))).round(4)
    array([[-0.5,  0.5]])
    """
    name = "token_log_probs_vjp"
    (x,) = working(name, logits=logits)
    index = as_index(name, "ids", ids)
    if x.ndim == 0:
        raise ValueError(f"{name}: logits is a scalar; expected (..., V)")
    tokens = x.shape[:-1]
    check_shape(name, "ids", index, tokens)
    check_range(name, "ids", index, x.shape[-1])
    z, allowed = scores(name, x, temperature, mask)

    def per_token(argument: str, value: ArrayLike) -> Array:
        array = like(name, argument, value, x)
        check_shape(name, argument, array, tokens)
        return array[..., None]

    dlogp_, lse_ = per_token("dlogp", dlogp), per_token("lse", lse)
    log_p = z - lse_
    p = np.exp(log_p)
    onehot = np.arange(x.shape[-1]) == index[..., None]
    dlogits = dlogp_ * (onehot - p)
    if dentropy is not None:
        if entropy is None:
            raise ValueError(f"{name}: dentropy needs entropy, the value that token_log_probs gave")
        h = per_token("entropy", entropy)
        dlogits -= per_token("dentropy", dentropy) * np.where(p == 0, 0, p * (log_p + h))
    if allowed is not None:
        dlogits = np.where(lse_ == -INF, 0, only(allowed, dlogits))
    result: Array = dlogits / temperature
    return result


@np.errstate(all="ignore")
def perplexity(log_probs: ArrayLike, mask: ArrayLike | None = None, axis: int | None = -1) -> Array:
    """``exp(-mean(log_probs))`` along `axis` (None: all) over the tokens that the mask allows; NaN if none.

    Examples
    --------
    >>> float(perplexity(np.log(np.float32([0.5, 0.5, 0.1])), [True, True, False]).round(4))
    2.0
    """
    (x,) = working("perplexity", log_probs=log_probs)
    if axis is not None and not -x.ndim <= axis < x.ndim:
        raise ValueError(f"perplexity: axis {axis} is out of range for log_probs with {x.ndim} dimensions")
    allowed = as_mask("perplexity", mask, x.shape)
    count = np.ones(x.shape, dtype=bool) if allowed is None else allowed
    result: Array = np.exp(-only(allowed, x).sum(axis=axis) / count.sum(axis=axis))
    return result
