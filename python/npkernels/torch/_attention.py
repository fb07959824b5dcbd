"""Attention, of padded and of packed sequences."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npkernels._attention_options import Causal
from npkernels.torch._attention_ops import CAUSAL, make
from npkernels.torch._bridge import floats, others
from npkernels.torch._op import Op

_attention: Op = make("attention", packed=False)
_attention_varlen: Op = make("attention_varlen", packed=True)


def _rest(
    function: str,
    causal: Any,
    window: Any,
    softcap: float,
    scale: float | None,
    dropout_p: float,
    dropout_seed: Any,
    return_lse: bool,
) -> tuple[Any, ...]:
    """Return the options that are no tensors, as the operators take them."""
    if isinstance(causal, np.bool_):
        causal = bool(causal)
    if not isinstance(causal, bool | str) or causal not in CAUSAL:
        raise ValueError(
            f"{function}: causal is {causal!r}; expected False, True, 'top_left' or 'bottom_right'"
        )
    if window is not None and (not isinstance(window, tuple | list) or len(window) != 2):
        raise TypeError(
            f"{function}: window is {window!r}; expected a pair (left, right) of integers, -1 = open"
        )
    if dropout_seed is not None:
        seed = _integer(function, "dropout_seed", dropout_seed)
        if not -(2**63) <= seed < 2**63:  # the same bits, in an operator's int
            seed = (seed + 2**63) % 2**64 - 2**63
        dropout_seed = seed
    sides = None if window is None else list(window)
    return CAUSAL[causal], sides, softcap, scale, dropout_p, dropout_seed, bool(return_lse)


def _offsets(function: str, q_offset: Any) -> Tensor | None:
    if q_offset is None or isinstance(q_offset, Tensor):
        return q_offset
    return torch.tensor(_integer(function, "q_offset", q_offset, " or a tensor of them"))


def _integer(function: str, name: str, x: Any, more: str = "") -> Any:
    """Return a Python integer, or what stands for one in a function that is compiled."""
    if isinstance(x, int | torch.SymInt):
        return x
    try:
        return operator.index(x)
    except TypeError:
        raise TypeError(f"{function}: {name} is {x!r}; expected an integer{more}") from None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: Causal = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    q_offset: int | Tensor | None = None,
    kv_lengths: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`npkernels.attention` with derivatives of first order.

    Backward: with respect to q, k, v, bias and sinks, of the output and of lse. Forward mode: along q, k and v.

    Parameters
    ----------
    q : Tensor (B, Hq, S, D), (H, S, D) or (S, D)
        float32, float64, float16 or bfloat16, in CPU memory. A (B, S, H, D) tensor is passed as ``x.transpose(1, 2)``;
        with a last axis that is not contiguous a copy is made.
    k : Tensor (B, Hkv, K, D), ...
    v : Tensor (B, Hkv, K, Dv), ...
    mask : Tensor of bool, optional
        Broadcasts to (B, Hq, S, K); True = may attend.
    bias : Tensor, optional
        Of q's dtype, broadcasts to (B, Hq, S, K). Its gradient costs a second pass over the scores.
    alibi_slopes, kv_lengths : Tensor, optional
        As for `npkernels.attention`; constants.
    sinks : Tensor (Hq,), optional
        As for `npkernels.attention`.
    q_offset : int or Tensor of int (B,), optional
        As for `npkernels.attention`.
    causal, window, softcap, scale, dropout_p, dropout_seed, return_lse
        As for `npkernels.attention`. Dropout has no forward mode, and lse has none with softcap.

    Returns
    -------
    out : Tensor (B, Hq, S, Dv)
        Of q's dtype and memory order. A query with nothing to attend to gives 0.
    lse : Tensor (B, Hq, S)
        Only if `return_lse`; float32, or float64 for float64.

    Raises
    ------
    TypeError, ValueError
        If an argument is no CPU tensor, or has the wrong dtype, shape or value.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> q = torch.zeros(2, 4)
    >>> v = torch.tensor([[1.0], [3.0]], requires_grad=True)
    >>> npkernels.torch.attention(q, q, v, causal=True).sum().backward()
    >>> v.grad.T
    tensor([[1.5000, 0.5000]])
    """
    function = "attention"
    floats(function, q=q, k=k, v=v, bias=bias, sinks=sinks)
    offset = _offsets(function, q_offset)
    others(function, mask=mask, alibi_slopes=alibi_slopes, q_offset=offset, kv_lengths=kv_lengths)
    rest = _rest(function, causal, window, softcap, scale, dropout_p, dropout_seed, return_lse)
    out, lse = _attention(q, k, v, mask, bias, alibi_slopes, sinks, offset, kv_lengths, *rest)
    return (out, lse) if return_lse else out


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    causal: Causal = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    scale: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    q_offset: int | Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`npkernels.attention_varlen` with gradients of first order with respect to q, k, v and sinks.

    There is no forward mode of packed sequences.

    Parameters
    ----------
    q : Tensor (total_q, Hq, D)
    k : Tensor (total_k, Hkv, D)
    v : Tensor (total_k, Hkv, Dv)
    cu_seqlens_q, cu_seqlens_k : Tensor of int (N + 1,)
        Where sequences begin and end.
    causal, window, softcap, scale, alibi_slopes, sinks, q_offset, dropout_p, dropout_seed, return_lse
        As for `npkernels.attention_varlen`.

    Returns
    -------
    out : Tensor (total_q, Hq, Dv)
    lse : Tensor (Hq, total_q)
        Only if `return_lse`.

    Examples
    --------
    >>> import torch, npkernels.torch
    >>> q = torch.zeros(3, 1, 4)
    >>> v = torch.tensor([1.0, 3.0, 7.0]).reshape(3, 1, 1)
    >>> cu = torch.tensor([0, 2, 3])  # two tokens, then one
    >>> npkernels.torch.attention_varlen(q, q, v, cu, cu).flatten()
    tensor([2., 2., 7.])
    """
    function = "attention_varlen"
    floats(function, q=q, k=k, v=v, sinks=sinks)
    offset = _offsets(function, q_offset)
    others(
        function,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        alibi_slopes=alibi_slopes,
        q_offset=offset,
    )
    rest = _rest(function, causal, window, softcap, scale, dropout_p, dropout_seed, return_lse)
    out, lse = _attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes, sinks, offset, *rest)
    return (out, lse) if return_lse else out
