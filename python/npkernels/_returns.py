"""Returns and advantages along time, and pass@k."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, check_out, compute_dtype, floating, integers, kernel, shape_error
from npkernels._sequences import Layout, boundaries, kept_bytes

ArrayLike = npt.ArrayLike
_CERTAIN = -50.0  # the logarithm of a chance that nothing is left of beside 1


@kernel
def discounted_returns(
    rewards: ArrayLike,
    gamma: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    last_value: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Discounted sums of what is still to come: ``R_t = r_t + gamma R_{t+1}``.

    Parameters
    ----------
    rewards : array_like (..., T), or packed (total,)
        Time is the last axis.
    gamma : float or array_like (...)
        The discount, of each sequence if it is an array.
    mask : array_like of the shape of rewards, optional
        Booleans, or 0 and 1. A token that is left out is passed over, whatever it holds, and gets 0: those around it
        are neighbours.
    last_value : float or array_like (...), optional
        What stands behind the end of each sequence; 0.
    cu_seqlens : array_like (B + 1,), optional
        Where packed sequences begin and end.
    out : ndarray, optional
        Of the shape and dtype of rewards.

    Returns
    -------
    ndarray
        Of the shape and dtype of rewards.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype or shape.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.discounted_returns(np.array([0.0, 0.0, 1.0]), 0.5)
    array([0.25, 0.5 , 1.  ])
    """
    function = "discounted_returns"
    r = floating(function, "rewards", rewards)
    layout = _layout(function, r, cu_seqlens)
    g, last = _each(function, "gamma", gamma, layout, r), _each(function, "last_value", last_value, layout, r)
    kept = kept_bytes(function, mask, r.shape)
    check_out(function, out, r.shape, r.dtype, [r, kept, g, last])
    x = _contiguous(r)
    R = _target(out, x)
    _core.scan(x, None, layout.count, layout.length, layout.ends, kept, None, g, None, last, None, R)
    return _result(out, R, r.dtype)


@kernel
def gae(
    rewards: ArrayLike,
    values: ArrayLike,
    *,
    gamma: ArrayLike,
    lam: ArrayLike,
    dones: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    last_value: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Generalised advantage estimation [1]_: ``A_t = d_t + gamma lam A_{t+1}``, ``d_t = r_t + gamma V_{t+1} - V_t``.

    Parameters
    ----------
    rewards : array_like (..., T), or packed (total,)
        Time is the last axis.
    values : array_like
        V, of the shape and dtype of rewards.
    gamma, lam : float or array_like (...)
        Discount and lambda, of each sequence if they are arrays.
    dones : array_like of the shape of rewards, optional
        Booleans, or 0 and 1: where an episode ends. Nothing comes from behind it.
    mask : array_like of the shape of rewards, optional
        Booleans, or 0 and 1. A token that is left out is passed over, as in verl, and gets 0.
    last_value : float or array_like (...), optional
        V behind the end of each sequence; 0.
    cu_seqlens : array_like (B + 1,), optional
        Where packed sequences begin and end.
    out : (ndarray, ndarray), optional
        For advantages and returns.

    Returns
    -------
    advantages, returns : ndarray
        Of the shape and dtype of rewards; returns are ``A + V``.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype or shape.

    References
    ----------
    .. [1] J. Schulman et al., "High-dimensional continuous control using generalized advantage estimation", 2016.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.gae(np.array([0.0, 1.0]), np.array([0.5, 0.5]), gamma=1.0, lam=0.5)
    (array([0.25, 0.5 ]), array([0.75, 1.  ]))
    """
    function = "gae"
    r, v = floating(function, "rewards", rewards), floating(function, "values", values)
    if v.shape != r.shape:
        shape_error(function, "values", v.shape, f"that of rewards, {r.shape}")
    if v.dtype != r.dtype:
        raise TypeError(
            f"{function}: values has dtype {v.dtype}, rewards has {r.dtype}; expected the same dtype"
        )
    layout = _layout(function, r, cu_seqlens)
    g, lams, last = (
        _each(function, name, x, layout, r)
        for name, x in (("gamma", gamma), ("lam", lam), ("last_value", last_value))
    )
    kept, ends = kept_bytes(function, mask, r.shape), kept_bytes(function, dones, r.shape, "dones")
    if out is not None:
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"{function}: out is a {type(out).__name__}; expected a pair of arrays")
        for o in out:
            check_out(function, o, r.shape, r.dtype, [r, v, kept, ends, g, lams, last])
        if np.shares_memory(*out):
            raise ValueError(f"{function}: the two arrays of out overlap; pass separate memory")
    first, second = (None, None) if out is None else out
    x, y = _contiguous(r), _contiguous(v)
    A, R = _target(first, x), _target(second, x)
    _core.scan(x, y, layout.count, layout.length, layout.ends, kept, ends, g, lams, last, A, R)
    return _result(first, A, r.dtype), _result(second, R, r.dtype)


@kernel
def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> Array:
    """Unbiased estimate of the chance that one of k samples is right: ``1 - C(n - c, k) / C(n, k)`` [1]_.

    Parameters
    ----------
    n, c, k : array_like of int
        Samples of a problem, how many of them are right, and how many are drawn; they broadcast.

    Returns
    -------
    ndarray of float64

    Raises
    ------
    TypeError, ValueError
        Unless they are integers with ``0 <= c <= n`` and ``1 <= k <= n``.

    References
    ----------
    .. [1] M. Chen et al., "Evaluating large language models trained on code", 2021.

    Examples
    --------
    >>> import npkernels
    >>> npkernels.pass_at_k(8, [3, 0], 4).round(6)
    array([0.928571, 0.      ])
    """
    function = "pass_at_k"
    given = [integers(function, name, x) for name, x in (("n", n), ("c", c), ("k", k))]
    try:
        ns, cs, ks = np.broadcast_arrays(*given)
    except ValueError as error:
        shapes = ", ".join(str(x.shape) for x in given)
        raise ValueError(f"{function}: n, c and k have shapes {shapes}, which do not broadcast") from error
    for name, x, wrong, expected in (
        ("c", cs, (cs < 0) | (cs > ns), "0 <= c <= n"),
        ("k", ks, (ks < 1) | (ks > ns), "1 <= k <= n"),
    ):
        if wrong.any():
            raise ValueError(
                f"{function}: {name} holds {x[wrong].flat[0]} for n = {ns[wrong].flat[0]}; expected {expected}"
            )
    # All k wrong has the chance C(n - c, k) / C(n, k), in which c and k may change places: the product over
    # j < min(c, k) of 1 - max(c, k) / (n - j). In logarithms, so that small chances keep their digits.
    few, many = np.minimum(cs, ks), np.maximum(cs, ks)
    log_wrong = np.zeros(ns.shape)
    with np.errstate(divide="ignore"):
        for j in range(int(few.max(initial=0))):
            share = np.minimum(many / np.maximum(ns - j, 1), 1)
            log_wrong += np.where(j < few, np.log1p(-share), 0)
            if (log_wrong < _CERTAIN).all():
                break
    return np.asarray(0.0 - np.expm1(log_wrong))[()]


def _layout(function: str, r: Array, cu_seqlens: Any) -> Layout:
    if r.ndim == 0:
        shape_error(function, "rewards", r.shape, "(..., T)")
    if cu_seqlens is None:
        count = int(np.prod(r.shape[:-1], dtype=np.int64))
        return Layout(r.shape, count, r.shape[-1], None)
    if r.ndim != 1:
        shape_error(function, "rewards", r.shape, "packed (total,), since cu_seqlens is given")
    ends = boundaries(function, cu_seqlens, len(r))
    return Layout(r.shape, len(ends) - 1, 0, ends)


def _each(function: str, name: str, x: Any, layout: Layout, r: Array) -> Array:
    """One number per sequence, float64, contiguous."""
    if x is None or type(x) is float:
        return np.full(layout.count, x or 0.0)
    array = floating(function, name, 0.0 if x is None else x).astype(np.float64)
    shape = r.shape[:-1] if layout.ends is None else (layout.count,)
    try:
        wide = np.broadcast_to(array, shape)
    except ValueError:
        shape_error(function, name, array.shape, f"a number, or one for each sequence, {shape}")
    return np.ascontiguousarray(wide).reshape(layout.count)


def _contiguous(x: Array) -> Array:
    return np.ascontiguousarray(x, compute_dtype(x.dtype))


def _target(out: Array | None, x: Array) -> Array:
    """Where the kernel writes: out itself, if it can."""
    straight = out is not None and out.dtype == x.dtype and out.flags.c_contiguous
    return out if straight and out is not None else np.empty(x.shape, x.dtype)


def _result(out: Array | None, x: Array, dtype: np.dtype[Any]) -> Array:
    if out is None:
        with np.errstate(over="ignore"):
            return x.astype(dtype, copy=False)
    if out is not x:
        with np.errstate(over="ignore"):
            out[...] = x
    return out
