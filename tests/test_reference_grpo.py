"""The reference of the GRPO family against numbers worked out by hand, the formula of each project, and differences."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from npkernels._grpo_types import AGGREGATES, IMPORTANCES, KLS, LOSSES, PRESETS
from npkernels.reference.grpo_advantages import (
    advantages_from_stats,
    group_advantages,
    group_stats,
    merge_group_stats,
)
from npkernels.reference.grpo_decoding import beam_step, sample
from npkernels.reference.grpo_losses import kl_divergence, policy_loss, token_policy_loss
from npkernels.reference.grpo_returns import discounted_returns, gae, pass_at_k

NAN, INF = np.nan, np.inf


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def advantages(rewards, groups, **options):
    return group_advantages(np.asarray(rewards, float), groups, **options).advantages.astype(float)


# --- advantages


def test_leave_one_out_by_hand():
    r = np.array([1.0, 2, 3, 4, 5, 6])
    assert_allclose(r - advantages(r, 3, preset="rloo"), [2.5, 2, 1.5, 5.5, 5, 4.5])
    ragged = np.array([1.0, 2, 4, 5, 6])
    assert_allclose(ragged - advantages(ragged, [0, 0, 9, 9, 9], preset="rloo"), [2, 1, 5.5, 5, 4.5])


def test_three_of_eight_right():
    r = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    assert_allclose(np.unique(advantages(r, 8, preset="openrlhf").round(4)), [-0.7246, 1.2076])
    assert_allclose(np.unique(advantages(r, 8, preset="rloo").round(4)), [-0.4286, 0.7143])


def test_pass_at_k_advantages_by_hand():
    assert_allclose(advantages([1, 0, 1, 0], 4, preset="pass@k", k=2) * 12, [1, -1, 1, -1])
    best = advantages([0, 1, 3, 2], 4, preset="pass@k")
    assert_allclose(best, [0, 0, 1 / (np.std([0, 1, 3, 2], ddof=1) + 1e-6), 0])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_max_at_k_advantages_are_the_mean_over_subsets(k):
    r = [Fraction(x) for x in (3, 1, 4, 1, 5)]
    subsets = list(itertools.combinations(range(5), k))
    share = [sum(max(r[j] for j in s) for s in subsets if i in s) / Fraction(len(subsets)) for i in range(5)]
    expected = [float(s - sum(share) / 5) for s in share]
    assert_allclose(advantages([float(x) for x in r], 5, preset="pass@k", k=k), expected, atol=1e-15)


def written_out(name, x, lengths):
    """One group, as each project's code has it."""
    n = len(x)
    mean, std = x.mean(), x.std(ddof=1)
    others = [np.delete(x, i) for i in range(n)]
    return {
        "trl": (x - mean) / (std + 1e-4),
        "verl": (x - mean) / (std + 1e-6),
        "openrlhf": (x - mean) / (std + 1e-9),
        "nemo": np.array([(a - o.mean()) / (o.std(ddof=1) + 1e-6) for a, o in zip(x, others, strict=True)]),
        "open_instruct": (x - mean) / (x.std() + 1e-8),
        "dr_grpo": x - mean,
        "rloo": np.array([a - o.mean() for a, o in zip(x, others, strict=True)]),
        "maxrl": (x - mean) / mean,
        "opo": x - (lengths * x).sum() / lengths.sum(),
        "pass@k": np.where(x == x.max(), np.diff(np.sort(x))[-1] / (std + 1e-6), 0),
    }[name]


@pytest.mark.parametrize("name", [p for p in PRESETS if p not in ("gdpo", "reinforce++")])
def test_presets_are_what_their_projects_compute(name):
    x, lengths = rng(1).normal(size=(3, 4)), rng(2).integers(1, 9, (3, 4))
    options = {"lengths": lengths.ravel()} if PRESETS[name].lengths else {}
    got = advantages(x.ravel(), 4, preset=name, **options).reshape(3, 4)
    for row, length, a in zip(x, lengths, got, strict=True):
        assert_allclose(a, written_out(name, row, length), rtol=1e-12, atol=1e-14)


def test_gdpo_normalises_each_function_then_the_sum():
    r, w = rng(3).normal(size=(8, 2)), np.array([0.3, 2.0])
    z = [written_out("trl", r[g, f], np.ones(4)) for f in range(2) for g in (slice(0, 4), slice(4, 8))]
    s = w[0] * np.concatenate(z[:2]) + w[1] * np.concatenate(z[2:])
    got = advantages(r, 4, weights=w, preset="gdpo")
    assert_allclose(got, (s - s.mean()) / (s.std(ddof=1) + 1e-4), rtol=1e-12)


def test_reinforce_whitens_over_tokens():
    r, lengths = rng(4).normal(size=8), rng(5).integers(1, 9, 8)
    centred = (r.reshape(2, 4) - r.reshape(2, 4).mean(axis=1, keepdims=True)).ravel()
    tokens = np.repeat(centred, lengths)  # as the masked tokens of a batch
    expected = (centred - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)
    assert_allclose(advantages(r, 4, preset="reinforce++", lengths=lengths), expected, rtol=1e-12)


@pytest.mark.parametrize("value", [0.1, 0.3, 1e8, 1e-8, 1e300, -7.7])
@pytest.mark.parametrize("n", [2, 3, 6, 7])
@pytest.mark.parametrize("name", [p for p in PRESETS if p != "reinforce++"])
def test_constant_groups_give_exactly_zero(value, n, name):
    options = {"lengths": np.arange(1, n + 1)} if PRESETS[name].lengths else {}
    result = group_advantages(np.full(n, value), n, preset=name, **options)
    assert_array_equal(result.advantages, 0)
    assert result.zero_variance.all()


def test_lone_rewards():
    assert advantages([3.0], 1) == 0
    assert_allclose(advantages([3.0], 1, preset="verl"), 3 / (1 + 1e-6))
    for name in ("rloo", "nemo", "openrlhf", "open_instruct", "dr_grpo", "maxrl"):
        assert advantages([3.0], 1, preset=name) == 0


def test_rewards_that_do_not_apply():
    r = np.array([[1, NAN], [NAN, 2], [NAN, NAN], [0, 1]])
    assert_allclose(advantages(r, 4, weights=[1, 2], preset="dr_grpo"), [1 - 7 / 3, 4 - 7 / 3, 0, 2 - 7 / 3])
    result = group_advantages(np.array([NAN, NAN, 5, NAN]), 2)
    assert_array_equal(result.advantages, 0)
    assert_array_equal(result.count, [0, 1])
    assert_array_equal(result.zero_variance, [True, True])
    assert np.isnan(result.mean[0])


def test_what_dynamic_sampling_asks_again():
    result = group_advantages([0.0, 0, 1, 0, 1, 1], ["a", "a", "b", "b", "c", "c"])
    assert_array_equal(result.resample, ["a", "c"])
    assert_array_equal(result.informative, [False, False, True, True, False, False])
    assert_array_equal(result.group_index, [0, 0, 1, 1, 2, 2])


def test_batch_scale_and_no_baseline():
    r = np.array([1.0, 2, 5, 9])
    assert_allclose(
        advantages(r, 2, scale="batch"), (r - [1.5, 1.5, 7, 7]) / (r.std(ddof=1) + 1e-4), rtol=1e-12
    )
    assert_allclose(advantages(r, 2, baseline="none", scale="none"), r)


def test_stats_merge_to_the_whole():
    r, ids = rng(6).normal(size=60), rng(7).integers(0, 9, 60)
    keys, whole = group_stats(r, ids)
    parts = [group_stats(r[i : i + 7], ids[i : i + 7]) for i in range(0, 60, 7)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge_group_stats(merged, part)
    assert_array_equal(merged[0], keys)
    assert_allclose(merged[1].astype(float), whole.astype(float), rtol=1e-12)
    for name in ("trl", "verl", "rloo", "dr_grpo", "open_instruct", "maxrl"):
        a = advantages_from_stats(r, ids, merged, preset=name).advantages.astype(float)
        assert_allclose(a, group_advantages(r, ids, preset=name).advantages.astype(float), rtol=1e-11)
    batch = advantages_from_stats(r, ids, merged, scale="batch").advantages.astype(float)
    assert_allclose(batch, group_advantages(r, ids, scale="batch").advantages.astype(float), rtol=1e-11)


def test_wrong_arguments_of_advantages():
    for groups in (4, -1, 0, [0, 1]):
        with pytest.raises(ValueError, match="group_advantages: groups"):
            group_advantages([1.0, 2, 3], groups)
    with pytest.raises(ValueError, match="preset is 'x'; expected one of trl, verl"):
        group_advantages([1.0], 1, preset="x")
    with pytest.raises(ValueError, match="rewards holds an infinity"):
        group_advantages([1.0, INF], 2)
    with pytest.raises(ValueError, match="group_stats: rewards holds a number beyond"):
        group_stats([1e151], 1)


# --- policy losses


def test_policy_losses_by_hand():
    def loss(rho, A, **options):
        lp = np.log(np.array([rho]))
        return float(policy_loss(lp, np.zeros_like(lp), [A], None, loss="ppo", **options).loss)

    assert_allclose(loss([0.5, 1, 1.5], [1, -1, 2]), -0.6333, atol=5e-5)
    assert_allclose(loss([0.5, 1, 10], [1, -1, -4], dual_clip=3.0), 4.1667, atol=5e-5)


def test_kl_by_hand():
    lp, ref = np.full(3, -1.0), np.array([0.0, -15, -30])
    assert_allclose(kl_divergence(lp, ref, "k1"), [-1, 14, 29])
    assert_allclose(kl_divergence(lp, ref, "k2"), [0.5, 98, 420.5])
    assert_allclose(kl_divergence(lp, ref, "k3").astype(float), [0.7183, 13, 28], atol=5e-5)
    assert_allclose(kl_divergence(lp, ref, "k3", clamp=(20, 10)).astype(float), [0.7183, 10, 10], atol=5e-5)
    assert_allclose(kl_divergence([0.0], [1e-4]).astype(float), 1e-8 / 2 * (1 + 1e-4 / 3), rtol=1e-8)


SMALL = rng(20)
OLD = -SMALL.random((3, 4)) * 2
LOGP = OLD + SMALL.normal(0, 0.3, (3, 4))
REF, SAMPLER = OLD + SMALL.normal(0, 0.3, (3, 4)), OLD + SMALL.normal(0, 0.2, (3, 4))
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]], bool)
A = np.array([1.3, -0.7, 0.4])
CLIPS = {"cispo": (0.2, 1.25), "gmpo": (0.3, 0.3)}


def dirty(x):
    return np.where(MASK, x, SMALL.choice([NAN, INF, -INF], x.shape))


def numeric(f, x, h=1e-6):
    gradient = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        gradient[i] = (f(x + step) - f(x - step)) / (2 * h)
    return gradient


def detached(options):
    """The value whose gradient the loss has: what the formula holds constant stays at LOGP."""
    if options["loss"] not in ("cispo", "cispo_clip"):
        return lambda lp: float(policy_loss(lp, OLD, A, MASK, **options).loss)
    level = options.get("level") or "token"
    d = np.where(MASK, LOGP - OLD, 0)
    rho = np.exp(d) if level == "token" else np.exp(d.sum(1) / MASK.sum(1))[:, None] * np.ones((1, 4))
    low, high = options["clip"]
    r = np.minimum(rho, high) if options["loss"] == "cispo" else np.clip(rho, 1 - low, 1 + high)
    rest = {**options, "loss": "gpg", "level": None, "aggregate": "token-mean"}
    return lambda lp: float(policy_loss(lp, OLD, A[:, None] * r, MASK, **rest).loss)


@pytest.mark.parametrize("importance", [None, *IMPORTANCES])
@pytest.mark.parametrize("kl", [*KLS, "clamped"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_by_central_differences(loss, level, kl, importance):
    if (loss, level) in (("gmpo", "token"), ("gpg", "sequence")):
        level = None  # these have one level
    options = {
        "loss": loss,
        "level": level,
        "beta": 0.3,
        "ref_logp": REF,
        "clip": CLIPS.get(loss, (0.2, 0.28)),
    }
    options |= {"kl_clamp": (0.4, 0.05), "kl": "k3"} if kl == "clamped" else {"kl": kl}
    if importance:
        options |= {"sampler_logp": SAMPLER, "importance": (importance, 1.1)}
    straight_through = {"kl": "k2"} if kl == "k3+" else {}  # the value of k3, the gradient of k2
    function = detached({**options, **straight_through})
    got = policy_loss(dirty(LOGP), dirty(OLD), A, MASK, **options).dlogp
    assert_allclose(got.astype(float), numeric(function, LOGP), rtol=1e-6, atol=1e-9)
    assert_array_equal(got[~MASK], 0)


@pytest.mark.parametrize(
    "options", [{"dual_clip": 1.2}, {"delta": 1.1}, {"dual_clip": 1.3, "delta": 1.5}], ids=str
)
def test_gradients_with_dual_clip_and_delta(options):
    function = detached({"loss": "grpo", **options})
    lp = LOGP + 0.2
    got = policy_loss(lp, OLD, A, MASK, **options).dlogp.astype(float)
    assert_allclose(got, numeric(function, lp), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_aggregates_by_hand(aggregate):
    token = np.where(MASK, -np.exp(LOGP - OLD) * A[:, None], 0)
    sums, n = token.sum(1), MASK.sum(1)
    expected = {
        "token-mean": sums.sum() / n.sum(),
        "token-sum": sums.sum(),
        "seq-mean-token-sum": sums.mean(),
        "seq-mean-token-mean": (sums / n).mean(),
        "seq-mean-token-sum-norm": (sums / 4).mean(),
    }[aggregate]
    wide = {"clip": (1.0, 100.0), "aggregate": aggregate}
    assert_allclose(float(policy_loss(LOGP, OLD, A, MASK, **wide).loss), expected)
    row = np.zeros((1, 4))  # a sequence that is masked out changes nothing
    more = [np.concatenate([x, row]) for x in (LOGP, OLD)]
    mask = np.concatenate([MASK, row.astype(bool)])
    assert_allclose(float(policy_loss(*more, np.append(A, 9.0), mask, **wide).loss), expected)


def test_packed_is_padded_without_the_holes():
    cu = np.array([0, 4, 6, 9])
    options = {"beta": 0.1, "loss": "gspo"}
    padded = policy_loss(LOGP, OLD, A, MASK, ref_logp=REF, **options)
    packed = policy_loss(LOGP[MASK], OLD[MASK], A, None, ref_logp=REF[MASK], cu_seqlens=cu, **options)
    assert_allclose(packed.loss, padded.loss)
    assert_allclose(packed.dlogp, padded.dlogp[MASK])
    assert_allclose(packed.metrics.ratio, padded.metrics.ratio)


def test_metrics_by_hand():
    lp = np.log([[0.5, 1.0, 1.5, 1.5, 0.5]])
    m = policy_loss(lp, np.zeros_like(lp), [[-1.0, 1, 1, -1, 1]], None, entropy=np.ones((1, 5))).metrics
    assert (m.tokens, m.sequences) == (5, 1)
    assert_allclose([m.ratio, m.clip_low, m.clip_high, m.entropy], [1.0, 0.2, 0.2, 1.0])
    assert m.kl is None


def test_no_tokens_give_no_loss():
    for aggregate in AGGREGATES:
        r = policy_loss(LOGP, OLD, A, np.zeros((3, 4), bool), aggregate=aggregate)
        assert r.loss == 0
        assert_array_equal(r.dlogp, 0)


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo_clip"])
def test_the_gradient_of_logits_by_central_differences(loss):
    logits, ids = rng(30).normal(size=(3, 4, 5)), rng(31).integers(0, 5, (3, 4))
    old = -1.5 - rng(32).random((3, 4)) * 0.1
    options = {"loss": loss, "temperature": 0.8, "ref_logp": old + 0.1, "beta": 0.1, "clip": (10.0, 10.0)}

    def function(x):
        return float(token_policy_loss(x, ids, old, A, MASK, **options).loss)

    got = token_policy_loss(logits, ids, old, A, MASK, **options).dlogits.astype(float)
    if loss != "cispo_clip":
        assert_allclose(got, numeric(function, logits), rtol=1e-5, atol=1e-8)
    assert_array_equal(got[~MASK], 0)
    assert_allclose(got.sum(-1), 0, atol=1e-12)


# --- along time


def test_returns_by_hand():
    assert_allclose(discounted_returns([1.0, 2, 3], 0.5), [2.75, 3.5, 3])
    assert_allclose(discounted_returns([1.0, NAN, 3], 0.5, mask=[True, False, True]), [2.5, 0, 3])
    assert_allclose(discounted_returns([1.0, 2], [0.5], last_value=[4.0], cu_seqlens=[0, 2]), [3, 4])
    assert_allclose(discounted_returns([1.0, 2, 5], 0.5, cu_seqlens=[0, 2, 3]), [2, 2, 5])


def test_gae_is_the_lambda_return():
    r, v = rng(40).normal(size=(2, 6)), rng(41).normal(size=(2, 6))
    last = np.array([0.3, -0.2])
    advantages_, returns = gae(r, v, gamma=0.9, lam=1.0, last_value=last)
    assert_allclose(returns.astype(float), discounted_returns(r, 0.9, last_value=last).astype(float))
    one_step, _ = gae(r, v, gamma=0.9, lam=0.0, last_value=last)
    following = np.concatenate([v[:, 1:], last[:, None]], 1)
    assert_allclose(one_step.astype(float), r + 0.9 * following - v)
    done = np.zeros((2, 6), bool)
    done[:, 2] = True
    cut, _ = gae(r, v, gamma=0.9, lam=0.7, dones=done, last_value=last)
    first, _ = gae(r[:, :3], v[:, :3], gamma=0.9, lam=0.7)
    assert_allclose(cut[:, :3].astype(float), first.astype(float))
    keep = np.array([1, 0, 1, 1, 0, 1], bool)
    holes, _ = gae(
        np.where(keep, r, NAN), np.where(keep, v, INF), gamma=0.9, lam=0.7, mask=np.tile(keep, (2, 1))
    )
    without, _ = gae(r[:, keep], v[:, keep], gamma=0.9, lam=0.7)
    assert_allclose(holes[:, keep].astype(float), without.astype(float))
    assert_array_equal(holes[:, ~keep], 0)
    assert advantages_.shape == r.shape


def test_pass_at_k_counts_subsets():
    assert_allclose(float(pass_at_k(8, 3, 4)), 0.928571, atol=5e-7)
    got = pass_at_k(10, np.arange(11), 3).astype(float)
    assert_allclose(got, [1 - comb(10 - c, 3) / comb(10, 3) for c in range(11)])


# --- decoding


def test_sampling_follows_the_filtered_distribution():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    logits = np.tile(np.log(p), (20000, 1))
    for options, expected in [
        ({}, p),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),
        ({"min_p": 0.45}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"temperature": 0.5}, p**2 / (p**2).sum()),
    ]:
        share = np.bincount(sample(logits, rng=7, **options), minlength=4) / 20000
        assert_allclose(share, expected, atol=0.015)


def test_seeds_belong_to_rows():
    logits = rng(50).normal(size=(6, 30))
    seeds = np.arange(6) + 100
    all_rows = sample(logits, rng=seeds)
    for i in range(6):
        assert sample(logits[i : i + 1], rng=seeds[i : i + 1]) == all_rows[i]
    assert_array_equal(sample(logits, temperature=0), logits.argmax(-1))


def test_beam_step_takes_the_best_pairs():
    lp, s = rng(51).normal(size=(3, 7)), rng(52).normal(size=3)
    scores, beams, tokens = beam_step(lp, s, 5)
    total = lp + s[:, None]
    assert_allclose(scores.astype(float), np.sort(total.ravel())[::-1][:5])
    assert_allclose(total[beams, tokens], scores.astype(float))
