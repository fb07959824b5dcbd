"""The specification of steps and projections against what they mean: optimality, and independent computations."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from npkernels import reference
from npkernels.reference import _philox

perturb = reference.perturb
INF = np.inf


def size(x, norm):
    flat = np.abs(x.reshape(len(x), -1))
    return flat.max(axis=1) if norm == "inf" else (flat**norm).sum(axis=1) ** (1 / norm)


def l1_oracle(d, eps, room):
    """The nearest point of the L1 ball in the box by bisection of the threshold, in longdouble."""
    a = np.abs(d).astype(np.longdouble)
    low, high = np.longdouble(0), a.max()
    if np.minimum(a, room).sum() <= eps:
        return np.sign(d) * np.minimum(a, room)
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if np.minimum(np.maximum(a - t, 0), room).sum() > eps else (low, t)
    return np.sign(d) * np.minimum(np.maximum(a - high, 0), room)


@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_no_step_of_the_same_length_gains_more(norm):
    rng = np.random.default_rng(0)
    g = rng.standard_normal((6, 9))
    step = perturb.steepest_step(np.zeros_like(g), g, 1.5, norm=norm)
    np.testing.assert_allclose(size(step, norm), 1.5)
    dual = {"inf": 1, 2: 2, 1: "inf"}[norm]
    gain = (g * step).sum(axis=1)
    np.testing.assert_allclose(gain, 1.5 * size(g, dual))
    for _ in range(200):
        other = rng.standard_normal(g.shape)
        other *= 1.5 / size(other, norm)[:, None]
        assert (gain >= (g * other).sum(axis=1)).all()
    down = perturb.steepest_step(np.zeros_like(g), g, 1.5, norm=norm, targeted=True)
    assert np.array_equal(down, -step)


def test_known_gains():
    g = np.array([[1.0, -2.0]])
    assert (g * perturb.steepest_step(0 * g, g, 1)).sum() == 3
    assert (g * perturb.steepest_step(0 * g, g, 1, norm=1)).sum() == 2


def test_ties_share():
    g = np.array([[2.0, -2.0, 1.0, 2.0]])
    np.testing.assert_allclose(perturb.steepest_step(0 * g, g, 3, norm=1), [[1, -1, 0, 1]])


@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_gradients_without_a_direction(norm):
    x = np.ones((4, 3))
    g = np.array([[0.0, 0, 0], [np.nan] * 3, [np.nan, 1, 0], [INF, -INF, 5]])
    y, nans = perturb.steepest_step(x, g, 1, norm=norm, return_nan_count=True)
    assert nans == 4
    assert np.array_equal(y[:2], x[:2])
    np.testing.assert_allclose(y[2], [1, 2, 1])
    share = {"inf": 1, 2: 0.5**0.5, 1: 0.5}[norm]
    np.testing.assert_allclose(y[3], [1 + share, 1 - share, 2 if norm == "inf" else 1])


@pytest.mark.parametrize("norm", ["inf", 2, 1])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dim", [1, 2, 17, 300])
def test_projections_are_projections(norm, scale, dim):
    """Nearest: <x - y, z - y> <= 0 for every z of the ball (Hilbert)."""
    rng = np.random.default_rng(dim)
    x, c = scale * rng.standard_normal((2, 8, dim))
    eps = scale * np.array([0, 1e-3, 0.1, 0.5, 1, 2, 1e3, INF])
    y = perturb.project(x, c, eps, norm=norm)
    assert (size(y - c, norm) <= eps * (1 + 1e-12) + 1e-15 * scale).all()
    np.testing.assert_allclose(perturb.project(y, c, eps, norm=norm), y, rtol=1e-12, atol=1e-14 * scale)
    inside = size(x - c, norm) <= eps
    assert np.array_equal(y[inside], x[inside])
    for _ in range(50):
        z = rng.standard_normal(x.shape)
        z = c + z * np.minimum(eps, 10 * scale)[:, None] / size(z, norm)[:, None]
        assert (((x - y) * (z - y)).sum(axis=1) <= 1e-12 * scale**2 * dim).all()


def test_non_expansive():
    rng = np.random.default_rng(1)
    a, b, c = rng.standard_normal((3, 200, 11))
    for norm in ("inf", 2, 1):
        pa, pb = (perturb.project(v, c, 1.3, norm=norm) for v in (a, b))
        assert (size(pa - pb, 2) <= size(a - b, 2) * (1 + 1e-12)).all()


def test_l1_against_bisection():
    rng = np.random.default_rng(2)
    for dim in (1, 2, 5, 40, 1000):
        x, c = rng.standard_normal((2, 6, dim))
        x[0] = c[0] + 1  # ties
        for eps in (0, 0.01, 1, 10.0):
            y = perturb.project(x, c, eps, norm=1)
            for b in range(6):
                want = c[b] + l1_oracle(x[b] - c[b], eps, np.full(dim, INF))
                np.testing.assert_allclose(y[b], want.astype(float), rtol=1e-10, atol=1e-10)


def test_l1_in_a_box_against_bisection_and_a_convex_solver():
    rng = np.random.default_rng(3)
    for dim in (1, 2, 6):
        c = rng.random((8, dim))
        x = c + rng.standard_normal(c.shape)
        for eps in (0.05, 0.3, 1.0):
            y = perturb.project(x, c, eps, norm=1, bounds=(0, 1))
            for b in range(8):
                room = np.where(x[b] > c[b], 1 - c[b], c[b])
                want = c[b] + l1_oracle(x[b] - c[b], eps, room)
                np.testing.assert_allclose(y[b], want.astype(float), atol=1e-12)
                solved = solve(x[b], c[b], eps)
                assert ((y[b] - x[b]) ** 2).sum() <= ((solved - x[b]) ** 2).sum() + 1e-7
                np.testing.assert_allclose(y[b], solved, atol=2e-3)


def solve(x, c, eps):
    """min |y - x|^2 with |y - c|_1 <= eps and 0 <= y <= 1; y - c = p - n with p, n >= 0."""
    d = len(x)

    def objective(v):
        r = c + v[:d] - v[d:] - x
        return (r @ r, np.concatenate([2 * r, -2 * r]))

    done = scipy.optimize.minimize(
        objective,
        np.zeros(2 * d),
        jac=True,
        bounds=[(0, 1 - ci) for ci in c] + [(0, ci) for ci in c],
        constraints={"type": "ineq", "fun": lambda v: eps - v.sum(), "jac": lambda v: -np.ones(2 * d)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 300},
    )
    return c + done.x[:d] - done.x[d:]


def test_momentum_scales_to_one():
    rng = np.random.default_rng(4)
    v, g = rng.standard_normal((2, 5, 7))
    np.testing.assert_allclose(size(perturb.momentum(0 * v, g), 1), 1)
    np.testing.assert_allclose(perturb.momentum(v, g, decay=0.5), 0.5 * v + g / size(g, 1)[:, None])
    assert np.array_equal(perturb.momentum(v, 0 * g, decay=2), 2 * v)
    tiny = perturb.momentum(0 * v, 1e-320 * np.ones_like(g))
    np.testing.assert_allclose(tiny, 1 / 7, rtol=1e-3)


def test_pgd_step_is_its_parts():
    rng = np.random.default_rng(5)
    x, c, g = rng.random((3, 4, 10))
    for norm in ("inf", 2, 1):
        parts = perturb.project(perturb.steepest_step(x, g, 0.4, norm=norm), c, 0.3, norm=norm, bounds=(0, 1))
        got = perturb.pgd_step(x, c, g, 0.4, 0.3, norm=norm, bounds=(0, 1))
        np.testing.assert_allclose(got, parts, atol=1e-15)
        velocity = rng.standard_normal(x.shape)
        followed = perturb.momentum(velocity, g, decay=0.7)
        got = perturb.pgd_step(x, c, g, 0.4, 0.3, norm=norm, momentum=velocity, decay=0.7)
        np.testing.assert_allclose(got, perturb.pgd_step(x, c, followed, 0.4, 0.3, norm=norm), atol=1e-15)


# --- random points


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, answer):
    """Those of the authors' own distribution (Random123, kat_vectors)."""
    pair, sample = (np.array([counter[i] | counter[i + 1] << 32], np.uint64) for i in (0, 2))
    first, second = _philox.philox(pair, sample, key[0] | key[1] << 32)
    words = [int(w[0]) for w in (first, second)]
    assert [part for w in words for part in (w & 0xFFFFFFFF, w >> 32)] == answer


@pytest.mark.parametrize("norm", ["inf", 2, 1])
@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_points_are_uniform_in_the_ball(norm, dim):
    """The radius is U^(1/d), and a coordinate's law does not depend on which, nor on its sign."""
    y = perturb.random_in_ball(np.zeros((4000, dim), np.float32), 2.0, norm=norm, rng=5)
    r = size(y, norm) / 2
    assert r.max() < 1
    assert scipy.stats.kstest(r**dim, "uniform").pvalue > 1e-3
    assert scipy.stats.ks_2samp(y[:, 0], -y[:, -1]).pvalue > 1e-3
    if norm == 2 and dim > 1:  # a coordinate of a ball: Beta((d+1)/2, (d+1)/2) on (-1, 1)
        law = scipy.stats.beta((dim + 1) / 2, (dim + 1) / 2, loc=-2, scale=4)
        assert scipy.stats.kstest(y[:, 0], law.cdf).pvalue > 1e-3
    if norm == 1:  # |y_1| / eps of the L1 ball: Beta(1, d)
        assert scipy.stats.kstest(np.abs(y[:, 0]) / 2, scipy.stats.beta(1, dim).cdf).pvalue > 1e-3


def test_a_sample_has_its_numbers_whatever_else_is_drawn():
    few, many = (perturb.random_in_ball(np.zeros((n, 7)), 1.0, norm=2, rng=3) for n in (2, 50))
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(few, perturb.random_in_ball(np.zeros((2, 7)), 1.0, norm=2, rng=4))
    a, b = np.random.default_rng(0), np.random.default_rng(0)
    one = [perturb.random_in_ball(np.zeros((2, 3)), 1, rng=a) for _ in range(2)]
    other = [perturb.random_in_ball(np.zeros((2, 3)), 1, rng=b) for _ in range(2)]
    assert np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])
