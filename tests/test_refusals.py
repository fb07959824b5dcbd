"""Every argument of every function, wrong in every way: refused by name, before anything is read or written.

`test_errors.py` pins what the messages say; here the same wrong values go to all functions that take such an argument.
"""

import inspect
import re

import numpy as np
import pytest

import npkernels
from kernel_calls import ATTENTION, JVPS, LAYER, NAMES, ROTARY, VARLEN, make

LOSSES = ["cross_entropy", "nll_loss"]
TOKENS = ["token_log_probs", "token_log_probs_vjp"]
INDICES = [*((name, "ids") for name in TOKENS), *((name, "targets") for name in LOSSES)]


def parameters(name):
    return list(inspect.signature(getattr(npkernels, name)).parameters)


def having(parameter):
    return [name for name in NAMES if parameter in parameters(name)]


def arguments(name, dtype="float32", rows=5, n=None):
    """The arguments of an ordinary call without options."""
    call = make(name, n or (20 if name in ROTARY else 19), dtype, rows=rows, masked=False)
    given = call.args[:1] if name in ROTARY else call.args  # without positions
    needed = {key: call.kwargs[key] for key in ("heads", "kv_heads") if key in call.kwargs}
    return dict(zip(parameters(name), given, strict=False)) | needed


def fresh_out(name, dtype="float32", rows=5, n=None):
    """What an ordinary call takes as `out`, and the options that it needs for that."""
    call = make(name, n or (20 if name in ROTARY else 19), dtype, rows=rows, masked=False)
    return call.new_out(lambda s, d: np.full(s, 7, d)), {"return_grad": True} if name in LOSSES else {}


WITH_OUT = having("out")
FLOATS = [
    (name, key)
    for name in NAMES
    for key, value in arguments(name).items()
    if isinstance(value, np.ndarray) and value.dtype.kind == "f"
]


def arrays(value):
    """The arrays in an argument, or in a dict of them."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [a for v in value for a in arrays(v)]
    return [value] if isinstance(value, np.ndarray) else []


def refuses(error, name, argument, args=None, **options):
    """The call raises; the message names function and argument; inputs and `out` keep their bits."""
    args = arguments(name) if args is None else args
    if name in WITH_OUT and "out" not in options:
        out, more = fresh_out(name)
        options = {**more, "out": out, **options}
    before = [a.tobytes() for a in arrays([args, options])]
    with pytest.raises(error) as caught:
        getattr(npkernels, name)(**{**args, **options})
    message = str(caught.value)
    assert message.startswith(f"{name}: "), message
    assert re.search(rf"(?<!\w){re.escape(argument)}(?!\w)", message), message
    assert len(message) > len(name) + len(argument) + 10  # it also says what came or what was expected
    assert [a.tobytes() for a in arrays([args, options])] == before
    return message


# --- arrays of numbers


@pytest.mark.parametrize(("name", "key"), FLOATS)
@pytest.mark.parametrize(
    "wrong",
    [
        np.ones((5, 19), np.complex64),
        np.ones((5, 19), object),
        np.full((5, 19), "1.0"),
        np.ones((5, 19), np.longdouble),
        np.ones((5, 19), "M8[s]"),
        np.ma.masked_array(np.ones((5, 19)), mask=True),
        "hello",
        None,
        {"a": 1},
    ],
    ids=["complex", "object", "str", "longdouble", "datetime", "masked", "a str", "None", "dict"],
)
def test_not_numbers(name, key, wrong):
    refuses(TypeError, name, key, {**arguments(name), key: wrong})


@pytest.mark.parametrize(("name", "key"), FLOATS)
def test_ragged_lists(name, key):
    refuses(ValueError, name, key, {**arguments(name), key: [[1.0, 2.0], [3.0]]})


@pytest.mark.parametrize(("name", "key"), FLOATS)
def test_shapes_that_do_not_fit(name, key):
    args = arguments(name)
    smaller = args[key][..., 1:] if (name, key) == ("multi_head_attention", "x") else args[key][1:]
    if len(args) == 1:  # nothing to fit to: too few axes
        if name == "perplexity":
            args["log_probs"] = np.float32(1)
        refuses(ValueError, name, "axis" if "axis" in parameters(name) else key, {**args, key: np.float32(1)})
        return
    options = {"heads": 4, "kv_heads": 2} if name in LAYER else {}
    with pytest.raises(ValueError, match=rf"^{name}: .*(shape|size|heads|keys|cu_seqlens)"):
        getattr(npkernels, name)(**{**args, **options, key: smaller})


@pytest.mark.parametrize("name", ["softmax_vjp", "log_softmax_vjp", *JVPS, *ATTENTION, *VARLEN, *LAYER])
def test_mixed_dtypes(name):
    args = arguments(name)
    key = list(args)[1]
    message = refuses(TypeError, name, key, {**args, key: args[key].astype(np.float64)})
    assert "float64" in message or "float32" in message


# --- options


@pytest.mark.parametrize("name", having("axis"))
@pytest.mark.parametrize("axis", [2, -3, 99, 2**31, 2**40, -(2**70)])
def test_axis_out_of_range(name, axis):
    refuses(ValueError, name, "axis", axis=axis)


@pytest.mark.parametrize("name", having("axis"))
@pytest.mark.parametrize("axis", [1.0, "0", (0, 1), True, None], ids=repr)
def test_axis_is_not_an_integer(name, axis):
    if name == "perplexity" and axis is None:
        assert npkernels.perplexity(arguments(name)["log_probs"], axis=None).shape == ()
    else:
        refuses(TypeError, name, "axis", axis=axis)


@pytest.mark.parametrize("name", having("temperature"))
@pytest.mark.parametrize("temperature", [0, -1, 0.0, -0.5, np.nan, np.inf, -np.inf, 10**400], ids=repr)
def test_temperature_is_not_positive_and_finite(name, temperature):
    refuses(ValueError, name, "temperature", temperature=temperature)


@pytest.mark.parametrize("name", having("temperature"))
@pytest.mark.parametrize("temperature", ["1", None, 1j, [1.0]], ids=repr)
def test_temperature_is_not_a_number(name, temperature):
    refuses(TypeError, name, "temperature", temperature=temperature)


@pytest.mark.parametrize("name", having("mask"))
@pytest.mark.parametrize("causal", [False, True])
def test_masks_that_do_not_fit(name, causal):
    options = {}
    if causal:
        if "causal" not in parameters(name):
            return
        options = {"causal": "top_left"}
    refuses(TypeError, name, "mask", mask=np.ones(19, np.int8), **options)
    refuses(TypeError, name, "mask", mask=np.ones(19), **options)
    refuses(TypeError, name, "mask", mask="yes", **options)
    refuses(ValueError, name, "mask", mask=[[True], [True, False]], **options)
    refuses(ValueError, name, "mask", mask=np.ones(3, bool), **options)
    refuses(ValueError, name, "mask", mask=np.ones((0,), bool), **options)
    refuses(ValueError, name, "mask", mask=np.ones((1,) * 5 + (19,), bool), **options)


@pytest.mark.parametrize("name", having("mask"))
def test_a_masked_array_as_mask_is_refused(name):
    refuses(TypeError, name, "mask", mask=np.ma.masked_array(np.ones(1, bool), mask=True))


@pytest.mark.parametrize(("name", "key"), INDICES)
def test_indices(name, key):
    args = arguments(name)
    refuses(TypeError, name, key, {**args, key: args[key].astype(float)})
    refuses(TypeError, name, key, {**args, key: np.ones(5, bool)})
    refuses(TypeError, name, key, {**args, key: ["a"] * 5})
    refuses(ValueError, name, key, {**args, key: args[key][1:]})
    refuses(ValueError, name, key, {**args, key: args[key][:, None]})
    refuses(ValueError, name, key, {**args, key: [[0], [1, 2]]})
    for bad in (19, -1, -(2**63), 2**63 - 1):
        ids = args[key].copy()
        ids[3] = bad
        message = refuses(IndexError, name, key, {**args, key: ids})
        assert str(bad) in message
        assert "3" in message
        assert "19" in message
    too_large = np.array([0, 0, 0, 2**64 - 100, 0], np.uint64)  # -100 as int64, which losses leave out
    assert str(2**64 - 100) in refuses(IndexError, name, key, {**args, key: too_large})


def test_statistics_of_tokens():
    for stats in (["nonsense"], ("lse", "top2"), "lse"):
        refuses(ValueError, "token_log_probs", "stats", stats=stats)
    for stats in (None, 5, [1]):
        refuses((TypeError, ValueError), "token_log_probs", "stats", stats=stats)
    for options in ({"dentropy": np.zeros(5)}, {"entropy": np.zeros(5)}):
        message = refuses(ValueError, "token_log_probs_vjp", "entropy", **options)
        assert "dentropy" in message
    both = {"dentropy": np.zeros(5), "entropy": np.zeros(4)}
    refuses(ValueError, "token_log_probs_vjp", "entropy", **both)


@pytest.mark.parametrize("name", LOSSES)
def test_options_of_losses(name):
    for reduction in ("avg", None, 1, "MEAN"):
        refuses(ValueError, name, "reduction", reduction=reduction)
    refuses(ValueError, name, "weight", weight=np.ones(18, np.float32))
    refuses(ValueError, name, "weight", weight=np.ones((1, 19), np.float32))
    refuses(TypeError, name, "weight", weight=np.ones(19, complex))
    for ignore_index in ("a", 1.5, None, True):
        refuses(TypeError, name, "ignore_index", ignore_index=ignore_index)
    refuses(ValueError, name, "return_grad", return_grad=False)  # out without a gradient


def test_label_smoothing():
    for smoothing in (-0.1, 1.1, np.nan, np.inf):
        refuses(ValueError, "cross_entropy", "label_smoothing", label_smoothing=smoothing)
    for smoothing in ("a", None, 1j):
        refuses(TypeError, "cross_entropy", "label_smoothing", label_smoothing=smoothing)


# --- attention


def qkv(q=(2, 4, 5, 19), k=(2, 2, 7, 19), v=(2, 2, 7, 9)):
    return {"q": np.ones(q, np.float32), "k": np.ones(k, np.float32), "v": np.ones(v, np.float32)}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"k": (2, 3, 7, 19), "v": (2, 3, 7, 9)}, "k has 3 heads, q has 4; q heads must be a multiple"),
        ({"k": (2, 0, 7, 19), "v": (2, 0, 7, 9)}, "k has 0 heads, q has 4"),
        ({"v": (2, 4, 7, 9)}, "v has 4 heads, k has 2"),
        ({"k": (2, 2, 7, 18)}, "k has head size 18, q has 19"),
        ({"v": (2, 2, 8, 9)}, "v has 8 keys, k has 7"),
        ({"k": (1, 2, 7, 19)}, "k has batch size 1, q has 2"),
        ({"v": (3, 2, 7, 9)}, "v has batch size 3, q has 2"),
        ({"k": (2, 7, 19)}, "k has shape (2, 7, 19); expected 4 axes"),
        ({"q": (19,)}, "q has shape (19,)"),
        ({"q": (1, 2, 4, 5, 19)}, "q has shape (1, 2, 4, 5, 19)"),
    ],
)
def test_attention_shapes(shapes, words):
    with pytest.raises(ValueError, match=re.escape(f"attention: {words}")):
        npkernels.attention(**qkv(**shapes))


@pytest.mark.parametrize("name", ATTENTION)
def test_options_of_attention(name):
    message = refuses(ValueError, name, "causal", causal=True)  # 5 queries, 7 keys
    assert "top_left" in message
    assert "bottom_right" in message
    assert "q_offset" in message
    for causal in ("bottom-right", "", None, 1, 0, "True"):
        refuses(ValueError, name, "causal", causal=causal)
    for scale in (np.nan, np.inf, -np.inf, 10**400):
        refuses(ValueError, name, "scale", scale=scale)
    for scale in ("1", 1j, [1.0]):
        refuses(TypeError, name, "scale", scale=scale)
    for offset in (1.0, "1", [1.5, 2.0], True):
        refuses(TypeError, name, "q_offset", causal=True, q_offset=offset)
    assert "64 bits" in refuses(ValueError, name, "q_offset", causal=True, q_offset=2**70)
    for offset in ([1, 2, 3], [[1, 2]], np.zeros(0, int)):
        refuses(ValueError, name, "q_offset", causal=True, q_offset=offset)
    for bias in (np.ones(7, bool), np.ones(7, complex), np.ones(7, np.float64), np.ones(7, object)):
        refuses(TypeError, name, "bias", bias=bias)
    refuses(TypeError, name, "bias", bias=np.ma.masked_array(np.ones(7, np.float32), mask=True))
    for bias in (np.ones(6, np.float32), np.ones((3, 1, 7), np.float32), np.ones((1,) * 5, np.float32)):
        refuses(ValueError, name, "bias", bias=bias)
    refuses(ValueError, name, "bias", bias=[[1.0], [1.0, 2.0]])


@pytest.mark.parametrize("name", [*ATTENTION, *VARLEN])
def test_numbers_of_attention(name):
    for softcap in (-1.0, np.nan, np.inf, 10**400):
        refuses(ValueError, name, "softcap", softcap=softcap)
    for softcap in ("1", None, 1j, [1.0]):
        refuses(TypeError, name, "softcap", softcap=softcap)
    for window in ((1,), (1, 2, 3), (), (-2, 0), (0, -2)):
        refuses(ValueError, name, "window", window=window)
    for window in (3, (1, 0.5), ("1", 2), (None, 2), 1.0, (True, "a")):
        refuses(TypeError, name, "window", window=window)
    for option in ("alibi_slopes", "sinks"):
        for shape in ((), (3,), (5,), (3, 4), (1, 1, 4)):
            refuses(ValueError, name, option, **{option: np.ones(shape, np.float32)})
        for bad in (np.ones(4, complex), np.ones(4, object), ["a"] * 4):
            refuses(TypeError, name, option, **{option: bad})
        refuses(ValueError, name, option, **{option: [[1.0], [1.0, 2.0]]})


@pytest.mark.parametrize("name", having("dropout_p"))
def test_dropout(name):
    given = {"heads": 4, "kv_heads": 2} if name in LAYER else {}
    for p in (1.0, 1, 2.0, -0.1, np.nan, np.inf):
        refuses(ValueError, name, "dropout_p", dropout_p=p, dropout_seed=1, **given)
    for p in ("0.5", None, 1j, [0.5]):
        refuses(TypeError, name, "dropout_p", dropout_p=p, dropout_seed=1, **given)
    refuses(ValueError, name, "dropout_seed", dropout_p=0.5, **given)
    for seed in (0.5, "1", [1], np.float32(1)):
        refuses(TypeError, name, "dropout_seed", dropout_p=0.5, dropout_seed=seed, **given)


@pytest.mark.parametrize("name", ATTENTION)
def test_lengths_of_keys(name):
    for lengths in ([20], [-1], [2**40], [-(2**63)]):
        message = refuses(ValueError, name, "kv_lengths", kv_lengths=lengths)
        assert str(lengths[0]) in message
    for lengths in ([1, 2], [[1]], np.zeros(0, int)):
        refuses(ValueError, name, "kv_lengths", kv_lengths=lengths)
    for lengths in ([1.0], ["1"], [True]):
        refuses(TypeError, name, "kv_lengths", kv_lengths=lengths)
    message = refuses(ValueError, name, "causal", causal=True, kv_lengths=[4])  # 5 queries
    assert "bottom_right" in message


@pytest.mark.parametrize("name", ["attention_vjp", "attention_varlen_vjp"])
def test_cotangents_of_attention(name):
    args = arguments(name)
    refuses(ValueError, name, "dlse", dlse=args["lse"][..., 1:])
    refuses(ValueError, name, "dlse", dlse=args["lse"][..., None])
    refuses(TypeError, name, "dlse", dlse=args["lse"].astype(complex))
    refuses(ValueError, name, "dout", {**args, "dout": args["dout"][..., 1:]})
    refuses(ValueError, name, "o", {**args, "o": args["o"][..., 1:]})
    refuses(ValueError, name, "want_dsinks", want_dsinks=True)
    for key in ("dout", "o"):
        refuses(TypeError, name, key, {**args, key: args[key].astype(np.float64)})


def test_parts_to_merge():
    x, lse = np.ones((5, 19), np.float32), np.ones(5, np.float32)
    for outs, lses in (([], []), ([x], []), ([x], [lse, lse])):
        with pytest.raises(ValueError, match=r"^merge_attention: .* outs and .* lses"):
            npkernels.merge_attention(outs, lses)
    name = "merge_attention"
    refuses(ValueError, name, "outs[1", {"outs": [x, x[1:]], "lses": [lse, lse]})
    refuses(ValueError, name, "lses[1", {"outs": [x, x], "lses": [lse, lse[1:]]})
    refuses(ValueError, name, "lses[0", {"outs": [x, x], "lses": [lse[:, None], lse]})
    refuses(TypeError, name, "outs[1", {"outs": [x, x.astype(np.float64)], "lses": [lse, lse]})
    refuses(TypeError, name, "outs[0", {"outs": [x.astype(complex), x], "lses": [lse, lse]})
    refuses(TypeError, name, "lses[1", {"outs": [x, x], "lses": [lse, lse.astype(complex)]})
    refuses(ValueError, name, "outs[0", {"outs": [1.0], "lses": [1.0]})
    refuses(TypeError, name, "outs", {"outs": None, "lses": [lse]})
    refuses(TypeError, name, "lses", {"outs": [x], "lses": 3})


@pytest.mark.parametrize("name", ROTARY)
def test_options_of_rotary(name):
    key = next(iter(arguments(name)))
    x = np.ones((2, 5, 20), np.float32)
    table = np.ones((5, 10), np.float32)
    refuses(ValueError, name, key, {key: x[0, 0]})
    for dim in (3, 21, 22, -2):
        refuses(ValueError, name, "rotary_dim", rotary_dim=dim)
    for dim in (2.0, "2"):
        refuses((TypeError, ValueError), name, "rotary_dim", rotary_dim=dim)
    for base in (0, -1.0, np.nan, np.inf):
        refuses(ValueError, name, "base", base=base)
    refuses(TypeError, name, "base", base="10000")
    refuses(TypeError, name, "positions", positions=np.zeros(5))
    refuses(ValueError, name, "positions", positions=np.zeros(4, int))
    refuses(ValueError, name, "positions", positions=np.zeros((3, 5), int))
    refuses(ValueError, name, "positions", positions=np.zeros((2, 2, 5), int))
    refuses(ValueError, name, "sin", cos=table)
    refuses(ValueError, name, "cos", sin=table)
    refuses(ValueError, name, "cos", cos=table[1:], sin=table)
    refuses(ValueError, name, "sin", cos=table, sin=table[:, 1:])
    refuses(TypeError, name, "cos", cos=table.astype(complex), sin=table)
    for bad in (5, -1):
        refuses(IndexError, name, "positions", cos=table, sin=table, positions=[0, 1, 2, 3, bad])
    refuses(ValueError, name, "cos", cos=table[None], sin=table[None], positions=np.arange(5))


@pytest.mark.parametrize("name", ROTARY)
def test_positions_per_batch_need_a_batch(name):
    key = next(iter(arguments(name)))
    square = {key: np.ones((3, 4), np.float32)}  # (S, D), so that (3, 3) is not (B, S)
    table = np.zeros((3, 3, 2), np.float32)
    refuses(ValueError, name, "positions", square, positions=np.zeros((3, 3), int), out=None)
    refuses(ValueError, name, "cos", square, cos=table, sin=table, out=None)


# --- out


def replaced(out, which, new):
    return tuple(new if i == which else o for i, o in enumerate(out)) if isinstance(out, tuple) else new


def members(out):
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("name", WITH_OUT)
def test_out_that_cannot_take_the_result(name):
    args = arguments(name)
    good, options = fresh_out(name)
    for which, out in enumerate(members(good)):
        bytes_apart = np.lib.stride_tricks.as_strided(out, out.shape, (0,) * out.ndim)
        read_only = out.copy()
        read_only.flags.writeable = False
        for error, bad in [
            (ValueError, np.concatenate([out, out])),
            (ValueError, out[..., None]),
            (ValueError, out[..., 1:]),
            (TypeError, out.astype(np.float64)),
            (TypeError, out.astype(np.int32)),
            (TypeError, out.astype(">f4")),
            (TypeError, out.tolist()),
            (TypeError, 3),
            (ValueError, read_only),
            (ValueError, bytes_apart),
        ]:
            refuses(error, name, "out", args, **options, out=replaced(good, which, bad))


@pytest.mark.parametrize("name", JVPS)
def test_out_of_two_results(name):
    args = arguments(name)
    (y, dy), _ = fresh_out(name)
    for bad in ((y,), (y, dy, dy), y, [y, dy][0]):
        refuses(TypeError, name, "out", args, out=bad)
    message = refuses(ValueError, name, "out", args, out=(y, y))
    assert "overlap" in message


def in_shared_memory(array, out):
    """Copies of both in one block of memory, the array 8 bytes further than out."""
    block = np.zeros(max(array.nbytes, out.nbytes) + 8, np.uint8)
    inside = block[8 : 8 + array.nbytes].view(array.dtype).reshape(array.shape)
    inside[...] = array
    return inside, block[: out.nbytes].view(out.dtype).reshape(out.shape)


@pytest.mark.parametrize("name", WITH_OUT)
def test_out_that_overlaps_an_input(name):
    args = arguments(name, "float64", rows=64, n=64)
    optional = {"weight": np.linspace(1, 2, 64)} if name in LOSSES else {}
    optional |= {"bias": np.zeros((1, 64))} if name in ATTENTION else {}
    optional |= {"heads": 4, "kv_heads": 2} if name in LAYER else {}
    optional |= {"cos": np.ones((64, 32)), "sin": np.ones((64, 32))} if name in ROTARY else {}
    optional |= {"mask": np.ones((64, 64), bool)} if "mask" in parameters(name) else {}
    args |= {**optional, **fresh_out(name)[1]}
    read_first = ("targets", "cu_seqlens_q", "cu_seqlens_k")  # to the end, before anything is written
    places = [(key, i) for key in args if key not in read_first for i in range(len(arrays(args[key])))]
    for key, i in places:
        out = list(members(fresh_out(name, "float64", rows=64, n=64)[0]))
        for which, target in enumerate(out):
            inside, shared = in_shared_memory(arrays(args[key])[i], target)
            new = [*args[key][:i], inside, *args[key][i + 1 :]] if isinstance(args[key], list) else inside
            outs = replaced(tuple(out), which, shared)
            with pytest.raises(ValueError, match=rf"^{name}: out overlaps"):
                getattr(npkernels, name)(**{**args, key: new, "out": outs if len(out) > 1 else outs[0]})
            assert not shared.view(np.uint8)[..., :8].reshape(-1)[:8].any()


# --- settings


def test_settings():
    before = npkernels.isa(), npkernels.get_num_threads()
    for name in ("sse9", "", 3, b"avx2"):
        with pytest.raises(ValueError, match=r"^set_isa: .*" + ".*".join(npkernels.available_isas())):
            npkernels.set_isa(name)
        with pytest.raises(ValueError, match="set_isa"), npkernels.use_isa(name):
            pass
    for n in (0, -1, 1.5, "2", True):
        with pytest.raises(ValueError, match=r"^set_num_threads: n is"):
            npkernels.set_num_threads(n)
        with pytest.raises(ValueError, match=r"^num_threads: n is"), npkernels.num_threads(n):
            pass
    with pytest.raises(ValueError, match=r"^num_threads: n is"), npkernels.num_threads(None):
        pass
    assert before == (npkernels.isa(), npkernels.get_num_threads())


def test_the_choice_of_isa_can_be_taken_back():
    before = npkernels._core.isa_source()
    name = npkernels.available_isas()[0]
    with npkernels.use_isa(name):
        assert npkernels.isa() == name
        assert npkernels._core.isa_source() == "set_isa"
    assert npkernels._core.isa_source() == before != "set_isa"
    npkernels.set_isa(name)
    with npkernels.use_isa(npkernels.available_isas()[-1]):
        pass
    assert (npkernels.isa(), npkernels._core.isa_source()) == (name, "set_isa")
    npkernels.set_isa(None)
    assert npkernels._core.isa_source() == before
