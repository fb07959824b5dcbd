"""Attention for CPU tensors of PyTorch, with gradients: what the doors to Transformers and flash-attention stand on."""

from __future__ import annotations

from typing import Any

try:
    import torch
except ImportError as error:
    raise ImportError(
        "npkernels: PyTorch is not installed; expected torch>=2.4 (pip install 'npkernels[transformers]')"
    ) from error

from npkernels import _torch_memory
from npkernels._arrays import Array
from npkernels._attention import attention
from npkernels._attention_grads import attention_vjp
from npkernels._attention_varlen import attention_varlen, attention_varlen_vjp
from npkernels._torch_memory import to_torch


def to_numpy(function: str, name: str, x: torch.Tensor) -> Array:
    """View a CPU tensor as a NumPy array; bfloat16 as that of ml_dtypes."""
    if x.device.type != "cpu" or x.layout is not torch.strided:
        raise ValueError(
            f"{function}: {name} is a {x.layout} tensor on {x.device}; expected a strided one on the CPU"
        )
    return _torch_memory.to_numpy(x)


def dropout_seed(dropout_p: float) -> int | None:
    """Draw a seed from PyTorch's generator, so that `torch.manual_seed` decides; None where nothing is dropped."""
    return None if dropout_p == 0 else int(torch.randint(2**62, ()).item())


def _autograd_attention(
    function: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    cu_seqlens: tuple[Array, Array] | None = None,
    return_lse: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attention` for tensors (`attention_varlen` with cu_seqlens), differentiable in q, k, v, bias and sinks.

    Parameters
    ----------
    function : str
        Of the caller, for errors.
    q, k, v : tensors
        (B, H, S, D), or packed (total, H, D).
    bias, sinks : tensors, optional
    cu_seqlens : (ndarray, ndarray), optional
        Boundaries of the packed sequences, of queries and of keys.
    return_lse : bool
        Also give the lse; it is differentiable too.
    **options
        The other options of `attention`, as NumPy arrays and numbers.

    Returns
    -------
    (out, lse)
        lse is None unless asked for.
    """
    given = (q, k, v, bias, sinks)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given):
        node: Any = _Attention.apply
        out, lse = node(function, *given, cu_seqlens, options)
        return out, (lse if return_lse else None)
    arrays = _arrays(function, *given)
    result = _forward(arrays, cu_seqlens, options, return_lse)
    if return_lse:
        return to_torch(result[0]), to_torch(result[1])
    return to_torch(result), None


def _arrays(function: str, *tensors: torch.Tensor | None) -> list[Any]:
    names = ("q", "k", "v", "bias", "sinks")
    return [
        None if x is None else to_numpy(function, name, x) for name, x in zip(names, tensors, strict=True)
    ]


def _forward(
    arrays: list[Any], cu_seqlens: tuple[Array, Array] | None, options: dict[str, Any], return_lse: bool
) -> Any:
    q, k, v, bias, sinks = arrays
    if cu_seqlens is None:
        return attention(q, k, v, bias=bias, sinks=sinks, return_lse=return_lse, **options)
    return attention_varlen(q, k, v, *cu_seqlens, sinks=sinks, return_lse=return_lse, **options)


class _Attention(torch.autograd.Function):
    """One node of PyTorch's graph: it keeps its inputs, the output and the lse."""

    @staticmethod
    def forward(
        ctx: Any,
        function: str,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        sinks: torch.Tensor | None,
        cu_seqlens: tuple[Array, Array] | None,
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        result = _forward(_arrays(function, q, k, v, bias, sinks), cu_seqlens, options, True)
        out, lse = to_torch(result[0]), to_torch(result[1])
        ctx.save_for_backward(q, k, v, bias, sinks, out, lse)
        ctx.set_materialize_grads(False)
        ctx.function, ctx.cu_seqlens, ctx.options = function, cu_seqlens, options
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor | None, dlse: torch.Tensor | None) -> tuple[Any, ...]:
        function, cu_seqlens = ctx.function, ctx.cu_seqlens
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{function}: a gradient that is differentiable itself was asked for; expected create_graph=False"
            )
        q, k, v, bias, sinks, out, lse = ctx.saved_tensors
        arrays = _arrays(function, q, k, v, bias, sinks)
        dout = torch.zeros_like(out) if dout is None else dout
        common = {
            "dlse": None if dlse is None else to_numpy(function, "dlse", dlse),
            "sinks": arrays[4],
            "want_dsinks": bool(ctx.needs_input_grad[5]),
            **ctx.options,
        }
        saved = [to_numpy(function, "out", out), to_numpy(function, "lse", lse)]
        cotangent = to_numpy(function, "dout", dout.to(q.dtype))
        if cu_seqlens is None:
            want = bool(ctx.needs_input_grad[4])
            grads = attention_vjp(cotangent, *arrays[:3], *saved, bias=arrays[3], want_dbias=want, **common)
        else:
            grads = attention_varlen_vjp(cotangent, *arrays[:3], *saved, *cu_seqlens, **common)
        found = [to_torch(x) for x in (grads.dq, grads.dk, grads.dv)]
        dbias = None if grads.dbias is None else to_torch(grads.dbias)
        dsinks = None if grads.dsinks is None else to_torch(grads.dsinks).to(sinks.dtype)
        return (None, *found, dbias, dsinks, None, None)
