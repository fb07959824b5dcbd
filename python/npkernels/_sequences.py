"""How tokens are laid out: padded (B, T), or packed (total,) with the boundaries of the sequences."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import integers, plain, shape_error

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """The shape of an array of tokens, and its sequences: of one length, or between `ends`."""

    shape: tuple[int, ...]
    count: int
    length: int
    ends: Array | None

    @functools.cached_property
    def boundaries(self) -> Array:
        """Where sequences begin and end, (count + 1,)."""
        return np.arange(self.count + 1) * self.length if self.ends is None else self.ends

    @functools.cached_property
    def lengths(self) -> Array:
        """Tokens of each sequence."""
        return np.diff(self.boundaries)

    def longest(self) -> int:
        """Tokens of the longest sequence."""
        if self.ends is None:
            return self.length if self.count else 0
        return int(self.lengths.max(initial=0))

    def per_sequence(self, x: Array) -> bool:
        """Whether x has an entry per sequence; where both fit, it has."""
        return x.shape == (self.count,)


def layout_of(function: str, name: str, shape: tuple[int, ...], cu_seqlens: Any, more: str = "") -> Layout:
    """Check that an array of that shape has sequences: the axis of time is the last, or cu_seqlens cuts it."""
    if cu_seqlens is None:
        if len(shape) != 2:
            text = f"(B, T{more}), or packed (total{more if more else ','}) with cu_seqlens"
            shape_error(function, name, shape, text)
        return Layout(shape, shape[0], shape[1], None)
    if len(shape) != 1:
        shape_error(
            function, name, shape, f"packed (total{more if more else ','}), since cu_seqlens is given"
        )
    ends = boundaries(function, cu_seqlens, shape[0])
    return Layout(shape, len(ends) - 1, 0, ends)


def boundaries(function: str, cu_seqlens: Any, total: int) -> Array:
    """Check cu_seqlens."""
    ends = integers(function, "cu_seqlens", cu_seqlens)
    if ends.ndim != 1 or len(ends) < 1:
        shape_error(function, "cu_seqlens", ends.shape, "(B + 1,)")
    if ends[0] != 0 or ends[-1] != total or (np.diff(ends) < 0).any():
        raise ValueError(
            f"{function}: cu_seqlens goes from {ends[0]} to {ends[-1]}; expected numbers that rise from 0 to {total}"
        )
    return ends


def kept_bytes(function: str, mask: Any, shape: tuple[int, ...], name: str = "mask") -> Array | None:
    """The mask as contiguous bytes of 0 and 1; None if there is none."""
    if mask is None:
        return None
    array = plain(function, name, mask)
    if array.shape != shape:
        shape_error(function, name, array.shape, f"one entry per token, {shape}")
    if array.dtype != np.bool_:
        if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
            raise TypeError(f"{function}: {name} has dtype {array.dtype}; expected booleans, or 0 and 1")
        wrong = (array != 0) & (array != 1)
        if wrong.any():
            where = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(f"{function}: {name} holds {array[where]} at {where}; expected 0 or 1")
        array = array != 0
    return np.ascontiguousarray(array)
