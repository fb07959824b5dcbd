"""The reference of softmax and its relatives against SciPy and values worked out by hand."""

import doctest
import importlib
import inspect

import ml_dtypes
import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal

from central_differences import DIFFERENCE, numeric_jvp, numeric_vjp
from npkernels import reference as ref
from npkernels._cli import check

INF, NAN = np.inf, np.nan
EPS = np.finfo(np.float64).eps


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


SHAPES = [((7,), 0), ((3, 5), -1), ((3, 5), 0), ((2, 3, 4), 1), ((2, 3, 1), -1)]


# --- softmax, log_softmax, logsumexp, entropy


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_agrees_with_scipy(shape, axis, temperature):
    x = rng(1).normal(0, 5, shape)
    z = x / temperature
    p = scipy.special.softmax(z, axis=axis)
    kwargs = {"axis": axis, "temperature": temperature}
    # SciPy's own error: a few roundings of z, whose size is below 100, and of the exponential
    assert_allclose(ref.softmax(x, **kwargs), p, rtol=200 * EPS)
    assert_allclose(ref.log_softmax(x, **kwargs), scipy.special.log_softmax(z, axis=axis), atol=200 * EPS)
    assert_allclose(ref.logsumexp(x, **kwargs), scipy.special.logsumexp(z, axis=axis), atol=200 * EPS)
    kept = ref.logsumexp(x, **kwargs, keepdims=True)
    assert kept.shape == p.sum(axis=axis, keepdims=True).shape
    assert_allclose(ref.entropy(x, **kwargs), scipy.special.entr(p).sum(axis=axis), atol=200 * EPS)


def test_log_softmax_keeps_the_small_tail():
    y = ref.log_softmax([0.0, -50.0])
    assert_allclose(
        y[0], -np.exp(np.longdouble(-50)), rtol=EPS
    )  # 1 + exp(-50) rounds to 1 in any format here
    ties = ref.log_softmax([0.0, 0.0, -60.0])
    assert_allclose(ties[0], -np.log(np.longdouble(2)) - np.exp(np.longdouble(-60)) / 2, rtol=EPS)


def test_large_numbers_do_not_overflow():
    assert_array_equal(ref.softmax([1e308, 1e308]), [0.5, 0.5])
    assert ref.logsumexp(np.float32([3e38, -3e38])) == np.float32(3e38)


# row, mask, softmax, log_softmax, logsumexp, entropy
LOG2 = float(np.log(2))
SPECIAL = {
    "-inf entry": ([0, -INF, 0], None, [0.5, 0, 0.5], [-LOG2, -INF, -LOG2], LOG2, LOG2),
    "one entry": ([3.0], None, [1], [0], 3, 0),
    "all -inf": ([-INF, -INF], None, [NAN, NAN], [NAN, NAN], -INF, NAN),
    "+inf": ([0, INF, 1], None, [NAN] * 3, [NAN] * 3, INF, NAN),
    "two +inf": ([INF, INF], None, [NAN] * 2, [NAN] * 2, INF, NAN),
    "NaN": ([0, NAN, 1], None, [NAN] * 3, [NAN] * 3, NAN, NAN),
    "NaN and +inf": ([INF, NAN], None, [NAN] * 2, [NAN] * 2, NAN, NAN),
    "NaN and -inf": ([-INF, NAN], None, [NAN] * 2, [NAN] * 2, NAN, NAN),
    "empty": ([], None, [], [], -INF, 0),
    "empty with mask": ([], [], [], [], -INF, 0),
    "masked NaN": ([0, NAN, 0], [1, 0, 1], [0.5, 0, 0.5], [-LOG2, -INF, -LOG2], LOG2, LOG2),
    "masked +inf": ([0, INF], [1, 0], [1, 0], [0, -INF], 0, 0),
    "all masked": ([0, NAN, INF], [0, 0, 0], [0] * 3, [-INF] * 3, -INF, 0),
    "allowed are -inf": ([-INF, 1, -INF], [1, 0, 1], [0] * 3, [-INF] * 3, -INF, 0),
    "mask of True, all -inf": ([-INF, -INF], [1, 1], [0, 0], [-INF, -INF], -INF, 0),
    "allowed NaN": ([NAN, 1, 0], [1, 1, 0], [NAN, NAN, 0], [NAN, NAN, -INF], NAN, NAN),
    "allowed +inf": ([INF, 1, 0], [1, 1, 0], [NAN, NAN, 0], [NAN, NAN, -INF], INF, NAN),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("case", SPECIAL)
def test_special_rows(case, dtype):
    row, mask, p, log_p, lse, entropy = SPECIAL[case]
    x = np.array(row, dtype)
    options = {} if mask is None else {"mask": np.array(mask, bool)}
    assert_allclose(ref.softmax(x, **options), p, rtol=EPS)
    assert_allclose(ref.log_softmax(x, **options), log_p, rtol=EPS)
    assert_allclose(ref.logsumexp(x, **options), lse, rtol=EPS)
    assert_allclose(ref.entropy(x, **options), entropy, rtol=2 * EPS)


def test_a_mask_is_the_same_as_leaving_the_entries_out():
    x = rng(2).normal(size=(4, 9))
    mask = rng(3).random((4, 9)) < 0.5
    mask[:, 0] = True
    x[~mask] = rng(4).choice([NAN, INF, -INF, 1e300], (~mask).sum())
    for i in range(4):
        few, keep = x[i, mask[i]], mask[i]
        assert_allclose(ref.softmax(x, mask=mask)[i, keep], ref.softmax(few), rtol=4 * EPS)
        assert_allclose(ref.log_softmax(x, mask=mask)[i, keep], ref.log_softmax(few), rtol=4 * EPS)
        assert_allclose(ref.logsumexp(x, mask=mask)[i], ref.logsumexp(few), rtol=4 * EPS)
        assert_allclose(ref.entropy(x, mask=mask)[i], ref.entropy(few), rtol=4 * EPS)
    assert_array_equal(ref.softmax(x, mask=mask)[~mask], 0)
    assert_array_equal(ref.log_softmax(x, mask=mask)[~mask], -INF)


def test_mask_broadcasts():
    x = rng(5).normal(size=(2, 3, 4))
    mask = np.array([True, False, True, True])
    assert_array_equal(ref.softmax(x, mask=mask), ref.softmax(x, mask=np.broadcast_to(mask, x.shape)))
    column = np.array([[True], [False], [True]])
    assert_array_equal(ref.softmax(x, mask=column)[:, 1], 0)
    assert_array_equal(ref.logsumexp(x, mask=column)[:, 1], -INF)


def test_empty_arrays():
    for shape, axis in [((0, 3), -1), ((3, 0), -1), ((0,), 0), ((2, 0, 4), 1), ((2, 0, 4), -1)]:
        x = np.empty(shape, np.float32)
        reduced = np.empty(shape).sum(axis=axis).shape
        assert ref.softmax(x, axis).shape == ref.log_softmax(x, axis).shape == shape
        assert ref.softmax_vjp(x, x, axis).shape == ref.log_softmax_vjp(x, x, axis).shape == shape
        assert_array_equal(ref.logsumexp(x, axis), np.full(reduced, -INF))
        assert_array_equal(ref.entropy(x, axis), np.zeros(reduced))


@pytest.mark.parametrize(
    ("given", "wide"),
    [
        (np.float16([1, 2]), np.float64),
        (np.array([1, 2], ml_dtypes.bfloat16), np.float64),
        (np.float32([1, 2]), np.float64),
        (np.float64([1, 2]), np.longdouble),
        (np.int64([1, 2]), np.longdouble),
        ([1, 2], np.longdouble),
        ([True, False], np.longdouble),
    ],
)
def test_working_precision(given, wide):
    for f in (ref.softmax, ref.log_softmax, ref.logsumexp, ref.entropy):
        assert f(given).dtype == wide
        assert_allclose(f(given), f(np.asarray(given, np.longdouble)), rtol=4 * np.finfo(wide).eps)


@pytest.mark.parametrize(
    "bad", [np.array([1j]), np.array(["a"]), np.array([None]), np.array(["2020"], "M8[Y]")]
)
def test_what_is_not_a_real_number_is_refused(bad):
    for f, name in [(ref.softmax, "x"), (ref.entropy, "logits"), (ref.perplexity, "log_probs")]:
        with pytest.raises(TypeError, match=f"{f.__name__}: {name} has dtype"):
            f(bad)


def test_wrong_arguments():
    x = np.zeros((2, 3))
    for temperature in (0, -1, INF, NAN):
        with pytest.raises(ValueError, match="softmax: temperature is"):
            ref.softmax(x, temperature=temperature)
    for axis in (2, -3):
        with pytest.raises(ValueError, match=f"softmax: axis {axis} is out of range"):
            ref.softmax(x, axis)
    with pytest.raises(ValueError, match=r"mask has shape \(2,\)"):
        ref.softmax(x, mask=[True, False])
    with pytest.raises(TypeError, match="mask has dtype"):
        ref.softmax(x, mask=[0, 1, 1])
    with pytest.raises(ValueError, match=r"softmax_vjp: dy has shape \(3,\)"):
        ref.softmax_vjp(x[0], x)
    with pytest.raises(ValueError, match=r"logsumexp_vjp: lse has shape \(\)"):
        ref.logsumexp_vjp(np.zeros(2), x, 0.0)
    with pytest.raises(ValueError, match="axis 0 is out of range"):
        ref.softmax(1.0, 0)


# --- derivatives


def options_for(shape, axis, masked):
    mask = rng(6).random(shape) < 0.7
    return {"axis": axis, "temperature": 0.7} | ({"mask": mask} if masked else {})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_derivatives_agree_with_central_differences(shape, axis, masked):
    x, dx, dy = rng(7).normal(size=(3, *shape))
    options = options_for(shape, axis, masked)
    allowed = options.get("mask", np.ones(shape, bool))

    y, tangent = ref.softmax_jvp(x, dx, **options)
    assert_array_equal(y, ref.softmax(x, **options))
    assert_allclose(tangent, numeric_jvp(lambda x: ref.softmax(x, **options), x, dx), **DIFFERENCE)
    expected = numeric_vjp(lambda x: ref.softmax(x, **options), x, dy)
    assert_allclose(ref.softmax_vjp(dy, y, **options), expected, **DIFFERENCE)

    def log_softmax(x):  # its masked entries are -inf, which has no difference
        return np.where(allowed, ref.log_softmax(x, **options), 0)

    y, tangent = ref.log_softmax_jvp(x, dx, **options)
    assert_array_equal(y, ref.log_softmax(x, **options))
    assert_allclose(tangent, numeric_jvp(log_softmax, x, dx), **DIFFERENCE)
    assert_allclose(ref.log_softmax_vjp(dy, y, **options), numeric_vjp(log_softmax, x, dy), **DIFFERENCE)

    def logsumexp(x):  # a row without allowed entries is -inf
        lse = ref.logsumexp(x, **options)
        return np.where(np.isfinite(lse), lse, 0)

    lse, tangent = ref.logsumexp_jvp(x, dx, **options)
    assert_array_equal(lse, ref.logsumexp(x, **options))
    d = rng(8).normal(size=lse.shape)
    assert_allclose(tangent, numeric_jvp(logsumexp, x, dx), **DIFFERENCE)
    assert_allclose(ref.logsumexp_vjp(d, x, lse, **options), numeric_vjp(logsumexp, x, d), **DIFFERENCE)


def test_masked_garbage_does_not_reach_derivatives():
    mask = np.array([[True, False, True], [False, False, False]])
    x = np.array([[0.0, NAN, 1.0], [INF, NAN, 0.0]])
    dx = np.array([[1.0, INF, 2.0], [NAN, NAN, INF]])
    clean_x, clean_dx = np.where(mask, x, 0), np.where(mask, dx, 0)
    y, log_y, lse = (f(x, mask=mask) for f in (ref.softmax, ref.log_softmax, ref.logsumexp))
    for got, clean in [
        (ref.softmax_jvp(x, dx, mask=mask)[1], ref.softmax_jvp(clean_x, clean_dx, mask=mask)[1]),
        (ref.log_softmax_jvp(x, dx, mask=mask)[1], ref.log_softmax_jvp(clean_x, clean_dx, mask=mask)[1]),
        (ref.softmax_vjp(dx, y, mask=mask), ref.softmax_vjp(clean_dx, y, mask=mask)),
        (ref.log_softmax_vjp(dx, log_y, mask=mask), ref.log_softmax_vjp(clean_dx, log_y, mask=mask)),
        (ref.logsumexp_vjp([1, 1], x, lse, mask=mask), ref.logsumexp_vjp([1, 1], clean_x, lse, mask=mask)),
    ]:
        assert np.isfinite(got).all()
        assert_array_equal(got, clean)
        assert_array_equal(got[~mask], 0)
    assert_array_equal(ref.logsumexp_jvp(x, dx, mask=mask)[1][1], 0)


def test_logsumexp_of_nothing_has_no_gradient():
    row = np.array([-INF, -INF])
    assert_array_equal(ref.logsumexp_vjp(3.0, row, -INF), [0, 0])
    assert_array_equal(ref.logsumexp_jvp(row, [1.0, 2.0])[1], 0)
    assert_array_equal(ref.softmax_jvp(row, [1.0, 2.0])[1], [NAN, NAN])


# --- the mirror and the documentation


def test_signatures_mirror_the_public_functions():
    def parameters(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    for name in ref.__all__:
        public = [p for p in parameters(check.function(name)) if p[0] != "out"]
        assert parameters(getattr(ref, name)) == public, name


@pytest.mark.parametrize("module", ["", ".softmax", ".token_stats", ".losses", ".attention", ".rotary"])
def test_examples_in_the_docstrings(module):
    result = doctest.testmod(importlib.import_module(f"npkernels.reference{module}"))
    assert result.attempted > 0
    assert result.failed == 0
