"""What the attention layer and its gradients share: its checked arguments, and its projections."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from npkernels._arrays import Array, boolean, compute_dtype, floating, shape_error
from npkernels._attention_options import options
from npkernels._rotary import _rotary

_ROTARY = ("positions", "cos", "sin", "base", "interleaved", "rotary_dim")


@dataclass(frozen=True)
class Layer:
    """The checked arguments, in the compute dtype."""

    function: str
    dtype: np.dtype[Any]  # of x
    shape: tuple[int, ...]  # of x without its last axis
    x: Array  # (B, S, E)
    context: Array  # (B, K, Ec)
    weights: dict[str, Array]
    biases: dict[str, Array | None]
    heads: int
    kv_heads: int
    rotary: dict[str, Any] | None
    options: dict[str, Any]
    given: list[Array | None]  # the arrays as they came

    def project(self) -> tuple[Array, Array, Array]:
        """Queries (B, Hq, S, D), keys (B, Hkv, K, D) and values (B, Hkv, K, Dv), views of (B, S, H, D)."""
        parts = []
        for name, a, heads in (
            ("q", self.x, self.heads),
            ("k", self.context, self.kv_heads),
            ("v", self.context, self.kv_heads),
        ):
            y = rows_of(a) @ self.weights[f"w{name}"]
            b = self.biases[f"b{name}"]
            if b is not None:
                y += b
            parts.append(split(y, len(a), heads))
        q, k, v = parts
        return (q, k, v) if self.rotary is None else (self.turn(q), self.turn(k), v)

    def turn(self, a: Array, inverse: bool = False) -> Array:
        """Turn queries, keys or their gradients in place."""
        return _turn(self.function, a, self.rotary or {}, a, inverse)


def _turn(
    function: str, a: Array, rotary: Mapping[str, Any], out: Array | None = None, inverse: bool = False
) -> Array:
    defaults = {"positions": None, "cos": None, "sin": None, "base": 10000.0}
    rest = {"interleaved": False, "rotary_dim": None}
    return _rotary(function, "x", a, **{**defaults, **rest, **rotary}, out=out, inverse=inverse)


def rows_of(x: Array) -> Array:
    """(B, S, E) -> (B * S, E)."""
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2])


def split(x: Array, batch: int, heads: int) -> Array:
    """(B * S, H * D) -> (B, H, S, D), a view."""
    rows = x.shape[0] // batch if batch else 0
    view: Array = x.reshape(batch, rows, heads, x.shape[1] // heads).transpose(0, 2, 1, 3)
    return view


def join(x: Array) -> Array:
    """(B, H, S, D) -> (B * S, H * D), a view if S is next to H in memory."""
    batch, heads, rows, size = x.shape
    joined: Array = x.transpose(0, 2, 1, 3).reshape(batch * rows, heads * size)
    return joined


def checked_layer(
    function: str,
    x: Any,
    weights: dict[str, Any],
    heads: Any,
    kv_heads: Any,
    context: Any,
    biases: dict[str, Any],
    rotary: Any,
    chosen: dict[str, Any],
) -> Layer:
    """Refuse what is wrong, before any work."""
    x = floating(function, "x", x)
    if x.ndim < 2:
        shape_error(function, "x", x.shape, "(..., S, E)")
    other = x if context is None else same_dtype(function, "context", context, x.dtype)
    if other.ndim != x.ndim or other.shape[:-2] != x.shape[:-2]:
        shape_error(function, "context", other.shape, f"(..., K, Ec) with the leading axes of x, {x.shape}")
    w = {name: same_dtype(function, name, given, x.dtype) for name, given in weights.items()}
    for name, matrix in w.items():
        if matrix.ndim != 2:
            shape_error(function, name, matrix.shape, "a matrix")
    hq = _count(function, "heads", heads)
    hkv = hq if kv_heads is None else _count(function, "kv_heads", kv_heads)
    if hq % hkv:
        raise ValueError(
            f"{function}: kv_heads is {hkv}, heads is {hq}; heads must be a multiple of kv_heads"
        )
    _check_rows(function, "wq", w["wq"], x.shape[-1], "the last axis of x")
    for name in ("wk", "wv"):
        source = "x" if context is None else "context"
        _check_rows(function, name, w[name], other.shape[-1], f"the last axis of {source}")
    size = _head_size(function, "wq", w["wq"], hq)
    if _head_size(function, "wk", w["wk"], hkv) != size:
        expected = f"({other.shape[-1]}, {hkv * size}), head size {size} as wq has for heads={hq}"
        shape_error(function, "wk", w["wk"].shape, expected)
    _check_rows(function, "wo", w["wo"], hq * _head_size(function, "wv", w["wv"], hkv), "heads * Dv")
    b = {
        name: None if given is None else same_dtype(function, name, given, x.dtype)
        for name, given in biases.items()
    }
    for name, vector in b.items():
        if vector is not None and vector.shape != (w["w" + name[1]].shape[1],):
            shape_error(
                function, name, vector.shape, f"one per column of w{name[1]}, {w['w' + name[1]].shape[1:]}"
            )

    batch, rows, keys = math.prod(x.shape[:-2]), x.shape[-2], other.shape[-2]
    work = compute_dtype(x.dtype)
    turned = _check_rotary(function, rotary, [np.empty((batch, 0, n, size), work) for n in (rows, keys)])
    added = None if chosen["bias"] is None else floating(function, "bias", chosen["bias"])
    _check_options(function, np.broadcast_to(x.dtype.type(0), (batch, hq, rows, size)), keys, chosen)
    given = [x, other, *w.values(), *b.values()]
    given += [v for v in (*chosen.values(), *(turned or {}).values()) if isinstance(v, np.ndarray)]

    def wide(a: Any) -> Any:
        return None if a is None else a.astype(work, copy=False)

    return Layer(
        function=function,
        dtype=x.dtype,
        shape=x.shape[:-1],
        x=wide(x).reshape(batch, rows, x.shape[-1]),
        context=wide(other).reshape(batch, keys, other.shape[-1]),
        weights={name: wide(a) for name, a in w.items()},
        biases={name: wide(a) for name, a in b.items()},
        heads=hq,
        kv_heads=hkv,
        rotary=turned,
        options={**chosen, "bias": wide(added)},
        given=given,
    )


def same_dtype(function: str, name: str, a: Any, dtype: np.dtype[Any]) -> Array:
    array = floating(function, name, a)
    if array.dtype != dtype:
        raise TypeError(f"{function}: {name} has dtype {array.dtype}, x has {dtype}; expected the same dtype")
    return array


def _count(function: str, name: str, value: Any) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: {name} is {value!r}; expected an integer > 0") from None
    if count < 1:
        raise ValueError(f"{function}: {name} is {value!r}; expected an integer > 0")
    return count


def _check_rows(function: str, name: str, w: Array, rows: int, why: str) -> None:
    if w.shape[0] != rows:
        shape_error(function, name, w.shape, f"({rows}, ...), since its rows are {why}")


def _head_size(function: str, name: str, w: Array, heads: int) -> int:
    columns: int = w.shape[1]
    if columns % heads:
        shape_error(function, name, w.shape, f"a multiple of {heads} columns, one part for each head")
    return columns // heads


def _check_rotary(function: str, rotary: Any, likes: list[Array]) -> dict[str, Any] | None:
    """Try the options on queries and keys without heads."""
    if rotary is None:
        return None
    if not isinstance(rotary, Mapping):
        raise TypeError(f"{function}: rotary is {rotary!r}; expected a dict of options of rotary_embedding")
    for name in rotary:
        if name not in _ROTARY:
            raise ValueError(f"{function}: rotary has {name!r}; expected options out of {', '.join(_ROTARY)}")
    for like in likes:
        _turn(function, like, rotary)
    return dict(rotary)


def _check_options(function: str, q: Array, keys: int, chosen: dict[str, Any]) -> None:
    """Refuse in the name of this function what `attention` would refuse in its own."""
    options(function, q, q.shape[2], keys, q.shape[0], **chosen)
    shape = (*q.shape[:3], keys)
    for name in ("mask", "bias"):
        if chosen[name] is not None:
            array = (boolean if name == "mask" else floating)(function, name, chosen[name])
            try:
                np.broadcast_to(array, shape)
            except ValueError:
                shape_error(function, name, array.shape, f"one that broadcasts to (B, Hq, S, K) = {shape}")
