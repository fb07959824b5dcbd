"""Attention as operators: values, gradients and forward mode, of padded and of packed arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import npkernels
from npkernels._torch_memory import to_numpy, to_torch
from npkernels.torch._bridge import compute_dtype, new_dense, numpy_or_none
from npkernels.torch._op import Op

# What the schemas call the options, in the order in which everything here passes them. After q, k and v come the
# tensors (with their gradients: bias and sinks), then the rest.
_PADDED = ("mask", "bias", "alibi_slopes", "sinks", "q_offset", "kv_lengths")
_PACKED = ("cu_seqlens_q", "cu_seqlens_k", "alibi_slopes", "sinks", "q_offset")
_REST = {
    "causal": "str",
    "window": "int[]?",
    "softcap": "float",
    "scale": "float?",
    "dropout_p": "float",
    "dropout_seed": "SymInt?",
    "with_lse": "bool",
}
_DEFAULTS = {"softcap": 0.0, "dropout_p": 0.0}
CAUSAL = {False: "no", True: "square", "top_left": "top_left", "bottom_right": "bottom_right"}
_CAUSAL = {word: value for value, word in CAUSAL.items()}


def make(name: str, packed: bool) -> Op:
    """Return the operator (q, k, v, tensors, options) -> (out, lse) of `attention` or `attention_varlen`."""
    function: Callable[..., Any] = getattr(npkernels, name)
    vjp: Callable[..., Any] = getattr(npkernels, name + "_vjp")
    tensors = _PACKED if packed else _PADDED
    first = 2 if packed else 0  # how many of them are positional
    bias_at, sinks_at = (None if packed else tensors.index("bias")), tensors.index("sinks")

    def options(extra: tuple[Tensor | None, ...], rest: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
        """Only what was set, so that a call without options takes the function's own short path."""
        given = dict(zip(_REST, rest, strict=True))
        given.pop("with_lse")
        causal = _CAUSAL[given.pop("causal")]
        set_ = {n: v for n, v in given.items() if v is not None and v != _DEFAULTS.get(n)}
        if causal:
            set_["causal"] = causal
        set_ |= {n: to_numpy(x) for n, x in zip(tensors[first:], extra[first:], strict=True) if x is not None}
        return [numpy_or_none(x) for x in extra[:first]], set_

    def split(args: tuple[Any, ...]) -> tuple[tuple[Tensor | None, ...], tuple[Any, ...]]:
        return args[: len(tensors)], args[len(tensors) :]

    def outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out = new_dense([*q.shape[:-1], v.shape[-1]], q)
        sizes = [q.shape[1], q.shape[0]] if packed else q.shape[:-1]
        return out, torch.empty(sizes, dtype=compute_dtype(q.dtype), device=q.device)

    def forward(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        starts, chosen = options(*split(args))
        if not q.is_contiguous():
            chosen["out"] = to_numpy(new_dense([*q.shape[:-1], v.shape[-1]], q))
        out, lse = function(to_numpy(q), to_numpy(k), to_numpy(v), *starts, **chosen, return_lse=True)
        return to_torch(out), to_torch(lse)

    def fake(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return outputs(q, v)

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        extra, ctx.rest = split(inputs[3:])
        ctx.save_for_backward(*inputs[:3], *extra, *output)
        ctx.save_for_forward(*inputs[:3], *extra, *output)
        ctx.set_materialize_grads(False)
        if not ctx.rest[-1]:
            ctx.mark_non_differentiable(output[1])

    def pull(
        dout: Tensor,
        dlse: Tensor | None,
        out: Tensor,
        lse: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *args: Any,
    ) -> tuple[Tensor, ...]:
        want_dbias, want_dsinks = args[-2:]
        extra, rest = split(args[:-2])
        starts, chosen = options(extra, rest)
        grads = [new_dense(x.shape, x) for x in (q, k, v)]
        wanted: dict[str, Any] = {"want_dsinks": True} if want_dsinks else {}
        wanted |= {"want_dbias": True} if want_dbias else {}
        result = vjp(
            *(to_numpy(x) for x in (dout, q, k, v, out, lse)),
            *starts,
            dlse=numpy_or_none(dlse),
            **chosen,
            **wanted,
            out=tuple(to_numpy(g) for g in grads),
        )
        bias = None if bias_at is None else extra[bias_at]
        for x, want, d in ((bias, want_dbias, result.dbias), (extra[sinks_at], want_dsinks, result.dsinks)):
            if want:
                assert x is not None
                grads.append(to_torch(d).to(x.dtype).reshape(x.shape).contiguous())
            else:
                grads.append(q.new_empty(0))
        return tuple(grads)

    def pull_fake(
        dout: Tensor,
        dlse: Tensor | None,
        out: Tensor,
        lse: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *args: Any,
    ) -> tuple[Tensor, ...]:
        extra, _ = split(args[:-2])
        grads = [new_dense(x.shape, x) for x in (q, k, v)]
        for x, want in zip(
            (None if bias_at is None else extra[bias_at], extra[sinks_at]), args[-2:], strict=True
        ):
            like = q if x is None else x
            grads.append(
                torch.empty(like.shape if want else 0, dtype=like.dtype if want else q.dtype, device=q.device)
            )
        return tuple(grads)

    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> Any:
        *inputs, out, lse = ctx.saved_tensors
        if dout is None:
            if dlse is None:
                return (None,) * (3 + len(tensors) + len(_REST))
            dout = torch.zeros_like(out)
        wants = [at is not None and bool(ctx.needs_input_grad[3 + at]) for at in (bias_at, sinks_at)]
        dq, dk, dv, dbias, dsinks = pulled(dout, dlse, out, lse, *inputs, *ctx.rest, *wants)
        more: list[Tensor | None] = [None] * (len(tensors) + len(_REST))
        for at, want, d in zip((bias_at, sinks_at), wants, (dbias, dsinks), strict=True):
            if want:
                assert at is not None
                more[at] = d
        return (dq, dk, dv, *more)

    schema = ", ".join(
        [
            "Tensor q, Tensor k, Tensor v",
            *(f"Tensor{'' if i < first else '?'} {n}" for i, n in enumerate(tensors)),
            *(f"{kind} {n}" for n, kind in _REST.items()),
        ]
    )
    pulled = Op(
        f"{name}_backward",
        f"(Tensor dout, Tensor? dlse, Tensor out, Tensor lse, {schema}, bool want_dbias, bool want_dsinks) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor)",
        pull,
        pull_fake,
    )
    jvp = None if packed else _forward_mode(options, split, tensors)
    return Op(name, f"({schema}) -> (Tensor, Tensor)", forward, fake, setup, backward, jvp)


def _forward_mode(options: Any, split: Any, tensors: tuple[str, ...]) -> Callable[..., Any]:
    """Return the rule of forward mode of `attention`: along q, k and v."""

    def push(
        q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, *args: Any
    ) -> tuple[Tensor, Tensor]:
        extra, rest = split(args)
        _, chosen = options(extra, rest)
        dout = to_torch(npkernels.attention_jvp(*(to_numpy(x) for x in (q, k, v, dq, dk, dv)), **chosen)[1])
        if not rest[-1]:
            return dout, q.new_empty(0)
        # lse changes by the mean of the scores' change under the weights P: scale (dq . P k + q . P dk)
        wide = compute_dtype(q.dtype)
        q, k, dq, dk = (x.to(wide) for x in (q, k, dq, dk))
        if (bias := chosen.get("bias")) is not None:
            chosen["bias"] = bias.astype(to_numpy(q).dtype)
        mean_k, mean_dk = (
            to_torch(npkernels.attention(to_numpy(q), to_numpy(k), to_numpy(x), **chosen)) for x in (k, dk)
        )
        scale = chosen.get("scale", q.shape[-1] ** -0.5 if q.shape[-1] else 1.0)
        return dout, scale * ((dq * mean_k).sum(-1) + (q * mean_dk).sum(-1))

    def jvp(ctx: Any, *tangents: Any) -> Any:
        *inputs, _, _ = ctx.saved_tensors
        rest = dict(zip(_REST, ctx.rest, strict=True))
        named = dict(zip(tensors, tangents[3 : 3 + len(tensors)], strict=True))
        unknown = [name for name, tangent in named.items() if tangent is not None]
        if unknown:
            raise NotImplementedError(
                f"npkernels.torch.attention: forward mode goes along q, k and v; {unknown[0]} has a tangent too"
            )
        if rest["dropout_p"] > 0:
            raise NotImplementedError("npkernels.torch.attention: forward mode does not exist with dropout")
        if rest["with_lse"] and rest["softcap"]:
            raise NotImplementedError(
                "npkernels.torch.attention: forward mode of lse does not exist with softcap; use return_lse=False"
            )
        along = [
            torch.zeros_like(x) if t is None else t for x, t in zip(inputs[:3], tangents[:3], strict=True)
        ]
        dout, dlse = pushed(*inputs[:3], *along, *inputs[3:], *ctx.rest)
        return dout, dlse if rest["with_lse"] else None

    pushed = Op("attention_jvp", "", push)
    return jvp
