"""Largest singular values: of matrices, convolutions, and anything that has a jvp and a vjp."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array, floating, same_kind
from npkernels.lipschitz._bound import Bound
from npkernels.lipschitz._callables import seen, values
from npkernels.lipschitz._golub_kahan import golub_kahan

ArrayLike = npt.ArrayLike


def spectral_norm(
    a: Any,
    *,
    shape: int | Sequence[int] | None = None,
    stride: int = 1,
    padding: int = 0,
    tol: float = 1e-6,
    max_iter: int = 500,
    rng: np.random.Generator | int = 0,
) -> Bound:
    """Largest singular value of a matrix, a convolution, or a linear map given by its jvp and vjp.

    Parameters
    ----------
    a : array_like (m, n), array_like (out, in, *kernel), or pair of callables
        A matrix is decomposed (exact up to rounding). A convolution, as networks have it (a correlation with zero
        padding), and a pair ``(jvp, vjp)``, ``jvp(v) = A v`` and ``vjp(u) = A^T u``, are iterated.
    shape : int or sequence of int
        Of an input of the map: ``(height, width)`` for a convolution, the whole shape for a pair.
    stride, padding : int
        Of the convolution, the same along each axis.
    tol : float
        The residual at which the iteration ends, relative to the square of the value.
    max_iter : int
        Products with A, and with its transpose, at most; the residual tells what was reached.
    rng : numpy.random.Generator or int
        Of the first direction.

    Returns
    -------
    Bound
        kind "upper" for a matrix; "lower" for the others (what is found is attained), with direction and residual;
        ``details["converged"]`` says whether that is tol or less, ``details["iterations"]`` after how many products.

    Raises
    ------
    TypeError, ValueError
        If an argument or what a callable gives has the wrong kind, shape or range, or vjp is not the transpose of jvp:
        ``<u, A v>`` and ``<A^T u, v>`` differ.

    Notes
    -----
    Golub-Kahan bidiagonalisation with full reorthogonalisation, restarted from the best direction every 48 steps. A
    power iteration that stops early looks converged and is not: look at the residual.

    References
    ----------
    .. [1] G. Golub, W. Kahan, "Calculating the singular values and pseudo-inverse of a matrix", 1965.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> float(npkernels.lipschitz.spectral_norm(np.diag([3.0, -4.0])))
    4.0
    >>> pair = (lambda v: v[::-1] * 2, lambda u: u[::-1] * 2)
    >>> b = npkernels.lipschitz.spectral_norm(pair, shape=(5,))
    >>> round(float(b), 9), b.kind
    (2.0, 'lower')
    """
    name = "spectral_norm"
    if isinstance(a, tuple) and len(a) == 2 and callable(a[0]) and callable(a[1]):
        if shape is None:
            raise ValueError(f"{name}: shape is None; a pair of callables needs the shape of an input")
        return golub_kahan(name, a[0], a[1], shape_of(name, shape), tol, max_iter, rng)
    w = floating(name, "a", a).astype(np.float64)
    if w.ndim == 2:
        return same_kind(_of_matrix(w), a)
    if w.ndim < 3:
        raise ValueError(
            f"{name}: a has shape {w.shape}; expected a matrix, (out, in, *kernel) or (jvp, vjp)"
        )
    lengths = () if shape is None else shape_of(name, shape)
    if len(lengths) != w.ndim - 2:
        raise ValueError(
            f"{name}: shape is {shape}; expected {w.ndim - 2} lengths for a kernel of shape {w.shape}"
        )
    conv = Convolution(name, w, lengths, stride, padding)
    return same_kind(golub_kahan(name, conv.forward, conv.adjoint, conv.input_shape, tol, max_iter, rng), a)


def shape_of(name: str, shape: Any) -> tuple[int, ...]:
    """A shape of positive lengths."""
    lengths = shape if isinstance(shape, Sequence) else (shape,)
    if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0 for n in lengths):
        raise ValueError(f"{name}: shape is {shape!r}; expected positive integers")
    return tuple(int(n) for n in lengths)


def _of_matrix(w: Array) -> Bound:
    top = float(np.abs(w).max(initial=0))
    if not w.size or not np.isfinite(top):
        return Bound(top, "upper")
    _, s, vt = np.linalg.svd(w, full_matrices=False)
    return Bound(float(s[0]), "upper", vt[0], 0.0)


class Convolution:
    """A correlation with zero padding as a linear map of (in, *shape), and its transpose."""

    def __init__(self, name: str, kernel: Array, shape: tuple[int, ...], stride: int, padding: int) -> None:
        for what, n, least in (("stride", stride, 1), ("padding", padding, 0)):
            if not isinstance(n, int | np.integer) or n < least:
                raise ValueError(f"{name}: {what} is {n!r}; expected an integer >= {least}")
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.input_shape = (kernel.shape[1], *shape)
        lengths = [(n + 2 * padding - k) // stride + 1 for n, k in zip(shape, kernel.shape[2:], strict=True)]
        if min(lengths) < 1:
            raise ValueError(f"{name}: the kernel {kernel.shape[2:]} is larger than the padded input {shape}")
        self.output_shape = (kernel.shape[0], *lengths)

    def _places(self) -> Iterator[tuple[Array, tuple[slice, ...]]]:
        """For each entry of the kernel: itself (out, in), and the inputs that it meets."""
        for place in np.ndindex(self.kernel.shape[2:]):
            spans = zip(place, self.output_shape[1:], strict=True)
            met = tuple(slice(p, p + self.stride * (n - 1) + 1, self.stride) for p, n in spans)
            entry = (slice(None), slice(None), *place)
            yield self.kernel[entry], (slice(None), *met)

    def _padded(self) -> Array:
        return np.zeros([self.input_shape[0], *(n + 2 * self.padding for n in self.input_shape[1:])])

    def _inner(self) -> tuple[slice, ...]:
        return (slice(None), *(slice(self.padding, self.padding + n) for n in self.input_shape[1:]))

    def forward(self, x: Array) -> Array:
        """A x."""
        padded, y = self._padded(), np.zeros(self.output_shape)
        padded[self._inner()] = x
        for w, met in self._places():
            y += np.tensordot(w, padded[met], 1)
        return y

    def adjoint(self, y: Array) -> Array:
        """A^T y."""
        padded = self._padded()
        for w, met in self._places():
            padded[met] += np.tensordot(w.T, y, 1)
        return padded[self._inner()]


def jacobian_norm(
    x: ArrayLike,
    jvp: Callable[[Any, Any], Any],
    vjp: Callable[[Any, Any], Any],
    *,
    subspace: ArrayLike | None = None,
    tol: float = 1e-6,
    max_iter: int = 500,
    rng: np.random.Generator | int = 0,
) -> Bound:
    """Spectral norm of a Jacobian at x: how much the map stretches the worst small perturbation there.

    Parameters
    ----------
    x : array_like
        One input, of any shape.
    jvp, vjp : callables
        ``jvp(x, dx) = J dx`` and ``vjp(x, dy) = J^T dy``. They get the kind of array that x is; dx has x's dtype, dy
        that of what jvp gave.
    subspace : array_like (q, ...), optional
        Orthonormal rows, each of x's size (as `tangent_basis` gives them): only perturbations that they span.
    tol, max_iter, rng
        And returns and errors as for `spectral_norm`.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> x = np.array([0.0, 0.0])  # the softmax there: (I - 11'/2) / 2
    >>> jvp = lambda x, dx: npkernels.softmax_jvp(x, dx)[1]
    >>> vjp = lambda x, dy: npkernels.softmax_vjp(dy, npkernels.softmax(x))
    >>> round(float(npkernels.lipschitz.jacobian_norm(x, jvp, vjp)), 9)
    0.5
    """
    name = "jacobian_norm"
    point = floating(name, "x", x)
    jvp, vjp = seen(name, "jvp", jvp, x), seen(name, "vjp", vjp, x)
    out_dtype = point.dtype
    rows: Array | None = None
    if subspace is not None:
        rows = floating(name, "subspace", subspace).astype(np.float64)
        if rows.ndim < 2 or rows.size != len(rows) * point.size or not len(rows):
            raise ValueError(f"{name}: subspace has shape {rows.shape}; expected (q, *{point.shape}), q > 0")
        rows = rows.reshape(len(rows), -1)
        if not np.allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-6):
            raise ValueError(
                f"{name}: the rows of subspace are not orthonormal; expected a basis as tangent_basis gives"
            )

    def ahead(d: Array) -> Array:
        nonlocal out_dtype
        d = d if rows is None else (d @ rows).reshape(point.shape)
        y = values(name, "what jvp gave", jvp(point.copy(), d.astype(point.dtype)))
        out_dtype = np.dtype(np.float64) if y.dtype.kind in "iub" else y.dtype  # dy may lie between integers
        return y

    def back(u: Array) -> Array:
        g = values(name, "what vjp gave", vjp(point.copy(), u.astype(out_dtype)))
        if rows is None:
            return g
        if g.shape != point.shape:
            raise ValueError(f"{name}: vjp gave shape {g.shape}; expected {point.shape}")
        return rows @ np.asarray(g, np.float64).reshape(-1)

    start = point.shape if rows is None else (len(rows),)
    found = golub_kahan(name, ahead, back, start, tol, max_iter, rng)
    direction = found.direction
    if direction is not None and rows is not None:
        direction = (direction @ rows).reshape(point.shape)
    return same_kind(Bound(found.value, found.kind, direction, found.residual, found.details), x)
