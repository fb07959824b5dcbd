"""Rows whose exponentials are kept between the passes: the same bits wherever they lie, right at every length."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import npkernels as nk
from npkernels import reference

INF, NAN = np.inf, np.nan
CHUNK = 1024  # entries that are read at a time
MOST = {np.float32: 1 << 18, np.float64: 1 << 17, np.float16: 1 << 18}  # entries that are kept
LENGTHS = [1, 2, 255, 257, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7]


def rising(n, dtype):
    """A row whose largest entry so far rises from chunk to chunk, and falls at the end."""
    rng = np.random.default_rng(n)
    return (rng.standard_normal(n) + 3 * np.minimum(np.arange(n), n - 5) / CHUNK).astype(dtype)


@pytest.mark.parametrize("isa", nk.available_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_lengths_around_what_is_read_and_kept_at_a_time(isa, dtype):
    limits = np.finfo(dtype)
    with nk.use_isa(isa):
        for n in (*LENGTHS, MOST[dtype] - 1, MOST[dtype], MOST[dtype] + 1):
            x = rising(n, dtype)
            want = reference.softmax(x)
            work = np.finfo(np.float32 if dtype == np.float16 else dtype)
            gap = (x.max() - x).astype(float)  # is rounded before its exponential is taken
            rounding = want * (work.eps * (4 + gap) + limits.eps) + limits.smallest_subnormal
            assert (np.abs(nk.softmax(x) - want) <= rounding).all()
            loss, grad = nk.cross_entropy(x[None], [n // 2], return_grad=True)
            want_loss, want_grad = reference.cross_entropy(x[None], [n // 2], return_grad=True)
            assert_allclose(float(loss), want_loss, rtol=max(4 * limits.eps, 1e-6))
            rounding[n // 2] += limits.eps  # 1 is subtracted there
            assert (np.abs(grad[0] - want_grad[0]) <= rounding).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_the_bits_do_not_depend_on_where_a_row_lies(dtype):
    for n in LENGTHS:
        x = np.stack([rising(n, dtype), rising(n, dtype)[::-1], np.zeros(n, dtype)])
        want = nk.softmax(x)
        assert_array_equal(nk.softmax(x.T.copy(), axis=0).T, want)  # chunks of many rows, nothing kept
        assert_array_equal(nk.softmax(np.repeat(x, 2, axis=1)[:, ::2]), want)
        y = x.copy()
        assert nk.softmax(y, out=y) is y
        assert_array_equal(y, want)
        assert_array_equal(nk.softmax(x, mask=np.ones_like(x, bool)), want)
        loss = nk.cross_entropy(x, [0] * 3, reduction="none")
        assert_array_equal(nk.cross_entropy(x, [0] * 3, reduction="none", return_grad=True)[0], loss)


def test_rows_that_are_not_finite_beyond_the_first_chunk():
    n = 3 * CHUNK
    with np.errstate(all="ignore"):
        for first, later in ((-INF, 1.0), (1.0, INF), (1.0, NAN), (NAN, 1.0), (-INF, -INF), (1.0, -INF)):
            x = np.full(n, first, np.float32)
            x[CHUNK + 5 :] = later
            assert_array_equal(nk.softmax(x), reference.softmax(x).astype(np.float32))
            mask = np.arange(n) % 2 == 0
            assert_allclose(nk.softmax(x, mask=mask), reference.softmax(x, mask=mask), rtol=1e-6)


@pytest.mark.parametrize("isa", nk.available_isas())
def test_results_below_the_normal_range_are_gradual(isa):
    x = np.array([0, -87.3, -88, -95, -103, -104, -INF], np.float32)
    with nk.use_isa(isa):
        got = nk.softmax(x).astype(float)
    assert_allclose(got, np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(), rtol=1e-6, atol=1.5e-45)


def test_smoothed_losses_with_negative_weights_over_several_chunks():
    x, weight = np.linspace(0, 50, 5000)[None], np.full(5000, -1.0)
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": "sum"}
    assert_allclose(
        nk.cross_entropy(x, [7], **options), reference.cross_entropy(x, [7], **options), rtol=1e-12
    )
