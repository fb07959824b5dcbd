"""Cases of the companions of attention: the merging of parts, and rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from npkernels._arrays import compute_dtype
from npkernels._cli.cases import INF, NAN, Case, Inputs


def merge_attention(make: Inputs) -> Iterator[Case]:
    """Parts of every number, some of which saw no key."""
    dtype = compute_dtype(make.dtype)
    for shape in ((1, 1), (2, 3, 7, 5), (4, 16), (3, 1, 33), (2, 1031), (5, 0)):
        for parts in (1, 2, 7):
            outs = [make.normal(shape) for _ in range(parts)]
            lses = [make.normal(shape[:-1], 5.0).astype(dtype) for _ in range(parts)]
            yield Case(f"{parts} parts {shape}", (outs, lses))
            lses[0][...] = -INF
            outs[0][...] = NAN
            lses[-1][:1] = -INF
            yield Case(f"{parts} parts {shape}, some saw no key", (outs, lses))
    outs = [make.normal((16, 5)) for _ in range(4)]
    yield Case("large lse", (outs, [900 + make.normal((16,)).astype(dtype) for _ in outs]))
    outs = [make.normal((2, 7, 3, 5)).swapaxes(1, 2) for _ in range(3)]
    yield Case("permuted axes", (outs, [make.normal((2, 3, 7)).astype(dtype) for _ in range(3)]))


def rotary_embedding(make: Inputs) -> Iterator[Case]:
    """Tables, positions, views; forwards and backwards."""
    for shape in ((1, 2), (5, 6), (2, 3, 17, 64), (3, 1, 34), (2, 2, 130, 128), (4, 0, 8)):
        for interleaved in (False, True):
            x, word = make.normal(shape), " interleaved" if interleaved else ""
            yield Case(f"{shape}{word}", (x,), {"interleaved": interleaved})
            yield Case(f"{shape}{word} in place", (x,), {"interleaved": interleaved}, inplace=0)
            options = {"interleaved": interleaved, "rotary_dim": shape[-1] // 4 * 2, "base": 500.0}
            yield Case(f"{shape}{word} half of it", (x, make.integers(5000, shape[-2:-1])), options)
    x = make.normal((2, 3, 11, 24))
    angle = make.rng.random((40, 12)) * 6
    tables = {"cos": np.cos(angle).astype(make.dtype), "sin": np.sin(angle).astype(make.dtype)}
    yield Case("tables and positions", (x, make.integers(40, (2, 11))), tables)
    yield Case("tables", (x,), {name: table[:11] for name, table in tables.items()})
    batch = {name: table[:22].reshape(2, 11, 12) for name, table in tables.items()}
    yield Case("tables of each batch", (x,), {**batch, "interleaved": True})
    yield Case("(B, S, H, D) array", (make.normal((2, 11, 3, 24)).transpose(0, 2, 1, 3),))
    yield Case("every second entry", (make.normal((2, 11, 48))[..., ::2],))
    x[0, 0, 2, 3], x[1, 1, 4, 5] = NAN, INF
    yield Case("NaN and inf", (x,))
    yield Case("past the cache", (make.normal((1, 9, 4099, 128)),))
