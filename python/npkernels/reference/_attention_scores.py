"""The scores of attention: what each query thinks of each key, and which keys it may attend to.

B batch, Hq/Hkv query/key heads (Hq a multiple of Hkv), S queries, K keys, D head size. Query head h uses key head
h // (Hq / Hkv). Query i stands at key position p = i + offset; key j stands at j.

1. s = scale * q @ k^T                              (B, Hq, S, K)
2. s = softcap * tanh(s / softcap)
3. s = s + bias - alibi_slopes * |p - j|
4. s = -inf where a key is hidden: by `mask`, by `causal` (j > p), by `window` (j < p - left or j > p + right), or since
   it does not exist (j >= kv_lengths)

offset is `q_offset` if given; else, for causal="bottom_right", kv_lengths - S, or K - S without kv_lengths; else 0.

Sources: softcap, Gemma 2 (2024); ALiBi, Press, Smith, Lewis (2021); sinks, Xiao et al., "Efficient streaming language
models with attention sinks" (2023), here a logit per head as in gpt-oss (2025).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ._common import Array, ArrayLike, BoolArray, IntArray, as_array, as_index, as_mask, broadcast, like
from .softmax import INF, plain_logsumexp, plain_softmax

Causal = bool | Literal["top_left", "bottom_right"]
FARTHEST = 2**62  # offsets are clipped here, so that i + offset fits into 64 bits


@dataclass(frozen=True)
class Options:
    """The options that say what the scores are, as they came."""

    mask: ArrayLike | None = None
    bias: ArrayLike | None = None
    causal: Causal = False
    window: Sequence[int] | None = None
    softcap: float = 0.0
    scale: float | None = None
    alibi_slopes: ArrayLike | None = None
    sinks: ArrayLike | None = None
    q_offset: ArrayLike | None = None
    kv_lengths: ArrayLike | None = None


@dataclass(frozen=True)
class Scores:
    """Scores and what goes with them.

    Attributes
    ----------
    s : array (B, Hq, S, K)
        The scores, -inf where the query may not attend to the key.
    allowed : array of bool (B, Hq, S, K)
        Where it may.
    slope : array, broadcasts to (B, Hq, S, K)
        Derivative of a score by its entry of ``q @ k^T``.
    sinks : array (B, Hq, S, 1) or None
        A further logit of each row.
    """

    s: Array
    allowed: BoolArray
    slope: Array
    sinks: Array | None


def to_4d(x: Array) -> Array:
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def from_4d(x: Array, ndim: int) -> Array:
    """A result (B, Hq, ...) for inputs of `ndim` dimensions: without the leading ones that were added."""
    return x.reshape(x.shape[4 - ndim :])


def check_qk(function: str, q: Array, k: Array) -> None:
    if q.ndim not in (2, 3, 4):
        raise ValueError(f"{function}: q has shape {q.shape}; expected (B, H, S, D), (H, S, D) or (S, D)")
    if k.ndim != q.ndim:
        raise ValueError(f"{function}: k has {k.ndim} dimensions, q has {q.ndim}; they must agree")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"{function}: k has head size {k.shape[-1]}, q has {q.shape[-1]}; they must agree")
    if q.ndim == 4 and k.shape[0] != q.shape[0]:
        raise ValueError(f"{function}: k has batch {k.shape[0]}, q has {q.shape[0]}; they must agree")
    if q.ndim > 2:
        check_heads(function, q.shape[-3], k.shape[-3])


def check_heads(function: str, heads_q: int, heads_k: int) -> None:
    if heads_q % heads_k if heads_k else heads_q:
        raise ValueError(
            f"{function}: k has {heads_k} heads, q has {heads_q}; q heads must be a multiple of k heads"
        )


def check_kv(function: str, k: Array, v: Array) -> None:
    if v.shape[:-1] != k.shape[:-1]:
        raise ValueError(
            f"{function}: v has shape {v.shape}, k has {k.shape}; all but the last dimension must agree"
        )


def repeat_heads(x: Array, heads: int) -> Array:
    """(B, Hkv, K, D) -> (B, heads, K, D): each key head is used by heads / Hkv query heads in a row."""
    return np.repeat(x, heads // x.shape[1], axis=1) if x.shape[1] else x


def sum_groups(x: Array, kv_heads: int) -> Array:
    """(B, Hq, K, D) -> (B, Hkv, K, D): the transpose of `repeat_heads`."""
    batch, heads, *rest = x.shape
    total: Array = x.reshape(batch, kv_heads, heads // max(kv_heads, 1), *rest).sum(axis=2)
    return total


def check_scale(function: str, scale: float | None, size: int, like_: Array) -> Any:
    if scale is None:
        return 1 / np.sqrt(like_.dtype.type(max(size, 1)))
    if not math.isfinite(scale):
        raise ValueError(f"{function}: scale is {scale}; expected a finite number")
    return scale


def check_softcap(function: str, softcap: float) -> None:
    if not (math.isfinite(softcap) and softcap >= 0):
        raise ValueError(f"{function}: softcap is {softcap}; expected a finite number > 0, or 0 for none")


def check_window(function: str, window: Sequence[int] | None) -> tuple[int, int]:
    """(left, right), -1 where open."""
    if window is None:
        return -1, -1
    try:
        sides = [operator.index(side) for side in window]
    except TypeError:
        raise TypeError(f"{function}: window is {window!r}; expected two integers (left, right)") from None
    if len(sides) != 2:
        raise ValueError(f"{function}: window has {len(sides)} elements; expected two, (left, right)")
    if min(sides) < -1:
        raise ValueError(f"{function}: window is {window!r}; expected integers >= -1, -1 = open")
    return sides[0], sides[1]


def check_causal(function: str, causal: Causal) -> None:
    if not (
        isinstance(causal, bool | np.bool_)
        or (isinstance(causal, str) and causal in ("top_left", "bottom_right"))
    ):
        raise ValueError(
            f"{function}: causal is {causal!r}; expected False, True, 'top_left' or 'bottom_right'"
        )


def is_true(causal: Any) -> bool:
    return isinstance(causal, bool | np.bool_) and bool(causal)


def offsets(function: str, name: str, value: Any, count: int) -> IntArray:
    """An integer, or one for each of `count` sequences: (count,)."""
    offset = as_index(function, name, value)
    if offset.shape not in ((), (count,)):
        raise ValueError(f"{function}: {name} has shape {offset.shape}; expected an integer or ({count},)")
    return np.broadcast_to(np.clip(offset, -FARTHEST, FARTHEST), (count,))


def _lengths(function: str, kv_lengths: Any, batch: int, keys: int) -> IntArray:
    """How many keys there are, (B,)."""
    if kv_lengths is None:
        return np.full(batch, keys)
    lengths = as_index(function, "kv_lengths", kv_lengths)
    if lengths.shape != (batch,):
        raise ValueError(f"{function}: kv_lengths has shape {lengths.shape}; expected ({batch},)")
    for b, length in enumerate(lengths.tolist()):
        if not 0 <= length <= keys:
            raise ValueError(f"{function}: kv_lengths[{b}] is {length}; expected 0 <= length <= {keys}")
    return lengths


def _positions(function: str, o: Options, lengths: IntArray, queries: int) -> IntArray:
    """Key positions of the queries, (B, 1, S, 1)."""
    check_causal(function, o.causal)
    if o.q_offset is not None:
        offset = offsets(function, "q_offset", o.q_offset, len(lengths))
    elif o.causal == "bottom_right":
        offset = lengths - queries
    else:
        if is_true(o.causal) and (lengths != queries).any():
            b = int(np.argmax(lengths != queries))
            where = "" if o.kv_lengths is None else f" in batch {b}"
            raise ValueError(
                f"{function}: causal=True with {queries} queries and {lengths[b]} keys{where} has two meanings; "
                "say causal='top_left', causal='bottom_right' or give q_offset"
            )
        offset = np.zeros(len(lengths), dtype=np.int64)
    return offset[:, None, None, None] + np.arange(queries)[:, None]


def _per_head(function: str, name: str, value: Any, like_: Array, shapes: list[tuple[int, ...]]) -> Array:
    """(Hq,) or (B, Hq), with the axes of queries and keys."""
    array = like(function, name, value, like_)
    if array.shape not in shapes:
        raise ValueError(
            f"{function}: {name} has shape {array.shape}; expected {' or '.join(map(str, shapes))}"
        )
    return array.reshape(*array.shape[:-1], array.shape[-1], 1, 1)


def scores(function: str, q: Array, k: Array, o: Options) -> Scores:
    """The scores of q (B, Hq, S, D) and k (B, Hkv, K, D)."""
    (batch, heads, queries, size), keys = q.shape, k.shape[2]
    shape = (batch, heads, queries, keys)
    scale = check_scale(function, o.scale, size, q)
    check_softcap(function, o.softcap)
    left, right = check_window(function, o.window)
    lengths = _lengths(function, o.kv_lengths, batch, keys)
    p, j = _positions(function, o, lengths, queries), np.arange(keys)

    s: Array = scale * (q @ np.swapaxes(repeat_heads(k, heads), -1, -2))
    slope: Array = np.full((1, 1, 1, 1), scale, dtype=q.dtype)
    if o.softcap:
        t = np.tanh(s / o.softcap)
        s, slope = o.softcap * t, scale * (1 - t * t)
    if o.bias is not None:
        if as_array(o.bias).dtype == np.bool_:
            raise TypeError(f"{function}: bias has dtype bool; expected numbers (mask= takes bool)")
        s = s + broadcast(function, "bias", like(function, "bias", o.bias, s), shape)
    if o.alibi_slopes is not None:
        either = [(heads,), (batch, heads)]
        s = s - _per_head(function, "alibi_slopes", o.alibi_slopes, s, either) * np.abs(p - j).astype(s.dtype)

    mask = as_mask(function, o.mask, shape)
    allowed = np.broadcast_to(j < lengths[:, None, None, None], shape)
    if mask is not None:
        allowed = allowed & mask
    if o.causal:
        allowed = allowed & (j <= p)
    if left >= 0:
        allowed = allowed & (p - j <= left)
    if right >= 0:
        allowed = allowed & (j - p <= right)

    sinks = None
    if o.sinks is not None:
        sinks = np.broadcast_to(
            _per_head(function, "sinks", o.sinks, s, [(heads,)]), (batch, heads, queries, 1)
        )
    return Scores(np.where(allowed, s, -INF), allowed, slope, sinks)


def softmax_of(z: Scores) -> tuple[Array, Array]:
    """The weights (B, Hq, S, K) and lse (B, Hq, S). A sink is one more key, whose weight goes nowhere."""
    s, allowed, keys = z.s, z.allowed, z.s.shape[-1]
    if z.sinks is not None:
        s = np.concatenate([s, z.sinks], axis=-1)
        allowed = np.concatenate([allowed, np.ones(z.sinks.shape, dtype=bool)], axis=-1)
    return plain_softmax(s, allowed, -1)[..., :keys], plain_logsumexp(s, -1)[..., 0]


def weighted_sum(weights: Array, values: Array) -> Array:
    """``weights (..., S, K) @ values (..., K, D)``, in which a weight of exactly 0 contributes nothing.

    That differs from a matrix product only where something is not finite, so such keys are added one by one.
    """
    wild = ~np.isfinite(weights).all(axis=tuple(i for i in range(weights.ndim) if i != weights.ndim - 1))
    wild |= ~np.isfinite(values).all(axis=tuple(i for i in range(values.ndim) if i != values.ndim - 2))
    total: Array = weights[..., ~wild] @ values[..., ~wild, :]
    for key in np.flatnonzero(wild):
        w = weights[..., key, None]
        total = total + np.where(w == 0, 0, w * values[..., key, None, :])
    return total
