"""What is measured of attention, at the shapes of real models: forward, with backward, forward mode, and decoding.

Sizes are batch x query heads / key heads x length x head size. Operations are counted over the pairs of a query and a
key that it may see: two matrix products forward, seven forward and backward, six in forward mode. Gradients and
decoding are compared with the reference in one key head of one entry of the batch, which all queries of its group read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import npkernels
from npkernels._arrays import Array
from npkernels._cli import cases, plain
from npkernels._cli.workloads import Call, Inputs, Workload, _normal, as_numpy, some
from npkernels._types import AttentionGrads

NUMPY_SCORES = 1 << 28  # more than that many scores would not fit into the memory of a small machine


@dataclass(frozen=True)
class Size:
    """What attention is called with; `window` keys up to and with the query itself."""

    batch: int
    heads: int
    length: int
    dim: int
    kv_heads: int
    causal: bool
    window: int | None
    dtype: str

    @property
    def name(self) -> str:
        """As one reads it."""
        shown = f"{self.heads}/{self.kv_heads}" if self.kv_heads != self.heads else str(self.heads)
        masked = f" window {self.window}" if self.window else " causal" if self.causal else ""
        return f"{self.batch}x{shown}x{self.length}x{self.dim}{masked}"

    @property
    def pairs(self) -> float:
        """Of a query and a key that it may see, in all heads."""
        seen = (
            np.arange(1, self.length + 1).clip(max=self.window or self.length) if self.causal else self.length
        )
        return float(self.batch * self.heads * np.broadcast_to(seen, self.length).sum(dtype=np.float64))

    @property
    def options(self) -> dict[str, Any]:
        """For the kernel and the plain formula."""
        given: dict[str, Any] = {"causal": self.causal}
        return given | ({"window": (self.window - 1, 0)} if self.window else {})

    @property
    def for_peers(self) -> dict[str, Any]:
        """What other libraries need to know."""
        return {"causal": self.causal, "grouped": self.kv_heads != self.heads, "window": self.window}

    def bytes(self, of_q: int, of_k: int) -> float:
        """Of so many arrays of q's shape, and of k's."""
        heads = of_q * self.heads + of_k * self.kv_heads
        return float(cases.itemsize(self.dtype)) * self.batch * self.length * self.dim * heads

    def arrays(self, rng: np.random.Generator, queries: str, keys: str) -> Inputs:
        """Normal numbers: arrays of q's shape, and of k's."""
        shapes = dict.fromkeys(queries.split(), self.heads) | dict.fromkeys(keys.split(), self.kv_heads)
        return {
            name: _normal(rng, (self.batch, heads, self.length, self.dim), self.dtype)
            for name, heads in shapes.items()
        }

    def one_head(self, x: Any) -> Array:
        """The part of an array that belongs to the first key head of the first entry of the batch."""
        count = self.heads // self.kv_heads if x.shape[1] == self.heads else 1
        return as_numpy(x)[:1, :count]


def _size_of(
    batch: int,
    heads: int,
    length: int,
    dim: int,
    *,
    kv_heads: int | None = None,
    causal: bool = False,
    window: int | None = None,
    dtype: str = "float32",
) -> Size:
    groups = heads if kv_heads is None else kv_heads
    return Size(batch, heads, length, dim, groups, causal or bool(window), window, dtype)


def attention(*shape: int, quick: bool = False, **given: Any) -> Workload:
    """Self-attention; with `causal` a query sees itself and what is before it."""
    size = _size_of(*shape, **given)
    places = some(size.length)

    def rows(inputs: Inputs) -> tuple[Sequence[Any], dict[str, Any]]:
        distance = places[:, None] - np.arange(size.length)
        seen = (distance >= 0) & (distance < (size.window or size.length))
        return (inputs["q"][:, :, places], inputs["k"], inputs["v"]), {"mask": seen} if size.causal else {}

    return Workload(
        kernel="attention",
        family="attention",
        dtype=size.dtype,
        size=size.name,
        limit="multiply-adds" if size.length > 1 else "none",
        flops=4 * size.pairs * size.dim,
        bytes=size.bytes(2, 2),
        quick=quick,
        make=lambda rng: size.arrays(rng, "q", "k v"),
        ours=lambda inputs: lambda: npkernels.attention(**inputs, **size.options),
        numpy=None
        if size.batch * size.heads * size.length**2 >= NUMPY_SCORES
        else lambda inputs: lambda: plain.attention(**inputs, **size.options),
        rows=rows,
        part=lambda result: as_numpy(result)[:, :, places],
        options=size.for_peers,
    )


def attention_vjp(*shape: int, quick: bool = False, **given: Any) -> Workload:
    """Forward and backward: output and lse, then the gradients of q, k and v."""
    size = _size_of(*shape, **given)

    def both(inputs: Inputs, forward: Any, backward: Any) -> Call:
        dout, q, k, v = (inputs[name] for name in ("dout", "q", "k", "v"))

        def call() -> AttentionGrads[Array]:
            out, lse = forward(q, k, v, **size.options, return_lse=True)
            grads: AttentionGrads[Array] = backward(dout, q, k, v, out, lse, **size.options)
            return grads

        return call

    def rows(inputs: Inputs) -> tuple[Sequence[Any], dict[str, Any]]:
        dout, q, k, v = (size.one_head(inputs[name]) for name in ("dout", "q", "k", "v"))
        out, lse = npkernels.attention(q, k, v, **size.options, return_lse=True)
        return (dout, q, k, v, out, lse), size.options

    return Workload(
        kernel="attention_vjp",
        family="attention",
        dtype=size.dtype,
        size=f"{size.name} with forward",
        limit="multiply-adds",
        flops=14 * size.pairs * size.dim,
        bytes=size.bytes(4, 4),
        quick=quick,
        make=lambda rng: size.arrays(rng, "dout q", "k v"),
        ours=lambda inputs: both(inputs, npkernels.attention, npkernels.attention_vjp),
        numpy=None
        if size.batch * size.heads * size.length**2 >= NUMPY_SCORES >> 2
        else lambda inputs: both(inputs, plain.attention, plain.attention_vjp),
        rows=rows,
        part=lambda grads: AttentionGrads(*map(size.one_head, (grads.dq, grads.dk, grads.dv))),
        options=size.for_peers,
    )


def attention_jvp(*shape: int, quick: bool = False, **given: Any) -> Workload:
    """Output and tangent in one pass."""
    size = _size_of(*shape, **given)
    names = ("q", "k", "v", "dq", "dk", "dv")
    return Workload(
        kernel="attention_jvp",
        family="attention",
        dtype=size.dtype,
        size=size.name,
        limit="multiply-adds",
        flops=12 * size.pairs * size.dim,
        bytes=size.bytes(4, 4),
        quick=quick,
        make=lambda rng: size.arrays(rng, "q dq", "k v dk dv"),
        ours=lambda inputs: lambda: npkernels.attention_jvp(**inputs, **size.options),
        numpy=lambda inputs: lambda: plain.attention_jvp(**inputs, **size.options),
        rows=lambda inputs: ([size.one_head(inputs[name]) for name in names], size.options),
        part=lambda result: tuple(map(size.one_head, result)),
    )


def decode(
    batch: int, heads: int, length: int, dim: int, *, kv_heads: int | None = None, quick: bool = False
) -> Workload:
    """One new token of each sequence over a cache of that many; the bytes are those of keys and values."""
    size = _size_of(batch, heads, length, dim, kv_heads=kv_heads)

    def make(rng: np.random.Generator) -> Inputs:
        return {"q": _normal(rng, (batch, heads, 1, dim)), **size.arrays(rng, "", "k v")}

    def call(inputs: Inputs) -> Call:
        cache = npkernels.KVCache.from_arrays(inputs["k"], inputs["v"], np.full(batch, length))
        return lambda: cache.attend(inputs["q"])

    def rows(inputs: Inputs) -> tuple[Sequence[Any], dict[str, Any]]:
        return (*(size.one_head(inputs[name]) for name in "qkv"), np.array([length])), {}

    return Workload(
        kernel="cached_attention",
        family="attention",
        dtype="float32",
        size=size.name,
        limit="read",
        flops=4.0 * batch * heads * length * dim,
        bytes=size.bytes(0, 2),
        quick=quick,
        make=make,
        ours=call,
        numpy=lambda inputs: lambda: plain.attention(**inputs),
        rows=rows,
        part=size.one_head,
        options=size.for_peers,
    )


SHAPES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 12, 128, 64), {}),
    ((1, 12, 512, 64), {}),
    ((8, 12, 197, 64), {}),
    ((1, 8, 4096, 64), {}),
    ((1, 8, 2048, 128), {}),
    ((4, 32, 512, 128), {"kv_heads": 8}),
    ((1, 12, 128, 64), {"causal": True}),
    ((1, 12, 512, 64), {"causal": True}),
    ((1, 12, 1024, 64), {"causal": True}),
    ((1, 8, 4096, 64), {"causal": True}),
    ((1, 32, 1024, 128), {"kv_heads": 8, "causal": True}),
    ((1, 16, 4096, 64), {"window": 256}),
]
QUICK = (1, 6, 8)  # of SHAPES


def of_attention() -> list[Workload]:
    """All of them."""
    listed = [attention(1, 1, 1, 16, quick=True)]
    for dtype in ("float32", "bfloat16"):
        for i, (shape, options) in enumerate(SHAPES):
            quick = i in (QUICK if dtype == "float32" else QUICK[:1])
            listed.append(attention(*shape, **options, dtype=dtype, quick=quick))
    for dtype in ("float32", "bfloat16"):
        for i, (shape, options) in enumerate(SHAPES):
            quick = dtype == "float32" and i in QUICK[:1]
            listed.append(attention_vjp(*shape, **options, dtype=dtype, quick=quick))
    return [
        *listed,
        attention_jvp(1, 12, 1024, 64, causal=True, quick=True),
        attention_jvp(1, 8, 2048, 128),
        decode(1, 32, 4096, 128, quick=True),
        decode(1, 32, 32768, 128, kv_heads=8),
        decode(8, 32, 2048, 128, kv_heads=8),
    ]
