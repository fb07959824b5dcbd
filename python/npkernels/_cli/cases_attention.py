"""Cases of the attention family: sizes around the tiles, head groups, masks, offsets, views and special values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from npkernels._arrays import Array, compute_dtype
from npkernels._cli.cases import INF, NAN, Case, Cases, Inputs

# B, query heads, key heads, S queries, K keys, D, Dv; a tile has 128 keys and up to 48 queries
SIZES = (
    (1, 1, 1, 1, 1, 1, 1),
    (2, 2, 2, 7, 9, 3, 5),
    (1, 3, 1, 15, 17, 8, 8),
    (1, 2, 1, 16, 16, 16, 31),
    (1, 1, 1, 47, 127, 64, 64),
    (1, 1, 1, 48, 128, 64, 64),
    (2, 4, 2, 49, 129, 33, 17),
    (1, 2, 2, 97, 257, 80, 64),
    (1, 8, 2, 1, 1031, 64, 128),
    (1, 2, 1, 131, 131, 128, 128),
    (1, 1, 1, 3, 517, 200, 7),
)
Arrays = tuple[Array, ...]


def _qkv(make: Inputs, size: tuple[int, ...], scale: float = 1.0) -> Arrays:
    b, hq, hk, s, k, d, dv = size
    return make.normal((b, hq, s, d), scale), make.normal((b, hk, k, d)), make.normal((b, hk, k, dv))


def _calls(make: Inputs) -> Iterator[tuple[str, Arrays, dict[str, Any]]]:
    """Give (q, k, v) with the options that attention and attention_weights share."""
    for i, size in enumerate(SIZES):
        b, hq, hk, s, k, d, dv = size
        label = f"B{b} H{hq}/{hk} S{s} K{k} D{d}/{dv}"
        qkv = _qkv(make, size, (1.0, 0.1, 10.0)[i % 3])
        mask = make.mask((b, hq, s, k))
        mask[..., 0, :] = False  # a query with nothing to attend to
        yield label, qkv, {}
        yield f"{label} top_left", qkv, {"causal": "top_left"}
        yield f"{label} bottom_right", qkv, {"causal": "bottom_right"}
        yield f"{label} mask", qkv, {"mask": mask}
        yield f"{label} bias", qkv, {"bias": make.normal((hq, s, k)), "scale": 0.25}
    yield from _options(make)
    yield from _views(make)
    yield from _special(make)


def _options(make: Inputs) -> Iterator[tuple[str, Arrays, dict[str, Any]]]:
    qkv = _qkv(make, (2, 4, 2, 37, 141, 24, 24))
    shapes = ((141,), (37, 1), (37, 141), (4, 37, 141), (2, 1, 1, 141), (2, 1, 37, 141))
    for shape in shapes:
        yield f"mask {shape}", qkv, {"mask": make.mask(shape)}
        bias = make.normal(shape)
        yield f"bias {shape}", qkv, {"bias": bias}
        bias[make.mask(shape, 0.3)] = -INF
        yield f"bias {shape} with -inf", qkv, {"bias": bias, "causal": "bottom_right"}
    for offset in (-5, 0, 60, 500, np.array([-20, 130])):
        yield f"q_offset {offset}", qkv, {"causal": "top_left", "q_offset": offset}
    everything = {"causal": True, "q_offset": 100, "scale": 0.3}
    mask, bias = make.mask((2, 1, 37, 141)), make.normal((4, 1, 141))
    yield "mask, bias, offset, scale", qkv, {**everything, "mask": mask, "bias": bias}
    yield "scale 0", qkv, {"scale": 0.0}
    yield "scale -1", qkv, {"scale": -1.0}
    yield "all masked", qkv, {"mask": np.array(False)}


def _views(make: Inputs) -> Iterator[tuple[str, Arrays, dict[str, Any]]]:
    q, k, v = (make.normal((2, s, h, 40)).transpose(0, 2, 1, 3) for s, h in ((35, 6), (70, 3), (70, 3)))
    yield "(B, S, H, D) arrays", (q, k, v), {}
    yield "every second entry", (q[..., ::2], k[..., ::2], v[..., 1::2]), {"causal": "bottom_right"}
    yield "backwards", (q[:, :, ::-1], k[:, :, ::-1], v[:, :, ::-1]), {}
    one = np.broadcast_to(k[:1], k.shape)
    yield "one key for the batch", (q, one, one), {}
    packed = make.normal((2, 33, 3, 4, 16)).transpose(2, 0, 3, 1, 4)
    yield "q, k, v packed", (packed[0], packed[1], packed[2]), {"causal": True}
    yield "3-D", tuple(x[0] for x in (q, k, v)), {"mask": make.mask((6, 35, 70))}
    yield "2-D", tuple(x[0, 0] for x in (q, k, v)), {"causal": "top_left"}
    yield "no keys", (q, k[:, :, :0], v[:, :, :0]), {}
    yield "no queries", (q[:, :, :0], k, v), {}


def _special(make: Inputs) -> Iterator[tuple[str, Arrays, dict[str, Any]]]:
    size = (1, 2, 1, 50, 150, 32, 20)
    q, k, v = _qkv(make, size)
    hidden = make.mask((150,), 0.5)
    k, v = make.behind(hidden[:, None], k), make.behind(hidden[:, None], v)
    yield "garbage behind a mask", (q, k, v), {"mask": hidden}
    bias = np.where(hidden, 0, -INF).astype(make.dtype)
    yield (
        "infinities behind a bias of -inf",
        (q, np.where(hidden[:, None], k, 0).astype(make.dtype), v),
        {"bias": bias},
    )
    q, k, v = _qkv(make, size)
    q[0, 0, 3] = NAN
    yield "NaN in a query", (q, k, v), {"causal": "top_left"}
    q, k, v = _qkv(make, size)
    k[0, 0, 140, 5] = NAN
    yield "NaN in a late key", (q, k, v), {"causal": "bottom_right", "q_offset": 95}
    q, k, v = _qkv(make, size)
    v[0, 0, 140, 5], v[0, 0, 7, 2] = NAN, INF
    yield "NaN and inf in values", (q, k, v), {"causal": "bottom_right", "q_offset": 95}
    yield "one key takes all", _qkv(make, size, 300.0), {}
    yield "equal scores", (np.zeros_like(q), *_qkv(make, size)[1:]), {}


def _attention(make: Inputs) -> Iterator[Case]:
    for label, qkv, options in _calls(make):
        yield Case(label, qkv, {**options, "return_lse": True})


def _attention_weights(make: Inputs) -> Iterator[Case]:
    for label, qkv, options in _calls(make):
        yield Case(label, qkv[:2], options)


def _merge_attention(make: Inputs) -> Iterator[Case]:
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


def _rotary(make: Inputs) -> Iterator[Case]:
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


KERNELS: dict[str, Cases] = {
    "attention": _attention,
    "attention_weights": _attention_weights,
    "merge_attention": _merge_attention,
    "rotary_embedding": _rotary,
    "rotary_embedding_vjp": _rotary,
}
