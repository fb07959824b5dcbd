"""`npkernels.torch` for the doors to Transformers and flash-attention, which have their options as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import npkernels.torch as nt
from npkernels import _torch_memory
from npkernels._arrays import Array
from npkernels._torch_memory import to_torch


def to_numpy(function: str, name: str, x: torch.Tensor) -> Array:
    """View a CPU tensor as a NumPy array; bfloat16 as that of ml_dtypes."""
    _check_place(function, name, x)
    return _torch_memory.to_numpy(x)


def _check_place(function: str, name: str, x: torch.Tensor) -> None:
    if x.device.type != "cpu" or x.layout is not torch.strided:
        raise ValueError(
            f"{function}: {name} is a {x.layout} tensor on {x.device}; expected a strided one on the CPU"
        )


def dropout_seed(dropout_p: float) -> int | None:
    """Draw a seed from PyTorch's generator, so that `torch.manual_seed` decides; None where nothing is dropped."""
    return None if dropout_p == 0 else int(torch.randint(2**62, ()).item())


def tensor_attention(
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
    """`npkernels.torch.attention` (`attention_varlen` with cu_seqlens) with the other options as arrays and numbers.

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
    for name, x in (("q", q), ("k", k), ("v", v), ("bias", bias), ("sinks", sinks)):
        if x is not None:
            _check_place(function, name, x)
    given: dict[str, Any] = {
        name: _as_tensor(x) if isinstance(x, np.ndarray) else x for name, x in options.items()
    }
    result: Any
    if cu_seqlens is None:
        result = nt.attention(q, k, v, bias=bias, sinks=sinks, return_lse=return_lse, **given)
    else:
        starts = [_as_tensor(x) for x in cu_seqlens]
        result = nt.attention_varlen(q, k, v, *starts, sinks=sinks, return_lse=return_lse, **given)
    return result if return_lse else (result, None)


def _as_tensor(x: Array) -> torch.Tensor:
    """Return a tensor on the memory of an array, or on a copy where PyTorch has no such memory."""
    fits = x.flags.writeable and min(x.strides, default=0) >= 0
    return to_torch(x if fits else x.copy())
