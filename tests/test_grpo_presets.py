"""Presets beyond their plain case: rewards of any size, options in place of their own, ids of every kind."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import npkernels as nk
from npkernels._grpo_types import PRESETS
from npkernels.reference import group_advantages as reference_advantages

NAN, INF = np.nan, np.inf
R = np.array([1.0, 2, -1, 0.25, 0.5, 7, 3, 1, 2, 2, 0, 1])
LENGTHS = np.arange(12) + 1
CASES = [(name, None) for name in PRESETS] + [("pass@k", 2)]


def advantages(rewards, groups, **options):
    return nk.group_advantages(np.asarray(rewards, float), groups, **options).advantages


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1e-8, 1e8, 1e160, 1e200, 1e300, 2e307])
@pytest.mark.parametrize(("preset", "k"), CASES)
def test_rewards_of_any_size_in_every_preset(preset, k, scale):
    options = {"preset": preset, "k": k}
    if PRESETS[preset].lengths:
        options["lengths"] = LENGTHS
    for groups in (4, np.arange(12) % 3):
        got = nk.group_advantages(R * scale, groups, **options).advantages
        want = reference_advantages(R * scale, groups, **options).advantages
        largest = np.abs(want).max()
        assert_allclose((got / largest).astype(float), (want / largest).astype(float), atol=1e-12)


@pytest.mark.parametrize("preset", ["nemo", "opo", "pass@k"])
def test_a_group_of_huge_rewards_takes_no_digit_from_another(preset):
    options = {"lengths": LENGTHS} if PRESETS[preset].lengths else {}
    sizes = np.repeat([1e300, 1.0, 1e-200], 4)
    got = advantages(R * sizes, 4, preset=preset, **options)
    parts = [
        advantages(R[s] * sizes[s], 4, preset=preset, **{k: v[s] for k, v in options.items()})
        for s in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    assert_array_equal(got, np.concatenate(parts))


def test_weights_of_any_size():
    r = np.stack([R, R[::-1]], 1)
    want = advantages(r, 4, weights=[1.0, 0.5], preset="gdpo", eps=0.0)
    for size in (1e-250, 1e250):
        assert_allclose(
            advantages(r, 4, weights=[size, 0.5 * size], preset="gdpo", eps=0.0), want, rtol=1e-12
        )
    with pytest.raises(ValueError, match=r"weights times rewards at \(0,\) is inf"):
        advantages(r * 1e300, 4, weights=[1e10, 1.0])


def test_results_beyond_the_dtype_are_inf_without_a_warning():
    for dtype, most in ((np.float16, 6e4), (np.float32, 3e38)):
        for shape in ((2,), (2, 1)):
            r = np.array([most, -most], dtype).reshape(shape)
            assert_array_equal(nk.group_advantages(r, 2, preset="rloo").advantages, [INF, -INF])
    stats = nk.group_stats(np.array([6e4, -6e4]), 2)
    given = nk.advantages_from_stats(np.array([6e4, -6e4], np.float16), 2, stats, preset="rloo")
    assert_array_equal(given.advantages, [INF, -INF])


def test_options_of_nemo():
    x = R.reshape(3, 4)
    centred = x - x.mean(1, keepdims=True)
    both = advantages(R, 4, preset="nemo", baseline="mean")
    assert_allclose(both.reshape(3, 4), centred / (x.std(1, ddof=1, keepdims=True) + 1e-6), rtol=1e-12)
    for options, want in (
        ({"scale": "none"}, centred * 4 / 3),
        ({"scale": "none", "baseline": "mean"}, centred),
    ):
        assert_allclose(
            advantages(R, 4, preset="nemo", **options).reshape(3, 4), want, rtol=1e-12, atol=1e-15
        )
        assert_allclose(
            reference_advantages(R, 4, preset="nemo", **options).advantages.astype(float).reshape(3, 4),
            want,
            rtol=1e-12,
            atol=1e-15,
        )


def test_the_best_of_a_group_unscaled():
    for function in (nk.group_advantages, reference_advantages):
        a = function(np.array([0.0, 1, 3, 2]), 4, preset="pass@k", scale="none").advantages
        assert_array_equal(a, [0, 0, 1, 0])
    with pytest.raises(ValueError, match="scale is 'none', but with k = 2 nothing is scaled"):
        advantages(R, 4, preset="pass@k", k=2, scale="none")


@pytest.mark.parametrize("ddof", [0, 1])
def test_whitening_with_either_variance(ddof):
    centred = (R.reshape(3, 4) - R.reshape(3, 4).mean(1, keepdims=True)).ravel()
    tokens = np.repeat(centred, LENGTHS)
    want = (centred - tokens.mean()) / np.sqrt(tokens.var(ddof=ddof) + 1e-8)
    for function in (nk.group_advantages, reference_advantages):
        got = function(R, 4, preset="reinforce++", lengths=LENGTHS, ddof=ddof).advantages
        assert_allclose(got.astype(float), want, rtol=1e-12)
    alike = advantages(np.ones(4), 2, preset="reinforce++", lengths=LENGTHS[:4], eps=0.0)
    assert_array_equal(alike, 0)


@pytest.mark.parametrize("n", [5, 40])
def test_max_at_k_of_large_groups_is_centred_and_in_order(n):
    r = np.random.default_rng(n).normal(size=n)
    for k in (1, 2, 3, n - 1, n):
        got = advantages(r, n, preset="pass@k", k=k)
        want = reference_advantages(r, n, preset="pass@k", k=k).advantages.astype(float)
        assert_allclose(got, want, rtol=1e-10, atol=1e-13)


# --- ids


def test_ids_of_every_kind():
    r = np.array([1.0, 2, 4, 6])
    want = nk.group_advantages(r, [0, 0, 1, 1])
    large = np.array([2**63, 2**63, 2**64 - 1, 2**64 - 1], np.uint64)
    kinds = [
        large,
        np.array([b"x", b"x", b"y", b"y"]),
        [("q", 1), ("q", 1), ("q", 2), ("q", 2)],
        np.array([None, None, 3, 3], object),
        np.array([-(2**63), -(2**63), 2**63 - 1, 2**63 - 1]),
    ]
    for ids in kinds:
        got = nk.group_advantages(r, ids)
        assert_array_equal(got.advantages, want.advantages)
        assert_array_equal(reference_advantages(r, ids).keys, got.keys)
        assert len(got.keys) == 2
        with nk.checked():
            nk.group_advantages(r, ids)
    assert nk.group_advantages(r, large).keys.tolist() == [2**63, 2**64 - 1]
    assert nk.group_stats(r, large)[0].dtype == np.uint64


def test_ids_that_are_none_are_refused():
    r = np.arange(3.0)
    with pytest.raises(ValueError, match=r"groups holds nan at \(1,\), which equals no id"):
        nk.group_advantages(r, np.array(["a", NAN, "a"], object))
    for ids in (np.array([1.0, NAN, 1]), np.ones(3, bool), np.array(["2020"] * 3, "M8[Y]")):
        with pytest.raises(TypeError, match="expected integers, strings or objects, or a size"):
            nk.group_advantages(r, ids)
    for size in (10**30, -(10**30)):
        with pytest.raises(ValueError, match=r"groups is -?1000"):
            nk.group_advantages(r, size)
    assert nk.group_advantages(np.zeros(0), 10**30).advantages.shape == (0,)


# --- statistics that are merged


def test_a_group_twice_in_one_set_of_statistics_is_refused():
    good = nk.group_stats(np.arange(4.0), 2)
    twice = (np.array([1, 1]), good[1])
    for pair, name in (((twice, good), "a"), ((good, twice), "b")):
        with pytest.raises(ValueError, match=rf"merge_group_stats: {name}\[0\] holds 1 twice"):
            nk.merge_group_stats(*pair)
    with pytest.raises(ValueError, match=r"advantages_from_stats: stats\[0\] holds 1 twice"):
        nk.advantages_from_stats(np.arange(2.0), [1, 1], twice)


def test_deviations_whose_squares_vanish_give_no_infinity():
    r = np.array([1e-200, -1e-200, 3e-201])
    a = nk.advantages_from_stats(r, 3, nk.group_stats(r, 3), eps=0.0).advantages
    assert_array_equal(a, 0)
