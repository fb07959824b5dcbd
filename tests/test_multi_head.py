"""The attention layer: against PyTorch's, its gradients against differences, and what it takes and gives."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import npkernels
from central_differences import DIFFERENCE, numeric_vjp
from npkernels import reference
from npkernels._cli import gate

ISAS = npkernels.available_isas()
NAMES = ("x", "wq", "wk", "wv", "wo")


def layer(dtype=np.float64, batch=(2,), S=6, E=8, Ec=8, heads=4, kv_heads=4, D=4, Dv=4, Eo=8, seed=1):
    """x and the projections, by name."""
    r = np.random.default_rng(seed)
    shapes = [(*batch, S, E), (E, heads * D), (Ec, kv_heads * D), (Ec, kv_heads * Dv), (heads * Dv, Eo)]
    return {name: (r.normal(size=s) / 2).astype(dtype) for name, s in zip(NAMES, shapes, strict=True)}


def biases_of(given):
    r = np.random.default_rng(2)
    x = given["x"]
    return {
        name: r.normal(size=given["w" + name[1]].shape[1]).astype(x.dtype)
        for name in ("bq", "bk", "bv", "bo")
    }


@pytest.mark.parametrize("crossed", [False, True])
def test_the_layer_is_that_of_torch(crossed):
    torch = pytest.importorskip("torch")
    E, heads = 16, 4
    given = layer(np.float32, E=E, Ec=E, heads=heads, kv_heads=heads, Eo=E, S=30)
    biases = biases_of(given)
    module = torch.nn.MultiheadAttention(E, heads, batch_first=True)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.tensor(np.concatenate([given[n].T for n in ("wq", "wk", "wv")])))
        module.in_proj_bias.copy_(torch.tensor(np.concatenate([biases[n] for n in ("bq", "bk", "bv")])))
        module.out_proj.weight.copy_(torch.tensor(given["wo"].T))
        module.out_proj.bias.copy_(torch.tensor(biases["bo"]))
    x = torch.tensor(given["x"], requires_grad=True)
    context = (
        torch.tensor(np.random.default_rng(3).normal(size=(2, 41, E)).astype(np.float32)) if crossed else x
    )
    expected = module(x, context, context)[0]
    options = {"heads": heads, **biases, **({"context": context.numpy()} if crossed else {})}
    y = npkernels.multi_head_attention(**given, **options)
    # products of 16 terms of order 1, thrice: some 10 eps of entries of up to 10
    close = {"rtol": 0, "atol": 100 * np.finfo(np.float32).eps}
    np.testing.assert_allclose(y, expected.detach().numpy(), **close)
    dy = np.random.default_rng(4).normal(size=y.shape).astype(np.float32)
    expected.backward(torch.tensor(dy))
    grads = npkernels.multi_head_attention_vjp(dy, **given, **options)
    parts = np.split(module.in_proj_weight.grad.numpy(), 3)
    far = {"rtol": 0, "atol": 2000 * np.finfo(np.float32).eps}  # sums over 60 tokens of entries of up to 30
    np.testing.assert_allclose(grads.dx, x.grad.numpy(), **far)
    for name, part in zip(("dwq", "dwk", "dwv"), parts, strict=True):
        np.testing.assert_allclose(getattr(grads, name), part.T, **far)
    np.testing.assert_allclose(grads.dwo, module.out_proj.weight.grad.numpy().T, **far)
    np.testing.assert_allclose(grads.dbo, module.out_proj.bias.grad.numpy(), **far)


EVERYTHING = {
    "kv_heads": 2,
    "context": np.random.default_rng(5).normal(size=(2, 7, 3)),
    "rotary": {"rotary_dim": 2, "base": 100.0},
    "bias": np.linspace(-1, 1, 42).reshape(6, 7),
    "mask": np.arange(42).reshape(6, 7) % 5 > 0,
    "causal": "bottom_right",
    "window": (5, -1),
    "softcap": 2.0,
    "scale": 0.4,
    "alibi_slopes": [0.1, 0.2, 0.3, 0.4],
    "sinks": [0.5, -0.5, 0, 1],
    "kv_lengths": [7, 6],
    "dropout_p": 0.3,
    "dropout_seed": 5,
}


@pytest.mark.parametrize("isa", ISAS)
def test_gradients_agree_with_central_differences(isa):
    given = layer(E=5, Ec=3, kv_heads=2, Dv=3, Eo=2)
    options = {"heads": 4, **EVERYTHING}
    given |= {"context": options.pop("context"), **biases_of(given)}
    with npkernels.use_isa(isa):
        dy = np.random.default_rng(6).normal(size=(2, 6, 2))
        grads = npkernels.multi_head_attention_vjp(dy, **given, **options)
        for name, value in given.items():

            def f(value, name=name):
                return npkernels.multi_head_attention(**{**given, name: value.astype(float)}, **options)

            expected = numeric_vjp(f, value, dy)
            np.testing.assert_allclose(getattr(grads, "d" + name), expected, **DIFFERENCE, err_msg=name)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_everything_at_once_within_the_gate(isa, dtype):
    given = layer(dtype, Ec=3, kv_heads=2)
    options = {"heads": 4, **EVERYTHING, **biases_of(given)}
    options |= {name: options[name].astype(dtype) for name in ("context", "bias")}
    dy = np.random.default_rng(6).normal(size=(2, 6, 8)).astype(dtype)
    with npkernels.use_isa(isa):
        y = npkernels.multi_head_attention(**given, **options)
        grads = npkernels.multi_head_attention_vjp(dy, **given, **options)
    gate.assert_passes(y, "multi_head_attention", *given.values(), **options)
    gate.assert_passes(grads, "multi_head_attention_vjp", dy, *given.values(), **options)


def test_leading_axes_are_one_batch():
    given = layer(batch=(2, 3))
    y = npkernels.multi_head_attention(**given, heads=4, causal=True)
    flat = {**given, "x": given["x"].reshape(6, 6, 8)}
    assert np.array_equal(y.reshape(6, 6, 8), npkernels.multi_head_attention(**flat, heads=4, causal=True))
    one = npkernels.multi_head_attention(**{**given, "x": given["x"][1, 2]}, heads=4, causal=True)
    np.testing.assert_allclose(one, y[1, 2], rtol=0, atol=1e-14)
    lengths = npkernels.multi_head_attention(**given, heads=4, kv_lengths=[1, 2, 3, 4, 5, 6])
    full = npkernels.multi_head_attention(**given, heads=4)
    np.testing.assert_allclose(lengths[1, 2], full[1, 2], rtol=0, atol=1e-14)
    assert abs(lengths[0, 0] - full[0, 0]).max() > 1e-3
    grads = npkernels.multi_head_attention_vjp(y, **given, heads=4)
    assert grads.dx.shape == (2, 3, 6, 8)


def test_what_is_not_given_has_no_gradient():
    given = layer()
    grads = npkernels.multi_head_attention_vjp(given["x"], **given, heads=4)
    assert grads.dcontext is grads.dbq is grads.dbk is grads.dbv is grads.dbo is None
    grads = npkernels.multi_head_attention_vjp(
        given["x"], **given, heads=4, context=given["x"], bk=np.zeros(16)
    )
    assert grads.dcontext.shape == given["x"].shape
    assert grads.dbk.shape == (16,)
    assert grads.dbq is None
    whole = npkernels.multi_head_attention_vjp(given["x"], **given, heads=4)
    np.testing.assert_allclose(grads.dx + grads.dcontext, whole.dx, rtol=0, atol=1e-12)


def test_a_layer_is_torch_in_torch_out():
    torch = pytest.importorskip("torch")
    given = layer(np.float32)
    tensors = {name: torch.tensor(a) for name, a in given.items()}
    y = npkernels.multi_head_attention(**tensors, heads=4, rotary={"positions": torch.arange(6)})
    assert np.array_equal(y.numpy(), npkernels.multi_head_attention(**given, heads=4, rotary={}))
    grads = npkernels.multi_head_attention_vjp(y, **tensors, heads=4)
    assert type(grads.dwq) is torch.Tensor
    assert grads.dcontext is None


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("form", ["plain", "every other row", "Fortran order"])
def test_out(dtype, form):
    given = layer(dtype)
    biases = biases_of(given)
    expected = npkernels.multi_head_attention(**given, heads=4, **biases)
    out = {
        "plain": np.empty((2, 6, 8), dtype),
        "every other row": np.empty((2, 12, 8), dtype)[:, ::2],
        "Fortran order": np.empty((2, 6, 8), dtype, order="F"),
    }[form]
    assert npkernels.multi_head_attention(**given, heads=4, **biases, out=out) is out
    assert np.array_equal(out, expected)
    assert expected.dtype == dtype


def test_no_scores_are_stored():
    """S = 4096 tokens of 8 entries: x takes 128 KB, the scores of 4 heads would take 256 MB."""
    given = layer(np.float32, batch=(), S=4096)
    npkernels.multi_head_attention(**given, heads=4)
    tracemalloc.start()
    try:
        npkernels.multi_head_attention(**given, heads=4)
        npkernels.multi_head_attention_vjp(given["x"], **given, heads=4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


def test_calls_can_be_checked():
    given = layer(np.float32)
    with npkernels.checked():
        npkernels.multi_head_attention(**given, heads=4, rotary={}, causal=True)
        npkernels.multi_head_attention_vjp(given["x"], **given, heads=4, rotary={}, causal=True)


def test_the_reference_is_the_same_function():
    given = layer()
    options = {"heads": 4, "rotary": {"interleaved": True}, "causal": True}
    y = npkernels.multi_head_attention(**given, **options)
    np.testing.assert_allclose(
        y, reference.multi_head_attention(**given, **options).astype(float), atol=1e-14
    )


WRONG = [
    (ValueError, r"heads is 0; expected an integer > 0", {"heads": 0}),
    (TypeError, r"heads is 2.0; expected an integer > 0", {"heads": 2.0}),
    (TypeError, r"kv_heads is '2'", {"kv_heads": "2"}),
    (ValueError, r"kv_heads is 3, heads is 4; heads must be a multiple", {"kv_heads": 3}),
    (ValueError, r"x has shape \(6,\); expected \(..., S, E\)", {"x": np.zeros(6)}),
    (ValueError, r"context has shape \(6, 8\); expected", {"context": np.zeros((6, 8))}),
    (ValueError, r"context has shape \(3, 6, 8\); expected", {"context": np.zeros((3, 6, 8))}),
    (ValueError, r"wq has shape \(7, 16\); expected \(8, ...\)", {"wq": np.zeros((7, 16))}),
    (ValueError, r"wq has shape \(2, 8, 16\); expected a matrix", {"wq": np.zeros((2, 8, 16))}),
    (ValueError, r"wq has shape \(8, 15\); expected a multiple of 4 columns", {"wq": np.zeros((8, 15))}),
    (ValueError, r"wk has shape \(8, 8\); expected \(2, ...\), .* context", {"context": np.zeros((2, 6, 2))}),
    (ValueError, r"wk has shape \(8, 6\); expected \(8, 8\), head size 4", {"wk": np.zeros((8, 6))}),
    (ValueError, r"wv has shape \(8, 7\); expected a multiple of 2 columns", {"wv": np.zeros((8, 7))}),
    (ValueError, r"wo has shape \(15, 8\); expected \(16, ...\)", {"wo": np.zeros((15, 8))}),
    (ValueError, r"bv has shape \(7,\); expected one per column of wv, \(8,\)", {"bv": np.zeros(7)}),
    (TypeError, r"wv has dtype float32, x has float64", {"wv": np.zeros((8, 8), np.float32)}),
    (TypeError, r"bo has dtype float32, x has float64", {"bo": np.zeros(8, np.float32)}),
    (TypeError, r"x has dtype complex128", {"x": np.zeros((2, 6, 8), complex)}),
    (ValueError, r"rotary has 'theta'; expected options out of positions, cos", {"rotary": {"theta": 1}}),
    (TypeError, r"rotary is True; expected a dict", {"rotary": True}),
    (ValueError, r"rotary_dim is 3", {"rotary": {"rotary_dim": 3}}),
    (ValueError, r"positions has shape \(5,\)", {"rotary": {"positions": np.arange(5)}}),
    (ValueError, r"positions has shape", {"rotary": {"positions": range(6)}, "context": np.zeros((2, 7, 8))}),
    (ValueError, r"causal=True with 6 queries and 7 keys", {"causal": True, "context": np.zeros((2, 7, 8))}),
    (ValueError, r"mask has shape \(5,\); expected one that broadcasts", {"mask": np.ones(5, bool)}),
    (TypeError, r"mask has dtype float64", {"mask": np.ones(6)}),
    (ValueError, r"bias has shape \(7,\); expected one that broadcasts", {"bias": np.ones(7)}),
    (TypeError, r"bias has dtype bool", {"bias": np.ones(6, bool)}),
    (TypeError, r"bias has dtype float32", {"bias": np.ones(6, np.float32)}),
    (ValueError, r"window is", {"window": (-2, 0)}),
    (ValueError, r"sinks has shape \(2,\)", {"sinks": np.zeros(2)}),
    (ValueError, r"dropout_p is 0.5, which needs dropout_seed", {"dropout_p": 0.5}),
]


@pytest.mark.parametrize(("error", "message", "wrong"), WRONG)
def test_wrong_arguments(error, message, wrong):
    given = {**layer(kv_heads=2), "heads": 4, "kv_heads": 2}
    out = np.full((2, 6, 8), 7.0)
    with pytest.raises(error, match="^multi_head_attention: " + message):
        npkernels.multi_head_attention(**{**given, **wrong}, out=out)
    assert (out == 7).all()
    with pytest.raises(error, match="^multi_head_attention_vjp: " + message):
        npkernels.multi_head_attention_vjp(np.zeros((2, 6, 8)), **{**given, **wrong})


def test_wrong_cotangent_and_out():
    given = {**layer(kv_heads=2), "heads": 4, "kv_heads": 2}
    for bad in (np.zeros((2, 6, 7)), np.zeros((6, 8))):
        with pytest.raises(
            ValueError, match=r"^multi_head_attention_vjp: dy has shape .* expected \(2, 6, 8\)"
        ):
            npkernels.multi_head_attention_vjp(bad, **given)
    with pytest.raises(TypeError, match=r"^multi_head_attention_vjp: dy has dtype float32"):
        npkernels.multi_head_attention_vjp(np.zeros((2, 6, 8), np.float32), **given)
    for out, error in [
        (np.zeros((2, 6, 7)), ValueError),
        (np.zeros((2, 6, 8), np.float32), TypeError),
        (given["x"], ValueError),
        (given["wk"][:, :8].reshape(1, 8, 8)[:, :6].repeat(2, 0)[:1], ValueError),
    ]:
        with pytest.raises(error, match=r"^multi_head_attention: out"):
            npkernels.multi_head_attention(**given, out=out)
