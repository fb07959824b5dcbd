"""What the functions of groups take: the ids of the samples, and the options by name."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from npkernels import _core
from npkernels._arrays import Array, choice, integers, number, plain, shape_error
from npkernels._grpo_types import BASELINES, PRESETS, SCALES, Preset

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def infinite(function: str) -> NoReturn:
    """Raise the error for rewards without a size."""
    raise ValueError(
        f"{function}: rewards holds an infinity; expected finite numbers, or NaN where a reward does not apply"
    )


def options_of(
    function: str, baseline: str | None, scale: str | None, ddof: Any, eps: Any, preset: str | None
) -> Preset:
    """The preset with what was given in its place."""
    p = Preset()
    if preset is not None:
        choice(function, "preset", preset, tuple(PRESETS))
        p = PRESETS[preset]
    if baseline is not None:
        choice(function, "baseline", baseline, BASELINES)
    if scale is not None:
        choice(function, "scale", scale, SCALES)
    for name, value, allowed in (("baseline", baseline, p.baselines), ("scale", scale, p.scales)):
        if value is not None and value not in allowed:
            own = f"has only {' or '.join(repr(a) for a in allowed)}" if allowed else "has its own"
            raise ValueError(
                f"{function}: {name} is {value!r}, but preset {preset!r} {own}; leave one of them out"
            )
    if ddof is not None and (isinstance(ddof, bool) or ddof not in (0, 1)):
        raise ValueError(f"{function}: ddof is {ddof!r}; expected 0 or 1")
    if eps is not None:
        eps = number(function, "eps", eps)
        if not 0 <= eps < np.inf:
            raise ValueError(f"{function}: eps is {eps!r}; expected a finite number >= 0")
    return p.changed(baseline, scale, None if ddof is None else int(ddof), eps)


def numbered(function: str, groups: Any, B: int) -> tuple[Any, int, Array | None]:
    """The size of consecutive groups or each sample's number; how many groups; their ids, None for a size."""
    if isinstance(groups, int | np.integer) and not isinstance(groups, bool):
        if groups < 1 or B % groups:
            raise ValueError(
                f"{function}: groups is {groups}; expected a size >= 1 that divides the {B} rewards"
            )
        return min(int(groups), max(B, 1)), B // int(groups), None
    ids = _tuples(groups) if isinstance(groups, list) else None
    ids = plain(function, "groups", groups) if ids is None else ids
    if ids.shape != (B,):
        shape_error(function, "groups", ids.shape, f"a size, or an id for each of the rewards, ({B},)")
    if ids.dtype.kind in "USO":
        index, keys = _by_equality(function, ids)
    elif ids.dtype == np.uint64:
        index, signed = _core.number_groups(np.ascontiguousarray(ids).view(np.int64))
        keys = signed.view(np.uint64)
    elif ids.dtype.kind in "iu" or not ids.size:
        index, keys = _core.number_groups(integers(function, "groups", ids))
    else:
        raise TypeError(
            f"{function}: groups has dtype {ids.dtype}; expected integers, strings or objects, or a size"
        )
    return index, len(keys), keys


def _by_equality(function: str, ids: Array) -> tuple[Array, Array]:
    """Number objects by what they equal."""
    numbers: dict[Any, int] = {}
    try:
        index = np.array([numbers.setdefault(i, len(numbers)) for i in ids.tolist()], np.int64)
    except TypeError as error:
        raise TypeError(f"{function}: groups holds an object that cannot be an id: {error}") from error
    keys = np.empty(len(numbers), object)
    keys[:] = list(numbers)
    for key, number_of_key in numbers.items():
        if key != key:
            at = int((index == number_of_key).argmax())
            raise ValueError(
                f"{function}: groups holds {key!r} at ({at},), which equals no id, not even itself; "
                "give every sample an id"
            )
    return index, keys


def _tuples(groups: list[Any]) -> Array | None:
    """A list of tuples as an array of them, which NumPy would make a table of."""
    if not groups or not all(isinstance(i, tuple) for i in groups):
        return None
    ids = np.empty(len(groups), object)
    ids[:] = groups
    return ids
