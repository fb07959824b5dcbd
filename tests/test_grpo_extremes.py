"""The GRPO family where numbers end: impossible tokens, ratios beyond all numbers, cold sampling, large counts."""

import warnings
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import npkernels as nk
from npkernels import reference
from npkernels._grpo_types import LOSSES

INF = np.inf
TOKEN = [name for name, loss in LOSSES.items() if loss.surrogate not in ("geometric", "log")]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("A", [1.0, -1.0])
@pytest.mark.parametrize(("loss", "level"), [("grpo", "token"), ("grpo", "sequence"), ("gspo", "sequence")])
def test_a_token_that_the_policy_rules_out(loss, level, A, dtype):
    logits = np.array([[[1.0, 2, -INF], [0, 1, 2]]], dtype)
    given = (np.array([[2, 0]]), np.full((1, 2), -1.0, dtype), np.array([A], dtype))
    want = reference.token_policy_loss(logits, *given, loss=loss, level=level)
    for out in (None, logits.copy()):
        x = logits if out is None else out
        got = nk.token_policy_loss(x, *given, loss=loss, level=level, out=out)
        assert_allclose(got.loss, float(want.loss), rtol=1e-6)
        assert_allclose(got.dlogits, want.dlogits.astype(float), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("loss", "level"), [(x, y) for x in TOKEN for y in ("token", "sequence")])
def test_a_ratio_beyond_all_numbers_is_nothing_where_the_advantage_is_zero(loss, level):
    lp, old = np.array([[-1.0, -2.0]]), np.array([[-INF, -2.0]])
    for function in (nk.policy_loss, reference.policy_loss):
        r = function(lp, old, [0.0], loss=loss, level=level)
        assert r.loss == 0
        assert_array_equal(r.dlogp, 0)


def test_gmpo_looks_at_no_ratio_where_the_advantage_is_zero():
    lp, old = np.array([[-1.0, -2.0]]), np.array([[-INF, -2.0]])
    for function in (nk.policy_loss, reference.policy_loss):
        r = function(lp, old, [[0.0, 1.0]], loss="gmpo")
        assert_allclose(float(r.loss), -0.5)
        assert_allclose(float(r.metrics.ratio), 1)


def test_the_distance_to_what_the_policy_rules_out():
    lp, ref = np.array([[-INF, -1.0]]), np.array([[-1.0, -INF]])
    for kind in ("k3", "k3+"):
        for function in (nk.kl_divergence, reference.kl_divergence):
            assert_array_equal(function(lp, ref, kind).astype(float), [[INF, INF]])
            assert_array_equal(function(lp, ref, kind, clamp=(INF, 10.0)).astype(float), [[10, 10]])
    clamped = {"ref_logp": ref, "beta": 1.0, "kl_clamp": (20.0, 10.0), "loss": "gpg"}
    for function in (nk.policy_loss, reference.policy_loss):
        r = function(lp, lp, [0.0], **clamped)
        assert_allclose(float(r.metrics.kl), 10)
        assert_array_equal(r.dlogp.astype(float), 0)
        assert function(lp, lp, [0.0], ref_logp=ref).metrics.kl == INF


def test_results_beyond_the_dtype_come_without_a_warning():
    logits = np.zeros((1, 2, 3), np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for level in ("token", "sequence"):
            for old in (-200.0, -INF):
                r = nk.token_policy_loss(
                    logits, [[0, 1]], np.full((1, 2), old), [-1e4], level=level, aggregate="token-sum"
                )
                assert r.loss == INF
        assert nk.policy_loss(np.zeros((1, 2), np.float32), np.full((1, 2), -200.0), [-1.0]).loss == INF
        gaps = {"sampler_logp": np.array([[-INF, INF]]), "importance": ("token-mask", INF)}
        nk.token_policy_loss(logits, [[0, 1]], np.zeros((1, 2)), [1.0], **gaps)


def test_a_correction_without_a_largest_ratio():
    lp, old = np.full((1, 2), -1.0), np.full((1, 2), -1.0)
    sampler = np.array([[-4.0, -1.5]])
    for mode in ("token-truncate", "token-mask"):
        r = nk.policy_loss(lp, old, [1.0], sampler_logp=sampler, importance=(mode, INF))
        assert_allclose(r.loss, -np.exp([3.0, 0.5]).mean())
    with pytest.raises(ValueError, match="expected a largest ratio above 0"):
        nk.policy_loss(lp, old, [1.0], sampler_logp=sampler, importance=("token-mask", np.nan))


# --- decoding


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-7, 1e-30, 1e-38, 1e-45, 1e-300, 1e-320])
def test_sampling_at_any_cold_is_greedy(temperature, dtype):
    logits = np.array([[1.0, 2, 3], [5, 1, 2], [-1, -2, -3], [-INF, -7, -INF], [1e30, 3e30, -1e30]], dtype)
    for options in ({}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 2**70}):
        for function in (nk.sample, reference.sample):
            ids = function(logits, temperature=temperature, rng=0, **options)
            assert_array_equal(ids, [2, 0, 0, 1, 1], err_msg=function.__module__)
    ties = np.tile(np.array([4.0, 4.0, 1.0], dtype), (4000, 1))
    share = np.bincount(nk.sample(ties, temperature=temperature, rng=1), minlength=3) / 4000
    assert_allclose(share, [0.5, 0.5, 0], atol=0.03)


def test_sampling_of_rows_without_a_choice_at_any_cold():
    rows = np.array([[0.0, INF, 0], [-INF, -INF, -INF], [np.nan, 1, 0]], np.float32)
    assert_array_equal(nk.sample(rows, temperature=1e-30, rng=0), nk.sample(rows, temperature=1.0, rng=0))


def test_sampling_at_any_heat_is_uniform():
    logits = np.tile(np.array([1.0, 2, 3], np.float32), (6000, 1))
    for temperature in (1e30, 1e300):
        share = np.bincount(nk.sample(logits, temperature=temperature, rng=0), minlength=3) / 6000
        assert_allclose(share, 1 / 3, atol=0.03)


# --- pass@k


def test_small_chances_keep_their_digits():
    assert_allclose(nk.pass_at_k(10**9, 1, 1), 1e-9, rtol=1e-14)
    assert_allclose(
        nk.pass_at_k(10**12, 3, 1000), float(1 - Fraction(comb(10**12 - 1000, 3), comb(10**12, 3)))
    )
    assert nk.pass_at_k(7, 0, 3) == 0
    assert str(nk.pass_at_k(7, 0, 3)) == "0.0"


def test_large_counts():
    for n, c, k in ((20_000, 10_000, 10_000), (10**7, 4, 5 * 10**6), (5000, 4999, 2), (5000, 2, 4999)):
        want = float(1 - Fraction(comb(n - k, c), comb(n, c)))
        assert_allclose(nk.pass_at_k(n, c, k), want, rtol=1e-13)
    assert_allclose(reference.pass_at_k(20_000, 3, 10_000).astype(float), nk.pass_at_k(20_000, 3, 10_000))
    assert nk.pass_at_k(10**9, 10**8, 10**8) == 1


# --- along time


@pytest.mark.parametrize("mask_type", [bool, np.int64, np.uint8, np.float32])
def test_masks_of_zero_and_one_along_time(mask_type):
    g = np.random.default_rng(0)
    r, v, mask, dones = (
        g.normal(size=(3, 20)),
        g.normal(size=(3, 20)),
        g.random((3, 20)) < 0.7,
        g.random((3, 20)) < 0.1,
    )
    want = nk.gae(r, v, gamma=0.9, lam=0.8, mask=mask, dones=dones)
    with nk.checked():
        got = nk.gae(r, v, gamma=0.9, lam=0.8, mask=mask.astype(mask_type), dones=dones.astype(mask_type))
        nk.discounted_returns(r, 0.9, mask=mask.astype(mask_type))
    for a, b in zip(got, want, strict=True):
        assert_array_equal(a, b)


# --- what the reference says where a product is 0 times infinity


def test_the_gate_of_sapo_is_shut_for_a_ratio_beyond_all_numbers():
    lp, old = np.array([[-1.0, -2.0]]), np.array([[-INF, -2.0]])
    r = reference.policy_loss(lp, old, [1.0], loss="sapo")
    assert_allclose(r.dlogp.astype(float), [[0, -0.5]])
    assert_allclose(float(r.loss), -3)


def test_a_token_that_the_correction_drops_has_no_loss():
    lp, old = np.array([[-1.0, -2.0]]), np.array([[-INF, -2.0]])
    for mode in ("token-mask", "token-truncate"):
        r = reference.policy_loss(
            lp, old, [-1.0], sampler_logp=np.array([[-1.0, -2.0]]), importance=(mode, 3.0)
        )
        assert_allclose(float(r.loss), 0.5)
        assert_allclose(r.dlogp.astype(float), [[0, 0.5]])


def test_cispo_of_a_token_that_became_impossible():
    lp, old = np.array([[-INF, -2.0]]), np.array([[-1.0, -2.0]])
    r = reference.policy_loss(lp, old, [1.0], loss="cispo", clip=(0.0, 5.0))
    assert_allclose(float(r.loss), 1)
    assert_allclose(r.dlogp.astype(float), [[0, -0.5]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_that_are_dropped_or_saturated_leave_no_nan(dtype):
    logp, far = np.array([[-1, -2]], dtype), np.array([[-200, -2]], dtype)
    assert_allclose(nk.policy_loss(logp, far, [1.0], loss="sapo").dlogp, [[0, -0.5]])
    impossible = np.array([[-INF, -2]], dtype)
    sampler = np.array([[-1, -2]], dtype)
    for importance in (("token-mask", 3.0), ("sequence-mask", 3.0)):
        options = {"sampler_logp": sampler, "importance": importance}
        got = nk.policy_loss(logp, impossible, np.array([-1.0], dtype), **options)
        want = reference.policy_loss(logp, impossible, np.array([-1.0], dtype), **options)
        assert_allclose(got.loss, want.loss)
        assert_allclose(got.dlogp, want.dlogp)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "sizes", [[1, 2, 3, 4, 5, 6, 7], [31, 33, 32, 1, 40], [200, 1, 1, 1], [1] * 9, [5000, 3]]
)
def test_groups_by_id_are_those_of_the_same_samples_side_by_side(sizes, dtype):
    rng = np.random.default_rng(len(sizes))
    ids = np.repeat(np.arange(len(sizes)) * 10**15 - 7, sizes)
    rewards = rng.standard_normal(len(ids)).astype(dtype)
    rewards[rng.random(len(ids)) < 0.1] = np.nan
    for preset in ("trl", "rloo", "gdpo", "verl"):
        whole = nk.group_advantages(rewards, ids, preset=preset)
        alone = [
            nk.group_advantages(rewards[ids == i], int(n), preset=preset)
            for i, n in zip(np.unique(ids), sizes, strict=True)
        ]
        if preset != "gdpo":  # whose last step is over the batch
            assert_allclose(
                whole.advantages, np.concatenate([a.advantages for a in alone]), rtol=1e-6, atol=1e-12
            )
            assert_allclose(whole.stats, np.concatenate([a.stats for a in alone]), rtol=1e-13)
        order = rng.permutation(len(ids))
        mixed = nk.group_advantages(rewards[order], ids[order], preset=preset)
        assert_allclose(mixed.advantages, whole.advantages[order], rtol=1e-5, atol=1e-12)


def test_groups_without_any_sample():
    state = nk._core.group_stats(np.empty(0), np.empty(0, np.int64), 3)
    assert_array_equal(state, [[0, 0, 0, INF, -INF]] * 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 2000])
def test_an_infinite_logit_spoils_its_own_gradient_only(place, dtype):
    logits = np.zeros((1, 1, 2500), dtype)
    logits[0, 0, place] = INF
    given = (np.array([[1]]), np.full((1, 1), -1, dtype), np.array([[1.0]], dtype))
    got = nk.token_policy_loss(logits, *given).dlogits[0, 0]
    want = reference.token_policy_loss(logits, *given).dlogits[0, 0]
    assert_array_equal(np.isnan(got), np.isnan(want))
    assert_array_equal(got[~np.isnan(got)], want[~np.isnan(want)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_slope_beyond_all_numbers_is_infinite_at_the_token(dtype):
    largest = np.finfo(dtype).max
    logits, ids = np.array([[[0.0, 1.0, -INF]]], dtype), np.array([[1]])
    given = (logits, ids, np.array([[-60.0]], dtype), np.array([-largest], dtype))
    with np.errstate(over="ignore"):
        want = reference.token_policy_loss(*given).dlogits.astype(dtype)
    got = nk.token_policy_loss(*given).dlogits
    assert_array_equal(got[..., :2], want[..., :2])
    assert_array_equal(got[0, 0, :2], [-INF, INF])


@pytest.mark.parametrize("groups", [1, 3000, 300_000])
def test_many_samples_are_numbered_as_they_appear(groups):
    """Enough of them for every thread to take a part."""
    rng = np.random.default_rng(groups)
    ids = rng.integers(-(2**62), 2**62, groups)[rng.integers(0, groups, 400_000)]
    rewards = rng.integers(0, 2, len(ids)).astype(float)
    keys, places, want = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(places)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    for threads in (1, 2, 3):
        with nk.num_threads(threads):
            got = nk.group_advantages(rewards, ids, baseline="mean", scale="none")
        assert_array_equal(got.keys, keys[order])
        assert_array_equal(got.group_index, rank[want])
        mean = np.bincount(want, rewards) / np.bincount(want)
        assert_allclose(got.advantages, rewards - mean[want], rtol=1e-12, atol=1e-15)
