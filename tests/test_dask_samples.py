"""Perturbations and groups of samples on Dask arrays, cut along the samples."""

import numpy as np
import pytest

import npkernels as nk
from npkernels import perturb

pytest.importorskip("dask")
import dask.array as da
from dask.array.utils import assert_eq

import npkernels.dask as nd

SYNC = {"scheduler": "sync"}
RNG = np.random.default_rng(0)
X, C, G = RNG.random((3, 10, 4, 3), dtype=np.float32)
ROW = RNG.random(10)
LOW, HIGH = C - 0.1, C + RNG.random((10, 4, 3), dtype=np.float32)
MASK = RNG.random((4, 1)) < 0.7


def chunked(x, lazily):
    """What is cut along the samples as a Dask array, or all as it is."""
    return da.from_array(x, chunks=(4, *x.shape[1:])) if lazily and len(x) == 10 else x


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("norm", ["inf", 2, 1])
@pytest.mark.parametrize("eps", [0.3, ROW], ids=["one", "each"])
@pytest.mark.parametrize("bounds", [None, (0, 1), (LOW, HIGH), (-0.5, np.float32([2, 3, 4]))], ids=range(4))
def test_steps(norm, eps, bounds, lazily):
    x, amount = (
        da.from_array(X, chunks=(4, 4, 3)),
        chunked(np.asarray(eps)[...], lazily) if np.ndim(eps) else eps,
    )
    c, g = (chunked(a, lazily) for a in (C, G))
    sides = None if bounds is None else tuple(chunked(s, lazily) if np.ndim(s) == 3 else s for s in bounds)
    common = {"bounds": bounds, "mask": MASK}
    lazy = {"bounds": sides, "mask": MASK}
    pairs = [
        (nd.project(x, c, amount, norm=norm, **lazy), perturb.project(X, C, eps, norm=norm, **common)),
        (
            nd.pgd_step(x, c, g, 0.1, amount, norm=norm, targeted=True, **lazy),
            perturb.pgd_step(X, C, G, 0.1, eps, norm=norm, targeted=True, **common),
        ),
        (
            nd.steepest_step(x, g, amount, norm=norm, **lazy),
            perturb.steepest_step(X, G, eps, norm=norm, **common),
        ),
        (nd.sign_step(x, g, amount, **lazy), perturb.sign_step(X, G, eps, **common)),
    ]
    for got, want in pairs:
        assert_eq(got, want, **SYNC, rtol=0, atol=0)
        assert got.chunks == x.chunks


def test_a_length_for_each_entry_is_not_one_for_each_sample():
    x, g = X.reshape(10, 12)[:8, :4], G.reshape(10, 12)[:8, :4]
    eps = np.array([0.1, 0.2, 0.3, 0.4])  # of the four entries; a chunk has four samples, too
    got = nd.sign_step(da.from_array(x, chunks=4), g, eps)
    assert_eq(got, perturb.sign_step(x, g, eps), **SYNC, rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_random_points_do_not_depend_on_the_chunks(norm):
    c, eps = RNG.random((100, 5)), RNG.random(100)
    sides = (c - 0.2, c + 0.3)
    draws = [
        nd.random_in_ball(da.from_array(c, chunks=(n, 5)), eps, norm=norm, rng=7, bounds=sides).compute(
            **SYNC
        )
        for n in (100, 32, 33, 7, 1)
    ]
    assert all(np.array_equal(draws[0], d) for d in draws)
    length = np.linalg.norm(draws[0] - c, ord={"inf": np.inf}.get(norm, norm), axis=1)
    assert (length <= eps * (1 + 1e-12)).all()
    free = nd.random_in_ball(da.zeros((4096, 2), chunks=(100, 2)), 1.0, norm=norm, rng=7).compute(**SYNC)
    assert len(np.unique(free, axis=0)) == 4096
    assert np.abs(free.mean(axis=0)).max() < 0.05
    other = nd.random_in_ball(da.zeros((4096, 2), chunks=(100, 2)), 1.0, norm=norm, rng=8)
    assert not np.isin(other.compute(**SYNC), free).any()


def test_a_generator_is_asked_once():
    rng = np.random.default_rng(3)
    lazy = nd.random_in_ball(da.zeros((40, 3), chunks=(9, 3)), 1.0, rng=rng)
    key = int(np.random.default_rng(3).integers(0, 2**64, dtype=np.uint64))
    again = nd.random_in_ball(da.zeros((40, 3), chunks=(20, 3)), 1.0, rng=key)
    assert np.array_equal(lazy.compute(**SYNC), again.compute(**SYNC))
    assert np.array_equal(lazy.compute(**SYNC), lazy.compute(**SYNC))


RULES = [
    {},
    {"preset": "rloo"},
    {"preset": "verl"},
    {"preset": "dr_grpo"},
    {"preset": "maxrl"},
    {"preset": "open_instruct"},
    {"baseline": "leave_one_out"},
    {"scale": "batch"},
    {"baseline": "none", "ddof": 0, "eps": 1e-2},
]


def check(lazy, rewards, groups, options):
    want = nk.group_advantages(rewards, groups, **options)
    largest = max(1, np.abs(want.advantages).max())  # "maxrl" divides by means, which may be small
    assert_eq(lazy.advantages, want.advantages, **SYNC, rtol=0, atol=1e-12 * largest)
    keys, state = lazy.stats.compute(**SYNC)
    assert keys.tolist() == want.keys.tolist()
    np.testing.assert_array_equal(state[:, 0], want.count)
    np.testing.assert_allclose(state[:, 1], np.where(want.count > 0, want.mean, 0), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize("size", [1, 3, 8, 30, 120])
@pytest.mark.parametrize("chunk", [5, 7, 120])
def test_groups_of_one_size(options, size, chunk):
    rewards = RNG.standard_normal(120)
    rewards[RNG.random(120) < 0.1] = np.nan
    rewards[:3] = 1.0
    check(nd.group_advantages(da.from_array(rewards, chunks=chunk), size, **options), rewards, size, options)


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize("kind", [int, str, "object"])
def test_groups_by_their_ids(options, kind):
    rewards = RNG.standard_normal(90)
    ids = RNG.integers(0, 12, 90)
    ids = np.array([(int(i),) for i in ids] + [None], object)[:-1] if kind == "object" else ids.astype(kind)
    lazy = da.from_array(rewards, chunks=13)
    check(nd.group_advantages(lazy, ids, **options), rewards, ids, options)
    if kind is int:
        check(nd.group_advantages(lazy, da.from_array(ids, chunks=13), **options), rewards, ids, options)


def test_ids_in_a_list():
    rewards = RNG.standard_normal(12)
    for ids in (
        [("a", i % 3) for i in range(12)],
        [str(i % 3) for i in range(12)],
        [i % 3 for i in range(12)],
    ):
        got = nd.group_advantages(da.from_array(rewards, chunks=5), ids)
        check(got, rewards, ids, {})


def test_only_neighbours_wait_for_one_another():
    lazy = nd.group_advantages(da.ones(60, chunks=8), 12).advantages
    needed = lazy.blocks[0].__dask_graph__().cull({(lazy.blocks[0].name, 0)})
    read = {key for key in needed if str(key[0]).startswith("ones")}
    assert len(read) == 2


def test_statistics_of_more_samples_than_are_at_hand():
    rewards = RNG.standard_normal(40).astype(np.float32)
    stats = nk.group_stats(rewards, 8)
    some = da.from_array(rewards[:20], chunks=6)
    want = nk.advantages_from_stats(rewards[:20], np.arange(20) // 8, stats, preset="rloo").advantages
    got = nd.advantages_from_stats(some, np.arange(20) // 8, stats, preset="rloo")
    assert_eq(got, want, **SYNC, rtol=0, atol=0)
    unknown = nd.advantages_from_stats(some, np.arange(20), stats)
    with pytest.raises(ValueError, match="not among the keys"):
        unknown.compute(**SYNC)


SAMPLES = da.zeros((4, 6), chunks=(2, 3))
WHOLE = da.zeros((4, 6), chunks=(2, 6))
REWARDS = da.zeros(6, chunks=2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: nd.sign_step(SAMPLES, SAMPLES, 1.0),
            ValueError,
            r"sign_step: x has 2 chunks along axis 1.*x.rechunk\(\{1: -1\}\)",
        ),
        (lambda: nd.sign_step(WHOLE, SAMPLES, 1.0), ValueError, r"grad has chunks .*grad.rechunk"),
        (lambda: nd.sign_step(WHOLE, np.zeros((4, 5)), 1.0), ValueError, r"grad has shape \(4, 5\)"),
        (lambda: nd.sign_step(WHOLE, WHOLE, -1.0), ValueError, "eps is -1.0"),
        (lambda: nd.sign_step(WHOLE, WHOLE, [1.0, 1, 1, -2]), ValueError, "eps holds -2"),
        (lambda: nd.sign_step(WHOLE, WHOLE, np.ones(5)), ValueError, "does not broadcast"),
        (lambda: nd.sign_step(WHOLE, WHOLE.astype("f4"), 1.0), TypeError, "grad"),
        (lambda: nd.project(WHOLE, WHOLE, 1.0, norm=3), ValueError, "norm is 3"),
        (lambda: nd.project(REWARDS, REWARDS, 1.0, norm=2), ValueError, "expected samples"),
        (lambda: nd.pgd_step(WHOLE, WHOLE, WHOLE, 1.0, 1.0, bounds=(1, 0)), ValueError, "not in order"),
        (lambda: nd.pgd_step(WHOLE, WHOLE, WHOLE, 1.0, 1.0, mask=np.ones(6)), TypeError, "mask has dtype"),
        (lambda: nd.random_in_ball(WHOLE, 1.0, rng=1.5), TypeError, "rng is 1.5"),
        (lambda: nd.random_in_ball(WHOLE, np.inf, rng=1), ValueError, "infinite"),
        (lambda: nd.group_stats(WHOLE, 2), ValueError, r"rewards has shape \(4, 6\)"),
        (lambda: nd.group_advantages(REWARDS, 4), ValueError, "divides the 6 rewards"),
        (lambda: nd.group_advantages(REWARDS, [0, 1]), ValueError, r"groups has shape \(2,\)"),
        (
            lambda: nd.group_advantages(REWARDS, da.zeros(6, chunks=3, dtype=int)),
            ValueError,
            "groups.rechunk",
        ),
        (lambda: nd.group_advantages(REWARDS, REWARDS), TypeError, "groups has dtype float64"),
        (lambda: nd.group_advantages(REWARDS, 2, preset="gdpo"), ValueError, "needs all rewards"),
        (lambda: nd.group_advantages(REWARDS, 2, ddof=3), ValueError, "ddof is 3"),
        (lambda: nd.advantages_from_stats(REWARDS, 2, 3), TypeError, "expected \\(keys, state\\)"),
    ],
)
def test_errors_come_at_once_and_say_what_to_do(call, error, words):
    with pytest.raises(error, match=words):
        call()
