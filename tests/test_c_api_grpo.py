"""The GRPO family of npkernels.h: the answers of the Python functions, and what it refuses beside the common checks."""

import ctypes

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import npkernels
from c_calls import FLOATS, INF, NAN, arguments_of, compute, expect_refused, normal, same
from c_library import (
    BAD_DTYPE,
    BAD_INDEX,
    BAD_SHAPE,
    BAD_STRIDES,
    BAD_VALUE,
    NO_MEMORY,
    NULL_POINTER,
    OK,
    OVERLAP,
    AdvantageOptions,
    PolicyMetrics,
    PolicyOptions,
    ReturnOptions,
    bad_argument,
    call,
    describe,
    struct,
)
from npkernels._grpo_types import AGGREGATES, BASELINES, IMPORTANCES, KLS, LOSSES, SCALES
from npkernels._policy_options import SURROGATES

WIDE = FLOATS[:2]
HERE = {"sequence-mask": 0, "sequence-truncate": 1, "token-mask": 2, "token-truncate": 3}


def size(n):
    return ctypes.c_int64(n)


# --- advantages


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
def test_group_advantages(baseline, scale, dtype):
    rewards = normal(60, dtype=dtype)
    rewards[[3, 17]] = NAN
    rewards[20:24] = 0.3
    ids = np.random.default_rng(1).permutation(np.repeat([7, -(2**62), 0, 2**62, 5], 12))
    options = {"baseline": BASELINES.index(baseline), "scale": SCALES.index(scale), "ddof": 0, "eps": 1e-3}
    names = {"baseline": baseline, "scale": scale, "ddof": 0, "eps": 1e-3}
    made = struct(AdvantageOptions, **options)
    a, stats, index, n = (
        np.empty_like(rewards),
        np.full((60, 5), 42.0),
        np.empty(60, np.int64),
        ctypes.c_int64(),
    )
    for groups, arguments in ((4, (size(4), None)), (ids, (size(0), ids))):
        stats[:] = 42
        wanted = npkernels.group_advantages(rewards, groups, **names)
        assert call("group_advantages", rewards, *arguments, made, a, stats, index, ctypes.byref(n)) == OK
        same(a, wanted.advantages)
        same(stats[: n.value], wanted.stats)
        same(index, wanted.group_index)
        assert (stats[n.value :] == 42).all()
        a[:] = 0
        assert call("group_advantages", rewards, *arguments, made, a, None, None, None) == OK
        same(a, wanted.advantages)
    assert n.value == 5


def test_group_advantages_by_default_and_in_place():
    rewards = normal(12)
    wanted = npkernels.group_advantages(rewards, 4).advantages
    assert call("group_advantages", rewards, size(4), None, None, rewards, None, None, None) == OK
    same(rewards, wanted)
    ids = np.array([5, 5, 9, 9, 5, 9] * 2)
    wanted = npkernels.group_advantages(rewards, ids).group_index
    assert call("group_advantages", rewards, size(0), ids, None, rewards, None, ids, None) == OK
    same(ids, wanted)


def test_group_advantages_of_presets():
    rewards, ids = normal(9), np.array([1, 1, 1, 2, 2, 2, 2, 3, 1])
    a = np.empty_like(rewards)
    lone = struct(AdvantageOptions, eps=1e-6, lone_reward=1)
    assert call("group_advantages", rewards, size(0), ids, lone, a, None, None, None) == OK
    same(a, npkernels.group_advantages(rewards, ids, preset="verl").advantages)
    over = struct(AdvantageOptions, scale=2, over_mean=1)
    assert call("group_advantages", rewards, size(0), ids, over, a, None, None, None) == OK
    same(a, npkernels.group_advantages(rewards, ids, preset="maxrl").advantages)


def test_group_advantages_of_nothing():
    empty, n = np.empty(0, np.float32), ctypes.c_int64(-1)
    for arguments in ((size(3), None), (size(0), np.empty(0, np.int64))):
        assert (
            call("group_advantages", empty, *arguments, None, empty.copy(), None, None, ctypes.byref(n)) == OK
        )
        assert n.value == 0


def test_groups_that_mean_nothing():
    f = "group_advantages"
    for sizes in (1, 3, -1):  # there are ids
        expect_refused(f, {"group_size": size(sizes)}, BAD_VALUE)
    for sizes in (0, -3, 5, 13):
        expect_refused(f, {"group_size": size(sizes), "ids": None}, BAD_VALUE)
    for reward in (INF, -INF):
        expect_refused(f, {"rewards": np.array([0, reward] * 6, np.float32)}, BAD_VALUE)
    expect_refused(f, {"rewards": normal(12, 1)}, BAD_SHAPE)
    expect_refused(f, {"stats": np.ones((3, 5))}, BAD_SHAPE)  # there are 4 groups
    expect_refused(f, {"stats": np.ones(12)}, BAD_SHAPE)
    wrong = {"eps": (-1.0, INF, NAN), "baseline": (-1, 3), "scale": (-1, 3), "ddof": (-1, 2)}
    wrong |= {"lone_reward": (2, -1), "over_mean": (1, 2), "reserved": (1,)}
    for name, values in wrong.items():
        for value in values:
            expect_refused(f, {name: value}, BAD_VALUE)
    for name in ("rewards", "ids", "advantages", "index"):
        a = arguments_of(f)[name]
        expect_refused(f, {name: np.repeat(a, 2)[::2]}, BAD_STRIDES)
    assert (
        call(f, normal(12), size(3), None, None, normal(12).astype(np.float16), None, None, None) == BAD_DTYPE
    )


# --- policy losses


def options_of(loss, **more):
    about = LOSSES[loss]
    options = {
        "surrogate": SURROGATES.index(about.surrogate),
        "sequence_level": int(about.level == "sequence"),
    }
    return options | {"aggregate": AGGREGATES.index(about.aggregate)} | more


def batch(dtype, packed):
    """(arguments as Python has them, mask) of four sequences."""
    shape = (28,) if packed else (4, 7)
    make = lambda seed: -abs(normal(*shape, dtype=dtype, seed=seed)) / 4  # noqa: E731
    arrays = {"logp": make(0), "old_logp": make(1), "advantages": normal(4, dtype=dtype)}
    mask = np.random.default_rng(0).random(shape) < 0.8
    extra = {"ref_logp": make(2), "sampler_logp": make(3)}
    ends = np.array([0, 3, 3, 16, 28]) if packed else None
    return arrays, extra, mask, ends


def check_metrics(metrics, wanted, dtype, ulps=4):
    told = {"loss": wanted.loss, **{n: getattr(wanted.metrics, n) for n, _ in PolicyMetrics._fields_[2:]}}
    for name, value in told.items():
        got = getattr(metrics, name)
        assert np.isnan(got) if value is None else True, name
        if value is not None:
            assert_allclose(got, value, rtol=ulps * np.finfo(dtype).eps, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_policy_loss(loss, packed, dtype):
    arrays, extra, mask, ends = batch(dtype, packed)
    for name in arrays:
        if arrays[name].shape == mask.shape:
            arrays[name][~mask] = NAN
    entropy, dlogp = abs(normal(*mask.shape, dtype=dtype)), np.empty(mask.shape, dtype)
    clip = (0.1, 3.0) if loss == "cispo" else (0.1, 0.3)
    more = {"clip_low": clip[0], "clip_high": clip[1], "beta": 0.1, "kl_inner": 2.0, "kl_outer": 1.0}
    options = struct(
        PolicyOptions, mask=mask, cu_seqlens=ends, entropy=entropy, **extra, **options_of(loss, **more)
    )
    metrics = struct(PolicyMetrics)
    wanted = npkernels.policy_loss(
        *arrays.values(),
        mask,
        clip=clip,
        loss=loss,
        beta=0.1,
        kl_clamp=(2.0, 1.0),
        entropy=entropy,
        cu_seqlens=ends,
        **extra,
    )
    assert call("policy_loss", *arrays.values(), options, metrics, dlogp) == OK
    same(dlogp, wanted.dlogp)
    check_metrics(metrics, wanted, dtype)
    again = struct(PolicyMetrics)
    assert call("policy_loss", *arrays.values(), options, again, None) == OK
    assert again.loss == metrics.loss


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("kl", KLS)
def test_policy_loss_options(kl, importance):
    arrays, extra, mask, _ = batch(np.float64, False)
    arrays["advantages"] = normal(4, 7, dtype=np.float64)
    dlogp, metrics = np.empty(mask.shape), struct(PolicyMetrics)
    more = {"kl": KLS.index(kl), "beta": -0.5, "delta": 1.4, "dual_clip": 1.2, "importance_cap": 1.1}
    options = struct(
        PolicyOptions,
        mask=mask,
        **extra,
        importance=HERE[importance],
        **options_of("dapo", total_tokens=50.0, **more),
    )
    wanted = npkernels.policy_loss(
        *arrays.values(), mask, loss="dapo", kl=kl, beta=-0.5, delta=1.4, dual_clip=1.2, total_tokens=50,
        importance=(importance, 1.1), **extra,
    )  # fmt: skip
    assert call("policy_loss", *arrays.values(), options, metrics, dlogp) == OK
    same(dlogp, wanted.dlogp)
    check_metrics(metrics, wanted, np.float64)


def test_policy_loss_by_default():
    arrays, *_ = batch(np.float64, False)
    dlogp, metrics = np.empty((4, 7)), struct(PolicyMetrics)
    wanted = npkernels.policy_loss(*arrays.values())
    assert call("policy_loss", *arrays.values(), None, metrics, dlogp) == OK
    same(dlogp, wanted.dlogp)
    check_metrics(metrics, wanted, np.float64)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_token_policy_loss(loss, packed, dtype):
    wide = compute(dtype)
    arrays, extra, mask, ends = batch(wide, packed)
    arrays.pop("logp")
    logits = normal(*mask.shape, 40, dtype=dtype)[..., ::2]
    ids = np.random.default_rng(2).integers(0, 20, mask.shape)
    logits[~mask] = NAN
    ids[~mask] = 99
    out = np.empty(logits.shape, dtype)
    more = {"clip_high": 3.0 if loss == "cispo" else 0.2, "beta": 0.1, "want_entropy": 1}
    options = struct(PolicyOptions, mask=mask, cu_seqlens=ends, **extra, **options_of(loss, **more))
    metrics = struct(PolicyMetrics)
    wanted = npkernels.token_policy_loss(
        logits, ids, *arrays.values(), mask, temperature=0.7, loss=loss, clip=(0.2, more["clip_high"]), beta=0.1,
        entropy=True, cu_seqlens=ends, **extra,
    )  # fmt: skip
    assert call("token_policy_loss", logits, ids, *arrays.values(), 0.7, options, metrics, out) == OK
    if dtype == np.float64:  # a sum over a sequence may go in another order
        assert_allclose(out, wanted.dlogits, rtol=1e-12, atol=1e-15)
    else:
        same(out, wanted.dlogits)
    check_metrics(metrics, wanted, wide, 100)  # NumPy adds pairs of pairs
    target = logits  # in place, with its strides
    assert call("token_policy_loss", target, ids, *arrays.values(), 0.7, options, metrics, target) == OK
    same(np.ascontiguousarray(target), out)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_token_policy_loss_aggregates(aggregate):
    arrays, _, mask, _ = batch(np.float64, False)
    arrays.pop("logp")
    arrays["advantages"] = normal(4, 7, dtype=np.float64)
    logits, ids = normal(4, 7, 11, dtype=np.float64), np.zeros((4, 7), np.int64)
    out, metrics = np.empty_like(logits), struct(PolicyMetrics)
    norm = {"max_length": 9} if aggregate.endswith("norm") else {}
    wanted = npkernels.token_policy_loss(logits, ids, *arrays.values(), mask, aggregate=aggregate, **norm)
    options = struct(PolicyOptions, mask=mask, aggregate=AGGREGATES.index(aggregate), **norm)
    assert call("token_policy_loss", logits, ids, *arrays.values(), 1.0, options, metrics, out) == OK
    same(out, wanted.dlogits)
    check_metrics(metrics, wanted, np.float64, 100)
    loss = metrics.loss
    assert call("token_policy_loss", logits, ids, *arrays.values(), 1.0, options, metrics, None) == OK
    assert metrics.loss == loss


@pytest.mark.parametrize("function", ["policy_loss", "token_policy_loss"])
def test_losses_that_mean_nothing(function):
    wrong = {"surrogate": (-1, 6), "sequence_level": (-1, 2), "aggregate": (-1, 5), "kl": (-1, 4)}
    wrong |= {"importance": (-1, 4), "want_entropy": (2, 1) if function == "policy_loss" else (2,)}
    wrong |= {"clip_low": (-0.1, NAN), "clip_high": (-0.1, NAN), "delta": (-1.0, INF, NAN)}
    wrong |= {"dual_clip": (1.0, -2.0, INF, NAN), "tau_positive": (0.0, NAN), "tau_negative": (-1.0,)}
    wrong |= {"max_length": (5.0,), "total_tokens": (5.0,), "beta": (INF, NAN)}  # the aggregate has none
    wrong |= {"kl_inner": (-1.0, NAN), "kl_outer": (-1.0, NAN), "importance_cap": (0.0, INF, NAN)}
    for name, values in wrong.items():
        for value in values:
            expect_refused(function, {name: value}, BAD_VALUE)
    expect_refused(function, {"aggregate": 4, "max_length": -1.0}, BAD_VALUE, "max_length")
    expect_refused(function, {"aggregate": 0, "total_tokens": NAN}, BAD_VALUE, "total_tokens")
    expect_refused(function, {"surrogate": 4}, BAD_VALUE, "sequence_level")
    expect_refused(function, {"surrogate": 5, "sequence_level": 1}, BAD_VALUE, "sequence_level")
    expect_refused(function, {"surrogate": 1, "delta": 2.0}, BAD_VALUE, "delta")
    expect_refused(function, {"surrogate": 1, "dual_clip": 2.0}, BAD_VALUE, "dual_clip")
    expect_refused(function, {"ref_logp": None}, NULL_POINTER)
    expect_refused(function, {"metrics": None}, NULL_POINTER)
    for size_of in (0, 8, 1 << 40):
        expect_refused(function, {"metrics": struct(PolicyMetrics, size=size_of)}, BAD_VALUE)
    lead = "logp" if function == "policy_loss" else "logits"
    expect_refused(function, {lead: normal(3, 2, 3, 8)}, BAD_SHAPE)
    expect_refused(function, {lead: np.ones((), np.float32)}, BAD_SHAPE)


def test_what_only_one_of_the_losses_takes():
    shape = arguments_of("token_policy_loss")["ids"].shape
    expect_refused("token_policy_loss", {"entropy": normal(*shape)}, BAD_VALUE)
    for bad in (-1, 8, 1 << 62):
        expect_refused("token_policy_loss", {"ids": np.array([[0, 1, 2], [3, 4, bad]])}, BAD_INDEX)
    expect_refused("policy_loss", {"logp": normal(3, 8, dtype=np.float16)}, BAD_DTYPE)


def test_a_gradient_in_place_of_an_input():
    logp, metrics = normal(3, 8), struct(PolicyMetrics)
    before = logp.copy()
    assert call("policy_loss", logp, normal(3, 8), normal(3), None, metrics, logp) == OVERLAP
    assert_array_equal(logp, before)


def test_more_sequences_than_memory_holds():
    many = 1 << 50  # of nothing
    tokens, ids = (describe(np.empty((1, 0), d), shape=(many, 0)) for d in (np.float32, np.int64))
    logits = describe(np.empty((1, 0, 4), np.float32), shape=(many, 0, 4))
    metrics = struct(PolicyMetrics)
    assert call("policy_loss", tokens, tokens, tokens, None, metrics, None) == NO_MEMORY
    for level in (0, 1):
        options = struct(PolicyOptions, sequence_level=level)
        assert (
            call("token_policy_loss", logits, ids, tokens, tokens, 1.0, options, metrics, None) == NO_MEMORY
        )
    assert call("discounted_returns", tokens, 0.9, None, tokens) == NO_MEMORY
    assert call("gae", tokens, tokens, 0.9, 0.8, None, tokens, tokens) == NO_MEMORY


# --- returns


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_returns_and_gae(packed, dtype):
    shape = (28,) if packed else (2, 2, 7)
    each = (4,) if packed else (2, 2)
    r, v = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    mask, dones = (np.random.default_rng(s).random(shape) < 0.7 for s in (0, 1))
    r[~mask] = v[~mask] = NAN
    gammas, lams, last = (np.random.default_rng(s).random(each) for s in range(3))
    ends = np.array([0, 3, 3, 16, 28]) if packed else None
    shared = {"mask": mask, "cu_seqlens": ends, "last_value": last}
    a, out = np.empty_like(r), np.empty_like(r)
    options = struct(ReturnOptions, gammas=gammas, **shared)
    assert call("discounted_returns", r, 0.0, options, out) == OK
    same(out, npkernels.discounted_returns(r, gammas, **shared))
    options = struct(ReturnOptions, gammas=gammas, lams=lams, dones=dones, **shared)
    assert call("gae", r, v, 0.0, 0.0, options, a, out) == OK
    for got, wanted in zip(
        (a, out), npkernels.gae(r, v, gamma=gammas, lam=lams, dones=dones, **shared), strict=True
    ):
        same(got, wanted)


def test_returns_by_default():
    for shape in ((7,), (3, 7), (0, 3), (3, 0)):
        r, v = normal(*shape), normal(*shape, seed=1)
        a, out = np.empty_like(r), np.empty_like(r)
        assert call("discounted_returns", r, 0.9, None, out) == OK
        same(out, npkernels.discounted_returns(r, 0.9))
        assert call("gae", r, v, 0.9, 0.8, None, a, out) == OK
        for got, wanted in zip((a, out), npkernels.gae(r, v, gamma=0.9, lam=0.8), strict=True):
            same(got, wanted)


def test_returns_that_mean_nothing():
    for name in ("rewards", "returns", "mask", "gammas", "last_value"):
        a = arguments_of("discounted_returns")[name]
        expect_refused("discounted_returns", {name: np.repeat(a, 2, axis=-1)[..., ::2]}, BAD_STRIDES)
    expect_refused("discounted_returns", {"dones": np.zeros((3, 8), np.bool_)}, BAD_VALUE)
    expect_refused("discounted_returns", {"lams": np.ones(3)}, BAD_VALUE)
    for function in ("discounted_returns", "gae"):
        expect_refused(function, {"rewards": np.ones((), np.float32)}, BAD_SHAPE)
        expect_refused(function, {"rewards": normal(3, 8, dtype=np.float16)}, BAD_DTYPE)


@pytest.mark.parametrize("ends", [[1, 24], [0, 23], [0, 25], [0, 13, 12, 24], [24], [0, -1, 24]])
def test_boundaries_that_do_not_fit(ends):
    r, out, metrics = normal(24), np.full(24, 42, np.float32), struct(PolicyMetrics)
    ends = np.array(ends)
    assert call("discounted_returns", r, 0.9, struct(ReturnOptions, cu_seqlens=ends), out) == BAD_VALUE
    assert bad_argument() == "cu_seqlens"
    options = struct(PolicyOptions, cu_seqlens=ends)
    assert call("policy_loss", r, normal(24), normal(24), options, metrics, out) == BAD_VALUE
    assert bad_argument() == "cu_seqlens"
    assert (out == 42).all()


def test_boundaries_of_another_shape():
    r, out = normal(24), np.full(24, 42, np.float32)
    for ends, status in ((np.array([[0, 24]]), BAD_SHAPE), (np.empty(0, np.int64), BAD_SHAPE)):
        assert call("discounted_returns", r, 0.9, struct(ReturnOptions, cu_seqlens=ends), out) == status
        assert bad_argument() == "cu_seqlens"
    packed = struct(ReturnOptions, cu_seqlens=np.array([0, 24]))
    assert call("discounted_returns", r.reshape(3, 8), 0.9, packed, out.reshape(3, 8)) == BAD_SHAPE
    assert bad_argument() == "rewards"
    assert (out == 42).all()
