"""Perturbations of Dask arrays, chunked along the samples."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from npkernels import perturb
from npkernels._arrays import Array
from npkernels._uniform import _mix
from npkernels.dask._graph import DaskArray
from npkernels.dask._samples import Samples
from npkernels.perturb._random import _key
from npkernels.perturb._steps import Norm

RUN = 32  # samples whose random numbers come from one key


def sign_step(
    x: DaskArray, grad: Any, eps: Any, *, bounds: Any = None, targeted: bool = False, mask: Any = None
) -> DaskArray:
    """Fast gradient sign step of a Dask array: ``clip(x + eps * sign(grad), *bounds)``.

    Parameters
    ----------
    x : Dask array (B, ...)
        Chunked along the first axis, that of the samples, only.
    grad : array
        Of x's shape and dtype: NumPy, or Dask with x's chunks.
    eps : float or array
        As for `npkernels.perturb.sign_step`: one number, one for each sample (B,), or an array that broadcasts to x.
    bounds, targeted, mask
        As there. Arrays may be NumPy's or Dask's; whatever has a number for each sample is cut as x is.

    Returns
    -------
    Dask array
        Of x's shape, dtype and chunks.

    Raises
    ------
    TypeError, ValueError
        If an argument or a chunking does not fit: at once, but for what Dask arrays hold.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> x = da.full((2, 2), 0.5, chunks=(1, 2))
    >>> npkernels.dask.sign_step(x, np.array([[1.0, -1.0], [0.0, 3.0]]), 0.25).compute()
    array([[0.75, 0.25],
           [0.5 , 0.75]])
    """
    s = Samples("sign_step", x, "inf")
    s.like("grad", grad)
    s.amount("eps", eps)
    s.options(bounds, mask)
    return s.result(functools.partial(_call, "sign_step", {"targeted": targeted}))


def steepest_step(
    x: DaskArray,
    grad: Any,
    step: Any,
    *,
    norm: Norm = "inf",
    bounds: Any = None,
    targeted: bool = False,
    mask: Any = None,
) -> DaskArray:
    """Step of a given length that raises a linear loss most, of a Dask array.

    Parameters
    ----------
    step, norm
        As for `npkernels.perturb.steepest_step`.
    x, grad, bounds, targeted, mask
        And returns and errors as for `sign_step`.

    Examples
    --------
    >>> import dask.array as da, npkernels.dask
    >>> x = da.zeros((2, 2), chunks=(1, 2))
    >>> npkernels.dask.steepest_step(x, da.full_like(x, 3.0) * [1, 0], 10, norm=2).compute()
    array([[10.,  0.],
           [10.,  0.]])
    """
    s = Samples("steepest_step", x, norm)
    s.like("grad", grad)
    s.amount("step", step)
    s.options(bounds, mask)
    return s.result(functools.partial(_call, "steepest_step", {"targeted": targeted, "norm": norm}))


def project(
    x: DaskArray, center: Any, eps: Any, *, norm: Norm = "inf", bounds: Any = None, mask: Any = None
) -> DaskArray:
    """Project each sample of a Dask array onto the ball of radius eps around its center, exactly.

    Parameters
    ----------
    center : array
        Of x's shape and dtype: NumPy, or Dask with x's chunks.
    eps, norm
        As for `npkernels.perturb.project`.
    x, bounds, mask
        And returns and errors as for `sign_step`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> x = da.from_array(np.array([[3.0, 4.0], [0.0, 0.5]]), chunks=(1, 2))
    >>> npkernels.dask.project(x, da.zeros_like(x), 1.0, norm=2).compute()
    array([[0.6, 0.8],
           [0. , 0.5]])
    """
    s = Samples("project", x, norm)
    s.like("center", center)
    s.amount("eps", eps)
    s.options(bounds, mask)
    return s.result(functools.partial(_call, "project", {"norm": norm}))


def pgd_step(
    x: DaskArray,
    center: Any,
    grad: Any,
    step: Any,
    eps: Any,
    *,
    norm: Norm = "inf",
    bounds: Any = None,
    targeted: bool = False,
    mask: Any = None,
) -> DaskArray:
    """One step of projected gradient ascent of a Dask array: step, projection onto the ball, clip.

    Parameters
    ----------
    center, step, eps, norm
        As for `npkernels.perturb.pgd_step`; there is no momentum here, which would be changed in place.
    x, grad, bounds, targeted, mask
        And returns and errors as for `sign_step`.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> x = da.full((2, 2), 0.5, chunks=(1, 2))
    >>> g = np.array([[1.0, -1.0], [0.0, 2.0]])
    >>> npkernels.dask.pgd_step(x, x, g, 0.5, 0.25, bounds=(0, 0.6)).compute()
    array([[0.6 , 0.25],
           [0.5 , 0.6 ]])
    """
    s = Samples("pgd_step", x, norm)
    s.like("center", center)
    s.like("grad", grad)
    s.amount("step", step)
    s.amount("eps", eps)
    s.options(bounds, mask)
    return s.result(functools.partial(_call, "pgd_step", {"targeted": targeted, "norm": norm}))


def random_in_ball(
    center: DaskArray, eps: Any, *, norm: Norm = "inf", rng: np.random.Generator | int, bounds: Any = None
) -> DaskArray:
    """Draw a point of the ball around each sample of a Dask array, uniformly by volume, and clip it to the bounds.

    Parameters
    ----------
    center : Dask array (B, ...)
        Chunked along the first axis, that of the samples, only.
    eps, norm, bounds
        As for `npkernels.perturb.random_in_ball`; arrays as for `sign_step`.
    rng : numpy.random.Generator or int
        A generator gives 64 bits, at once; an integer in [0, 2^64) is the key itself.

    Returns
    -------
    Dask array
        Of center's shape, dtype and chunks. The same numbers whatever the chunks, and each time it is computed; other
        ones than `npkernels.perturb.random_in_ball` gives for the whole: each run of 32 samples has its own key, made
        from rng and the number of the run.

    Raises
    ------
    TypeError, ValueError
        If an argument or a chunking does not fit: at once, but for what Dask arrays hold.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> one, two = (
    ...     npkernels.dask.random_in_ball(da.zeros((50, 3), chunks=(n, 3)), 2.0, norm=2, rng=0).compute()
    ...     for n in (50, 7)
    ... )
    >>> bool((one == two).all()), bool((np.linalg.norm(one, axis=1) <= 2).all())
    (True, True)
    """
    s = Samples("random_in_ball", center, norm, "center")
    key = _key("random_in_ball", rng)
    s.amount("eps", eps)
    s.options(bounds, None)
    return s.result(functools.partial(_drawn, key, norm), key)


def _call(
    function: str, options: dict[str, Any], start: int, rowwise: tuple[str, ...], **given: Any
) -> Array:
    """One block of samples."""
    return np.asarray(getattr(perturb, function)(**options, **_bounded(given)))


def _bounded(given: dict[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in given.items() if k not in ("low", "high")}, **_pair(given)}


def _pair(given: dict[str, Any]) -> dict[str, Any]:
    return {"bounds": (given["low"], given["high"])} if "low" in given else {}


def _drawn(key: int, norm: Norm, start: int, rowwise: tuple[str, ...], **given: Any) -> Array:
    """Random points for a block of samples, run by run; a run that begins before the block is drawn from its start."""
    center = given["center"]
    if not len(center):
        return np.asarray(perturb.random_in_ball(norm=norm, rng=key, **_bounded(given)))
    out: Array = np.empty_like(center)
    end = start + len(center)
    for run in range(start // RUN, -(-end // RUN)):
        begin = run * RUN
        at = slice(max(begin, start) - start, min(begin + RUN, end) - start)
        before = max(start - begin, 0)
        some: dict[str, Any] = {
            name: _padded(v[at], before) if name in rowwise else v for name, v in given.items()
        }
        with np.errstate(over="ignore"):
            own = int(_mix(_mix(np.asarray(key, np.uint64)) + np.uint64(run)))
        out[at] = perturb.random_in_ball(norm=norm, rng=own, **_bounded(some))[before:]
    return out


def _padded(rows: Array, before: int) -> Array:
    """The rows, after as many copies of the first as were before them in their run."""
    return np.concatenate([np.repeat(rows[:1], before, axis=0), rows]) if before else rows
