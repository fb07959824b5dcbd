"""What the kernels of attention are called with: sizes around the tiles, every option, views and special values.

A tile has up to 128 queries and 128 keys. Each option stands alone once in several forms, and every pair of options
occurs together in MIXTURES, spread over the sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from npkernels._arrays import Array, compute_dtype
from npkernels._cli.cases import INF, NAN, Inputs
from npkernels._cli.pairwise import pairwise

Arrays = tuple[Array, Array, Array]
Size = tuple[int, int, int, int, int, int, int]

# B, query heads, key heads, S queries, K keys, D, Dv
SIZES: tuple[Size, ...] = (
    (1, 1, 1, 1, 1, 1, 1),
    (2, 2, 2, 7, 9, 3, 5),
    (1, 3, 1, 15, 17, 8, 8),
    (1, 2, 1, 16, 16, 16, 31),
    (1, 1, 1, 47, 127, 64, 64),
    (1, 1, 1, 48, 128, 64, 64),
    (2, 4, 2, 49, 129, 33, 17),
    (1, 2, 2, 97, 257, 48, 40),
    (1, 2, 1, 131, 131, 128, 64),
    (1, 1, 1, 127, 128, 16, 24),
    (1, 2, 1, 129, 127, 11, 7),
    (2, 1, 1, 257, 13, 8, 8),
    (1, 1, 1, 3, 517, 200, 7),
    (1, 1, 1, 5, 9, 512, 512),
    (1, 2, 1, 17, 33, 300, 512),
    # decoding: a few queries, many keys
    (1, 8, 2, 1, 1031, 64, 128),
    (2, 4, 4, 1, 300, 64, 64),
    (1, 8, 1, 1, 1500, 32, 32),
    (1, 4, 1, 2, 641, 40, 40),
    (1, 8, 1, 8, 513, 16, 16),
)
TILE: Size = (2, 4, 2, 37, 141, 24, 24)  # more than a tile of keys, less than one of queries

OPTIONS: dict[str, list[Any]] = {
    "mask": [None, "full", "keys", "queries", "dead rows"],
    "bias": [None, "full", "heads", "queries", "-inf"],
    "causal": [False, "top_left", "bottom_right"],
    "q_offset": [None, "one", "batch"],
    "window": [None, (9, 0), (-1, 5), (70, 40)],
    "softcap": [0.0, 2.0],
    "scale": [None, 0.3, -0.7],
    "alibi_slopes": [None, "heads", "batch"],
    "sinks": [False, True],
    "kv_lengths": [None, "ragged"],
    "dropout_p": [0.0, 0.3],
}
MIXTURES = pairwise(OPTIONS)


@dataclasses.dataclass(frozen=True)
class Call:
    """Arrays and options of a call. No query sees the keys where `hidden` is True; garbage may stand there."""

    label: str
    qkv: Arrays
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    hidden: Array | None = None


def qkv_of(make: Inputs, size: Size, scale: float = 1.0) -> Arrays:
    """Normal numbers; the queries times `scale`."""
    b, hq, hk, s, k, d, dv = size
    return make.normal((b, hq, s, d), scale), make.normal((b, hk, k, d)), make.normal((b, hk, k, dv))


def calls(make: Inputs) -> Iterator[Call]:
    """Everything."""
    for i, size in enumerate(SIZES):
        yield Call(label_of(size), qkv_of(make, size, (1.0, 0.1, 10.0)[i % 3]))
    for i, row in enumerate(MIXTURES):
        size = (*SIZES, TILE)[i % (len(SIZES) + 1)]
        named = ", ".join(f"{name} {value}" for name, value in row.items() if value)
        yield Call(f"{label_of(size)} {named}", qkv_of(make, size), mixture(make, size, row))
    yield from _options(make)
    yield from _views(make)
    yield from _garbage(make)
    yield from _special(make)


def label_of(size: Size) -> str:
    """Sizes as one reads them."""
    b, hq, hk, s, k, d, dv = size
    return f"B{b} H{hq}/{hk} S{s} K{k} D{d}/{dv}"


def mixture(make: Inputs, size: Size, row: dict[str, Any]) -> dict[str, Any]:
    """The options that a row of OPTIONS names, for arrays of that size."""
    b, hq, _, s, k, _, _ = size
    work = compute_dtype(make.dtype)
    options = {name: row[name] for name in ("causal", "window", "softcap", "scale")}
    shapes = {"full": (b, hq, s, k), "keys": (b, 1, 1, k), "heads": (hq, 1, k), "queries": (s, 1)}
    if row["mask"] == "dead rows":
        options["mask"] = np.broadcast_to(make.mask((s, 1), 0.5), (s, k))
    elif row["mask"]:
        options["mask"] = make.mask(shapes[row["mask"]])
    if row["bias"] == "-inf":
        options["bias"] = np.where(make.mask((s, k)), 0, -INF).astype(make.dtype)
    elif row["bias"]:
        options["bias"] = make.normal(shapes[row["bias"]])
    if row["q_offset"]:
        options["q_offset"] = k // 2 if row["q_offset"] == "one" else make.integers(k + 1, (b,)) - s // 2
    if row["alibi_slopes"]:
        options["alibi_slopes"] = (
            make.rng.random((b, hq) if row["alibi_slopes"] == "batch" else hq).astype(work) / 8
        )
    if row["sinks"]:
        options["sinks"] = make.rng.standard_normal(hq).astype(work)
    if row["kv_lengths"]:
        options["kv_lengths"] = make.integers(k + 1, (b,))
    if row["dropout_p"]:
        options |= {"dropout_p": row["dropout_p"], "dropout_seed": int(make.integers(2**62, ()))}
    return options


def _options(make: Inputs) -> Iterator[Call]:
    qkv, work = qkv_of(make, TILE), compute_dtype(make.dtype)
    large = (4 * qkv[0], *qkv[1:])

    def call(label: str, **options: Any) -> Call:
        return Call(label, large if "softcap" in options else qkv, options)

    shapes = ((141,), (37, 1), (37, 141), (4, 37, 141), (2, 1, 1, 141), (2, 1, 37, 141))
    for i, shape in enumerate(shapes):
        yield call(f"mask {shape}", mask=make.mask(shape))
        bias = make.normal(shape)
        yield call(f"bias {shape}", bias=bias)
        if i % 2:
            bias = np.where(make.mask(shape), bias, make.dtype.type(-INF))
            yield call(f"bias {shape} with -inf", bias=bias, causal="bottom_right")
    yield call("bias ()", bias=np.array(0.5, make.dtype))
    for causal in ("top_left", "bottom_right"):
        yield call(causal, causal=causal)
    for offset in (-5, 60, 500, np.array([-20, 130])):
        yield call(f"q_offset {offset}", causal="top_left", q_offset=offset)
    yield call("causal, q_offset, scale", causal=True, q_offset=100, scale=0.3)
    for window in ((0, 0), (20, -1), (-1, 3), (5, 90), (10**6, 10**6)):
        yield call(f"window {window}", window=window, q_offset=np.array([0, 70]))
    yield call("window (16, 0) bottom_right", window=(16, 0), causal="bottom_right")
    yield call("window past all keys", window=(3, 3), q_offset=200)
    yield call("softcap 0.5", softcap=0.5)
    yield call("softcap 30, scale 1", softcap=30.0, scale=1.0)
    slopes = 2.0 ** -np.arange(1, 9).reshape(2, 4)
    yield call("alibi (Hq,)", alibi_slopes=slopes[0].astype(work))
    yield call("alibi (B, Hq)", alibi_slopes=slopes.astype(work), causal="bottom_right")
    yield call("alibi < 0, q_offset", alibi_slopes=(-slopes[1]).astype(work), q_offset=np.array([-50, 90]))
    yield call("sinks", sinks=make.rng.standard_normal(4).astype(work))
    yield call("sinks 40 and -inf", sinks=np.array([40, -INF, 0, -40], work))
    yield call("sinks, all masked", sinks=np.array([1, -INF, 0, 3], work), mask=np.array(False))
    for lengths in ([141, 60], [0, 128], [1, 129]):
        yield call(f"kv_lengths {lengths}", kv_lengths=np.array(lengths))
        yield call(f"kv_lengths {lengths} bottom_right", kv_lengths=np.array(lengths), causal="bottom_right")
    yield call("dropout 0.1", dropout_p=0.1, dropout_seed=1)
    yield call("dropout 0.9, causal", dropout_p=0.9, dropout_seed=-(2**63), causal="bottom_right")
    yield call("scale 0", scale=0.0)
    yield call("scale -1", scale=-1.0)
    yield call("all masked", mask=np.array(False))


def _views(make: Inputs) -> Iterator[Call]:
    q, k, v = (make.normal((2, s, h, 40)).transpose(0, 2, 1, 3) for s, h in ((35, 6), (70, 3), (70, 3)))
    yield Call("(B, S, H, D) arrays", (q, k, v))
    yield Call("every second entry", (q[..., ::2], k[..., ::2], v[..., 1::2]), {"causal": "bottom_right"})
    yield Call("backwards", (q[:, :, ::-1], k[:, :, ::-1], v[:, :, ::-1]))
    one = np.broadcast_to(k[:1], k.shape)
    yield Call("one key for the batch", (q, one, one))
    packed = make.normal((2, 33, 3, 4, 16)).transpose(2, 0, 3, 1, 4)
    yield Call("q, k, v packed", (packed[0], packed[1], packed[2]), {"causal": True})
    yield Call("3-D", (q[0], k[0], v[0]), {"mask": make.mask((6, 35, 70))})
    yield Call("2-D", (q[0, 0], k[0, 0], v[0, 0]), {"causal": "top_left"})
    bias = make.normal((70, 35)).T
    yield Call("bias and mask are views", (q, k, v), {"bias": bias, "mask": make.mask((35, 140))[::-1, ::2]})
    yield Call("no keys", (q, k[:, :, :0], v[:, :, :0]))
    yield Call("no queries", (q[:, :, :0], k, v))
    yield Call("no batch", (q[:0], k[:0], v[:0]))


def _garbage(make: Inputs) -> Iterator[Call]:
    """NaN and infinities wherever no query looks."""
    size = (2, 2, 1, 50, 150, 32, 20)
    work = compute_dtype(make.dtype)

    def call(label: str, hidden: Array, **options: Any) -> Call:
        q, k, v = qkv_of(make, size)
        return Call(
            label, (q, make.behind(~hidden[:, None], k), make.behind(~hidden[:, None], v)), options, hidden
        )

    some = make.mask((150,), 0.5)
    late, early = np.arange(150) >= 130, np.arange(150) < 40
    yield call("garbage behind a mask", some, mask=~some)
    yield call(
        "garbage behind a mask, softcap, alibi", some, mask=~some, softcap=5.0, alibi_slopes=np.ones(2, work)
    )
    yield call("garbage in the future", late, causal="top_left", q_offset=80)
    yield call("garbage before the window", early, window=(30, -1), q_offset=70)
    yield call("garbage after the lengths", late, kv_lengths=np.array([130, 7]), sinks=np.ones(2, work))
    yield call("garbage, all of it", late | True, kv_lengths=np.array([0, 0]))
    q, k, v = qkv_of(make, size)
    yield Call(
        "infinities behind a bias of -inf",
        (q, k, make.behind(~some[:, None], v)),
        {"bias": np.where(some, -INF, 0).astype(make.dtype)},
    )
    q, k, v = qkv_of(make, size)
    rows = make.mask((50, 1), 0.5)
    yield Call(
        "garbage in queries that see nothing",
        (make.behind(rows, q), k, v),
        {"mask": np.broadcast_to(rows, (50, 150)), "sinks": np.array([1, -INF], work)},
    )


def _special(make: Inputs) -> Iterator[Call]:
    size = (1, 2, 1, 50, 150, 32, 20)
    q, k, v = qkv_of(make, size)
    q[0, 0, 3] = NAN
    yield Call("NaN in a query", (q, k, v), {"causal": "top_left"})
    q, k, v = qkv_of(make, size)
    k[0, 0, 140, 5] = NAN
    yield Call("NaN in a late key", (q, k, v), {"causal": "bottom_right", "q_offset": 95})
    yield Call(
        "NaN in a late key, few queries", (q[:, :, -3:], k, v), {"causal": "bottom_right", "q_offset": 139}
    )
    q, k, v = qkv_of(make, size)
    v[0, 0, 140, 5], v[0, 0, 7, 2] = NAN, INF
    yield Call("NaN and inf in values", (q, k, v), {"causal": "bottom_right", "q_offset": 95})
    q, k, v = qkv_of(make, size)
    k[0, 0, 20, 3], k[0, 0, 60, 3] = INF, -INF
    yield Call(
        "infinite keys under a softcap", (q, k, v), {"softcap": 2.0, "q_offset": 30, "causal": "top_left"}
    )
    yield Call("one key takes all", qkv_of(make, size, 300.0))
    yield Call("equal scores", (np.zeros_like(q), *qkv_of(make, size)[1:]))
    q, k, v = qkv_of(make, size)
    bias = make.normal((50, 150))
    bias[4] = -INF
    bias[9, 3] = NAN
    yield Call("NaN and a row of -inf in the bias", (q, k, v), {"bias": bias})
    yield Call("NaN in a sink", (q, k, v), {"sinks": np.array([NAN, 0], compute_dtype(make.dtype))})
