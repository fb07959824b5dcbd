"""Tensors of PyTorch as NumPy arrays and back, on the same memory: for all doors that need PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from npkernels._arrays import Array, is_bfloat16
from npkernels._dlpack import bfloat16


def to_numpy(x: torch.Tensor) -> Array:
    """Return an array on the memory of a strided CPU tensor; bfloat16 as that of ml_dtypes.

    A lazily negated tensor (the imaginary part of a conjugate) is the one that is copied.
    """
    if x.requires_grad:
        x = x.detach()
    if x.is_neg():
        x = x.resolve_neg()
    if x.dtype is torch.bfloat16:
        return x.view(torch.int16).numpy().view(bfloat16())
    array: Array = x.numpy()
    return array


def to_torch(x: Any) -> torch.Tensor:
    """Return a tensor on the memory of an array or NumPy scalar."""
    array = np.asarray(x)
    if is_bfloat16(array.dtype):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
