"""token_log_probs as a JAX function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

import npkernels
from npkernels._arrays import compute_dtype
from npkernels._tokens import STATISTICS
from npkernels._types import TokenStats
from npkernels.jax._primitive import (
    Array,
    Op,
    Shaped,
    bind,
    boolean,
    floating,
    jax,
    jnp,
    only_first,
    with_axes,
    zero,
)

jax.tree_util.register_dataclass(TokenStats, [f.name for f in fields(TokenStats)], [])
INTEGERS = ("top1", "rank")


@dataclass(frozen=True)
class Tokens(Op):
    """log_prob and then `stats` of tokens: logits, ids, the mask if there is one."""

    axes: int
    temperature: float
    stats: tuple[str, ...]

    @property
    def name(self) -> str:
        """The function, for messages."""
        return "token_log_probs"

    @property
    def rank(self) -> int:
        """The axes of the logits."""
        return self.axes

    def results(self, *arguments: Shaped) -> list[Shaped]:
        """As `Op` says."""
        shape, dtype = arguments[0]
        number, place = compute_dtype(np.dtype(dtype)), jax.dtypes.canonicalize_dtype(np.int64)
        return [(shape[:-1], place if name in INTEGERS else number) for name in ("log_prob", *self.stats)]

    def run(self, lead: tuple[int, ...], outs: Sequence[Array], *arguments: Array) -> None:
        """As `Op` says."""
        logits, ids, *mask = arguments
        t = npkernels.token_log_probs(
            logits, ids, temperature=self.temperature, mask=mask[0] if mask else None, stats=self.stats
        )
        for name, out in zip(("log_prob", *self.stats), outs, strict=True):
            out[...] = getattr(t, name)

    def derivative(self, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """As `Op` says: of log_prob and entropy; the other statistics count as constants."""
        names = ("log_prob", *self.stats)
        extended = self if "lse" in self.stats else Tokens(self.axes, self.temperature, (*self.stats, "lse"))
        values = dict(zip(("log_prob", *extended.stats), bind(extended, *primals), strict=True))
        known = [values["lse"], *([values["entropy"]] if "entropy" in values else [])]
        of = TokensLinear(self.axes, self.temperature, self.stats, False)
        moved = dict(zip(("log_prob", "entropy"), bind(of, *primals, *known, tangents[0]), strict=False))
        constant = {name: zero(values[name]) for name in names if name not in moved}
        return [values[name] for name in names], [{**constant, **moved}[name] for name in names]


@dataclass(frozen=True)
class TokensLinear(Tokens):
    """The derivative of log_prob and entropy, or its transpose: as `Tokens`, then lse, entropy, its argument."""

    back: bool

    @property
    def with_entropy(self) -> bool:
        """Whether there is an entropy."""
        return "entropy" in self.stats

    @property
    def linear(self) -> int:
        """Cotangents of log_prob and of the entropy, or the tangent of the logits."""
        return 1 + self.with_entropy if self.back else 1

    def results(self, *arguments: Shaped) -> list[Shaped]:
        """As `Op` says."""
        shape, dtype = arguments[0]
        row = (shape[:-1], compute_dtype(np.dtype(dtype)))
        return [arguments[0]] if self.back else [row] * (1 + self.with_entropy)

    def run(self, lead: tuple[int, ...], outs: Sequence[Array], *arguments: Array) -> None:
        """As `Op` says."""
        logits, ids, *rest = arguments
        mask = rest.pop(0) if len(rest) > 1 + self.with_entropy + self.linear else None
        if self.back:
            lse, entropy, d, dentropy = rest if self.with_entropy else (rest[0], None, rest[1], None)
            npkernels.token_log_probs_vjp(
                d,
                logits,
                ids,
                lse,
                dentropy=dentropy,
                entropy=entropy,
                temperature=self.temperature,
                mask=mask,
                out=outs[0],
            )
            return
        moved = rest[-1]
        _, dlse = npkernels.logsumexp_jvp(logits, moved, temperature=self.temperature, mask=mask)
        own = np.take_along_axis(moved, ids[..., None], -1)[..., 0].astype(outs[0].dtype)
        outs[0][...] = np.where(rest[0] == -np.inf, 0, own / self.temperature - dlse)

    def check_runs(self) -> None:
        """As `Op` says."""
        if self.with_entropy and not self.back:
            raise NotImplementedError(
                "token_log_probs: entropy was differentiated in forward mode (jvp); expected reverse mode "
                f"(grad, vjp), or stats without 'entropy'. {only_first(self.name)}"
            )

    def transposed(self) -> TokensLinear:
        """As `Op` says."""
        return TokensLinear(self.axes, self.temperature, self.stats, not self.back)


def token_log_probs(
    logits: Any,
    ids: Any,
    *,
    temperature: float = 1.0,
    mask: Any = None,
    stats: Sequence[str] = STATISTICS,
) -> TokenStats[Any]:
    """`npkernels.token_log_probs` in JAX: log-probabilities of tokens and their statistics, one read of the logits.

    Works under `jit`, `vmap` and `grad` on CPU, and under `jvp` where "entropy" is not among `stats`. `log_prob` and
    `entropy` have gradients; the other statistics count as constants (`logsumexp` is a differentiable lse).

    Parameters
    ----------
    logits : array_like (..., V)
        As for `softmax`.
    ids : array_like of int (...)
        The tokens, 0 <= id < V.
    temperature : float
        Static.
    mask : array_like of bool, optional
        Broadcasts to logits; False takes an entry of the vocabulary out. May be traced.
    stats : sequence of str
        Static: any of "entropy", "lse", "sum_p2", "top1", "rank".

    Returns
    -------
    TokenStats
        A pytree: ``log_prob`` and the asked statistics, each of the shape of ids; ``top1`` and ``rank`` are JAX's
        integers.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value; when the call is traced. An id outside the vocabulary is
        found when the call runs, and reaches the caller as JAX's `JaxRuntimeError`.

    Examples
    --------
    >>> import jax, npkernels.jax
    >>> f = lambda x: npkernels.jax.token_log_probs(x, [0], stats=()).log_prob.sum()
    >>> jax.jit(jax.grad(f))(jax.numpy.zeros((1, 2)))
    Array([[ 0.5, -0.5]], dtype=float32)
    """
    function = "token_log_probs"
    x, chosen = floating(function, "logits", logits), jnp.asarray(ids)
    if x.ndim == 0:
        raise ValueError(f"{function}: logits has shape (); expected (..., V)")
    if not jnp.issubdtype(chosen.dtype, jnp.integer) and chosen.size:
        raise TypeError(f"{function}: ids has dtype {chosen.dtype}; expected integers")
    if chosen.shape != x.shape[:-1]:
        raise ValueError(
            f"{function}: ids has shape {chosen.shape}; expected that of logits without the last axis, {x.shape[:-1]}"
        )
    # the kernel itself says what is wrong with the options
    npkernels.token_log_probs(np.zeros((1, 1)), [0], temperature=temperature, stats=stats)
    op = Tokens(x.ndim, float(temperature), tuple(dict.fromkeys(stats)))
    masks = []
    if mask is not None:
        masks = [with_axes(function, "mask", boolean(function, mask), x.shape, "the shape of logits")]
    values = bind(op, x, chosen, *masks)
    return TokenStats(**dict(zip(("log_prob", *op.stats), values, strict=True)))
