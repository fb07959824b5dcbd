"""Softmax, its logarithm and normaliser, and their derivatives along one axis.

What a row holds decides what it gives (the same for every function and ISA; p is softmax(x / temperature)):

=====================  =========  ===========  =========  =======
row                    softmax    log_softmax  logsumexp  entropy
=====================  =========  ===========  =========  =======
NaN somewhere          NaN        NaN          NaN        NaN
+inf somewhere         NaN        NaN          +inf       NaN
-inf everywhere        NaN        NaN          -inf       NaN
nothing allowed        0          -inf         -inf       0
no entries (n = 0)     empty      empty        -inf       0
=====================  =========  ===========  =========  =======

"Nothing allowed" is a row in which the mask is False, or x is -inf where it is True. Masked entries are never read into
a result: they may hold anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import (
    Array,
    axis_index,
    boolean,
    check_out,
    compute_dtype,
    floating,
    kernel,
    number,
    statistic,
)

ArrayLike = npt.ArrayLike


def _options(function: str, axis: Any, temperature: Any, mask: Any) -> tuple[int, float, Array | None]:
    return (
        axis_index(function, axis),
        number(function, "temperature", temperature),
        None if mask is None else boolean(function, "mask", mask),
    )


@kernel
def softmax(
    x: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Softmax along an axis: ``exp(x / temperature)`` divided by its sum.

    Parameters
    ----------
    x : array_like
        Logits, any shape and strides. float32, float64, float16 or bfloat16; integers become float64.
    axis : int
        The axis whose entries sum to 1.
    temperature : float
        Positive and finite.
    mask : array_like of bool, optional
        Broadcasts to x; False takes an entry out. A row without entries gives 0.
    out : ndarray, optional
        Of x's shape and dtype; x itself is allowed.

    Returns
    -------
    ndarray
        Of x's shape and dtype. 16-bit inputs are computed in float32 and rounded once.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or range; `out` is untouched then.

    Notes
    -----
    ``y = exp(x - m) / sum(exp(x - m))`` with m the row's maximum; the sum is gathered in one read [1]_.

    References
    ----------
    .. [1] M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.softmax(np.array([[0.0, 0.0], [-np.inf, 5.0]]))
    array([[0.5, 0.5],
           [0. , 1. ]])
    """
    x = floating("softmax", "x", x)
    if type(axis) is not int or not -64 <= axis < 64 or type(temperature) is not float or mask is not None:
        axis, temperature, mask = _options("softmax", axis, temperature, mask)
    return _core.softmax(x, axis, temperature, mask, out)


@kernel
def log_softmax(
    x: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Logarithm of the softmax: ``x / temperature - logsumexp(x / temperature)``.

    Parameters, shapes, dtypes and errors as for `softmax`; masked entries give -inf.

    Notes
    -----
    ``(x - m) - log1p(sum of exp(x - m) without the largest entry)``: a dominating entry keeps the digits of its small
    log-probability [1]_.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
       IMA J. Numer. Anal. 41, 2021, eq. 4.2.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.log_softmax(np.array([0.0, 100.0]))
    array([-1.00000000e+02, -3.72007598e-44])
    """
    x = floating("log_softmax", "x", x)
    if type(axis) is not int or not -64 <= axis < 64 or type(temperature) is not float or mask is not None:
        axis, temperature, mask = _options("log_softmax", axis, temperature, mask)
    return _core.log_softmax(x, axis, temperature, mask, out)


@kernel
def logsumexp(
    x: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    keepdims: bool = False,
    out: Array | None = None,
) -> Array:
    """Logarithm of the sum of ``exp(x / temperature)`` along an axis.

    Parameters as for `softmax`; `keepdims` leaves the axis with length 1.

    Returns
    -------
    ndarray or scalar
        x's shape without the axis; float64 for float64, float32 for all other dtypes.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.logsumexp(np.array([1000.0, 1000.0])) - 1000.0  # log(2)
    np.float64(0.69314718055...)
    """
    x = floating("logsumexp", "x", x)
    axis, temperature, mask = _options("logsumexp", axis, temperature, mask)
    _check_reduced_out("logsumexp", out, x, axis, keepdims, [x, mask])
    return _reduced(_core.logsumexp(x, axis, temperature, mask), axis, keepdims, out)


@kernel
def entropy(
    logits: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Shannon entropy, in nats, of the distribution ``softmax(logits / temperature)`` along an axis.

    Parameters as for `softmax`. An entry of probability 0 contributes 0.

    Returns
    -------
    ndarray or scalar
        The shape of logits without the axis; float64 for float64, float32 for all other dtypes.

    Notes
    -----
    ``H = log(sum e) - sum(e (x - m)) / sum e`` with ``e = exp(x - m)``: one read of the logits.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.entropy(np.zeros(4))  # log(4)
    np.float64(1.3862943611198906)
    """
    logits = floating("entropy", "logits", logits)
    axis, temperature, mask = _options("entropy", axis, temperature, mask)
    _check_reduced_out("entropy", out, logits, axis, False, [logits, mask])
    return _reduced(_core.entropy(logits, axis, temperature, mask), axis, False, out)


def _check_reduced_out(
    function: str, out: Any, x: Array, axis: int, keepdims: bool, inputs: Sequence[Array | None]
) -> None:
    if out is None or not -x.ndim <= axis < x.ndim:  # a bad axis is reported by the compiled function
        return
    at = axis % x.ndim
    kept = (1,) if keepdims else ()
    check_out(function, out, x.shape[:at] + kept + x.shape[at + 1 :], compute_dtype(x.dtype), inputs)


def _reduced(result: Array, axis: int, keepdims: bool, out: Array | None) -> Array:
    if keepdims:
        result = np.expand_dims(result, axis)
    if out is not None:
        out[...] = result
        return out
    return result[()]


def _pair(function: str, out: Any) -> tuple[Array | None, Array | None]:
    if out is None:
        return None, None
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"{function}: out is {type(out).__name__}; expected a tuple of two arrays")
    return out


@kernel
def softmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Cotangent of softmax's input: ``y * (dy - sum(dy * y)) / temperature``.

    Parameters
    ----------
    dy : array_like
        Cotangent of the output, of y's shape and dtype.
    y : array_like
        ``softmax(x)``.
    axis, temperature, mask
        As given to `softmax`; masked entries get 0.
    out : ndarray, optional
        Of y's shape and dtype; dy or y itself is allowed.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> y = npkernels.softmax(np.array([0.0, 0.0]))
    >>> npkernels.softmax_vjp(np.array([1.0, 0.0]), y)
    array([ 0.25, -0.25])
    """
    dy, y = floating("softmax_vjp", "dy", dy), floating("softmax_vjp", "y", y)
    axis, temperature, mask = _options("softmax_vjp", axis, temperature, mask)
    return _core.softmax_vjp(dy, y, axis, temperature, mask, out)


@kernel
def log_softmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Cotangent of log_softmax's input: ``(dy - exp(y) * sum(dy)) / temperature``, with ``y = log_softmax(x)``.

    Parameters as for `softmax_vjp`.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> y = npkernels.log_softmax(np.array([0.0, 0.0]))
    >>> npkernels.log_softmax_vjp(np.array([1.0, 0.0]), y)
    array([ 0.5, -0.5])
    """
    dy, y = floating("log_softmax_vjp", "dy", dy), floating("log_softmax_vjp", "y", y)
    axis, temperature, mask = _options("log_softmax_vjp", axis, temperature, mask)
    return _core.log_softmax_vjp(dy, y, axis, temperature, mask, out)


@kernel
def logsumexp_vjp(
    d: ArrayLike,
    x: ArrayLike,
    lse: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Cotangent of logsumexp's input: ``d * exp(x / temperature - lse) / temperature``.

    Parameters
    ----------
    d, lse : array_like
        Cotangent and value of ``logsumexp(x)``: x's shape without the axis. Rows with lse = -inf get 0.
    x : array_like
        The input of `logsumexp`.
    axis, temperature, mask
        As given to `logsumexp`.
    out : ndarray, optional
        Of x's shape and dtype; x itself is allowed.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> x = np.zeros((1, 2))
    >>> npkernels.logsumexp_vjp([2.0], x, npkernels.logsumexp(x))
    array([[1., 1.]])
    """
    x = floating("logsumexp_vjp", "x", x)
    axis, temperature, mask = _options("logsumexp_vjp", axis, temperature, mask)
    dtype = compute_dtype(x.dtype)
    d, lse = statistic("logsumexp_vjp", "d", d, dtype), statistic("logsumexp_vjp", "lse", lse, dtype)
    return _core.logsumexp_vjp(d, x, lse, axis, temperature, mask, out)


@kernel
def softmax_jvp(
    x: ArrayLike,
    dx: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Softmax and its tangent: ``y`` and ``dy = y * (dx - sum(y * dx)) / temperature``, together.

    Parameters
    ----------
    x, dx : array_like
        Point and direction, of one shape and dtype.
    axis, temperature, mask
        As for `softmax`; masked entries have tangent 0.
    out : (ndarray, ndarray), optional
        Where y and dy go, of x's shape and dtype; x and dx themselves are allowed.

    Returns
    -------
    (y, dy) : tuple of ndarray

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> y, dy = npkernels.softmax_jvp(np.zeros(2), np.array([1.0, 0.0]))
    >>> dy
    array([ 0.25, -0.25])
    """
    x, dx = floating("softmax_jvp", "x", x), floating("softmax_jvp", "dx", dx)
    axis, temperature, mask = _options("softmax_jvp", axis, temperature, mask)
    out_y, out_dy = _pair("softmax_jvp", out)
    return _core.softmax_jvp(x, dx, axis, temperature, mask, out_y, out_dy)


@kernel
def log_softmax_jvp(
    x: ArrayLike,
    dx: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """log_softmax and its tangent: ``y`` and ``dy = (dx - sum(exp(y) * dx)) / temperature``, together.

    Parameters as for `softmax_jvp`.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> y, dy = npkernels.log_softmax_jvp(np.zeros(2), np.array([1.0, 0.0]))
    >>> dy
    array([ 0.5, -0.5])
    """
    x, dx = floating("log_softmax_jvp", "x", x), floating("log_softmax_jvp", "dx", dx)
    axis, temperature, mask = _options("log_softmax_jvp", axis, temperature, mask)
    out_y, out_dy = _pair("log_softmax_jvp", out)
    return _core.log_softmax_jvp(x, dx, axis, temperature, mask, out_y, out_dy)


@kernel
def logsumexp_jvp(
    x: ArrayLike,
    dx: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Logsumexp and its tangent: ``lse`` and ``dlse = sum(softmax(x) * dx) / temperature``, together.

    Parameters as for `softmax_jvp`; results have x's shape without the axis.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> lse, dlse = npkernels.logsumexp_jvp(np.zeros(2), np.array([1.0, 0.0]))
    >>> float(dlse)
    0.5
    """
    x, dx = floating("logsumexp_jvp", "x", x), floating("logsumexp_jvp", "dx", dx)
    axis, temperature, mask = _options("logsumexp_jvp", axis, temperature, mask)
    out_lse, out_dlse = _pair("logsumexp_jvp", out)
    _check_reduced_out("logsumexp_jvp", out_lse, x, axis, False, [x, dx, mask])
    _check_reduced_out("logsumexp_jvp", out_dlse, x, axis, False, [x, dx, mask])
    if out_lse is not None and out_dlse is not None and np.shares_memory(out_lse, out_dlse):
        raise ValueError("logsumexp_jvp: the two arrays of out overlap; pass separate memory")
    lse, dlse = _core.logsumexp_jvp(x, dx, axis, temperature, mask)
    return _reduced(lse, axis, False, out_lse), _reduced(dlse, axis, False, out_dlse)
