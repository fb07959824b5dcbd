"""Sampling of the SmolLM2 example on hand-made logits; needs neither the weights nor their readers."""

import doctest

import numpy as np
import pytest

from smollm2 import generate, model, timer
from smollm2.generate import GREEDY, Sampling, choose, distribution, most_likely, nucleus

PROBABILITIES = np.array([0.05, 0.4, 0.05, 0.3, 0.2])
LOGITS = np.log(PROBABILITIES)


@pytest.mark.parametrize("module", [generate, model, timer])
def test_examples_in_docstrings(module):
    failed, attempted = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert attempted > 0
    assert failed == 0


@pytest.mark.parametrize(
    ("k", "kept"),
    [
        (1, [1]),
        (2, [1, 3]),
        (3, [1, 3, 4]),
        (4, [0, 1, 2, 3, 4]),
        (5, [0, 1, 2, 3, 4]),
        (99, [0, 1, 2, 3, 4]),
    ],
)
def test_top_k_keeps_the_k_largest_and_their_equals(k, kept):
    assert np.flatnonzero(most_likely(LOGITS, k)).tolist() == kept  # 0 and 2 are equal: for k = 4 both stay


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (1e-20, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.69, [1, 3]),
        (0.71, [1, 3, 4]),
        (0.92, [0, 1, 3, 4]),  # of two equals the first
        (0.96, [0, 1, 2, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_p(p, kept):
    assert np.flatnonzero(nucleus(PROBABILITIES, p)).tolist() == kept


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_top_p_agrees_with_sorting_everything(seed, scale):
    rng = np.random.default_rng(seed)
    p, x = rng.uniform(0.01, 0.99), scale * rng.standard_normal(1000)
    probabilities = np.exp(x) / np.exp(x).sum()
    order = np.argsort(-probabilities, kind="stable")
    count = np.flatnonzero(np.cumsum(probabilities[order]) >= p)[0] + 1
    assert np.flatnonzero(nucleus(probabilities, p)).tolist() == sorted(order[:count].tolist())


@pytest.mark.parametrize("p", [1e-20, 0.5, 1.0])
def test_top_p_of_equal_float32_probabilities_keeps_some(p):
    probabilities = np.full(49152, 1 / 49152, dtype=np.float32)
    kept = nucleus(probabilities, p).sum()
    assert abs(kept - max(1, p * 49152)) <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_temperature_divides_the_logits(dtype, temperature):
    expected = PROBABILITIES ** (1 / temperature)
    found = distribution(LOGITS.astype(dtype), Sampling(temperature))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=20 * np.finfo(dtype).eps)


def test_top_p_is_of_what_top_k_left():
    found = distribution(LOGITS, Sampling(1.0, top_k=3, top_p=0.7))  # after top-k: 4/9, 3/9, 2/9
    np.testing.assert_allclose(found, [0, 4 / 7, 0, 3 / 7, 0], rtol=1e-12)


def test_top_p_is_of_the_tempered_distribution():
    assert np.flatnonzero(distribution(LOGITS, Sampling(0.1, top_p=0.9))).tolist() == [1]
    assert np.flatnonzero(distribution(LOGITS, Sampling(10.0, top_p=0.9))).size == 5


def test_greedy_takes_the_first_of_the_largest():
    logits = np.array([0.0, 2.0, 1.0, 2.0])
    assert choose(logits, GREEDY, np.random.default_rng()) == 1
    assert distribution(logits, GREEDY).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(0.5),
        Sampling(2.0, top_k=3),
        Sampling(top_p=0.75),
        Sampling(1.5, top_k=4, top_p=0.8),
    ],
)
def test_draws_follow_the_distribution(sampling):
    n, rng = 20_000, np.random.default_rng(1)
    logits = LOGITS.astype(np.float32)
    counts = np.bincount([choose(logits, sampling, rng) for _ in range(n)], minlength=5)
    expected = n * distribution(logits, sampling)
    assert (counts[expected == 0] == 0).all()
    drawn = expected > 0
    chi2 = ((counts - expected)[drawn] ** 2 / expected[drawn]).sum()
    assert chi2 < 25  # with 4 degrees of freedom a right sampler exceeds this once in 20,000 times


def test_a_token_ruled_out_is_never_drawn():
    class Edge:  # the ends of what Generator.random() can return
        def __init__(self, value):
            self.random = lambda: value

    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf])
    assert choose(logits, Sampling(), Edge(0.0)) == 1
    assert choose(logits, Sampling(), Edge(np.nextafter(1.0, 0.0))) == 3


def test_a_seed_fixes_the_draws():
    def draws(seed):
        rng = np.random.default_rng(seed)
        return [choose(LOGITS, Sampling(), rng) for _ in range(50)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": np.inf}, "temperature"),
        ({"temperature": np.nan}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_out_of_range_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        Sampling(**options)
