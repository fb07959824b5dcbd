"""attention as a JAX function."""

from __future__ import annotations

from typing import Any

import numpy as np

from npkernels._arrays import compute_dtype
from npkernels._attention_options import Causal, check_shapes, options
from npkernels.jax._attention_call import NAMES, Attention
from npkernels.jax._primitive import bind, boolean, floating, jnp, with_axes

FUNCTION = "attention"


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    causal: Causal = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    q_offset: Any = None,
    kv_lengths: Any = None,
    dropout_p: float = 0.0,
    dropout_seed: Any = None,
    return_lse: bool = False,
) -> Any:
    """`npkernels.attention` in JAX: scaled dot-product attention, nothing of size S x K stored.

    Works under `jit`, `vmap` and `grad` on CPU, and under `jvp` along q, k and v. Gradients are those of
    `npkernels.attention_vjp`, of q, k, v, bias and sinks, and of lse too.

    Parameters
    ----------
    q : array_like (B, Hq, S, D), (H, S, D) or (S, D)
        float32, float64 (if JAX has 64-bit numbers enabled), float16 or bfloat16; others become JAX's float. The heads
        come before the sequence, unlike in `jax.nn.dot_product_attention`.
    k : array_like (B, Hkv, K, D), ...
    v : array_like (B, Hkv, K, Dv), ...
    mask, bias, alibi_slopes, sinks, q_offset, kv_lengths : array_like, optional
        As for `npkernels.attention`; all of them may be traced.
    causal, window, softcap, scale, return_lse
        As for `npkernels.attention`; static.
    dropout_p : float
        Static; as for `npkernels.attention`, and without forward mode.
    dropout_seed : int or scalar array of integers, optional
        Needed where dropout_p > 0; may be traced, and `jax.random.bits` draws one. The same seed drops the same
        weights, also in every entry of an axis of `vmap`, unless each has a seed of its own.

    Returns
    -------
    out : jax.Array (B, Hq, S, Dv)
        Of q's dtype.
    lse : jax.Array (B, Hq, S)
        Only if `return_lse`; float32, or float64 for float64.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value; when the call is traced. What only the numbers tell
        (`kv_lengths` beyond K) is found when the call runs, and reaches the caller as JAX's `JaxRuntimeError`.

    Examples
    --------
    >>> import jax, npkernels.jax
    >>> q = jax.numpy.zeros((2, 4))
    >>> v = jax.numpy.array([[1.0, 2.0], [3.0, 4.0]])
    >>> jax.jit(lambda q, v: npkernels.jax.attention(q, q, v, causal=True))(q, v)
    Array([[1., 2.],
           [2., 3.]], dtype=float32)
    """
    q, k, v = (floating(FUNCTION, name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    ndim = q.ndim
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not 2 <= x.ndim <= 4:
            raise ValueError(
                f"{FUNCTION}: {name} has shape {x.shape}; expected (S, D), (H, S, D) or (B, H, S, D)"
            )
    check_shapes(FUNCTION, *(_like(x) for x in (q, k, v)))
    q, k, v = (x.reshape((1,) * (4 - ndim) + x.shape) for x in (q, k, v))
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    rest: dict[str, Any] = {
        "mask": None if mask is None else boolean(FUNCTION, mask),
        "bias": None if bias is None else _bias(bias),
        "alibi_slopes": None if alibi_slopes is None else floating(FUNCTION, "alibi_slopes", alibi_slopes),
        "sinks": None if sinks is None else floating(FUNCTION, "sinks", sinks),
        "q_offset": None if q_offset is None else jnp.asarray(q_offset),
        "kv_lengths": None if kv_lengths is None else jnp.asarray(kv_lengths),
        "dropout_seed": None if dropout_seed is None else _words(dropout_seed),
    }
    shapes: dict[str, Any] = {name: None if x is None else _like(x) for name, x in rest.items()}
    if kv_lengths is not None:  # lengths that can be: their numbers are not known yet
        shapes["kv_lengths"] = np.full_like(shapes["kv_lengths"], min(queries, keys))
    if dropout_seed is not None:
        shapes["dropout_seed"] = 0
    static = {"causal": causal, "window": window, "softcap": softcap, "scale": scale, "dropout_p": dropout_p}
    options(FUNCTION, _like(q), queries, keys, batch, **shapes, **static)
    for name in ("mask", "bias"):
        if rest[name] is not None:
            rest[name] = with_axes(FUNCTION, name, rest[name], (batch, heads, queries, keys), "(B, Hq, S, K)")
    dtype = compute_dtype(np.dtype(q.dtype))
    for name in ("alibi_slopes", "sinks"):
        if rest[name] is not None:
            rest[name] = rest[name].astype(dtype)
    if rest["alibi_slopes"] is not None:
        rest["alibi_slopes"] = jnp.broadcast_to(rest["alibi_slopes"], (batch, heads))
    if rest["q_offset"] is not None:
        rest["q_offset"] = jnp.broadcast_to(rest["q_offset"], (batch,))
    if not dropout_p:
        rest["dropout_seed"] = None
    given = tuple(name for name in NAMES if rest[name] is not None)
    op = Attention(
        given,
        causal,
        None if window is None else (int(window[0]), int(window[1])),
        float(softcap),
        None if scale is None else float(scale),
        float(dropout_p),
        bool(return_lse),
    )
    results = [x.reshape(x.shape[4 - ndim :]) for x in bind(op, q, k, v, *(rest[name] for name in given))]
    return tuple(results) if return_lse else results[0]


def _like(x: Any) -> Any:
    """Return an array without memory of its own that has x's shape and dtype, for the checks of `npkernels`."""
    return np.broadcast_to(np.zeros((), np.dtype(x.dtype)), x.shape)


def _bias(bias: Any) -> Any:
    """Return the bias as a JAX array, integers as JAX's float."""
    x = jnp.asarray(bias)
    return x.astype(jnp.result_type(float)) if jnp.issubdtype(x.dtype, jnp.integer) else x


def _words(seed: Any) -> Any:
    """Return a seed modulo 2^64 as its low and its high 32 bits, which JAX has without 64-bit numbers too."""
    if isinstance(seed, int | np.integer):
        return jnp.asarray([int(seed) >> shift & 0xFFFFFFFF for shift in (0, 32)], jnp.uint32)
    x = jnp.asarray(seed)
    if x.shape or not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"{FUNCTION}: dropout_seed has shape {x.shape} and dtype {x.dtype}; expected one integer, such as "
            "jax.random.bits(key)"
        )
    bits = x.dtype.itemsize * 8
    high = x >> 32 if bits > 32 else jnp.where(x < 0, -1, 0)
    return jnp.stack([x.astype(jnp.uint32), high.astype(jnp.uint32)])
