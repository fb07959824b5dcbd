"""What a tensor must be to go in, and the memory of results."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from npkernels._arrays import Array
from npkernels._torch_memory import to_numpy

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def numpy_or_none(x: Tensor | None) -> Array | None:
    """Return None for None."""
    return None if x is None else to_numpy(x)


def floats(function: str, **tensors: Tensor | None) -> None:
    """Raise unless these are floating tensors in CPU memory, or None."""
    for name, x in tensors.items():
        if x is not None:
            on_cpu(function, name, x)
            if x.dtype not in FLOATS:
                raise TypeError(
                    f"{function}: {name} has dtype {x.dtype}; expected torch.float32, float64, float16 or bfloat16"
                )


def others(function: str, **tensors: Tensor | None) -> None:
    """Raise unless these are tensors in CPU memory that no derivative is asked of, or None."""
    for name, x in tensors.items():
        if x is not None:
            on_cpu(function, name, x)
            if x.requires_grad and torch.is_grad_enabled():
                raise TypeError(
                    f"{function}: {name} requires grad, and has no derivative here; pass {name}.detach()"
                )
            if has_tangent(x):
                raise TypeError(
                    f"{function}: {name} has a tangent, and no derivative here; pass {name}.detach()"
                )


def has_tangent(x: Tensor) -> bool:
    """Whether forward mode goes along x."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    unpack: Any = forward_ad.unpack_dual
    return unpack(x).tangent is not None


def axis_of(function: str, x: Tensor, axis: Any) -> int:
    """Return an axis of x as a Python integer, or raise."""
    try:
        chosen = None if isinstance(axis, bool) else operator.index(axis)
    except TypeError:
        chosen = None
    if chosen is None:
        raise TypeError(f"{function}: axis is {axis!r}; expected an integer")
    if not -x.dim() <= chosen < x.dim():
        raise ValueError(f"{function}: axis {chosen} is out of bounds for a tensor with {x.dim()} axes")
    return chosen


def on_cpu(function: str, name: str, x: Any) -> None:
    """Raise unless x is an ordinary tensor in CPU memory."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{function}: {name} is a {type(x).__module__}.{type(x).__qualname__}; expected a torch.Tensor "
            "(npkernels itself takes any kind of array)"
        )
    if x.device.type != "cpu":
        raise TypeError(f"{function}: {name} is on device {x.device}; expected a CPU tensor: {name}.cpu()")
    if x.layout is not torch.strided or x.is_nested:
        layout = "a nested layout" if x.is_nested else f"layout {x.layout}"
        raise TypeError(f"{function}: {name} has {layout}; expected a dense tensor")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def dense_strides(sizes: Any, strides: Any) -> list[int]:
    """Strides of new memory: the last axis contiguous, the others in the order of the given strides."""
    n = len(sizes)
    order = sorted(range(n - 1), key=lambda axis: -strides[axis])
    dense, step = [1] * n, max(sizes[-1], 1)
    for axis in reversed(order):
        dense[axis] = step
        step = step * max(sizes[axis], 1)
    return dense


def new_dense(sizes: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return memory of those sizes, ordered as `like` is; of as many axes."""
    if like.is_contiguous():
        return torch.empty(sizes, dtype=dtype or like.dtype, device=like.device)
    return torch.empty_strided(
        sizes, dense_strides(sizes, like.stride()), dtype=dtype or like.dtype, device=like.device
    )
