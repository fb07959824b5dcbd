"""The derivatives of attention in npkernels.h: the answers of the Python functions, and what else they refuse."""

import numpy as np
import pytest

import npkernels
from c_calls import FLOATS, arguments_of, compute, expect_refused, normal, same
from c_library import (
    BAD_SHAPE,
    BAD_STRIDES,
    BAD_VALUE,
    NULL_POINTER,
    OK,
    TOP_LEFT,
    AttentionOptions,
    call,
    struct,
)


def problem(dtype):
    """q (a transposed view), k, v, and options as Python and C share them."""
    q = normal(2, 5, 4, 8, dtype=dtype).transpose(0, 2, 1, 3)
    k, v = normal(2, 2, 7, 8, dtype=dtype), normal(2, 2, 7, 3, dtype=dtype)
    shared = {"mask": normal(4, 5, 7) > -2, "scale": 0.3, "softcap": 2.0, "kv_lengths": np.array([7, 4])}
    shared |= {"q_offset": np.array([3, 1]), "alibi_slopes": abs(normal(4, dtype=compute(dtype)))}
    return q, k, v, shared | {"sinks": normal(4, dtype=compute(dtype))}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("bias_shape", [(7,), (2, 1, 5, 7), (2, 4, 5, 7)])
def test_vjp(bias_shape, dtype):
    q, k, v, shared = problem(dtype)
    shared |= {"bias": normal(*bias_shape, dtype=dtype), "dropout_p": 0.3, "dropout_seed": 5}
    o, lse = npkernels.attention(q, k, v, causal="top_left", return_lse=True, **shared)
    dout, dlse = normal(*o.shape, dtype=dtype, seed=1), normal(*lse.shape, dtype=compute(dtype), seed=1)
    grads = npkernels.attention_vjp(
        dout, q, k, v, o, lse, dlse=dlse, causal="top_left", want_dbias=True, want_dsinks=True, **shared
    )
    dq, dk, dv = (np.empty_like(a) for a in (q, k, v))
    dbias, dsinks = np.empty(bias_shape, compute(dtype)), np.empty(4, compute(dtype))
    options = struct(AttentionOptions, causal=TOP_LEFT, **shared)
    assert call("attention_vjp", dout, q, k, v, o, lse, dlse, options, dq, dk, dv, dbias, dsinks) == OK
    for name, got in {"dq": dq, "dk": dk, "dv": dv, "dsinks": dsinks}.items():
        same(got, getattr(grads, name))
    if dtype in (np.float32, np.float64):
        same(dbias, grads.dbias)
    else:  # the C function gives the wider numbers
        np.testing.assert_allclose(
            dbias, grads.dbias.astype(np.float32), rtol=np.finfo(np.float16).eps * 8, atol=1e-7
        )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_jvp(dtype):
    q, k, v, shared = problem(dtype)
    shared["bias"] = normal(7, dtype=dtype)
    along = [normal(*a.shape, dtype=dtype, seed=1) for a in (q, k, v)]
    wanted = npkernels.attention_jvp(q, k, v, *along, causal="top_left", return_lse=True, **shared)
    out, dout, lse = (
        np.empty((2, 4, 5, 3), dtype),
        np.empty((2, 4, 5, 3), dtype),
        np.empty((2, 4, 5), compute(dtype)),
    )
    options = struct(AttentionOptions, causal=TOP_LEFT, **shared)
    assert call("attention_jvp", q, k, v, *along, options, out, dout, lse) == OK
    for got, expected in zip((out, dout, lse), wanted, strict=True):
        same(got, expected)
    out[:] = dout[:] = 0
    assert call("attention_jvp", q, k, v, *along, options, out, dout, None) == OK
    same(out, wanted[0])
    same(dout, wanted[1])


@pytest.mark.parametrize("ndim", [2, 3])
def test_without_a_batch_and_by_default(ndim):
    q, k, v = normal(4, 5, 8), normal(2, 7, 8), normal(2, 7, 3)
    if ndim == 2:
        q, k, v = q[0], k[0], v[0]
    o, lse = npkernels.attention(q, k, v, return_lse=True)
    dout = normal(*o.shape, seed=1)
    wanted = npkernels.attention_vjp(dout, q, k, v, o, lse)
    dq, dk, dv = (np.empty_like(a) for a in (q, k, v))
    assert call("attention_vjp", dout, q, k, v, o, lse, None, None, dq, dk, dv, None, None) == OK
    for name, got in {"dq": dq, "dk": dk, "dv": dv}.items():
        same(got, getattr(wanted, name))
    out, tangent = np.empty_like(o), np.empty_like(o)
    assert call("attention_jvp", q, k, v, dq, dk, dv, None, out, tangent, None) == OK
    for got, expected in zip((out, tangent), npkernels.attention_jvp(q, k, v, dq, dk, dv), strict=True):
        same(got, expected)


def test_what_has_no_gradient():
    expect_refused("attention_vjp", {"bias": None}, NULL_POINTER)
    expect_refused("attention_vjp", {"sinks": None}, NULL_POINTER)
    expect_refused("attention_jvp", {"dropout_p": 0.1}, BAD_VALUE)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        ("attention_vjp", ("dout", "out", "lse", "dlse", "dq", "dk", "dv", "dbias", "dsinks")),
        ("attention_jvp", ("dq", "dk", "dv", "out", "dout", "lse")),
    ],
)
def test_shapes_and_strides(function, names):
    for name in names:
        a = arguments_of(function)[name]
        expect_refused(function, {name: np.repeat(a, 2, axis=-1)[..., ::2]}, BAD_STRIDES)
        expect_refused(function, {name: a[..., :-1].copy()}, BAD_SHAPE)
        expect_refused(function, {name: a[:1].copy()}, BAD_SHAPE)
        expect_refused(function, {name: a[None].copy()}, BAD_SHAPE)
