"""The arguments of a function of samples, cut as the samples are, and the blocks of its result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from npkernels._arrays import Array, plain
from npkernels.dask._graph import DaskArray, Key, Layer, Tasks, alike, array, da, known, starts, unique
from npkernels.perturb._arguments import norm_code


class Samples:
    """The arguments of one call, each a number, an array that all blocks get, or one that is cut as x is."""

    def __init__(self, function: str, x: Any, norm: Any, name: str = "x") -> None:
        self.function = function
        self.code = norm_code(function, norm)
        self.x = array(function, name, x)
        self.keys: dict[str, Callable[[int], Any]] = {name: lambda i: (self.x.name, i, *self.zeros)}
        self.rowwise: list[str] = [name]
        self.fixed: dict[str, Any] = {}
        self.shared: dict[str, Array] = {}
        self.arrays: list[DaskArray] = [self.x]
        least = 2 if self.code else 1
        if self.x.ndim < least:
            raise ValueError(
                f"{function}: {name} has shape {self.x.shape}; expected samples along the first axis"
            )
        self.zeros = (0,) * (self.x.ndim - 1)
        self.sizes = self.x.chunks[0]
        for axis in range(1, self.x.ndim):
            if len(self.x.chunks[axis]) > 1:
                raise ValueError(
                    f"{function}: {name} has {len(self.x.chunks[axis])} chunks along axis {axis}; expected chunks "
                    f"along the samples only: {name}.rechunk({dict.fromkeys(range(1, self.x.ndim), -1)})"
                )
        self.dummy: dict[str, Any] = {name: np.empty((0, *self.x.shape[1:]), self.x.dtype)}

    def like(self, name: str, value: Any) -> None:
        """An array of x's shape."""
        if isinstance(value, da.Array):
            given = array(self.function, name, value)
        else:
            values = plain(self.function, name, value)
            if values.shape != self.x.shape:
                raise ValueError(
                    f"{self.function}: {name} has shape {values.shape}; expected that of x, {self.x.shape}"
                )
            given = da.from_array(values, chunks=self.x.chunks)
        alike(self.function, name, given, self.x.chunks, "x")
        self._cut(name, given)

    def amount(self, name: str, value: Any) -> None:
        """A length: one number, one for each sample, or an array that broadcasts to x."""
        if getattr(value, "shape", None) == self.x.shape[:1] or (
            isinstance(value, list | tuple) and np.shape(value) == self.x.shape[:1]
        ):
            given = value
            if not isinstance(value, da.Array):
                given = da.from_array(plain(self.function, name, value), chunks=self.x.chunks[:1])
            alike(self.function, name, given, self.x.chunks[:1], "the samples of x")
            self._cut(name, given)
            if not isinstance(value, da.Array):
                self._try(**{name: plain(self.function, name, value)})
        else:
            self._broadcast(name, value)

    def options(self, bounds: Any, mask: Any) -> None:
        """What may be left out."""
        if bounds is not None:
            if not isinstance(bounds, tuple | list) or len(bounds) != 2:
                raise TypeError(f"{self.function}: bounds is {bounds!r}; expected a pair (low, high)")
            for name, side in zip(("low", "high"), bounds, strict=True):
                self._broadcast(name, side)
        if mask is not None:
            self._broadcast("mask", mask)

    def _try(self, **amounts: Any) -> None:
        """Raise what the function would say about lengths that are at hand already."""
        for name, values in amounts.items():
            if values.dtype.kind not in "iufb" and values.dtype.name != "bfloat16":
                raise TypeError(f"{self.function}: {name} has dtype {values.dtype}; expected numbers")
            if values.size and not np.all(values >= 0):
                wrong = values[~(values >= 0)].reshape(-1)[0]
                raise ValueError(f"{self.function}: {name} holds {wrong}; expected numbers >= 0")

    def _cut(self, name: str, given: DaskArray) -> None:
        trailing = (0,) * (given.ndim - 1)
        self.keys[name] = lambda i: (given.name, i, *trailing)
        self.rowwise.append(name)
        self.arrays.append(given)
        self.dummy[name] = np.zeros((0, *given.shape[1:]), given.dtype)

    def _broadcast(self, name: str, value: Any) -> None:
        """A number, or an array that broadcasts to x."""
        lazily = isinstance(value, da.Array)
        given = value if lazily else plain(self.function, name, value)
        if not given.ndim and not lazily:
            self.fixed[name] = self.dummy[name] = value
            return
        if lazily:
            known(self.function, name, given)
        shape = (1,) * (self.x.ndim - given.ndim) + given.shape
        if len(shape) > self.x.ndim or any(n not in (1, m) for n, m in zip(shape, self.x.shape, strict=True)):
            raise ValueError(
                f"{self.function}: {name} has shape {given.shape}, which does not broadcast to {self.x.shape}"
            )
        given = given.reshape(shape)
        if shape[0] != self.x.shape[0] or shape[0] == 1:
            if lazily:
                given = given.rechunk(-1)
                self.arrays.append(given)
                shared = (given.name, *(0,) * self.x.ndim)
                self.keys[name] = lambda i: shared
            else:
                self.shared[name] = given
            self.dummy[name] = np.zeros(shape, given.dtype) if lazily else given
            return
        chunks = (self.sizes, *((n,) for n in shape[1:]))
        if lazily:
            alike(self.function, name, given, chunks, "x")
        else:
            given = da.from_array(given, chunks=chunks)
        self._cut(name, given)

    def result(self, call: Callable[..., Array], *token: Any) -> DaskArray:
        """The blocks of the result; what is wrong with the arguments is raised now, by a call without samples."""
        trial = call(0, (), **self.dummy)
        names = tuple(n for n in (*self.keys, *self.shared) if n not in self.fixed)
        name = unique(
            self.function,
            call,
            *((x.name, x.chunks) for x in self.arrays),
            names,
            self.fixed,
            self.shared,
            *token,
        )
        tasks: Tasks = {(f"{name}-{n}",): (functools.partial(_itself, a),) for n, a in self.shared.items()}
        blocks: Tasks = {}
        for i, start in enumerate(starts(self.sizes)):
            keys: list[Key] = [self.keys[n](i) if n in self.keys else (f"{name}-{n}",) for n in names]
            block = functools.partial(_block, call, names, self.fixed, start, tuple(self.rowwise))
            here = (name, i, *self.zeros)
            blocks[here] = (block, *keys)
        layer = Layer(f"{name}-shared", tasks, self.arrays)
        return layer.array(name, blocks, self.x.chunks, trial.dtype)


def _itself(x: Array) -> Array:
    return x


def _block(
    call: Callable[..., Array],
    names: tuple[str, ...],
    fixed: dict[str, Any],
    start: int,
    rowwise: tuple[str, ...],
    *values: Any,
) -> Array:
    return call(start, rowwise, **fixed, **dict(zip(names, values, strict=True)))
