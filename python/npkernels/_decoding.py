"""Choosing tokens: sampling from a filtered distribution, one step of a beam search."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, compute_dtype, floating, kernel, number, shape_error
from npkernels._uniform import uniforms

ArrayLike = npt.ArrayLike
_COLD = 1e-6


@kernel
def sample(
    logits: ArrayLike,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    rng: Any = None,
) -> Array:
    """Draw one token from every row of logits.

    Parameters
    ----------
    logits : array_like (..., V)
        float32, float64, float16 or bfloat16.
    temperature : float
        Logits are divided by it; 0 takes the largest logit, the first of equals.
    top_k : int, optional
        Only the k largest logits; what equals the k-th stays too.
    top_p : float, optional
        Of what top_k left the fewest tokens whose probabilities add up to top_p or more, equals in their order [1]_.
    min_p : float, optional
        Of what is left the tokens that are at least min_p times as probable as the most probable [2]_.
    rng : numpy.random.Generator, int or array_like of int (...), optional
        A generator; a seed; or a seed for each row, which then gives the same token whatever rows are beside it.

    Returns
    -------
    ndarray of int64 (...)
        The token of each row: the first, in the order of the vocabulary, at which the cumulated probability exceeds the
        row's uniform number.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value.

    Notes
    -----
    NaN is never drawn. A row with +inf, or with nothing above -inf, gives its first largest entry; one of NaN alone
    gives 0.

    References
    ----------
    .. [1] A. Holtzman et al., "The curious case of neural text degeneration", 2020.
    .. [2] M. Nguyen et al., "Turning up the heat: min-p sampling", 2024.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.sample(np.log([[0.1, 0.6, 0.3]] * 4), top_k=2, rng=np.array([0, 1, 2, 3]))
    array([2, 1, 1, 1])
    """
    function = "sample"
    x = floating(function, "logits", logits)
    if x.ndim == 0 or x.shape[-1] == 0:
        shape_error(function, "logits", x.shape, "(..., V) with V >= 1")
    t = number(function, "temperature", temperature)
    if not 0 <= t < np.inf:
        raise ValueError(f"{function}: temperature is {temperature!r}; expected a finite number >= 0")
    if top_k is not None and (
        isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1
    ):
        raise ValueError(f"{function}: top_k is {top_k!r}; expected an integer >= 1, or None")
    p, least = _share(function, "top_p", top_p, 1.0), _share(function, "min_p", min_p, 0.0)
    if p == 0:
        raise ValueError(f"{function}: top_p is {top_p!r}; expected a number above 0")
    u = uniforms(function, rng, x.shape[:-1])
    rows = x.reshape(-1, x.shape[-1])
    if t == 0:
        return _first_largest(rows).reshape(x.shape[:-1])[()]
    most = 0 if top_k is None else min(int(top_k), rows.shape[-1])
    rows = np.ascontiguousarray(rows, compute_dtype(x.dtype))
    limits = np.finfo(rows.dtype)
    if t < _COLD:  # logits over t might be beyond all numbers; the gaps to the largest may
        top = np.fmax.reduce(rows, axis=-1, keepdims=True, initial=-np.inf)
        with np.errstate(over="ignore"):
            rows = rows - np.where(np.isfinite(top), top, 0)
    t = min(max(t, float(limits.tiny)), float(limits.max))
    ids = _core.sample(rows, t, most, p, least, u.reshape(-1))
    return ids.reshape(x.shape[:-1])[()]


def _first_largest(rows: Array) -> Array:
    """Index of the first largest number of each row; NaN, where argmax stops, is passed over."""
    ids = np.asarray(rows.argmax(axis=-1), np.int64)
    stopped = np.isnan(rows[np.arange(len(rows)), ids])
    if stopped.any():
        numbers = rows[stopped]
        with np.errstate(all="ignore"):
            largest = np.fmax.reduce(numbers, axis=-1, keepdims=True)
        ids[stopped] = (numbers == largest).argmax(axis=-1)
    return ids


@kernel
def beam_step(log_probs: ArrayLike, scores: ArrayLike, beam_width: int) -> tuple[Array, Array, Array]:
    """One step of a beam search: the best continuations of all beams together.

    Parameters
    ----------
    log_probs : array_like (..., W, V)
        Log-probabilities of the next token after each of W beams.
    scores : array_like (..., W)
        What each beam has so far; -inf takes it out of the race.
    beam_width : int
        How many are wanted, up to W * V.

    Returns
    -------
    scores : ndarray (..., beam_width)
        The largest of ``scores + log_probs``, in falling order (equals in the order of beam and token, NaN last);
        float64 for float64 log_probs, else float32.
    beams, tokens : ndarray of int64 (..., beam_width)
        Which beam each continues, and with what.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> npkernels.beam_step(np.array([[-1.0, -2.0], [-3.0, -1.0]]), [0.0, -1.0], 2)
    (array([-1., -2.]), array([0, 0]), array([0, 1]))
    """
    function = "beam_step"
    lp = floating(function, "log_probs", log_probs)
    s = floating(function, "scores", scores)
    if lp.ndim < 2:
        shape_error(function, "log_probs", lp.shape, "(..., W, V)")
    if s.shape != lp.shape[:-1]:
        shape_error(function, "scores", s.shape, f"one per beam, {lp.shape[:-1]}")
    W, V = lp.shape[-2:]
    if isinstance(beam_width, bool) or not isinstance(beam_width, int | np.integer):
        raise TypeError(f"{function}: beam_width is {beam_width!r}; expected an integer")
    if not 1 <= beam_width <= W * V:
        raise ValueError(
            f"{function}: beam_width is {beam_width}; expected 1 <= beam_width <= W * V = {W * V}"
        )
    dtype = compute_dtype(lp.dtype)
    with np.errstate(over="ignore"):
        p, q = (
            np.ascontiguousarray(lp, dtype).reshape(-1, W, V),
            np.ascontiguousarray(s, dtype).reshape(-1, W),
        )
    shape = (*lp.shape[:-2], int(beam_width))
    best, beams, tokens = _core.beam_step(p, q, int(beam_width))
    return best.reshape(shape), beams.reshape(shape), tokens.reshape(shape)


def _share(function: str, name: str, value: Any, default: float) -> float:
    if value is None:
        return default
    v = number(function, name, value)
    if not 0 <= v <= 1:
        raise ValueError(f"{function}: {name} is {value!r}; expected a number from 0 to 1")
    return v
