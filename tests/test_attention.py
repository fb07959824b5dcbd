"""Attention: every option with every other, bad keys that must not leak, views, and parts that make a whole."""

import itertools

import numpy as np
import pytest

import npkernels
from attention_rows import OPTIONS, ROWS, build, label, without_dropout
from kernel_calls import ATTENTION, DTYPES, LAYER, ROTARY, VARLEN, assert_same_bits, make
from npkernels import reference
from npkernels._cli import gate
from npkernels._cli.pairwise import every_pair

INF, NAN = np.inf, np.nan
ISAS = npkernels.available_isas()


def test_the_rows_hold_every_pair():
    assert every_pair(ROWS, OPTIONS)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_options_with_one_another(row):
    qkv, options = build(row)
    expectation = gate.expect("attention", *qkv, return_lse=True, **options)
    before = [x.copy() for x in qkv]
    for isa in ISAS:
        with npkernels.use_isa(isa):
            result = npkernels.attention(*qkv, return_lse=True, **options)
            target = np.full_like(result[0], 5)
            assert npkernels.attention(*qkv, out=target, **options) is target
        for verdict in expectation.judge(result):
            assert verdict.passed, f"{isa}, {label(row)}: {verdict.text}"
        assert np.array_equal(target, result[0])
    assert all(np.array_equal(a, b) for a, b in zip(before, qkv, strict=True))


@pytest.mark.parametrize("row", ROWS[::2], ids=range(0, len(ROWS), 2))
def test_weights_with_every_option(row):
    (q, k, _), options = build(row)
    options = without_dropout(options)
    for verdict in gate.expect("attention_weights", q, k, **options).judge(
        npkernels.attention_weights(q, k, **options)
    ):
        assert verdict.passed, f"{label(row)}: {verdict.text}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("causal", [False, True])
def test_a_masked_key_never_leaks(isa, bad, causal):
    q, k, v = np.random.default_rng(1).standard_normal((3, 1, 2, 70, 20)).astype(np.float32)
    mask = np.ones(70, bool)
    mask[[3, 40, 69]] = False
    dirty_k, dirty_v = k.copy(), v.copy()
    dirty_k[:, :, ~mask], dirty_v[:, :, ~mask] = bad, bad
    with npkernels.use_isa(isa):
        clean = npkernels.attention(q, k, v, mask=mask, causal=causal, return_lse=True)
        dirty = npkernels.attention(q, dirty_k, dirty_v, mask=mask, causal=causal, return_lse=True)
    assert all(np.array_equal(a, b) for a, b in zip(clean, dirty, strict=True))


@pytest.mark.parametrize("isa", ISAS)
def test_a_nan_spreads_to_those_who_attend_and_to_no_one_else(isa):
    q, k, v = np.random.default_rng(2).standard_normal((3, 1, 1, 150, 16)).astype(np.float32)
    with npkernels.use_isa(isa):
        clean = npkernels.attention(q, k, v, causal=True)
        for array in (k, v):
            spoilt = array.copy()
            spoilt[0, 0, 100, 3] = NAN
            out = npkernels.attention(
                q, spoilt if array is k else k, spoilt if array is v else v, causal=True
            )
            assert np.array_equal(out[0, 0, :100], clean[0, 0, :100])
            hit = np.isnan(out[0, 0, 100:])
            assert hit.all() if array is k else hit[:, 3].all() and not np.delete(hit, 3, axis=1).any()
        one_query = q.copy()
        one_query[0, 0, 7] = NAN
        out = npkernels.attention(one_query, k, v)
        assert np.isnan(out[0, 0, 7]).all()
        assert not np.isnan(np.delete(out[0, 0], 7, axis=0)).any()


def test_nothing_to_attend_to():
    q, k = np.ones((2, 3, 4)), np.ones((2, 0, 4))
    out, lse = npkernels.attention(q, k, k, return_lse=True)
    assert np.array_equal(out, np.zeros((2, 3, 4)))
    assert np.array_equal(lse, np.full((2, 3), -INF))
    out, lse = npkernels.attention(q, q, q, causal=True, q_offset=-5, return_lse=True)
    assert np.array_equal(out, np.zeros_like(out))
    assert np.array_equal(lse, np.full_like(lse, -INF))
    for shape in [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4)]:
        assert npkernels.attention(np.ones(shape), np.ones(shape), np.ones(shape)).shape == shape


@pytest.mark.parametrize("cuts", [[0, 100], [0, 1, 100], [0, 33, 34, 90, 100]])
def test_parts_over_disjoint_keys_merge_into_the_whole(cuts):
    q, k, v = np.random.default_rng(3).standard_normal((3, 2, 4, 100, 24)).astype(np.float32)
    pieces = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    parts = [npkernels.attention(q, k[:, :, p], v[:, :, p], return_lse=True) for p in pieces]
    out, lse = npkernels.merge_attention([o for o, _ in parts], [l for _, l in parts])
    whole, whole_lse = npkernels.attention(q, k, v, return_lse=True)
    np.testing.assert_allclose(out, whole, atol=2e-6)
    np.testing.assert_allclose(lse, whole_lse, rtol=2e-6)


def test_the_output_has_the_memory_order_of_q():
    x = np.zeros((2, 5, 3, 8), np.float32).transpose(0, 2, 1, 3)
    assert npkernels.attention(x, x, x).transpose(0, 2, 1, 3).flags.c_contiguous


def test_weights_are_those_of_attention():
    q, k, v = np.random.default_rng(4).standard_normal((3, 2, 4, 33, 16))
    mask = np.random.default_rng(5).random((33, 33)) < 0.7
    weights = npkernels.attention_weights(q, k[:, :2], mask=mask, causal=True)
    np.testing.assert_allclose(
        weights @ np.repeat(v[:, :2], 2, axis=1),
        npkernels.attention(q, k[:, :2], v[:, :2], mask=mask, causal=True),
        atol=1e-13,
    )
    np.testing.assert_allclose(
        weights, reference.attention_weights(q, k[:, :2], mask=mask, causal=True).astype(float), atol=1e-14
    )


def test_rotary_turns_back_and_keeps_lengths():
    x = np.random.default_rng(6).standard_normal((2, 3, 11, 32))
    for interleaved in (False, True):
        y = npkernels.rotary_embedding(x, interleaved=interleaved, rotary_dim=24)
        np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-14)
        back = npkernels.rotary_embedding_vjp(y, interleaved=interleaved, rotary_dim=24)
        np.testing.assert_allclose(back, x, atol=1e-14)
        assert np.array_equal(y[..., 24:], x[..., 24:])


@pytest.mark.parametrize("size", [0.003, 1, 300], ids=["underflow", "ordinary", "overflow"])
@pytest.mark.parametrize("name", [*ATTENTION, *VARLEN, *LAYER, *ROTARY, "merge_attention"])
def test_numpy_error_settings_do_not_matter(name, size):
    """No warning by default, no FloatingPointError where the caller turned them into errors."""
    for dtype in DTYPES:
        call = make(name, 37, dtype).mapped(
            lambda x: x if x.dtype.kind in "ib" else (size * x.astype(np.float64)).astype(x.dtype)
        )
        expected = call()
        for out in [{}, {"out": call.new_out()}] if call.outs else [{}]:
            with np.errstate(all="raise"):
                assert_same_bits(call(**out), expected)


def test_options_may_be_numpys_own():
    q, k, v = np.random.default_rng(8).standard_normal((3, 1, 2, 9, 4))
    for namespace in (npkernels, reference):
        expected = namespace.attention(q, k, v, causal=True, window=(3, 0))
        got = namespace.attention(q, k, v, causal=np.True_, window=np.array([3, 0]), softcap=np.float64(0))
        assert np.array_equal(got, expected)
        plain = namespace.attention(q, k, v)
        assert np.array_equal(namespace.attention(q, k, v, causal=np.False_), plain)
        with pytest.raises(ValueError, match=r"^attention: causal=True with 8 queries and 9 keys"):
            namespace.attention(q[:, :, :8], k, v, causal=np.True_)
        packed = [x[0].swapaxes(0, 1) for x in (q, k, v)]
        with pytest.raises(ValueError, match=r"^attention_varlen: causal=True"):
            namespace.attention_varlen(*packed, [0, 4, 9], [0, 5, 9], causal=np.True_)


@pytest.mark.parametrize("name", ["softcap", "dropout_p"])
def test_an_array_is_no_number(name):
    q = np.ones((1, 1, 2, 3))
    with pytest.raises(TypeError, match=rf"^attention: {name} is array"):
        npkernels.attention(q, q, q, **{name: np.array([0.5, 0.25])})


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("queries", [1, 3, 40])
@pytest.mark.parametrize("scale", [1e10, -1e10, 1e15])
def test_scores_far_beyond_their_own_rounding_pick_the_largest(isa, queries, scale):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, n, 16)).astype(np.float32) for n in (queries, 300, 300))
    want = v[0, np.arange(2)[:, None], (np.sign(scale) * q.astype(float) @ k.swapaxes(-1, -2)).argmax(-1)[0]]
    with npkernels.use_isa(isa):
        out, lse = npkernels.attention(q, k, v, scale=scale, return_lse=True)
        np.testing.assert_allclose(out[0], want, rtol=1e-6)
        _, moved = npkernels.attention_jvp(q, k, v, q, k, v, scale=scale)
    assert np.isfinite(lse).all()
    assert np.isfinite(moved).all()


@pytest.mark.parametrize("keywords", [{}, {"scale": 0.3}, {"causal": "bottom_right"}, {"causal": "top_left"}])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_short_way_of_ordinary_calls_has_the_bits_of_the_long_one(keywords, dtype):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, h, n, 8)).astype(dtype) for h, n in ((4, 5), (2, 7), (2, 7)))
    out, lse = npkernels.attention(q, k, v, return_lse=True, **keywords)
    long = np.empty_like(q)
    npkernels.attention(q, k, v, out=long, **keywords)
    np.testing.assert_array_equal(out, long)
    assert lse.shape == (2, 4, 5)


def test_dropped_weights_may_be_nan():
    q = np.ones((1, 1, 1, 4), np.float32)
    k, v = np.ones((1, 1, 64, 4), np.float32), np.ones((1, 1, 64, 4), np.float32)
    options = {"dropout_p": 0.5, "dropout_seed": 3}
    for x in (k, v):
        x[0, 0, 7] = NAN
        with np.errstate(all="ignore"):
            expected = reference.attention(q, k, v, **options)
        np.testing.assert_array_equal(np.isnan(npkernels.attention(q, k, v, **options)), np.isnan(expected))
        x[0, 0, 7] = 1


def test_the_bias_of_an_empty_batch_in_c():
    q = np.zeros((0, 2, 3, 4), np.float32)
    out, lse = npkernels.attention(q, q, q, return_lse=True)
    grads = npkernels.attention_vjp(
        out, q, q, q, out, lse, bias=np.zeros((1, 1, 3, 3), np.float32), want_dbias=True
    )
    np.testing.assert_array_equal(grads.dbias, np.zeros((1, 1, 3, 3)))


@pytest.mark.parametrize("isa", npkernels.available_isas())
@pytest.mark.parametrize("sink", [np.inf, np.nan])
@pytest.mark.parametrize(("queries", "keys"), [(3, 5), (1, 5), (1, 3000)])
def test_a_sink_that_is_no_number_spoils_the_rows_that_see_a_key(isa, sink, queries, keys):
    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((1, 2, n, 8), np.float32) for n in (queries, keys, keys))
    mask = np.ones((1, 2, queries, keys), bool)
    mask[0, 0, -1] = False
    options = {"sinks": np.array([sink, 0.5], np.float32), "mask": mask}
    with npkernels.use_isa(isa), np.errstate(all="ignore"):
        got = npkernels.attention(q, k, v, **options, return_lse=True)
        got += npkernels.attention_jvp(q, k, v, q, k, v, **options)
        want = reference.attention(q, k, v, **options, return_lse=True)
        want += reference.attention_jvp(q, k, v, q, k, v, **options)
    for name, x, y in zip(("out", "lse", "out", "dout"), got, want, strict=True):
        np.testing.assert_allclose(x, y.astype(np.float32), rtol=1e-4, atol=1e-5, err_msg=name)
    assert (got[0][0, 0, -1] == 0).all()


@pytest.mark.parametrize("shape", [(0, 4, 5, 8), (2, 4, 0, 8)])
def test_out_of_an_empty_call(shape):
    q, k = np.empty(shape, np.float32), np.empty((shape[0], 2, 7, 8), np.float32)
    out = np.empty_like(q)
    assert npkernels.attention(q, k, k, out=out) is out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("queries", [1, 3, 40])
@pytest.mark.parametrize("rise", [-9, -0.5, 0, 0.5, 3.9, 4.1, 30])
def test_scores_that_rise_from_tile_to_tile(isa, queries, rise):
    """The maximum of the online softmax lags behind by a few; sums over many tiles keep their digits."""
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((1, 2, n, 16)).astype(np.float32) for n in (queries, 2000, 2000))
    q *= 0.1  # of interest are the sums, not how scores were rounded
    bias = (rise / 128 * np.arange(2000)).astype(np.float32)
    for options in ({}, {"bias": bias.reshape(1, 1, 1, 2000)}):
        if not options:  # the same rise within k
            q[..., 0], k[..., 0] = 1, bias * 4
        with npkernels.use_isa(isa):
            result = npkernels.attention(q, k, v, return_lse=True, **options)
        for verdict in gate.expect("attention", q, k, v, return_lse=True, **options).judge(result):
            assert verdict.passed, f"{options.keys()}: {verdict.text}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("queries", [1, 3, 40])
def test_great_values_under_a_score_that_rises_a_little(isa, queries):
    q, k, v = (np.zeros((1, 1, n, 8), np.float32) for n in (queries, 300, 300))
    q[..., 0] = 1
    k[0, 0, 200, 0], v[0, 0, 200] = 3.9, 1e38
    tangents = [np.zeros_like(x) for x in (q, k, v)]
    with npkernels.use_isa(isa):
        out = npkernels.attention(q, k, v, scale=1)
        forward_mode = npkernels.attention_jvp(q, k, v, *tangents, scale=1)[0]
    weight = np.exp(3.9)
    expected = weight / (weight + 299) * 1e38
    assert np.allclose(out, expected, rtol=1e-6, atol=0)
    assert np.allclose(forward_mode, expected, rtol=1e-6, atol=0)
