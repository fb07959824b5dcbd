"""Lists of options in which every pair of values occurs."""

import itertools

import numpy as np


def pairwise(options, seed=0):
    """Rows {name: value} in which every pair of values of two options occurs (greedy, seeded).

    `options` maps names to lists of values. Of forty random rows that hold a pair which is still wanted, the one with
    most such pairs is taken, again and again.
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
        hit = [[(a, int(r[a]), b, int(r[b])) for a, b in places] for r in candidates]
        best = max(range(len(hit)), key=lambda n: sum(pair in wanted for pair in hit[n]))
        wanted.difference_update(hit[best])
        rows.append({name: options[name][n] for name, n in zip(names, candidates[best], strict=True)})
    return rows


def assert_every_pair(rows, options):
    """Raise unless the rows hold what `pairwise` promises."""
    for a, b in itertools.combinations(options, 2):
        seen = {(repr(row[a]), repr(row[b])) for row in rows}
        assert len(seen) == len(options[a]) * len(options[b]), (a, b)
