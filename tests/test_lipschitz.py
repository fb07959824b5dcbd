"""Bounds against what they bound: singular values, dense Jacobians, brute force, functions whose constant is known."""

import itertools

import numpy as np
import pytest
import scipy.stats

import npkernels as nk
from npkernels import lipschitz, perturb, reference
from npkernels.lipschitz._weibull import fit_maxima

Bound = lipschitz.Bound


def test_bound_is_a_number():
    assert float(Bound(3.0, "upper")) == 3.0
    assert float(Bound(np.array([1.0, 4.0]), "lower")) == 4.0


# --- spectral norms


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (20, 30), (200, 64)])
def test_spectral_norm_of_matrices(shape):
    a = np.random.default_rng(0).standard_normal(shape)
    want = reference.lipschitz.spectral_norm(a)
    exact = lipschitz.spectral_norm(a)
    assert exact.kind == "upper"
    assert float(exact) == pytest.approx(want, rel=1e-12)
    np.testing.assert_allclose(np.linalg.norm(a @ exact.direction), want, rtol=1e-12)
    pair = lipschitz.spectral_norm((lambda v: a @ v, lambda u: a.T @ u), shape=shape[1:], tol=1e-8)
    assert pair.kind == "lower"
    assert float(pair) == pytest.approx(want, rel=1e-10)
    assert pair.residual <= 1e-8
    np.testing.assert_allclose(np.linalg.norm(a @ pair.direction), want, rtol=1e-10)


def test_an_iteration_that_stops_early_says_so():
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.standard_normal((300, 300)))[0] for _ in range(2))
    a = u @ np.diag(np.linspace(0.9, 1, 300)) @ v
    early = lipschitz.spectral_norm((lambda x: a @ x, lambda y: a.T @ y), shape=(300,), max_iter=3)
    assert early.residual > 1e-3
    assert float(early) <= 1 + 1e-12
    late = lipschitz.spectral_norm(
        (lambda x: a @ x, lambda y: a.T @ y), shape=(300,), max_iter=2000, tol=1e-5
    )
    assert late.residual <= 1e-5
    assert float(late) == pytest.approx(1, rel=1e-6)
    assert late.details["iterations"] < 2000


@pytest.mark.parametrize(
    ("kernel", "shape", "stride", "padding"),
    [
        ((3, 2, 3), (11,), 1, 1),
        ((4, 3, 3, 3), (6, 7), 1, 1),
        ((2, 1, 2, 3), (7, 6), 2, 0),
        ((1, 2, 2, 2, 2), (3, 4, 3), 1, 1),
        ((5, 4, 1, 1), (4, 4), 3, 2),
    ],
)
def test_spectral_norm_of_convolutions(kernel, shape, stride, padding):
    k = np.random.default_rng(2).standard_normal(kernel)
    matrix = reference.lipschitz.convolution_matrix(k, shape, stride, padding)
    b = lipschitz.spectral_norm(k, shape=shape, stride=stride, padding=padding, tol=1e-8)
    assert float(b) == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-10)
    np.testing.assert_allclose(np.linalg.norm(matrix @ b.direction.reshape(-1)), float(b), rtol=1e-9)


def test_convolution_is_that_of_torch():
    torch = pytest.importorskip("torch")
    k = np.random.default_rng(3).standard_normal((4, 3, 3, 3))
    x = np.random.default_rng(4).standard_normal((1, 3, 9, 8))
    matrix = reference.lipschitz.convolution_matrix(k, (9, 8), 2, 1)
    want = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(k), stride=2, padding=1)
    np.testing.assert_allclose(matrix @ x.reshape(-1), want.numpy().reshape(-1), atol=1e-12)


def test_zero_and_nan_maps():
    zero = lipschitz.spectral_norm((lambda v: 0 * v, lambda u: 0 * u), shape=(4,))
    assert float(zero) == 0
    assert zero.residual == 0
    assert np.isnan(float(lipschitz.spectral_norm((lambda v: v * np.nan, lambda u: u), shape=(4,))))
    assert float(lipschitz.spectral_norm(np.zeros((3, 3)))) == 0


# --- operator norms and products


@pytest.mark.parametrize("p", ["inf", 2, 1])
@pytest.mark.parametrize("q", ["inf", 2, 1])
def test_operator_norms_against_all_corners(p, q):
    rng = np.random.default_rng(5)
    order = {"inf": np.inf, 2: 2, 1: 1}
    for shape in ((1, 1), (3, 4), (6, 5), (8, 8)):
        w = rng.standard_normal(shape)
        want = reference.lipschitz.operator_norm(w, p, q)
        b = lipschitz.operator_norm(w, p, q)
        hard = (p, q) in (("inf", 2), ("inf", 1), (2, 1))
        assert b.kind == ("lower" if hard else "upper")
        assert float(b) == pytest.approx(want, rel=1e-10)  # so small that the ascents find it
        assert np.linalg.norm(b.direction, order[p]) == pytest.approx(1)
        assert np.linalg.norm(w @ b.direction, order[q]) == pytest.approx(float(b), rel=1e-10)


def test_the_product_bounds_the_composition():
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((5, 4)), rng.standard_normal((3, 5))
    for norm in ("inf", 2, 1):
        bound = lipschitz.product_bound([a, 1.0, b], norm=norm)
        assert bound.kind == "upper"
        assert float(bound) >= float(lipschitz.operator_norm(b @ a, norm, norm)) - 1e-12
    assert float(lipschitz.product_bound([Bound(2.0, "upper"), 3])) == 6
    assert float(lipschitz.product_bound([])) == 1
    for bad, error in (
        (Bound(1.0, "lower"), ValueError),
        (-1, ValueError),
        (np.ones(3), ValueError),
        ("x", TypeError),
    ):
        with pytest.raises(error, match=r"product_bound: layers\[0\]"):
            lipschitz.product_bound([bad])


# --- Jacobians


def mlp(rng, sizes=(6, 20, 4)):
    w1, w2 = (rng.standard_normal((a, b)) for a, b in itertools.pairwise(sizes))

    def f(x):
        return np.tanh(x @ w1) @ w2

    def jvp(x, dx):
        return ((1 - np.tanh(x @ w1) ** 2) * (dx @ w1)) @ w2

    def vjp(x, dy):
        return ((1 - np.tanh(x @ w1) ** 2) * (dy @ w2.T)) @ w1.T

    return f, jvp, vjp


def test_jacobian_norm_against_the_dense_jacobian():
    rng = np.random.default_rng(7)
    f, jvp, vjp = mlp(rng)
    for _ in range(3):
        x = rng.standard_normal(6)
        jacobian = reference.lipschitz.jacobian_matrix(f, x)
        b = lipschitz.jacobian_norm(x, jvp, vjp)
        assert float(b) == pytest.approx(np.linalg.norm(jacobian, 2), rel=1e-7)
        basis = np.linalg.qr(rng.standard_normal((6, 2)))[0].T
        inside = lipschitz.jacobian_norm(x, jvp, vjp, subspace=basis)
        assert float(inside) == pytest.approx(np.linalg.norm(jacobian @ basis.T, 2), rel=1e-7)
        np.testing.assert_allclose(lipschitz.split(inside.direction, basis)[1], 0, atol=1e-12)
        assert float(inside) <= float(b) + 1e-9


def test_the_softmax_is_a_contraction_by_half():
    rng = np.random.default_rng(8)
    for _ in range(5):
        x = 3 * rng.standard_normal(9)
        b = lipschitz.jacobian_norm(
            x, lambda x, d: nk.softmax_jvp(x, d)[1], lambda x, d: nk.softmax_vjp(d, nk.softmax(x))
        )
        p = nk.softmax(x)
        assert float(b) == pytest.approx(np.linalg.norm(np.diag(p) - np.outer(p, p), 2), rel=1e-8)
        assert float(b) <= 0.5


@pytest.mark.parametrize("wrt", ["q", "k", "v", "kv", "qkv"])
@pytest.mark.parametrize("options", [{}, {"causal": True, "scale": 0.7}])
def test_attention_jacobian_norm_against_the_dense_jacobian(wrt, options):
    q, k, v = np.random.default_rng(19).standard_normal((3, 1, 2, 4, 3))

    def f(flat):
        pieces = dict(zip(wrt, np.split(flat, len(wrt)), strict=True))
        inputs = {"q": q, "k": k, "v": v} | {letter: p.reshape(q.shape) for letter, p in pieces.items()}
        return nk.attention(**inputs, **options)

    at = np.concatenate([{"q": q, "k": k, "v": v}[letter].reshape(-1) for letter in wrt])
    jacobian = reference.lipschitz.jacobian_matrix(f, at)
    b = lipschitz.attention_jacobian_norm(q, k, v, wrt=wrt, tol=1e-8, **options)
    assert float(b) == pytest.approx(np.linalg.norm(jacobian, 2), rel=1e-7)
    direction = (
        b.direction if len(wrt) == 1 else np.concatenate([b.direction[letter].reshape(-1) for letter in wrt])
    )
    assert np.linalg.norm(jacobian @ direction.reshape(-1)) == pytest.approx(float(b), rel=1e-6)


def test_attention_jacobian_norm_of_a_layer():
    rng = np.random.default_rng(20)
    w = rng.standard_normal((3, 5, 5))
    x = rng.standard_normal((4, 5))
    into = lambda d: [(d @ m)[None, None] for m in w]  # noqa: E731
    back = lambda dq, dk, dv: sum(d[0, 0] @ m.T for d, m in zip((dq, dk, dv), w, strict=True))  # noqa: E731
    jacobian = reference.lipschitz.jacobian_matrix(lambda z: nk.attention(*into(z), causal="top_left"), x)
    b = lipschitz.attention_jacobian_norm(
        *into(x), layer=(into, back), shape=x.shape, tol=1e-8, causal="top_left"
    )
    assert float(b) == pytest.approx(np.linalg.norm(jacobian, 2), rel=1e-7)
    assert b.direction.shape == x.shape


def test_attention_jacobian_norm_refuses():
    q = np.ones((1, 1, 2, 3))
    for options in (
        {"wrt": "x"},
        {"wrt": ""},
        {"wrt": "qq"},
        {"shape": (3,)},
        {"wrt": "q", "layer": (1, 2), "shape": (3,)},
    ):
        with pytest.raises(ValueError, match=r"attention_jacobian_norm: (wrt|layer)"):
            lipschitz.attention_jacobian_norm(q, q, q, **options)


# --- local estimates


@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_secants_of_a_linear_map(norm):
    rng = np.random.default_rng(9)
    w = rng.standard_normal((8, 3))
    x = rng.standard_normal((5, 8))
    top = float(lipschitz.operator_norm(w.T, norm, 2))
    for directions in ("gaussian", "sign", rng.standard_normal((50, 8))):
        b = lipschitz.local_lipschitz(lambda z: z @ w, x, 0.1, n=50, norm=norm, directions=directions)
        assert b.kind == "lower"
        assert b.value.shape == (5,)
        assert (b.value <= top * (1 + 1e-9)).all()
        assert (b.value > 0.2 * top).all()
        assert b.details["slopes"].shape == (50, 5)
        np.testing.assert_allclose(b.details["slopes"].max(axis=0), b.value)
        size = np.linalg.norm(b.direction, {"inf": np.inf, 2: 2, 1: 1}[norm], axis=1)
        np.testing.assert_allclose(size, 0.1)
        np.testing.assert_allclose(np.linalg.norm(b.direction @ w, axis=1) / 0.1, b.value, rtol=1e-9)


def test_random_secants_are_weak_and_ascent_is_not():
    rng = np.random.default_rng(10)
    a = rng.standard_normal((64, 64))
    s = np.linalg.svd(a, compute_uv=False)
    f = lambda z: np.sqrt(1 + ((z @ a.T) ** 2).sum(axis=1))  # noqa: E731

    def grad(z):
        return (z @ a.T) @ a / f(z)[:, None]

    x = np.zeros((1, 64))
    random = lipschitz.local_lipschitz(f, x, 1e3, n=100)
    climbed = lipschitz.adversarial_lipschitz(f, grad, x, 1e3, steps=300, step=1e4)
    assert float(random) < 0.7 * s[0]
    assert 0.97 * s[0] < float(climbed) <= s[0] * (1 + 1e-9)
    assert climbed.kind == "lower"


def test_adversarial_slopes_stay_within_radius_and_bounds():
    rng = np.random.default_rng(11)
    f, _, vjp = mlp(rng, (6, 20, 1))
    x = rng.random((7, 6))
    for norm in ("inf", 2, 1):
        b = lipschitz.adversarial_lipschitz(
            f, lambda z: vjp(z, np.ones((len(z), 1))), x, 0.1, norm=norm, bounds=(0, 1)
        )
        size = np.linalg.norm(b.direction, {"inf": np.inf, 2: 2, 1: 1}[norm], axis=1)
        assert (size <= 0.1 + 1e-12).all()
        assert ((x + b.direction >= -1e-12) & (x + b.direction <= 1 + 1e-12)).all()
        slope = np.abs(f(x + b.direction) - f(x))[:, 0] / size
        np.testing.assert_allclose(slope, b.value, rtol=1e-6)


@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_clever_on_functions_whose_constant_is_known(norm):
    w = np.array([3.0, -4.0, 0.5])
    dual = {"inf": 1, 2: 2, 1: np.inf}[norm]
    linear = lipschitz.clever(lambda z: np.tile(w, (len(z), 1)), np.zeros((2, 3)), 0.5, norm=norm, batches=6)
    assert linear.kind == "estimate"
    np.testing.assert_allclose(linear.value, np.linalg.norm(w, dual))
    if norm == 2:  # f = |x|^2 / 2: gradient x, largest |x0| + radius
        x = np.array([[1.0, 0, 0], [0, 0, 3.0]])
        bowl = lipschitz.clever(lambda z: z, x, 0.5, batches=60, batch_size=40)
        np.testing.assert_allclose(bowl.value, [1.5, 3.5], rtol=0.02)
        assert (bowl.value >= bowl.details["maxima"].max(axis=0)).all()
        assert all(fit.ks < 0.2 for fit in bowl.details["fits"])


def test_the_fit_finds_the_law():
    rng = np.random.default_rng(12)
    for shape, location, scale in ((1.5, 3.0, 1.0), (4.0, 10.0, 2.0)):
        maxima = location - scale * rng.weibull(shape, 4000)
        fit = fit_maxima(maxima)
        assert fit.location == pytest.approx(location, abs=0.15 * scale)
        assert fit.shape == pytest.approx(shape, rel=0.15)
        ours = np.log(fit.shape / fit.scale) + (fit.shape - 1) * np.log((fit.location - maxima) / fit.scale)
        ours = (ours - ((fit.location - maxima) / fit.scale) ** fit.shape).sum()
        scipys = scipy.stats.weibull_max.logpdf(maxima, shape, loc=location, scale=scale).sum()
        assert ours > scipys - 3
    assert fit_maxima(np.full(5, 2.0)).location == 2.0


# --- geometry


def on_a_sphere(rng, n, noise=0.0):
    """Points of a circle in 5 dimensions, and how it lies."""
    frame = np.linalg.qr(rng.standard_normal((5, 2)))[0].T
    t = rng.uniform(-0.3, 0.3, n)
    points = np.stack([np.cos(t), np.sin(t)], axis=1) @ frame
    return points + noise * rng.standard_normal(points.shape), frame


def test_tangents_of_a_circle():
    rng = np.random.default_rng(13)
    data, frame = on_a_sphere(rng, 200)
    x = frame[0]
    basis = lipschitz.tangent_basis(x, data, k=30, dim=1)
    assert abs(basis[0] @ frame[1]) > 0.999
    np.testing.assert_allclose(basis @ basis.T, np.eye(1), atol=1e-12)
    assert len(lipschitz.tangent_basis(x, data, k=30, variance=0.99)) == 1
    images = lipschitz.tangent_basis(x.reshape(5, 1), data.reshape(-1, 5, 1), k=30, dim=1)
    np.testing.assert_allclose(np.abs(images.reshape(1, 5)), np.abs(basis), atol=1e-12)


def test_one_outlier_among_the_neighbours():
    rng = np.random.default_rng(14)
    data, frame = on_a_sphere(rng, 20)
    outlier = frame[0] + 5 * np.linalg.svd(frame)[2][-1]
    spoilt = np.vstack([data, outlier])
    assert abs(lipschitz.tangent_basis(frame[0], spoilt, k=21, dim=1)[0] @ frame[1]) < 0.5
    assert abs(lipschitz.tangent_basis(frame[0], spoilt, k=21, dim=1, robust=True)[0] @ frame[1]) > 0.999


def test_gram_and_covariance_have_the_same_components():
    rng = np.random.default_rng(15)
    data = rng.standard_normal((30, 6)) * [5, 3, 1, 0.5, 0.2, 0.1]
    basis = lipschitz.tangent_basis(np.zeros(6), data, k=30, dim=3)
    centred = data - data.mean(axis=0)
    want = np.linalg.svd(centred)[2][:3]
    np.testing.assert_allclose(np.abs((basis * want).sum(axis=1)), 1, rtol=1e-9)


def test_split():
    rng = np.random.default_rng(16)
    basis = np.linalg.qr(rng.standard_normal((12, 4)))[0].T.reshape(4, 3, 4)
    delta = rng.standard_normal((7, 3, 4))
    tangent, normal = lipschitz.split(delta, basis)
    np.testing.assert_allclose(tangent + normal, delta, atol=1e-14)
    np.testing.assert_allclose(np.tensordot(normal, basis, ((1, 2), (1, 2))), 0, atol=1e-13)
    np.testing.assert_allclose(lipschitz.split(tangent, basis)[0], tangent, atol=1e-13)


def test_anisotropy_of_a_function_that_is_steep_across_the_data():
    rng = np.random.default_rng(17)
    data, frame = on_a_sphere(rng, 300)
    steep = np.linalg.svd(frame)[2][-1]  # a direction that the data do not have

    def f(x):
        return 100 * x @ steep + x @ frame[1]

    def grad(x):
        return np.tile(100 * steep + frame[1], (len(x), 1))

    for neighbors in (data, [data] * 5, np.stack([data] * 5)):
        report = lipschitz.anisotropy(f, grad, data[:5], neighbors, 0.01, k=20, dim=1, n=50)
        assert report.median("natural") == pytest.approx(1, rel=0.1)
        assert report.median("tangent") == pytest.approx(1, rel=0.1)
        assert report.median("adversarial") == pytest.approx(100, rel=0.01)
        assert 20 < report.median("normal") < 80
        assert report.ratio("adversarial") == pytest.approx(100, rel=0.1)
        assert (report.tangent_share < 0.01).all()
        assert report.slopes["natural"].shape == (20, 5)
        assert "adversarial" in report.table()


def test_off_manifold_is_the_test_as_written():
    score, delta = np.array([[1.0, 2.0], [0, 1]]), np.array([[1.0, 0.0], [5, -1]])
    assert lipschitz.off_manifold(score, delta, 0.5).tolist() == [True, False]
    assert lipschitz.off_manifold(score, delta, -2).tolist() == [True, True]
    assert lipschitz.off_manifold(score, delta, 1.0).tolist() == [False, False]


# --- what goes wrong


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: lipschitz.spectral_norm(np.ones(3)), ValueError, r"spectral_norm: a has shape \(3,\)"),
        (lambda: lipschitz.spectral_norm(np.ones((2, 2, 2))), ValueError, "spectral_norm: shape is None"),
        (lambda: lipschitz.spectral_norm((abs, abs)), ValueError, "spectral_norm: shape is None"),
        (lambda: lipschitz.spectral_norm((abs, abs), shape=(0,)), ValueError, "spectral_norm: shape is"),
        (
            lambda: lipschitz.spectral_norm(np.ones((2, 2, 5)), shape=(3,)),
            ValueError,
            "larger than the padded",
        ),
        (lambda: lipschitz.spectral_norm(np.ones((2, 2, 1)), shape=(3,), stride=0), ValueError, "stride"),
        (lambda: lipschitz.spectral_norm(np.ones((2, 2, 1)), shape=(3,), padding=-1), ValueError, "padding"),
        (lambda: lipschitz.spectral_norm((abs, abs), shape=(3,), tol=0), ValueError, "tol"),
        (lambda: lipschitz.spectral_norm((abs, abs), shape=(3,), max_iter=0), ValueError, "max_iter"),
        (lambda: lipschitz.spectral_norm((abs, lambda u: u[1:]), shape=(3,)), ValueError, "vjp gave shape"),
        (lambda: lipschitz.operator_norm(np.ones(3)), ValueError, "operator_norm: w has shape"),
        (lambda: lipschitz.operator_norm(np.eye(2), 3, 1), ValueError, "operator_norm: norm is 3"),
        (lambda: lipschitz.product_bound(3), TypeError, "product_bound: layers is a int"),
        (lambda: lipschitz.jacobian_norm(np.ones(2), 1, 2), TypeError, "jacobian_norm: jvp is 1"),
        (
            lambda: lipschitz.jacobian_norm(np.ones(2), np.add, np.add, subspace=np.ones((1, 3))),
            ValueError,
            "jacobian_norm: subspace has shape",
        ),
        (
            lambda: lipschitz.jacobian_norm(np.ones(2), np.add, np.add, subspace=[[1.0, 1.0]]),
            ValueError,
            "not orthonormal",
        ),
        (
            lambda: lipschitz.local_lipschitz(np.sin, np.ones((2, 2)), 0),
            ValueError,
            "local_lipschitz: radius",
        ),
        (
            lambda: lipschitz.local_lipschitz(np.sin, np.ones((2, 2)), -1),
            ValueError,
            "local_lipschitz: radius",
        ),
        (lambda: lipschitz.local_lipschitz(np.sin, np.ones(2), 1), ValueError, r"x has shape \(2,\)"),
        (lambda: lipschitz.local_lipschitz(lambda x: x[1:], np.ones((2, 2)), 1), ValueError, "f gave shape"),
        (lambda: lipschitz.local_lipschitz(np.sin, np.ones((2, 2)), 1, n=0), ValueError, "n is 0"),
        (lambda: lipschitz.local_lipschitz(np.sin, np.ones((2, 2)), 1, norm=3), ValueError, "norm is 3"),
        (
            lambda: lipschitz.local_lipschitz(np.sin, np.ones((2, 2)), 1, directions="up"),
            ValueError,
            "directions is 'up'",
        ),
        (
            lambda: lipschitz.local_lipschitz(np.sin, np.ones((2, 2)), 1, directions=np.ones((3, 3))),
            ValueError,
            "directions has shape",
        ),
        (
            lambda: lipschitz.adversarial_lipschitz(np.sin, lambda x: x[0], np.ones((2, 2)), 1),
            ValueError,
            "adversarial_lipschitz: grad_fn gave shape",
        ),
        (
            lambda: lipschitz.clever(lambda x: x[0], np.ones((2, 2)), 1),
            ValueError,
            "clever: grad_fn gave shape",
        ),
        (lambda: lipschitz.clever(np.sin, np.ones((2, 2)), 1, batches=0), ValueError, "clever: batches is 0"),
        (
            lambda: lipschitz.tangent_basis(np.ones(2), np.ones((5, 3))),
            ValueError,
            "tangent_basis: neighbors has",
        ),
        (lambda: lipschitz.tangent_basis(np.ones(2), np.ones((5, 2))), ValueError, "leaves 0 points"),
        (lambda: lipschitz.tangent_basis(np.ones(2), np.eye(2), dim=2), ValueError, "dim is 2"),
        (lambda: lipschitz.tangent_basis(np.ones(2), np.eye(2), dim=1, variance=1), ValueError, "both given"),
        (lambda: lipschitz.tangent_basis(np.ones(2), np.eye(2), variance=2), ValueError, "variance is 2"),
        (lambda: lipschitz.split(np.ones(3), np.ones((1, 2))), ValueError, "split: delta has shape"),
        (
            lambda: lipschitz.off_manifold(np.ones((2, 2)), np.ones((2, 3)), 0),
            ValueError,
            "off_manifold: delta",
        ),
        (
            lambda: lipschitz.off_manifold(np.ones((2, 2)), np.ones((2, 2)), "0"),
            TypeError,
            "off_manifold: kappa",
        ),
        (
            lambda: lipschitz.anisotropy(np.sin, np.cos, np.ones((2, 2)), [np.eye(2)], 1),
            ValueError,
            "anisotropy: neighbors holds 1 pools",
        ),
        (
            lambda: lipschitz.anisotropy(np.sin, np.cos, np.ones((2, 2)), np.ones((4, 3)), 1),
            ValueError,
            "anisotropy: neighbors",
        ),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_what_the_attack_finds_is_steeper_than_chance():
    """perturb and lipschitz together: the secant of FGSM beats random signs on a trained-like network."""
    rng = np.random.default_rng(18)
    f, _, vjp = mlp(rng, (30, 60, 1))
    x = rng.standard_normal((20, 30))
    result = perturb.fgsm(x, lambda z: vjp(z, np.ones((len(z), 1))), 0.01)
    rise = np.abs(f(result.x) - f(x))[:, 0]
    signs = 0.01 * np.sign(rng.standard_normal(x.shape))
    assert np.median(rise / np.abs(f(x + signs) - f(x))[:, 0]) > 3
