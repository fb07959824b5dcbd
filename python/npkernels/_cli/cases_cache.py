"""Cases of attention over a cache: lengths around the parts of keys, pages in any order, every dtype of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from npkernels._arrays import Array, compute_dtype
from npkernels._cli.cases import INF, NAN, Case, Inputs, dtypes
from npkernels._cli.pairwise import pairwise

OPTIONS: dict[str, list[Any]] = {
    "rows": ["own", "int8", "float16", "bfloat16"],
    "page_size": [None, 1, 16, 48],
    "lengths": [(300, 300), (517, 8), (0, 129), (1, 64), (0, 0)],
    "S": [1, 2, 3, 5, 8, 40],
    "heads": [(1, 1), (8, 2), (8, 1), (3, 3)],
    "dims": [(16, 16), (33, 7), (64, 128)],
    "causal": [True, False],
    "window": [None, (9, 0), (-1, 5), (200, 40)],
    "softcap": [0.0, 2.0],
    "scale": [None, 0.3],
    "alibi_slopes": [None, "heads", "batch"],
    "sinks": [False, True],
    "q_offset": [None, "one", "batch"],
}
Rows = dict[str, Any]


def rows_of(make: Inputs, row: Rows) -> tuple[Array, Array, Rows]:
    """Keys, values and what says how they lie: with NaN or infinities wherever no token is."""
    lengths, heads = np.array(row["lengths"]), row["heads"][1]
    size, table = row["page_size"], None
    shape: tuple[int, ...] = (2, heads, int(lengths.max()) + 3)
    if size:
        pages = -(-shape[2] // size)
        shape = (2 * pages + 2, heads, size)
        table = make.rng.permutation(shape[0])[: 2 * pages].reshape(2, pages)
        table[np.arange(pages) >= -(-lengths // size)[:, None]] = -1
    there = _there(shape, lengths, table)
    k: Array
    v: Array
    k, v = (make.rng.standard_normal((*shape, d)) for d in row["dims"])
    if row["rows"] == "int8":
        k, v = (np.rint(40 * x).clip(-127, 127).astype(np.int8) for x in (k, v))
        scales = [np.where(there, make.rng.random(shape) / 40, NAN).astype(np.float32) for _ in "kv"]
        return k, v, {"block_table": table, "k_scale": scales[0], "v_scale": scales[1]}
    own = row["rows"] == "own" or make.dtype == np.float64 or row["rows"] not in dtypes()
    dtype = make.dtype if own else dtypes()[row["rows"]]
    k, v = (make.behind(there[..., None], x).astype(dtype) for x in (k, v))
    return k, v, {"block_table": table}


def _there(shape: tuple[int, ...], lengths: Array, table: Array | None) -> Array:
    """Which rows hold a token, of the shape of k without the last axis."""
    if table is None:
        return np.broadcast_to((np.arange(shape[2]) < lengths[:, None])[:, None], shape)
    filled = np.zeros((shape[0], shape[2]), bool)
    for length, pages in zip(lengths, table, strict=True):
        for i, page in enumerate(pages[pages >= 0]):
            filled[page] = np.arange(shape[2]) < length - i * shape[2]
    return np.broadcast_to(filled[:, None], shape)


def cached_attention(make: Inputs) -> Iterator[Case]:
    """Every pair of options, and special values."""
    work = compute_dtype(make.dtype)
    for row in pairwise(OPTIONS):
        if make.dtype == np.float64 and row["rows"] == "int8":
            continue
        heads, lengths = row["heads"][0], np.array(row["lengths"])
        k, v, held = rows_of(make, row)
        options = {**held, **{name: row[name] for name in ("causal", "window", "softcap", "scale")}}
        if row["alibi_slopes"]:
            shape = {"heads": (heads,), "batch": (2, heads)}[row["alibi_slopes"]]
            options["alibi_slopes"] = make.rng.random(shape).astype(work) / 8
        if row["sinks"]:
            options["sinks"] = make.rng.standard_normal(heads).astype(work)
        if row["q_offset"]:
            options["q_offset"] = 7 if row["q_offset"] == "one" else make.integers(300, (2,)) - 10
        q = make.normal((2, heads, row["S"], row["dims"][0]))
        label = ", ".join(f"{name} {value}" for name, value in row.items() if value)
        yield Case(label, (q, k, v, lengths), {**options, "return_lse": True})
    q, k, v = make.normal((2, 4, 2, 40)), make.normal((2, 2, 300, 40)), make.normal((2, 2, 300, 24))
    lengths = np.array([290, 3])
    yield Case("every second entry", (q[..., ::2], k[..., :20], v, lengths), {})
    tokens_first = tuple(np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (k, v))
    yield Case("(B, S, H, D) arrays", (q, *tokens_first, lengths), {})
    one = np.broadcast_to(k[:1], k.shape)
    yield Case("one prefix for the batch", (q, one, one, lengths), {})
    shared = np.array([[2, 0, 1], [2, 0, -1]])
    pages = (make.normal((4, 2, 100, 40)), make.normal((4, 2, 100, 24)))
    yield Case("shared pages", (q, *pages, np.array([290, 200])), {"block_table": shared})
    yield Case("no queries", (q[:, :, :0], k, v, lengths), {"return_lse": True})
    yield Case("no batch", (q[:0], k[:0], v[:0], lengths[:0]), {"return_lse": True})
    k[0, 0, 280, 5], v[0, 1, 7, 2] = NAN, INF
    yield Case("NaN and inf", (q, k, v, lengths), {"return_lse": True})
