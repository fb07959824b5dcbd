"""Uniform random numbers for rows that are drawn from independently."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def uniforms(function: str, rng: Any, shape: tuple[int, ...]) -> Array:
    """One number in [0, 1) per row, float64.

    A Generator gives its next numbers, None those of a new one. Integers are seeds: an array of them one per row, which
    then depends on nothing else, and a single one numbers the rows (SplitMix64, Steele, Lea & Flood 2014).
    """
    if rng is None or isinstance(rng, np.random.Generator):
        return np.asarray((rng or np.random.default_rng()).random(shape))
    seeds = np.asarray(rng)
    if seeds.dtype.kind not in "iu" or isinstance(rng, bool):
        raise TypeError(
            f"{function}: rng is {rng!r}; expected a numpy.random.Generator, a seed, or a seed for each row"
        )
    if seeds.ndim == 0:
        rows = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64).reshape(shape)
        with np.errstate(over="ignore"):
            seeds = _mix(seeds.astype(np.uint64)) + rows
    if seeds.shape != shape:
        raise ValueError(f"{function}: rng has shape {seeds.shape}; expected a seed for each row, {shape}")
    return np.asarray((_mix(seeds.astype(np.uint64)) >> np.uint64(11)) * 2.0**-53)


def _mix(x: Array) -> Array:
    with np.errstate(over="ignore"):
        z = np.asarray(x + np.uint64(0x9E3779B97F4A7C15), np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))
