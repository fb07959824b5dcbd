"""Uniform numbers from a counter: Philox 4x32 with 10 rounds (Salmon et al., "Parallel random numbers", SC 2011).

The counter holds the number of a pair of entries (64 bits) and that of its sample (64 bits), the key is the seed. A
block gives two words of 64 bits. The upper 53 bits of a word are a number in (0, 1), its lowest one a sign.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

LOW32 = np.uint64(0xFFFFFFFF)
SHIFT32 = np.uint64(32)
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
EXTRA = 2**64 - 1  # the number of the pair that is no entry's: one more number for each sample


def key_of(rng: Any) -> int:
    """64 bits of a generator, or the number itself."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(0, 2**64, dtype=np.uint64))
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool) and 0 <= rng < 2**64:
        return int(rng)
    raise TypeError(
        f"random_in_ball: rng is {rng!r}; expected a numpy.random.Generator or an integer in [0, 2^64)"
    )


def philox(pair: Words, sample: Words, key: int) -> tuple[Words, Words]:
    """Two words of 64 random bits for each counter.

    Examples
    --------
    >>> first, second = philox(np.array([0], np.uint64), np.array([0], np.uint64), 0)
    >>> hex(int(first[0])), hex(int(second[0]))
    ('0xe169c58d6627e8d5', '0x9b00dbd8bc57ac4c')
    """
    c0, c1, c2, c3 = pair & LOW32, pair >> SHIFT32, sample & LOW32, sample >> SHIFT32
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> SHIFT32) ^ c1 ^ np.uint64(k0),
            p1 & LOW32,
            (p0 >> SHIFT32) ^ c3 ^ np.uint64(k1),
            p0 & LOW32,
        )
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return c0 | (c1 << SHIFT32), c2 | (c3 << SHIFT32)


def uniform(word: Words) -> Floats:
    """The upper 53 bits as a number in (0, 1)."""
    u: Floats = ((word >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return u


def uniforms_of(rng: Any, samples: int, entries: int) -> tuple[Floats, Floats, Floats]:
    """Uniform numbers and signs, (samples, entries rounded up to even), and one more number for each sample."""
    key = key_of(rng)
    pairs = np.arange((entries + 1) // 2, dtype=np.uint64)
    b = np.arange(samples, dtype=np.uint64)[:, None]
    words = np.stack(philox(pairs + 0 * b, 0 * pairs + b, key), axis=-1).reshape(samples, 2 * len(pairs))
    extra, _ = philox(np.full_like(b, EXTRA), b, key)
    sign = 1 - 2 * (words & np.uint64(1)).astype(np.float64)
    return uniform(words), sign, uniform(extra)
