"""Cases of the attention layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from npkernels._arrays import Array, compute_dtype
from npkernels._cli.cases import Case, Inputs


def _layer(
    make: Inputs,
    shape: tuple[int, ...] = (2, 19, 24),
    heads: tuple[int, int] = (4, 4),
    dims: tuple[int, int] = (6, 6),
    out: int = 24,
    context: tuple[int, ...] | None = None,
    biased: bool = False,
) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """Arrays of which projections keep the size of the entries, and options."""
    width = (shape if context is None else context)[-1]
    columns = (heads[0] * dims[0], heads[1] * dims[0], heads[1] * dims[1], out)
    rows = (shape[-1], width, width, heads[0] * dims[1])
    weights = (make.normal((r, c), r**-0.5) for r, c in zip(rows, columns, strict=True))
    options: dict[str, Any] = {"heads": heads[0]}
    if heads[1] != heads[0]:
        options["kv_heads"] = heads[1]
    if context is not None:
        options["context"] = make.normal(context)
    if biased:
        options |= {
            name: make.normal((c,)) for name, c in zip(("bq", "bk", "bv", "bo"), columns, strict=True)
        }
    return (make.normal(shape), *weights), options


def _calls(make: Inputs) -> Iterator[tuple[str, tuple[Array, ...], dict[str, Any]]]:
    work = compute_dtype(make.dtype)
    for biased in (False, True):
        word = ", biased" if biased else ""
        args, options = _layer(make, biased=biased)
        yield f"self{word}", args, options
        yield f"causal{word}", args, {**options, "causal": True}
        args, options = _layer(make, (2, 19, 24), (4, 2), (6, 5), 13, (2, 31, 17), biased)
        yield f"cross, grouped{word}", args, options
        yield (
            f"cross, grouped, options{word}",
            args,
            {
                **options,
                "kv_lengths": np.array([31, 7]),
                "causal": "bottom_right",
                "window": (9, -1),
                "softcap": 3.0,
                "sinks": make.rng.standard_normal(4).astype(work),
                "alibi_slopes": make.rng.random((2, 4)).astype(work) / 8,
                "mask": make.mask((19, 31)),
                "bias": make.normal((4, 1, 31)),
            },
        )
    args, options = _layer(make)
    yield "rotary", args, {**options, "rotary": {}}
    positions = {"positions": make.integers(50, (2, 19)), "interleaved": True, "rotary_dim": 4, "base": 100.0}
    yield "rotary with positions", args, {**options, "rotary": positions, "causal": True}
    yield "dropout", args, {**options, "dropout_p": 0.2, "dropout_seed": 7}
    yield "2-D", (args[0][0], *args[1:]), options
    yield "4-D", (make.normal((2, 3, 5, 24)), *args[1:]), options
    yield "one query", (args[0][:, :1], *args[1:]), {**options, "context": make.normal((2, 9, 24))}
    yield "no queries", (args[0][:, :0], *args[1:]), options
    turned = tuple(np.ascontiguousarray(a.T).T for a in args[1:])
    yield "transposed weights", (args[0], *turned), options
    yield "all masked", args, {**options, "mask": np.array(False)}
    yield "wide", *_layer(make, (1, 130, 64), (2, 1), (64, 32), 40)


def multi_head_attention(make: Inputs) -> Iterator[Case]:
    """Self- and cross-attention with options."""
    for label, args, options in _calls(make):
        yield Case(label, args, options)


def multi_head_attention_vjp(make: Inputs) -> Iterator[Case]:
    """The same, backwards."""
    for label, args, options in _calls(make):
        dy = make.normal((*args[0].shape[:-1], args[4].shape[1]))
        yield Case(label, (dy, *args), options)
