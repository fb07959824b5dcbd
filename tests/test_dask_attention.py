"""Attention and its gradients on Dask arrays, cut along batch, heads, queries and keys."""

import numpy as np
import pytest

import npkernels as nk

pytest.importorskip("dask")
import dask
import dask.array as da
from dask.array.utils import assert_eq

import npkernels.dask as nd
from attention_rows import ROWS, build, label, without_dropout
from npkernels._cli import gate

SYNC = {"scheduler": "sync"}
RNG = np.random.default_rng(0)


def cut(x, heads, length):
    """One entry of the batch, some heads and a third or so of the positions in each chunk."""
    size = max(1, -(-x.shape[-2] // length))
    return da.from_array(x, chunks=(1, heads, size, -1)[4 - x.ndim :])


def cut_all(q, k, v, parts=3):
    share = q.shape[-3] // k.shape[-3] if q.ndim > 2 else 1
    return cut(q, share, parts), cut(k, 1, parts + 1), cut(v, 1, parts + 1)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_options_with_one_another(row):
    qkv, options = build(row)
    options = without_dropout(options)
    expectation = gate.expect("attention", *qkv, return_lse=True, **options)
    lazy = nd.attention(*cut_all(*qkv), return_lse=True, **options)
    result = dask.compute(*lazy, **SYNC)
    plain = nk.attention(*qkv, return_lse=True, **options)
    for some, computed, want in zip(lazy, result, plain, strict=True):
        assert (some.shape, some.dtype) == (want.shape, want.dtype)
        assert (computed.shape, computed.dtype) == (want.shape, want.dtype)
    for verdict in expectation.judge(result):
        assert verdict.passed, f"{label(row)}: {verdict.text}"


@pytest.mark.parametrize("row", ROWS[::2], ids=range(0, len(ROWS), 2))
def test_gradients_with_every_option(row):
    qkv, options = build(row)
    options = without_dropout(options)
    o, lse = nk.attention(*qkv, return_lse=True, **options)
    rng = np.random.default_rng(1)
    dout, dlse = (
        rng.standard_normal(o.shape).astype(o.dtype),
        rng.standard_normal(lse.shape).astype(lse.dtype),
    )
    dlse[np.isinf(lse)] = 0
    wanted = {"want_dsinks": "sinks" in options}
    want = nk.attention_vjp(dout, *qkv, o, lse, dlse=dlse, **wanted, **options)
    q, k, v = cut_all(*qkv)
    like_q = [
        da.from_array(x, chunks=(*q.chunks[:-1], *[(n,) for n in x.shape[q.ndim - 1 :]])) for x in (dout, o)
    ]
    like_lse = [da.from_array(x, chunks=q.chunks[:-1]) for x in (lse, dlse)]
    got = nd.attention_vjp(like_q[0], q, k, v, like_q[1], like_lse[0], dlse=like_lse[1], **wanted, **options)
    names = ["dq", "dk", "dv"] + ["dsinks"] * wanted["want_dsinks"]
    computed = dask.compute(*(getattr(got, name) for name in names), **SYNC)
    eps = {8: 1e-13, 4: 2e-5, 2: 2e-2}[o.dtype.itemsize]
    for name, y in zip(names, computed, strict=True):
        x = getattr(want, name)
        assert (getattr(got, name).dtype, y.dtype, y.shape) == (x.dtype, x.dtype, x.shape)
        x, y = x.astype(np.float64), y.astype(np.float64)
        np.testing.assert_allclose(
            y, x, rtol=eps, atol=eps * max(1, abs(x).max(initial=0)), err_msg=f"{name} {label(row)}"
        )


def qkv(S, K, heads=(4, 2), D=8, batch=1):
    return (
        RNG.standard_normal((batch, heads[0], S, D)),
        RNG.standard_normal((batch, heads[1], K, D)),
        RNG.standard_normal((batch, heads[1], K, D)),
    )


def parts_of(lazy):
    return [key for key in lazy.__dask_graph__() if key[0].endswith("-part")]


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        ({}, 64),
        ({"causal": True}, 36),
        ({"causal": True, "window": (15, 0)}, 8 + 7),
        ({"window": (1, 1)}, 8 + 7 + 7),
        ({"causal": "bottom_right", "q_offset": -32}, 1 + 2 + 3 + 4 + 5 + 6),
        ({"kv_lengths": np.array([17])}, 16),
        ({"causal": "top_left", "kv_lengths": np.array([32])}, 1 + 2 * 7),
    ],
)
def test_blocks_that_see_nothing_are_no_task(options, tasks):
    q, k, v = qkv(128, 128, (1, 1))
    lazy = nd.attention(*(da.from_array(x, chunks=(1, 1, 16, 8)) for x in (q, k, v)), **options)
    assert len(parts_of(lazy)) == tasks
    assert_eq(lazy, nk.attention(q, k, v, **options), **SYNC, rtol=1e-12, atol=1e-13)


def test_no_task_gets_more_than_one_block_of_keys(monkeypatch):
    q, k, v = qkv(60, 90)
    lazy = [da.from_array(x, chunks=(1, 2 if x is q else 1, 20, 8)) for x in (q, k, v)]
    o, lse = nk.attention(q, k, v, causal="bottom_right", return_lse=True)
    want = nk.attention_vjp(o, q, k, v, o, lse, causal="bottom_right")
    out = nd.attention(*lazy, causal="bottom_right", return_lse=True)
    grads = nd.attention_vjp(out[0], *lazy, *out, causal="bottom_right")
    sizes = []

    def note(function):
        def call(*args, **kwargs):
            sizes.extend(x.shape[-2] for x in args if x.ndim == 4)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(nk, "attention", note(nk.attention))
    monkeypatch.setattr(nk, "attention_vjp", note(nk.attention_vjp))
    got = dask.compute(out[0], grads.dq, grads.dk, grads.dv, scheduler="threads")
    assert max(sizes) == 20
    for a, b in zip(got, (o, want.dq, want.dk, want.dv), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_queries_without_keys():
    q, k, v = qkv(12, 6, (2, 2))
    sinks = np.array([0.5, -1.0])
    for options in ({"causal": True, "q_offset": -9}, {"causal": True, "q_offset": -9, "sinks": sinks}):
        lazy = nd.attention(
            *(da.from_array(x, chunks=(1, 2, 3, 8)) for x in (q, k, v)), return_lse=True, **options
        )
        for got, want in zip(lazy, nk.attention(q, k, v, return_lse=True, **options), strict=True):
            assert_eq(got, want, **SYNC)


def test_a_mask_and_a_bias_in_chunks():
    q, k, v = qkv(12, 18, batch=2)
    mask, bias = RNG.random((2, 1, 12, 18)) < 0.7, RNG.standard_normal((4, 12, 18))
    lazy = nd.attention(
        da.from_array(q, chunks=(1, 2, 4, 8)),
        *(da.from_array(x, chunks=(1, 1, 6, 8)) for x in (k, v)),
        mask=da.from_array(mask, chunks=(1, 1, 4, 6)),
        bias=da.from_array(bias, chunks=(2, 4, 6)),
    )
    assert_eq(lazy, nk.attention(q, k, v, mask=mask, bias=bias), **SYNC, rtol=1e-12)
    assert len(lazy.chunks[2]) == 3


def test_float16_is_rounded_twice_at_most():
    q, k, v = (x.astype(np.float16) for x in qkv(64, 256))
    got = nd.attention(*cut_all(q, k, v, 8)).compute(**SYNC)
    want = nk.attention(q, k, v)
    assert np.abs(got.astype(float) - want).max() <= 2 * np.spacing(np.abs(want).max())


Q = da.zeros((2, 4, 8, 4), chunks=(1, 2, 4, 4))
K = da.zeros((2, 2, 8, 4), chunks=(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nd.attention(np.zeros((2, 2)), K, K), TypeError, "attention: q is a ndarray"),
        (
            lambda: nd.attention(Q.rechunk({3: 2}), K, K),
            ValueError,
            r"q has 2 chunks along axis 3.*q.rechunk",
        ),
        (lambda: nd.attention(Q, K, K.rechunk({2: 8})), ValueError, "v has chunks .*v.rechunk"),
        (
            lambda: nd.attention(Q, K.rechunk({0: 2}), K.rechunk({0: 2})),
            ValueError,
            "along the batch.*rechunk",
        ),
        (
            lambda: nd.attention(Q.rechunk({1: 1}), K, K),
            ValueError,
            r"along the heads.*q.rechunk\(\{1: \(2, 2\)\}\)",
        ),
        (
            lambda: nd.attention(Q, K, K, dropout_p=0.1, dropout_seed=1),
            NotImplementedError,
            "^attention: dropout_p is 0.1; expected 0, since npkernels.dask has no dropout",
        ),
        (
            lambda: nd.attention_vjp(Q, Q, K, K, Q, Q[..., 0], dropout_p=0.1, dropout_seed=1),
            NotImplementedError,
            "^attention_vjp: dropout_p is 0.1; expected 0",
        ),
        (lambda: nd.attention(Q, K, K, dropout_p="a"), TypeError, "dropout_p is 'a'; expected a number"),
        (
            lambda: nd.attention_vjp(Q, Q, K, K, Q, Q[..., 0], want_dbias=True),
            NotImplementedError,
            "^attention_vjp: want_dbias is True; expected False",
        ),
        (lambda: nd.attention(Q, K[:, :, :, :3], K), ValueError, "k has head size 3, q has 4"),
        (lambda: nd.attention(Q, K, K, causal="left"), ValueError, "causal is 'left'"),
        (lambda: nd.attention(Q, K, K, sinks=da.zeros(4)), TypeError, "sinks is a Dask array"),
        (lambda: nd.attention(Q, K, K, mask=np.ones((3, 8), bool)), ValueError, r"mask has shape \(3, 8\)"),
        (
            lambda: nd.attention(Q, K, K, mask=da.ones((8, 8), chunks=(4, 8), dtype=bool)),
            ValueError,
            "mask has chunks .* along the keys.*mask.rechunk",
        ),
        (lambda: nd.attention(Q, K, K, bias=np.ones((8, 8), np.float32)), TypeError, "expected q's dtype"),
        (lambda: nd.attention_vjp(Q.rechunk({2: 8}), Q, K, K, Q, Q[..., 0]), ValueError, "dout has chunks"),
        (lambda: nd.attention_vjp(Q, Q, K, K, Q, Q[:1, ..., 0]), ValueError, "lse has shape"),
        (lambda: nd.attention_vjp(Q, Q, K, K, Q, Q[..., 0], want_dsinks=True), ValueError, "pass sinks="),
    ],
)
def test_errors_come_at_once_and_say_what_to_do(call, error, words):
    with pytest.raises(error, match=words):
        call()
