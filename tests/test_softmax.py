"""The softmax family: any axis and strides, derivatives against each other, special rows as documented."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

import npkernels
from npkernels import reference

INF, NAN, LOG2 = np.inf, np.nan, np.log(2)
FORWARD = ["softmax", "log_softmax", "logsumexp", "entropy"]


@st.composite
def views(draw):
    """An array of 1 to 4 axes seen through steps, reversed axes, transposition or broadcasting."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=7))
    seed = draw(st.integers(0, 2**32 - 1))
    x = np.random.default_rng(seed).standard_normal([2 * n for n in shape])
    x = x[tuple(slice(None, None, draw(st.sampled_from([2, -2]))) for _ in shape)]
    if draw(st.booleans()):
        x = x.transpose(draw(st.permutations(range(x.ndim))))
    if draw(st.booleans()):
        x = np.broadcast_to(x[:1], x.shape)
    return x.astype(draw(st.sampled_from([np.float32, np.float64])), copy=draw(st.booleans()))


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(views(), st.data())
def test_any_view_and_axis(x, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    mask = data.draw(st.none() | hnp.arrays(bool, hnp.broadcastable_shapes(x.shape, max_dims=x.ndim)))
    if mask is not None and np.broadcast_shapes(mask.shape, x.shape) != x.shape:
        mask = None
    before = x.copy()
    eps = np.finfo(x.dtype).eps
    for name in FORWARD:
        got = getattr(npkernels, name)(x, axis, mask=mask)
        want = getattr(reference, name)(x, axis, mask=mask).astype(np.float64)
        np.testing.assert_allclose(np.float64(got), want, rtol=50 * eps, atol=50 * eps, err_msg=name)
    for name in ("softmax", "log_softmax"):
        out = np.full_like(x, 7.0, subok=False)[..., ::-1][..., ::-1]
        assert getattr(npkernels, name)(x, axis, mask=mask, out=out) is out
        assert np.array_equal(out, getattr(npkernels, name)(x, axis, mask=mask))
    assert np.array_equal(x, before)


@pytest.mark.parametrize("isa", npkernels.available_isas())
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"mask": True}, {"axis": 0}])
def test_derivatives_agree_with_each_other_and_with_differences(isa, options):
    rng = np.random.default_rng(0)
    x, dx, dy = rng.standard_normal((3, 5, 37))
    options = dict(options)
    if "mask" in options:
        options["mask"] = rng.random((5, 37)) < 0.6
    with npkernels.use_isa(isa):
        for name in ("softmax", "log_softmax", "logsumexp"):
            function = getattr(npkernels, name)
            value, tangent = getattr(npkernels, f"{name}_jvp")(x, dx, **options)
            np.testing.assert_allclose(value, function(x, **options), rtol=1e-13, err_msg=name)
            live = np.isfinite(value)
            h = 1e-5
            ahead, behind = function(x + h * dx, **options), function(x - h * dx, **options)
            slope = (np.where(live, ahead, 0) - np.where(live, behind, 0)) / (2 * h)
            np.testing.assert_allclose(np.where(live, tangent, 0), slope, atol=1e-8, err_msg=name)
            cotangent = np.where(live, dy if name != "logsumexp" else dy.sum(axis=options.get("axis", -1)), 0)
            if name == "logsumexp":
                back = npkernels.logsumexp_vjp(cotangent, x, value, **options)
            else:
                back = getattr(npkernels, f"{name}_vjp")(cotangent, value, **options)
            inner = np.vdot(cotangent, np.where(live, tangent, 0))
            np.testing.assert_allclose(np.vdot(back, dx), inner, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("isa", npkernels.available_isas())
@pytest.mark.parametrize("n", [2, 17, 1025])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_what_a_row_holds_decides_what_it_gives(isa, n, dtype):
    plain = np.linspace(-3, 3, n).astype(dtype)
    rows = {
        "nan": (np.where(np.arange(n) == n - 1, NAN, plain), None, NAN, NAN, NAN, NAN),
        "+inf": (np.where(np.arange(n) == n // 2, INF, plain), None, NAN, NAN, INF, NAN),
        "all -inf": (np.full(n, -INF), None, NAN, NAN, -INF, NAN),
        "nothing allowed": (np.full(n, NAN), np.zeros(n, bool), 0, -INF, -INF, 0),
        "only -inf allowed": (np.full(n, -INF), np.ones(n, bool), 0, -INF, -INF, 0),
    }
    with npkernels.use_isa(isa):
        for row, mask, *expected in rows.values():
            for name, want in zip(FORWARD, expected, strict=True):
                got = getattr(npkernels, name)(row.astype(dtype), mask=mask)
                assert np.array_equal(np.unique(got), [want], equal_nan=True), name


# logits, mask, id -> log_prob, entropy, lse, sum_p2, top1, rank: the table of docs/api.md
TOKENS = {
    "NaN": ([0, NAN, 7, NAN], None, 0, NAN, NAN, NAN, NAN, 1, 1),
    "id is NaN": ([0, NAN, 7, NAN], None, 1, NAN, NAN, NAN, NAN, 1, 0),
    "+inf": ([0, 5, INF, INF], None, 1, NAN, NAN, INF, NAN, 2, 2),
    "id is +inf": ([0, 5, INF, INF], None, 3, NAN, NAN, INF, NAN, 2, 0),
    "-inf": ([-INF] * 4, None, 3, NAN, NAN, -INF, NAN, 0, 0),
    "nothing allowed": ([NAN, INF, 0, 1], [0, 0, 0, 0], 3, -INF, 0, -INF, 0, -1, 0),
    "only -inf allowed": ([-INF, 0, -INF, NAN], [1, 0, 1, 0], 0, -INF, 0, -INF, 0, -1, 0),
    "id at -inf": ([0, -INF, 0, -INF], None, 3, -INF, LOG2, LOG2, 0.5, 0, 2),
    "id masked": ([0, 0, NAN, 9], [1, 1, 0, 0], 3, -INF, LOG2, LOG2, 0.5, 0, 2),
}


@pytest.mark.parametrize("isa", npkernels.available_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("case", TOKENS)
def test_what_a_row_holds_decides_what_its_token_gets(isa, dtype, case):
    logits, mask, token, *expected = TOKENS[case]
    mask = None if mask is None else np.array(mask, bool)
    with npkernels.use_isa(isa):
        for function in (npkernels.token_log_probs, reference.token_log_probs):
            t = function(np.array([logits], dtype), [token], mask=mask)
            got = np.array([t.log_prob, t.entropy, t.lse, t.sum_p2, t.top1, t.rank], float)[:, 0]
            np.testing.assert_allclose(got, np.array(expected, float), rtol=1e-6)


def test_empty_axis_and_no_rows():
    for dtype in (np.float32, np.float64, np.float16):
        assert npkernels.softmax(np.zeros((3, 0), dtype)).shape == (3, 0)
        assert np.array_equal(npkernels.logsumexp(np.zeros((3, 0), dtype)), [-INF] * 3)
        assert np.array_equal(npkernels.entropy(np.zeros((3, 0), dtype)), [0] * 3)
        for axis in (0, 1, 2):
            assert npkernels.softmax(np.zeros((2, 0, 4), dtype), axis).shape == (2, 0, 4)
        assert npkernels.logsumexp(np.zeros((0, 5), dtype)).shape == (0,)


def test_small_log_probabilities_keep_their_digits():
    x = np.array([0.0, -50.0, -60.0])
    tail = np.exp(-50.0) + np.exp(-60.0)
    assert npkernels.log_softmax(x)[0] == pytest.approx(-tail, rel=1e-14)
    assert npkernels.token_log_probs(x, 0).log_prob == pytest.approx(-tail, rel=1e-14)


@pytest.mark.parametrize("n", [1, 16, 1023, 5000])
def test_a_shift_of_the_logits_changes_nothing(n):
    x = np.random.default_rng(n).integers(-20, 20, (3, n)).astype(np.float32)
    assert np.array_equal(npkernels.softmax(x), npkernels.softmax(x + 1000))
    assert np.array_equal(npkernels.log_softmax(x), npkernels.log_softmax(x - 1000))
    assert np.array_equal(npkernels.entropy(x), npkernels.entropy(x + 1000))


@pytest.mark.parametrize("isa", npkernels.available_isas())
def test_strided_rows_have_the_bits_of_contiguous_ones(isa):
    x = np.random.default_rng(0).standard_normal((2051, 19)).astype(np.float32)
    with npkernels.use_isa(isa):
        rows = np.ascontiguousarray(x.T)
        assert np.array_equal(npkernels.softmax(x, axis=0).T, npkernels.softmax(rows))
        assert np.array_equal(npkernels.logsumexp(x, axis=0), npkernels.logsumexp(rows))
        backwards = np.ascontiguousarray(rows[:, ::-1])
        assert np.array_equal(npkernels.softmax(rows[:, ::-1]), npkernels.softmax(backwards))


@pytest.mark.parametrize("isa", npkernels.available_isas())
def test_the_rank_is_that_of_the_logits_as_they_came(isa):
    # Neighbouring numbers that one division makes equal: 3 * 2^-149 / 8 and 4 * 2^-149 / 8 both round to 0.
    tiny = np.float32(2.0**-149)
    logits = np.array([[3, 4, 5, 4, 1]], np.float32) * tiny
    with npkernels.use_isa(isa):
        t = npkernels.token_log_probs(logits, [0], temperature=8.0)
    assert t.rank == [3]
    assert t.top1 == [2]


def test_statistics_may_be_named_by_any_iterable():
    logits, ids = np.eye(3), [0, 1, 2]
    for stats in (iter(["lse", "rank"]), {"lse", "rank"}, np.array(["lse", "rank"])):
        t = npkernels.token_log_probs(logits, ids, stats=stats)
        assert np.array_equal(t.lse, npkernels.logsumexp(logits))
        assert t.rank.tolist() == [0, 0, 0]
        assert (t.entropy, t.sum_p2, t.top1) == (None, None, None)


@pytest.mark.parametrize("isa", npkernels.available_isas())
def test_a_temperature_that_makes_an_entry_infinite(isa):
    x = np.float32([1, 2, -3])
    with npkernels.use_isa(isa):
        assert npkernels.logsumexp(x, temperature=1e-39) == INF
        assert np.isnan(npkernels.softmax(x, temperature=1e-39)).all()
        assert npkernels.softmax(x, temperature=1e-37).tolist() == [0, 1, 0]
        assert npkernels.logsumexp(-x[:2], temperature=1e-39) == -INF
        assert npkernels.softmax(x.astype(np.float64), temperature=1e-300).tolist() == [0, 1, 0]
