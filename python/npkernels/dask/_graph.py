"""What the functions share: checked Dask arrays in, tasks by key, trees of them, Dask arrays out.

A task is a tuple ``(function, key, ...)``; a key is a tuple ``(name, block index, ...)``, as Dask has them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from npkernels._arrays import floating, plain, shape_error
from npkernels.dask._load import load

da: Any = load("dask.array")
_HighLevelGraph: Any = load("dask.highlevelgraph").HighLevelGraph
_Delayed: Any = load("dask.delayed").Delayed
_tokenize: Any = load("dask.base").tokenize

DaskArray: TypeAlias = Any
Delayed: TypeAlias = Any
Key: TypeAlias = tuple[Any, ...]
Tasks: TypeAlias = dict[Any, Any]
FAN_IN = 4  # how many partial results one task of a tree merges


def unique(function: str, *what: Any) -> str:
    """A name for a layer of the graph: the same for the same arguments."""
    return f"{function}-{_tokenize(function, *what)}"


def array(function: str, name: str, x: Any) -> DaskArray:
    """Return x if it is a Dask array with chunks of known sizes, with integers as float64."""
    if not isinstance(x, da.Array):
        raise TypeError(
            f"{function}: {name} is a {type(x).__name__}; expected a Dask array (dask.array.from_array makes one)"
        )
    known(function, name, x)
    dtype = floating(function, name, np.empty(0, x.dtype)).dtype
    return x if x.dtype == dtype else x.astype(dtype)


def known(function: str, name: str, x: DaskArray) -> None:
    """Raise where the sizes of chunks are not known, or the chunks are not NumPy's."""
    kind = type(x._meta)
    if not issubclass(kind, np.ndarray) or issubclass(kind, np.ma.MaskedArray):
        raise TypeError(
            f"{function}: {name} is a Dask array of {kind.__module__}.{kind.__qualname__}; expected chunks that are "
            f"NumPy arrays: {name}.map_blocks(numpy.asarray), or what else makes them dense"
        )
    if any(math.isnan(n) for sizes in x.chunks for n in sizes):
        raise ValueError(
            f"{function}: {name} has chunks of unknown sizes; call {name}.compute_chunk_sizes() first"
        )


def lazy(function: str, name: str, x: Any, chunks: tuple[tuple[int, ...], ...]) -> DaskArray:
    """Return a Dask array as it is, anything else as one with these chunks."""
    if isinstance(x, da.Array):
        known(function, name, x)
        return x
    values = plain(function, name, x)
    sizes = tuple(sum(n) for n in chunks)
    if values.shape != sizes:
        shape_error(function, name, values.shape, str(sizes))
    return da.from_array(values, chunks=chunks)


def alike(function: str, name: str, x: DaskArray, chunks: Any, of: str) -> None:
    """Raise unless x has these chunks."""
    sizes = tuple(sum(n) for n in chunks)
    if x.shape != sizes:
        shape_error(function, name, x.shape, f"that of {of}, {sizes}")
    if x.chunks != chunks:
        raise ValueError(
            f"{function}: {name} has chunks {x.chunks}, {of} has {chunks}; expected the same: "
            f"{name}.rechunk({chunks})"
        )


def whole(function: str, name: str, x: DaskArray, axis: int, why: str) -> None:
    """Raise unless an axis is in one chunk."""
    if len(x.chunks[axis]) != 1:
        raise ValueError(
            f"{function}: {name} has {len(x.chunks[axis])} chunks along axis {axis}, {why}; expected one: "
            f"{name}.rechunk({{{axis}: -1}})"
        )


def starts(sizes: Sequence[int]) -> list[int]:
    """Where each chunk begins."""
    return [0, *np.cumsum(sizes).tolist()][: len(sizes)]


def tree(tasks: Tasks, prefix: Key, keys: Sequence[Key], merge: Callable[[list[Any]], Any]) -> Key:
    """Add the tasks that merge some results, a few at a time and in their order; return the key of the whole."""
    level = 0
    while len(keys) > 1:
        level += 1
        merged = []
        for n, first in enumerate(range(0, len(keys), FAN_IN)):
            some = list(keys[first : first + FAN_IN])
            key = some[0]
            if len(some) > 1:
                key = (*prefix, level, n)
                tasks[key] = (merge, some)
            merged.append(key)
        keys = merged
    return keys[0]


def _read(task: Any) -> Iterator[Any]:
    """The names of what a task reads: those in its keys, and keys that are names themselves."""
    for argument in task[1:]:
        if isinstance(argument, list):
            yield from map(_name, argument)
        elif argument is not None:
            yield _name(argument)


def _name(key: Any) -> Any:
    return key[0] if isinstance(key, tuple) else key


def _as_declared(
    function: Callable[..., Any], declared: tuple[tuple[int, str, tuple[int, ...], Any], ...], *arguments: Any
) -> Any:
    """Call a task's function, after a look at the blocks that it reads: Dask takes their shapes and dtypes on trust."""
    given = list(arguments)
    for at, name, shape, dtype in declared:
        block = given[at]
        if not isinstance(block, np.ndarray):
            continue
        if block.shape != shape:
            raise ValueError(
                f"npkernels.dask: a block of {name} has shape {block.shape}, its chunks say {shape}; expected what "
                "made it to be given the right chunks="
            )
        if block.dtype != dtype and (block.dtype.kind, dtype.kind) not in (("U", "U"), ("S", "S")):
            if not np.can_cast(block.dtype, dtype, "same_kind"):
                raise TypeError(
                    f"npkernels.dask: a block of {name} has dtype {block.dtype}, the array says {dtype}; expected what "
                    "made it to be given the right dtype= or meta="
                )
            given[at] = block.astype(dtype)
    return function(*given)


class Layer:
    """Tasks under one name, the collections that they read, and Dask arrays on top of both."""

    def __init__(self, name: str, tasks: Tasks, inputs: Iterable[Any]) -> None:
        self.name = name
        self.inputs = {
            _name(x.key) if isinstance(x, _Delayed) else x.name: x for x in inputs if x is not None
        }
        self.names = {_name(key) for key in tasks}
        self.graph = self._collected(name, tasks)

    def _guarded(self, task: Any) -> Any:
        """The task with a look at those of its blocks that come from outside."""
        function, *arguments = task
        declared = []
        for at, key in enumerate(arguments):
            x = self.inputs.get(key[0]) if isinstance(key, tuple) else None
            if x is not None and not isinstance(x, _Delayed):
                shape = tuple(sizes[n] for sizes, n in zip(x.chunks, key[1:], strict=True))
                declared.append((at, x.name, shape, x.dtype))
        if not declared:
            return task
        return (functools.partial(_as_declared, function, tuple(declared)), *arguments)

    def _collected(self, name: str, tasks: Tasks) -> Any:
        tasks = {key: self._guarded(task) for key, task in tasks.items()}
        read = {other for task in tasks.values() for other in _read(task)}
        inputs = [x for other, x in self.inputs.items() if other in read]
        graph = _HighLevelGraph.from_collections(name, tasks, dependencies=inputs)
        if name != self.name and read & self.names:
            layers = {**self.graph.layers, **graph.layers}
            needed = {**self.graph.dependencies, **graph.dependencies}
            needed[name] = {*graph.dependencies[name], self.name}
            graph = _HighLevelGraph(layers, needed)
        return graph

    def array(self, name: str, tasks: Tasks, chunks: Any, dtype: Any) -> DaskArray:
        """A Dask array whose blocks are further tasks, one for each."""
        meta = np.empty((0,) * len(chunks), dtype)
        return da.Array(self._collected(name, tasks), name, chunks=chunks, meta=meta)

    def delayed(self, key: Any) -> Delayed:
        """One result of the layer, as it is."""
        return _Delayed(key, self.graph, layer=self.name)
