"""Calls of attention and of its derivatives: what they take, and how the axes of `vmap` become part of the batch.

Letters as in `npkernels.attention`; q, k and v have four axes here. The arguments are q, k, v and those of `NAMES`
that are given, in this order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import npkernels
from npkernels._arrays import compute_dtype
from npkernels.jax._primitive import Array, Op, Shaped, bind, nonzero, only_first

NAMES = ("mask", "bias", "alibi_slopes", "sinks", "q_offset", "kv_lengths", "dropout_seed")
DIFFERENTIABLE = ("q", "k", "v", "bias", "sinks")


@dataclass(frozen=True)
class Attention(Op):
    """The output, and lse where it is asked for."""

    given: tuple[str, ...]
    causal: bool | str
    window: tuple[int, int] | None
    softcap: float
    scale: float | None
    dropout_p: float
    lse: bool

    @property
    def name(self) -> str:
        """The function, for messages."""
        return "attention"

    @property
    def rank(self) -> int:
        """The axes of q."""
        return 4

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments."""
        return ("q", "k", "v", *self.given)

    @property
    def options(self) -> dict[str, Any]:
        """The static ones."""
        return {
            "causal": self.causal,
            "window": self.window,
            "softcap": self.softcap,
            "scale": self.scale,
            **({"dropout_p": self.dropout_p} if self.dropout_p else {}),
        }

    @property
    def one_by_one(self) -> bool:
        """Whether each entry of the axes of `vmap` is a call of its own.

        Sinks belong to a head, not to an entry of the batch; what is dropped depends on the place in the batch.
        """
        return "sinks" in self.given or self.dropout_p > 0

    def values(self, q: Shaped, v: Shaped) -> list[Shaped]:
        """Shapes and dtypes of the output, and of lse."""
        shape, dtype = q
        out = ((*shape[:3], v[0][3]), dtype)
        return [out, (shape[:3], compute_dtype(np.dtype(dtype)))] if self.lse else [out]

    def results(self, *arguments: Shaped) -> list[Shaped]:
        """As `Op` says."""
        return self.values(arguments[0], arguments[2])

    def run(self, lead: tuple[int, ...], outs: Sequence[Array], *arguments: Array) -> None:
        """As `Op` says."""
        if lead and self.one_by_one:
            for i in np.ndindex(lead):
                self.run((), [out[i] for out in outs], *(a[i] for a in arguments))
            return
        x = folded(lead, self.names, arguments)
        q, k, v = (x.pop(name) for name in "qkv")
        out = joined(lead, outs[0])
        result = npkernels.attention(q, k, v, **x, **self.options, return_lse=self.lse, out=out)
        if self.lse:
            outs[1][...] = result[1].reshape(outs[1].shape)

    def derivative(self, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """As `Op` says."""
        moves = dict(zip(self.names, nonzero(tangents), strict=True))
        if moves.get("alibi_slopes"):
            raise NotImplementedError(
                "attention: alibi_slopes was differentiated; expected a constant (jax.lax.stop_gradient)"
            )
        wrt = tuple(name for name in self.names if name in DIFFERENTIABLE and moves[name])
        options = (self.given, self.causal, self.window, self.softcap, self.scale, self.dropout_p)
        values = bind(Attention(*options, True), *primals)
        moved = [t for name, t in zip(self.names, tangents, strict=True) if name in wrt]
        of = AttentionLinear(*options, self.lse, wrt, False)
        return values if self.lse else values[:1], bind(of, *primals, *values, *moved)


@dataclass(frozen=True)
class AttentionLinear(Attention):
    """The derivative with respect to `wrt`, or its transpose: the arguments, output and lse, what it is applied to."""

    wrt: tuple[str, ...]
    back: bool

    @property
    def linear(self) -> int:
        """Cotangents of the output and lse, or the tangents."""
        return 1 + self.lse if self.back else len(self.wrt)

    def results(self, *arguments: Shaped) -> list[Shaped]:
        """As `Op` says."""
        x = dict(zip(self.names, arguments, strict=False))
        return [x[name] for name in self.wrt] if self.back else self.values(x["q"], x["v"])

    def run(self, lead: tuple[int, ...], outs: Sequence[Array], *arguments: Array) -> None:
        """As `Op` says."""
        if lead and self.one_by_one:
            for i in np.ndindex(lead):
                self.run((), [out[i] for out in outs], *(a[i] for a in arguments))
            return
        n = len(self.names)
        x = folded(lead, self.names, arguments[:n], full="bias" in self.wrt)
        o, lse, *given = (joined(lead, a) for a in arguments[n:])
        if self.back:
            self._backward(lead, outs, x, o, lse, given)
            return
        d = {
            **{name: np.zeros(x[name].shape, x[name].dtype) for name in "qkv"},
            **dict(zip(self.wrt, given, strict=True)),
        }
        out = outs[0].reshape(o.shape)
        dq, dk, dv = (d[name] for name in "qkv")
        q, k, v = (x.pop(name) for name in "qkv")
        npkernels.attention_jvp(
            q, k, v, dq, dk, dv, **x, **self.options, out=(np.empty(out.shape, out.dtype), out)
        )

    def _backward(
        self,
        lead: tuple[int, ...],
        outs: Sequence[Array],
        x: dict[str, Any],
        o: Array,
        lse: Array,
        given: Sequence[Array],
    ) -> None:
        targets = dict(zip(self.wrt, outs, strict=True))
        dq, dk, dv = (
            targets[name].reshape(x[name].shape)
            if name in targets
            else np.empty(x[name].shape, x[name].dtype)
            for name in "qkv"
        )
        bias_rows = x["bias"].shape[0] if "bias" in x else 0
        q, k, v = (x.pop(name) for name in "qkv")
        grads = npkernels.attention_vjp(
            given[0],
            q,
            k,
            v,
            o,
            lse,
            dlse=given[1] if self.lse else None,
            **x,
            **self.options,
            want_dbias="bias" in self.wrt,
            want_dsinks="sinks" in self.wrt,
            out=(dq, dk, dv),
        )
        if "bias" in targets:
            target, dbias = targets["bias"], grads.dbias
            assert dbias is not None
            if bias_rows == math.prod(target.shape[: len(lead) + 1]):
                target[...] = dbias.reshape(target.shape)
            else:  # one bias for the whole batch of each entry of the axes of vmap
                each = dbias.reshape(*lead, len(q) // math.prod(lead), *target.shape[-3:])
                target[...] = each.sum(axis=len(lead), keepdims=True, dtype=lse.dtype)
        if "sinks" in targets:
            targets["sinks"][...] = grads.dsinks

    def check_runs(self) -> None:
        """As `Op` says."""
        if self.back:
            return
        others = [name for name in self.wrt if name in ("bias", "sinks")]
        if others or self.lse or self.dropout_p:
            what = (
                "with dropout" if self.dropout_p else "of lse (return_lse=True, or for a second derivative)"
            )
            what = f"along {others[0]}" if others else what
            raise NotImplementedError(
                f"attention: derivative {what} in forward mode (jvp); expected reverse mode (grad, vjp), or "
                f"directions of q, k and v and the output alone. {only_first(self.name)}"
            )

    def transposed(self) -> AttentionLinear:
        """As `Op` says."""
        options = (self.given, self.causal, self.window, self.softcap, self.scale, self.dropout_p, self.lse)
        return AttentionLinear(*options, self.wrt, not self.back)


def folded(
    lead: tuple[int, ...], names: Sequence[str], arguments: Sequence[Array], full: bool = False
) -> dict[str, Any]:
    """Return the arguments by name, with the axes `lead` in the batch.

    What is the same for all entries of the batch stays one, unless the bias is wanted `full`. Nothing is copied unless
    an argument has a batch of its own and is the same along an axis of `lead`.
    """
    given: dict[str, Any] = dict(zip(names, arguments, strict=True))
    if not lead:
        if "dropout_seed" in given:
            low, high = given["dropout_seed"].tolist()
            given["dropout_seed"] = low + (high << 32)
        return given
    n = len(lead)
    batch = given["q"].shape[n]
    result = {}
    for name, a in given.items():
        alone = a.shape[n] == 1 and all(
            step == 0 or size == 1 for step, size in zip(a.strides, lead, strict=False)
        )
        if alone and name in ("mask", "bias") and not (full and name == "bias"):
            result[name] = a[(0,) * n]
        else:
            result[name] = joined(lead, np.broadcast_to(a, (*lead, batch, *a.shape[n + 1 :])))
    return result


def joined(lead: tuple[int, ...], a: Array) -> Array:
    """Return a with the axes `lead` and its batch as one."""
    n = len(lead) + 1
    return a.reshape(math.prod(a.shape[:n]), *a.shape[n:])
