"""Statistics of tokens under a model's logits: one read of the vocabulary for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, boolean, compute_dtype, floating, integers, kernel, number, statistic
from npkernels._types import TokenStats

ArrayLike = npt.ArrayLike
STATISTICS = ("entropy", "lse", "sum_p2", "top1", "rank")


@kernel
def token_log_probs(
    logits: ArrayLike,
    ids: ArrayLike,
    *,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    stats: Sequence[str] = STATISTICS,
) -> TokenStats[Array]:
    """Log-probability of each token and statistics of its distribution, in one read of the logits.

    Parameters
    ----------
    logits : array_like (..., V)
        Read as they are: float32, float64, float16 or bfloat16.
    ids : array_like of int (...)
        The tokens, 0 <= id < V.
    temperature : float
        The distribution is ``p = softmax(logits / temperature)``.
    mask : array_like of bool, optional
        Broadcasts to logits; False takes an entry of the vocabulary out.
    stats : sequence of str
        Any of "entropy", "lse", "sum_p2", "top1", "rank"; what is not asked for is None in the result.

    Returns
    -------
    TokenStats
        ``log_prob`` and the asked statistics, each of the shape of ids: float64 for float64 logits, else float32
        (``top1`` and ``rank`` int64).

    Raises
    ------
    IndexError
        If an id is outside the vocabulary.
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value.

    Notes
    -----
    ``log_prob = (x[id] - m) - log1p(sum without the largest entry)``; see `log_softmax`.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> t = npkernels.token_log_probs(np.array([[0.0, 0.0, -np.inf]]), [1], stats=("entropy", "rank"))
    >>> t.log_prob, t.entropy, t.rank
    (array([-0.69314718]), array([0.69314718]), array([0]))
    """
    function = "token_log_probs"
    x = floating(function, "logits", logits)
    chosen = integers(function, "ids", ids)
    allowed = None if mask is None else boolean(function, "mask", mask)
    listed = not isinstance(stats, str) and isinstance(stats, Iterable)
    asked = list(stats) if listed else [stats]  # an iterator can be read only once
    unknown = [s for s in asked if s not in STATISTICS] if listed else asked
    if unknown:
        raise ValueError(
            f"{function}: stats holds {unknown[0]!r}; expected a sequence of some of {', '.join(STATISTICS)}"
        )
    wanted = {f"want_{s}": s in asked for s in STATISTICS}
    t = number(function, "temperature", temperature)
    values = _core.token_log_probs(x, chosen, temperature=t, mask=allowed, **wanted)
    log_prob, *others = (values[name] for name in ("log_prob", *STATISTICS))
    assert log_prob is not None
    return TokenStats(log_prob[()], *(None if v is None else v[()] for v in others))


@kernel
def token_log_probs_vjp(
    dlogp: ArrayLike,
    logits: ArrayLike,
    ids: ArrayLike,
    lse: ArrayLike,
    *,
    dentropy: ArrayLike | None = None,
    entropy: ArrayLike | None = None,
    temperature: float = 1.0,
    mask: ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """Gradient of token log-probabilities (and entropies) with respect to the logits: one read, one write.

    Parameters
    ----------
    dlogp : array_like (...)
        Cotangent of ``log_prob``.
    logits, ids, temperature, mask
        As given to `token_log_probs`.
    lse : array_like (...)
        ``token_log_probs(...).lse``. Rows with lse = -inf get 0.
    dentropy, entropy : array_like (...), optional
        Cotangent and value of the entropy; both or neither.
    out : ndarray, optional
        Of the shape and dtype of logits; logits itself is allowed.

    Returns
    -------
    ndarray (..., V)
        ``(dlogp * (onehot(ids) - p) - dentropy * p * (log p + entropy)) / temperature``, of the dtype of logits.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> x = np.zeros((1, 2))
    >>> t = npkernels.token_log_probs(x, [0])
    >>> npkernels.token_log_probs_vjp([1.0], x, [0], t.lse)
    array([[ 0.5, -0.5]])
    """
    function = "token_log_probs_vjp"
    x = floating(function, "logits", logits)
    dtype = compute_dtype(x.dtype)
    if (dentropy is None) != (entropy is None):
        missing = "entropy" if entropy is None else "dentropy"
        raise ValueError(f"{function}: {missing} is None; dentropy and entropy go together")
    return _core.token_log_probs_vjp(
        statistic(function, "dlogp", dlogp, dtype),
        x,
        integers(function, "ids", ids),
        statistic(function, "lse", lse, dtype),
        None if dentropy is None else statistic(function, "dentropy", dentropy, dtype),
        None if entropy is None else statistic(function, "entropy", entropy, dtype),
        number(function, "temperature", temperature),
        None if mask is None else boolean(function, "mask", mask),
        out,
    )
