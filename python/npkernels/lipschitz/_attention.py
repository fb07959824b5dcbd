"""The spectral norm of attention's Jacobian, by its fused derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array, _is_foreign, floating, same_kind
from npkernels._attention import attention
from npkernels._attention_grads import attention_jvp, attention_vjp
from npkernels.lipschitz._bound import Bound
from npkernels.lipschitz._callables import seen, values
from npkernels.lipschitz._golub_kahan import golub_kahan
from npkernels.lipschitz._spectral import shape_of

ArrayLike = npt.ArrayLike
Layer = tuple[Callable[[Any], Sequence[Any]], Callable[[Any, Any, Any], Any]]
OPTIONS = (  # that attention and both of its derivatives take
    "mask",
    "bias",
    "causal",
    "window",
    "softcap",
    "scale",
    "alibi_slopes",
    "sinks",
    "q_offset",
    "kv_lengths",
)


def attention_jacobian_norm(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    wrt: str = "qkv",
    layer: Layer | None = None,
    shape: Sequence[int] | None = None,
    tol: float = 1e-3,
    max_iter: int = 200,
    rng: np.random.Generator | int = 0,
    **options: Any,
) -> Bound:
    """Spectral norm of the Jacobian of `attention` at (q, k, v): how far its output moves for the worst small change.

    Attention is not Lipschitz on all inputs [1]_, but has a Jacobian at each. Nothing of size S x S is stored: every
    iteration is one `attention_jvp` and one `attention_vjp`.

    Parameters
    ----------
    q, k, v : array_like
        As for `npkernels.attention`; float32 or float64. In 16 bits the residual ends at about 1e-3.
    wrt : str
        Which of "q", "k", "v" change, such as "q" or "kv".
    layer : pair of callables, optional
        The linear maps before the attention: ``into(dx) -> (dq, dk, dv)`` and its transpose ``back(dq, dk, dv) -> dx``;
        then the norm is with respect to x, whose shape is `shape`, and `wrt` must be "qkv".
    shape : sequence of int, optional
        Of x.
    tol : float
        The residual at which the iteration ends (`Bound`); the value is exact to about its square. In float32 about
        1e-6 can be reached.
    max_iter, rng
        As for `spectral_norm`.
    **options
        mask, bias, causal, window, softcap, scale, alibi_slopes, sinks, q_offset, kv_lengths, as for
        `npkernels.attention`. With dropout there is no jvp.

    Returns
    -------
    Bound
        kind "lower" with direction and residual. The direction is an array of the shape of q, k, v or x; for several of
        them a dict by letter.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong kind, shape or range.

    References
    ----------
    .. [1] H. Kim, G. Papamakarios, A. Mnih, "The Lipschitz constant of self-attention", ICML 2021.

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 5, 4))
    >>> b = npkernels.lipschitz.attention_jacobian_norm(q, k, v, wrt="v")  # the largest singular value of the weights
    >>> w = npkernels.attention_weights(q, k)
    >>> round(float(b), 6) == round(float(np.linalg.norm(w[0], 2, axis=(1, 2)).max()), 6)
    True
    """
    name = "attention_jacobian_norm"
    given = (q, k, v)
    q, k, v = (floating(name, letter, a) for letter, a in (("q", q), ("k", k), ("v", v)))
    if not isinstance(wrt, str) or not wrt or sorted(set(wrt)) != sorted(wrt) or not set(wrt) <= set("qkv"):
        raise ValueError(f'{name}: wrt is {wrt!r}; expected some of the letters "qkv", each once')
    if (layer is None) != (shape is None) or (layer is not None and sorted(wrt) != ["k", "q", "v"]):
        raise ValueError(f'{name}: layer needs the shape of its input, and wrt "qkv"')
    if layer is not None and not (
        isinstance(layer, tuple | list) and [callable(f) for f in layer] == [True] * 2
    ):
        raise TypeError(f"{name}: layer is {layer!r}; expected a pair of callables (into, back)")
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise TypeError(f"{name}: {unknown[0]} is no option here; expected some of {', '.join(OPTIONS)}")
    inputs = {"q": q, "k": k, "v": v}
    o, lse = attention(q, k, v, return_lse=True, **options)
    sizes = [inputs[letter].size for letter in wrt]
    foreign = next((a for a in given if _is_foreign(a)), q)

    def parts(flat: Array) -> dict[str, Array]:
        pieces = np.split(flat, np.cumsum(sizes)[:-1])
        return {letter: p.reshape(inputs[letter].shape) for letter, p in zip(wrt, pieces, strict=True)}

    def tangents(d: Array) -> dict[str, Array]:
        if layer is None:
            return parts(d)
        maps = seen(name, "into", layer[0], foreign)(d)
        if not hasattr(maps, "__len__") or len(maps) != 3:
            came = f"{len(maps)} arrays" if hasattr(maps, "__len__") else f"a {type(maps).__name__}"
            raise ValueError(f"{name}: into gave {came}; expected a tuple of dq, dk and dv")
        return {letter: values(name, "what into gave", m) for letter, m in zip("qkv", maps, strict=True)}

    def ahead(d: Array) -> Array:
        found = tangents(d)
        moved = [np.asarray(found[x], a.dtype) if x in found else np.zeros_like(a) for x, a in inputs.items()]
        return np.asarray(attention_jvp(q, k, v, *moved, **options)[1])

    def back(dout: Array) -> Any:
        grads = attention_vjp(np.asarray(dout, o.dtype), q, k, v, o, lse, **options)
        found = {"q": grads.dq, "k": grads.dk, "v": grads.dv}
        if layer is not None:
            return seen(name, "back", layer[1], foreign)(found["q"], found["k"], found["v"])
        return np.concatenate([np.asarray(found[letter], np.float64).reshape(-1) for letter in wrt])

    start = (sum(sizes),) if shape is None else shape_of(name, shape)
    # The derivatives are one another's transposes; where the softmax is saturated all that they give is rounding.
    b = golub_kahan(name, ahead, back, start, tol, max_iter, rng, check=layer is not None)
    direction = b.direction
    if direction is not None and layer is None:
        direction = parts(direction)
        direction = (
            direction[wrt] if len(wrt) == 1 else {x: same_kind(d, *given) for x, d in direction.items()}
        )
    return same_kind(Bound(b.value, b.kind, direction, b.residual, b.details), *given)
