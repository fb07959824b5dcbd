"""The awkward inputs that every kernel is checked with.

Lengths 1, W-1, W, W+1, 2W-1 for every vector width W, primes, and rows longer than the 1024 entries that a kernel holds
at a time; views of every kind; masks with anything behind them; rows of NaN and infinities; arrays so large that they
are written past the cache.
"""

from __future__ import annotations

import contextlib
import importlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npkernels._arrays import Array

INF, NAN = np.inf, np.nan


@dataclass(frozen=True)
class Case:
    """One call of a kernel. `inplace` is the position of the argument that is also given as `out`."""

    label: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    inplace: int | None = None


Cases = Callable[["Inputs"], Iterator[Case]]


def dtypes() -> dict[str, np.dtype[Any]]:
    """Give the floating dtypes by name; bfloat16 only if ml_dtypes is installed."""
    found = {name: np.dtype(name) for name in ("float32", "float64", "float16")}
    with contextlib.suppress(ImportError):
        found["bfloat16"] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    return found


def itemsize(dtype: str) -> int:
    """Bytes of an entry, without needing the dtype itself."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def families() -> dict[str, dict[str, Cases]]:
    """Give the kernels of each family and what makes their cases."""
    from npkernels._cli import cases_attention, cases_grpo, cases_perturb, cases_softmax

    return {
        "softmax": cases_softmax.KERNELS,
        "attention": cases_attention.KERNELS,
        "grpo": cases_grpo.KERNELS,
        "perturb": cases_perturb.KERNELS,
    }


class Inputs:
    """Random inputs of one dtype; the same for the same seed and kernel, whatever else is checked."""

    def __init__(self, kernel: str, dtype: np.dtype[Any], seed: int) -> None:
        self.dtype = dtype
        self.rng = np.random.default_rng([seed, zlib.crc32(f"{kernel} {dtype.name}".encode())])

    def normal(self, shape: tuple[int, ...], scale: float = 1.0) -> Array:
        """Normal numbers."""
        return (scale * self.rng.standard_normal(shape)).astype(self.dtype)

    def mask(self, shape: tuple[int, ...], share: float = 0.7) -> Array:
        """Booleans of which that share is True."""
        return self.rng.random(shape) < share

    def integers(self, high: int, shape: tuple[int, ...]) -> Array:
        """Integers from 0 to below high."""
        return self.rng.integers(0, high, shape)

    def behind(self, mask: Array, x: Array) -> Array:
        """Give x with NaN and infinities where the mask is False."""
        garbage = self.rng.choice(np.array([NAN, INF, -INF]), x.shape)
        with np.errstate(invalid="ignore"):
            return np.where(mask, x.astype(np.float64), garbage).astype(self.dtype)
