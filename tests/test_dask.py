"""Softmax, tokens and losses on Dask arrays: however the rows are cut, what npkernels gives for the whole."""

import re
import runpy
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import npkernels as nk

pytest.importorskip("dask")
import dask
import dask.array as da
from dask.array.utils import assert_eq

import npkernels.dask as nd
from npkernels import reference
from npkernels._cli import gate
from npkernels.dask._load import load

INF, NAN = np.inf, np.nan
SYNC = {"scheduler": "sync"}
DTYPES = [np.dtype(d) for d in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
FAMILY = ("softmax", "log_softmax", "logsumexp", "entropy")
RNG = np.random.default_rng(0)


def passed(name, expected_of, result, **options):
    for verdict in gate.expect(name, *expected_of, **options).judge(result):
        assert verdict.passed, verdict.text


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_family_over_rows_in_chunks(name, dtype, axis):
    x = (RNG.standard_normal((13, 6, 29)) * 8).astype(dtype)
    for chunks in ((4, 3, 10), (13, 6, 29), (13, 1, 7)):
        for options in ({}, {"temperature": 0.7}, {"mask": RNG.random((6, 29)) < 0.6}):
            lazy = getattr(nd, name)(da.from_array(x, chunks=chunks), axis, **options)
            result = lazy.compute(**SYNC)
            plain = getattr(nk, name)(x, axis, **options)
            assert (lazy.shape, lazy.dtype, result.dtype) == (plain.shape, plain.dtype, plain.dtype)
            assert lazy._meta.dtype == plain.dtype
            passed(name, (x, axis), result, **options)


def rows_of_every_kind():
    x = np.zeros((9, 8), np.float32)
    x[1, 5], x[2, 1], x[3], x[4, :6], x[5, 2:], x[6, 0] = NAN, INF, -INF, -INF, -INF, -INF
    x[7], x[8, 3] = [200, -200, 0, 100, -100, 50, 199, 1], 1e30
    return x


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_what_a_row_holds_decides(name, masked, chunk):
    x = rows_of_every_kind()
    options = {"mask": np.arange(72).reshape(9, 8) % 3 > 0} if masked else {}
    result = getattr(nd, name)(da.from_array(x, chunks=(2, chunk)), **options).compute(**SYNC)
    np.testing.assert_allclose(result, getattr(nk, name)(x, **options), rtol=2e-6, atol=1e-7)


def test_small_log_probabilities_keep_their_digits():
    x = np.array([0.0, 100.0, -3.0])
    got = nd.log_softmax(da.from_array(x, chunks=1)).compute(**SYNC)
    np.testing.assert_allclose(got, reference.log_softmax(x), rtol=1e-14)


def test_keepdims_and_dask_masks():
    x, mask = RNG.standard_normal((6, 10)), RNG.random((6, 10)) < 0.5
    lazy = nd.logsumexp(da.from_array(x, chunks=(2, 3)), 0, keepdims=True, mask=da.from_array(mask, chunks=4))
    assert_eq(lazy, nk.logsumexp(x, 0, keepdims=True, mask=mask), **SYNC)
    assert_eq(nd.softmax(da.arange(6, chunks=2)), nk.softmax(np.arange(6)), **SYNC)  # integers become float64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunks", [(2, 3, 7), (5, 4, 40), (5, 1, 13)])
@pytest.mark.parametrize("masked", [False, True])
def test_token_statistics(dtype, chunks, masked):
    x = (RNG.standard_normal((5, 4, 40)) * 3).astype(dtype)
    x[0, 0, 7] = x[0, 0, 33] = 30  # two first places
    x[1, 1] = 0
    ids = RNG.integers(0, 40, (5, 4))
    options = {"temperature": 1.3} | ({"mask": RNG.random(40) < 0.7} if masked else {})
    lazy = nd.token_log_probs(da.from_array(x, chunks=chunks), ids, **options)
    plain = nk.token_log_probs(x, ids, **options)
    for name in ("log_prob", "entropy", "lse", "sum_p2", "top1", "rank"):
        got, want = getattr(lazy, name), getattr(plain, name)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        computed = got.compute(**SYNC)
        assert computed.dtype == want.dtype
        if name in ("top1", "rank"):
            assert np.array_equal(computed, want), name
        else:
            tolerance = 1e-13 if dtype == np.float64 else 4e-6
            np.testing.assert_allclose(computed, want, rtol=tolerance, atol=tolerance, err_msg=name)
    few = nd.token_log_probs(da.from_array(x, chunks=chunks), da.from_array(ids, chunks=chunks[:2]), stats=())
    assert few.rank is None
    assert few.lse is None


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_of_rows_of_every_kind(masked):
    x = np.repeat(rows_of_every_kind(), 8, axis=0)
    ids = np.tile(np.arange(8), 9)
    options = {"mask": np.arange(8) % 3 > 0} if masked else {}
    lazy = nd.token_log_probs(da.from_array(x, chunks=(5, 3)), ids, **options)
    plain = reference.token_log_probs(x, ids, **options)
    for name in ("log_prob", "entropy", "lse", "sum_p2"):
        np.testing.assert_allclose(
            getattr(lazy, name).compute(**SYNC), getattr(plain, name), rtol=4e-6, atol=1e-6, err_msg=name
        )
    defined = ~np.isnan(plain.log_prob)
    for name in ("top1", "rank"):
        assert np.array_equal(getattr(lazy, name).compute(**SYNC)[defined], getattr(plain, name)[defined]), (
            name
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(reduction, weighted):
    x, targets = RNG.standard_normal((11, 9, 6)), RNG.integers(0, 9, (11, 6))
    targets[::3] = -100
    options = {"axis": 1, "reduction": reduction, "label_smoothing": 0.1}
    if weighted:
        options["weight"] = RNG.random(9)
    loss, grad = nd.cross_entropy(da.from_array(x, chunks=(3, 9, 2)), targets, return_grad=True, **options)
    want = nk.cross_entropy(x, targets, return_grad=True, **options)
    assert_eq(loss, np.asarray(want[0]), **SYNC, rtol=1e-12)
    assert_eq(grad, want[1], **SYNC, rtol=1e-12)
    alone = nd.cross_entropy(da.from_array(x, chunks=(3, 9, 2)), targets, **options)
    assert_eq(alone, np.asarray(want[0]), **SYNC, rtol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_weights_that_sum_to_nothing(smoothing):
    """0 / 0, as of the whole: only what is ignored has a gradient, of 0."""
    x, targets = RNG.standard_normal((4, 3)), np.array([0, -100, 0, 1])
    options = {"weight": np.array([0.0, 0.0, 1.0]), "label_smoothing": smoothing, "return_grad": True}
    loss, grad = nd.cross_entropy(da.from_array(x, chunks=(2, 3)), targets, **options)
    want = nk.cross_entropy(x, targets, **options)
    assert not np.isfinite(want[0])
    np.testing.assert_array_equal(loss.compute(**SYNC), want[0])
    np.testing.assert_array_equal(grad.compute(**SYNC), want[1])


def test_cross_entropy_of_nothing_and_of_wrong_targets():
    x = da.zeros((4, 3), chunks=(2, 3), dtype=np.float32)
    loss, grad = nd.cross_entropy(x, np.full(4, -100), return_grad=True)
    assert np.isnan(loss.compute(**SYNC))
    assert not grad.compute(**SYNC).any()
    for reduction in ("mean", "none"):
        wrong = nd.cross_entropy(x, np.array([0, 1, 2, 3]), reduction=reduction)
        with pytest.raises(IndexError, match="targets holds 3"):
            wrong.compute(**SYNC)
    with pytest.raises(IndexError, match="ids holds 7"):
        nd.token_log_probs(x.rechunk(1), [0, 7, 0, 0]).log_prob.compute(**SYNC)


def boom(block):
    raise RuntimeError("computed")


def untouchable(shape, chunks, dtype=np.float32):
    x = da.zeros(shape, chunks=chunks, dtype=dtype)
    return x.map_blocks(boom, dtype=dtype, meta=np.empty((0,) * len(shape), dtype))


def everything():
    """Every function, on arrays that must not be computed."""
    x, row = untouchable((8, 6), (2, 3)), untouchable((8,), (2,))
    ids, q = untouchable((8,), (2,), np.int64), untouchable((1, 2, 8, 4), (1, 1, 3, 4))
    lse, samples = untouchable((1, 2, 8), (1, 1, 3)), untouchable((8, 6), (2, 6))
    yield from (getattr(nd, name)(x) for name in FAMILY)
    yield nd.token_log_probs(x, ids).rank
    yield from nd.cross_entropy(samples, ids, return_grad=True)
    yield nd.sign_step(samples, samples, row)
    yield nd.steepest_step(samples, samples, 0.1, norm=1)
    yield nd.project(samples, samples, row, norm=2, bounds=(0, 1))
    yield nd.pgd_step(samples, samples, samples, 0.1, row, bounds=(untouchable((6,), (6,)), 1.0))
    yield nd.random_in_ball(samples, 1.0, rng=0)
    yield nd.group_stats(row, ids)
    yield nd.group_advantages(row, 4).advantages
    yield nd.group_advantages(row, ids).advantages
    yield nd.advantages_from_stats(row, 2, nd.group_stats(row, 2))
    yield from nd.attention(q, q, q, causal=True, return_lse=True)
    grads = nd.attention_vjp(q, q, q, q, q, lse, sinks=np.zeros(2), want_dsinks=True)
    yield from (grads.dq, grads.dk, grads.dv, grads.dsinks)


def test_nothing_is_computed_early():
    for lazy in everything():
        with pytest.raises(RuntimeError, match="computed"):
            lazy.compute(**SYNC)


X = da.zeros((4, 6), chunks=(2, 3))
UNKNOWN = X[da.from_array(np.ones(4, bool), chunks=2)]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nd.softmax(np.zeros(3)), TypeError, "softmax: x is a ndarray; expected a Dask array"),
        (lambda: nd.softmax(UNKNOWN), ValueError, "unknown sizes; call x.compute_chunk_sizes"),
        (lambda: nd.softmax(X, 2), ValueError, "axis 2 is out of bounds"),
        (lambda: nd.softmax(X, temperature=0), ValueError, "temperature is 0"),
        (lambda: nd.entropy(X, mask=np.ones(5, bool)), ValueError, r"mask has shape \(5,\)"),
        (lambda: nd.entropy(X, mask=X), TypeError, "mask has dtype float64"),
        (lambda: nd.entropy(X.astype(complex)), TypeError, "logits has dtype complex128"),
        (lambda: nd.token_log_probs(X, [0, 1]), ValueError, r"ids has shape \(2,\)"),
        (lambda: nd.token_log_probs(X, X[:, 0]), TypeError, "ids has dtype float64"),
        (lambda: nd.token_log_probs(X, [0] * 4, stats=["max"]), ValueError, "stats holds 'max'"),
        (
            lambda: nd.cross_entropy(X, [0] * 4),
            ValueError,
            r"2 chunks along axis 1.*logits.rechunk\(\{1: -1\}\)",
        ),
        (lambda: nd.cross_entropy(X, [0] * 4, axis=1, weight=X), ValueError, "rechunk"),
    ],
)
def test_errors_come_at_once_and_say_what_to_do(call, error, words):
    with pytest.raises(error, match=words):
        call()


def lying(x, change, chunks=(2, 3)):
    """A Dask array of float64 whose blocks are something else."""
    return da.from_array(x, chunks=chunks).map_blocks(change, dtype=float, meta=np.empty((0,) * x.ndim))


def test_blocks_of_another_dtype_become_what_the_array_says():
    x = RNG.integers(-3, 3, (6, 9)).astype(np.float64)
    for kind in (np.float32, np.int64):
        lazy = lying(x, lambda b, kind=kind: b.astype(kind))
        for name in FAMILY:
            result = getattr(nd, name)(lazy).compute(**SYNC)
            assert result.dtype == np.float64
            np.testing.assert_allclose(result, getattr(nk, name)(x), rtol=1e-12, atol=1e-14)
        a = nd.group_advantages(lazy[:, 0], 3).advantages.compute(**SYNC)
        assert a.dtype == np.float64
        whole = lying(x, lambda b, kind=kind: b.astype(kind), (2, 9))
        np.testing.assert_allclose(
            nd.attention(whole, whole, whole, causal=True).compute(**SYNC),
            nk.attention(x, x, x, causal=True),
            rtol=1e-12,
        )
    with pytest.raises(TypeError, match=r"a block of .* has dtype complex128, the array says float64"):
        nd.softmax(lying(x, lambda b: b * 1j)).compute(**SYNC)


def test_blocks_of_another_shape_are_an_error():
    x = RNG.standard_normal((6, 9))
    for call in (
        lambda y: nd.softmax(y),
        lambda y: nd.attention(y, y, y, causal=True),
        lambda y: nd.group_advantages(y[:, 0], 3).advantages,
        lambda y: nd.sign_step(y, y, 0.1),
    ):
        with pytest.raises(ValueError, match=r"a block of .* has shape \(1,.*its chunks say \(2,"):
            call(lying(x, lambda b: b[:1], (2, 9))).compute(**SYNC)


def test_chunks_that_are_no_numpy_arrays_are_named_at_once():
    x = da.from_array(RNG.standard_normal((6, 9)), chunks=(2, 3))
    masked = da.ma.masked_array(x, mask=x > 0)
    with pytest.raises(TypeError, match=r"softmax: x is a Dask array of numpy\.ma.*map_blocks"):
        nd.softmax(masked)
    with pytest.raises(TypeError, match=r"group_advantages: groups is a Dask array of numpy\.ma"):
        nd.group_advantages(x[:, 0], masked[:, 0].astype(int))


def test_the_same_arguments_have_the_same_names():
    one, two = (nd.softmax(X, mask=np.arange(6) > 2) for _ in range(2))
    assert one.name == two.name
    assert one.name != nd.softmax(X, mask=np.arange(6) > 3).name


def test_xarray_block_by_block_and_as_a_whole():
    xr = pytest.importorskip("xarray")
    x = RNG.standard_normal((4, 10))
    core = {"input_core_dims": [["vocab"]], "output_core_dims": [["vocab"]]}
    logits = xr.DataArray(da.from_array(x, chunks=(2, 10)), dims=("token", "vocab"))
    p = xr.apply_ufunc(nk.softmax, logits, dask="parallelized", output_dtypes=[x.dtype], **core)
    assert isinstance(p.data, da.Array)
    np.testing.assert_array_equal(p.compute(**SYNC), nk.softmax(x))
    cut = logits.chunk(vocab=3)
    p = xr.apply_ufunc(nd.softmax, cut, dask="allowed", **core)
    assert p.data.chunks == cut.data.chunks
    np.testing.assert_allclose(p.compute(**SYNC), nk.softmax(x), rtol=1e-14)


def test_the_examples_of_the_page_run():
    page = Path(__file__).parents[1] / "docs" / "dask.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    names = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def test_array_expressions_are_named():
    with dask.config.set({"array.query-planning": True}), pytest.raises(ImportError, match="query-planning"):
        load("dask.array")


def test_the_plan_of_the_page_is_what_its_command_prints(capsys):
    root = Path(__file__).parents[1]
    page = (root / "docs" / "scaling.md").read_text()
    commands = re.findall(r"^python (benchmarks/scaling.py) (plan.*)$", page, re.MULTILINE)
    assert commands
    for program, arguments in commands:
        runpy.run_path(str(root / program))["main"](arguments.split())
        assert capsys.readouterr().out.strip() in page
