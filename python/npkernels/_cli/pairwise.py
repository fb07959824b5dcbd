"""Lists of options in which every pair of values occurs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def pairwise(options: Mapping[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Rows {name: value} in which every pair of values of two options occurs (greedy, seeded).

    Of forty random rows that hold a pair which is still wanted, the one with most such pairs is taken, again and again.

    Examples
    --------
    >>> len(pairwise({"a": [0, 1], "b": "xyz", "c": [None, True]}))
    6
    """
    names = list(options)
    counts = [len(options[name]) for name in names]
    places = list(itertools.combinations(range(len(names)), 2))
    wanted = {(a, i, b, j) for a, b in places for i in range(counts[a]) for j in range(counts[b])}
    rng = np.random.default_rng(seed)
    rows = []
    while wanted:
        a, i, b, j = min(wanted)
        candidates = rng.integers(0, counts, (40, len(names)))
        candidates[:, a], candidates[:, b] = i, j
        held = [{(a, int(row[a]), b, int(row[b])) for a, b in places} & wanted for row in candidates]
        best = max(range(len(held)), key=lambda n: len(held[n]))
        wanted -= held[best]
        rows.append({name: options[name][n] for name, n in zip(names, candidates[best], strict=True)})
    return rows


def every_pair(rows: Sequence[Mapping[str, Any]], options: Mapping[str, Sequence[Any]]) -> bool:
    """Whether the rows hold what `pairwise` promises."""
    return all(
        len({(repr(row[a]), repr(row[b])) for row in rows}) == len(options[a]) * len(options[b])
        for a, b in itertools.combinations(options, 2)
    )
