"""Attention over sequences of different lengths, packed without padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, floating, integers, kernel, shape_error
from npkernels._attention_grads import gradients_out, to_lse
from npkernels._attention_options import Causal, check_like, check_shapes, options, output_like
from npkernels._types import AttentionGrads

ArrayLike = npt.ArrayLike


@kernel
def attention_varlen(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    causal: Causal = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: int | ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    return_lse: bool = False,
    out: Array | None = None,
) -> Array | tuple[Array, Array]:
    """`attention` within each of N sequences that are packed one after the other; no padding is computed.

    Parameters
    ----------
    q : array_like (total_q, Hq, D)
        float32, float64, float16 or bfloat16; any strides with a contiguous last axis are read in place.
    k : array_like (total_k, Hkv, D)
    v : array_like (total_k, Hkv, Dv)
    cu_seqlens_q, cu_seqlens_k : array_like of int (N + 1,)
        Sequence n has the queries ``cu_seqlens_q[n]`` to ``cu_seqlens_q[n + 1]`` (exclusive), and the keys likewise;
        they go from 0 to the total and never fall.
    causal, window, softcap, scale, alibi_slopes, sinks, dropout_p, dropout_seed
        As for `attention`, alibi_slopes also (N, Hq); positions count from each sequence's first key, and
        "bottom_right" is meant for its own lengths.
    q_offset : int or array_like of int (N,), optional
        As for `attention`, per sequence.
    return_lse : bool
        Also return the logarithm of each row's softmax denominator.
    out : ndarray (total_q, Hq, Dv), optional
        With a contiguous last axis; must not overlap an input.

    Returns
    -------
    out : ndarray (total_q, Hq, Dv)
        Of q's dtype and memory order.
    lse : ndarray (Hq, total_q)
        Only if `return_lse`; float32, or float64 for float64. The shape is flash-attention's.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value; `out` is untouched then.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> q, v = np.zeros((3, 1, 4)), np.array([[[1.0]], [[3.0]], [[7.0]]])  # two tokens, then one
    >>> npkernels.attention_varlen(q, q, v, [0, 2, 3], [0, 2, 3]).ravel()
    array([2., 2., 7.])
    """
    function = "attention_varlen"
    q, k, v = (_packed(function, name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    q4, k4, v4 = _as_heads(function, q, k, v)
    starts = _starts(function, cu_seqlens_q, cu_seqlens_k, q, k)
    chosen = _options(
        function,
        q4,
        starts,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        q_offset=q_offset,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
    )
    target = None
    if out is not None:
        if not isinstance(out, np.ndarray):
            raise TypeError(f"{function}: out is a {type(out).__name__}; expected a NumPy array")
        if out.ndim != 3:
            shape_error(function, "out", out.shape, "(total_q, Hq, Dv)")
        target = _heads(out)
    target = _core.attention_output(function, q4, k4, v4, target)
    filled, lse = _core.attention(q4, k4, v4, chosen, bool(return_lse), *starts, target)
    result = out if out is not None else filled[0].swapaxes(0, 1)
    return (result, lse[0]) if return_lse else result


@kernel
def attention_varlen_vjp(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    o: ArrayLike,
    lse: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    dlse: ArrayLike | None = None,
    causal: Causal = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: int | ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    want_dsinks: bool = False,
    out: tuple[Array, Array, Array] | None = None,
) -> AttentionGrads[Array]:
    """Gradients of `attention_varlen`: from the cotangents of its output (and lse) those of its inputs.

    Parameters
    ----------
    dout, o : array_like (total_q, Hq, Dv)
        Cotangent of the output, and the output.
    q, k, v, cu_seqlens_q, cu_seqlens_k
        As they were given to `attention_varlen`.
    lse : array_like (Hq, total_q)
        As it was returned.
    dlse : array_like (Hq, total_q), optional
        Cotangent of lse; default 0.
    causal, window, softcap, scale, alibi_slopes, sinks, q_offset, dropout_p, dropout_seed
        As they were given to `attention_varlen`.
    want_dsinks : bool
        Also return the gradient of `sinks`.
    out : (ndarray, ndarray, ndarray), optional
        Where dq, dk and dv go; they must not overlap one another or an input.

    Returns
    -------
    AttentionGrads
        dq, dk and dv with shape, dtype and memory order of q, k and v; dsinks (Hq,) float32, or float64 for float64.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value; `out` is untouched then.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> q, v = np.zeros((3, 1, 4)), np.array([[[1.0]], [[3.0]], [[7.0]]])
    >>> cu = [0, 2, 3]
    >>> o, lse = npkernels.attention_varlen(q, q, v, cu, cu, return_lse=True)
    >>> npkernels.attention_varlen_vjp(np.ones_like(o), q, q, v, o, lse, cu, cu).dv.ravel()
    array([1., 1., 1.])
    """
    function = "attention_varlen_vjp"
    q, k, v = (_packed(function, name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    q4, k4, v4 = _as_heads(function, q, k, v)
    like = output_like(q, v)
    dout, o = _packed(function, "dout", dout), _packed(function, "o", o)
    check_like(function, "dout", dout, "the output", like)
    check_like(function, "o", o, "the output", like)
    norm = to_lse(function, "lse", lse, q4[0])
    dnorm = None if dlse is None else to_lse(function, "dlse", dlse, q4[0])
    if want_dsinks and sinks is None:
        raise ValueError(f"{function}: want_dsinks is True, but there are no sinks; pass sinks=")
    starts = _starts(function, cu_seqlens_q, cu_seqlens_k, q, k)
    chosen = _options(
        function,
        q4,
        starts,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        q_offset=q_offset,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
    )
    dq, dk, dv = gradients_out(
        function, out, [q, k, v], [q, k, v, dout, o, norm, dnorm, *chosen[:4], *starts]
    )
    _, dsinks = _core.attention_vjp(
        _heads(dout),
        q4,
        k4,
        v4,
        _heads(o),
        norm[None],
        None if dnorm is None else dnorm[None],
        chosen,
        starts[0],
        starts[1],
        _heads(dq),
        _heads(dk),
        _heads(dv),
        False,
        bool(want_dsinks),
    )
    return AttentionGrads(dq, dk, dv, dsinks=dsinks)


def _heads(x: Array) -> Array:
    """View a packed array as (1, H, total, D)."""
    view: Array = x.swapaxes(0, 1)[None]
    return view


def _packed(function: str, name: str, x: Any) -> Array:
    """Return an array (total, H, D) with a contiguous last axis."""
    array = floating(function, name, x)
    if array.ndim != 3:
        shape_error(function, name, array.shape, "(total, H, D)")
    if array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
        array = np.ascontiguousarray(array)
    return array


def _as_heads(function: str, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Return the packed arrays as (1, H, total, D)."""
    q4, k4, v4 = _heads(q), _heads(k), _heads(v)
    check_shapes(function, q4[0], k4[0], v4[0])
    return q4, k4, v4


def _starts(
    function: str, cu_seqlens_q: ArrayLike, cu_seqlens_k: ArrayLike, q: Array, k: Array
) -> tuple[Array, Array]:
    """Return the checked boundaries of the sequences."""
    starts = []
    for name, given, total in (
        ("cu_seqlens_q", cu_seqlens_q, len(q)),
        ("cu_seqlens_k", cu_seqlens_k, len(k)),
    ):
        cu = integers(function, name, given)
        if cu.ndim != 1 or len(cu) == 0:
            shape_error(function, name, cu.shape, "(N + 1,) for N sequences")
        falls = np.flatnonzero(cu[1:] < cu[:-1])
        if falls.size:
            i = int(falls[0])
            raise ValueError(
                f"{function}: {name} falls from {cu[i]} to {cu[i + 1]} at [{i + 1}]; expected it never to fall"
            )
        if cu[0] != 0 or cu[-1] != total:
            raise ValueError(f"{function}: {name} goes from {cu[0]} to {cu[-1]}; expected 0 to {total}")
        starts.append(cu)
    if len(starts[0]) != len(starts[1]):
        raise ValueError(
            f"{function}: cu_seqlens_k has {len(starts[1]) - 1} sequences, cu_seqlens_q has {len(starts[0]) - 1}; "
            "expected as many"
        )
    return starts[0], starts[1]


def _options(function: str, q4: Array, starts: tuple[Array, Array], **given: Any) -> Any:
    queries, keys = (np.diff(cu) for cu in starts)
    return options(function, q4, queries, keys, len(queries), **given)
