"""KVCache: what is appended is what is read, in pieces, in pages, in every dtype; what fails changes nothing."""

import doctest
import itertools
import multiprocessing

import ml_dtypes
import numpy as np
import pytest

import npkernels
from npkernels import KVCache, _cache
from npkernels._cli import gate

ISAS = npkernels.available_isas()
NAN, INF = np.nan, np.inf
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(d) for d in (np.float32, np.float64, np.float16, BFLOAT16, np.int8)]
PAGES = [None, 1, 4, 7]
HEADS, D, DV, CAPACITY = 2, 12, 9, 30


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def new(dtype=np.float32, page_size=None, batch=3, **sizes):
    sizes = {"kv_heads": HEADS, "capacity": CAPACITY, "head_dim": D, "value_dim": DV, **sizes}
    return KVCache(batch, dtype=dtype, page_size=page_size, **sizes)


def tokens(cache, n, seed=0, dtype=np.float32):
    """Keys and values of n tokens, as `append` takes them."""
    batch, heads = len(cache.lengths), cache.k.shape[1]
    return [normal(batch, heads, n, x.shape[3], dtype=dtype, seed=seed) for x in (cache.k, cache.v)]


def filled(dtype=np.float32, page_size=None, lengths=(11, 0, 30), **sizes):
    """A cache whose sequences have these lengths, appended in two pieces."""
    cache = new(dtype, page_size, len(lengths), **sizes)
    lengths = np.array(lengths)
    first = lengths // 3
    source = np.float64 if dtype == np.float64 else np.float32
    for i, counts in enumerate((first, lengths - first)):
        cache.append(*tokens(cache, int(counts.max(initial=0)), i, source), counts)
    return cache


def rows(cache, b):
    """Keys and values of sequence b, int8 ones times their scales."""
    found = []
    for x, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
        wide = x.astype(np.float64) if scale is None else x * scale[..., None].astype(np.float64)
        own = wide[b] if cache.block_table is None else np.concatenate([*wide[cache.block_table[b]]], axis=1)
        found.append(own[:, : cache.lengths[b]])
    return found


def held(cache):
    """All bits of a cache."""
    arrays = (cache.k, cache.v, cache.k_scale, cache.v_scale, cache.lengths, cache.block_table)
    return [None if x is None else x.tobytes() for x in arrays]


def arrays_of(cache):
    """What the reference of `attend` takes beside q."""
    held = {name: getattr(cache, name) for name in ("block_table", "k_scale", "v_scale")}
    return (cache.k, cache.v, cache.lengths), held


def assert_attends(cache, q, **options):
    """On every instruction set."""
    args, held = arrays_of(cache)
    expectation = gate.expect("cached_attention", q, *args, **held, **options, return_lse=True)
    for isa in ISAS:
        with npkernels.use_isa(isa):
            for verdict in expectation.judge(cache.attend(q, **options, return_lse=True)):
                assert verdict.passed, f"{isa}: {verdict.place} {verdict.text}"


# --- append


@pytest.mark.parametrize("page_size", PAGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_those_that_were_appended(dtype, page_size):
    cache = new(dtype, page_size)
    kept = [[np.zeros((HEADS, 0, d)) for d in (D, DV)] for _ in range(3)]
    source = np.float64 if dtype == np.float64 else np.float32
    pieces = [
        (4, None),
        (1, None),
        (6, [6, 0, 2]),
        (0, None),
        (9, [0, 9, 1]),
        (3, [3, 3, 0]),
        (12, [12, 5, 1]),
    ]
    for i, (n, counts) in enumerate(pieces):
        k, v = tokens(cache, n, i, source)
        cache.append(k, v, counts)
        for b, taken in enumerate([n] * 3 if counts is None else counts):
            kept[b] = [np.concatenate([x, y[b, :, :taken]], 1) for x, y in zip(kept[b], (k, v), strict=True)]
        assert [x.shape[1] for x, _ in kept] == cache.lengths.tolist()
    for b, pair in enumerate(kept):
        for wanted, got in zip(pair, rows(cache, b), strict=True):
            if dtype == np.int8:
                step = np.abs(wanted).max(-1, keepdims=True) / 127
                assert (np.abs(got - wanted) <= step * (0.5 + 1e-5)).all()
            else:
                assert np.array_equal(got, wanted.astype(dtype).astype(np.float64))


@pytest.mark.parametrize("source", [*DTYPES[:4], np.dtype(np.int64)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_numbers_are_rounded_to_the_dtype_of_the_cache(dtype, source):
    cache = new(dtype, batch=1)
    k, v = ((3 * x).astype(source) for x in tokens(cache, 5, dtype=np.float64))
    cache.append(k, v)
    for got, wanted in zip(rows(cache, 0), (k[0], v[0]), strict=True):
        if dtype == np.int8:
            np.testing.assert_allclose(got, wanted.astype(np.float64), atol=np.abs(wanted).max() / 250)
        else:
            assert np.array_equal(got, wanted.astype(dtype).astype(np.float64))


def test_int8_rows_have_scales_of_their_own():
    cache = new(np.int8, batch=1)
    k, v = tokens(cache, 4)
    k[0, :, 0], k[0, :, 1], k[0, :, 2] = 0, 1e-30, -1e30
    cache.append(k, v)
    assert (cache.k[0, :, 0] == 0).all()
    assert (cache.k_scale[0, :, 0] == 0).all()
    assert (cache.k[0, :, 1] == 127).all()
    assert (cache.k[0, :, 2] == -127).all()
    np.testing.assert_allclose(cache.k_scale[0, :, 2], 1e30 / 127, rtol=1e-6)
    assert (np.abs(cache.k[0, :, 3]).max(-1) == 127).all()


def test_what_counts_leave_out_is_not_looked_at():
    k, v = tokens(new(batch=2), 3)
    k[0, :, 2], v[1, :, 1:] = NAN, INF
    for dtype, page_size in itertools.product(DTYPES, PAGES):
        cache = new(dtype, page_size, batch=2)
        cache.append(k, v, [2, 1])
        assert all(np.isfinite(x).all() for b in range(2) for x in rows(cache, b))


def test_pages_are_taken_as_they_are_needed():
    cache = new(page_size=4, batch=2, capacity=10)  # of three pages, the last of them half used
    assert cache.k.shape == (6, HEADS, 4, D)
    assert (cache.block_table == -1).all()
    cache.append(*tokens(cache, 5), [1, 5])
    assert (cache.block_table >= 0).sum(1).tolist() == [1, 2]
    cache.append(*tokens(cache, 5))
    taken = cache.block_table[cache.block_table >= 0]
    assert len(set(taken.tolist())) == taken.size == 5
    assert cache.capacity == 10
    with pytest.raises(ValueError, match="the capacity is 10"):
        cache.append(*tokens(cache, 1))


def test_rows_of_the_cache_itself_may_be_appended():
    for page_size in PAGES:
        cache = filled(page_size=page_size, lengths=(9, 9))
        copies = [np.stack([rows(cache, b)[i] for b in range(2)]) for i in range(2)]
        if page_size is None:
            cache.append(cache.k[:, :, :9], cache.v[:, :, :9])
        else:
            cache.append(*copies)
        for b in range(2):
            for got, was in zip(rows(cache, b), copies, strict=True):
                assert np.array_equal(got, np.concatenate([was[b], was[b]], axis=1))


def spoilt(x, value):
    x = x.copy()
    x[1, 1, -1, -1] = value
    return x


REFUSED = {
    "one axis less": (ValueError, "k has shape", lambda k, v: (k[0], v)),
    "heads of k": (ValueError, "k has shape", lambda k, v: (k[:, :1], v)),
    "head size of v": (ValueError, "v has shape", lambda k, v: (k, v[..., 1:])),
    "batch of v": (ValueError, "v has shape", lambda k, v: (k, v[:2])),
    "tokens of v": (ValueError, "v has 1 tokens, k has 2", lambda k, v: (k, v[:, :, :1])),
    "words": (TypeError, "k has dtype", lambda k, v: (k.astype(str), v)),
    "complex": (TypeError, "v has dtype complex", lambda k, v: (k, v.astype(complex))),
    "masked array": (TypeError, "masked array", lambda k, v: (np.ma.masked_array(k), v)),
    "no array": (TypeError, "k has dtype object", lambda k, v: (None, v)),
    "counts too large": (ValueError, "counts holds 0 to 3", lambda k, v: (k, v, [0, 1, 3])),
    "counts below 0": (ValueError, "counts holds -1 to 2", lambda k, v: (k, v, [-1, 0, 2])),
    "counts of two": (ValueError, "counts has shape", lambda k, v: (k, v, [1, 1])),
    "one count": (ValueError, "counts has shape", lambda k, v: (k, v, 1)),
    "counts are floats": (TypeError, "counts has dtype float64", lambda k, v: (k, v, [1.0, 1, 1])),
    "too many tokens": (ValueError, "sequence 2 has 29 tokens and would get 2 more", lambda k, v: (k, v)),
}


@pytest.mark.parametrize("page_size", PAGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wrong", REFUSED)
def test_a_refused_append_changes_nothing(wrong, dtype, page_size):
    cache = filled(dtype, page_size, lengths=(11, 0, 29))
    error, message, change = REFUSED[wrong]
    before = held(cache)
    with pytest.raises(error, match=message) as caught:
        cache.append(*change(*tokens(cache, 2)))
    assert str(caught.value).startswith("KVCache.append: ")
    assert held(cache) == before


@pytest.mark.parametrize("page_size", PAGES)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e300])
def test_int8_has_no_nan_and_no_infinity(which, bad, page_size):
    cache = filled(np.int8, page_size, lengths=(11, 4, 3))
    new_rows = tokens(cache, 2, dtype=np.float64)
    new_rows[which] = spoilt(new_rows[which], bad)
    before = held(cache)
    with pytest.raises(ValueError, match=rf"KVCache.append: {'kv'[which]} holds NaN"):
        cache.append(*new_rows)
    assert held(cache) == before


def test_pages_may_run_out():
    cache = new(page_size=4, batch=2, capacity=8)
    cache.append(*tokens(cache, 4))
    cache.block_table[0, 1] = cache.block_table[1, 1] = 2  # both by hand, which leaves page 3 only
    cache.lengths = [8, 4]
    cache.append(*tokens(cache, 4), [0, 4])
    pages = normal(3, HEADS, 4, D), normal(3, HEADS, 4, DV)
    cache = KVCache.from_arrays(*pages, [4, 4], [[0, -1], [1, 2]])
    before = held(cache)
    for counts in ([1, 0], [1, 1]):
        with pytest.raises(ValueError, match=r"sequence 0 needs a page at block_table\[0, 1\]"):
            cache.append(*tokens(cache, 2), counts)
        assert held(cache) == before
    cache.append(*tokens(cache, 2), [0, 2])
    assert cache.lengths.tolist() == [4, 6]


@pytest.mark.parametrize("name", ["k", "v", "lengths", "k_scale", "v_scale"])
def test_read_only_and_shared_memory_is_attended_but_not_appended_to(name):
    source = filled(np.int8, lengths=(5, 5))
    given = {n: getattr(source, n) for n in ("k", "v", "lengths", "k_scale", "v_scale")}
    given[name] = given[name].copy()
    given[name].flags.writeable = False
    cache = KVCache.from_arrays(**given)
    assert np.isfinite(cache.attend(normal(2, 4, 1, D))).all()
    before = held(cache)
    with pytest.raises(ValueError, match=f"the cache's {name} is read-only"):
        cache.append(*tokens(cache, 1))
    assert held(cache) == before
    one = np.lib.stride_tricks.as_strided(source.k, source.k.shape, (0, *source.k.strides[1:]))
    cache = KVCache.from_arrays(**{**given, name: getattr(source, name), "k": one})
    with pytest.raises(ValueError, match="the cache's k has strides"):
        cache.append(*tokens(cache, 1))


# --- attend


@pytest.mark.parametrize("page_size", [None, 7])
@pytest.mark.parametrize("heads", [(2, 2), (8, 2), (8, 1)])
@pytest.mark.parametrize("S", [1, 2, 3, 4, 5, 6, 7, 8, 40])
def test_as_the_reference_for_any_number_of_queries_and_heads(S, heads, page_size):
    cache = filled(page_size=page_size, lengths=(300, 41, 0), kv_heads=heads[1], capacity=301)
    assert_attends(cache, normal(3, heads[0], S, D))


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("query", DTYPES[:4], ids=str)
def test_as_the_reference_in_every_dtype(query, dtype, page_size):
    cache = filled(dtype, page_size, lengths=(150, 1), capacity=200)
    q = normal(2, 6, 2, D, dtype=query)
    if (query == np.float64) != (dtype == np.float64):
        with pytest.raises(
            TypeError, match=r"KVCache.attend: q has dtype \w+, the cache has \w+; float64 goes"
        ):
            cache.attend(q)
    else:
        assert_attends(cache, q)


@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"window": (20, -1)},
        {"window": (5, 0), "causal": False},
        {"softcap": 1.5, "scale": 1.0},
        {"sinks": normal(4)},
        {"alibi_slopes": np.float32([0.5, 0.25, 0.1, 0])},
        {"alibi_slopes": np.abs(normal(3, 4)), "window": (100, 3)},
        {"q_offset": 12},
        {"q_offset": np.array([3, 200, -1]), "sinks": normal(4), "softcap": 4.0},
    ],
    ids=lambda options: ", ".join(options),
)
def test_options(options):
    for page_size, S in itertools.product((None, 32), (1, 6)):
        cache = filled(page_size=page_size, lengths=(257, 33, 2), capacity=260)
        assert_attends(cache, normal(3, 4, S, D), **options)


def test_is_attention_of_the_rows():
    cache = filled(np.float64, lengths=(29, 13))
    q = normal(2, 4, 3, D, dtype=np.float64)
    out, lse = cache.attend(q, return_lse=True)
    for b in range(2):
        one, norm = npkernels.attention(q[b], *rows(cache, b), causal="bottom_right", return_lse=True)
        np.testing.assert_allclose(out[b], one, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(lse[b], norm, rtol=1e-13)


def test_sequences_without_tokens_give_zero():
    for page_size in PAGES:
        cache = filled(page_size=page_size, lengths=(0, 0))
        out, lse = cache.attend(normal(2, 4, 2, D), return_lse=True)
        assert np.array_equal(out, np.zeros((2, 4, 2, DV)))
        assert np.array_equal(lse, np.full((2, 4, 2), -INF))
    empty = itertools.product(({"batch": 0}, {"kv_heads": 0}, {"capacity": 0}), PAGES)
    for shape, page_size in empty:
        cache = new(page_size=page_size, **{"batch": 2, **shape})
        cache.append(*tokens(cache, 0))
        q = normal(len(cache.lengths), 2 * cache.k.shape[1], 3, D)
        with npkernels.checked():
            assert cache.attend(q).shape == (*q.shape[:3], DV)


@pytest.mark.parametrize("page_size", PAGES)
def test_no_sequence_outgrows_its_capacity_where_there_is_none(page_size):
    cache = new(page_size=page_size, batch=0)
    cache.append(*tokens(cache, CAPACITY + 1))
    assert cache.lengths.shape == (0,)


def test_the_output_goes_where_it_is_asked_for():
    cache = filled(lengths=(20, 9))
    q = normal(2, 4, 3, D)
    memory = np.full((2, 3, 4, DV), NAN, np.float32)
    out = memory.transpose(0, 2, 1, 3)
    assert cache.attend(q, out=out) is out
    assert np.array_equal(out, cache.attend(q))
    for wrong, message in (
        (memory, "out has shape"),
        (out.astype(np.float64), "out has dtype"),
        (cache.v[:, :, :3].repeat(2, 1)[..., :DV].astype(np.float16), "out has dtype"),
        (np.lib.stride_tricks.as_strided(cache.v, out.shape, (0, 0, *cache.v.strides[2:])), "share memory"),
        (np.zeros((2, 4, 3, 2 * DV), np.float32)[..., ::2], "last axis of out must be contiguous"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"KVCache.attend: .*{message}"):
            cache.attend(q, out=wrong)
    cache = filled(lengths=(20, 9), kv_heads=4, value_dim=D)
    with pytest.raises(ValueError, match="out overlaps an input"):
        cache.attend(q, out=cache.v[:, :, :3])


@pytest.mark.parametrize(
    ("q", "options", "error", "message"),
    [
        (normal(2, 4, 1, D + 1), {}, ValueError, "q has shape"),
        (normal(3, 4, 1, D), {}, ValueError, "q has shape"),
        (normal(4, 1, D), {}, ValueError, "q has shape"),
        (normal(2, 3, 1, D), {}, ValueError, "q has 3"),
        (normal(2, 4, 1, D, dtype=np.complex64), {}, TypeError, "q has dtype"),
        (normal(2, 4, 1, D), {"causal": "top_left"}, TypeError, "causal is 'top_left'"),
        (normal(2, 4, 1, D), {"window": 3}, TypeError, "window is 3"),
        (normal(2, 4, 1, D), {"softcap": -1.0}, ValueError, "softcap is -1.0"),
        (normal(2, 4, 1, D), {"sinks": normal(2)}, ValueError, "sinks has shape"),
        (normal(2, 4, 1, D), {"alibi_slopes": normal(3)}, ValueError, "alibi_slopes has shape"),
        (normal(2, 4, 1, D), {"q_offset": [1, 2, 3]}, ValueError, "q_offset has shape"),
        (normal(2, 4, 1, D), {"scale": NAN}, ValueError, "scale is nan"),
    ],
)
def test_wrong_arguments_are_named(q, options, error, message):
    cache = filled(lengths=(20, 9))
    out = np.full((2, 4, 1, DV), 7, np.float32)
    before = held(cache)
    with pytest.raises(error, match=f"KVCache.attend: .*{message}"):
        cache.attend(q, **options, out=out)
    assert (out == 7).all()
    assert held(cache) == before


# --- the caller's own memory


def test_the_callers_memory_is_updated_in_place():
    k, v = normal(2, 20, HEADS, D).swapaxes(1, 2), normal(2, 20, HEADS, DV).swapaxes(1, 2)
    lengths = np.array([3, 17])
    cache = KVCache.from_arrays(k, v, lengths)
    more = tokens(cache, 3)
    cache.append(*more, [3, 2])
    assert lengths.tolist() == [6, 19]
    assert np.shares_memory(cache.lengths, lengths)
    for x, fresh in zip((k, v), more, strict=True):
        assert np.array_equal(x[0, :, 3:6], fresh[0])
        assert np.array_equal(x[1, :, 17:19], fresh[1, :, :2])
    assert_attends(cache, normal(2, 4, 2, D))
    cache.truncate([2, 5])
    assert lengths.tolist() == [2, 5]


def test_pages_of_the_caller_in_any_order_and_shared():
    pages = normal(6, HEADS, 8, D), normal(6, HEADS, 8, DV)
    table = np.array([[5, 0, 3], [5, 2, -1]])  # one prefix
    cache = KVCache.from_arrays(*pages, np.array([19, 12]), table)
    assert_attends(cache, normal(2, 4, 2, D))
    k, v = tokens(cache, 4)
    cache.append(k, v)
    assert np.array_equal(pages[0][3, :, 3:7], k[0])
    assert np.array_equal(pages[1][2, :, 4:8], v[1])
    with pytest.raises(ValueError, match=r"sequence 1 needs a page at block_table\[1, 2\]"):
        cache.append(*tokens(cache, 1))
    table[1, 2] = 4  # the caller gives pages out
    cache.append(*tokens(cache, 1))
    assert_attends(cache, normal(2, 4, 2, D))
    cache.truncate([1, 1])
    assert table.tolist() == [[5, 0, 3], [5, 2, 4]]


def test_a_caller_whose_table_is_empty_still_owns_the_pages():
    cache = KVCache.from_arrays(normal(2, HEADS, 8, D), normal(2, HEADS, 8, DV), [0], [[-1, -1]])
    with pytest.raises(ValueError, match="needs a page"):
        cache.append(*tokens(cache, 1))


def test_lengths_of_another_dtype_are_copied():
    lengths = np.array([3, 17], np.int32)
    cache = KVCache.from_arrays(normal(2, HEADS, 20, D), normal(2, HEADS, 20, DV), lengths)
    cache.append(*tokens(cache, 1))
    assert cache.lengths.tolist() == [4, 18]
    assert cache.lengths.dtype == np.int64
    assert lengths.tolist() == [3, 17]


K, V = normal(2, HEADS, 8, D), normal(2, HEADS, 8, DV)
S8 = np.ones((2, HEADS, 8), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": K.tolist()}, TypeError, "k is a list"),
        ({"v": V[0]}, ValueError, "v has shape"),
        ({"k": K.astype(np.int16)}, TypeError, "k is int16"),
        ({"k": K.astype(">f4")}, TypeError, "k is >f4"),
        ({"k": K.repeat(2, -1)[..., ::2]}, ValueError, "last axis of k must be contiguous"),
        ({"v": V[:, :, :7]}, ValueError, "v is float32"),
        ({"v": V.astype(np.float16)}, ValueError, "v is float16"),
        ({"lengths": [1]}, ValueError, "lengths has shape"),
        ({"lengths": [1.0, 2.0]}, TypeError, "lengths has dtype"),
        ({"lengths": [1, 9]}, ValueError, r"lengths\[1\] is 9; expected 0 to the capacity, 8"),
        ({"lengths": [-1, 1]}, ValueError, r"lengths\[0\] is -1"),
        ({"block_table": [0, 1]}, ValueError, "block_table has shape"),
        ({"block_table": [[0.0], [1.0]]}, TypeError, "block_table has dtype"),
        ({"block_table": [[0], [2]]}, IndexError, r"block_table\[1, 0\] is 2; expected -1 or a page below 2"),
        ({"block_table": [[-2], [1]]}, IndexError, r"block_table\[0, 0\] is -2"),
        ({"block_table": [[-1], [1]]}, ValueError, r"block_table\[0, 0\] is -1, but sequence 0 has 1 tokens"),
        ({"k": K[:, :, :0], "v": V[:, :, :0], "block_table": [[0], [1]]}, ValueError, "at least one token"),
        ({"k_scale": S8}, ValueError, "k_scale goes with int8"),
        ({"k": K.astype("i1"), "v": V.astype("i1")}, ValueError, "k_scale goes with int8"),
        (
            {"k": K.astype("i1"), "v": V.astype("i1"), "k_scale": S8, "v_scale": S8[:1]},
            ValueError,
            "v_scale is float32",
        ),
        (
            {"k": K.astype("i1"), "v": V.astype("i1"), "k_scale": S8.astype("f8"), "v_scale": S8},
            ValueError,
            "k_scale is float64",
        ),
    ],
)
def test_arrays_that_make_no_cache_are_refused(change, error, message):
    with pytest.raises(error, match=f"KVCache.from_arrays: .*{message}"):
        KVCache.from_arrays(**{"k": K, "v": V, "lengths": [1, 2], **change})


def test_unaligned_memory_is_refused():
    k = np.frombuffer(bytes(1) + K.tobytes(), np.uint8)[1:].view(np.float32).reshape(K.shape)
    with pytest.raises(ValueError, match="k is not aligned"):
        KVCache.from_arrays(k, V, [1, 2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch": -1}, ValueError, "batch is -1; expected at least 0"),
        ({"kv_heads": 2.0}, TypeError, "kv_heads is 2.0; expected an integer"),
        ({"page_size": 0}, ValueError, "page_size is 0; expected at least 1"),
        ({"value_dim": "9"}, TypeError, "value_dim is '9'"),
        ({"dtype": np.int16}, TypeError, "dtype is int16"),
        ({"dtype": "half a float"}, TypeError, "dtype is 'half a float'; expected float32"),
        ({"dtype": ">f4"}, TypeError, "dtype is >f4"),
    ],
)
def test_sizes_that_make_no_cache_are_refused(change, error, message):
    with pytest.raises(error, match=f"KVCache: {message}"):
        new(**change)


# --- lengths and tables set by hand


@pytest.mark.parametrize("page_size", PAGES)
def test_truncate_forgets_and_goes_on(page_size):
    cache, straight = (filled(page_size=page_size, lengths=(29, 8)) for _ in range(2))
    kept = [rows(cache, b) for b in range(2)]
    cache.truncate([13, 8])
    assert cache.lengths.tolist() == [13, 8]
    for fresh in (cache, straight):
        fresh.truncate([3, 0])
        fresh.append(*tokens(fresh, 20, 5))
        fresh.append(*tokens(fresh, 7, 6))
    q = normal(2, 4, 2, D)
    assert np.array_equal(cache.attend(q), straight.attend(q))
    assert np.array_equal(rows(cache, 0)[0][:, :3], kept[0][0][:, :3])
    if page_size:
        used = cache.block_table[cache.block_table >= 0]
        assert len(set(used.tolist())) == used.size == sum(-(-n // page_size) for n in (30, 27))


@pytest.mark.parametrize("lengths", [[12, 8], [-1, 8], [3], [3.0, 8.0], [[3, 8]]])
def test_truncate_refuses(lengths):
    for page_size in PAGES:
        cache = filled(page_size=page_size, lengths=(11, 8))
        before = held(cache)
        with pytest.raises((ValueError, TypeError), match=r"KVCache.truncate: lengths"):
            cache.truncate(lengths)
        assert held(cache) == before


def test_pages_that_sequences_share_are_given_out_once():
    cache = filled(page_size=4, lengths=(8, 0, 0), capacity=12)
    cache.block_table[1, :2] = cache.block_table[2, :2] = cache.block_table[0, :2]
    cache.lengths = [8, 8, 8]
    assert np.array_equal(rows(cache, 0)[0], rows(cache, 2)[0])
    cache.truncate([0, 0, 8])
    cache.append(*tokens(cache, 4))
    used = cache.block_table[cache.block_table >= 0]
    assert len(set(used.tolist())) == used.size == 5


def test_lengths_may_be_set():
    for page_size in (None, 4):
        cache = filled(page_size=page_size, lengths=(11, 8))
        array = cache.lengths
        cache.lengths = [9, 2]
        assert cache.lengths is array
        assert array.tolist() == [9, 2]
        cache.lengths[0] += 1
        assert_attends(cache, normal(2, 4, 2, D))
        cache.append(*tokens(cache, 1))
        assert array.tolist() == [11, 3]
        for wrong in ([CAPACITY + 1, 0], [-1, 0], [1], [0.5, 1]):
            with pytest.raises((TypeError, ValueError), match=r"KVCache.lengths: lengths"):
                cache.lengths = wrong
        assert array.tolist() == [11, 3]


@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize("wrong", [-1, CAPACITY + 3])
def test_impossible_lengths_are_noticed_when_they_are_used(wrong, page_size):
    cache = filled(page_size=page_size, lengths=(11, 8))
    cache.lengths[1] = wrong
    before = held(cache)
    with pytest.raises(ValueError, match=rf"KVCache.attend: lengths\[1\] is {wrong}"):
        cache.attend(normal(2, 4, 1, D))
    with pytest.raises(ValueError, match=rf"KVCache.append: lengths\[1\] is {wrong}"):
        cache.append(*tokens(cache, 1))
    assert held(cache) == before


def test_impossible_pages_are_noticed_when_they_are_used():
    for page, error in ((-2, IndexError), (16, IndexError), (-1, ValueError)):
        cache = filled(page_size=4, lengths=(11, 8))
        cache.block_table[1, 1] = page
        before = held(cache)
        with pytest.raises(error, match=rf"KVCache.attend: block_table\[1, 1\] is {page}"):
            cache.attend(normal(2, 4, 1, D))
        with pytest.raises(error, match=rf"KVCache.append: block_table\[1, 1\] is {page}"):
            cache.append(*tokens(cache, 1))
        assert held(cache) == before


def test_the_block_table_may_be_set():
    cache = filled(page_size=4, lengths=(11, 8))
    array, was = cache.block_table, cache.block_table.copy()
    expected = cache.attend(normal(2, 4, 2, D))
    cache.k[...], cache.v[...] = cache.k[::-1].copy(), cache.v[::-1].copy()
    cache.block_table = np.where(was < 0, -1, len(cache.k) - 1 - was).astype(np.int32).tolist()
    assert cache.block_table is array
    assert np.array_equal(cache.attend(normal(2, 4, 2, D)), expected)
    for wrong, error in (
        (was[:1], ValueError),
        (was.astype(float), TypeError),
        (was + 99, IndexError),
        (np.full_like(was, -1), ValueError),
    ):
        before = held(cache)
        with pytest.raises(error, match=r"^KVCache.block_table: block_table"):
            cache.block_table = wrong
        assert held(cache) == before
    with pytest.raises(ValueError, match=r"^KVCache.block_table: the cache has no pages"):
        filled().block_table = was


# --- around the numbers


def work():
    """Some calls that are large enough for several threads, as bytes."""
    results = []
    for dtype, page_size, S in ((np.float32, None, 1), (np.int8, 64, 3), (BFLOAT16, 16, 40)):
        cache = filled(dtype, page_size, lengths=(3000, 700), head_dim=64, value_dim=32, capacity=3000)
        results += cache.attend(normal(2, 8, S, 64), return_lse=True)
    return b"".join(x.tobytes() for x in results)


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_any_number_of_threads(isa):
    with npkernels.use_isa(isa):
        seen = set()
        for n in (1, 2, 3):
            with npkernels.num_threads(n):
                seen.add(work())
        assert len(seen) == 1


def child(queue):
    queue.put(work())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork():
    expected = work()
    queue = multiprocessing.get_context("fork").Queue()
    process = multiprocessing.get_context("fork").Process(target=child, args=(queue,), daemon=True)
    process.start()
    assert queue.get(timeout=120) == expected
    process.join(timeout=60)
    assert process.exitcode == 0


def test_tensors_go_in_and_come_out():
    torch = pytest.importorskip("torch")
    cache = filled(lengths=(20, 9))
    q = normal(2, 4, 2, D)
    out, lse = cache.attend(torch.from_numpy(q), return_lse=True)
    assert isinstance(out, torch.Tensor)
    assert np.array_equal(out.numpy(), cache.attend(q))
    assert tuple(lse.shape) == (2, 4, 2)
    k, v = (torch.from_numpy(x) for x in tokens(cache, 2))
    cache.append(k, v, torch.tensor([2, 1]))
    assert np.array_equal(rows(cache, 1)[1][:, -1:], v[1, :, :1].numpy())
    memory = [torch.zeros(2, HEADS, 8, d) for d in (D, DV)]
    lengths = torch.tensor([0, 3])
    own = KVCache.from_arrays(*memory, lengths)
    own.append(k, v)
    assert lengths.tolist() == [2, 5]
    assert torch.equal(memory[0][0, :, :2], k[0])


def test_checked_compares_with_the_reference(monkeypatch):
    caches = [filled(dtype, page_size, lengths=(20, 9)) for dtype in DTYPES for page_size in (None, 4)]
    with npkernels.checked():
        for cache in caches:
            source = np.float64 if cache.k.dtype == np.float64 else np.float32
            cache.attend(normal(2, 4, 2, D, dtype=source), window=(5, -1))
    monkeypatch.setattr(npkernels._core, "attention_cached", lambda *args: args[-1].fill(3))
    with npkernels.checked(), pytest.raises(npkernels.MismatchError, match="cached_attention"):
        caches[0].attend(normal(2, 4, 2, D))


@pytest.mark.parametrize("name", ["", "from_arrays", "append", "truncate", "attend"])
def test_docstrings(name):
    target = getattr(KVCache, name) if name else KVCache
    assert all(f"{section}\n" in target.__doc__ for section in ("Parameters", "Raises", "Examples"))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner, out = doctest.DocTestRunner(optionflags=flags, verbose=False), []
    for test in doctest.DocTestFinder(recurse=False).find(target, name or "KVCache", module=_cache):
        runner.run(test, out=out.append)
    assert runner.summarize(verbose=False).attempted > 0
    assert not out, "".join(out)
