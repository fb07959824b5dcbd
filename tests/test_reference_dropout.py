"""The random numbers of dropout: the published generators, what they decide, and that they look random."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import textbook_attention
from npkernels import reference as ref
from npkernels.reference import dropout

PINNED_ZERO = [
    [4204088601, 598980972, 3000669939, 901121361],
    [1277002384, 1037567220, 3864647769, 3176341889],
    [1650476211, 920117336, 3143337035, 575661215],
]
PINNED_LAST = [[14836445, 914362962, 1764966690]]
PINNED_KEPT = ["0010111110110011", "0001011110111001", "1100011000111100"]


def test_the_generators_are_the_published_ones():
    """splitmix64 from seed 1234567, as Vigna's splitmix64.c gives it; lowbias32 by its formula in Python's integers."""
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(dropout.GOLDEN)
    assert dropout.splitmix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]

    def by_hand(x):
        x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
        x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    values = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    assert dropout.lowbias32(np.array(values, np.uint32)).tolist() == [by_hand(x) for x in values]


def test_pinned_values():
    """Other programs may make the same mask: these numbers must never change."""
    first = dropout.dropout_bits(0, np.array([0, 1, 10**12]), 4)
    assert first.dtype == np.uint32
    assert first.tolist() == PINNED_ZERO
    assert dropout.dropout_bits(2**64 - 1, np.array([5]), 3).tolist() == PINNED_LAST
    kept = dropout.dropout_kept(0.5, 42, np.arange(3), 16)
    assert ["".join("01"[x] for x in row) for row in kept.astype(int)] == PINNED_KEPT


def test_every_number_is_that_of_the_textbook():
    for seed in (0, 1, 2**63, 2**64 - 1, 2**64 + 5, -1):
        bits = dropout.dropout_bits(seed, np.array([0, 3, 2**40]), 7)
        expected = [[textbook_attention.dropout_number(seed, r, j) for j in range(7)] for r in (0, 3, 2**40)]
        assert bits.tolist() == expected


def test_the_seed_is_taken_modulo_2_to_64():
    x = np.ones((2, 3, 4))
    for seed, same in ((-1, 2**64 - 1), (2**64 + 9, 9), (np.int64(7), 7), (np.uint64(2**63), -(2**63))):
        one = ref.attention(x, x, x, dropout_p=0.5, dropout_seed=seed)
        assert_array_equal(one, ref.attention(x, x, x, dropout_p=0.5, dropout_seed=same))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_the_share_that_is_kept(p):
    """Within 5 standard deviations of a binomial, over all, in each row and in each column."""
    rows, keys = 1000, 1000
    kept = dropout.dropout_kept(p, 3, np.arange(rows), keys)
    deviation = math.sqrt(p * (1 - p))
    assert abs(kept.mean() - (1 - p)) < 5 * deviation / math.sqrt(rows * keys)
    for axis in (0, 1):
        z = (kept.mean(axis=axis) - (1 - p)) / (deviation / math.sqrt(1000))
        assert abs(z).max() < (5 if 0.05 < p < 0.95 else 8)  # few expected: the tail is Poisson's
        assert 0.8 < z.std() < 1.2


def test_rows_keys_and_seeds_are_independent():
    """Correlations of neighbours and of rows far apart are those of 10^6 coin throws: below 5 / 1000."""
    rows = np.concatenate([np.arange(500), 2**33 + np.arange(500)])
    x = dropout.dropout_kept(0.5, 17, rows, 1000) * 2.0 - 1
    y = dropout.dropout_kept(0.5, 18, rows, 1000) * 2.0 - 1
    pairs = {
        "next key": (x[:, :-1], x[:, 1:]),
        "key 32 further": (x[:, :-32], x[:, 32:]),
        "next row": (x[:-1], x[1:]),
        "row 2^33 further": (x[:500], x[500:]),
        "next row, next key": (x[:-1, :-1], x[1:, 1:]),
        "next seed": (x, y),
    }
    for name, (a, b) in pairs.items():
        assert abs((a * b).mean()) < 5 / math.sqrt(a.size), name


def test_numbers_are_uniform():
    """Chi-square of the highest and of the lowest byte over 10^6 numbers, within 5 deviations of 255."""
    bits = dropout.dropout_bits(5, np.arange(1000), 1000)
    for byte in (bits >> np.uint32(24), bits & np.uint32(255)):
        counts = np.bincount(byte.ravel(), minlength=256)
        chi = ((counts - bits.size / 256) ** 2 / (bits.size / 256)).sum()
        assert abs(chi - 255) < 5 * math.sqrt(2 * 255)


def test_the_threshold_is_exact():
    bits = dropout.dropout_bits(1, np.arange(2), 5)
    middle = int(np.sort(bits.ravel())[4])
    kept = dropout.dropout_kept(middle / 2**32, 1, np.arange(2), 5)
    assert_array_equal(kept, bits >= middle)
    assert kept.sum() == 6
    kept = dropout.dropout_kept((middle + 1) / 2**32, 1, np.arange(2), 5)
    assert kept.sum() == 5
    assert dropout.dropout_kept(1 - 2.0**-53, 1, np.arange(2), 5).sum() == 0


def test_what_is_kept_grows_and_lse_stays():
    q = k = np.zeros((1, 2, 3, 1))
    v = np.eye(3)[None, None].repeat(2, axis=1)
    out, lse = ref.attention(q, k, v, dropout_p=0.25, dropout_seed=1, return_lse=True)
    kept = dropout.dropout_kept(0.25, 1, np.arange(6).reshape(1, 2, 3), 3)
    assert_allclose(out, np.where(kept, 1 / 3 / 0.75, 0), rtol=1e-15)
    assert_allclose(lse, np.log(3), rtol=1e-15)
    assert 0 < kept.mean() < 1
