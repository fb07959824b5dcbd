"""Packed sequences: each by itself, whatever stands beside it."""

import itertools

import numpy as np
import pytest

import npkernels
from npkernels import reference

ISAS = npkernels.available_isas()
INF, NAN = np.inf, np.nan
LENGTHS = [
    ([3, 1, 40, 130], [3, 1, 40, 130]),
    ([2, 0, 33, 1], [5, 40, 0, 300]),
    ([1] * 6, [1, 17, 129, 64, 5, 31]),
]


def starts(lengths):
    return np.concatenate([[0], np.cumsum(lengths)])


def pack(lengths, dtype=np.float32, heads=(4, 2), dims=(24, 17), seed=0):
    rng = np.random.default_rng(seed)
    shapes = (
        (sum(lengths[0]), heads[0], dims[0]),
        (sum(lengths[1]), heads[1], dims[0]),
        (sum(lengths[1]), heads[1], dims[1]),
    )
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def sequences(cu_q, cu_k):
    for (q0, q1), (k0, k1) in zip(itertools.pairwise(cu_q), itertools.pairwise(cu_k), strict=True):
        yield slice(q0, q1), slice(k0, k1)


@pytest.mark.parametrize("lengths", LENGTHS, ids=["same", "empty", "decoding"])
@pytest.mark.parametrize("causal", [False, "bottom_right"])
def test_each_sequence_is_that_of_a_dense_call(lengths, causal):
    q, k, v = pack(lengths, np.float64)
    cu_q, cu_k = map(starts, lengths)
    options = {"causal": causal, "window": (50, -1), "softcap": 3.0, "sinks": np.arange(4.0)}
    for isa in ISAS:
        with npkernels.use_isa(isa):
            out, lse = npkernels.attention_varlen(q, k, v, cu_q, cu_k, **options, return_lse=True)
            grads = npkernels.attention_varlen_vjp(
                out, q, k, v, out, lse, cu_q, cu_k, **options, want_dsinks=True
            )
            dsinks = np.zeros(4)
            for rows, keys in sequences(cu_q, cu_k):
                one = [x.swapaxes(0, 1) for x in (q[rows], k[keys], v[keys])]
                expected, expected_lse = npkernels.attention(*one, **options, return_lse=True)
                parts = npkernels.attention_vjp(
                    expected, *one, expected, expected_lse, **options, want_dsinks=True
                )
                pairs = [(out[rows], expected), (grads.dq[rows], parts.dq), (grads.dk[keys], parts.dk)]
                for got, wanted in [*pairs, (grads.dv[keys], parts.dv)]:
                    np.testing.assert_allclose(got.swapaxes(0, 1), wanted, rtol=0, atol=1e-12)
                np.testing.assert_allclose(lse[:, rows], expected_lse, rtol=1e-14)
                dsinks += parts.dsinks
            np.testing.assert_allclose(grads.dsinks, dsinks, rtol=0, atol=1e-12)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [NAN, INF])
def test_sequences_do_not_see_one_another(isa, bad):
    lengths = ([7, 40, 21], [9, 40, 33])
    q, k, v = pack(lengths)
    cu_q, cu_k = map(starts, lengths)
    rows, keys = slice(7, 47), slice(9, 49)
    others_q, others_k = np.ones(68, bool), np.ones(82, bool)
    others_q[rows], others_k[keys] = False, False
    with npkernels.use_isa(isa):
        out, lse = npkernels.attention_varlen(q, k, v, cu_q, cu_k, return_lse=True)
        clean = npkernels.attention_varlen_vjp(out, q, k, v, out, lse, cu_q, cu_k)
        dout = out.copy()
        q[rows], k[keys], v[keys], dout[rows] = bad, bad, bad, bad
        dirty, dirty_lse = npkernels.attention_varlen(q, k, v, cu_q, cu_k, return_lse=True)
        grads = npkernels.attention_varlen_vjp(dout, q, k, v, dirty, dirty_lse, cu_q, cu_k)
    assert np.array_equal(dirty[others_q], out[others_q])
    assert np.array_equal(dirty_lse[:, others_q], lse[:, others_q])
    assert np.array_equal(grads.dq[others_q], clean.dq[others_q])
    assert np.array_equal(grads.dk[others_k], clean.dk[others_k])
    assert np.array_equal(grads.dv[others_k], clean.dv[others_k])
    assert np.isnan(dirty[rows]).all()


def test_dropout_numbers_rows_over_all_sequences():
    cu = np.array([0, 3, 8])
    q, v = np.zeros((8, 2, 4), np.float32), np.zeros((8, 2, 8), np.float32)
    v[np.arange(8), :, np.arange(8)] = 1
    out = npkernels.attention_varlen(q, q, v, cu, cu, dropout_p=0.4, dropout_seed=3)
    for h, (rows, keys) in itertools.product(range(2), sequences(cu, cu)):
        numbers = h * 8 + np.arange(8)[rows]
        kept = reference.dropout.dropout_kept(0.4, 3, numbers, keys.stop - keys.start)
        assert np.array_equal(out[rows, h, keys] > 0, kept)


def test_no_sequences_and_empty_ones():
    q, k = np.ones((0, 2, 4), np.float32), np.ones((0, 1, 4), np.float32)
    for cu in ([0], [0, 0, 0]):
        out, lse = npkernels.attention_varlen(q, k, k, cu, cu, return_lse=True)
        assert (out.shape, lse.shape) == ((0, 2, 4), (2, 0))
        assert npkernels.attention_varlen_vjp(out, q, k, k, out, lse, cu, cu).dk.shape == (0, 1, 4)
    q = np.ones((3, 2, 4), np.float32)
    out, lse = npkernels.attention_varlen(q, k, k, [0, 3], [0, 0], return_lse=True)
    assert not out.any()
    assert np.array_equal(lse, np.full((2, 3), -INF))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"cu_seqlens_q": [0, 3, 2, 5]}, "cu_seqlens_q"),
        ({"cu_seqlens_k": [0, 9, 7, 7]}, "cu_seqlens_k"),
        ({"cu_seqlens_q": [1, 2, 3, 5]}, "cu_seqlens_q"),
        ({"cu_seqlens_q": [0, 2, 3, 4]}, "cu_seqlens_q"),
        ({"cu_seqlens_k": [0, 2, 3, 8]}, "cu_seqlens_k"),
        ({"cu_seqlens_k": [0, 2, 7]}, "cu_seqlens_k"),
        ({"cu_seqlens_q": []}, "cu_seqlens_q"),
        ({"cu_seqlens_q": [[0, 5]]}, "cu_seqlens_q"),
        ({"cu_seqlens_q": [0, -1, 3, 5]}, "cu_seqlens_q"),
        ({"causal": True}, "causal"),
        ({"alibi_slopes": np.ones((2, 4), np.float32)}, "alibi_slopes"),
        ({"q_offset": [1, 2]}, "q_offset"),
        ({"sinks": np.ones(2, np.float32)}, "sinks"),
        ({"window": (1,)}, "window"),
        ({"dropout_p": 0.5}, "dropout_seed"),
    ],
)
def test_wrong_arguments(wrong, word):
    q, k, v = pack(([5], [7]))
    given = {"q": q, "k": k, "v": v, "cu_seqlens_q": [0, 2, 3, 5], "cu_seqlens_k": [0, 2, 6, 7]}
    npkernels.attention_varlen(**given)
    with pytest.raises(ValueError, match=rf"^attention_varlen: .*\b{word}\b"):
        npkernels.attention_varlen(**{**given, **wrong})
    out, lse = np.zeros((5, 4, 17), np.float32), np.zeros((4, 5), np.float32)
    with pytest.raises(ValueError, match=rf"^attention_varlen_vjp: .*\b{word}\b"):
        npkernels.attention_varlen_vjp(dout=out, o=out, lse=lse, **{**given, **wrong})
    for bad in ([0.0, 5.0], ["0", "5"]):
        with pytest.raises(TypeError, match=r"^attention_varlen: cu_seqlens_q"):
            npkernels.attention_varlen(**{**given, "cu_seqlens_q": bad})
