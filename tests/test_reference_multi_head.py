"""The reference of the attention layer against PyTorch's and against central differences."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from central_differences import DIFFERENCE, numeric_vjp
from npkernels import reference as ref

EPS = np.finfo(np.float64).eps


def layer(E=5, Ec=5, heads=4, kv_heads=4, D=4, Dv=4, Eo=5, S=3, batch=(2,), seed=1):
    r = np.random.default_rng(seed)
    shapes = {
        "x": (*batch, S, E),
        "wq": (E, heads * D),
        "wk": (Ec, kv_heads * D),
        "wv": (Ec, kv_heads * Dv),
        "wo": (heads * Dv, Eo),
    }
    return {name: r.normal(size=shape) / 2 for name, shape in shapes.items()}


def biases_of(given, seed=2):
    r = np.random.default_rng(seed)
    return {name: r.normal(size=given["w" + name[1]].shape[1]) for name in ("bq", "bk", "bv", "bo")}


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_the_layer_is_that_of_torch(crossed, biased):
    torch = pytest.importorskip("torch")
    E, heads = 8, 2
    given = layer(E=E, Ec=E, heads=heads, kv_heads=heads, D=4, Dv=4, Eo=E, S=6)
    biases = biases_of(given) if biased else {}
    context = np.random.default_rng(3).normal(size=(2, 7, E)) if crossed else given["x"]
    module = torch.nn.MultiheadAttention(E, heads, bias=biased, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.tensor(np.concatenate([given[n].T for n in ("wq", "wk", "wv")])))
        module.out_proj.weight.copy_(torch.tensor(given["wo"].T))
        if biased:
            module.in_proj_bias.copy_(torch.tensor(np.concatenate([biases[n] for n in ("bq", "bk", "bv")])))
            module.out_proj.bias.copy_(torch.tensor(biases["bo"]))
    x, other = torch.tensor(given["x"], requires_grad=True), torch.tensor(context, requires_grad=True)
    expected = module(x, other if crossed else x, other if crossed else x)[0]
    options = {"heads": heads, **biases, **({"context": context} if crossed else {})}
    y = ref.multi_head_attention(**given, **options)
    assert_allclose(y, expected.detach(), rtol=0, atol=200 * EPS)

    dy = np.random.default_rng(4).normal(size=y.shape)
    expected.backward(torch.tensor(dy))
    grads = ref.multi_head_attention_vjp(dy, **given, **options)
    close = {"rtol": 0, "atol": 1000 * EPS}
    assert_allclose(grads.dx, x.grad, **close)
    parts = np.split(module.in_proj_weight.grad.numpy(), 3)
    for name, part in zip(("dwq", "dwk", "dwv"), parts, strict=True):
        assert_allclose(getattr(grads, name), part.T, **close)
    assert_allclose(grads.dwo, module.out_proj.weight.grad.T, **close)
    if crossed:
        assert_allclose(grads.dcontext, other.grad, **close)
    else:
        assert grads.dcontext is None
    if biased:
        parts = np.split(module.in_proj_bias.grad.numpy(), 3)
        for name, part in zip(("dbq", "dbk", "dbv"), parts, strict=True):
            assert_allclose(getattr(grads, name), part, **close)
        assert_allclose(grads.dbo, module.out_proj.bias.grad, **close)
    else:
        assert grads.dbq is grads.dbk is grads.dbv is grads.dbo is None


CASES = {
    "self": ({}, {}),
    "grouped, Dv, Eo": ({"kv_heads": 2, "Dv": 3, "Eo": 2}, {"kv_heads": 2, "causal": True}),
    "cross": ({"Ec": 3, "kv_heads": 1}, {"kv_heads": 1, "context": (2, 4, 3), "kv_lengths": [3, 4]}),
    "no batch": ({"batch": ()}, {"rotary": {"base": 100.0}, "window": (1, -1)}),
    "two batch axes": ({"batch": (2, 1)}, {"rotary": {"positions": np.array([4, 0, 7])}, "softcap": 0.8}),
    "rotary of each batch": (
        {},
        {"rotary": {"positions": np.array([[4, 0, 7], [1, 2, 3]]), "rotary_dim": 2, "interleaved": True}},
    ),
    "everything": (
        {"kv_heads": 2, "Ec": 3},
        {
            "kv_heads": 2,
            "context": (2, 4, 3),
            "rotary": {},
            "bias": np.linspace(-1, 1, 12).reshape(3, 4),
            "mask": np.arange(12).reshape(3, 4) % 5 > 0,
            "causal": "bottom_right",
            "scale": 0.4,
            "alibi_slopes": [0.1, 0.2, 0.3, 0.4],
            "sinks": [0.5, -0.5, 0, 1],
            "q_offset": [2, 1],
            "dropout_p": 0.3,
            "dropout_seed": 5,
        },
    ),
}


@pytest.mark.parametrize(("sizes", "options"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("biased", [False, True])
def test_gradients_agree_with_central_differences(sizes, options, biased):
    given = layer(**sizes)
    options = {"heads": 4, **options}
    if "context" in options:
        given["context"] = np.random.default_rng(5).normal(size=options.pop("context"))
    if biased:
        given |= biases_of(given)
    y = ref.multi_head_attention(**given, **options)
    dy = np.random.default_rng(6).normal(size=y.shape)
    grads = ref.multi_head_attention_vjp(dy, **given, **options)
    for name, value in given.items():

        def f(value, name=name):
            return ref.multi_head_attention(**{**given, name: value}, **options)

        assert_allclose(getattr(grads, "d" + name), numeric_vjp(f, value, dy), **DIFFERENCE, err_msg=name)


def test_heads_are_columns_side_by_side():
    given = layer(kv_heads=2)
    y = ref.multi_head_attention(**given, heads=4, kv_heads=2, causal=True)
    q, k, v = (given["x"] @ given[name] for name in ("wq", "wk", "wv"))
    parts = [
        ref.attention(
            q[..., 4 * h : 4 * h + 4],
            k[..., h // 2 * 4 :][..., :4],
            v[..., h // 2 * 4 :][..., :4],
            causal=True,
        )
        for h in range(4)
    ]
    assert_allclose(y, np.concatenate(parts, axis=-1) @ given["wo"], rtol=0, atol=100 * EPS)


def test_positions_begin_where_rotary_says():
    given = layer()
    moved = ref.multi_head_attention(**given, heads=4, rotary={"positions": [5, 6, 7]})
    assert_allclose(moved, ref.multi_head_attention(**given, heads=4, rotary={}), rtol=0, atol=100 * EPS)
    assert abs(moved - ref.multi_head_attention(**given, heads=4)).max() > 1e-3


def test_precision_and_empty():
    given = {name: x.astype(np.float32) for name, x in layer().items()}
    assert ref.multi_head_attention(**given, heads=4, rotary={}).dtype == np.float64
    given = layer(S=0)
    y = ref.multi_head_attention(**given, heads=4)
    assert y.shape == (2, 0, 5)
    assert_array_equal(ref.multi_head_attention_vjp(y, **given, heads=4).dwq, np.zeros((5, 16)))


def test_wrong_arguments():
    given = layer(kv_heads=2)
    x = given["x"]
    cases = [
        (r"heads is 0; expected a number > 0", {"heads": 0}),
        (r"k has 3 heads, q has 4; q heads must be a multiple", {"kv_heads": 3}),
        (r"x has shape \(3,\); expected \(..., S, E\)", {"x": x[0, :, 0]}),
        (r"context has shape \(3, 5\), x has \(2, 3, 5\)", {"context": x[0]}),
        (r"wq has shape \(4, 16\); expected \(5, 16\)", {"wq": given["wq"][:4]}),
        (r"wk has shape \(2, 5, 8\); expected a matrix", {"wk": np.stack([given["wk"]] * 2)}),
        (r"wk has shape \(5, 8\); expected \(2, 8\)", {"context": x[..., :2]}),
        (r"wq has 15 columns; expected a multiple of 4 heads", {"wq": given["wq"][:, :15]}),
        (r"wk has 6 columns; expected 4 for each of 2 heads", {"wk": given["wk"][:, :6]}),
        (r"wv has 7 columns; expected a multiple of 2 heads", {"wv": given["wv"][:, :7]}),
        (r"wo has shape \(15, 5\); expected \(16, 5\)", {"wo": given["wo"][:15]}),
        (r"bv has shape \(7,\); expected \(8,\)", {"bv": np.zeros(7)}),
        (r"rotary has 'theta'; expected options out of", {"rotary": {"theta": 1}}),
        (r"rotary_dim is 3", {"rotary": {"rotary_dim": 3}}),
        (r"window is", {"window": (-2, 0)}),
    ]
    for message, wrong in cases:
        arguments = {**given, "heads": 4, "kv_heads": 2, **wrong}
        with pytest.raises(ValueError, match="multi_head_attention: " + message):
            ref.multi_head_attention(**arguments)
        with pytest.raises(ValueError, match="multi_head_attention_vjp: " + message):
            ref.multi_head_attention_vjp(np.zeros((2, 3, 5)), **arguments)
    with pytest.raises(ValueError, match=r"multi_head_attention_vjp: dy has shape \(2, 3, 4\)"):
        ref.multi_head_attention_vjp(np.zeros((2, 3, 4)), **given, heads=4, kv_heads=2)
