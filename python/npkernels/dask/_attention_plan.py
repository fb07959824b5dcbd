"""Which blocks of queries and keys meet, and the options of each meeting, in global positions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npkernels._arrays import Array, compute_dtype, floating, number, plain
from npkernels._attention_options import check_shapes, options
from npkernels.dask._graph import DaskArray, Key, array, da, known, starts, whole

AXES = ("batch", "heads", "queries", "keys")


@dataclass(frozen=True)
class Plan:
    """Blocks of (B, Hq, S, K) and the checked options of the whole; b, h, i, j number blocks along these axes."""

    ndim: int
    q: DaskArray
    k: DaskArray
    v: DaskArray
    mask: DaskArray | None
    bias: DaskArray | None
    chunks: tuple[tuple[int, ...], ...]
    causal: bool
    left: int
    right: int
    softcap: float
    scale: float
    slopes: Array | None
    sinks: Array | None
    offset: Array  # (B,), the key position of query 0
    lengths: Array | None
    at: tuple[list[int], ...] = field(default=())  # where the blocks begin, per axis

    @property
    def wide(self) -> Any:
        """The dtype in which partial results travel."""
        return compute_dtype(self.q.dtype)

    def heads(self) -> Iterator[tuple[int, int]]:
        """Blocks (b, h) of batch and query heads."""
        return itertools.product(range(len(self.chunks[0])), range(len(self.chunks[1])))

    def k_head(self, h: int) -> int:
        """The block of key heads that block h of the query heads reads."""
        return h if len(self._k4()[1]) > 1 else 0

    def _k4(self) -> tuple[tuple[int, ...], ...]:
        return four(self.k.chunks)

    def key_of(self, x: DaskArray, *index: int) -> Key:
        """The key of a block of an array with the axes of q, from the numbers of the block on all four."""
        return (x.name, *index[4 - self.ndim :])

    def q_key(self, x: DaskArray, b: int, h: int, i: int) -> Key:
        """The key of a block of q, or of an array whose chunks are q's."""
        return self.key_of(x, b, h, i, 0)

    def lse_key(self, x: DaskArray, b: int, h: int, i: int) -> Key:
        """The key of a block of an array of one number for each query."""
        return (x.name, *(b, h, i)[4 - self.ndim :])

    def k_key(self, x: DaskArray, b: int, h: int, j: int) -> Key:
        """The key of the block of k or v that query heads h read."""
        return self.key_of(x, b, self.k_head(h), j, 0)

    def score_key(self, x: DaskArray | None, *index: int) -> Key | None:
        """The key of the block of the mask or bias that belongs to a block (b, h, i, j) of the scores."""
        if x is None:
            return None
        here = index[4 - x.ndim :]
        return (x.name, *(n if len(sizes) > 1 else 0 for n, sizes in zip(here, x.chunks, strict=True)))

    def needed(self, b: int, i: int) -> list[int]:
        """The blocks of keys to which some query of block i may attend."""
        batch = self._batch(b)
        S = self.chunks[2][i]
        if not S or batch.start == batch.stop:
            return []
        offset = self.offset[batch]
        first, last = self.at[2][i] + int(offset.min()), self.at[2][i] + S - 1 + int(offset.max())
        begin, end = 0, sum(self.chunks[3])  # the keys that matter
        if self.causal:
            end = min(end, last + 1)
        if self.right >= 0:
            end = min(end, last + self.right + 1)
        if self.left >= 0:
            begin = max(begin, first - self.left)
        if self.lengths is not None:
            end = min(end, int(self.lengths[batch].max()))
        sizes = zip(self.at[3], self.chunks[3], strict=True)
        return [j for j, (k, n) in enumerate(sizes) if n and k < end and k + n > begin]

    def _batch(self, b: int) -> slice:
        return slice(self.at[0][b], self.at[0][b] + self.chunks[0][b])

    def options(self, b: int, h: int, i: int, j: int | None, sinks: bool) -> dict[str, Any]:
        """The options of `npkernels.attention` for one block of the scores; j None for a block without keys."""
        batch, head = self._batch(b), slice(self.at[1][h], self.at[1][h] + self.chunks[1][h])
        chosen: dict[str, Any] = {"scale": self.scale}
        if sinks and self.sinks is not None:
            chosen["sinks"] = self.sinks[head]
        if j is None:
            return chosen
        if self.softcap:
            chosen["softcap"] = self.softcap
        if self.causal:
            chosen["causal"] = "top_left"
        if self.left >= 0 or self.right >= 0:
            chosen["window"] = (self.left, self.right)
        if self.slopes is not None:
            chosen["alibi_slopes"] = self.slopes[head] if self.slopes.ndim == 1 else self.slopes[batch, head]
        if len(chosen.keys() & {"causal", "window", "alibi_slopes"}):
            chosen["q_offset"] = self.offset[batch] + (self.at[2][i] - self.at[3][j])
        if self.lengths is not None:
            chosen["kv_lengths"] = np.clip(self.lengths[batch] - self.at[3][j], 0, self.chunks[3][j])
        return chosen


def four(chunks: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Chunks of an array with axes of length 1 put before those that it has."""
    return ((1,),) * (4 - len(chunks)) + chunks


def refuse_dropout(function: str, dropout_p: Any) -> None:
    """Raise unless nothing is to be dropped: what is would depend on the chunks."""
    if number(function, "dropout_p", dropout_p) != 0:
        raise NotImplementedError(
            f"{function}: dropout_p is {dropout_p!r}; expected 0, since npkernels.dask has no dropout "
            f"(npkernels.{function} has, for arrays that are whole)"
        )


def plan(function: str, q: Any, k: Any, v: Any, given: dict[str, Any]) -> Plan:
    """Check the arrays, their chunks and the options."""
    q, k, v = (array(function, name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    if not 2 <= q.ndim <= 4:
        raise ValueError(
            f"{function}: q has shape {q.shape}; expected (S, D), (H, S, D) or (B, H, S, D) with its chunks"
        )
    check_shapes(function, *(_standing_for(x) for x in (q, k, v)))
    for name, x in (("q", q), ("k", k), ("v", v)):
        whole(function, name, x, x.ndim - 1, "the axis of a head's numbers")
    if k.chunks[:-1] != v.chunks[:-1]:
        raise ValueError(
            f"{function}: v has chunks {v.chunks}, k has {k.chunks}; expected the same but for the last axis: "
            f"v.rechunk({(*k.chunks[:-1], v.chunks[-1])})"
        )
    q4, k4 = four(q.chunks), four(k.chunks)
    _check_heads(function, q.ndim, q4, k4)
    chunks = (*q4[:3], k4[2])
    scores = tuple(sum(sizes) for sizes in chunks)
    mask, bias = (_scores(function, name, given[name], chunks) for name in ("mask", "bias"))
    if mask is not None and mask.dtype != np.bool_:
        raise TypeError(f"{function}: mask has dtype {mask.dtype}; expected bool (True = takes part)")
    if bias is not None and bias.dtype != q.dtype:
        raise TypeError(f"{function}: bias has dtype {bias.dtype}; expected q's dtype {q.dtype}")
    small = {name: value for name, value in given.items() if name not in ("mask", "bias")}
    for name, value in small.items():
        if isinstance(value, da.Array):
            raise TypeError(
                f"{function}: {name} is a Dask array; expected a NumPy array, which all blocks get"
            )
    B, Hq, S, K = scores
    stand_in = np.broadcast_to(np.zeros((), q.dtype), (B, Hq, S, q.shape[-1]))
    _, _, slopes, sinks, causal, left, right, cap, scale, offset, lengths, _, _ = options(
        function, stand_in, S, K, B, **small
    )
    return Plan(
        q.ndim,
        q,
        k,
        v,
        mask,
        bias,
        chunks,
        causal,
        left,
        right,
        cap,
        scale,
        slopes,
        sinks,
        np.zeros(B, np.int64) if offset is None else offset,
        lengths,
        tuple(starts(sizes) for sizes in chunks),
    )


def _standing_for(x: DaskArray) -> Array:
    """A NumPy array of that shape and dtype without memory."""
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)


def _check_heads(function: str, ndim: int, q: tuple[Any, ...], k: tuple[Any, ...]) -> None:
    if q[0] != k[0]:
        raise ValueError(
            f"{function}: k has chunks {k[0]} along the batch, q has {q[0]}; expected the same: "
            f"k.rechunk({{0: {q[0]}}})"
        )
    if sum(k[1]) == 1:
        return
    share = sum(q[1]) // max(sum(k[1]), 1)
    expected = tuple(share * n for n in k[1])
    if q[1] != expected:
        raise ValueError(
            f"{function}: q has chunks {q[1]} along the heads, k has {k[1]}; expected {share} query heads for "
            f"each key head: q.rechunk({{{ndim - 3}: {expected}}})"
        )


def _scores(function: str, name: str, x: Any, chunks: tuple[tuple[int, ...], ...]) -> DaskArray | None:
    """The mask or the bias as a Dask array whose axes are of length 1 or chunked as the scores are."""
    if x is None:
        return None
    lazily = isinstance(x, da.Array)
    values = x if lazily else plain(function, name, x)
    if lazily:
        known(function, name, x)
    elif values.dtype != np.bool_:
        values = floating(function, name, values)
    shape = tuple(sum(sizes) for sizes in chunks)
    axes = range(4 - values.ndim, 4)
    if values.ndim > 4 or any(n not in (1, shape[axis]) for n, axis in zip(values.shape, axes, strict=True)):
        raise ValueError(
            f"{function}: {name} has shape {values.shape}; expected one that broadcasts to "
            f"(B, Hq, S, K) = {shape}"
        )
    wanted = tuple(
        chunks[axis] if n == shape[axis] else (1,) for n, axis in zip(values.shape, axes, strict=True)
    )
    if not lazily:
        return da.from_array(values, chunks=wanted)
    for axis, have, want in zip(axes, x.chunks, wanted, strict=True):
        if have != want:
            raise ValueError(
                f"{function}: {name} has chunks {have} along the {AXES[axis]}, the scores have {want}; "
                f"expected the same: {name}.rechunk({wanted})"
            )
    return x


def pairs(p: Plan) -> float:
    """The share of all pairs of blocks that are computed."""
    some = [len(p.needed(b, i)) for b in range(len(p.chunks[0])) for i in range(len(p.chunks[2]))]
    most = math.prod(len(p.chunks[axis]) for axis in (0, 2, 3))
    return sum(some) / max(most, 1)
