"""Points of a ball, uniformly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels import _core
from npkernels._arrays import Array, floating, kernel
from npkernels.perturb._arguments import Bounds, amount, check_samples, finite, norm_code, sides
from npkernels.perturb._steps import Norm

ArrayLike = npt.ArrayLike


@kernel
def random_in_ball(
    center: ArrayLike,
    eps: ArrayLike,
    *,
    norm: Norm = "inf",
    rng: np.random.Generator | int,
    bounds: Bounds = None,
    out: Array | None = None,
) -> Array:
    """Draw a point of the ball around each sample, uniformly by volume, and clip it to the bounds.

    Parameters
    ----------
    center : array_like (B, ...)
        Within the bounds.
    eps : float or array_like
        Radius, finite, >= 0: one number or one for each sample (B,); with norm "inf" also an array that broadcasts to
        center.
    norm : "inf", 2 or 1
        "inf": each entry by itself. 2: a normal vector over its length, times ``U^(1/d)``. 1: exponentials with random
        signs over the sum of d + 1 of them [1]_.
    rng : numpy.random.Generator or int
        A generator gives 64 bits, once; an integer in [0, 2^64) is the key itself. The numbers come from a counter
        (Philox 4x32-10 [2]_): entry j of sample b is the same for any number of threads and samples.
    bounds : (low, high), optional
        Numbers or arrays that broadcast to center.
    out : ndarray, optional
        Of center's shape and dtype; center itself is allowed.

    Returns
    -------
    ndarray
        Of center's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or range; `out` is untouched then.

    References
    ----------
    .. [1] G. Calafiore, F. Dabbene, R. Tempo, "Uniform sample generation in l_p balls", CDC 1998.
    .. [2] J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> y = npkernels.perturb.random_in_ball(np.zeros((1, 1000)), 2.0, norm=2, rng=0)
    >>> bool(1.9 < np.linalg.norm(y) < 2)
    True
    """
    name = "random_in_ball"
    c = floating(name, "center", center)
    code = norm_code(name, norm)
    check_samples(name, "center", c, code)
    radius = finite(name, "eps", amount(name, "eps", eps, c, code))
    low, high, lows, highs = sides(name, bounds, c)
    return _core.random_in_ball(c, *radius, code, _key(name, rng), low, high, lows, highs, out)


def random_start(
    name: str,
    center: Array,
    eps: Any,
    rng: np.random.Generator,
    norm: Any,
    bounds: Bounds,
    mask: Array | None,
) -> Array:
    """A point of the ball around each sample, uniformly in the entries that may move.

    Of a uniform point of a ball by the norm 1 or 2, any k entries have together a direction that is uniform, too. Their
    length is not: in a ball of k dimensions it is ``U^(1/k)``.
    """
    code = norm_code(name, norm)
    if mask is None:
        return random_in_ball(center, eps, norm=norm, rng=rng, bounds=bounds)
    moves = np.broadcast_to(mask, center.shape)
    if code == 0:
        return np.where(moves, random_in_ball(center, eps, norm=norm, rng=rng, bounds=bounds), center)
    rows = (len(center), int(np.prod(center.shape[1:])))
    d = np.where(moves, random_in_ball(np.zeros(center.shape), 1.0, norm=norm, rng=rng), 0).reshape(rows)
    size = np.abs(d).sum(axis=1) if code == 1 else np.sqrt((d * d).sum(axis=1))
    count = moves.reshape(rows).sum(axis=1)
    one, each = amount(name, "eps", eps, center, code)
    length = (one if each is None else each) * rng.random(len(center)) ** (1 / np.maximum(count, 1))
    d *= (length / np.where(size > 0, size, 1))[:, None]
    low, high, lows, highs = sides(name, bounds, center)
    y = np.clip(
        center + d.reshape(center.shape), low if lows is None else lows, high if highs is None else highs
    )
    return np.where(moves, y.astype(center.dtype), center)


def _key(function: str, rng: Any) -> int:
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(0, 2**64, dtype=np.uint64))
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool):
        if not 0 <= rng < 2**64:
            raise ValueError(f"{function}: rng is {rng}; expected an integer in [0, 2^64)")
        return int(rng)
    raise TypeError(f"{function}: rng is {rng!r}; expected a numpy.random.Generator or an integer")
