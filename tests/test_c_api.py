"""npkernels.h: the answers of the Python functions, and a status for every argument that does not fit."""

import ctypes
import threading

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import npkernels
from c_calls import (
    FLOATS,
    IN_PLACE,
    INF,
    NAN,
    OPTIONAL,
    OUTPUTS,
    STRUCTS,
    arguments_of,
    compute,
    expect_refused,
    normal,
    same,
    split,
    status_of,
)
from c_library import (
    BAD_AXIS,
    BAD_DTYPE,
    BAD_INDEX,
    BAD_SHAPE,
    BAD_STRIDES,
    BAD_VALUE,
    BOTTOM_RIGHT,
    MEAN,
    NO_MEMORY,
    NONE,
    NULL_POINTER,
    OK,
    OVERLAP,
    SUM,
    TOP_LEFT,
    AttentionOptions,
    CrossEntropyOptions,
    TokenStats,
    bad_argument,
    call,
    describe,
    library,
    many,
    struct,
)

# --- the answers of the Python functions, bit for bit


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 33), -1), ((4, 3, 5), 1), ((6,), 0), ((0, 3), 0), ((3, 0), -1)]
)
def test_softmax_family(shape, axis, dtype):
    x, dy = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    mask = np.asarray(normal(*shape[1:]) > -1)
    options = {"temperature": 0.75, "mask": mask}
    arguments = (axis, 0.75, mask)
    y, tangent = np.empty_like(x), np.empty_like(x)
    rows = np.empty_like(x.sum(axis=axis), compute(dtype)) if x.ndim > 1 else np.empty((), compute(dtype))
    more = np.empty_like(rows)

    for name in ("softmax", "log_softmax"):
        assert call(name, x, *arguments, y) == OK
        same(y, getattr(npkernels, name)(x, axis, **options))
        assert call(f"{name}_vjp", dy, y, *arguments, tangent) == OK
        same(tangent, getattr(npkernels, f"{name}_vjp")(dy, y, axis, **options))
        assert call(f"{name}_jvp", x, dy, *arguments, y, tangent) == OK
        for got, wanted in zip(
            (y, tangent), getattr(npkernels, f"{name}_jvp")(x, dy, axis, **options), strict=True
        ):
            same(got, wanted)
    assert call("logsumexp", x, *arguments, rows, more) == OK
    same(rows, npkernels.logsumexp(x, axis, **options))
    same(more, npkernels.entropy(x, axis, **options))
    assert call("logsumexp_vjp", more, x, rows, *arguments, y) == OK
    same(y, npkernels.logsumexp_vjp(more, x, rows, axis, **options))
    assert call("logsumexp_jvp", x, dy, *arguments, rows, more) == OK
    for got, wanted in zip((rows, more), npkernels.logsumexp_jvp(x, dy, axis, **options), strict=True):
        same(got, np.asarray(wanted))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_token_statistics(dtype):
    x, ids = normal(2, 3, 50, dtype=dtype), np.array([[0, 49, 7], [7, 8, 9]])
    out = {name: np.empty(ids.shape, compute(dtype)) for name in ("log_prob", "lse", "entropy", "sum_p2")}
    out |= {name: np.empty(ids.shape, np.int64) for name in ("top1", "rank")}
    assert call("token_log_probs", x, ids, 2.0, None, struct(TokenStats, **out)) == OK
    wanted = npkernels.token_log_probs(x, ids, temperature=2.0)
    for name, got in out.items():
        same(got, getattr(wanted, name))

    lse, entropy = out["lse"], out["entropy"]
    gradient = npkernels.token_log_probs_vjp(
        lse, x, ids, lse, dentropy=entropy, entropy=entropy, temperature=2.0
    )
    assert call("token_log_probs_vjp", lse, x, ids, lse, entropy, entropy, 2.0, None, x) == OK
    same(x, gradient)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("number", "reduction"), [(MEAN, "mean"), (SUM, "sum"), (NONE, "none")])
@pytest.mark.parametrize("ignored", [-100, 2])
def test_cross_entropy(number, reduction, ignored, dtype):
    x, targets = normal(4, 6, 3, dtype=dtype), np.array([[0, 1, ignored], [5, 4, 3], [2, 2, 2], [1, 1, 1]])
    weight = np.abs(normal(6)).astype(compute(dtype))
    options = struct(
        CrossEntropyOptions, weight=weight, ignore_index=ignored, label_smoothing=0.1, reduction=number
    )
    loss, gradient = np.empty(targets.shape if reduction == "none" else (), compute(dtype)), np.empty_like(x)
    assert call("cross_entropy", x, targets, 1, options, loss, gradient) == OK
    kwargs = {
        "axis": 1,
        "weight": weight,
        "ignore_index": ignored,
        "label_smoothing": 0.1,
        "reduction": reduction,
    }
    wanted, wanted_gradient = npkernels.cross_entropy(x, targets, return_grad=True, **kwargs)
    np.testing.assert_allclose(loss, wanted, rtol=1e-15 if dtype == np.float64 else 1e-7)
    same(gradient, wanted_gradient)
    before = loss.copy()
    assert call("cross_entropy", x, targets, 1, options, loss, None) == OK
    same(loss, before)


def test_cross_entropy_by_default():
    x, targets, loss = normal(4, 6), np.array([0, 5, -100, 3]), np.empty((), np.float32)
    assert call("cross_entropy", x, targets, -1, None, loss, None) == OK
    same(loss, np.asarray(npkernels.cross_entropy(x, targets)))
    targets[:] = -100
    assert call("cross_entropy", x, targets, -1, None, loss, None) == OK
    assert np.isnan(loss)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_attention(dtype):
    q = normal(2, 5, 4, 8, dtype=dtype).transpose(0, 2, 1, 3)  # (B, Hq, S, D) of a (B, S, Hq, D) array
    k, v = normal(2, 2, 7, 8, dtype=dtype), normal(2, 2, 7, 3, dtype=dtype)
    mask, bias, offset = normal(4, 5, 7) > -2, normal(7, dtype=dtype), np.array([3, -1])
    out, lse = np.empty((2, 4, 5, 3), dtype), np.empty((2, 4, 5), compute(dtype))
    shared = {"mask": mask, "bias": bias, "q_offset": offset, "scale": 0.3}
    options = struct(AttentionOptions, causal=TOP_LEFT, **shared)
    assert call("attention", q, k, v, options, out, lse) == OK
    wanted = npkernels.attention(q, k, v, return_lse=True, causal="top_left", **shared)
    same(out, wanted[0])
    same(lse, wanted[1])
    shared |= {"kv_lengths": np.array([7, 4]), "alibi_slopes": abs(normal(4, dtype=compute(dtype)))}
    shared |= {
        "sinks": normal(4, dtype=compute(dtype)),
        "softcap": 2.0,
        "dropout_p": 0.3,
        "dropout_seed": 2**64 - 1,
    }
    for windowed, window in ((0, None), (1, (2, 1))):
        sides = {"window_left": 2, "window_right": 1}  # not looked at unless `windowed`
        options = struct(AttentionOptions, windowed=windowed, **sides, **shared)
        assert call("attention", q, k, v, options, out, lse) == OK
        wanted = npkernels.attention(q, k, v, return_lse=True, window=window, **shared)
        same(out, wanted[0])
        same(lse, wanted[1])


@pytest.mark.parametrize("ndim", [2, 3])
def test_attention_without_a_batch_and_by_default(ndim):
    q, k, v = normal(4, 5, 8), normal(2, 7, 8), normal(2, 7, 3)
    if ndim == 2:
        q, k, v = q[0], k[0], v[0]
    out = np.empty((*q.shape[:-1], 3), np.float32)
    assert call("attention", q, k, v, None, out, None) == OK
    same(out, npkernels.attention(q, k, v))
    assert call("attention", q, k, v, struct(AttentionOptions, causal=BOTTOM_RIGHT), out, None) == OK
    same(out, npkernels.attention(q, k, v, causal="bottom_right"))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_merge_attention_and_rotary_embedding(dtype):
    outs = [normal(3, 5, 4, dtype=dtype, seed=i) for i in range(3)]
    lses = [normal(3, 5, dtype=compute(dtype), seed=i) for i in range(3)]
    out, lse = np.empty_like(outs[0]), np.empty_like(lses[0])
    assert call("merge_attention", 3, many(outs), many(lses), out, lse) == OK
    wanted = npkernels.merge_attention(outs, lses)
    same(out, wanted[0])
    same(lse, wanted[1])

    angle = normal(5, 1, dtype=compute(dtype))
    for inverse, function in ((0, npkernels.rotary_embedding), (1, npkernels.rotary_embedding_vjp)):
        for interleaved in (0, 1):
            x = outs[0].copy()
            wanted = function(
                x, cos=np.cos(angle), sin=np.sin(angle), rotary_dim=2, interleaved=bool(interleaved)
            )
            assert call("rotary_embedding", x, np.cos(angle), np.sin(angle), interleaved, inverse, x) == OK
            same(x, wanted)


def test_strides_that_are_not_given_are_those_of_c_order():
    x, y = normal(3, 4), np.empty((3, 4), np.float32)
    assert call("softmax", describe(x, strides=None), -1, 1.0, None, describe(y, strides=None)) == OK
    same(y, npkernels.softmax(x))


def test_arrays_with_negative_strides_and_outputs_between_other_data():
    memory, target = normal(6, 10), np.zeros((6, 10), np.float32)
    x, y = memory[::-1, ::-2], target[1::2, ::2][::-1]
    assert call("softmax", x[:3], -1, 1.0, None, y) == OK
    same(y, npkernels.softmax(x[:3]))
    assert not target[::2].any()
    assert not target[:, 1::2].any()


# --- what is refused


ARRAYS = [
    (f, name) for f in OUTPUTS for name, value in arguments_of(f).items() if isinstance(value, np.ndarray)
]


def lead_of(function):
    """The argument that sets the shapes of the others."""
    leads = {"softmax_vjp": "y", "log_softmax_vjp": "y", "merge_attention": "out"}
    usual = ("q", "logits", "logp", "rewards", "x", "center")
    return leads.get(function) or next(name for name in usual if name in arguments_of(function))


@pytest.mark.parametrize("function", OUTPUTS)
def test_the_calls_that_the_refused_ones_start_from_work(function):
    assert status_of(function, arguments_of(function)) == OK
    assert bad_argument() == ""


@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_descriptors_that_describe_nothing(function, name):
    a = arguments_of(function)[name]
    expect_refused(function, {name: describe(a, data=None)}, NULL_POINTER)
    expect_refused(function, {name: describe(a, shape=None)}, NULL_POINTER)
    expect_refused(function, {name: describe(a, ndim=-1)}, BAD_SHAPE)
    expect_refused(function, {name: describe(a, ndim=65, shape=(1,) * 65, strides=(0,) * 65)}, BAD_SHAPE)
    expect_refused(function, {name: describe(a, shape=(*a.shape[:-1], -a.shape[-1]))}, BAD_SHAPE)
    expect_refused(function, {name: describe(a, shape=(1 << 62, *a.shape[1:]))}, BAD_SHAPE)
    expect_refused(function, {name: describe(a, dtype=6)}, BAD_DTYPE)
    expect_refused(function, {name: describe(a, dtype=-1)}, BAD_DTYPE)
    far = [-(1 << 63), *a.strides[1:]]
    expect_refused(function, {name: describe(a, strides=far)}, BAD_STRIDES)
    if a.itemsize > 1:
        expect_refused(function, {name: describe(a, data=a.ctypes.data + 1)}, BAD_STRIDES)
        expect_refused(function, {name: describe(a, strides=(a.strides[0] + 1, *a.strides[1:]))}, BAD_STRIDES)


@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_shapes_and_dtypes_that_do_not_fit(function, name):
    a = arguments_of(function)[name]
    lead = lead_of(function)
    refused = "sin" if name == "cos" else name
    if name not in (lead, "v"):
        expect_refused(
            function, {name: np.ones((*a.shape[:-1], a.shape[-1] + 1), a.dtype)}, BAD_SHAPE, refused
        )
        expect_refused(function, {name: np.ones((1, 1, 1, *a.shape), a.dtype)}, BAD_SHAPE, refused)
    if name != lead:
        expect_refused(
            function, {name: a.astype(np.float64 if a.dtype == np.float32 else np.float32)}, BAD_DTYPE
        )
    if a.dtype == np.float32:
        expect_refused(function, {name: a.astype(np.int64)}, BAD_DTYPE)


@pytest.mark.parametrize(("function", "name"), [(f, n) for f, n in ARRAYS if n not in OPTIONAL])
def test_arguments_that_are_needed(function, name):
    if function in ("logsumexp", "attention", "attention_jvp", "token_log_probs") and name == "lse":
        return
    expect_refused(function, {name: None}, NULL_POINTER)


def test_optional_arrays_that_go_together():
    expect_refused("logsumexp", {"lse": None, "entropy": None}, NULL_POINTER)
    expect_refused("token_log_probs_vjp", {"dentropy": None}, NULL_POINTER)
    expect_refused("token_log_probs_vjp", {"entropy": None}, NULL_POINTER)
    assert call("token_log_probs", normal(3, 8), np.zeros(3, np.int64), 1.0, None, None) == NULL_POINTER
    assert bad_argument() == "stats"


@pytest.mark.parametrize(("function", "name"), [(f, n) for f in OUTPUTS for n in OUTPUTS[f]])
def test_outputs_whose_entries_share_memory(function, name):
    a = arguments_of(function)[name]
    expect_refused(function, {name: describe(a, strides=(0, *a.strides[1:]))}, BAD_STRIDES)


def inputs_of(function):
    return [n for f, n in ARRAYS if f == function and n not in OUTPUTS[function]]


@pytest.mark.parametrize(
    ("function", "output", "other"),
    [
        (f, o, i)
        for f in OUTPUTS
        for o in OUTPUTS[f]
        for i in inputs_of(f) + [n for n in OUTPUTS[f] if n != o]
    ],
)
def test_outputs_that_share_memory_with_another_argument(function, output, other):
    arguments = arguments_of(function)
    a, b = arguments[output], arguments[other]
    memory = np.zeros(a.nbytes + b.nbytes, np.uint8)
    memory[: b.nbytes] = b.ravel().view(np.uint8)
    shared = (b.nbytes - 1) // 8 * 8  # from here on the bytes are of both
    views = {
        output: describe(a, data=memory.ctypes.data + shared),
        other: describe(b, data=memory.ctypes.data),
    }
    later = max(output, other, key=OUTPUTS[function].index) if other in OUTPUTS[function] else output
    before = memory.copy()
    assert status_of(function, arguments | views) == OVERLAP
    assert bad_argument() == later
    assert_array_equal(memory, before)


@pytest.mark.parametrize("function", [f for f in OUTPUTS if "axis" in arguments_of(f)])
def test_axes_that_do_not_exist(function):
    for axis in (2, -3, 2**31 - 1, -(2**31)):
        expect_refused(function, {"axis": axis}, BAD_AXIS)
    number = np.ones((), np.float32)
    lead = lead_of(function)
    assert status_of(function, arguments_of(function) | {lead: number, "axis": 0}) == BAD_AXIS


@pytest.mark.parametrize("function", [f for f in OUTPUTS if "temperature" in arguments_of(f)])
@pytest.mark.parametrize("temperature", [0.0, -1.0, INF, NAN])
def test_temperatures_that_mean_nothing(function, temperature):
    expect_refused(function, {"temperature": temperature}, BAD_VALUE)


def test_values_that_mean_nothing():
    for smoothing in (-0.1, 1.1, NAN):
        expect_refused("cross_entropy", {"label_smoothing": smoothing}, BAD_VALUE)
    for reduction in (-1, 3):
        expect_refused("cross_entropy", {"reduction": reduction}, BAD_VALUE)
    for scale in (INF, NAN):
        expect_refused("attention", {"scale": scale}, BAD_VALUE)
    for causal in (-1, 3):
        expect_refused("attention", {"causal": causal}, BAD_VALUE)
    expect_refused("cross_entropy", {"reserved": 1}, BAD_VALUE)
    for name, values in {
        "windowed": (-1, 2),
        "window_left": (-2, 1 << 62),
        "window_right": (-2, 1 << 62),
        "softcap": (-1.0, INF, NAN),
        "dropout_p": (-0.1, 1.0, NAN),
        "kv_lengths": (np.array([5, 6]), np.array([-1, 2])),
    }.items():
        for value in values:
            expect_refused("attention", {name: value}, BAD_VALUE)
    expect_refused("attention", {"q_offset": np.array([0, 1 << 62])}, BAD_VALUE)
    for parts in (0, -1):
        expect_refused("merge_attention", {"parts": parts}, BAD_VALUE)


def test_ids_and_targets_outside_the_vocabulary():
    for bad in (-1, 8, 1 << 62):
        for function in ("token_log_probs", "token_log_probs_vjp"):
            expect_refused(function, {"ids": np.array([0, 1, bad])}, BAD_INDEX)
    for bad in (-2, 8, -100):
        expect_refused("cross_entropy", {"targets": np.array([0, 1, bad])}, BAD_INDEX)


def test_attention_shapes():
    for name, shape in {
        "k": [(1, 2, 5, 8), (2, 3, 5, 8), (2, 0, 5, 8), (2, 2, 5, 7), (2, 5, 8)],
        "v": [(1, 2, 5, 6), (2, 1, 5, 6), (2, 2, 4, 6)],
        "out": [(2, 4, 3, 7), (2, 4, 2, 6), (2, 2, 3, 6), (1, 4, 3, 6)],
        "lse": [(2, 4, 4), (4, 3), (2, 4, 3, 1)],
        "mask": [(2, 2, 3, 5), (3, 2), (1, 2, 4, 3, 5)],
        "bias": [(2, 2, 3, 5), (4,)],
        "q_offset": [(1,), (3,), ()],
        "kv_lengths": [(1,), (3,), ()],
        "alibi_slopes": [(3,), (2, 3), (2, 2, 4)],
        "sinks": [(3,), (2, 4), ()],
    }.items():
        for wrong in shape:
            dtype = arguments_of("attention")[name].dtype
            expect_refused("attention", {name: np.zeros(wrong, dtype)}, BAD_SHAPE)
    for wrong in ((8,), (1, 2, 4, 3, 8)):
        expect_refused("attention", {"q": normal(*wrong)}, BAD_SHAPE)
    for dtype in (np.float16, np.int64):  # k and v are float32
        name = "q" if dtype == np.int64 else "k"
        expect_refused("attention", {"q": normal(2, 4, 3, 8).astype(dtype)}, BAD_DTYPE, argument=name)


@pytest.mark.parametrize(
    ("function", "name"),
    [("attention", n) for n in ("q", "k", "v", "out", "lse", "q_offset")]
    + [("merge_attention", n) for n in ("outs", "lses", "out", "lse")]
    + [("rotary_embedding", n) for n in ("x", "cos", "sin", "y")]
    + [("token_log_probs", n) for n in ("ids", "lse", "rank")]
    + [("cross_entropy", n) for n in ("targets", "weight", "loss")],
)
def test_arrays_that_must_be_contiguous(function, name):
    a = arguments_of(function)[name]
    expect_refused(function, {name: np.repeat(a, 2, axis=-1)[..., ::2]}, BAD_STRIDES)


def test_rotary_tables_wider_than_the_rows():
    wide = {"cos": normal(3, 5), "sin": normal(3, 5)}
    expect_refused("rotary_embedding", wide, BAD_SHAPE, "cos")
    deep = {"cos": normal(2, 3, 4), "sin": normal(2, 3, 4)}
    expect_refused("rotary_embedding", deep, BAD_SHAPE, "cos")


# --- options of other versions


@pytest.mark.parametrize("function", STRUCTS)
def test_options_of_another_version(function):
    kind, place = STRUCTS[function]
    name = "stats" if function == "token_log_probs" else "options"

    class Later(kind):
        _fields_ = (("new", ctypes.c_int64),)

    options, others = split(function, arguments_of(function))

    def status(made):
        values = others.copy()
        values.insert(place, made)
        return call(function, *values)

    assert status(struct(Later, **options, new=0)) == OK
    assert status(struct(Later, **options, new=1)) == BAD_VALUE
    assert bad_argument() == name
    for size in (0, 8, 1 << 40):
        assert status(struct(kind, **{**options, "size": size})) == BAD_VALUE
        assert bad_argument() == name


# --- overlap


def random_view(generator, memory):
    """A part of memory with steps of either sign, and sometimes with its axes swapped."""
    slices = []
    for length in memory.shape:
        start = generator.integers(0, length // 2)
        slices.append(slice(start, None, generator.integers(1, 4)))
    view = memory[tuple(slices)]
    view = view[tuple(slice(None, None, generator.choice([-1, 1])) for _ in view.shape)]
    return view.transpose(generator.permutation(view.ndim))


def test_an_output_is_refused_exactly_if_it_shares_memory():
    generator = np.random.default_rng(5)
    refused = served = 0
    for _ in range(1000):
        memory = generator.normal(0, 1, (4, 6, 8)).astype(np.float32)
        x, y = random_view(generator, memory), random_view(generator, memory)
        shape = tuple(map(min, x.shape, y.shape))
        x, y = (a[tuple(map(slice, shape))] for a in (x, y))
        wanted = npkernels.softmax(x.copy())
        before = memory.copy()
        status = call("softmax", x, -1, 1.0, None, y)
        if np.shares_memory(x, y) and describe_place(x) != describe_place(y):
            refused += 1
            assert status == OVERLAP
            assert_array_equal(memory, before)
        else:
            served += 1
            assert status == OK
            same(y.copy(), wanted)
    assert refused > 100
    assert served > 100


def describe_place(a):
    return a.ctypes.data, [stride for length, stride in zip(a.shape, a.strides, strict=True) if length > 1]


@pytest.mark.parametrize("function", IN_PLACE)
def test_results_in_the_memory_of_an_input(function):
    fresh = arguments_of(function)
    for output in OUTPUTS[function]:
        for name in inputs_of(function):
            arguments = arguments_of(function)
            a, b = arguments[output], arguments[name]
            if a.dtype != b.dtype or a.ndim < 2 or b.shape != a.shape:
                continue
            assert status_of(function, fresh) == OK
            assert status_of(function, arguments | {output: b}) == OK
            same(b, fresh[output])


# --- settings, and what goes with a status


def test_every_status_has_its_words():
    texts = [call_text(status) for status in range(-1, 11)]
    assert all(texts)
    assert len(set(texts[1:-1])) == 10
    assert texts[0] == texts[-1] == "unknown status"


def call_text(status):
    return library.npk_status_text(status).decode()


def test_the_refused_argument_is_that_of_this_thread():
    expect_refused("softmax", {"axis": 7}, BAD_AXIS)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(bad_argument()))
    thread.start()
    thread.join()
    assert seen == [""]
    assert bad_argument() == "axis"


def test_scratch_that_no_memory_holds():
    batch = 1 << 50  # of nothing: the offsets of bottom_right alone need 8 PiB
    q, out = (describe(np.empty((1, 0, 1, 1), np.float32), shape=(batch, 0, 1, 1)) for _ in range(2))
    options = struct(AttentionOptions, causal=BOTTOM_RIGHT)
    assert call("attention", q, q, q, options, out, None) == NO_MEMORY


def test_isa():
    names = []
    while name := library.npk_compiled_isas()[len(names)]:
        names.append(name.decode())
    runs = [name for name in names if library.npk_isa_supported(name.encode())]
    assert tuple(runs) == npkernels.available_isas()
    assert not library.npk_isa_supported(None)
    assert call("set_isa", b"abacus") == BAD_VALUE
    assert call("set_isa", None) == NULL_POINTER
    assert bad_argument() == "name"
    with npkernels.use_isa(runs[0]):  # one setting for Python and C
        assert library.npk_isa().decode() == runs[0]
        assert call("set_isa", runs[-1].encode()) == OK
        assert npkernels.isa() == runs[-1]


def test_threads():
    before, now = ctypes.c_int(-1), npkernels.get_num_threads()
    assert call("set_num_threads", 3, ctypes.byref(before)) == OK
    try:
        assert library.npk_num_threads() == npkernels.get_num_threads() == 3
        assert call("set_thread_limit", 2, None) == OK
        assert npkernels.get_num_threads() == 2
        assert call("set_thread_limit", 0, None) == OK
        for function in ("set_num_threads", "set_thread_limit"):
            assert call(function, -1, None) == BAD_VALUE
            assert bad_argument() == "n"
        assert npkernels.get_num_threads() == 3
    finally:
        assert call("set_num_threads", before.value, None) == OK
    assert npkernels.get_num_threads() == now


def test_version():
    assert library.npk_version().decode() == npkernels.__version__


@pytest.mark.parametrize("strides", [(8, 4), (0, 4), (4, 4), (12, 8)])
def test_an_output_whose_entries_share_memory(strides):
    y = np.lib.stride_tricks.as_strided(np.zeros(64, np.float32), (3, 8), strides)
    expect_refused("softmax", {"y": y}, BAD_STRIDES)


@pytest.mark.parametrize("strides", [(32, 4), (-32, 4), (4, 12), (64, -8), (4, 64)])
def test_an_output_of_any_strides_that_keep_its_entries_apart(strides):
    given = arguments_of("softmax")
    y = np.lib.stride_tricks.as_strided(np.zeros(512, np.float32)[256:], (3, 8), strides)
    assert status_of("softmax", given | {"y": y}) == OK
    assert status_of("softmax", given) == OK
    np.testing.assert_array_equal(y, given["y"])
