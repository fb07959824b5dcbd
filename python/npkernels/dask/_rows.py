"""Rows along one axis of a Dask array: their mask, their chunks, and the statistics of rows that are cut."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from npkernels._arrays import axis_index, boolean, number
from npkernels.dask._graph import DaskArray, Key, Tasks, array, da, known, starts, tree
from npkernels.dask._row_stats import join, of_chunk


@dataclass(frozen=True)
class Rows:
    """An array, a mask of its number of axes or None, and the axis along which its rows lie."""

    x: DaskArray
    mask: DaskArray | None
    axis: int
    temperature: float

    @property
    def cut(self) -> bool:
        """Whether rows are in more than one chunk."""
        return len(self.x.chunks[self.axis]) > 1

    def blocks(self) -> Iterator[tuple[int, ...]]:
        """The numbers of the blocks along the other axes."""
        sizes = (len(n) for axis, n in enumerate(self.x.chunks) if axis != self.axis)
        return itertools.product(*(range(n) for n in sizes))

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Number and start of each chunk of the rows that holds something."""
        sizes = self.x.chunks[self.axis]
        return ((j, start) for j, (start, n) in enumerate(zip(starts(sizes), sizes, strict=True)) if n)

    def key(self, at: tuple[int, ...], j: int) -> Key:
        """The key of chunk j of the rows in block `at` of the others."""
        return (self.x.name, *self.index(at, j))

    def index(self, at: tuple[int, ...], j: int) -> tuple[int, ...]:
        """The number of a block on all axes."""
        return (*at[: self.axis], j, *at[self.axis :])

    def mask_key(self, at: tuple[int, ...], j: int) -> Key | None:
        """The key of the block of the mask."""
        if self.mask is None:
            return None
        some = zip(self.index(at, j), self.mask.chunks, strict=True)
        return (self.mask.name, *(n if len(sizes) > 1 else 0 for n, sizes in some))

    def other_chunks(self) -> tuple[tuple[int, ...], ...]:
        """Chunks of the array without the rows' axis."""
        return (*self.x.chunks[: self.axis], *self.x.chunks[self.axis + 1 :])

    def statistics(self, tasks: Tasks, name: str) -> tuple[dict[Any, Key], dict[Any, Key]]:
        """Add the tasks of the statistics; their keys for each chunk (at, j) and for each whole row (at)."""
        parts: dict[Any, Key] = {}
        whole: dict[Any, Key] = {}
        for at in self.blocks():
            for j, start in self.chunks():
                parts[at, j] = key = (f"{name}-part", *at, j)
                stats = functools.partial(of_chunk, self.axis, self.temperature, start)
                tasks[key] = (stats, self.key(at, j), self.mask_key(at, j))
            some = [parts[at, j] for j, _ in self.chunks()]
            merge = functools.partial(join, self.temperature)
            whole[at] = tree(tasks, (f"{name}-join", *at), some, merge)
        return parts, whole


def rows(function: str, name: str, x: Any, axis: Any, temperature: Any, mask: Any) -> Rows:
    """Check the arguments that the functions of rows share."""
    given = array(function, name, x)
    at = axis_index(function, axis)
    if not -given.ndim <= at < given.ndim:
        raise ValueError(f"{function}: axis {at} is out of bounds for an array with {given.ndim} axes")
    at %= given.ndim
    t = number(function, "temperature", temperature)
    if not 0 < t < np.inf:
        raise ValueError(f"{function}: temperature is {temperature!r}; expected a positive finite number")
    if given.shape[at] == 0 and len(given.chunks[at]) > 1:
        given = given.rechunk({at: -1})
    return Rows(given, _mask(function, mask, given), at, t)


def _mask(function: str, mask: Any, x: DaskArray) -> DaskArray | None:
    """The mask with as many axes as x, each of length 1 or chunked as x is."""
    if mask is None:
        return None
    lazily = isinstance(mask, da.Array)
    given = mask if lazily else boolean(function, "mask", mask)
    if lazily:
        known(function, "mask", mask)
        if mask.dtype != np.bool_:
            raise TypeError(f"{function}: mask has dtype {mask.dtype}; expected bool (True = takes part)")
    shape = (1,) * (x.ndim - given.ndim) + given.shape
    if len(shape) > x.ndim or any(n not in (1, m) for n, m in zip(shape, x.shape, strict=True)):
        raise ValueError(f"{function}: mask has shape {given.shape}, which does not broadcast to {x.shape}")
    given = given.reshape(shape)
    chunks = tuple(sizes if n == m else (1,) for n, m, sizes in zip(shape, x.shape, x.chunks, strict=True))
    return given.rechunk(chunks) if lazily else da.from_array(given, chunks=chunks)
