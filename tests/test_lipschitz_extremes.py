"""What `npkernels.lipschitz` says of maps that are no good: complex, empty, infinite, saturated, of changing shape."""

import numpy as np
import pytest

from npkernels import lipschitz

RNG = np.random.default_rng(0)


def secants(f, x, **options):
    return lipschitz.local_lipschitz(f, x, 0.1, n=3, **options)


# --- what callables give


@pytest.mark.parametrize(
    "wrong", [lambda x: 1j * x, lambda x: [["1"] * 2] * len(x), lambda x: x.astype(object)]
)
def test_what_is_not_real_is_refused(wrong):
    x = np.ones((2, 2))
    right = lambda x, *_: x  # noqa: E731
    calls = {
        "local_lipschitz": lambda: secants(wrong, x),
        "adversarial_lipschitz": lambda: lipschitz.adversarial_lipschitz(wrong, right, x, 0.1),
        "clever": lambda: lipschitz.clever(wrong, x, 0.1),
        "spectral_norm": lambda: lipschitz.spectral_norm((wrong, right), shape=(2, 2)),
        "jacobian_norm": lambda: lipschitz.jacobian_norm(x, right, lambda x, _: wrong(x)),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"^{name}: what .* gave has dtype"):
            call()


def test_what_is_no_callable_is_refused():
    x = np.ones((2, 2))
    for call, words in (
        (lambda: secants(3, x), "local_lipschitz: f is 3"),
        (lambda: lipschitz.adversarial_lipschitz(np.sin, 3, x, 0.1), "adversarial_lipschitz: grad_fn is 3"),
        (lambda: lipschitz.clever("cos", x, 0.1), "clever: grad_fn is 'cos'"),
        (lambda: lipschitz.anisotropy(None, np.cos, x, x, 0.1), "anisotropy: f is None"),
        (lambda: lipschitz.jacobian_norm(x, np.sin, 3), "jacobian_norm: vjp is 3"),
    ):
        with pytest.raises(TypeError, match=f"^{words}; expected a callable"):
            call()


def test_outputs_of_changing_shape_are_refused():
    widths = iter(range(3, 9))
    with pytest.raises(ValueError, match="local_lipschitz: f gave 4 numbers for a sample, and before 3"):
        secants(lambda x: np.ones((len(x), next(widths))), np.ones((2, 2)))


def test_a_jvp_of_whole_numbers_has_cotangents_between_them():
    whole = lambda x, dx: np.array([1, 2]) * round(1e6 * float(dx[0]))  # noqa: E731
    back = lambda x, dy: np.array([1e6, 0, 0]) * (dy @ [1.0, 2.0])  # noqa: E731
    b = lipschitz.jacobian_norm(np.zeros(3), whole, back)
    assert float(b) == pytest.approx(1e6 * np.sqrt(5), rel=1e-5)


# --- NaN, inf, nothing


def test_samples_that_are_no_numbers_have_no_slope():
    x = np.array([[0.0, 1.0], [0.0, np.nan]])
    for b in (secants(np.sin, x), lipschitz.adversarial_lipschitz(np.sin, np.cos, x, 0.1)):
        assert b.value[0] > 0
        assert np.isnan(b.value[1])


@pytest.mark.parametrize("p", ["inf", 2, 1])
@pytest.mark.parametrize("q", ["inf", 2, 1])
def test_matrices_that_are_not_finite(p, q):
    for entry in (np.inf, -np.inf, np.nan):
        b = lipschitz.operator_norm([[1.0, entry], [2.0, 0.0]], p, q)
        assert b.direction is None  # none attains it
        np.testing.assert_equal(b.value, abs(entry))


def test_no_samples():
    x = np.zeros((0, 3))
    assert lipschitz.adversarial_lipschitz(np.sin, np.cos, x, 0.1).value.shape == (0,)
    with pytest.raises(ValueError, match=r"anisotropy: x has shape \(0, 3\); expected at least one sample"):
        lipschitz.anisotropy(np.sin, np.cos, x, np.eye(3), 0.1)


def test_scores_of_any_size():
    big = np.full((1, 2), 1e200)
    assert lipschitz.off_manifold(big, big, 0)[0]
    assert not lipschitz.off_manifold(big, big * [1, -1], 0)[0]  # inf - inf


# --- bounds that are bounds


@pytest.mark.parametrize("factors", [[1e-200, 1e-200, 1e200, 1e200], [1e200, 1e200, 1e-200, 1e-200]])
def test_the_order_of_layers_does_not_matter(factors):
    assert float(lipschitz.product_bound(factors)) == pytest.approx(1, rel=1e-14)


def test_a_product_that_leaves_the_numbers_stays_an_upper_bound():
    assert 0 < float(lipschitz.product_bound([1e-200] * 2)) < 1e-300
    assert float(lipschitz.product_bound([1e200] * 2)) == np.inf
    assert float(lipschitz.product_bound([np.finfo(float).max])) == np.finfo(float).max
    assert float(lipschitz.product_bound([0.5] * 5000 + [2.0] * 4999)) == 0.5
    assert float(lipschitz.product_bound([])) == 1


def test_attention_that_is_saturated_has_a_norm():
    q, k, v = RNG.standard_normal((3, 1, 2, 5, 4))
    b = lipschitz.attention_jacobian_norm(1e5 * q, k, v, wrt="q")
    assert 0 <= float(b) < 1e-10
    assert not lipschitz.attention_jacobian_norm(np.nan * q, k, v).details["converged"]


def test_shapes_and_layers_of_attention():
    q = np.ones((1, 1, 2, 3))
    layer = (lambda d: None, lambda *d: q)
    for shape in ("a", (-1,), (1.5,), ()):
        with pytest.raises(
            (TypeError, ValueError), match=r"^attention_jacobian_norm: (shape|into gave a NoneType)"
        ):
            lipschitz.attention_jacobian_norm(q, q, q, layer=layer, shape=shape)


def test_there_is_nothing_normal_to_all_directions():
    x, data = RNG.standard_normal((3, 3)), RNG.standard_normal((40, 3))
    report = lipschitz.anisotropy(lambda z: z.sum(axis=1), np.ones_like, x, data, 0.1, dim=3)
    assert report.median("tangent") > 0
    assert (report.slopes["normal"] == 0).all()


def test_tolerances_of_numpy():
    pair = (lambda v: 2 * v, lambda u: 2 * u)
    assert float(lipschitz.spectral_norm(pair, shape=3, tol=np.float32(1e-3))) == pytest.approx(2)


def test_directions_are_numbers():
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="local_lipschitz: directions holds NaN or inf"):
            secants(np.sin, np.ones((2, 2)), directions=np.full((1, 2), bad))
    with pytest.raises(TypeError, match="local_lipschitz: quantiles has dtype"):
        secants(np.sin, np.ones((2, 2)), quantiles="half")
    with pytest.raises(TypeError, match="anisotropy: neighbors is 5; expected"):
        lipschitz.anisotropy(np.sin, np.cos, np.ones((2, 2)), 5, 0.1)
