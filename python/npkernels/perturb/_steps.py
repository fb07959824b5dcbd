"""Steps along gradients and projections onto balls: the kernels that attacks are made of."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, boolean, entries_apart, floating, kernel, plain
from npkernels.perturb._arguments import (
    INF,
    Bounds,
    amount,
    check_samples,
    decay_of,
    finite,
    flag,
    gradient,
    mask_of,
    norm_code,
    sides,
)

ArrayLike = npt.ArrayLike
Norm = Literal["inf", 1, 2] | float


@kernel
def sign_step(
    x: ArrayLike,
    grad: ArrayLike,
    eps: ArrayLike,
    *,
    bounds: Bounds = None,
    targeted: bool = False,
    mask: ArrayLike | None = None,
    return_nan_count: bool = False,
    out: Array | None = None,
) -> Any:
    """Fast gradient sign step: ``clip(x + eps * sign(grad), *bounds)``, in one pass.

    Parameters
    ----------
    x : array_like (B, ...)
        Inputs: float32, float64, float16 or bfloat16, any strides. The first axis counts samples.
    grad : array_like
        Gradient of the loss, of x's shape and dtype. sign(0) = 0; where it is NaN nothing moves.
    eps : float or array_like
        Length of the step, finite, >= 0: one number, one for each sample (B,), or an array that broadcasts to x.
    bounds : (low, high), optional
        Numbers or arrays that broadcast to x, clipped to last. Both are rounded to x's dtype first.
    targeted : bool
        Step against the gradient: down the loss of a class that is wanted.
    mask : array_like of bool, optional
        Broadcasts to x; where it is False the entry keeps its value, whatever its gradient.
    return_nan_count : bool
        Also return how many entries of grad are NaN (where the mask is True).
    out : ndarray, optional
        Of x's shape and dtype; x itself is allowed, and grad.

    Returns
    -------
    ndarray or (ndarray, int)
        Of x's shape and dtype. 16-bit inputs are computed in float32 and rounded once.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or range; `out` is untouched then.

    References
    ----------
    .. [1] I. Goodfellow, J. Shlens, C. Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> x, g = np.array([[0.5, 0.5, 0.9]]), np.array([[2.0, 0.0, 1.0]])
    >>> npkernels.perturb.sign_step(x, g, 0.25, bounds=(0, 1))
    array([[0.75, 0.5 , 1.  ]])
    """
    if mask is None and not return_nan_count:
        quick = _core.step_quick(x, None, grad, eps, None, bounds, targeted, out)
        if quick is not None:
            return quick
    x = floating("sign_step", "x", x)
    g = gradient("sign_step", "grad", grad, x)
    return _step("sign_step", x, None, g, eps, 0.0, 0, bounds, targeted, mask, return_nan_count, out)


@kernel
def steepest_step(
    x: ArrayLike,
    grad: ArrayLike,
    step: ArrayLike,
    *,
    norm: Norm = "inf",
    bounds: Bounds = None,
    targeted: bool = False,
    mask: ArrayLike | None = None,
    return_nan_count: bool = False,
    out: Array | None = None,
) -> Any:
    """Step of a given length that raises a linear loss most: ``clip(x + step * d, *bounds)``.

    The direction ``d = argmax <grad, d> over |d| <= 1`` is exact for each norm: ``sign(grad)`` for "inf",
    ``grad / |grad|`` for 2, and for 1 all of it on the entry whose gradient is largest (ties share equally).

    Parameters
    ----------
    step : float or array_like
        Length of the step, finite, >= 0: one number or one for each sample (B,); with norm "inf" also an array that
        broadcasts to x.
    norm : "inf", 2 or 1
        Taken over each sample. A gradient of zeros moves nothing, exactly; if some of its entries are infinite only
        these count. Gradients of any size are safe.
    x, grad, bounds, targeted, mask, return_nan_count, out
        And returns and errors as for `sign_step`.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.perturb.steepest_step(np.zeros((1, 2)), np.array([[3.0, -4.0]]), 10, norm=2)
    array([[ 6., -8.]])
    >>> npkernels.perturb.steepest_step(np.zeros((1, 2)), np.array([[3.0, -4.0]]), 10, norm=1)
    array([[  0., -10.]])
    """
    x = floating("steepest_step", "x", x)
    g = gradient("steepest_step", "grad", grad, x)
    code = norm_code("steepest_step", norm)
    return _step("steepest_step", x, None, g, step, 0.0, code, bounds, targeted, mask, return_nan_count, out)


@kernel
def project(
    x: ArrayLike,
    center: ArrayLike,
    eps: ArrayLike,
    *,
    norm: Norm = "inf",
    bounds: Bounds = None,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Project each sample onto the ball of radius eps around its center, exactly.

    Parameters
    ----------
    x, center : array_like (B, ...)
        Of one shape and dtype.
    eps : float or array_like
        Radius, >= 0, may be infinite: one number or one for each sample (B,); with norm "inf" also an array that
        broadcasts to x.
    norm : "inf", 2 or 1
        "inf": ``clip(x, center - eps, center + eps)``. 2: ``center + d * min(1, eps / |d|)`` with ``d = x - center``.
        1: ``center + sign(d) * max(|d| - t, 0)`` with the t that makes the norm eps, found without sorting. What is
        inside keeps its bits.
    bounds : (low, high), optional
        The center must lie within. With norms "inf" and 1 the result is the nearest point of the ball within the
        bounds; with norm 2 the projection is clipped to them, which leaves it in both.
    mask : array_like of bool, optional
        Broadcasts to x; where it is False the entry keeps its value and counts nowhere.
    out : ndarray, optional
        Of x's shape and dtype; x itself is allowed, and center.

    Returns
    -------
    ndarray
        Of x's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or range; `out` is untouched then.

    Notes
    -----
    A sample that is NaN somewhere, or infinitely far from its center, is NaN by the norms 1 and 2. The t of norm 1 is a
    root of a piecewise linear function, which Newton's method finds in a few passes [1]_.

    References
    ----------
    .. [1] L. Condat, "Fast projection onto the simplex and the l1 ball", Math. Program. 158, 2016.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> x, c = np.array([[3.0, 4.0]]), np.zeros((1, 2))
    >>> npkernels.perturb.project(x, c, 1.0, norm=2)
    array([[0.6, 0.8]])
    >>> npkernels.perturb.project(x, c, 1.0, norm=1)
    array([[0., 1.]])
    """
    x = floating("project", "x", x)
    c = gradient("project", "center", center, x)
    code = norm_code("project", norm)
    y: Array = _step("project", x, c, None, 0.0, eps, code, bounds, False, mask, False, out)
    return y


@kernel
def pgd_step(
    x: ArrayLike,
    center: ArrayLike,
    grad: ArrayLike,
    step: ArrayLike,
    eps: ArrayLike,
    *,
    norm: Norm = "inf",
    bounds: Bounds = None,
    targeted: bool = False,
    mask: ArrayLike | None = None,
    momentum: Array | None = None,
    decay: float = 1.0,
    return_nan_count: bool = False,
    out: Array | None = None,
) -> Any:
    """One step of projected gradient ascent: step, projection onto the ball, clip; with norm "inf" in one pass.

    ``project(steepest_step(x, grad, step), center, eps, bounds=bounds)``

    Parameters
    ----------
    center : array_like
        What the ball is around: the clean inputs, of x's shape and dtype, within the bounds. By the norms 1 and 2 an
        error is raised if it is not; by the norm "inf" looking would cost a third more time, and the bounds come last.
    step, norm, targeted, return_nan_count
        As for `steepest_step`.
    eps : float or array_like
        Radius of the ball; as for `project`.
    momentum : ndarray, optional
        Of x's shape and dtype; becomes `momentum(momentum, grad, decay=decay)`, in place, and is followed in place of
        grad (MI-FGSM). Begin with zeros.
    decay : float
        Of the momentum; 1 is usual.
    x, grad, bounds, mask, out
        And returns and errors as for `sign_step`; out may also be center.

    References
    ----------
    .. [1] A. Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> x, g = np.array([[0.5, 0.5]]), np.array([[1.0, -1.0]])
    >>> npkernels.perturb.pgd_step(x, x, g, 0.5, 0.25, bounds=(0, 0.6))
    array([[0.6 , 0.25]])
    """
    name = "pgd_step"
    if type(norm) is str and norm == "inf" and mask is None and momentum is None and not return_nan_count:
        quick = _core.step_quick(x, center, grad, step, eps, bounds, targeted, out)
        if quick is not None:
            return quick
    x = floating(name, "x", x)
    c, g = gradient(name, "center", center, x), gradient(name, "grad", grad, x)
    code = norm_code(name, norm)
    if momentum is None:
        return _step(name, x, c, g, step, eps, code, bounds, targeted, mask, return_nan_count, out)
    allowed = mask_of(name, mask)
    velocity = plain(name, "momentum", momentum)
    if velocity is not momentum and not hasattr(momentum, "__dlpack__"):
        raise TypeError(
            f"{name}: momentum is a {type(momentum).__name__}; expected an array to be updated in place"
        )
    if velocity.shape != x.shape or velocity.dtype != x.dtype or not velocity.flags.writeable:
        raise ValueError(
            f"{name}: momentum has shape {velocity.shape} and dtype {velocity.dtype}; "
            f"expected a writeable array of x's, {x.shape} and {x.dtype}"
        )
    if not entries_apart(velocity):
        raise ValueError(f"{name}: momentum has entries that may share memory; pass an ordinary array")
    inputs: list[Any] = [x, c, g, out]
    if any(isinstance(a, np.ndarray) and np.shares_memory(velocity, a) for a in inputs):
        raise ValueError(f"{name}: momentum overlaps another argument; pass separate memory")
    factor = decay_of(name, decay)
    nans = 0
    if return_nan_count:
        nans = int(np.isnan(g if allowed is None else g[np.broadcast_to(allowed, g.shape)]).sum())
    check_samples(name, "x", x, 1)
    new = _core.momentum(velocity, g, factor, allowed, None)
    y = _step(name, x, c, new, step, eps, code, bounds, targeted, mask, False, out)
    velocity[...] = new
    return (y, nans) if return_nan_count else y


@kernel
def momentum(
    velocity: ArrayLike,
    grad: ArrayLike,
    *,
    decay: float = 1.0,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Accumulate gradients that are scaled to 1: ``decay * velocity + grad / |grad|_1`` for each sample.

    Parameters
    ----------
    velocity, grad : array_like (B, ...)
        Of one shape and dtype. A gradient that is NaN counts as 0; if entries are infinite only these count.
    decay : float
        Finite, >= 0.
    mask : array_like of bool, optional
        Broadcasts to velocity; where it is False the velocity stays and the gradient counts nowhere.
    out : ndarray, optional
        Of velocity's shape and dtype; velocity itself is allowed, and grad.

    Returns
    -------
    ndarray
        Of velocity's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or range; `out` is untouched then.

    References
    ----------
    .. [1] Y. Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018, eq. 6.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.perturb.momentum(np.array([[1.0, 0.0]]), np.array([[1.0, -3.0]]))
    array([[ 1.25, -0.75]])
    """
    v = floating("momentum", "velocity", velocity)
    check_samples("momentum", "velocity", v, 1)
    g = gradient("momentum", "grad", grad, v)
    return _core.momentum(v, g, decay_of("momentum", decay), mask_of("momentum", mask), out)


def _step(
    name: str,
    x: Array,
    center: Array | None,
    grad: Array | None,
    step: Any,
    eps: Any,
    norm: int,
    bounds: Any,
    targeted: bool,
    mask: Any,
    want_nans: bool,
    out: Any,
) -> Any:
    """What the functions share; the compiled one checks shapes and dtypes. Ordinary arguments go straight through."""
    if x.ndim < 2:
        check_samples(name, "x", x, norm)
    lengths = radii = low_array = high_array = None
    if type(step) is float and 0 <= step < INF:
        length = step
    else:
        which = "eps" if name == "sign_step" else "step"
        length, lengths = finite(name, which, amount(name, which, step, x, norm))
    if type(eps) is float and eps >= 0:
        radius = eps
    else:
        radius, radii = amount(name, "eps", eps, x, norm)
    if bounds is None:
        low, high = -INF, INF
    elif (
        type(bounds) is not tuple
        or len(bounds) != 2
        or type(low := bounds[0]) is not float
        or type(high := bounds[1]) is not float
        or not low <= high
        or x.itemsize == 2  # where a bound has to be rounded first
    ):
        low, high, low_array, high_array = sides(name, bounds, x)
    y, nans = _core.perturb_step(
        name,
        x,
        center,
        grad,
        length,
        lengths,
        radius,
        radii,
        norm,
        low,
        high,
        low_array,
        high_array,
        targeted if type(targeted) is bool else flag(name, "targeted", targeted),
        None if mask is None else boolean(name, "mask", mask),
        bool(want_nans),
        out,
    )
    return (y, nans) if want_nans else y
