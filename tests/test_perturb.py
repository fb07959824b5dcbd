"""Steps and projections: what they mean, any layout and option, what stays bit for bit."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

import npkernels
from npkernels import perturb, reference
from test_reference_perturb import l1_oracle, size

INF, NAN = np.inf, np.nan
ISAS = npkernels.available_isas()
FLOATS = [np.float32, np.float64]


@pytest.fixture(params=ISAS)
def isa(request):
    with npkernels.use_isa(request.param):
        yield request.param


# --- bit for bit what NumPy gives


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 7, 8, 17, 784, 1031])
def test_sign_step_has_the_bits_of_numpy(isa, dtype, n):
    rng = np.random.default_rng(n)
    x, g = rng.random((5, n)).astype(dtype), rng.standard_normal((5, n)).astype(dtype)
    g[:, ::5] = 0
    want = np.clip(x + dtype(0.03) * np.sign(g), dtype(0), dtype(1))
    assert np.array_equal(perturb.sign_step(x, g, 0.03, bounds=(0, 1)), want)
    out = x.copy()
    assert perturb.sign_step(out, g, 0.03, bounds=(0, 1), out=out) is out
    assert np.array_equal(out, want)
    down = perturb.sign_step(x, g, 0.03, bounds=(0, 1), targeted=True)
    assert np.array_equal(down, perturb.sign_step(x, -g, 0.03, bounds=(0, 1)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(3, 1), (4, 33), (2, 3, 32, 32), (1, 2_300_000)])
def test_one_pass_has_the_bits_of_step_then_clamp(isa, dtype, shape):
    rng = np.random.default_rng(0)
    c = rng.random(shape).astype(dtype)
    x = np.clip(c + 0.04 * rng.standard_normal(shape), 0, 1).astype(dtype)
    g = rng.standard_normal(shape).astype(dtype)
    step, eps = dtype(0.01), dtype(0.03)
    want = x + step * np.sign(g)
    want = np.minimum(np.maximum(want, np.maximum(dtype(0), c - eps)), np.minimum(dtype(1), c + eps))
    assert np.array_equal(perturb.pgd_step(x, c, g, step, eps, bounds=(0, 1)), want)
    perturb.pgd_step(x, c, g, step, eps, bounds=(0, 1), out=x)
    assert np.array_equal(x, want)


# --- projections


@pytest.mark.parametrize("dim", [1, 2, 3, 31, 1000, 50_001, 1_000_000])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_l1_satisfies_the_optimality_conditions(isa, dim, scale):
    """In float64: a threshold that all nonzero entries share, within 1e-10, and the radius is met."""
    if dim == 1_000_000 and scale != 1:
        return
    rng = np.random.default_rng(dim)
    x, c = scale * rng.standard_normal((2, 2, dim))
    c[1] = 0
    for eps in (0.01 * scale, 0.3 * scale, 0.2 * scale * dim):
        y = perturb.project(x, c, eps, norm=1)
        for b in range(2):
            d, p = x[b] - c[b], y[b] - c[b]
            if np.abs(d).sum() <= eps:
                assert np.array_equal(y[b], x[b])
                continue
            moved = d - p
            kept = np.abs(p) > 1e-12 * scale
            t = np.median((np.abs(d) - np.abs(p))[kept])
            np.testing.assert_allclose(np.abs(moved[kept]), t, rtol=1e-10, atol=2e-15 * scale)
            assert (np.abs(moved[~kept]) <= t * (1 + 1e-10) + 2e-15 * scale).all()
            assert (p * d >= 0).all()
            np.testing.assert_allclose(np.abs(p).sum(), eps, rtol=1e-10, atol=1e-16 * scale * dim)


def test_l1_in_a_box_satisfies_the_optimality_conditions(isa):
    rng = np.random.default_rng(0)
    for dim in (1, 2, 5, 64, 3072):
        c = rng.random((6, dim))
        x = c + rng.standard_normal((6, dim))
        for eps in (0.02, 0.9, 0.2 * dim):
            y = perturb.project(x, c, eps, norm=1, bounds=(0, 1))
            assert ((y >= 0) & (y <= 1)).all()
            for b in range(6):
                want = c[b] + l1_oracle(x[b] - c[b], eps, np.where(x[b] > c[b], 1 - c[b], c[b]))
                np.testing.assert_allclose(y[b], want.astype(float), atol=1e-12)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_projections_stay_in_the_ball_and_settle(isa, dtype, norm):
    rng = np.random.default_rng(1)
    eps_of = np.finfo(dtype).eps
    for dim in (1, 2, 9, 100, 5000):
        x, c = rng.standard_normal((2, 7, dim)).astype(dtype)
        radius = np.array([0, 1e-3, 0.5, 1, 3, 1e6, INF])
        y = perturb.project(x, c, radius, norm=norm)
        rounding = 4 * eps_of * size(np.abs(c) + np.abs(y), norm)
        assert (size(np.float64(y) - c, norm) <= radius * (1 + 8 * eps_of) + rounding).all()
        assert np.array_equal(y[0], c[0])
        assert np.array_equal(y[-1], x[-1])
        again = perturb.project(y, c, radius, norm=norm)
        np.testing.assert_allclose(again, y, rtol=4 * eps_of, atol=8 * eps_of)
        z = rng.standard_normal(x.shape).astype(dtype)
        closer = size(np.float64(perturb.project(z, c, radius, norm=norm)) - y, 2)
        assert (closer <= size(np.float64(z) - x, 2) * (1 + 1e-5) + rounding * dim**0.5).all()


@pytest.mark.parametrize("norm", [2, 1])
def test_norms_of_any_size(isa, norm):
    """What cannot be squared, or summed, is measured all the same."""
    for dtype, top, least in ((np.float32, 3e38, 1e-45), (np.float64, 1.7e308, 5e-324)):
        for value in (top, least * 1000):
            x = np.full((1, 4096), value, dtype)
            x[0, ::2] *= -1
            eps = np.float64(value) / 4
            y = np.float64(perturb.project(x, 0 * x, eps, norm=norm))
            entry = eps / (64 if norm == 2 else 4096)
            np.testing.assert_allclose(np.abs(y), entry, rtol=1e-3, atol=float(np.spacing(dtype(0))))
            step = perturb.steepest_step(0 * x, x, 1.0, norm=norm)
            np.testing.assert_allclose(np.abs(step), 1 / (64 if norm == 2 else 4096), rtol=1e-6)
            np.testing.assert_allclose(np.abs(perturb.momentum(0 * x, x)), 1 / 4096, rtol=1e-6)


def test_a_small_part_of_large_distances_keeps_its_digits(isa):
    """The radius is met although the threshold has no room for its digits in float32."""
    rng = np.random.default_rng(2)
    x = (1000 + 0.01 * rng.standard_normal((4, 3000))).astype(np.float32)
    y = perturb.project(x, 0 * x, 1e-2, norm=1)
    np.testing.assert_allclose(np.abs(np.float64(y)).sum(axis=1), 1e-2, rtol=1e-5)


def test_ties_and_zeros(isa):
    x = np.array([[1.0, -1, 1, -1], [0, 0, 0, 0]])
    np.testing.assert_allclose(perturb.project(x, 0 * x, 2, norm=1), x / 2)
    np.testing.assert_allclose(perturb.steepest_step(0 * x, x, 2, norm=1), x / 2)
    for norm in ("inf", 2, 1):
        assert np.array_equal(perturb.steepest_step(x, 0 * x, 3, norm=norm), x)
        assert np.array_equal(perturb.project(x, x, 0, norm=norm), x)


@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_bounds_that_do_not_hold_zero(isa, norm):
    """What stands beyond the end of a row is no entry outside the bounds, nor one with room."""
    rng = np.random.default_rng(3)
    for dtype in (np.float32, np.float64, np.float16):
        for n in (1, 3, 7, 9, 17, 33):
            c = (0.5 + 0.1 * rng.random((3, n))).astype(dtype)
            x = (c + 0.2 * rng.standard_normal((3, n))).astype(dtype)
            for bounds in ((0.4, 0.7), (np.full(n, 0.4), np.full((3, n), 0.7))):
                y = perturb.project(x, c, 0.2, norm=norm, bounds=bounds)
                want = reference.perturb.project(x, c, 0.2, norm=norm, bounds=bounds)
                np.testing.assert_allclose(
                    np.float64(y), np.float64(want), atol=4 * float(np.finfo(dtype).eps)
                )
                perturb.random_in_ball(c, 0.1, norm=norm, rng=1, bounds=bounds)


# --- layouts, options, NaN


@st.composite
def views(draw):
    """Three arrays of one shape, seen through steps, reversed axes, transposition, each by itself."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16]))
    order = draw(st.permutations(range(len(shape))))

    def one():
        x = rng.random([2 * shape[a] for a in order])
        x = x[tuple(slice(None, None, draw(st.sampled_from([2, -2]))) for _ in shape)]
        x = x.transpose(np.argsort(order)).astype(dtype, order=draw(st.sampled_from("KC")))
        return np.broadcast_to(x[:1], x.shape) if draw(st.booleans()) else x

    return one(), one(), one()


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(views(), st.data())
def test_any_view_norm_and_option(arrays, data):
    x, c, g = arrays
    norm = data.draw(st.sampled_from(["inf", 2, 1]))
    shape = st.sampled_from([x.shape, x.shape[1:], (1, *x.shape[1:]), x.shape[:1] + (1,) * (x.ndim - 1)])
    mask = data.draw(st.none() | shape.flatmap(lambda s: hnp.arrays(bool, s)))
    options = {"norm": norm, "mask": mask, "bounds": data.draw(st.sampled_from([None, (0, 1), (0.0, INF)]))}
    eps = data.draw(st.sampled_from([0, 0.3, np.linspace(0, 1, len(x))]))
    targeted = data.draw(st.booleans())
    before = [a.copy() for a in arrays]
    results = [
        ("project", (x, c, eps), {}),
        ("steepest_step", (x, g - np.float16(0.5), 0.4), {"targeted": targeted}),
        ("pgd_step", (x, c, g - np.float16(0.5), 0.4, eps), {"targeted": targeted}),
    ]
    for name, args, more in results:
        got = getattr(perturb, name)(*args, **options, **more)
        want = getattr(reference.perturb, name)(*args, **options, **more)
        tolerance = 20 * float(np.finfo(x.dtype).eps)
        np.testing.assert_allclose(np.float64(got), np.float64(want), atol=tolerance, err_msg=name)
        out = np.full((*x.shape[:-1], 2 * x.shape[-1]), 7, x.dtype)[..., ::2]
        assert getattr(perturb, name)(*args, **options, **more, out=out) is out
        assert np.array_equal(out, got)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_nan_gradients_move_nothing_and_are_counted(isa, dtype):
    rng = np.random.default_rng(0)
    for n in (1, 17, 1030):
        x, g = rng.random((4, n)).astype(dtype), rng.standard_normal((4, n)).astype(dtype)
        g[1], g[2, n // 2] = NAN, NAN
        mask = rng.random((4, n)) < 0.5
        for norm in ("inf", 2, 1):
            y, nans = perturb.steepest_step(x, g, 0.1, norm=norm, return_nan_count=True)
            assert nans == n + 1
            assert np.array_equal(y[np.isnan(g)], x[np.isnan(g)])
            _, some = perturb.pgd_step(x, x, g, 0.1, 1, norm=norm, mask=mask, return_nan_count=True)
            assert some == (np.isnan(g) & mask).sum()


def test_nan_inputs_stay_nan_and_spread_no_further_than_their_sample(isa):
    x = np.zeros((3, 20))
    x[1, 4] = NAN
    c, g = np.zeros((3, 20)), np.ones((3, 20))
    for norm in ("inf", 2, 1):
        for y in (perturb.project(x, c, 1, norm=norm), perturb.pgd_step(x, c, g, 0.1, 1, norm=norm)):
            assert np.isfinite(y[[0, 2]]).all()
            assert np.isnan(y[1]).all() if norm != "inf" else np.isnan(y[1]).sum() == 1
    assert np.isnan(perturb.project(c, x, 1)).sum() == 1


def test_masked_entries_keep_their_bits_and_count_nowhere(isa):
    rng = np.random.default_rng(0)
    x, c, g = rng.standard_normal((3, 6, 40))
    mask = rng.random((6, 40)) < 0.6
    x[~mask] = NAN
    for norm in ("inf", 2, 1):
        y = perturb.pgd_step(x, c, g, 0.3, 0.8, norm=norm, mask=mask, bounds=(-9, 9))
        assert np.isnan(y[~mask]).all()
        for b in range(6):
            m = mask[b]
            alone = [a[b][m][None] for a in (x, c, g)]
            want = perturb.pgd_step(*alone, 0.3, 0.8, norm=norm, bounds=(-9, 9))
            np.testing.assert_allclose(y[b][m][None], want, atol=1e-14)


def test_momentum_is_updated_in_place():
    rng = np.random.default_rng(0)
    x, g = rng.random((2, 3, 11)).astype(np.float32)
    velocity = np.zeros_like(x)
    want = perturb.momentum(velocity, g, decay=0.5)
    y = perturb.pgd_step(x, x, g, 0.1, 0.2, momentum=velocity, decay=0.5)
    assert np.array_equal(velocity, want)
    assert np.array_equal(y, perturb.pgd_step(x, x, want, 0.1, 0.2))
    with pytest.raises(ValueError, match="pgd_step: center lies outside"):
        perturb.pgd_step(x, x, g, 0.1, 0.2, norm=2, momentum=velocity, decay=0.5, bounds=(0, 0.1))
    assert np.array_equal(velocity, want)


# --- random points


@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_points_fill_the_ball_uniformly(isa, norm):
    for dim in (1, 2, 5):
        y = perturb.random_in_ball(np.zeros((20_000, dim), np.float32), 3.0, norm=norm, rng=11)
        r = size(y.astype(np.float64), norm) / 3
        assert scipy.stats.kstest(r**dim, "uniform").pvalue > 1e-3
        assert scipy.stats.kstest(y[:, 0], -y[:, -1]).pvalue > 1e-3


def test_random_points_depend_on_key_sample_and_place_alone(isa):
    a = perturb.random_in_ball(np.zeros((64, 3001)), 1.0, norm=2, rng=5)
    with npkernels.num_threads(1):
        assert np.array_equal(a, perturb.random_in_ball(np.zeros((64, 3001)), 1.0, norm=2, rng=5))
    assert np.array_equal(a[:3], perturb.random_in_ball(np.zeros((3, 3001)), 1.0, norm=2, rng=5))
    assert np.array_equal(
        perturb.random_in_ball(np.zeros((2, 3, 5, 7)), 1.0, norm=1, rng=5).reshape(2, -1),
        perturb.random_in_ball(np.zeros((2, 105)), 1.0, norm=1, rng=5),
    )
    transposed = np.zeros((7, 5, 3, 2)).T
    strided = perturb.random_in_ball(transposed, 1.0, norm=2, rng=5)
    assert np.array_equal(strided, perturb.random_in_ball(np.zeros((2, 3, 5, 7)), 1.0, norm=2, rng=5))
    draws = [perturb.random_in_ball(np.zeros((2, 3)), 1.0, rng=np.random.default_rng(s)) for s in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


# --- other kinds of arrays, checked()


def test_other_arrays_come_back_as_they_are():
    torch = pytest.importorskip("torch")
    x, g = torch.rand(3, 5), torch.randn(3, 5)
    y = perturb.sign_step(x, g, 0.1, bounds=(0, 1))
    assert isinstance(y, torch.Tensor)
    assert torch.equal(y, (x + 0.1 * g.sign()).clamp(0, 1))
    x2 = x.clone()
    assert perturb.sign_step(x2, g, 0.1, bounds=(0, 1), out=x2) is x2
    y, nans = perturb.pgd_step(x, x, g, 0.1, 0.1, norm=1, return_nan_count=True)
    assert isinstance(y, torch.Tensor)
    assert nans == 0
    velocity = torch.zeros_like(x)
    perturb.pgd_step(x, x, g, 0.1, 0.1, momentum=velocity)
    assert velocity.abs().sum().item() == pytest.approx(3, rel=1e-5)


def test_checked_calls_are_compared_with_the_reference(monkeypatch):
    x, g = np.random.default_rng(0).random((2, 3, 7)).astype(np.float32)
    with npkernels.checked():
        perturb.sign_step(x, g, 0.1)
        perturb.pgd_step(x, x, g, 0.1, 0.3, norm=1, momentum=np.zeros_like(x))
        perturb.random_in_ball(x, 1.0, norm=2, rng=np.random.default_rng(0))
        right = npkernels._core.step_quick
        monkeypatch.setattr(npkernels._core, "step_quick", lambda *a: right(*a) + np.float32(1e-3))
        with pytest.raises(npkernels.MismatchError, match="sign_step"):
            perturb.sign_step(x, g, 0.1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0), (0, 1)])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_short_way_of_ordinary_calls_has_the_bits_of_the_long_one(dtype, bounds, targeted):
    x, c, g = np.random.default_rng(0).standard_normal((3, 4, 37)).astype(dtype)
    x, c = np.clip(x, 0, 1), np.clip(c, 0, 1)
    g[1, 5] = np.nan
    options = {"bounds": bounds, "targeted": targeted}
    for call in (
        lambda **more: perturb.sign_step(x, g, 0.1, **options, **more),
        lambda **more: perturb.pgd_step(x, c, g, 0.1, 0.25, **options, **more),
    ):
        long = call(return_nan_count=True)[0]
        out = np.empty_like(x)
        assert call(out=out) is out
        np.testing.assert_array_equal(out, long)
        np.testing.assert_array_equal(call(), long)


def test_what_the_short_way_cannot_do_is_refused_as_before():
    x = np.zeros((2, 6), np.float32)
    with pytest.raises(ValueError, match="sign_step: eps is -1"):
        perturb.sign_step(x, x, -1)
    with pytest.raises(ValueError, match="bounds"):
        perturb.sign_step(x, x, 1.0, bounds=(1, 0))
    both = np.zeros((3, 6), np.float32)
    with pytest.raises(ValueError, match="out overlaps an input"):
        perturb.sign_step(both[:2], x, 1.0, out=both[1:])
    with pytest.raises((TypeError, ValueError), match="grad"):
        perturb.sign_step(x, x.astype(np.float64), 1.0)
    with pytest.raises(TypeError, match="center"):
        perturb.pgd_step(x, None, x, 1.0, 0.5)
    with pytest.raises(TypeError, match="eps"):
        perturb.pgd_step(x, x, x, 1.0, None)


def test_empty_arrays():
    for shape in ((0, 5), (3, 0), (0, 0), (0, 3, 4), (2, 0, 4)):
        x = np.zeros(shape, np.float32)
        for norm in ("inf", 2, 1):
            assert perturb.project(x, x, 1, norm=norm, bounds=(0, 1)).shape == shape
            assert perturb.pgd_step(x, x, x, 1, 1, norm=norm).shape == shape
            assert perturb.random_in_ball(x, 1.0, norm=norm, rng=0).shape == shape
        assert perturb.sign_step(x, x, np.ones(shape[0])).shape == shape
        assert perturb.momentum(x, x).shape == shape


@pytest.mark.parametrize("dtype", FLOATS)
def test_lengths_whose_ratio_is_beyond_the_dtype(isa, dtype):
    """Each number is a normal one; only the factor from one to the other is not."""
    large, small = (1e30, 1e-10) if dtype == np.float32 else (1e200, 1e-200)
    zero = np.zeros((1, 2), dtype)
    side = dtype(np.sqrt(0.5))
    got = perturb.project(np.full((1, 2), large, dtype), zero, small, norm=2)
    np.testing.assert_allclose(got / dtype(small), [[side, side]], rtol=4e-7)
    for top, length in ((small, large), (large, small)):
        got = perturb.steepest_step(zero, np.full((1, 2), top, dtype), length, norm=2)
        np.testing.assert_allclose(got / dtype(length), [[side, side]], rtol=4e-7)
