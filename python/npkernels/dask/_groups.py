"""Advantages of groups whose samples lie on several machines: statistics of chunks, merged in a tree."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import npkernels
from npkernels._arrays import Array, shape_error
from npkernels._group_options import options_of
from npkernels._group_stats import Stats
from npkernels.dask._graph import (
    DaskArray,
    Delayed,
    Key,
    Layer,
    Tasks,
    alike,
    array,
    lazy,
    starts,
    tree,
    unique,
)


@dataclass(frozen=True, eq=False)
class LazyAdvantages:
    """What `group_advantages` gives.

    Attributes
    ----------
    advantages : Dask array (B,)
        Of the dtype and chunks of the rewards.
    stats : Delayed
        (keys, state) of all groups, as of `group_stats`; it costs nothing unless it is computed.
    """

    advantages: DaskArray
    stats: Delayed


@dataclass(frozen=True)
class _Samples:
    """Rewards, and the ids of their groups: a Dask array, or the size of consecutive groups."""

    rewards: DaskArray
    ids: DaskArray | None
    size: int

    def blocks(self) -> list[tuple[int, int, int]]:
        """Number, start and end of each chunk that holds something."""
        sizes = self.rewards.chunks[0]
        return [(i, s, s + n) for i, (s, n) in enumerate(zip(starts(sizes), sizes, strict=True)) if n]

    def reward_key(self, i: int) -> Key:
        return (self.rewards.name, i)

    def ids_key(self, i: int) -> Key | None:
        return None if self.ids is None else (self.ids.name, i)

    def inputs(self) -> tuple[Any, ...]:
        return (self.rewards, self.ids)

    def token(self) -> tuple[Any, ...]:
        return (
            self.rewards.name,
            self.rewards.chunks,
            None if self.ids is None else self.ids.name,
            self.size,
        )


def _samples(function: str, rewards: Any, groups: Any) -> _Samples:
    r = array(function, "rewards", rewards)
    if r.ndim != 1:
        shape_error(function, "rewards", r.shape, "(B,)")
    if isinstance(groups, int | np.integer) and not isinstance(groups, bool):
        if groups < 1 or r.shape[0] % groups:
            raise ValueError(
                f"{function}: groups is {groups}; expected a size >= 1 that divides the {r.shape[0]} rewards"
            )
        return _Samples(r, None, int(groups))
    if isinstance(groups, list | tuple) and any(isinstance(g, str | tuple) for g in groups):
        groups = np.fromiter(groups, object, len(groups))
    ids = lazy(function, "groups", groups, r.chunks)
    alike(function, "groups", ids, r.chunks, "rewards")
    if ids.dtype.kind not in "iuUSO":
        raise TypeError(f"{function}: groups has dtype {ids.dtype}; expected integers, strings or objects")
    return _Samples(r, ids, 0)


def group_stats(rewards: DaskArray, groups: Any) -> Delayed:
    """Statistics of groups of a Dask array's samples, each of which may lie in several chunks.

    Parameters
    ----------
    rewards : Dask array (B,)
        NaN is left out.
    groups : int or array (B,)
        The size of consecutive groups, which chunks may cut, or the id of each sample's group: NumPy, or Dask with the
        chunks of the rewards.

    Returns
    -------
    Delayed
        Of ``(keys, state)``, as `npkernels.group_stats` gives them for all samples at once.

    Raises
    ------
    TypeError, ValueError
        At once, if an argument or a chunking does not fit; when it is computed, if a reward is larger than 1e150.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> rewards = da.from_array(np.array([1.0, 3.0, 5.0, 5.0]), chunks=3)
    >>> npkernels.dask.group_stats(rewards, 2).compute()
    (array([0, 1]), array([[2., 2., 2., 1., 3.],
           [2., 5., 0., 5., 5.]]))
    """
    s = _samples("group_stats", rewards, groups)
    name = unique("group_stats", *s.token())
    tasks: Tasks = {}
    parts = _parts(s, tasks, name)
    if parts:
        tasks[name] = (_itself, tree(tasks, (f"{name}-merge",), list(parts.values()), _merge))
    else:
        tasks[name] = (_none,)
    return Layer(name, tasks, s.inputs()).delayed(name)


def advantages_from_stats(
    rewards: DaskArray,
    groups: Any,
    stats: Any,
    *,
    baseline: str | None = None,
    scale: str | None = None,
    ddof: int | None = None,
    eps: float | None = None,
    preset: str | None = None,
) -> DaskArray:
    """Advantages of samples of groups whose statistics are known, chunk by chunk.

    Parameters
    ----------
    rewards, groups
        As for `group_stats`.
    stats : Delayed or (keys, state)
        Of `group_stats`: of these samples, or of more. Every chunk gets those of its own groups, all of them with
        ``scale="batch"``.
    baseline, scale, ddof, eps, preset
        As for `group_advantages`.

    Returns
    -------
    Dask array (B,)
        Of the dtype and chunks of the rewards.

    Raises
    ------
    TypeError, ValueError
        At once, if an argument or a chunking does not fit; when it is computed, if a group is not among the keys.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> rewards = da.from_array(np.array([1.0, 2.0, 3.0]), chunks=2)
    >>> stats = npkernels.dask.group_stats(rewards, 3)
    >>> npkernels.dask.advantages_from_stats(rewards, 3, stats, preset="dr_grpo").compute()
    array([-1.,  0.,  1.])
    """
    function = "advantages_from_stats"
    s = _samples(function, rewards, groups)
    options, batch = _checked(
        function, {"baseline": baseline, "scale": scale, "ddof": ddof, "eps": eps, "preset": preset}
    )
    name = unique(function, *s.token(), stats, options)
    tasks: Tasks = {}
    lazily = hasattr(stats, "__dask_keys__")
    if lazily:
        known = stats.key
    else:
        npkernels.merge_group_stats(stats, stats)  # raises if it is not (keys, state)
        known = (f"{name}-stats",)
        tasks[known] = (functools.partial(_itself, tuple(stats)),)
    whole = dict.fromkeys((i for i, _, _ in s.blocks()), known)
    blocks = _advantages(s, name, whole, options, batch)
    layer = Layer(f"{name}-known", tasks, (*s.inputs(), stats if lazily else None))
    return layer.array(name, blocks, s.rewards.chunks, s.rewards.dtype)


def group_advantages(
    rewards: DaskArray,
    groups: Any,
    *,
    baseline: str | None = None,
    scale: str | None = None,
    ddof: int | None = None,
    eps: float | None = None,
    preset: str | None = None,
) -> LazyAdvantages:
    """Advantages of samples relative to their group, whose samples may lie in several chunks.

    `group_stats` of each chunk, merged, and `npkernels.advantages_from_stats` for each chunk: equal to the single pass
    up to rounding.

    Parameters
    ----------
    rewards : Dask array (B,)
        One reward for each sample; of several reward functions pass the weighted sum.
    groups : int or array (B,)
        As for `group_stats`. With a size only the groups that chunks cut travel, between neighbours; with ids the
        statistics of all groups are merged in a tree.
    baseline, scale, ddof, eps, preset
        As for `npkernels.group_advantages`; presets that need all rewards of a group at once are refused.

    Returns
    -------
    LazyAdvantages
        ``advantages``, a Dask array (B,), and ``stats``, a Delayed of (keys, state).

    Raises
    ------
    TypeError, ValueError
        At once, if an argument or a chunking does not fit; when it is computed, if a reward is larger than 1e150.

    Examples
    --------
    >>> import dask.array as da, numpy as np, npkernels.dask
    >>> rewards = da.from_array(np.array([1.0, 2, 3, 4, 5, 6]), chunks=4)
    >>> npkernels.dask.group_advantages(rewards, 3, preset="rloo").advantages.compute()
    array([-1.5,  0. ,  1.5, -1.5,  0. ,  1.5])
    """
    function = "group_advantages"
    s = _samples(function, rewards, groups)
    options, batch = _checked(
        function, {"baseline": baseline, "scale": scale, "ddof": ddof, "eps": eps, "preset": preset}
    )
    stats = group_stats(rewards, groups)
    if s.ids is not None or batch:
        lazily = advantages_from_stats(rewards, groups, stats, **options)
        return LazyAdvantages(lazily, stats)
    name = unique(function, *s.token(), options)
    tasks: Tasks = {}
    whole = _neighbours(s, tasks, name)
    layer = Layer(f"{name}-stats", tasks, s.inputs())
    blocks = _advantages(s, name, whole, options, batch)
    return LazyAdvantages(layer.array(name, blocks, s.rewards.chunks, s.rewards.dtype), stats)


def _checked(function: str, options: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The options, after their checks, and whether they look at the whole batch."""
    chosen = options_of(function, *options.values())
    if chosen.rule not in ("", "lone reward", "over mean"):
        raise ValueError(
            f"{function}: preset is {options['preset']!r}, which needs all rewards of a group at once; "
            "use npkernels.group_advantages on chunks that hold whole groups"
        )
    return options, chosen.scale == "batch"


def _parts(s: _Samples, tasks: Tasks, name: str) -> dict[int, Key]:
    parts: dict[int, Key] = {}
    for i, start, _ in s.blocks():
        parts[i] = (f"{name}-part", i)
        tasks[parts[i]] = (functools.partial(_stats, start, s.size), s.reward_key(i), s.ids_key(i))
    return parts


def _neighbours(s: _Samples, tasks: Tasks, name: str) -> dict[int, Key]:
    """Add the tasks that give each chunk the statistics of its groups, of which others may hold a part."""
    parts = _parts(s, tasks, name)
    reach = {i: (start // s.size, (end - 1) // s.size) for i, start, end in s.blocks()}
    whole: dict[int, Key] = {}
    order = list(reach)
    for n, i in enumerate(order):
        low, high = reach[i]
        first = last = n
        while first > 0 and reach[order[first - 1]][1] >= low:
            first -= 1
        while last + 1 < len(order) and reach[order[last + 1]][0] <= high:
            last += 1
        some: list[Key] = []
        for j in order[first : last + 1]:
            key = parts[j]
            if j != i:
                key = (f"{name}-edge", i, j)
                tasks[key] = (functools.partial(_between, low, high), parts[j])
            some.append(key)
        whole[i] = tree(tasks, (f"{name}-merge", i), some, _merge)
    return whole


def _advantages(s: _Samples, name: str, whole: dict[int, Any], options: dict[str, Any], batch: bool) -> Tasks:
    blocks: Tasks = {}
    begins = starts(s.rewards.chunks[0])
    for i, start in enumerate(begins):
        if i in whole:
            call = functools.partial(_of_block, start, s.size, options, batch)
            blocks[(name, i)] = (call, whole[i], s.reward_key(i), s.ids_key(i))
        else:
            blocks[(name, i)] = (functools.partial(np.zeros, 0, s.rewards.dtype),)
    return blocks


def _ids(start: int, size: int, count: int, ids: Array | None) -> Array:
    return np.arange(start, start + count) // size if ids is None else ids


def _stats(start: int, size: int, rewards: Array, ids: Array | None) -> Stats:
    return npkernels.group_stats(rewards, _ids(start, size, len(rewards), ids))


def _between(low: int, high: int, stats: Stats) -> Stats:
    """The statistics of some consecutive groups."""
    keys, state = stats
    some = slice(*np.searchsorted(keys, [low, high + 1]))
    return keys[some], state[some]


def _merge(parts: Sequence[Stats]) -> Stats:
    return functools.reduce(npkernels.merge_group_stats, parts)


def _of_block(
    start: int,
    size: int,
    options: dict[str, Any],
    batch: bool,
    stats: Stats,
    rewards: Array,
    ids: Array | None,
) -> Array:
    own = _ids(start, size, len(rewards), ids)
    if not batch:
        stats = _of_groups(own, stats)
    result: Array = npkernels.advantages_from_stats(rewards, own, stats, **options).advantages
    return result


def _of_groups(ids: Array, stats: Stats) -> Stats:
    """The statistics of those groups to which the ids belong."""
    keys, state = (np.asarray(x) for x in stats)
    if keys.dtype.kind in "iu" and ids.dtype.kind in "iu":
        some = np.isin(keys, ids)
    else:
        mine = set(ids.tolist())
        some = np.array([key in mine for key in keys.tolist()], bool)
    return keys[some], state[some]


def _itself(stats: Stats) -> Stats:
    return stats


def _none() -> Stats:
    return npkernels.group_stats(np.zeros(0), 1)
