"""The derivatives of attention: every option with every other, against differences, and what must not leak."""

import numpy as np
import pytest

import npkernels
from attention_rows import ROWS, build, label, without_dropout
from central_differences import DIFFERENCE, numeric_vjp
from npkernels import reference
from npkernels._arrays import compute_dtype
from npkernels._cli import gate

INF, NAN = np.inf, np.nan
ISAS = npkernels.available_isas()


def numbers(seed, x, dtype=None):
    """Normal numbers of the shape and dtype of x."""
    return np.random.default_rng(seed).standard_normal(x.shape).astype(dtype or x.dtype)


def backward_arguments(qkv, options):
    """(dout, q, k, v, o, lse) and the options, with o and lse rounded as the forward kernel rounds them."""
    q = qkv[0]
    with np.errstate(all="ignore"):
        o, lse = reference.attention(*qkv, **options, return_lse=True)
        o, lse = np.asarray(o).astype(q.dtype), np.asarray(lse).astype(compute_dtype(q.dtype))
    wanted = {f"want_d{name}": True for name in ("bias", "sinks") if name in options}
    return (numbers(1, o), *qkv, o, lse), {**options, "dlse": numbers(2, lse), **wanted}


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_gradients_with_every_option(row):
    args, options = backward_arguments(*build(row))
    expectation = gate.expect("attention_vjp", *args, **options)
    before = [x.copy() for x in args]
    for isa in ISAS:
        with npkernels.use_isa(isa):
            result = npkernels.attention_vjp(*args, **options)
        for verdict in expectation.judge(result):
            assert verdict.passed, f"{isa}, {label(row)}: {verdict.place} {verdict.text}"
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, args, strict=True))


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_tangents_with_every_option(row):
    qkv, options = build(row)
    options = {**without_dropout(options), "return_lse": row["heads"] != (1, 1)}
    args = (*qkv, *(numbers(3 + i, x) for i, x in enumerate(qkv)))
    expectation = gate.expect("attention_jvp", *args, **options)
    for isa in ISAS:
        with npkernels.use_isa(isa):
            result = npkernels.attention_jvp(*args, **options)
            forward = npkernels.attention(*qkv, **options)
        for verdict in expectation.judge(result):
            assert verdict.passed, f"{isa}, {label(row)}: {verdict.place} {verdict.text}"
        out = forward[0] if options["return_lse"] else forward
        np.testing.assert_allclose(
            result[0].astype(float), out.astype(float), **close(out, "attention", qkv, options)
        )


def close(out, function, args, options):
    """Two results that pass the gate may be this far apart."""
    leaves = gate.expect(function, *args, **options).leaves
    return {"rtol": 0, "atol": 2 * next(iter(leaves.values())).allowance}


EXACT = [row for row in ROWS if row["dtype"] == np.float64]


@pytest.mark.parametrize("row", EXACT, ids=label)
@pytest.mark.parametrize("isa", ISAS)
def test_tangents_and_gradients_say_the_same(isa, row):
    """<dout, jvp(dq, dk, dv)> = <vjp(dout), (dq, dk, dv)>."""
    qkv, options = build(row)
    options = without_dropout(options)
    tangents = [numbers(3 + i, x) for i, x in enumerate(qkv)]
    with npkernels.use_isa(isa):
        out, along, lse = npkernels.attention_jvp(*qkv, *tangents, **options, return_lse=True)
        dout = numbers(6, out)
        grads = npkernels.attention_vjp(dout, *qkv, out, lse, **options)
    products = [(g * t).ravel() for g, t in zip((grads.dq, grads.dk, grads.dv), tangents, strict=True)]
    terms = np.concatenate([(dout * along).ravel(), *products])
    # each term has an error of a few eps of the largest, from sums of up to max(S, K, D) terms; signs are random
    largest = max([1.0, *(np.abs(x).max(initial=0) for x in (dout * along, *products))])
    allowed = 50 * np.finfo(float).eps * largest * np.sqrt(terms.size) * 10
    assert abs((dout * along).sum() - sum(p.sum() for p in products)) < allowed


SMOOTH = {
    "plain": {},
    "softcap": {"softcap": 0.9},
    "bias and sinks": {"bias": np.linspace(-1, 1, 21).reshape(3, 7), "sinks": np.array([0.3, -0.4])},
    "all": {
        "mask": np.arange(21).reshape(3, 7) % 5 > 0,
        "bias": np.linspace(0, 1, 7),
        "softcap": 1.5,
        "scale": 0.7,
        "alibi_slopes": np.array([[0.5, 0.1], [0.2, 0.3]]),
        "sinks": np.array([0.3, -0.4]),
        "q_offset": np.array([2, -1]),
        "causal": "top_left",
        "window": (4, -1),
        "kv_lengths": [5, 6],
        "dropout_p": 0.2,
        "dropout_seed": 12,
    },
}


@pytest.mark.parametrize("options", SMOOTH.values(), ids=SMOOTH)
@pytest.mark.parametrize("isa", ISAS)
def test_gradients_agree_with_central_differences(isa, options):
    """Of the kernel's own output; the rounding of float64, eps * 10 / h, is below the error of the differences."""
    rng = np.random.default_rng(4)
    point = {"q": (2, 2, 3, 4), "k": (2, 1, 7, 4), "v": (2, 1, 7, 2)}
    point = {name: rng.normal(size=shape) for name, shape in point.items()}
    learned = {name: options[name] for name in ("bias", "sinks") if name in options}
    with npkernels.use_isa(isa):
        out, lse = npkernels.attention(**point, **options, return_lse=True)
        dout, dlse = rng.normal(size=out.shape), np.where(np.isfinite(lse), rng.normal(size=lse.shape), 0)

        def loss(name, value):
            given = {**point, **options, name: value.astype(np.float64)}
            out, lse = npkernels.attention(**given, return_lse=True)
            return (dout * out).sum() + (dlse * np.where(np.isfinite(lse), lse, 0)).sum()

        want = {f"want_d{name}": True for name in learned}
        grads = npkernels.attention_vjp(dout, **point, o=out, lse=lse, dlse=dlse, **options, **want)
        for name, x in (point | learned).items():
            expected = numeric_vjp(lambda x, name=name: loss(name, x), x, 1.0)
            np.testing.assert_allclose(getattr(grads, f"d{name}"), expected, **DIFFERENCE, err_msg=name)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("hidden_by", ["mask", "causal", "window", "kv_lengths"])
def test_what_is_hidden_never_leaks(isa, bad, hidden_by):
    q, k, v = np.random.default_rng(1).standard_normal((3, 2, 2, 70, 20)).astype(np.float32)
    hidden = np.zeros(70, bool)
    hidden[
        {"mask": [3, 40, 69], "causal": range(60, 70), "window": range(20), "kv_lengths": range(33, 70)}[
            hidden_by
        ]
    ] = True
    options = {
        "mask": {"mask": ~hidden},
        "causal": {"causal": "top_left", "q_offset": -10},
        "window": {"window": (15, -1), "q_offset": 35},
        "kv_lengths": {"kv_lengths": [33, 33], "sinks": np.ones(2, np.float32)},
    }[hidden_by]
    dirty_k, dirty_v, dk, dv = k.copy(), v.copy(), k.copy(), v.copy()
    for x in (dirty_k, dirty_v, dk, dv):
        x[:, :, hidden] = bad
    with npkernels.use_isa(isa):
        out, lse = npkernels.attention(q, k, v, **options, return_lse=True)
        dirty = npkernels.attention(q, dirty_k, dirty_v, **options, return_lse=True)
        assert np.array_equal(dirty[0], out)
        assert np.array_equal(dirty[1], lse)
        clean = npkernels.attention_vjp(out, q, k, v, out, lse, **options)
        grads = npkernels.attention_vjp(out, q, dirty_k, dirty_v, out, lse, **options)
        for name in ("dq", "dk", "dv"):
            assert np.array_equal(getattr(grads, name), getattr(clean, name)), name
        assert not grads.dk[:, :, hidden].any()
        assert not grads.dv[:, :, hidden].any()
        clean = npkernels.attention_jvp(q, k, v, q, k, v, **options)
        tangents = npkernels.attention_jvp(q, dirty_k, dirty_v, q, dk, dv, **options)
        assert np.array_equal(tangents[1], clean[1])


@pytest.mark.parametrize("isa", ISAS)
def test_a_nan_spreads_to_what_depends_on_it_and_no_further(isa):
    q, k, v, dout = np.random.default_rng(2).standard_normal((4, 1, 1, 150, 16)).astype(np.float32)
    k[0, 0, 100, 3] = NAN  # seen by the queries from 100 on
    with npkernels.use_isa(isa):
        out, lse = npkernels.attention(q, k, v, causal=True, return_lse=True)
        seen = dout.copy()
        grads = npkernels.attention_vjp(seen, q, k, v, out, lse, causal=True)
        assert not np.isnan(grads.dq[0, 0, :100]).any()
        assert np.isnan(grads.dq[0, 0, 100:]).all()
        assert np.isnan(grads.dk).all()  # every key is seen by such a query
        assert np.isnan(grads.dv).all()
        few = npkernels.attention_vjp(
            dout[:, :, :100], q[:, :, :100], k, v, out[:, :, :100], lse[:, :, :100], causal="top_left"
        )
        assert not any(np.isnan(x).any() for x in (few.dq, few.dk, few.dv))
        _, along = npkernels.attention_jvp(q, k, v, q, q, q, causal=True)
        assert not np.isnan(along[0, 0, :100]).any()
        assert np.isnan(along[0, 0, 100:]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_rows_without_keys_take_no_part(isa):
    q, k, v, dout = np.random.default_rng(3).standard_normal((4, 1, 2, 60, 16)).astype(np.float32)
    rows = np.arange(60) % 3 > 0
    mask = rows[:, None] & np.ones(60, bool)
    with npkernels.use_isa(isa):
        out, lse = npkernels.attention(q, k, v, mask=mask, return_lse=True)
        clean = npkernels.attention_vjp(dout, q, k, v, out, lse, mask=mask)
        q[:, :, ~rows], dout[:, :, ~rows] = NAN, INF
        grads = npkernels.attention_vjp(dout, q, k, v, out, lse, mask=mask)
    assert not grads.dq[:, :, ~rows].any()
    for name in ("dq", "dk", "dv"):
        assert np.array_equal(getattr(grads, name), getattr(clean, name)), name


def test_gradients_that_were_not_asked_for_are_none():
    q = np.ones((1, 2, 3, 4), np.float32)
    options = {"bias": np.zeros((3, 3), np.float32), "sinks": np.zeros(2, np.float32)}
    out, lse = npkernels.attention(q, q, q, **options, return_lse=True)
    grads = npkernels.attention_vjp(q, q, q, q, out, lse, **options)
    assert grads.dbias is grads.dsinks is None
    grads = npkernels.attention_vjp(q, q, q, q, out, lse, **options, want_dbias=True)
    assert grads.dbias.shape == (3, 3)
    assert grads.dsinks is None
    with pytest.raises(ValueError, match=r"^attention_vjp: .*want_dsinks.*sinks"):
        npkernels.attention_vjp(q, q, q, q, out, lse, want_dsinks=True)
    with pytest.raises(ValueError, match=r"^attention_vjp: .*want_dbias.*bias"):
        npkernels.attention_vjp(q, q, q, q, out, lse, want_dbias=True)


def test_what_is_wrong_with_out_is_said():
    x = np.ones((1, 2, 3, 4))
    out, lse = npkernels.attention(x, x, x, return_lse=True)
    one, other = np.empty_like(x), np.empty_like(x)
    with pytest.raises(TypeError, match=r"^attention_vjp: out\[1\] is None; expected"):
        npkernels.attention_vjp(x, x, x, x, out, lse, out=(one, None, other))
    with pytest.raises(ValueError, match=r"^attention_vjp: out\[2\] overlaps out\[0\]"):
        npkernels.attention_vjp(x, x, x, x, out, lse, out=(one, other, one))
    with pytest.raises(ValueError, match=r"^attention_jvp: out\[1\] overlaps out\[0\]"):
        npkernels.attention_jvp(x, x, x, x, x, x, out=(one, one))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty(shape):
    x = np.ones(shape, np.float32)
    out, lse = npkernels.attention(x, x, x, return_lse=True)
    grads = npkernels.attention_vjp(x, x, x, x, out, lse)
    assert grads.dq.shape == grads.dk.shape == grads.dv.shape == shape
    assert npkernels.attention_jvp(x, x, x, x, x, x)[1].shape == shape
    q, k = np.ones((1, 1, 2, 3), np.float32), np.ones((1, 1, 0, 3), np.float32)
    out, lse = npkernels.attention(q, k, k, return_lse=True)
    assert not npkernels.attention_vjp(out, q, k, k, out, lse).dq.any()
    assert not npkernels.attention_jvp(q, k, k, q, k, k)[1].any()


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
@pytest.mark.parametrize("axes", [(), (3,), (1, 3), (2, 1, 1), (1, 1, 3, 3)])
def test_gradient_of_the_bias_of_nothing(shape, axes):
    x = np.ones(shape)
    sizes = (1, *shape[1:3], shape[2])[4 - len(axes) :]
    bias = np.zeros([n and min(n, size) for n, size in zip(axes, sizes, strict=True)])
    out, lse = npkernels.attention(x, x, x, bias=bias, return_lse=True)
    grads = npkernels.attention_vjp(x, x, x, x, out, lse, bias=bias, want_dbias=True)
    assert np.array_equal(grads.dbias, np.zeros_like(bias))


def test_head_size_zero():
    """All scores are 0; the values have a size of their own."""
    q, v = np.ones((2, 3, 0)), np.arange(12.0).reshape(2, 3, 2)
    out, lse = npkernels.attention(q, q, v, return_lse=True)
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(1, keepdims=True), v.shape), rtol=1e-15)
    grads = npkernels.attention_vjp(np.ones_like(out), q, q, v, out, lse)
    assert grads.dq.shape == grads.dk.shape == q.shape
    np.testing.assert_allclose(grads.dv, np.ones_like(v), rtol=1e-15)
    targets = np.empty_like(out), np.empty_like(out)
    assert npkernels.attention_jvp(q, q, v, q, q, v, out=targets)[1] is targets[1]
    np.testing.assert_allclose(targets[1], out, rtol=1e-15)
    packed, lengths = [x.swapaxes(0, 1) for x in (out, q, q, v, out)], [0, 1, 3]
    one = npkernels.attention_varlen_vjp(*packed, lse, lengths, lengths)
    assert one.dv.shape == (3, 2, 2)


def test_the_mask_of_dropout_is_that_of_the_forward_pass():
    """With one-hot values the output is the mask; the gradient of v shows it again."""
    q = np.zeros((2, 3, 40, 8), np.float32)
    v = np.broadcast_to(np.eye(40, dtype=np.float32), (2, 3, 40, 40))
    options = {"dropout_p": 0.3, "dropout_seed": 2**70 + 5}
    out, lse = npkernels.attention(q, q, v, **options, return_lse=True)
    kept = reference.dropout.dropout_kept(0.3, 5 + 2**70, np.arange(240).reshape(2, 3, 40), 40)
    assert np.array_equal(out > 0, kept)
    np.testing.assert_allclose(lse, np.log(40), rtol=1e-6)
    dout = np.broadcast_to(np.eye(40, dtype=np.float32), (2, 3, 40, 40))
    grads = npkernels.attention_vjp(dout, q, q, v, out, lse, **options)
    assert np.array_equal(grads.dv.swapaxes(-1, -2) > 0, kept)
    assert np.array_equal(npkernels.attention(q, q, v, dropout_p=0.3, dropout_seed=5), out)
    assert not np.array_equal(npkernels.attention(q, q, v, dropout_p=0.3, dropout_seed=6), out)
