"""The reference of packed sequences against one call of attention for each."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from central_differences import DIFFERENCE, numeric_vjp
from npkernels import reference as ref
from npkernels._cli.pairwise import every_pair, pairwise
from npkernels.reference import dropout

INF = np.inf
EPS = np.finfo(np.longdouble).eps
H, Hk, D, Dv = 4, 2, 5, 3

OPTIONS = {
    "lengths": [([3, 1, 4], [3, 1, 4]), ([2, 0, 3, 1], [5, 4, 0, 1]), ([4], [6]), ([0, 0], [0, 0])],
    "causal": [False, "top_left", "bottom_right"],
    "window": [None, (1, 0), (-1, 2)],
    "softcap": [0.0, 1.5],
    "scale": [None, 0.4],
    "alibi_slopes": [None, "heads", "sequences"],
    "sinks": [False, True],
    "q_offset": [None, 1, "sequences"],
}
ROWS = pairwise(OPTIONS)


def starts(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def build(row):
    rng = np.random.default_rng(1)
    (lengths_q, lengths_k), n = row["lengths"], len(row["lengths"][0])
    q, k, v = (
        rng.normal(size=(sum(lengths), h, d))
        for lengths, h, d in ((lengths_q, H, D), (lengths_k, Hk, D), (lengths_k, Hk, Dv))
    )
    options = {name: row[name] for name in ("causal", "window", "softcap", "scale", "q_offset")}
    if row["alibi_slopes"]:
        options["alibi_slopes"] = rng.random({"heads": (H,), "sequences": (n, H)}[row["alibi_slopes"]])
    if row["sinks"]:
        options["sinks"] = rng.normal(size=H)
    if row["q_offset"] == "sequences":
        options["q_offset"] = np.arange(n) - 1
    return (q, k, v), starts(lengths_q), starts(lengths_k), options


def one_by_one(cu_q, cu_k, options):
    """Rows of the queries, rows of the keys and options of each sequence."""
    for n, ((q0, q1), (k0, k1)) in enumerate(
        zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True)
    ):
        own = dict(options)
        if np.ndim(options.get("alibi_slopes")) == 2:
            own["alibi_slopes"] = options["alibi_slopes"][n]
        if np.ndim(options["q_offset"]) == 1:
            own["q_offset"] = int(options["q_offset"][n])
        yield slice(q0, q1), slice(k0, k1), own


def heads_first(x):
    return x.swapaxes(0, 1)


def test_the_rows_hold_every_pair():
    assert every_pair(ROWS, OPTIONS)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_each_sequence_is_by_itself(row):
    (q, k, v), cu_q, cu_k, options = build(row)
    out, lse = ref.attention_varlen(q, k, v, cu_q, cu_k, **options, return_lse=True)
    assert out.shape == (len(q), H, Dv)
    assert lse.shape == (H, len(q))
    assert_array_equal(ref.attention_varlen(q, k, v, cu_q, cu_k, **options), out)
    rng = np.random.default_rng(2)
    dout, dlse = rng.normal(size=out.shape), rng.normal(size=lse.shape)
    want = "sinks" in options
    grads = ref.attention_varlen_vjp(
        dout, q, k, v, out, lse, cu_q, cu_k, dlse=dlse, **options, want_dsinks=want
    )
    assert (grads.dq.shape, grads.dk.shape, grads.dv.shape) == (q.shape, k.shape, v.shape)
    dsinks = np.zeros(H, np.longdouble)
    for rows, keys, own in one_by_one(cu_q, cu_k, options):
        one = [heads_first(x) for x in (q[rows], k[keys], v[keys])]
        expected, expected_lse = ref.attention(*one, **own, return_lse=True)
        assert_array_equal(heads_first(out[rows]), expected)
        assert_array_equal(lse[:, rows], expected_lse)
        given = (heads_first(dout[rows]), *one, expected, expected_lse)
        parts = ref.attention_vjp(*given, dlse=dlse[:, rows], **own, want_dsinks=want)
        assert_array_equal(heads_first(grads.dq[rows]), parts.dq)
        assert_array_equal(heads_first(grads.dk[keys]), parts.dk)
        assert_array_equal(heads_first(grads.dv[keys]), parts.dv)
        dsinks += parts.dsinks if want else 0
    assert grads.dbias is None
    if want:
        assert_allclose(grads.dsinks, dsinks, rtol=0, atol=100 * EPS)
    else:
        assert grads.dsinks is None


def test_without_dlse_it_is_zero():
    (q, k, v), cu_q, cu_k, options = build(ROWS[0])
    out, lse = ref.attention_varlen(q, k, v, cu_q, cu_k, **options, return_lse=True)
    zero = ref.attention_varlen_vjp(
        out, q, k, v, out, lse, cu_q, cu_k, dlse=0 * np.ones(lse.shape), **options
    )
    assert_array_equal(ref.attention_varlen_vjp(out, q, k, v, out, lse, cu_q, cu_k, **options).dq, zero.dq)


def test_causal_true():
    x = np.zeros((5, 1, 1))
    options = {"causal": True, "return_lse": True}
    _, lse = ref.attention_varlen(x, x, x, [0, 2, 5], [0, 2, 5], **options)
    assert_allclose(np.exp(lse), [[1, 2, 1, 2, 3]], rtol=4 * EPS)
    _, lse = ref.attention_varlen(x[:3], x, x, [0, 2, 3], [0, 2, 5], **options, q_offset=[0, 2])
    assert_allclose(np.exp(lse), [[1, 2, 3]], rtol=4 * EPS)
    with pytest.raises(
        ValueError, match="causal=True with 1 queries and 3 keys in sequence 1 has two meanings"
    ):
        ref.attention_varlen(x[:3], x, x, [0, 2, 3], [0, 2, 5], causal=True)


def test_dropout_counts_rows_over_all_sequences():
    rng = np.random.default_rng(3)
    q, k, v = rng.normal(size=(5, H, D)), rng.normal(size=(7, Hk, D)), rng.normal(size=(7, Hk, Dv))
    cu_q, cu_k = [0, 2, 5], [0, 4, 7]
    options = {"dropout_p": 0.4, "dropout_seed": 9}
    out, lse = ref.attention_varlen(q, k, v, cu_q, cu_k, **options, return_lse=True)
    expected, expected_lse = np.empty_like(out), ref.attention_varlen(q, k, v, cu_q, cu_k, return_lse=True)[1]
    for rows, keys in ((slice(0, 2), slice(0, 4)), (slice(2, 5), slice(4, 7))):
        weights = ref.attention_weights(heads_first(q[rows]), heads_first(k[keys]))
        numbers = np.arange(H)[:, None] * 5 + np.arange(rows.start, rows.stop)
        kept = dropout.dropout_kept(0.4, 9, numbers, keys.stop - keys.start)
        values = heads_first(v[keys]).repeat(2, axis=0)
        expected[rows] = heads_first(np.where(kept, weights / 0.6, 0) @ values)
    assert_allclose(out, expected, rtol=0, atol=1e-15)
    assert_array_equal(lse, expected_lse)

    dout = rng.normal(size=out.shape)
    grads = ref.attention_varlen_vjp(dout, q, k, v, out, lse, cu_q, cu_k, **options)
    for name, x in (("q", q), ("k", k), ("v", v)):

        def loss(x, name=name):
            given = {"q": q, "k": k, "v": v, name: x}
            return (
                dout * ref.attention_varlen(**given, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **options)
            ).sum()

        assert_allclose(getattr(grads, f"d{name}"), numeric_vjp(loss, x, np.longdouble(1)), **DIFFERENCE)


def test_wrong_arguments():
    q, k, v = np.zeros((5, 4, 3)), np.zeros((7, 2, 3)), np.zeros((7, 2, 6))
    cu_q, cu_k = [0, 2, 5], [0, 4, 7]
    out, lse = np.zeros((5, 4, 6)), np.zeros((4, 5))
    cases = [
        (r"q has shape \(1, 5, 4, 3\); expected \(total_q, Hq, D\)", {"q": q[None]}),
        (r"k has head size 2, q has 3", {"k": k[..., :2]}),
        (r"k has 3 heads, q has 4", {"k": np.zeros((7, 3, 3)), "v": np.zeros((7, 3, 6))}),
        (r"v has shape \(6, 2, 6\); expected \(7, 2, 6\)", {"v": v[:6]}),
        (r"cu_seqlens_q goes from 0 to 4; expected 0 to 5", {"cu_seqlens_q": [0, 2, 4]}),
        (r"cu_seqlens_q goes from 1 to 5; expected 0 to 5", {"cu_seqlens_q": [1, 2, 5]}),
        (r"cu_seqlens_k falls from 8 to 7 at \[2\]; it must not decrease", {"cu_seqlens_k": [0, 8, 7]}),
        (r"cu_seqlens_k has 4 entries, cu_seqlens_q has 3; they must agree", {"cu_seqlens_k": [0, 4, 5, 7]}),
        (r"cu_seqlens_k has shape \(0,\); expected \(N \+ 1,\)", {"cu_seqlens_k": []}),
        (r"causal is 'left'", {"causal": "left"}),
        (r"alibi_slopes has shape \(3, 4\); expected \(4,\) or \(2, 4\)", {"alibi_slopes": np.zeros((3, 4))}),
        (r"sinks has shape \(2,\); expected \(4,\)", {"sinks": [0, 1]}),
        (r"q_offset has shape \(3,\); expected an integer or \(2,\)", {"q_offset": [0, 1, 2]}),
        (r"window has 3 elements", {"window": (1, 2, 3)}),
        (r"softcap is -2", {"softcap": -2}),
        (r"scale is inf", {"scale": INF}),
        (r"dropout_p is 0.5 and dropout_seed is missing", {"dropout_p": 0.5}),
    ]
    given = {"q": q, "k": k, "v": v, "cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}
    for message, wrong in cases:
        with pytest.raises(ValueError, match="attention_varlen: " + message):
            ref.attention_varlen(**{**given, **wrong})
        with pytest.raises(ValueError, match="attention_varlen_vjp: " + message):
            ref.attention_varlen_vjp(dout=out, o=out, lse=lse, **{**given, **wrong})
    for message, wrong in [
        (r"dout has shape \(5, 4, 3\); expected \(5, 4, 6\)", {"dout": q}),
        (r"o has shape \(5, 4, 3\)", {"o": q}),
        (r"lse has shape \(5, 4\); expected \(4, 5\)", {"lse": lse.T}),
        (r"dlse has shape \(5, 4\); expected \(4, 5\)", {"dlse": lse.T}),
        (r"want_dsinks is True, but there is no sinks", {"want_dsinks": True}),
    ]:
        with pytest.raises(ValueError, match="attention_varlen_vjp: " + message):
            ref.attention_varlen_vjp(**{**given, "dout": out, "o": out, "lse": lse, **wrong})
    with pytest.raises(TypeError, match="attention_varlen: cu_seqlens_q has dtype float64"):
        ref.attention_varlen(q, k, v, [0.0, 5.0], [0, 7])
