"""perturb.finite_difference_gradient: analytic gradients, blocks, bounds, random directions, the attacks."""

import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from npkernels import perturb

make = perturb.finite_difference_gradient


def samples(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(dtype)


def loss(x, y=None):
    """A smooth loss of each sample; y shifts it."""
    z = x.astype(np.float64).reshape(len(x), int(np.prod(x.shape[1:])))
    s = np.sin(z).sum(axis=1) + (z**3).sum(axis=1) / 3
    return s if y is None else s * (1 + y)


def gradient(x, y=None):
    g = np.cos(x.astype(np.float64)) + x.astype(np.float64) ** 2
    return g if y is None else g * (1 + y).reshape(-1, *(1,) * (x.ndim - 1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-8), (np.float32, 3e-4), (np.float16, 0.02)])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (4,), (0, 3), (3, 0)])
def test_the_analytic_gradient(shape, dtype, tolerance):
    x = samples(*shape, dtype=dtype)
    grad_fn = make(loss)
    losses, g = grad_fn(x)
    assert g.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert_allclose(g, gradient(x), rtol=tolerance, atol=tolerance)
    assert_array_equal(losses, loss(x))
    assert grad_fn.evaluations == 2 * x.size + len(x)


def test_a_step_of_ones_own():
    x = samples(3, 4)
    _, g = make(loss, step=0.5)(x)
    assert_allclose(g, (np.sin(x + 0.5) - np.sin(x - 0.5)) + x**2 + 0.25 / 3, rtol=1e-12)


@pytest.mark.parametrize("directions", [None, 3])
def test_blocks_change_nothing_and_keep_to_the_cap(directions):
    x, y, most = samples(5, 6), samples(5, seed=1), []

    def watched(points, labels):
        most.append(points.nbytes)
        assert points.shape[1:] == x.shape[1:]
        assert labels.shape == (len(points),)
        return loss(points, labels)

    whole = make(watched, args=(y,), directions=directions)(x)
    for max_bytes in (1, 200, 48 * 7):
        most.clear()
        parts = make(watched, args=(y,), directions=directions, max_bytes=max_bytes)(x)
        assert max(most) <= max(max_bytes, 2 * 48)
        assert_array_equal(parts[0], whole[0])
        assert_array_equal(parts[1], whole[1])
    if directions is None:
        assert_allclose(whole[1], gradient(x, y), rtol=1e-8, atol=1e-8)


def test_points_stay_within_the_bounds():
    x = np.array([[0.0, 1.0, 0.5, 0.25]])
    low = np.array([0.0, 0.0, 0.5, 0.0])  # the third entry cannot move

    def inside(points):
        assert (points >= low).all()
        assert (points <= [1, 1, 0.5, 1]).all()
        return (points**2).sum(axis=1)

    _, g = make(inside, step=0.25, bounds=(low, np.array([1, 1, 0.5, 1.0])))(x)
    assert_allclose(g, [[0.25, 1.75, 0, 0.5]])
    make(inside, directions=5, bounds=(low, np.array([1, 1, 0.5, 1.0])))(x)


@pytest.mark.parametrize("kind", ["sign", "sphere"])
def test_random_directions_estimate_the_gradient(kind):
    x, w = samples(4, 8), samples(8, seed=2)
    _, g = make(lambda points: points @ w, directions=4000, kind=kind, seed=7)(x)
    # Of a linear loss the mean of <w, u> u has variance (|w|^2 + w_j^2 or less) / n in entry j.
    assert_allclose(g, np.tile(w, (4, 1)), atol=5 * np.sqrt(2 * (w @ w) / 4000))
    if kind == "sign":  # one direction: <w, u> u, where the entries of u are ±1
        _, one = make(lambda points: points @ w, directions=1, seed=7)(x)
        assert_allclose(np.abs(one), np.abs(one[:, :1]) * np.ones(8), rtol=1e-6)


@pytest.mark.parametrize("kind", ["sign", "sphere"])
def test_directions_follow_from_the_seed_the_call_and_the_place(kind):
    x = samples(3, 40)
    first, again, other = (make(loss, directions=2, kind=kind, seed=s) for s in (5, 5, 6))
    a, b = first(x)[1], first(x)[1]
    assert not np.allclose(a, b)  # another call has other directions
    assert_array_equal(again(x)[1], a)
    assert_array_equal(again(x)[1], b)
    assert not np.allclose(other(x)[1], a)
    assert_array_equal(make(loss, directions=2, kind=kind, seed=5)(x[:2])[1], a[:2])
    make(loss, directions=1, seed=2**64 - 1)(x)


def test_the_attacks_take_it():
    x, y = samples(6, 10, seed=3), np.arange(6) / 3
    exact = perturb.pgd(x, lambda z: (loss(z, y), gradient(z, y)), eps=0.3, steps=10, norm=2)
    grad_fn = make(loss, args=(y,))
    found = perturb.pgd(x, grad_fn, eps=0.3, steps=10, norm=2)
    assert_allclose(found.x, exact.x, atol=1e-7)
    assert_allclose(found.loss, exact.loss, rtol=1e-9)
    assert grad_fn.evaluations == 11 * (2 * x.size + len(x))
    assert_allclose(
        perturb.fgsm(x, make(loss, args=(y,), losses=False), 0.1).x,
        perturb.fgsm(x, lambda z: gradient(z, y), 0.1).x,
    )
    random = perturb.pgd(x, make(loss, args=(y,), directions=20), eps=0.3, steps=10, norm=2)
    gain, most = random.loss - loss(x, y), exact.loss - loss(x, y)
    assert (gain > 0.5 * most).all()


def test_a_model_in_float32():
    rng = np.random.default_rng(0)
    w1, w2 = (rng.normal(0, 1, s).astype(np.float32) for s in ((12, 16), (16, 3)))
    x, y = rng.random((5, 12), dtype=np.float32), np.array([0, 1, 2, 1, 0])

    def cross_entropy(points, labels):
        assert points.dtype == np.float32
        z = np.tanh(points @ w1) @ w2
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]

    h = np.tanh(x.astype(np.float64) @ w1)
    p = np.exp(h @ w2)
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(5), y] -= 1
    wanted = ((p @ w2.T) * (1 - h * h)) @ w1.T
    _, g = make(cross_entropy, args=(y,))(x)
    assert_allclose(g, wanted, atol=2e-3 * abs(wanted).max())


def test_arrays_of_another_kind():
    class Foreign:  # an array that speaks DLPack only
        def __init__(self, a):
            self.a = np.asarray(a)

        def __dlpack__(self, **kwargs):
            return self.a.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.a.__dlpack_device__()

        def __array_namespace__(self):
            return sys.modules[__name__]

    globals()["from_dlpack"] = lambda a: Foreign(np.from_dlpack(a))
    x, y = samples(2, 3), samples(2, seed=1)

    def f(points, labels):
        assert type(points) is type(labels) is Foreign
        return Foreign(loss(points.a, labels.a))

    losses, g = make(f, args=(y,))(Foreign(x))
    assert_allclose(g.a, gradient(x, y), rtol=1e-8)
    assert_array_equal(losses.a, loss(x, y))


@pytest.mark.parametrize("directions", [None, 3])
def test_losses_that_write_into_what_they_are_given(directions):
    x, labels, memory = samples(5, 4), samples(5, seed=1), np.zeros(99)

    def f(points, y):  # gives the same memory every time
        memory[: len(points)] = loss(points, y)
        points[...] = y[...] = 9
        return memory[: len(points)]

    before = x.copy(), labels.copy()
    options = {"directions": directions, "max_bytes": 70}  # two points at once
    losses, g = make(f, args=(labels,), **options)(x)
    want_losses, want = make(loss, args=(labels,), **options)(x)
    assert_array_equal(losses, want_losses)
    assert_array_equal(g, want)
    assert_array_equal(x, before[0])
    assert_array_equal(labels, before[1])


@pytest.mark.parametrize("options", [{}, {"directions": 2}, {"directions": 2, "kind": "sphere"}])
def test_nothing_to_move_and_nothing_finite(options):
    losses, g = make(lambda points: np.zeros(len(points)), **options)(np.zeros((2, 0)))
    assert losses.shape == (2,)
    assert g.shape == (2, 0)
    for x, f in (
        (0.0, lambda points: np.full(len(points), np.inf)),
        (np.inf, lambda points: points.sum(axis=1)),
    ):
        assert np.isnan(make(f, **options)(np.full((2, 3), x))[1]).all()


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"f": 3}, TypeError, "f is 3; expected a callable"),
        ({"args": np.ones(3)}, TypeError, "args is a ndarray; expected a tuple of arrays"),
        ({"args": (3,)}, ValueError, r"args\[0\] is a single number"),
        ({"step": 0}, ValueError, "step is 0; expected a finite number > 0"),
        ({"step": np.nan}, ValueError, "step is nan"),
        ({"kind": np.array(["sign", "cube"])}, ValueError, "kind is array"),
        ({"kind": "cube"}, ValueError, "kind is 'cube'; expected one of 'sign', 'sphere'"),
        ({"directions": 0}, ValueError, "directions is 0; expected an integer >= 1"),
        ({"directions": True}, ValueError, "directions is True"),
        ({"seed": 2**64}, ValueError, r"seed is .*; expected an integer >= 0 below 2\^64"),
        ({"max_bytes": 0}, ValueError, "max_bytes is 0"),
    ],
)
def test_arguments_that_mean_nothing(kwargs, error, text):
    with pytest.raises(error, match=f"^finite_difference_gradient: {text}"):
        make(**{"f": loss, **kwargs})


def test_what_does_not_fit_the_samples():
    x = samples(3, 4)
    with pytest.raises(ValueError, match=r"args\[0\] has 2 entries for 3 samples"):
        make(loss, args=(np.ones(2),))(x)
    with pytest.raises(ValueError, match=r"f gave shape \(24, 4\) for 24 points"):
        make(lambda points: points)(x)
    with pytest.raises(ValueError, match="bounds are not in order"):
        make(loss, bounds=(1, 0))(x)
    for wrong in (lambda points: loss(points) * 1j, lambda points: ["1"] * len(points)):
        with pytest.raises(TypeError, match=r"what f gave has dtype .*; expected real numbers"):
            make(wrong)(x)
    with pytest.raises(ZeroDivisionError):
        make(lambda points: 1 / 0)(x)
