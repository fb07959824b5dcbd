"""The derivatives of attention: gradients (vjp) and forward mode (jvp)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, check_out, compute_dtype, kernel, statistic
from npkernels._attention_options import (
    Causal,
    check_like,
    check_shapes,
    heads,
    new_like,
    options,
    output_like,
    to_4d,
)
from npkernels._types import AttentionGrads

ArrayLike = npt.ArrayLike


@kernel
def attention_vjp(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    o: ArrayLike,
    lse: ArrayLike,
    *,
    dlse: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: int | ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    want_dbias: bool = False,
    want_dsinks: bool = False,
    out: tuple[Array, Array, Array] | None = None,
) -> AttentionGrads[Array]:
    """Gradients of `attention`: from the cotangents of its output (and lse) those of its inputs.

    Parameters
    ----------
    dout : array_like (B, Hq, S, Dv)
        Cotangent of the output.
    q, k, v : array_like
        As they were given to `attention`.
    o : array_like (B, Hq, S, Dv)
        What `attention` returned.
    lse : array_like (B, Hq, S)
        And its lse.
    dlse : array_like (B, Hq, S), optional
        Cotangent of lse; default 0.
    mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths, dropout_p, dropout_seed
        As they were given to `attention`; the same seed drops the same weights.
    want_dbias : bool
        Also return the gradient of `bias`: a second pass over the scores.
    want_dsinks : bool
        Also return the gradient of `sinks`.
    out : (ndarray, ndarray, ndarray), optional
        Where dq, dk and dv go; they must not overlap one another or an input.

    Returns
    -------
    AttentionGrads
        dq, dk and dv with shape, dtype and memory order of q, k and v; dbias with shape and dtype of bias; dsinks (Hq,)
        float32, or float64 for float64.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value; `out` is untouched then.

    Notes
    -----
    With P the weights, rebuilt tile by tile from the scores and lse, and ``delta = rowsum(dout * o) - dlse``:
    ``dv = P.T @ dout``, ``dS = P * (dout @ v.T - delta)``, ``dq = scale * dS @ k``, ``dk = scale * dS.T @ q``,
    ``dbias = dS`` [1]_. Extra memory does not grow with S x K. A weight of zero adds nothing to any gradient. Sums are
    float32 (float64 for float64) and rounded once.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention: Fast and memory-efficient exact attention with IO-awareness", 2022,
       appendix B.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> q = k = np.zeros((2, 4))
    >>> v = np.array([[1.0], [3.0]])
    >>> o, lse = npkernels.attention(q, k, v, causal=True, return_lse=True)
    >>> npkernels.attention_vjp(np.ones_like(o), q, k, v, o, lse, causal=True).dv
    array([[1.5],
           [0.5]])
    """
    function = "attention_vjp"
    q, k, v = (heads(function, name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    check_shapes(function, q, k, v)
    dout, o = heads(function, "dout", dout), heads(function, "o", o)
    like = output_like(q, v)
    check_like(function, "dout", dout, "the output", like)
    check_like(function, "o", o, "the output", like)
    norm = to_lse(function, "lse", lse, q)
    dnorm = None if dlse is None else to_lse(function, "dlse", dlse, q)
    for wanted, name, given in ((want_dbias, "bias", bias), (want_dsinks, "sinks", sinks)):
        if wanted and given is None:
            raise ValueError(f"{function}: want_d{name} is True, but there is no {name}; pass {name}=")
    q4, k4, v4 = to_4d(q), to_4d(k), to_4d(v)
    chosen = options(
        function,
        q4,
        q4.shape[2],
        k4.shape[2],
        q4.shape[0],
        mask=mask,
        bias=bias,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        q_offset=q_offset,
        kv_lengths=kv_lengths,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
    )
    inputs = [dout, q, k, v, o, norm, dnorm, *chosen[:4]]
    dq, dk, dv = gradients_out(function, out, [q, k, v], inputs)
    dbias, dsinks = _core.attention_vjp(
        to_4d(dout),
        q4,
        k4,
        v4,
        to_4d(o),
        norm.reshape(q4.shape[:3]),
        None if dnorm is None else dnorm.reshape(q4.shape[:3]),
        chosen,
        None,
        None,
        to_4d(dq),
        to_4d(dk),
        to_4d(dv),
        bool(want_dbias) and q4.shape[0] > 0,
        bool(want_dsinks),
    )
    if want_dbias and dbias is None:  # an empty batch
        dbias = np.zeros_like(chosen[1])
    if dbias is not None:
        with np.errstate(over="ignore", under="ignore"):
            dbias = dbias.astype(q.dtype, copy=False)
    return AttentionGrads(dq, dk, dv, dbias, dsinks)


def to_lse(function: str, name: str, x: Any, q: Array) -> Array:
    """Return lse or its cotangent: one number per query, contiguous, of the compute dtype."""
    array = statistic(function, name, x, compute_dtype(q.dtype))
    if array.shape != q.shape[:-1]:
        raise ValueError(
            f"{function}: {name} has shape {array.shape}; expected one per query, {q.shape[:-1]}"
        )
    return array


def gradients_out(
    function: str, out: Any, likes: list[Array], inputs: list[Array | None]
) -> tuple[Array, ...]:
    """Return the arrays for dq, dk and dv: those of `out` after their checks, or new ones ordered as the inputs are."""
    if out is None:
        return tuple(new_like(x) for x in likes)
    if not isinstance(out, tuple | list) or len(out) != len(likes):
        raise TypeError(f"{function}: out is {type(out).__name__}; expected {len(likes)} arrays")
    arrays = tuple(out)
    for i, (array, like) in enumerate(zip(arrays, likes, strict=True)):
        if array is None:
            raise TypeError(f"{function}: out[{i}] is None; expected a NumPy array")
        check_out(function, array, like.shape, like.dtype, inputs)
        for j in range(i):
            if np.shares_memory(array, arrays[j]):
                raise ValueError(f"{function}: out[{i}] overlaps out[{j}]; pass separate memory")
        if array.size and array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
            raise ValueError(f"{function}: the last axis of out[{i}] must be contiguous")
    return arrays


@kernel
def attention_jvp(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    dq: ArrayLike,
    dk: ArrayLike,
    dv: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: Causal = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    q_offset: int | ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    return_lse: bool = False,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, ...]:
    """`attention` and its derivative along (dq, dk, dv), together in one pass (forward mode).

    Parameters
    ----------
    q, k, v : array_like
        As for `attention`.
    dq, dk, dv : array_like
        The direction, each with shape and dtype of q, k and v.
    mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths, return_lse
        As for `attention`.
    out : (ndarray, ndarray), optional
        Where the output and its derivative go; they must not overlap each other or an input.

    Returns
    -------
    out : ndarray (B, Hq, S, Dv)
        What `attention` gives.
    dout : ndarray (B, Hq, S, Dv)
        Its derivative along the direction; 0 for a query with nothing to attend to.
    lse : ndarray (B, Hq, S)
        Only if `return_lse`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value; `out` is untouched then.

    Notes
    -----
    With P the weights and ``dS = scale * (dq @ k.T + q @ dk.T)``:
    ``dout = P @ dv + (P * dS) @ v - rowsum(P * dS) * out``. All sums are rescaled alike under the online softmax, so
    one pass suffices and extra memory does not grow with S x K.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> q, k, v = np.ones((1, 1)), np.array([[1.0], [2.0]]), np.array([[0.0], [1.0]])
    >>> out, dout = npkernels.attention_jvp(q, k, v, np.ones_like(q), np.zeros_like(k), np.zeros_like(v))
    >>> out.round(4), dout.round(4)  # the second weight p, and p (1 - p)
    (array([[0.7311]]), array([[0.1966]]))
    """
    function = "attention_jvp"
    q, k, v = (heads(function, name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    check_shapes(function, q, k, v)
    dq, dk, dv = (heads(function, name, x) for name, x in (("dq", dq), ("dk", dk), ("dv", dv)))
    for name, x, of, like in (("dq", dq, "q", q), ("dk", dk, "k", k), ("dv", dv, "v", v)):
        check_like(function, name, x, of, like)
    q4, k4, v4 = to_4d(q), to_4d(k), to_4d(v)
    chosen = options(
        function,
        q4,
        q4.shape[2],
        k4.shape[2],
        q4.shape[0],
        mask=mask,
        bias=bias,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        q_offset=q_offset,
        kv_lengths=kv_lengths,
    )
    if out is None:
        y, dy = (_core.attention_output(function, q4, k4, v4, None) for _ in range(2))
        y, dy = (x.reshape(x.shape[4 - q.ndim :]) for x in (y, dy))
    else:
        like = output_like(q, v)
        y, dy = gradients_out(function, out, [like, like], [q, k, v, dq, dk, dv, *chosen[:4]])
    lse = _core.attention_jvp(
        q4, k4, v4, to_4d(dq), to_4d(dk), to_4d(dv), chosen, bool(return_lse), to_4d(y), to_4d(dy)
    )
    return (y, dy, lse.reshape(q.shape[:-1])) if return_lse else (y, dy)
