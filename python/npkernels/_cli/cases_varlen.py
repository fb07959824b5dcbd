"""Cases of attention over packed sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from npkernels import reference
from npkernels._arrays import Array, compute_dtype
from npkernels._cli.cases import INF, NAN, Case, Inputs
from npkernels._cli.pairwise import pairwise

# lengths of the queries and of the keys of each sequence
LENGTHS: dict[str, tuple[list[int], list[int]]] = {
    "one": ([5], [7]),
    "same": ([3, 1, 17, 130, 48], [3, 1, 17, 130, 48]),
    "longer keys": ([7, 33, 1], [129, 40, 300]),
    "decoding": ([1] * 9, [1, 17, 128, 129, 5, 300, 64, 2, 31]),
    "empty ones": ([0, 5, 0, 49, 2], [4, 0, 0, 131, 1]),
    "many": ([2, 9, 4, 11, 1, 3, 16, 8] * 3, [3, 9, 2, 13, 20, 1, 16, 40] * 3),
    "nothing": ([0, 0], [0, 0]),
}
OPTIONS: dict[str, list[Any]] = {
    "lengths": [name for name in LENGTHS if name != "nothing"],
    "heads": [(1, 1), (4, 2), (6, 1)],
    "dims": [(16, 16), (33, 7), (64, 64)],
    "causal": [False, "top_left", "bottom_right"],
    "window": [None, (9, 0), (-1, 5), (70, 40)],
    "softcap": [0.0, 2.0],
    "scale": [None, 0.3],
    "alibi_slopes": [None, "heads", "sequences"],
    "sinks": [False, True],
    "q_offset": [None, "one", "sequences"],
    "dropout_p": [0.0, 0.3],
}
Arrays = tuple[Array, Array, Array, Array, Array]


def _arrays(make: Inputs, lengths: str, heads: tuple[int, int], dims: tuple[int, int]) -> Arrays:
    """q, k, v, cu_seqlens_q, cu_seqlens_k."""
    cu_q, cu_k = (np.concatenate([[0], np.cumsum(x)]).astype(np.int32) for x in LENGTHS[lengths])
    return (
        make.normal((int(cu_q[-1]), heads[0], dims[0])),
        make.normal((int(cu_k[-1]), heads[1], dims[0])),
        make.normal((int(cu_k[-1]), heads[1], dims[1])),
        cu_q,
        cu_k,
    )


def _calls(make: Inputs) -> Iterator[tuple[str, Arrays, dict[str, Any]]]:
    work = compute_dtype(make.dtype)
    for lengths in LENGTHS:
        yield lengths, _arrays(make, lengths, (4, 2), (24, 24)), {}
    yield "causal", _arrays(make, "same", (2, 2), (16, 40)), {"causal": True}
    for row in pairwise(OPTIONS):
        count, heads = len(LENGTHS[row["lengths"]][0]), row["heads"][0]
        options = {name: row[name] for name in ("causal", "window", "softcap", "scale")}
        if row["alibi_slopes"]:
            shape = {"heads": (heads,), "sequences": (count, heads)}[row["alibi_slopes"]]
            options["alibi_slopes"] = make.rng.random(shape).astype(work) / 8
        if row["sinks"]:
            options["sinks"] = make.rng.standard_normal(heads).astype(work)
        if row["q_offset"]:
            options["q_offset"] = 3 if row["q_offset"] == "one" else make.integers(40, (count,)) - 10
        if row["dropout_p"]:
            options |= {"dropout_p": row["dropout_p"], "dropout_seed": int(make.integers(2**62, ()))}
        label = ", ".join(f"{name} {value}" for name, value in row.items() if value)
        yield label, _arrays(make, row["lengths"], row["heads"], row["dims"]), options
    q, k, v, cu_q, cu_k = _arrays(make, "longer keys", (4, 2), (24, 24))
    q, k, v = (np.concatenate([x, x], axis=-1)[..., ::2] for x in (q, k, v))
    yield "every second entry", (q, k, v, cu_q, cu_k), {"causal": "bottom_right"}
    heads_first = tuple(np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1) for x in (q, k, v))
    yield "heads outermost", (*heads_first, cu_q.astype(np.int64), cu_k.astype(np.int64)), {}
    q, k, v, cu_q, cu_k = _arrays(make, "same", (2, 1), (24, 24))
    k[30, 0, 3], v[3, 0, 5], q[150, 1, 2] = NAN, INF, NAN
    yield "NaN and inf", (q, k, v, cu_q, cu_k), {"causal": "top_left"}


def attention_varlen(make: Inputs) -> Iterator[Case]:
    """Packed queries, keys and values."""
    for label, args, options in _calls(make):
        yield Case(label, args, {**options, "return_lse": True})


def attention_varlen_vjp(make: Inputs) -> Iterator[Case]:
    """O and lse as the reference has them, in the dtypes of the kernel's own."""
    work = compute_dtype(make.dtype)
    for i, (label, (q, k, v, cu_q, cu_k), options) in enumerate(_calls(make)):
        with np.errstate(all="ignore"):
            out, lse = reference.attention_varlen(q, k, v, cu_q, cu_k, **options, return_lse=True)
            out, lse = np.asarray(out).astype(make.dtype), np.asarray(lse).astype(work)
        if "sinks" in options:
            options["want_dsinks"] = True
        if i % 2:
            options["dlse"] = make.normal(lse.shape).astype(work)
        yield Case(label, (make.normal(out.shape), q, k, v, out, lse, cu_q, cu_k), options)
