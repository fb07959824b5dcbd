"""The GRPO kernels: numbers from the papers, invariances, and what a merge or another layout must not change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import npkernels as nk
from npkernels._cli.cases import dtypes
from npkernels._grpo_types import LOSSES, PRESETS
from npkernels.reference import group_advantages as reference_advantages

NAN, INF = np.nan, np.inf
PLAIN = [name for name, p in PRESETS.items() if p.rule in ("", "lone reward", "over mean")]


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def advantages(rewards, groups, **options):
    return nk.group_advantages(np.asarray(rewards, float), groups, **options).advantages


# --- advantages


def test_numbers_by_hand():
    r = np.array([1.0, 2, 3, 4, 5, 6])
    assert_allclose(r - advantages(r, 3, preset="rloo"), [2.5, 2, 1.5, 5.5, 5, 4.5])
    ragged = np.array([1.0, 2, 4, 5, 6])
    assert_allclose(ragged - advantages(ragged, [0, 0, 9, 9, 9], preset="rloo"), [2, 1, 5.5, 5, 4.5])
    right = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    assert_allclose(np.unique(advantages(right, 8, preset="openrlhf").round(4)), [-0.7246, 1.2076])
    assert_allclose(np.unique(advantages(right, 8, preset="rloo").round(4)), [-0.4286, 0.7143])
    assert_allclose(advantages([1, 0, 1, 0], 4, preset="pass@k", k=2) * 12, [1, -1, 1, -1])


@pytest.mark.parametrize("name", [p for p in PRESETS if p != "reinforce++"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.1, 0.3, 1e8, 1e-8, 1e30, -7.7])
def test_constant_groups_give_exactly_zero(name, dtype, value):
    for n in (2, 3, 6, 7, 100, 1000):
        options = {"lengths": np.arange(1, n + 1)} if PRESETS[name].lengths else {}
        for groups in (n, np.full(n, 5), ["x"] * n):
            result = nk.group_advantages(np.full(n, value, dtype), groups, preset=name, **options)
            assert_array_equal(result.advantages, 0)
            assert result.zero_variance.all()


@pytest.mark.parametrize("scale", [1e-300, 1e-8, 1.0, 1e8, 1e150, 1e300])
@pytest.mark.parametrize("preset", PLAIN)
def test_rewards_of_any_size(scale, preset):
    r = np.array([1.0, 2, -1, 0.25, 0.5, 7]) * scale
    for groups in (3, [1, 0, 1, 0, 1, 0]):
        got = nk.group_advantages(r, groups, preset=preset)
        want = reference_advantages(r, groups, preset=preset)
        largest = float(np.abs(want.advantages).max())
        assert_allclose(got.advantages / largest, (want.advantages / largest).astype(float), atol=1e-12)
        assert_allclose(got.std, want.std.astype(float), rtol=1e-12)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("rewards", [[], [NAN, NAN]])
def test_nobody_was_scored(preset, rewards):
    r, index = np.array(rewards), np.zeros(len(rewards), np.int64)
    lengths = np.ones(len(rewards), np.int64) if PRESETS[preset].lengths else None
    for function in (nk.group_advantages, reference_advantages):
        assert_array_equal(function(r, index, preset=preset, lengths=lengths).advantages, np.zeros(len(r)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_ids_and_any_holes(data):
    B = data.draw(st.integers(0, 40))
    ids = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6))
    index = np.array(data.draw(st.lists(st.sampled_from(ids), min_size=B, max_size=B)), np.int64)
    values = st.one_of(st.just(NAN), st.sampled_from([0.0, 1.0, 0.3]), st.floats(-1e8, 1e8))
    r = np.array(data.draw(st.lists(values, min_size=B, max_size=B)))
    preset = data.draw(st.sampled_from([p for p in PRESETS if not PRESETS[p].lengths and p != "pass@k"]))
    got, want = nk.group_advantages(r, index, preset=preset), reference_advantages(r, index, preset=preset)
    assert_array_equal(got.keys, want.keys)
    assert_array_equal(got.zero_variance, want.zero_variance)
    if preset not in ("nemo", "maxrl"):  # these divide by what may be a difference of nearly equal numbers
        assert_allclose(got.advantages, want.advantages.astype(float), rtol=1e-6, atol=1e-6)
    order = rng(B).permutation(B)
    again = nk.group_advantages(r[order], index[order], preset=preset).advantages
    if preset not in ("nemo", "maxrl"):
        assert_allclose(
            again,
            got.advantages[order],
            rtol=1e-9,
            atol=1e-12 * max(1, np.abs(got.advantages).max(initial=0)),
        )
    names = np.array([f"prompt {i}" for i in index], object)
    assert_array_equal(nk.group_advantages(r, names, preset=preset).advantages, got.advantages)


def test_permutations_change_nothing_but_rounding():
    r, ids = rng(1).normal(size=500), rng(2).integers(0, 40, 500)
    order = rng(3).permutation(500)
    for name in PRESETS:
        if name == "pass@k":
            continue
        lengths = {"lengths": np.arange(500)} if PRESETS[name].lengths else {}
        moved = {"lengths": np.arange(500)[order]} if lengths else {}
        a, b = (
            advantages(r, ids, preset=name, **lengths),
            advantages(r[order], ids[order], preset=name, **moved),
        )
        assert_allclose(b, a[order], rtol=1e-12, atol=1e-12)


def test_stats_merge_in_any_chunks():
    r, ids = rng(4).normal(size=3000), rng(5).integers(0, 200, 3000) * 10**12
    whole_keys, whole = nk.group_stats(r, ids)
    for step in (1, 7, 500, 2999):
        merged = nk.group_stats(r[:step], ids[:step])
        for i in range(step, 3000, max(step, 100)):
            merged = nk.merge_group_stats(
                merged, nk.group_stats(r[i : i + max(step, 100)], ids[i : i + max(step, 100)])
            )
        assert_array_equal(merged[0], whole_keys)
        assert_allclose(merged[1], whole, rtol=1e-12, atol=1e-13)
        for preset in PLAIN:
            a = nk.advantages_from_stats(r, ids, merged, preset=preset).advantages
            assert_allclose(a, advantages(r, ids, preset=preset), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["int64", "object"])
def test_merged_keys_come_in_the_order_of_their_appearance(kind):
    """Integers go another way than strings; both are that of a dictionary."""
    draw = np.random.default_rng(5)
    name = (lambda i: i) if kind == "int64" else (lambda i: f"group {i}")
    for sizes in ((0, 4), (4, 0), (1, 1), (40, 60), (200, 3)):
        ids = [draw.integers(-50, 50, n) for n in sizes]
        rewards = [draw.standard_normal(n) for n in sizes]
        parts = [
            nk.group_stats(r, np.array([name(i) for i in g], kind)) for r, g in zip(rewards, ids, strict=True)
        ]
        keys, state = nk.merge_group_stats(*parts)
        assert keys.dtype == kind
        assert keys.tolist() == list(dict.fromkeys(name(i) for g in ids for i in g.tolist()))
        together = nk.group_stats(
            np.concatenate(rewards), np.array([name(i) for g in ids for i in g.tolist()], kind)
        )
        assert keys.tolist() == together[0].tolist()
        assert_allclose(state, together[1], rtol=1e-12, atol=1e-12)
        own = np.array([name(i) for i in ids[0]], kind)
        if sizes[0]:
            a = nk.advantages_from_stats(rewards[0], own, (keys, state)).advantages
            every = nk.group_advantages(
                np.concatenate(rewards), np.array([name(i) for g in ids for i in g.tolist()], kind)
            )
            assert_allclose(a, every.advantages[: sizes[0]], rtol=1e-9, atol=1e-12)
        with pytest.raises(ValueError, match=r"groups holds .*99.*, which is not among the keys"):
            nk.advantages_from_stats(np.ones(1), np.array([name(99)], kind), (keys, state))


def test_stats_have_the_same_bits_for_any_number_of_threads():
    r = rng(6).normal(size=(1 << 16))
    seen = set()
    for n in (1, 2, 5):
        with nk.num_threads(n):
            seen.add(nk.group_stats(r, 16)[1].tobytes() + nk.group_advantages(r, 16).advantages.tobytes())
    assert len(seen) == 1


def test_what_dynamic_sampling_asks_again():
    g = nk.group_advantages([0.0, 0, 1, 0, 1, 1], ["a", "a", "b", "b", "c", "c"])
    assert g.resample.tolist() == ["a", "c"]
    assert_array_equal(g.informative, [False, False, True, True, False, False])
    assert "6 samples, 3 groups" in repr(g)
    sized = nk.group_advantages([0.0, 0, 1, 0], 2)
    assert_array_equal(sized.keys, [0, 1])
    assert_array_equal(sized.group_index, [0, 0, 1, 1])


# --- policy losses


def tokens(B=5, T=70, dtype=np.float64):
    g = rng(7)
    old = -g.random((B, T)) * 3
    lp, ref, sampler = (old + g.normal(0, 0.2, (B, T)) for _ in range(3))
    mask = g.random((B, T)) < 0.8
    return [x.astype(dtype) for x in (lp, old, ref, sampler)], mask, g.normal(size=B).astype(dtype)


def test_policy_loss_by_hand():
    def loss(rho, A, **options):
        lp = np.log(np.array([rho]))
        return nk.policy_loss(lp, np.zeros_like(lp), [A], loss="ppo", **options).loss

    assert_allclose(loss([0.5, 1, 1.5], [1, -1, 2]), -0.6333, atol=5e-5)
    assert_allclose(loss([0.5, 1, 10], [1, -1, -4], dual_clip=3.0), 4.1667, atol=5e-5)


def test_kl_by_hand():
    lp, ref = np.full(3, -1.0), np.array([0.0, -15, -30])
    assert_allclose(nk.kl_divergence(lp, ref, "k1"), [-1, 14, 29])
    assert_allclose(nk.kl_divergence(lp, ref, "k2"), [0.5, 98, 420.5])
    assert_allclose(nk.kl_divergence(lp, ref, "k3"), [0.7183, 13, 28], atol=5e-5)
    small = np.float32(1e-4)
    exact = 1e-8 / 2 * (1 + 1e-4 / 3)
    assert_allclose(nk.kl_divergence(np.zeros(1, np.float32), np.full(1, small)), exact, rtol=1e-6)
    r = nk.policy_loss(np.zeros((1, 1), np.float32), [[0.0]], [0.0], ref_logp=[[small]], beta=1.0)
    assert_allclose(r.loss, exact, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_garbage_behind_the_mask_changes_no_bit(loss, dtype):
    (lp, old, ref, sampler), mask, A = tokens(dtype=dtype)
    options = {"loss": loss, "beta": 0.1, "clip": (0.2, 1.2)}

    def call(fill):
        arrays = [np.where(mask, x, fill).astype(dtype) for x in (lp, old, ref, sampler)]
        return nk.policy_loss(
            arrays[0], arrays[1], A, mask, ref_logp=arrays[2], sampler_logp=arrays[3], **options
        )

    clean = call(0.0)
    for fill in (NAN, INF, -INF):
        dirty = call(fill)
        assert dirty.loss == clean.loss
        assert dirty.dlogp.tobytes() == clean.dlogp.tobytes()
        assert dirty.metrics == clean.metrics or vars(dirty.metrics) == vars(clean.metrics)
    assert_array_equal(clean.dlogp[~mask], 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_packed_is_padded_without_the_holes(loss):
    (lp, old, ref, _), mask, A = tokens()
    cu = np.append(0, np.cumsum(mask.sum(1)))
    options = (
        {"loss": loss, "beta": 0.1, "max_length": 70} if loss == "dr_grpo" else {"loss": loss, "beta": 0.1}
    )
    padded = nk.policy_loss(lp, old, A, mask, ref_logp=ref, **options)
    packed = nk.policy_loss(lp[mask], old[mask], A, ref_logp=ref[mask], cu_seqlens=cu, **options)
    assert_allclose(packed.loss, padded.loss, rtol=1e-13)
    assert_allclose(packed.dlogp, padded.dlogp[mask], rtol=1e-13, atol=1e-18)
    assert_allclose(packed.metrics.ratio, padded.metrics.ratio, rtol=1e-13)


@pytest.mark.parametrize("loss", LOSSES)
def test_policy_losses_have_the_same_bits_for_any_number_of_threads(loss):
    (lp, old, ref, sampler), mask, A = tokens(40, 1500, np.float32)
    seen = set()
    for n in (1, 2, 3):
        with nk.num_threads(n):
            r = nk.policy_loss(lp, old, A, mask, ref_logp=ref, sampler_logp=sampler, beta=0.1, loss=loss)
            seen.add((r.loss.tobytes(), r.dlogp.tobytes(), r.metrics.ratio.tobytes()))
    assert len(seen) == 1


@pytest.mark.parametrize("mask_type", [bool, np.int64, np.uint8, np.float32])
def test_masks_of_zero_and_one(mask_type):
    (lp, old, _, _), mask, A = tokens()
    want = nk.policy_loss(lp, old, A, mask)
    got = nk.policy_loss(lp, old, A, mask.astype(mask_type))
    assert got.loss == want.loss
    assert got.metrics.tokens == mask.sum()


def test_the_gradient_goes_where_it_is_wanted():
    (lp, old, _, _), mask, A = tokens(dtype=np.float32)
    want = nk.policy_loss(lp, old, A, mask).dlogp
    out = np.full_like(lp, 7)
    assert nk.policy_loss(lp, old, A, mask, out=out).dlogp is out
    assert_array_equal(out, want)
    strided = np.full((5, 140), 7, np.float32)[:, ::2]
    nk.policy_loss(lp, old, A, mask, out=strided)
    assert_array_equal(strided, want)
    assert nk.policy_loss(lp, old, A, mask, return_grad=False).dlogp is None


@pytest.mark.parametrize("loss", LOSSES)
def test_from_logits_is_the_chain_of_its_parts(loss):
    g = rng(8)
    B, T, V = 4, 6, 300
    logits, ids, mask = g.normal(size=(B, T, V)), g.integers(0, V, (B, T)), g.random((B, T)) < 0.8
    stats = nk.token_log_probs(logits, ids, temperature=0.7)
    old, A = stats.log_prob + g.normal(0, 0.2, (B, T)), g.normal(size=B)
    options = {
        "loss": loss,
        "ref_logp": old + 0.1,
        "beta": 0.2,
        "sampler_logp": old + 0.01,
        "clip": (0.2, 1.3),
    }
    whole = nk.token_policy_loss(logits, ids, old, A, mask, temperature=0.7, entropy=True, **options)
    parts = nk.policy_loss(stats.log_prob, old, A, mask, entropy=stats.entropy, **options)
    dlogits = nk.token_log_probs_vjp(parts.dlogp, logits, ids, stats.lse, temperature=0.7)
    assert_allclose(whole.loss, parts.loss, rtol=1e-12)
    assert_allclose(whole.dlogits, dlogits, rtol=1e-10, atol=1e-16)
    for name, value in vars(parts.metrics).items():
        assert_allclose(getattr(whole.metrics, name), value, rtol=1e-12, err_msg=name)
    copy = logits.copy()
    assert nk.token_policy_loss(copy, ids, old, A, mask, temperature=0.7, out=copy, **options).dlogits is copy
    assert_allclose(copy, whole.dlogits, rtol=1e-12, atol=1e-18)


# --- along time, decoding


def test_scans_take_any_memory_and_out():
    r, v = rng(9).normal(size=(6, 50)), rng(10).normal(size=(6, 50))
    want = nk.gae(r, v, gamma=0.9, lam=0.8)
    for make in (np.asfortranarray, lambda x: np.repeat(x, 2, 1)[:, ::2], lambda x: x[::-1].copy()[::-1]):
        for got, w in zip(nk.gae(make(r), make(v), gamma=0.9, lam=0.8), want, strict=True):
            assert_array_equal(got, w)
    out = (np.zeros((6, 50)), np.zeros((50, 6)).T)
    A, R = nk.gae(r, v, gamma=0.9, lam=0.8, out=out)
    assert A is out[0]
    assert R is out[1]
    assert_array_equal(A, want[0])
    assert_array_equal(R, want[1])


def test_rows_do_not_depend_on_their_neighbours():
    r, v = rng(11).normal(size=(19, 300)), rng(12).normal(size=(19, 300))
    A, R = nk.gae(r, v, gamma=0.99, lam=0.95)
    for i in (0, 7, 8, 18):
        one = nk.gae(r[i], v[i], gamma=0.99, lam=0.95)
        assert_array_equal(one[0], A[i])
        assert_array_equal(one[1], R[i])


def test_pass_at_k_by_hand():
    assert_allclose(nk.pass_at_k(8, 3, 4), 0.928571, atol=5e-7)
    assert nk.pass_at_k(8, 0, 4) == 0
    assert nk.pass_at_k(8, 5, 4) == 1


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
        share = np.bincount(nk.sample(logits, rng=7, **options), minlength=4) / 20000
        assert_allclose(share, expected, atol=0.015)


def test_sampling_is_seeded():
    logits = rng(13).normal(size=(9, 400)).astype(np.float32)
    seeds = np.arange(9) + 40
    drawn = nk.sample(logits, rng=seeds)
    for i in range(9):
        assert nk.sample(logits[i], rng=seeds[i : i + 1].reshape(())) is not None
        assert nk.sample(logits[i : i + 1], rng=seeds[i : i + 1]) == drawn[i]
    first, second = (nk.sample(logits, rng=np.random.default_rng(3)) for _ in range(2))
    assert_array_equal(first, second)
    with nk.checked():
        nk.sample(logits, rng=np.random.default_rng(3))
    assert len({tuple(nk.sample(logits, rng=s)) for s in range(20)}) > 10


def test_sampling_of_rows_with_little_to_choose():
    x = np.array([[-INF, 2.0, -INF], [NAN, 1.0, 0.0], [-INF, -INF, -INF], [0.0, INF, 0.0]])
    assert_array_equal(nk.sample(x[[0]], rng=1), [1])
    assert_array_equal(nk.sample(x[[3]], rng=1), [1])
    assert ((nk.sample(x, rng=1) >= 0) & (nk.sample(x, rng=1) < 3)).all()
    assert nk.sample(np.zeros((0, 5)), rng=1).shape == (0,)
    assert_array_equal(nk.sample(x[[1]], top_k=10**30, rng=1), nk.sample(x[[1]], rng=1))


def test_nan_is_never_drawn():
    x = np.array(
        [[NAN, 1, 0, 1], [-INF, NAN, NAN, NAN], [NAN, -INF, INF, INF], [NAN] * 4, [NAN, -INF, -INF, 0]]
    )
    for dtype in dtypes().values():
        for options in ({"temperature": 0.0}, {"top_k": 1, "top_p": 0.4}):
            for draw in (nk.sample, nk.reference.sample):
                assert_array_equal(draw(x.astype(dtype), rng=1, **options), [1, 0, 2, 0, 3])
        drawn = nk.sample(np.repeat(x[:1], 100, axis=0).astype(dtype), rng=1)
        assert set(drawn.tolist()) == {1, 2, 3}


def test_a_beam_search_finds_the_best_sequence():
    g = rng(14)
    V, T = 5, 4
    tables = np.log(g.dirichlet(np.ones(V), (T, V)))  # log p(next | position, last token)
    beams, scores = np.zeros((1, 0), np.int64), np.zeros(1)
    for t in range(T):
        last = beams[:, -1] if t else np.zeros(1, np.int64)
        scores, parents, chosen = nk.beam_step(tables[t, last], scores, min(V**T, len(scores) * V))
        beams = np.concatenate([beams[parents], chosen[:, None]], 1)
    best = max(
        (sum(tables[t, s[t - 1] if t else 0, s[t]] for t in range(T)), s) for s in np.ndindex(*(V,) * T)
    )
    assert_allclose(scores[0], best[0])
    assert tuple(beams[0]) == best[1]
    assert (np.diff(scores) <= 0).all()
