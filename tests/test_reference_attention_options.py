"""The reference of attention with each option and every pair of them: values, gradients, tangents."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import textbook_attention
from central_differences import DIFFERENCE, numeric_jvp, numeric_vjp
from npkernels import reference as ref
from npkernels._cli.pairwise import every_pair, pairwise

INF, NAN = np.inf, np.nan
EPS = np.finfo(np.float64).eps
B, S, K, D, Dv = 2, 5, 7, 8, 6

# Scores, weights and outputs are of order 1, sums have at most S * B * Hq = 40 terms of order 1 and the textbook adds
# in float64: 100 eps is what test_reference_attention.py allows for a product of 8, gradients chain three of them.
CLOSE = {"rtol": 0, "atol": 400 * EPS}

OPTIONS = {
    "heads": [(4, 4), (4, 2), (4, 1)],
    "mask": [None, "full", "keys", "dead rows"],
    "bias": [None, "full", "heads", "rows", "scalar", "-inf"],
    "causal": [False, "top_left", "bottom_right"],
    "q_offset": [None, 3, [-1, 2]],
    "window": [None, (2, 1), (0, 0), (-1, 1), (1, -1)],
    "softcap": [0.0, 0.7],
    "scale": [None, 0.3],
    "alibi_slopes": [None, "heads", "batch"],
    "sinks": [False, True],
    "kv_lengths": [None, [7, 4], [0, 6]],
    "dropout_p": [0.0, 0.4],
}
ROWS = pairwise(OPTIONS)


def build(row):
    """The arrays and the options of one row."""
    rng = np.random.default_rng(1)
    heads, kv_heads = row["heads"]
    q, k, v = (
        rng.normal(size=(B, h, n, d)) for h, n, d in ((heads, S, D), (kv_heads, K, D), (kv_heads, K, Dv))
    )
    options = {name: row[name] for name in ("causal", "q_offset", "window", "softcap", "scale", "kv_lengths")}
    full = (B, heads, S, K)
    if row["mask"] == "dead rows":
        options["mask"] = np.broadcast_to(np.arange(S)[:, None] % 2 == 0, (S, K))
    elif row["mask"]:
        options["mask"] = rng.random({"full": full, "keys": (B, 1, 1, K)}[row["mask"]]) < 0.6
    if row["bias"] == "-inf":
        options["bias"] = np.where(rng.random((S, K)) < 0.4, -INF, 0)
    elif row["bias"]:
        shapes = {"full": full, "heads": (heads, 1, K), "rows": (S, 1), "scalar": ()}
        options["bias"] = rng.normal(size=shapes[row["bias"]])
    if row["alibi_slopes"]:
        options["alibi_slopes"] = rng.random({"heads": heads, "batch": (B, heads)}[row["alibi_slopes"]])
    if row["sinks"]:
        options["sinks"] = rng.normal(size=heads)
    if row["dropout_p"]:
        options |= {"dropout_p": row["dropout_p"], "dropout_seed": 2**64 - 3}
    return (q, k, v), {name: value for name, value in options.items() if value is not None}


def test_the_rows_hold_every_pair():
    assert every_pair(ROWS, OPTIONS)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_values_and_gradients_agree_with_the_textbook(row):
    torch = pytest.importorskip("torch")
    qkv, options = build(row)
    learned = {name: options[name] for name in ("bias", "sinks") if name in options}
    fixed = {name: value for name, value in options.items() if name not in learned}
    tensors = [torch.tensor(x, requires_grad=True) for x in (*qkv, *learned.values())]
    expected, expected_lse = textbook_attention.attention(
        torch, *tensors[:3], **dict(zip(learned, tensors[3:], strict=True)), **fixed
    )
    out, lse = ref.attention(*qkv, **options, return_lse=True)
    assert_allclose(out, expected.detach(), **CLOSE)
    assert_allclose(lse, expected_lse.detach(), **CLOSE)

    rng = np.random.default_rng(2)
    dout, dlse = rng.normal(size=out.shape), rng.normal(size=lse.shape)
    loss = (torch.tensor(dout) * expected).sum()
    loss = loss + (torch.tensor(dlse) * torch.where(torch.isinf(expected_lse), 0.0, expected_lse)).sum()
    loss.backward()
    want = {f"want_d{name}": True for name in learned}
    grads = ref.attention_vjp(dout, *qkv, out, lse, dlse=dlse, **options, **want)
    for name, tensor in zip(("q", "k", "v", *learned), tensors, strict=True):
        assert_allclose(getattr(grads, f"d{name}"), tensor.grad, **CLOSE, err_msg=name)
    for name in {"bias", "sinks"} - set(learned):
        assert getattr(grads, f"d{name}") is None


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_tangents_and_gradients_say_the_same(row):
    """<dout, jvp(dq, dk, dv)> = <vjp(dout), (dq, dk, dv)>."""
    qkv, options = build({**row, "dropout_p": 0.0})
    rng = np.random.default_rng(3)
    tangents = [rng.normal(size=x.shape) for x in qkv]
    out, along, lse = ref.attention_jvp(*qkv, *tangents, **options, return_lse=True)
    assert_array_equal(out, ref.attention(*qkv, **options))
    assert_array_equal(lse, ref.attention(*qkv, **options, return_lse=True)[1])
    assert len(ref.attention_jvp(*qkv, *tangents, **options)) == 2
    dout = rng.normal(size=out.shape)
    grads = ref.attention_vjp(dout, *qkv, out, lse, **options)
    inner = sum((g * t).sum() for g, t in zip((grads.dq, grads.dk, grads.dv), tangents, strict=True))
    # longdouble; the sums have 2 * 4 * 5 * 6 terms and more, of order 1
    assert_allclose((dout * along).sum(), inner, rtol=0, atol=10000 * np.finfo(np.longdouble).eps)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_weights_are_those_of_attention(row):
    (q, k, v), options = build({**row, "dropout_p": 0.0})
    weights = ref.attention_weights(q, k, **options)
    assert_allclose(
        np.einsum("bhij,bhjd->bhid", weights, v.repeat(4 // v.shape[1], axis=1)),
        ref.attention(q, k, v, **options),
        **CLOSE,
    )
    lse = ref.attention(q, k, v, **options, return_lse=True)[1]
    share = 1 - np.exp(options["sinks"][:, None] - lse) if "sinks" in options else np.isfinite(lse)
    assert_allclose(weights.sum(-1), share.astype(float), **CLOSE)


SMOOTH = {
    "plain": {},
    "softcap": {"softcap": 0.9},
    "bias and sinks": {"bias": np.linspace(-1, 1, 21).reshape(3, 7), "sinks": np.array([0.3, -0.4])},
    "alibi, window, lengths": {
        "alibi_slopes": np.array([0.5, 0.1]),
        "window": (3, 1),
        "kv_lengths": [5, 7],
        "causal": "bottom_right",
    },
    "dropout": {"dropout_p": 0.3, "dropout_seed": 11},
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
def test_gradients_agree_with_central_differences(options):
    rng = np.random.default_rng(4)
    q, k, v = rng.normal(size=(2, 2, 3, 4)), rng.normal(size=(2, 1, 7, 4)), rng.normal(size=(2, 1, 7, 2))
    out, lse = ref.attention(q, k, v, **options, return_lse=True)
    dout, dlse = rng.normal(size=out.shape), rng.normal(size=lse.shape)
    dlse = np.where(np.isfinite(lse), dlse, 0)

    def loss(**changed):
        """(1, ...): what numeric_vjp takes the sum of."""
        given = {"q": q, "k": k, "v": v, **options, **changed}
        out, lse = ref.attention(**given, return_lse=True)
        return (dout * out).sum() + (dlse * np.where(np.isfinite(lse), lse, 0)).sum()

    want = {f"want_d{name}": True for name in ("bias", "sinks") if name in options}
    grads = ref.attention_vjp(dout, q, k, v, out, lse, dlse=dlse, **options, **want)
    given = {"q": q, "k": k, "v": v, **{name[6:]: options[name[6:]] for name in want}}
    for name, x in given.items():
        expected = numeric_vjp(lambda x, name=name: loss(**{name: x}), x, np.longdouble(1))
        assert_allclose(getattr(grads, f"d{name}"), expected, **DIFFERENCE, err_msg=name)


@pytest.mark.parametrize("options", [o for n, o in SMOOTH.items() if "dropout_p" not in o], ids=str)
def test_tangents_agree_with_central_differences(options):
    rng = np.random.default_rng(5)
    shapes = ((2, 2, 3, 4), (2, 1, 7, 4), (2, 1, 7, 2))
    point, tangents = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    out, dout = ref.attention_jvp(*point, *tangents, **options)

    def along(t):
        return ref.attention(*(x + t * d for x, d in zip(point, tangents, strict=True)), **options)

    assert_array_equal(out, along(0))
    assert_allclose(dout, numeric_jvp(along, 0, 1), **DIFFERENCE)


def test_the_backward_takes_o_and_lse_as_they_come():
    """It is a function of all its arguments: P = exp(s - lse), delta = rowsum(dout * o) - dlse."""
    rng = np.random.default_rng(6)
    q, k, v, o, dout = (rng.normal(size=(1, 1, n, 3)) for n in (4, 5, 5, 4, 4))
    lse, dlse = rng.normal(size=(2, 1, 1, 4))
    p = np.exp(0.5 * q @ k.swapaxes(-1, -2) - lse[..., None])
    ds = p * (dout @ v.swapaxes(-1, -2) - ((dout * o).sum(-1) - dlse)[..., None])
    grads = ref.attention_vjp(dout, q, k, v, o, lse, dlse=dlse, scale=0.5)
    assert_allclose(grads.dq, 0.5 * ds @ k, **CLOSE)
    assert_allclose(grads.dk, 0.5 * ds.swapaxes(-1, -2) @ q, **CLOSE)
    assert_allclose(grads.dv, p.swapaxes(-1, -2) @ dout, **CLOSE)
    without = ref.attention_vjp(dout, q, k, v, o, lse, scale=0.5)
    zero = ref.attention_vjp(dout, q, k, v, o, lse, dlse=0 * dlse, scale=0.5)
    assert_array_equal(without.dq, zero.dq)


def test_a_row_with_lse_of_minus_infinity_takes_no_part():
    """Even if its scores are finite: lse says that it saw nothing."""
    rng = np.random.default_rng(6)
    q, k, v, o, dout = (rng.normal(size=(1, 1, n, 3)) for n in (2, 5, 5, 2, 2))
    lse = np.array([[[-INF, 0.5]]])
    options = {"sinks": [0.0], "want_dsinks": True}
    grads = ref.attention_vjp(dout, q, k, v, o, lse, **options)
    dout, q, o, lse = (x[:, :, 1:] for x in (dout, q, o, lse))
    alone = ref.attention_vjp(dout, q, k, v, o, lse, **options)
    assert_array_equal(grads.dq[:, :, 0], 0)
    for name in ("dk", "dv", "dsinks"):
        assert_allclose(getattr(grads, name), getattr(alone, name), **CLOSE)


def test_sinks_take_their_share():
    q, k = np.zeros((1, 2, 1, 1)), np.zeros((1, 2, 3, 1))
    out, lse = ref.attention(q, k, k + 1, sinks=[0.0, -INF], return_lse=True)
    assert_allclose(out[0, :, 0, 0], [3 / 4, 1], **CLOSE)
    assert_allclose(lse[0, :, 0], np.log([4, 3]), **CLOSE)
    out, lse = ref.attention(q, k, k + 1, sinks=[0.5, -INF], mask=np.array(False), return_lse=True)
    assert_array_equal(out, 0)
    assert_array_equal(lse[0, :, 0], [0.5, -INF])
    grads = ref.attention_vjp(
        out + 1,
        q,
        k,
        k + 1,
        out,
        lse,
        dlse=np.full(lse.shape, 7.0),
        sinks=[0.5, -INF],
        mask=np.array(False),
        want_dsinks=True,
    )
    assert_array_equal(grads.dsinks, [7, 0])
    assert_array_equal(grads.dv, 0)


def seen(queries, keys, **options):
    """The keys that each query attends to, as a picture of the two batches."""
    q, k = np.zeros((2, 1, queries, 1)), np.zeros((2, 1, keys, 1))
    picture = ref.attention_weights(q, k, **options)[:, 0] > 0
    return ["/".join("".join("#" if x else "." for x in row) for row in batch) for batch in picture]


def test_windows_and_lengths_by_hand():
    assert seen(3, 3, window=(1, 0)) == ["#../##./.##"] * 2
    assert seen(3, 3, window=(0, 1)) == ["##./.##/..#"] * 2
    assert seen(3, 3, window=(-1, 1)) == ["##./###/###"] * 2
    assert seen(3, 3, window=(-1, -1)) == ["###/###/###"] * 2
    assert seen(3, 3, window=np.array([1, 5]), causal=True) == ["#../##./.##"] * 2
    assert seen(2, 5, window=(1, 1)) == ["##.../###.."] * 2
    assert seen(2, 5, window=(1, 1), causal="bottom_right") == ["..##./...##"] * 2
    assert seen(2, 5, window=(1, 1), q_offset=[2, -1]) == [".###./..###", "#..../##..."]
    assert seen(2, 4, kv_lengths=[3, 0]) == ["###./###.", "..../...."]
    assert seen(2, 4, kv_lengths=[3, 1], causal="bottom_right") == ["##../###.", "..../#..."]
    assert seen(2, 4, kv_lengths=[3, 1], causal="top_left") == ["#.../##..", "#.../#..."]
    assert seen(2, 4, kv_lengths=[3, 1], causal="bottom_right", q_offset=1) == ["##../###.", "#.../#..."]
    assert seen(2, 4, kv_lengths=[2, 2], causal=True) == ["#.../##.."] * 2
    assert seen(1, 4, window=(2**70, 2**70)) == ["####"] * 2
    assert seen(1, 4, q_offset=2**62, window=(2**70, 0)) == ["####"] * 2
    assert seen(1, 4, q_offset=-(2**63), causal="top_left") == ["...."] * 2


def test_alibi_by_hand():
    """The distance is that of the key positions; with zero keys and queries it is all there is in the score."""
    q, k = np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 4, 1))
    weights = ref.attention_weights(q, k, alibi_slopes=[math.log(2), 0], q_offset=1)
    assert_allclose(weights[0, 0], [np.array([2, 4, 2, 1]) / 9, np.array([1, 2, 4, 2]) / 9], **CLOSE)
    assert_allclose(weights[0, 1], 0.25, **CLOSE)


@pytest.mark.parametrize("wild", [NAN, INF, -INF])
@pytest.mark.parametrize("hidden_by", ["mask", "causal", "window", "kv_lengths", "dropout"])
def test_what_is_hidden_is_not_looked_at(hidden_by, wild):
    """Whatever stands there, in every array and every tangent of the forward and the backward."""
    rng = np.random.default_rng(7)
    q, k, v = (rng.normal(size=(2, 2, 6, 3)) for _ in range(3))
    hidden = slice(3, 6)
    options = {
        "mask": {"mask": np.arange(6) < 3, "softcap": 2.0},
        "causal": {"causal": "top_left", "q_offset": -3},
        "window": {"window": (0, 1), "q_offset": -4},
        "kv_lengths": {"kv_lengths": [3, 3], "sinks": [0.1, 0.2]},
        "dropout": {"dropout_p": 0.5, "dropout_seed": 3},
    }[hidden_by]
    dirty_k, dirty_v, dk, dv = k.copy(), v.copy(), k.copy(), v.copy()
    for x in (dirty_k, dirty_v, dk, dv):
        x[:, :, hidden] = wild
    if hidden_by == "dropout":  # the score of a dropped key still counts, its value does not
        dropped = ref.dropout.dropout_factor("f", 0.5, 3, np.arange(24).reshape(2, 2, 6), 6, q) == 0
        all_of_them = dropped.all(axis=2)
        assert all_of_them.any()
        dirty_k, dirty_v = k, np.where(all_of_them[..., None], wild, v)
    out, lse = ref.attention(q, k, v, **options, return_lse=True)
    clean, dirty = (q, k, v), (q, dirty_k, dirty_v)
    again = ref.attention(*dirty, **options, return_lse=True)
    assert_allclose(again[0], out, **CLOSE)
    assert_array_equal(again[1], lse)
    dout = rng.normal(size=out.shape)
    expected = ref.attention_vjp(dout, *clean, out, lse, **options)
    grads = ref.attention_vjp(dout, *dirty, out, lse, **options)
    for name in ("dq", "dk", "dv"):
        assert_allclose(getattr(grads, name), getattr(expected, name), **CLOSE, err_msg=name)
    if hidden_by != "dropout":
        assert_array_equal(grads.dk[:, :, hidden], 0)
        assert_array_equal(grads.dv[:, :, hidden], 0)
        tangents = (q, k, v)
        expected = ref.attention_jvp(*clean, *tangents, **options)
        got = ref.attention_jvp(*dirty, q, dk, dv, **options)
        assert_allclose(got[1], expected[1], **CLOSE)


def test_rows_that_see_nothing_do_not_spoil_the_gradients():
    rng = np.random.default_rng(8)
    q, k, v = (rng.normal(size=(1, 1, 4, 3)) for _ in range(3))
    mask = np.array([True, False, True, True])[:, None] & np.ones(4, bool)
    out, lse = ref.attention(q, k, v, mask=mask, return_lse=True)
    assert lse[0, 0, 1] == -INF
    dout = rng.normal(size=out.shape)
    expected = ref.attention_vjp(dout, q, k, v, out, lse, mask=mask)
    q[0, 0, 1], dout[0, 0, 1] = NAN, NAN
    grads = ref.attention_vjp(dout, q, k, v, out, lse, mask=mask)
    for name in ("dq", "dk", "dv"):
        assert_allclose(getattr(grads, name), getattr(expected, name), **CLOSE)
    assert_array_equal(grads.dq[0, 0, 1], 0)


def test_what_is_not_finite_spreads_to_what_depends_on_it():
    rng = np.random.default_rng(9)
    q, k, v = (rng.normal(size=(1, 1, 4, 3)) for _ in range(3))
    k[0, 0, 2, 1] = NAN
    out, lse = ref.attention(q, k, v, causal=True, return_lse=True)
    grads = ref.attention_vjp(np.ones_like(out), q, k, v, out, lse, causal=True)
    assert_array_equal(np.isnan(out[0, 0, :, 0]), [False, False, True, True])
    assert_array_equal(np.isnan(grads.dq[0, 0, :, 0]), [False, False, True, True])
    assert_array_equal(np.isnan(grads.dv[0, 0, :, 0]), [True, True, True, True])
    # key 3 is seen by query 3 alone, and key 2 by no query before it
    grads = ref.attention_vjp(
        np.array([1, 1, 0, 0])[:, None] * np.ones_like(out), q, k, v, out, lse, mask=np.tri(4) > 0
    )
    assert_array_equal(np.isnan(grads.dk[0, 0, :, 0]), [True, True, True, True])
    _, along = ref.attention_jvp(q, k, v, q, k, v, causal=True)
    assert_array_equal(np.isnan(along[0, 0, :, 0]), [False, False, True, True])


def test_saturated_softcap_has_no_slope():
    """An infinite entry gives a score of +-softcap, on which nothing depends any more."""
    q, k, v = (
        np.ones((1, 1, 1, 1)),
        np.array([INF, -INF, 0.5]).reshape(1, 1, 3, 1),
        np.arange(3.0).reshape(1, 1, 3, 1),
    )
    out, lse = ref.attention(q, k, v, softcap=2.0, return_lse=True)
    e = np.exp([2, -2, 2 * np.tanh(0.25)])
    assert_allclose(out, (e * [0, 1, 2]).sum() / e.sum(), **CLOSE)
    grads = ref.attention_vjp(np.ones_like(out), q, k, v, out, lse, softcap=2.0)
    assert np.isfinite(grads.dq).all()
    assert_array_equal(grads.dk[0, 0, :2], 0)
    assert np.isfinite(ref.attention_jvp(q, k, v, q, v, v, softcap=2.0)[1]).all()


def test_fewer_dimensions_and_the_shapes_of_what_comes_back():
    rng = np.random.default_rng(10)
    q, k, v = rng.normal(size=(1, 2, 3, 4)), rng.normal(size=(1, 1, 5, 4)), rng.normal(size=(1, 1, 5, 2))
    bias = rng.normal(size=(2, 3, 1))
    options = {"bias": bias, "sinks": [0.1, 0.2], "kv_lengths": [4], "alibi_slopes": [[0.5, 0.25]]}
    out, lse = ref.attention(q, k, v, **options, return_lse=True)
    full = ref.attention_vjp(out, q, k, v, out, lse, **options, want_dbias=True, want_dsinks=True)
    part = ref.attention_vjp(
        out[0], q[0], k[0], v[0], out[0], lse[0], **options, want_dbias=True, want_dsinks=True
    )
    for name in ("dq", "dk", "dv"):
        assert_array_equal(getattr(part, name), getattr(full, name)[0])
    assert full.dbias.shape == part.dbias.shape == (2, 3, 1)
    assert part.dsinks.shape == (2,)
    tangents = ref.attention_jvp(q, k, v, q, k, v, **options, return_lse=True)
    for a, b in zip(
        ref.attention_jvp(q[0], k[0], v[0], q[0], k[0], v[0], **options, return_lse=True),
        tangents,
        strict=True,
    ):
        assert_array_equal(a, b[0])
    two = ref.attention_vjp(
        out[0, 0],
        q[0, 0],
        k[0, 0],
        v[0, 0],
        out[0, 0],
        lse[0, 0],
        dlse=lse[0, 0],
        sinks=[0.1],
        want_dsinks=True,
    )
    assert [x.shape for x in (two.dq, two.dk, two.dv, two.dsinks)] == [(3, 4), (5, 4), (5, 2), (1,)]


def test_empty_arrays():
    for shape in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4)):
        x = np.ones(shape)
        out, lse = ref.attention(
            x, x, x, return_lse=True, sinks=np.zeros(shape[1]), kv_lengths=[shape[2]] * shape[0]
        )
        grads = ref.attention_vjp(out, x, x, x, out, lse, bias=np.zeros((1, 1)), want_dbias=True)
        assert grads.dq.shape == grads.dk.shape == grads.dv.shape == shape
        assert_array_equal(grads.dbias, [[0]])
        assert ref.attention_jvp(x, x, x, x, x, x)[1].shape == shape
    q, k = np.ones((1, 1, 2, 3)), np.ones((1, 1, 0, 3))
    out, lse = ref.attention(q, k, k, return_lse=True)
    assert_array_equal(ref.attention_vjp(out, q, k, k, out, lse).dq, np.zeros_like(q))
    assert_array_equal(ref.attention_jvp(q, k, k, q, k, k)[1], np.zeros_like(q))


def test_precision():
    q, k, v = (np.ones((2, 3), np.float16) for _ in range(3))
    out, lse = ref.attention(q, k, v, sinks=[0.5], return_lse=True)
    grads = ref.attention_vjp(out, q, k, v, out, lse)
    assert {x.dtype for x in (out, lse, grads.dq, grads.dk, grads.dv)} == {np.dtype(np.float64)}
    wide = ref.attention_jvp(*(x.astype(np.float64) for x in (q, k, v, q, k, v)))
    assert {x.dtype for x in wide} == {np.dtype(np.longdouble)}


WRONG = [
    (ValueError, r"window has 1 elements; expected two", {"window": (1,)}),
    (ValueError, r"window is \(1, -2\); expected integers >= -1", {"window": (1, -2)}),
    (TypeError, r"window is \(1, 0.5\); expected two integers", {"window": (1, 0.5)}),
    (TypeError, r"window is 3; expected two integers", {"window": 3}),
    (ValueError, r"softcap is -1.0; expected a finite number", {"softcap": -1.0}),
    (ValueError, r"softcap is nan", {"softcap": NAN}),
    (ValueError, r"alibi_slopes has shape \(3,\); expected \(2,\) or \(2, 2\)", {"alibi_slopes": [1, 2, 3]}),
    (ValueError, r"sinks has shape \(2, 2\); expected \(2,\)", {"sinks": [[1, 2], [3, 4]]}),
    (TypeError, r"sinks has dtype complex128", {"sinks": [1j, 2]}),
    (ValueError, r"kv_lengths has shape \(3,\); expected \(2,\)", {"kv_lengths": [1, 2, 3]}),
    (ValueError, r"kv_lengths\[1\] is 5; expected 0 <= length <= 4", {"kv_lengths": [4, 5]}),
    (ValueError, r"kv_lengths\[0\] is -1; expected 0 <= length <= 4", {"kv_lengths": [-1, 4]}),
    (TypeError, r"kv_lengths has dtype float64", {"kv_lengths": [1.0, 2.0]}),
    (ValueError, r"causal=True with 3 queries and 4 keys has two meanings", {"causal": True}),
    (
        ValueError,
        r"causal=True with 3 queries and 2 keys in batch 1 has two meanings",
        {"causal": True, "kv_lengths": [3, 2]},
    ),
    (ValueError, r"causal is 1; expected False, True", {"causal": 1}),
    (ValueError, r"q_offset has shape \(3,\); expected an integer or \(2,\)", {"q_offset": [1, 2, 3]}),
]
WRONG_DROPOUT = [
    (ValueError, r"dropout_p is 1.0; expected 0 <= dropout_p < 1", {"dropout_p": 1.0, "dropout_seed": 1}),
    (ValueError, r"dropout_p is nan", {"dropout_p": NAN, "dropout_seed": 1}),
    (ValueError, r"dropout_p is 0.5 and dropout_seed is missing", {"dropout_p": 0.5}),
    (TypeError, r"dropout_seed is 0.5; expected an integer", {"dropout_p": 0.5, "dropout_seed": 0.5}),
]


@pytest.mark.parametrize(("error", "message", "options"), WRONG + WRONG_DROPOUT)
def test_wrong_options(error, message, options):
    q, k, v = np.zeros((2, 2, 3, 4)), np.zeros((2, 1, 4, 4)), np.zeros((2, 1, 4, 5))
    out, lse = np.zeros((2, 2, 3, 5)), np.zeros((2, 2, 3))
    calls = {"attention": (q, k, v), "attention_vjp": (out, q, k, v, out, lse)}
    if "dropout_p" not in options:
        calls |= {"attention_weights": (q, k), "attention_jvp": (q, k, v, q, k, v)}
    for name, args in calls.items():
        with pytest.raises(error, match=f"{name}: {message}"):
            getattr(ref, name)(*args, **options)


def test_wrong_arguments_of_the_derivatives():
    q, k, v = np.zeros((2, 2, 3, 4)), np.zeros((2, 1, 4, 4)), np.zeros((2, 1, 4, 5))
    out, lse = np.zeros((2, 2, 3, 5)), np.zeros((2, 2, 3))
    cases = [
        (r"dout has shape \(2, 2, 3, 4\); expected \(2, 2, 3, 5\)", (q, q, k, v, out, lse), {}),
        (r"o has shape \(2, 2, 3, 4\)", (out, q, k, v, q, lse), {}),
        (r"lse has shape \(2, 2, 3, 5\); expected \(2, 2, 3\)", (out, q, k, v, out, out), {}),
        (r"dlse has shape \(2, 3\)", (out, q, k, v, out, lse), {"dlse": lse[0]}),
        (
            "want_dbias is True, but there is no bias; pass bias=",
            (out, q, k, v, out, lse),
            {"want_dbias": True},
        ),
        ("want_dsinks is True, but there is no sinks", (out, q, k, v, out, lse), {"want_dsinks": True}),
        (r"v has shape \(2, 1, 3, 5\)", (out, q, k, v[:, :, :3], out, lse), {}),
    ]
    for message, args, options in cases:
        with pytest.raises(ValueError, match="attention_vjp: " + message):
            ref.attention_vjp(*args, **options)
    with pytest.raises(
        ValueError, match=r"attention_jvp: dk has shape \(2, 2, 3, 4\); expected \(2, 1, 4, 4\)"
    ):
        ref.attention_jvp(q, k, v, q, q, v)
