"""The ids of groups: joined, and found again. Integers by sorting, everything else that hashes by a dictionary."""

from __future__ import annotations

import numpy as np

from npkernels._arrays import Array


def united(a: Array, b: Array) -> tuple[Array, Array]:
    """The keys of a, then those of b that are new, and where those of b stand among them."""
    if a.dtype == b.dtype and a.dtype.kind in "iu":
        at, found = _places(a, b)
        new = ~found
        at[new] = len(a) + np.arange(np.count_nonzero(new))
        return np.concatenate([a, b[new]]), at
    rows = {key: i for i, key in enumerate(a.tolist())}
    at = np.array([rows.setdefault(key, len(rows)) for key in b.tolist()], np.int64)
    keys = np.empty(len(rows), a.dtype if a.dtype == b.dtype else np.dtype(object))
    keys[:] = list(rows)
    return keys, at


def _places(keys: Array, wanted: Array) -> tuple[Array, Array]:
    """Where each of some integers stands among keys, and whether it is there at all."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    order = np.argsort(keys, kind="stable")
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return at, keys[at] == wanted


def rows_of(function: str, keys: Array, names: Array) -> Array:
    """Where the ids of groups stand among the keys."""
    if keys.dtype == names.dtype and keys.dtype.kind in "iu":
        at, found = _places(keys, names)
        missing = names[~found].tolist()
    else:
        rows = {key: i for i, key in enumerate(keys.tolist())}
        missing = [key for key in names.tolist() if key not in rows]
        at = np.array([rows.get(key, -1) for key in names.tolist()], np.int64)
    if missing:
        raise ValueError(f"{function}: groups holds {missing[0]!r}, which is not among the keys of stats")
    return at
