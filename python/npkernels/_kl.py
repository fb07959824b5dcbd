"""Estimates of the KL divergence of two policies from the tokens that one of them sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array, check_out, choice, compute_dtype, floating, kernel, shape_error
from npkernels._grpo_types import KLS
from npkernels._policy_options import pair

ArrayLike = npt.ArrayLike


@kernel
def kl_divergence(
    logp: ArrayLike,
    ref_logp: ArrayLike,
    estimator: str = "k3",
    *,
    clamp: Sequence[float] | None = None,
    out: Array | None = None,
) -> Array:
    """Estimate of the KL divergence to a reference policy, of each token.

    Parameters
    ----------
    logp, ref_logp : array_like (...)
        Log-probabilities of the sampled tokens under the policy and under the reference.
    estimator : {"k1", "k2", "k3", "k3+"}
        With ``x = ref_logp - logp``: ``-x``, ``x**2 / 2``, ``exp(x) - 1 - x`` [1]_; "k3+" has the value of k3 (and in
        `policy_loss` the gradient of k2).
    clamp : (float, float), optional
        Bounds of the size of x and of the result; (20, 10) in verl and NeMo-RL, none in TRL.
    out : ndarray, optional
        Of the shape of logp and of float64 for float64, else float32.

    Returns
    -------
    ndarray (...)
        float64 for float64 inputs, else float32. k3 keeps its digits near 0.

    References
    ----------
    .. [1] J. Schulman, "Approximating KL divergence", 2020.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.kl_divergence(np.array([-1.0, -1.0]), np.array([0.0, -15.0])).round(4)
    array([ 0.7183, 13.    ])
    """
    function = "kl_divergence"
    lp, ref = floating(function, "logp", logp), floating(function, "ref_logp", ref_logp)
    choice(function, "estimator", estimator, KLS)
    inner, outer = (np.inf, np.inf) if clamp is None else pair(function, "clamp", clamp)
    if ref.shape != lp.shape:
        shape_error(function, "ref_logp", ref.shape, f"that of logp, {lp.shape}")
    dtype = compute_dtype(lp.dtype)
    check_out(function, out, lp.shape, dtype, [lp, ref])
    with np.errstate(all="ignore"):
        x = np.clip(ref.astype(dtype, copy=False) - lp.astype(dtype, copy=False), -inner, inner)
        if estimator == "k1":
            value = -x
        elif estimator == "k2":
            value = x * x / 2
        else:  # below 1e-2 the series, where exp(x) - 1 - x would cancel
            value = np.where(np.abs(x) < 1e-2, x * x * _k3_series(x), np.expm1(x) - x)
            value = np.where(x == np.inf, np.inf, value)
        result = np.asarray(np.clip(value, -outer, outer), dtype)
    if out is None:
        return result
    out[...] = result
    return out


def _k3_series(x: Array) -> Array:
    """(exp(x) - 1 - x) / x^2 up to 1e-2: the next term is below 1e-18."""
    total = np.zeros_like(x)
    for divisor in (40320, 5040, 720, 120, 24, 6, 2):
        total = total * x + x.dtype.type(1) / x.dtype.type(divisor)
    return total
