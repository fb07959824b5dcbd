"""Norms and geometry at the edges: any scale, few outputs, callables that lie or write, duplicates, other arrays."""

import numpy as np
import pytest

import npkernels as nk
from npkernels import lipschitz, reference

RNG = np.random.default_rng(0)


def pair(a, dtype=np.float64):
    return lambda v: a @ v.astype(dtype), lambda u: a.T @ u.astype(dtype)


# --- iterations


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-120, 1e120, 1e200, 1e300])
@pytest.mark.parametrize("shape", [(5, 4), (1, 1), (4, 40)])
def test_norms_of_any_scale(scale, shape):
    a = np.random.default_rng(1).standard_normal(shape)
    want = np.linalg.norm(a, 2) * scale
    for b in (lipschitz.spectral_norm(a * scale), lipschitz.spectral_norm(pair(a * scale), shape=shape[1:])):
        assert float(b) == pytest.approx(want, rel=1e-10)
    k = a.reshape(*shape, 1)
    assert float(lipschitz.spectral_norm(k * scale, shape=3)) == pytest.approx(want, rel=1e-10)
    for p in ("inf", 2, 1):
        for q in ("inf", 2, 1):
            b = lipschitz.operator_norm(a * scale, p, q)
            assert float(b) == pytest.approx(float(lipschitz.operator_norm(a, p, q)) * scale, rel=1e-12)


@pytest.mark.parametrize("kernel", [np.ones((1, 1, 3)), RNG.standard_normal((1, 2, 5)), np.ones((2, 1, 5))])
def test_maps_with_fewer_outputs_than_iterations(kernel):
    matrix = reference.lipschitz.convolution_matrix(kernel, (6,), 1, 0)
    b = lipschitz.spectral_norm(kernel, shape=6, tol=1e-12)
    assert b.details["converged"]
    assert float(b) == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-12)
    assert np.linalg.norm(matrix @ b.direction.reshape(-1)) == pytest.approx(float(b), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranks_that_are_exhausted(dtype):
    for rank in (1, 2, 3):
        a = sum(np.outer(RNG.standard_normal(9), RNG.standard_normal(7)) for _ in range(rank)).astype(dtype)
        b = lipschitz.spectral_norm(pair(a, dtype), shape=7, tol=1e-5)
        assert b.details["converged"]
        assert float(b) == pytest.approx(np.linalg.norm(np.float64(a), 2), rel=1e-5)


def test_convergence_is_told():
    a = np.diag(np.linspace(0.9, 1, 300))
    early = lipschitz.spectral_norm(pair(a), shape=300, max_iter=3)
    assert not early.details["converged"]
    assert early.details["iterations"] == 3
    assert early.residual > 1e-6
    late = lipschitz.spectral_norm(pair(a), shape=300, max_iter=2000, tol=1e-5)
    assert late.details["converged"]
    assert not lipschitz.spectral_norm((lambda v: v * np.nan, lambda u: u), shape=4).details["converged"]


@pytest.mark.parametrize("shape", [(6, 6), (3, 3)])
def test_a_vjp_that_is_no_transpose_is_refused(shape):
    a = np.random.default_rng(3).standard_normal(shape)
    for wrong in (lambda u: a @ u, lambda u: a.T @ u / 2, lambda u: -a.T @ u, lambda u: 0 * u):
        with pytest.raises(ValueError, match="spectral_norm: vjp is not the transpose of jvp"):
            lipschitz.spectral_norm((lambda v: a @ v, wrong), shape=shape[1:])


def test_products_may_write_into_what_they_are_given():
    a = RNG.standard_normal((5, 5))

    def writing(matrix):
        def f(v):
            y = matrix @ v
            v *= 0
            return y

        return f

    b = lipschitz.spectral_norm((writing(a), writing(a.T)), shape=5)
    assert float(b) == pytest.approx(np.linalg.norm(a, 2), rel=1e-9)
    x = np.ones(5)
    b = lipschitz.jacobian_norm(x, lambda x, d: writing(a)(d) + 0 * x, lambda x, u: writing(a.T)(u))
    assert float(b) == pytest.approx(np.linalg.norm(a, 2), rel=1e-9)


def test_empty_inputs_have_no_length():
    q = np.zeros((1, 1, 0, 3))
    k = np.ones((1, 1, 2, 3))
    assert float(lipschitz.attention_jacobian_norm(q, k, k, wrt="q")) == 0
    assert float(lipschitz.spectral_norm(np.ones((1, 0, 3)), shape=5)) == 0
    assert float(lipschitz.local_lipschitz(np.sin, np.ones((0, 3)), 0.1, n=2)) == 0
    assert lipschitz.off_manifold(np.ones((0, 3)), np.ones((0, 3)), 0).shape == (0,)
    assert lipschitz.off_manifold(np.ones((2, 0)), np.ones((2, 0)), 0).tolist() == [False, False]


def test_the_jacobian_is_taken_in_the_dtype_of_x():
    for dtype in (np.float32, np.float64):
        x = np.zeros(3, dtype)
        b = lipschitz.jacobian_norm(
            x, lambda x, d: nk.softmax_jvp(x, d)[1], lambda x, u: nk.softmax_vjp(u, nk.softmax(x))
        )
        assert float(b) == pytest.approx(1 / 3, rel=1e-6)


# --- other arrays


def test_callables_get_the_kind_of_array_that_came_in():
    torch = pytest.importorskip("torch")
    x = torch.rand(3, 4, dtype=torch.float64)
    w = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    f = lambda z: torch.sin(z @ w)  # noqa: E731

    def grad(z):
        z = z.clone().requires_grad_()
        return torch.autograd.grad(f(z).sum(), z)[0]

    results = [
        lipschitz.local_lipschitz(f, x, 0.1, n=5),
        lipschitz.adversarial_lipschitz(f, grad, x, 0.1),
        lipschitz.clever(grad, x, 0.1, batches=3, batch_size=4),
    ]
    assert all(isinstance(b.value, torch.Tensor) for b in results)
    assert all(float(b) == float(b.value.max()) for b in results)
    assert isinstance(results[0].direction, torch.Tensor)
    assert lipschitz.anisotropy(f, grad, x, torch.rand(30, 4, dtype=torch.float64), 0.1).median("random") > 0
    matrix = w.detach()
    jvp, vjp = (lambda x, d: d @ matrix), (lambda x, u: matrix @ u)
    b = lipschitz.jacobian_norm(x[0], jvp, vjp)
    assert isinstance(b.direction, torch.Tensor)
    assert float(b) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)))
    q = torch.rand(1, 2, 3, 4, dtype=torch.float64)
    assert isinstance(lipschitz.attention_jacobian_norm(q, q, q, wrt="v").direction, torch.Tensor)
    both = lipschitz.attention_jacobian_norm(q, q, q, wrt="qk").direction
    assert all(isinstance(d, torch.Tensor) for d in both.values())


# --- NaN


def test_nan_is_not_a_bound():
    x = np.zeros((2, 3))

    def f(z):
        y = np.sin(z)
        y[1] = np.nan
        return y

    for b in (
        lipschitz.local_lipschitz(f, x, 0.1, n=4),
        lipschitz.adversarial_lipschitz(f, np.cos, x, 0.1),
    ):
        assert b.value[0] > 0
        assert np.isnan(b.value[1])
    estimate = lipschitz.clever(lambda z: z * [[1.0], [np.nan]], x + 1, 0.1, batches=4, batch_size=3)
    assert np.isfinite(estimate.value[0])
    assert np.isnan(estimate.value[1])
    assert np.isnan(estimate.details["fits"][1].ks)


# --- geometry


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_bases_are_orthonormal_also_where_the_spread_is_small(scale):
    turn = np.linalg.qr(RNG.standard_normal((6, 6)))[0]
    data = RNG.standard_normal((30, 6)) * [1, 1e-2, 1e-4, 1e-5, 5e-6, 1e-7] @ turn
    basis = lipschitz.tangent_basis(np.zeros(6), scale * data, k=30, variance=1.0)
    assert len(basis) >= 4
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-12)
    want = np.linalg.svd(data - data.mean(axis=0))[2][:3]
    np.testing.assert_allclose(np.abs((basis[:3] * want).sum(axis=1)), 1, rtol=1e-6)


def test_fewer_neighbours_than_dimensions():
    basis = lipschitz.tangent_basis(np.zeros(50), RNG.standard_normal((4, 50)), k=20, variance=1.0)
    assert basis.shape == (3, 50)
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-12)


def test_neighbours_that_are_one_point():
    same = np.ones((5, 2))
    assert lipschitz.tangent_basis(np.zeros(2), same).shape == (0, 2)
    tangent, normal = lipschitz.split(np.ones((3, 2)), np.zeros((0, 2)))
    assert not tangent.any()
    assert (normal == 1).all()
    report = lipschitz.anisotropy(lambda z: z.sum(axis=1), lambda z: z * 0 + 1, np.zeros((2, 2)), same, 0.1)
    assert report.median("tangent") == 0
    others = np.array([[0.0, 2], [2, 0], [1, 3]])
    assert len(lipschitz.tangent_basis(np.zeros(2), np.vstack([same, same, others]), robust=True)) == 2


def test_neighbours_that_are_not_finite_are_not_near():
    data = RNG.standard_normal((12, 3))
    spoilt = np.vstack([data, np.full(3, np.inf), np.full(3, np.nan)])
    a, b = (lipschitz.tangent_basis(np.zeros(3), d, k=14, dim=2) for d in (data, spoilt))
    assert np.array_equal(a, b)


def test_a_gradient_of_zeros_leaves_the_other_directions_their_length():
    f = lambda z: z.sum(axis=1)  # noqa: E731
    for norm, share in (("inf", 1.0), (2, 1.0), (1, 1.0)):
        report = lipschitz.anisotropy(
            f, lambda z: 0 * z, np.zeros((2, 4)), RNG.standard_normal((30, 4)), 0.1, norm=norm, dim=2
        )
        assert all(report.median(kind) > 0 for kind in ("random", "tangent", "normal"))
        assert report.median("adversarial") == 0
        assert (report.tangent_share <= share).all()


def test_ratios_of_nothing_are_not_infinite():
    zero, one = np.zeros((2, 3)), np.array([[1.0, 0, 1]] * 2)
    report = lipschitz.Anisotropy({"natural": zero, "random": zero, "normal": one}, np.ones(3), np.ones(3))
    assert np.isnan(report.ratio("random"))
    assert report.ratio("normal") == np.inf
    assert report.ratio("random", "normal") == 0
    assert report.ratio("normal", "normal") == 1
    assert "nan" in report.table()


@pytest.mark.parametrize("p", ["inf", 2, 1])
@pytest.mark.parametrize("q", ["inf", 2, 1])
def test_directions_have_length_one_also_of_zero_and_sparse_matrices(p, q):
    order = {"inf": np.inf, 2: 2, 1: 1}[p]
    for w in (np.zeros((2, 3)), np.array([[0.0, 2, 0], [0, 0, 0]])):
        b = lipschitz.operator_norm(w, p, q)
        assert np.linalg.norm(b.direction, order) == pytest.approx(1)
        assert float(b) == pytest.approx(2 if w.any() else 0)


def test_a_constant_layer_makes_a_constant_network():
    assert float(lipschitz.product_bound([0.0, np.inf])) == 0
    assert float(lipschitz.product_bound([2.0, np.inf])) == np.inf
    nan = lipschitz.Bound(np.nan, "upper")
    assert np.isnan(float(lipschitz.product_bound([0.0, nan])))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: lipschitz.split(x, [[2.0, 0]]), "split: the rows of basis are not orthonormal"),
        (lambda x: lipschitz.adversarial_lipschitz(np.sin, np.cos, x, 0.1, step=-1), "adv.*: step is -1"),
        (
            lambda x: lipschitz.adversarial_lipschitz(np.sin, np.cos, x, 0.1, bounds=(2, 3)),
            "adv.*: x lies out",
        ),
        (lambda x: lipschitz.local_lipschitz(np.sin, x, 0.1, quantiles=(2,)), "local_l.*: quantiles is"),
        (lambda x: lipschitz.local_lipschitz(np.sin, x, 0.1, rng="a"), "local_lipschitz: rng is 'a'"),
        (lambda x: lipschitz.spectral_norm(pair(x), shape=1.5), "spectral_norm: shape is 1.5"),
        (lambda x: lipschitz.spectral_norm(pair(x), shape=2, rng=-1), "spectral_norm: rng is -1"),
        (lambda x: lipschitz.tangent_basis(x[0], x, variance="a"), "tangent_basis: variance is 'a'"),
    ],
)
def test_refusals_name_the_function(call, words):
    with pytest.raises((TypeError, ValueError), match=f"^{words}"):
        call(np.ones((2, 2)))


def test_attention_refuses_what_its_derivatives_do_not_take():
    q = np.ones((1, 1, 2, 3))
    for option in ({"return_lse": True}, {"out": q}, {"dropout_p": 0.1}):
        with pytest.raises(
            TypeError, match=f"attention_jacobian_norm: {next(iter(option))} is no option here"
        ):
            lipschitz.attention_jacobian_norm(q, q, q, **option)
    for layer in (3, (1, 2), (abs,)):
        with pytest.raises(TypeError, match="attention_jacobian_norm: layer is"):
            lipschitz.attention_jacobian_norm(q, q, q, layer=layer, shape=(2,))
    two = (lambda d: (q, q), lambda *d: q)
    with pytest.raises(ValueError, match="attention_jacobian_norm: into gave 2 arrays"):
        lipschitz.attention_jacobian_norm(q, q, q, layer=two, shape=(1, 1, 2, 3))
