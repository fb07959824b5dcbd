"""Bad input of every kind: the error names the function and the argument, and nothing has been written."""

import numpy as np
import pytest

import npkernels as nk

X = np.zeros((2, 3, 5), np.float32)
Q = np.zeros((1, 4, 6, 8), np.float32)
NAN, INF = np.nan, np.inf
RAGGED = [[1.0], [1.0, 2.0]]
READ_ONLY = np.zeros((2, 3, 5), np.float32)
READ_ONLY.flags.writeable = False


def broadcast_out():
    return np.lib.stride_tricks.as_strided(np.zeros(5, np.float32), (2, 3, 5), (0, 0, 4))


def overlapping():
    memory = np.zeros(40, np.float32)
    x, out = memory[:30].reshape(2, 3, 5), memory[10:].reshape(2, 3, 5)
    return {"x": x, "out": out}


BAD_ARRAYS = [
    (np.zeros(3, complex), TypeError),
    (np.array([object()]), TypeError),
    (np.array(["a"]), TypeError),
    (np.array(["2020-01-01"], "M8[D]"), TypeError),
    (np.zeros(3, np.longdouble), TypeError),
    (np.ma.masked_array([1.0, 2.0], [True, False]), TypeError),
    (RAGGED, ValueError),
    (None, TypeError),
]
BAD_OPTIONS = [
    ({"axis": 3}, ValueError, "axis"),
    ({"axis": -4}, ValueError, "axis"),
    ({"axis": 1.0}, TypeError, "axis"),
    ({"axis": None}, TypeError, "axis"),
    ({"axis": True}, TypeError, "axis"),
    *(({"temperature": t}, ValueError, "temperature") for t in (0, 0.0, -1.0, NAN, INF)),
    *(({"temperature": t}, TypeError, "temperature") for t in ("1", None, [1.0])),
    ({"mask": np.ones(4, bool)}, ValueError, "mask"),
    ({"mask": np.ones((1, 2, 3, 5), bool)}, ValueError, "mask"),
    ({"mask": np.ones((2, 3, 5), np.int64)}, TypeError, "mask"),
    ({"mask": np.ones((2, 3, 5), np.float32)}, TypeError, "mask"),
]
BAD_OUT = [
    (lambda: np.zeros((2, 3, 4), np.float32), ValueError),
    (lambda: np.zeros((2, 3, 5), np.float64), TypeError),
    (lambda: np.zeros((2, 3, 5), np.float32).tolist(), TypeError),
    (lambda: READ_ONLY, ValueError),
    (broadcast_out, ValueError),
]
UNARY = ["softmax", "log_softmax", "logsumexp", "entropy"]
FIRST = {"entropy": "logits", "token_log_probs": "logits", "cross_entropy": "logits", "nll_loss": "log_probs"}


def rejects(error, function, argument, call):
    with pytest.raises(error, match=rf"^{function}: .*{argument}") as caught:
        call()
    assert type(caught.value) is error


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize(("x", "error"), BAD_ARRAYS, ids=range(len(BAD_ARRAYS)))
def test_what_is_no_array_of_numbers(name, x, error):
    rejects(error, name, FIRST.get(name, "x"), lambda: getattr(nk, name)(x))


@pytest.mark.parametrize(
    "name", [*UNARY, "softmax_vjp", "log_softmax_vjp", "softmax_jvp", "log_softmax_jvp", "logsumexp_jvp"]
)
@pytest.mark.parametrize(("options", "error", "argument"), BAD_OPTIONS, ids=range(len(BAD_OPTIONS)))
def test_bad_options(name, options, error, argument):
    arrays = (X,) if name in UNARY else (X, X)
    rejects(error, name, argument, lambda: getattr(nk, name)(*arrays, **options))


@pytest.mark.parametrize(
    "name", ["softmax", "log_softmax", "softmax_vjp", "log_softmax_vjp", "logsumexp_vjp", "rotary_embedding"]
)
@pytest.mark.parametrize(("make", "error"), BAD_OUT, ids=range(len(BAD_OUT)))
def test_bad_out_is_left_alone(name, make, error):
    out = make()
    before = np.array(out)
    rows = np.zeros((2, 3), np.float32)
    arrays = {"softmax_vjp": (X, X), "log_softmax_vjp": (X, X), "logsumexp_vjp": (rows, X, rows)}.get(
        name, (X,)
    )
    options = {"rotary_dim": 4} if name == "rotary_embedding" else {}
    rejects(error, name, "out", lambda: getattr(nk, name)(*arrays, out=out, **options))
    assert np.array_equal(before, np.array(out))


def test_out_that_overlaps_an_input():
    arrays = overlapping()
    before = arrays["x"].copy()
    rejects(ValueError, "softmax", "out overlaps", lambda: nk.softmax(arrays["x"], out=arrays["out"]))
    memory = np.zeros((1, 4, 13, 8), np.float32)
    q, out = memory[:, :, :6], memory[:, :, 3:9]
    rejects(ValueError, "attention", "out overlaps", lambda: nk.attention(q, Q, Q, out=out))
    rejects(ValueError, "attention", "out overlaps", lambda: nk.attention(q, Q, Q, out=q))
    assert np.array_equal(before, arrays["x"])


IDS = [
    (np.array([0, 5]), IndexError),
    (np.array([-1, 0]), IndexError),
    (np.array([0.0, 1.0]), TypeError),
    (np.array([True, False]), TypeError),
    (np.array([0, 1, 2]), ValueError),
    (np.array([[0, 1]]), ValueError),
]


@pytest.mark.parametrize(("ids", "error"), IDS, ids=range(len(IDS)))
def test_bad_ids(ids, error):
    x, rows = np.zeros((2, 5)), np.zeros(2)
    rejects(error, "token_log_probs", "ids", lambda: nk.token_log_probs(x, ids))
    rejects(error, "token_log_probs_vjp", "ids", lambda: nk.token_log_probs_vjp(rows, x, ids, rows))
    rejects(error, "cross_entropy", "targets", lambda: nk.cross_entropy(x, ids))
    rejects(error, "nll_loss", "targets", lambda: nk.nll_loss(x, ids))


def test_bad_arguments_of_tokens_and_losses():
    x, ids, rows = np.zeros((2, 5)), np.array([0, 1]), np.zeros(2)
    rejects(ValueError, "token_log_probs", "stats", lambda: nk.token_log_probs(x, ids, stats=("entropi",)))
    rejects(ValueError, "token_log_probs", "stats", lambda: nk.token_log_probs(x, ids, stats="entropy"))
    rejects(
        ValueError,
        "token_log_probs_vjp",
        "entropy",
        lambda: nk.token_log_probs_vjp(rows, x, ids, rows, dentropy=rows),
    )
    rejects(
        ValueError, "token_log_probs_vjp", "dlogp", lambda: nk.token_log_probs_vjp(np.zeros(3), x, ids, rows)
    )
    rejects(
        ValueError,
        "token_log_probs_vjp",
        "lse",
        lambda: nk.token_log_probs_vjp(rows, x, ids, np.zeros((2, 1))),
    )
    for name in ("cross_entropy", "nll_loss"):
        function = getattr(nk, name)
        rejects(ValueError, name, "reduction", lambda f=function: f(x, ids, reduction="avg"))
        rejects(ValueError, name, "weight", lambda f=function: f(x, ids, weight=np.ones(4)))
        rejects(ValueError, name, "out", lambda f=function: f(x, ids, out=x.copy()))
        rejects(
            TypeError,
            name,
            "out",
            lambda f=function: f(x, ids, return_grad=True, out=np.zeros((2, 5), np.float32)),
        )
        rejects(ValueError, name, "axis", lambda f=function: f(x, ids, axis=2))
    rejects(
        ValueError, "cross_entropy", "label_smoothing", lambda: nk.cross_entropy(x, ids, label_smoothing=1.5)
    )
    rejects(
        TypeError, "cross_entropy", "label_smoothing", lambda: nk.cross_entropy(x, ids, label_smoothing="a")
    )
    rejects(ValueError, "perplexity", "mask", lambda: nk.perplexity(rows, mask=np.ones(3, bool)))
    rejects(ValueError, "perplexity", "axis", lambda: nk.perplexity(rows, axis=1))
    rejects(ValueError, "softmax_vjp", "dy", lambda: nk.softmax_vjp(np.zeros(3), np.zeros(4)))
    rejects(TypeError, "softmax_vjp", "dy", lambda: nk.softmax_vjp(np.zeros(3, np.float32), np.zeros(3)))
    rejects(TypeError, "softmax_jvp", "out", lambda: nk.softmax_jvp(rows, rows, out=rows))
    rejects(ValueError, "softmax_jvp", "out", lambda: nk.softmax_jvp(rows, rows, out=(ids * 0.0,) * 2))
    rejects(
        ValueError, "logsumexp_jvp", "arrays of out", lambda: nk.logsumexp_jvp(x, x, out=(rows * 0.0,) * 2)
    )


ATTENTION = [
    ({"q": np.zeros(3)}, ValueError, "q"),
    ({"q": np.zeros((1, 1, 4, 6, 8))}, ValueError, "q"),
    ({"k": Q[0]}, ValueError, "k"),
    ({"k": Q.astype(np.float64)}, TypeError, "k"),
    ({"q": Q.astype(int)}, TypeError, "q has float64; expected the same dtype .integers count"),
    ({"k": Q[..., :7]}, ValueError, "k has head size"),
    (
        {"k": Q[:, :3], "v": Q[:, :3]},
        ValueError,
        "k has 3 heads, q has 4; q heads must be a multiple of k heads",
    ),
    ({"v": Q[:, :2]}, ValueError, "v has 2 heads"),
    ({"v": Q[:, :, :5]}, ValueError, "v has 5 keys"),
    ({"v": np.zeros((2, 4, 6, 8), np.float32)}, ValueError, "v has batch size 2"),
    ({"mask": np.zeros((6, 6), np.float32)}, TypeError, "mask has dtype float32; expected bool"),
    ({"mask": np.zeros((6, 6), np.float32)}, TypeError, "passed as bias"),
    ({"mask": np.zeros((6, 5), bool)}, ValueError, "mask"),
    ({"bias": np.zeros((6, 6), bool)}, TypeError, "bias"),
    ({"bias": np.zeros((6, 6), np.float64)}, TypeError, "bias"),
    ({"bias": np.zeros((5, 6), np.float32)}, ValueError, "bias"),
    ({"causal": True, "k": Q[:, :, :5], "v": Q[:, :, :5]}, ValueError, "causal=True"),
    ({"causal": "left"}, ValueError, "causal"),
    ({"causal": 1}, ValueError, "causal"),
    ({"causal": True, "q_offset": 1.5}, TypeError, "q_offset"),
    ({"causal": True, "q_offset": [1, 2]}, ValueError, "q_offset"),
    ({"scale": NAN}, ValueError, "scale"),
    ({"scale": "1"}, TypeError, "scale"),
    ({"out": np.zeros((1, 4, 6, 7), np.float32)}, ValueError, "out"),
    ({"out": np.zeros((1, 4, 6, 8), np.float64)}, TypeError, "out"),
    ({"out": np.zeros((4, 6, 8), np.float32)}, ValueError, "out"),
    ({"out": np.zeros((1, 4, 8, 6), np.float32).swapaxes(2, 3)}, ValueError, "last axis of out"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ATTENTION, ids=range(len(ATTENTION)))
def test_bad_arguments_of_attention(arguments, error, message):
    arguments = {"q": Q, "k": Q, "v": Q} | arguments
    out = arguments.get("out")
    before = None if out is None else out.copy()
    rejects(error, "attention", message, lambda: nk.attention(**arguments))
    assert out is None or np.array_equal(out, before)


def test_bad_arguments_of_merge_and_rotary():
    o, l = np.zeros((2, 3)), np.zeros(2)
    rejects(ValueError, "merge_attention", "outs", lambda: nk.merge_attention([], []))
    rejects(ValueError, "merge_attention", "lses", lambda: nk.merge_attention([o], [l, l]))
    rejects(ValueError, "merge_attention", r"lses\[0\]", lambda: nk.merge_attention([o], [o]))
    rejects(ValueError, "merge_attention", r"outs\[1\]", lambda: nk.merge_attention([o, o[:1]], [l, l]))
    x = np.zeros((2, 4, 6))
    for bad in (5, 8, -2, 2.0):
        rejects(
            ValueError, "rotary_embedding", "rotary_dim", lambda b=bad: nk.rotary_embedding(x, rotary_dim=b)
        )
    rejects(ValueError, "rotary_embedding", "positions", lambda: nk.rotary_embedding(x, np.arange(3)))
    rejects(TypeError, "rotary_embedding", "positions", lambda: nk.rotary_embedding(x, np.zeros(4)))
    table = np.zeros((3, 3))
    rejects(
        IndexError,
        "rotary_embedding",
        "positions",
        lambda: nk.rotary_embedding(x, np.arange(4), cos=table, sin=table),
    )
    rejects(ValueError, "rotary_embedding", "sin", lambda: nk.rotary_embedding(x, cos=table))
    rejects(ValueError, "rotary_embedding", "base", lambda: nk.rotary_embedding(x, base=0.0))
    rejects(ValueError, "rotary_embedding", "x", lambda: nk.rotary_embedding(np.zeros(4)))


def test_bad_settings():
    before = nk.isa()
    for n in (np.int64(2), np.uint8(2)):  # these are as good as 2
        with nk.num_threads(n):
            pass
        nk.set_num_threads(n)
        nk.set_num_threads(None)
    for name in ("avx9000", "", 3):
        with pytest.raises(ValueError, match=r"^set_isa: .*cannot be used") as caught:
            nk.set_isa(name)
        assert all(isa in str(caught.value) for isa in nk.available_isas())
    assert nk.isa() == before
    for n in (0, -1, 1.5, "2", True):
        rejects(ValueError, "set_num_threads", "n is", lambda n=n: nk.set_num_threads(n))
        with pytest.raises(ValueError, match=r"^num_threads: n is"), nk.num_threads(n):
            pass
