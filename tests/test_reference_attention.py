"""The reference of attention and rotary embedding against PyTorch and values worked out by hand."""

import itertools

import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal

from central_differences import DIFFERENCE, numeric_vjp
from npkernels import reference as ref

INF, NAN = np.inf, np.nan
EPS = np.finfo(np.float64).eps


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def qkv(heads=4, kv_heads=4, queries=5, keys=7, size=8, value_size=6, batch=2):
    r = rng(1)
    q = r.normal(size=(batch, heads, queries, size))
    return q, r.normal(size=(batch, kv_heads, keys, size)), r.normal(size=(batch, kv_heads, keys, value_size))


# --- attention


@pytest.mark.parametrize(
    ("kv_heads", "masked", "biased", "causal", "scale"),
    list(
        itertools.product(
            [4, 2, 1], [False, True], [False, True], [False, "top_left", "bottom_right"], [None, 0.3]
        )
    ),
)
def test_attention_agrees_with_torch(kv_heads, masked, biased, causal, scale):
    torch = pytest.importorskip("torch")
    q, k, v = qkv(kv_heads=kv_heads)
    options = {"causal": causal, "scale": scale}
    added = np.zeros((2, 4, 5, 7))
    if biased:
        options["bias"] = rng(2).normal(size=(4, 1, 7))
        added += options["bias"]
    if masked:
        options["mask"] = rng(3).random((2, 1, 5, 7)) < 0.7
        options["mask"][..., 0] = True
        added[~np.broadcast_to(options["mask"], added.shape)] = -INF
    if causal:
        diagonal = 0 if causal == "top_left" else 2
        added[..., ~np.tri(5, 7, diagonal, dtype=bool)] = -INF
    expected = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.tensor, (q, k, v, added)), scale=scale, enable_gqa=True
    ).numpy()
    out, lse = ref.attention(q, k, v, **options, return_lse=True)
    assert_allclose(out, expected, atol=100 * EPS)
    assert_array_equal(ref.attention(q, k, v, **options), out)

    group = 4 // kv_heads
    scores = (scale or 8**-0.5) * np.einsum("bhsd,bhkd->bhsk", q, k.repeat(group, 1)) + added
    assert_allclose(lse, scipy.special.logsumexp(scores, axis=-1), atol=100 * EPS)
    weights = ref.attention_weights(q, k, **options)
    assert_allclose(weights, scipy.special.softmax(scores, axis=-1), atol=100 * EPS)


def test_fewer_dimensions():
    q, k, v = qkv(kv_heads=2, batch=1)
    options = {"causal": "bottom_right", "mask": rng(4).random((5, 7)) < 0.8}
    full, lse = ref.attention(q, k, v, **options, return_lse=True)
    got, got_lse = ref.attention(q[0], k[0], v[0], **options, return_lse=True)
    assert_array_equal(got, full[0])
    assert_array_equal(got_lse, lse[0])
    assert_array_equal(ref.attention_weights(q[0], k[0]), ref.attention_weights(q, k)[0])
    got, got_lse = ref.attention(q[0, 3], k[0, 1], v[0, 1], **options, return_lse=True)
    assert_allclose(got, full[0, 3], rtol=4 * EPS)
    assert_allclose(got_lse, lse[0, 3], rtol=4 * EPS)
    assert ref.attention_weights(q[0, 3], k[0, 1]).shape == (5, 7)


def test_causal_offsets():
    def seen(queries, keys, **options):
        """How many keys each query attends to."""
        q, k = np.zeros((2, 1, queries, 1)), np.zeros((2, 1, keys, 1))
        return (ref.attention_weights(q, k, **options) > 0).sum(-1)[:, 0].tolist()

    assert seen(3, 3, causal=True) == [[1, 2, 3]] * 2
    assert seen(3, 5, causal="top_left") == [[1, 2, 3]] * 2
    assert seen(3, 5, causal="bottom_right") == [[3, 4, 5]] * 2
    assert seen(5, 3, causal="bottom_right") == [[0, 0, 1, 2, 3]] * 2
    assert seen(3, 5, causal="bottom_right", q_offset=-1) == [[0, 1, 2]] * 2
    assert seen(3, 5, causal="top_left", q_offset=[1, 7]) == [[2, 3, 4], [5, 5, 5]]
    assert seen(3, 5, causal=True, q_offset=1) == [[2, 3, 4]] * 2
    assert seen(3, 5, q_offset=-7) == [[5, 5, 5]] * 2
    with pytest.raises(ValueError, match="causal=True with 3 queries and 5 keys has two meanings"):
        seen(3, 5, causal=True)


def test_nothing_to_attend_to():
    q, k, v = qkv()
    mask = np.ones((2, 1, 5, 7), bool)
    mask[1, :, 2] = False
    for options in (
        {"mask": mask},
        {"bias": np.where(mask, 0, -INF)},
        {"mask": mask, "bias": np.where(mask, 0, NAN)},
    ):
        out, lse = ref.attention(q, k, v, **options, return_lse=True)
        assert_array_equal(out[1, :, 2], 0)
        assert_array_equal(lse[1, :, 2], -INF)
        assert_array_equal(ref.attention_weights(q, k, **options)[1, :, 2], 0)
        assert np.isfinite(out).all()
        assert np.isfinite(lse).sum() == lse.size - 4
    out, lse = ref.attention(q, k[:, :, :0], v[:, :, :0], return_lse=True)
    assert_array_equal(out, np.zeros((2, 4, 5, 6)))
    assert_array_equal(lse, np.full((2, 4, 5), -INF))


@pytest.mark.parametrize("wild", [NAN, INF, -INF])
def test_masked_keys_and_values_do_not_leak(wild):
    q, k, v = qkv(kv_heads=2, queries=7)
    mask = np.ones(7, bool)
    mask[[2, 5]] = False
    dirty_k, dirty_v = k.copy(), v.copy()
    dirty_k[:, :, [2, 5]] = wild
    dirty_v[:, :, [2, 5], ::2] = wild
    clean = ref.attention(q, k, v, mask=mask, return_lse=True)
    dirty = ref.attention(q, dirty_k, dirty_v, mask=mask, return_lse=True)
    assert_allclose(dirty[0], clean[0], rtol=100 * EPS)
    assert_array_equal(dirty[1], clean[1])

    future_k, future_v = k.copy(), v.copy()
    future_k[:, :, 4:], future_v[:, :, 4:] = wild, wild
    clean, dirty = ref.attention(q, k, v, causal=True), ref.attention(q, future_k, future_v, causal=True)
    assert_allclose(dirty[:, :, :4], clean[:, :, :4], rtol=100 * EPS)
    if np.isnan(wild):  # an infinite key may also score -inf and have no weight
        assert np.isnan(dirty[:, :, 4:]).all()

    no_weight = ref.attention(q, k, dirty_v, bias=np.where(mask, 0, -INF))
    assert_allclose(no_weight, ref.attention(q, k, v, mask=mask), atol=100 * EPS)


def test_what_is_not_finite_stays_visible():
    q, k, v = qkv()
    dirty = v.copy()
    dirty[0, 1, 3, 2] = INF
    out = ref.attention(q, k, dirty)
    assert_array_equal(out[0, 1, :, 2], INF)
    out[0, 1, :, 2] = ref.attention(q, k, v)[0, 1, :, 2]
    assert_allclose(out, ref.attention(q, k, v), rtol=100 * EPS)
    dirty = q.copy()
    dirty[0, 1, 3, 2] = NAN
    out, lse = ref.attention(dirty, k, v, return_lse=True)
    assert np.isnan(out[0, 1, 3]).all()
    assert np.isnan(out).sum() == 6
    assert np.isnan(lse[0, 1, 3])
    assert np.isnan(lse).sum() == 1
    bias = np.zeros((5, 7))
    bias[2, 3] = INF
    out, lse = ref.attention(q, k, v, bias=bias, return_lse=True)
    assert np.isnan(out[:, :, 2]).all()
    assert_array_equal(lse[:, :, 2], INF)


def test_empty_attention():
    for shape in ({"batch": 0}, {"queries": 0}, {"value_size": 0}, {"heads": 0, "kv_heads": 0}):
        q, k, v = qkv(**shape)
        out, lse = ref.attention(q, k, v, return_lse=True)
        assert out.shape == (*q.shape[:-1], v.shape[-1])
        assert lse.shape == q.shape[:-1]
    q, k, v = qkv(size=0)
    assert_allclose(
        ref.attention(q, k, v), np.broadcast_to(v.mean(axis=2, keepdims=True), (2, 4, 5, 6)), rtol=20 * EPS
    )


def test_precision_of_attention():
    q, k, v = (np.float16(x) for x in qkv())
    out, lse = ref.attention(q, k, v, return_lse=True)
    assert out.dtype == lse.dtype == np.float64
    wide, wide_lse = ref.attention(*map(np.float64, (q, k, v)), return_lse=True)
    assert wide.dtype == wide_lse.dtype == np.longdouble
    assert_allclose(out, wide, atol=20 * EPS)


def test_wrong_arguments_of_attention():
    q, k, v = qkv(heads=8, kv_heads=2)
    cases = [
        (
            "k has 3 heads, q has 8; q heads must be a multiple",
            (q, v[:, [0, 1, 1], :, :1].repeat(8, -1), v),
            {},
        ),
        ("k has head size 7, q has 8", (q, k[..., :7], v), {}),
        ("k has batch 1, q has 2", (q, k[:1], v[:1]), {}),
        ("k has 3 dimensions, q has 4", (q, k[0], v), {}),
        (r"q has shape \(8,\)", (q[0, 0, 0], k, v), {}),
        (r"v has shape \(2, 2, 6, 6\)", (q, k, v[:, :, :6]), {}),
        (r"mask has shape \(3, 7\)", (q, k, v), {"mask": np.ones((3, 7), bool)}),
        (r"bias has shape \(3, 7\)", (q, k, v), {"bias": np.ones((3, 7))}),
        ("causal is 'left'", (q, k, v), {"causal": "left"}),
        ("scale is nan", (q, k, v), {"scale": NAN}),
        (r"q_offset has shape \(3,\)", (q, k, v), {"q_offset": [1, 2, 3]}),
    ]
    for message, arguments, options in cases:
        with pytest.raises(ValueError, match="attention: " + message):
            ref.attention(*arguments, **options)
    for message, options in [
        ("mask has dtype float64", {"mask": np.ones((5, 7))}),
        ("bias has dtype bool", {"bias": np.ones((5, 7), bool)}),
        ("q_offset has dtype float64", {"q_offset": 0.5}),
    ]:
        with pytest.raises(TypeError, match="attention: " + message):
            ref.attention(q, k, v, **options)


# --- merge_attention


def test_merging_parts_gives_the_whole():
    q, k, v = qkv(queries=6)
    options = {"causal": "top_left"}
    whole, lse = ref.attention(q, k, v, **options, return_lse=True)
    parts = [  # the last part is in the future of every query
        ref.attention(q, k[:, :, a:b], v[:, :, a:b], **options, q_offset=-a, return_lse=True)
        for a, b in [(0, 2), (2, 3), (3, 6), (6, 7)]
    ]
    assert_array_equal(parts[-1][1], -INF)
    out, merged = ref.merge_attention(*zip(*parts, strict=True))
    assert_allclose(out, whole, atol=20 * EPS)
    assert_allclose(merged, lse, atol=20 * EPS)
    out, merged = ref.merge_attention([parts[0][0]], [parts[0][1]])
    assert_array_equal(out, parts[0][0])
    assert_array_equal(merged, parts[0][1])


def test_merging_special_parts():
    two = np.array([[[2.0, 4.0]], [[NAN, INF]]])
    out, lse = ref.merge_attention(two, [[0.5], [-INF]])
    assert_array_equal(out, two[0])
    assert lse == 0.5
    out, lse = ref.merge_attention(two, [[-INF], [-INF]])
    assert_array_equal(out, [[0, 0]])
    assert lse == -INF
    out, lse = ref.merge_attention(two, [[0.0], [NAN]])
    assert np.isnan(out).all()
    assert np.isnan(lse)
    with pytest.raises(ValueError, match="merge_attention: 0 outs and 0 lses"):
        ref.merge_attention([], [])
    with pytest.raises(ValueError, match="merge_attention: 2 outs and 1 lses"):
        ref.merge_attention(two, [[0.0]])
    with pytest.raises(ValueError, match=r"merge_attention: lses\[1\] has shape \(2,\); expected \(1,\)"):
        ref.merge_attention(two, [[0.0], [0.0, 0.0]])


# --- rotary_embedding


def turned(x, angle, interleaved):
    """The rotation as a product of complex numbers; angle (S, r/2) broadcasts to the pairs of x."""
    r = 2 * angle.shape[-1]
    first, second = (x[..., 0:r:2], x[..., 1:r:2]) if interleaved else (x[..., : r // 2], x[..., r // 2 : r])
    z = (first + 1j * second) * np.exp(1j * angle)
    pairs = (z.real, z.imag)
    rotated = np.stack(pairs, -1).reshape(*x.shape[:-1], r) if interleaved else np.concatenate(pairs, -1)
    return np.concatenate([rotated, x[..., r:]], -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [None, 4, 0])
@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 5, 8), (2, 1, 3, 5, 8)])
def test_rotary_agrees_with_complex_numbers(shape, rotary_dim, interleaved):
    x = rng(5).normal(size=shape)
    pairs = (8 if rotary_dim is None else rotary_dim) // 2
    frequency = 500.0 ** (-np.arange(pairs) / max(pairs, 1))
    options = {"base": 500.0, "interleaved": interleaved, "rotary_dim": rotary_dim}
    positions = np.array([3, 0, 41, -2, 7])
    for given, used in [(None, np.arange(5)), (positions, positions)]:
        expected = turned(x, used[:, None] * frequency, interleaved)
        assert_allclose(ref.rotary_embedding(x, given, **options), expected, atol=200 * EPS)
    if len(shape) > 2:  # positions of each batch entry
        batch = rng(6).integers(0, 50, (shape[0], 5))
        angle = batch.reshape(shape[0], *(1,) * (len(shape) - 3), 5, 1) * frequency
        expected = turned(x, angle, interleaved)
        assert_allclose(ref.rotary_embedding(x, batch, **options), expected, atol=200 * EPS)
        table = np.arange(50)[:, None] * frequency
        tables = {"cos": np.cos(table), "sin": np.sin(table)}
        options = {"interleaved": interleaved, "rotary_dim": rotary_dim}
        assert_allclose(ref.rotary_embedding(x, batch, **tables, **options), expected, atol=200 * EPS)
        gathered = {"cos": np.cos(table)[batch], "sin": np.sin(table)[batch]}
        assert_allclose(ref.rotary_embedding(x, **gathered, **options), expected, atol=200 * EPS)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_gradient_agrees_with_central_differences(interleaved):
    x, dy = rng(7).normal(size=(2, 2, 3, 4, 6))
    angle = rng(8).normal(size=(2, 4, 2))
    for options in (
        {"interleaved": interleaved, "positions": rng(9).integers(0, 9, (2, 4))},
        {"interleaved": interleaved, "rotary_dim": 4, "cos": 2 * np.cos(angle), "sin": 3 * np.sin(angle)},
    ):
        expected = numeric_vjp(lambda x, options=options: ref.rotary_embedding(x, **options), x, dy)
        assert_allclose(ref.rotary_embedding_vjp(dy, **options), expected, **DIFFERENCE)


def test_rotary_by_hand():
    x = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]])
    quarter = {"cos": [[0.0, 1.0]], "sin": [[1.0, 0.0]], "rotary_dim": 4}
    assert_array_equal(ref.rotary_embedding(x, **quarter), [[-3, 2, 1, 4, 5]])
    assert_array_equal(ref.rotary_embedding(x, **quarter, interleaved=True), [[-2, 1, 3, 4, 5]])
    assert ref.rotary_embedding(np.zeros((0, 3, 0, 4))).shape == (0, 3, 0, 4)
    assert ref.rotary_embedding(np.zeros((2, 0))).shape == (2, 0)
    assert ref.rotary_embedding(np.float32(x[:, :4])).dtype == np.float64


def test_wrong_arguments_of_rotary():
    x = np.zeros((2, 3, 4))
    table = np.zeros((9, 2))
    cases = [
        ({"rotary_dim": 3}, "rotary_dim is 3"),
        ({"rotary_dim": 6}, "rotary_dim is 6"),
        ({"cos": table}, "cos and sin come together; sin is missing"),
        ({"cos": table, "sin": table}, r"cos has shape \(9, 2\); expected \(3, 2\) or \(2, 3, 2\)"),
        ({"cos": table, "sin": table[:, :1]}, r"sin has shape \(9, 1\)"),
        ({"positions": [0, 1, 2], "cos": table[:, :1], "sin": table[:, :1]}, r"cos has shape \(9, 1\)"),
        ({"positions": [0, 1]}, r"positions has shape \(2,\); expected \(3,\) or \(2, 3\)"),
        ({"base": 0.0}, "base is 0.0"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match="rotary_embedding: " + message):
            ref.rotary_embedding(x, **options)
    with pytest.raises(IndexError, match=r"positions\[1\] is 9, outside \[0, 9\)"):
        ref.rotary_embedding(x, [0, 9, 1], cos=table, sin=table)
    with pytest.raises(TypeError, match="positions has dtype float64"):
        ref.rotary_embedding(x, [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"x has shape \(4,\)"):
        ref.rotary_embedding(np.zeros(4))
