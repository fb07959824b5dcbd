"""softmax, log_softmax, logsumexp and entropy with their derivatives, as formulas.

x any shape; the functions work along `axis`, in z = x / temperature. A mask (bool, broadcast to x, True =
takes part) puts the other entries at z = -inf before anything looks at them. The maximum m of a row (-inf for
an empty one) says which case the row is:

    m finite       the ordinary case
    m = -inf       without a mask softmax and log_softmax are NaN, with one they are 0 and -inf
    m = +inf, NaN  softmax and log_softmax are NaN in the whole row
    either         logsumexp is m

Masked entries have softmax 0, log_softmax -inf, gradient 0 and tangent 0, whatever the rest of the row holds.
"""

from __future__ import annotations

import numpy as np

from ._common import (
    Array,
    ArrayLike,
    BoolArray,
    as_mask,
    check_axis,
    check_shape,
    check_temperature,
    like,
    working,
)

INF = np.inf


# --- the formulas, on z = x / temperature with masked entries at -inf


def row_max(z: Array, axis: int) -> Array:
    """Maximum of each row, -inf for an empty one."""
    m: Array = z.max(axis=axis, keepdims=True, initial=-INF)
    return m


def log_sum(z: Array, m: Array, axis: int) -> Array:
    """``log(sum exp(z - m))`` for finite m.

    The terms at the maximum are exactly 1. Leaving one of them to log1p keeps the tail that 1 + tail would
    round away (Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions",
    2021).
    """
    at_max = z == m
    others = np.where(at_max, 0, np.exp(z - m)).sum(axis=axis, keepdims=True)
    ties = at_max.sum(axis=axis, keepdims=True) - 1
    result: Array = np.log1p(others + ties)
    return result


def plain_softmax(z: Array, allowed: BoolArray | None, axis: int) -> Array:
    """``exp(z - m) / sum exp(z - m)``; 0 at masked entries and in a row with nothing to choose from."""
    m = row_max(z, axis)
    e = np.exp(z - m)
    p: Array = e / e.sum(axis=axis, keepdims=True)
    if allowed is not None:
        p = np.where(allowed & (m != -INF), p, 0)
    return p


def plain_log_softmax(z: Array, allowed: BoolArray | None, axis: int) -> Array:
    """``(z - m) - log(sum exp(z - m))``; -inf at masked entries and in a row with nothing to choose from."""
    m = row_max(z, axis)
    y: Array = np.where(np.isfinite(m), (z - m) - log_sum(z, m, axis), np.nan)
    if allowed is not None:
        y = np.where(allowed & (m != -INF), y, -INF)
    return y


def plain_logsumexp(z: Array, axis: int) -> Array:
    """``m + log(sum exp(z - m))``."""
    m = row_max(z, axis)
    lse: Array = np.where(np.isfinite(m), m + log_sum(z, m, axis), m)
    return lse


def plain_entropy(p: Array, log_p: Array, axis: int) -> Array:
    """``-sum p log p``, in which p = 0 contributes 0."""
    h: Array = np.where(p == 0, 0, -p * log_p).sum(axis=axis)
    return h


def scores(
    function: str, x: Array, temperature: float, mask: ArrayLike | None
) -> tuple[Array, BoolArray | None]:
    """Give z, and the mask at the shape of x."""
    check_temperature(function, temperature)
    allowed = as_mask(function, mask, x.shape)
    z: Array = x / temperature
    return (z if allowed is None else np.where(allowed, z, -INF)), allowed


def only(allowed: BoolArray | None, x: Array) -> Array:
    """Put 0 at the masked entries of x."""
    return x if allowed is None else np.where(allowed, x, 0)


# --- the functions


@np.errstate(all="ignore")
def softmax(
    x: ArrayLike, axis: int = -1, *, temperature: float = 1.0, mask: ArrayLike | None = None
) -> Array:
    """``exp(z) / sum exp(z)`` with ``z = x / temperature``.

    Examples
    --------
    >>> softmax(np.float32([1, 2, 3])).round(4)
    array([0.09  , 0.2447, 0.6652])
    >>> softmax(np.float32([1, 2, 3]), mask=[True, True, False]).round(4)
    array([0.2689, 0.7311, 0.    ])
    """
    (x,) = working("softmax", x=x)
    axis = check_axis("softmax", "x", x, axis)
    z, allowed = scores("softmax", x, temperature, mask)
    return plain_softmax(z, allowed, axis)


@np.errstate(all="ignore")
def log_softmax(
    x: ArrayLike, axis: int = -1, *, temperature: float = 1.0, mask: ArrayLike | None = None
) -> Array:
    """``z - logsumexp(z)`` with ``z = x / temperature``.

    Examples
    --------
    >>> log_softmax(np.float32([1, 2, 3])).round(4)
    array([-2.4076, -1.4076, -0.4076])
    """
    (x,) = working("log_softmax", x=x)
    axis = check_axis("log_softmax", "x", x, axis)
    z, allowed = scores("log_softmax", x, temperature, mask)
    return plain_log_softmax(z, allowed, axis)


@np.errstate(all="ignore")
def logsumexp(
    x: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    keepdims: bool = False,
) -> Array:
    """``log(sum exp(z))`` with ``z = x / temperature``.

    Examples
    --------
    >>> logsumexp(np.float32([[0, 0], [1, 2]])).round(4)
    array([0.6931, 2.3133])
    """
    (x,) = working("logsumexp", x=x)
    axis = check_axis("logsumexp", "x", x, axis)
    z, _ = scores("logsumexp", x, temperature, mask)
    lse = plain_logsumexp(z, axis)
    return lse if keepdims else np.squeeze(lse, axis)


@np.errstate(all="ignore")
def entropy(
    logits: ArrayLike, axis: int = -1, *, temperature: float = 1.0, mask: ArrayLike | None = None
) -> Array:
    """``-sum p log p`` in nats with ``p = softmax(logits / temperature)``.

    Examples
    --------
    >>> float(entropy(np.float32([0, 0, -np.inf])).round(4))
    0.6931
    """
    (x,) = working("entropy", logits=logits)
    axis = check_axis("entropy", "logits", x, axis)
    z, allowed = scores("entropy", x, temperature, mask)
    return plain_entropy(plain_softmax(z, allowed, axis), plain_log_softmax(z, allowed, axis), axis)


# --- vector-Jacobian products: the cotangent comes first


@np.errstate(all="ignore")
def softmax_vjp(
    dy: ArrayLike, y: ArrayLike, axis: int = -1, *, temperature: float = 1.0, mask: ArrayLike | None = None
) -> Array:
    """``dx = y * (dy - sum(dy * y)) / temperature`` with ``y = softmax(x)``.

    Examples
    --------
    >>> softmax_vjp(np.float32([1, 0]), np.float32([0.5, 0.5]))
    array([ 0.25, -0.25])
    """
    dy, y = working("softmax_vjp", dy=dy, y=y)
    check_shape("softmax_vjp", "dy", dy, y.shape)
    axis = check_axis("softmax_vjp", "y", y, axis)
    check_temperature("softmax_vjp", temperature)
    allowed = as_mask("softmax_vjp", mask, y.shape)
    dy, y = only(allowed, dy), only(allowed, y)
    return only(allowed, y * (dy - (dy * y).sum(axis=axis, keepdims=True)) / temperature)


@np.errstate(all="ignore")
def log_softmax_vjp(
    dy: ArrayLike, y: ArrayLike, axis: int = -1, *, temperature: float = 1.0, mask: ArrayLike | None = None
) -> Array:
    """``dx = (dy - exp(y) * sum(dy)) / temperature`` with ``y = log_softmax(x)``.

    Examples
    --------
    >>> log_softmax_vjp(np.float32([1, 0]), np.log(np.float32([0.5, 0.5]))).round(4)
    array([ 0.5, -0.5])
    """
    dy, y = working("log_softmax_vjp", dy=dy, y=y)
    check_shape("log_softmax_vjp", "dy", dy, y.shape)
    axis = check_axis("log_softmax_vjp", "y", y, axis)
    check_temperature("log_softmax_vjp", temperature)
    allowed = as_mask("log_softmax_vjp", mask, y.shape)
    dy = only(allowed, dy)
    return only(allowed, (dy - np.exp(y) * dy.sum(axis=axis, keepdims=True)) / temperature)


@np.errstate(all="ignore")
def logsumexp_vjp(
    d: ArrayLike,
    x: ArrayLike,
    lse: ArrayLike,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
) -> Array:
    """``dx = d * exp(z - lse) / temperature`` with ``lse = logsumexp(x)``; 0 where lse is -inf.

    Examples
    --------
    >>> logsumexp_vjp(np.float32(2), np.float32([0, 0]), np.log(np.float32(2))).round(4)
    array([1., 1.])
    """
    (x,) = working("logsumexp_vjp", x=x)
    axis = check_axis("logsumexp_vjp", "x", x, axis)
    z, allowed = scores("logsumexp_vjp", x, temperature, mask)
    d, lse = like("logsumexp_vjp", "d", d, x), like("logsumexp_vjp", "lse", lse, x)
    reduced = x.shape[:axis] + x.shape[axis + 1 :]
    check_shape("logsumexp_vjp", "d", d, reduced)
    check_shape("logsumexp_vjp", "lse", lse, reduced)
    d, lse = np.expand_dims(d, axis), np.expand_dims(lse, axis)
    return only(allowed, np.where(lse == -INF, 0, d * np.exp(z - lse) / temperature))


# --- Jacobian-vector products


@np.errstate(all="ignore")
def softmax_jvp(
    x: ArrayLike, dx: ArrayLike, axis: int = -1, *, temperature: float = 1.0, mask: ArrayLike | None = None
) -> tuple[Array, Array]:
    """``y = softmax(x)`` and ``dy = y * (dx - sum(y * dx)) / temperature``.

    Examples
    --------
    >>> softmax_jvp(np.float32([0, 0]), np.float32([1, 0]))
    (array([0.5, 0.5]), array([ 0.25, -0.25]))
    """
    x, dx = working("softmax_jvp", x=x, dx=dx)
    check_shape("softmax_jvp", "dx", dx, x.shape)
    axis = check_axis("softmax_jvp", "x", x, axis)
    z, allowed = scores("softmax_jvp", x, temperature, mask)
    dx = only(allowed, dx)
    y = plain_softmax(z, allowed, axis)
    return y, only(allowed, y * (dx - (y * dx).sum(axis=axis, keepdims=True)) / temperature)


@np.errstate(all="ignore")
def log_softmax_jvp(
    x: ArrayLike, dx: ArrayLike, axis: int = -1, *, temperature: float = 1.0, mask: ArrayLike | None = None
) -> tuple[Array, Array]:
    """``y = log_softmax(x)`` and ``dy = (dx - sum(softmax(x) * dx)) / temperature``.

    Examples
    --------
    >>> y, dy = log_softmax_jvp(np.float32([0, 0]), np.float32([1, 0]))
    >>> dy
    array([ 0.5, -0.5])
    """
    x, dx = working("log_softmax_jvp", x=x, dx=dx)
    check_shape("log_softmax_jvp", "dx", dx, x.shape)
    axis = check_axis("log_softmax_jvp", "x", x, axis)
    z, allowed = scores("log_softmax_jvp", x, temperature, mask)
    dx = only(allowed, dx)
    p = plain_softmax(z, allowed, axis)
    dy = (dx - (p * dx).sum(axis=axis, keepdims=True)) / temperature
    return plain_log_softmax(z, allowed, axis), only(allowed, dy)


@np.errstate(all="ignore")
def logsumexp_jvp(
    x: ArrayLike, dx: ArrayLike, axis: int = -1, *, temperature: float = 1.0, mask: ArrayLike | None = None
) -> tuple[Array, Array]:
    """``lse = logsumexp(x)`` and ``dlse = sum(exp(z - lse) * dx) / temperature``; 0 where lse is -inf.

    Examples
    --------
    >>> lse, dlse = logsumexp_jvp(np.float32([0, 0]), np.float32([1, 0]))
    >>> float(dlse.round(4))
    0.5
    """
    x, dx = working("logsumexp_jvp", x=x, dx=dx)
    check_shape("logsumexp_jvp", "dx", dx, x.shape)
    axis = check_axis("logsumexp_jvp", "x", x, axis)
    z, allowed = scores("logsumexp_jvp", x, temperature, mask)
    lse = plain_logsumexp(z, axis)
    p = np.where(lse == -INF, 0, np.exp(z - lse))
    dlse: Array = (p * only(allowed, dx)).sum(axis=axis) / temperature
    return np.squeeze(lse, axis), dlse
