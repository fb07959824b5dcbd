"""Which weights of attention are dropped: a function of a seed and of the place alone.

Every query row r has a stream of its own and every key j a number in it, so that the backward pass makes the mask
of the forward pass again, in any order, from the seed alone:

    z = splitmix64(seed + (r + 1) * golden)     a = low half of z, c = high half
    x = lowbias32(lowbias32(j ^ a) + c)         kept where x >= floor(p * 2^32)

r = (b * Hq + h) * S + i for query i of head h of batch b; packed sequences count h * total_q + the row of the query.

Sources: G. L. Steele Jr., D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014
(splitmix64, with the output function of D. Stafford's variant 13); C. Wellons, "Prospecting for hash functions",
2018 (lowbias32).
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from ._common import Array, BoolArray, IntArray

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd


def splitmix64(z: U64) -> U64:
    """The output function of splitmix64, a bijection of 64 bits."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def lowbias32(x: U32) -> U32:
    """A bijection of 32 bits in which every input bit moves every output bit."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def dropout_bits(seed: int, rows: IntArray, keys: int) -> U32:
    """The random number of each key of each row, (*rows.shape, keys)."""
    z = splitmix64(np.uint64(seed % 2**64) + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))
    low = z.astype(np.uint32)[..., None]
    high = (z >> np.uint64(32)).astype(np.uint32)[..., None]
    return lowbias32(lowbias32(np.arange(keys, dtype=np.uint32) ^ low) + high)


def dropout_kept(p: float, seed: int, rows: IntArray, keys: int) -> BoolArray:
    """Which keys of each row keep their weight."""
    kept: BoolArray = dropout_bits(seed, rows, keys) >= np.uint32(math.floor(p * 2**32))
    return kept


def dense_rows(shape: tuple[int, ...]) -> IntArray:
    """The numbers of the rows (B, Hq, S)."""
    return np.arange(math.prod(shape)).reshape(shape)


def dropout_factor(
    function: str, p: float, seed: Any, rows: IntArray, keys: int, like_: Array
) -> Array | None:
    """What each weight is multiplied by, (*rows.shape, keys): 0 or 1 / (1 - p); None without dropout."""
    number = check_dropout(function, p, seed)
    if p == 0:
        return None
    factor: Array = dropout_kept(p, number, rows, keys) / (1 - like_.dtype.type(p))
    return factor


def dropped(weights: Array, factor: Array | None) -> Array:
    """The weights after dropout; a dropped one is 0, even if it was NaN."""
    return weights if factor is None else np.where(factor == 0, 0, weights * factor)


def check_dropout(function: str, p: float, seed: Any) -> int:
    """The seed as a Python integer; 0 where nothing is dropped."""
    if not 0 <= p < 1:
        raise ValueError(f"{function}: dropout_p is {p}; expected 0 <= dropout_p < 1")
    if p == 0:
        return 0
    if seed is None:
        raise ValueError(
            f"{function}: dropout_p is {p} and dropout_seed is missing; the mask follows from it"
        )
    try:
        return operator.index(seed)
    except TypeError:
        raise TypeError(f"{function}: dropout_seed is {seed!r}; expected an integer") from None
