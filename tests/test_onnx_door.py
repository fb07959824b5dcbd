"""Models run by onnx's reference evaluator, with its own operators and with those of `npkernels.onnx`."""

import pathlib
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import npkernels

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from npkernels import onnx as door  # noqa: E402
from onnx_adapter import WEIGHTS, asks_for_scores, collect  # noqa: E402

RNG = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def model(nodes, inputs, outputs, opset=24, functions=()):
    """A model of these nodes; inputs are arrays by name, outputs names."""
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), None)
        for n, x in inputs.items()
    ]
    wanted = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    graph = helper.make_graph(nodes, "g", given, wanted)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def both(made, inputs):
    """What onnx gives, and what npkernels gives."""
    return ReferenceEvaluator(made).run(None, inputs), door.evaluator(made).run(None, inputs)


def transformer_layer():
    """x -> projections, rotary embedding, causal attention, residual, softmax of the last projection."""
    x, cos, sin = (
        normal(2, 6, 32),
        *(f(RNG.random((2, 6, 4)) * 6).astype(np.float32) for f in (np.cos, np.sin)),
    )
    inputs = {"x": x, "cos": cos, "sin": sin}
    weights = {"wq": normal(32, 32), "wk": normal(32, 16), "wv": normal(32, 16), "wo": normal(32, 32) / 6}
    nodes = [helper.make_node("MatMul", ["x", f"w{n}"], [n]) for n in "qkv"]
    rotary = {"interleaved": 1}
    nodes += [
        helper.make_node("RotaryEmbedding", ["q", "cos", "sin"], ["rq"], num_heads=4, **rotary),
        helper.make_node("RotaryEmbedding", ["k", "cos", "sin"], ["rk"], num_heads=2, **rotary),
        helper.make_node("Attention", ["rq", "rk", "v"], ["a"], q_num_heads=4, kv_num_heads=2, is_causal=1),
        helper.make_node("MatMul", ["a", "wo"], ["o"]),
        helper.make_node("Add", ["x", "o"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["p"], axis=-1),
        helper.make_node("LogSoftmax", ["sum"], ["logp"], axis=1),
    ]
    return model(nodes, {**inputs, **weights}, ["sum", "p", "logp"]), {**inputs, **weights}


def test_a_layer_of_a_transformer():
    for theirs, ours in zip(*both(*transformer_layer()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert ours.dtype == theirs.dtype


def test_the_operators_are_run_by_the_kernels(monkeypatch):
    called = []
    for name in ("softmax", "log_softmax", "attention", "rotary_embedding"):
        function = getattr(npkernels, name)
        monkeypatch.setattr(
            npkernels, name, lambda *a, f=function, n=name, **k: called.append(n) or f(*a, **k)
        )
    made, inputs = transformer_layer()
    door.evaluator(made).run(None, inputs)
    assert called == ["rotary_embedding"] * 2 + ["attention", "softmax", "log_softmax"]
    called.clear()
    evaluator = ReferenceEvaluator(made, new_ops=list(door.OPERATORS))
    assert len(evaluator.run(None, inputs)) == 3
    assert len(called) == 5


CASES = [case for case in collect() if case.operator == "Attention"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_node_cases_through_the_evaluator(case):
    """As nodes of a model, with their optional inputs and outputs; scores are had from onnx itself."""
    schema = onnx.defs.get_schema(case.operator)
    names = [
        [p.name if p.name in have else "" for p in side]
        for side, have in ((schema.inputs, case.inputs), (schema.outputs, case.outputs))
    ]
    node = helper.make_node(case.operator, *names, **case.attributes)
    made = model([node], case.inputs, list(case.outputs), opset=25 if "window" in case.name else 24)
    got = door.evaluator(made).run(list(case.outputs), case.inputs)
    eps = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
    for value, expected in zip(got, case.outputs.values(), strict=True):
        assert value.dtype == expected.dtype
        finite = np.isfinite(expected.astype(np.float64))
        largest = np.abs(expected[finite].astype(np.float64)).max(initial=0)
        tolerance = 4 * eps[expected.dtype.name] * largest
        np.testing.assert_allclose(
            value.astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance
        )


def test_scores_and_weights_beside_the_output():
    assert any(asks_for_scores(case) for case in CASES)
    q, k, v = normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)
    inputs = {"q": q, "k": k, "v": v}
    for mode in (0, 1, 2, WEIGHTS):
        node = helper.make_node(
            "Attention", ["q", "k", "v"], ["y", "", "", "s"], qk_matmul_output_mode=mode, softcap=2.0
        )
        for theirs, ours in zip(*both(model([node], inputs, ["y", "s"]), inputs), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_softmax_before_opset_13_is_over_all_axes_behind(axis):
    x = normal(2, 3, 4)
    at = 1 if axis is None else axis % 3
    attributes = {} if axis is None else {"axis": axis}
    for name, log in (("Softmax", False), ("LogSoftmax", True)):
        made = model([helper.make_node(name, ["x"], ["y"], **attributes)], {"x": x}, ["y"], opset=11)
        (y,) = door.evaluator(made).run(None, {"x": x})
        e = np.exp(x)
        p = e / e.sum(axis=tuple(range(at, 3)), keepdims=True)
        np.testing.assert_allclose(y, np.log(p) if log else p, rtol=1e-5)


def test_losses():
    x, y = normal(4, 5, 3), RNG.integers(0, 5, (4, 3))
    x, weight = x - 3, np.abs(normal(5))
    inputs = {"x": x, "y": y, "w": weight}
    nodes = [
        helper.make_node("LogSoftmax", ["x"], ["logp"], axis=1),
        helper.make_node("NegativeLogLikelihoodLoss", ["logp", "y", "w"], ["nll"], reduction="mean"),
        helper.make_node(
            "SoftmaxCrossEntropyLoss", ["x", "y"], ["ce", "lp"], reduction="none", ignore_index=2
        ),
    ]
    for theirs, ours in zip(*both(model(nodes, inputs, ["nll", "ce", "lp"]), inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
        assert ours.shape == theirs.shape


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_have_the_type_of_the_input(reduction, dtype):
    inputs = {
        "x": normal(4, 5).astype(dtype),
        "y": RNG.integers(0, 5, 4),
        "w": np.abs(normal(5)).astype(dtype),
    }
    nodes = [
        helper.make_node(name, ["x", "y", "w"], [name], reduction=reduction)
        for name in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
    ]
    made = model(nodes, inputs, [node.op_type for node in nodes])
    for theirs, ours in zip(*both(made, inputs), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol=0.05, atol=0.05)
    got = door.run_node("SoftmaxCrossEntropyLoss", {"scores": inputs["x"], "labels": inputs["y"]})
    assert got["output"].dtype == got["log_prob"].dtype == dtype


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0)])
def test_arrays_of_nothing(shape):
    x = normal(*shape)
    tables = normal(*shape[:2], shape[2] // 4)
    nodes = [
        helper.make_node("RotaryEmbedding", ["x", "c", "c"], ["r"], num_heads=2),
        helper.make_node("Attention", ["r", "x", "x"], ["y"], q_num_heads=2, kv_num_heads=2),
    ]
    inputs = {"x": x, "c": tables}
    y, r = door.evaluator(model(nodes, inputs, ["y", "r"])).run(None, inputs)
    assert y.shape == r.shape == shape


def test_attributes_that_a_function_hands_on():
    node = helper.make_node("Softmax", ["x"], ["y"])
    node.attribute.append(
        onnx.AttributeProto(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT)
    )
    function = helper.make_function(
        "own", "Rows", ["x"], ["y"], [node], [helper.make_opsetid("", 24)], ["axis"]
    )
    x = normal(3, 4)
    made = model(
        [helper.make_node("Rows", ["x"], ["y"], domain="own", axis=0)], {"x": x}, ["y"], functions=[function]
    )
    theirs = npkernels.softmax(x, axis=0)
    np.testing.assert_array_equal(door.evaluator(made).run(None, {"x": x})[0], theirs)


def test_own_operators_come_first():
    softmax = next(op for op in door.OPERATORS if op.__name__ == "Softmax")
    mine = type("Softmax", (softmax,), {"_run": lambda self, x, axis=None: (x + 1,)})
    x = normal(2, 2)
    made = model([helper.make_node("Softmax", ["x"], ["y"])], {"x": x}, ["y"])
    np.testing.assert_array_equal(door.evaluator(made, new_ops=[mine]).run(None, {"x": x})[0], x + 1)


def test_a_bias_of_another_type_and_short_numbers():
    q, k, v = (normal(1, 2, 3, 4, dtype=ml_dtypes.bfloat16) for _ in range(3))
    inputs = {"Q": q, "K": k, "V": v, "attn_mask": np.array([[1, 2, 3]] * 3, np.int64)}
    got = door.run_node("Attention", inputs)["Y"]
    bias = inputs["attn_mask"].astype(q.dtype)
    np.testing.assert_array_equal(got, npkernels.attention(q, k, v, bias=bias))
    assert got.dtype == q.dtype


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_bias_that_is_finite_stays_finite(dtype):
    q, v = np.zeros((1, 1, 2, 4), dtype), normal(1, 1, 2, 4, dtype=dtype)
    least = np.finfo(np.float32).min
    bias = np.array([[least, least], [0, -np.inf]], np.float32)  # a row of the least numbers forbids nothing
    (y,) = door.run_node("Attention", {"Q": q, "K": q, "V": v, "attn_mask": bias})["Y"][0]
    np.testing.assert_allclose(
        y.astype(float), [v[0, 0].astype(float).mean(0), v[0, 0, 0]], rtol=0.01, atol=0.01
    )


def test_refusals():
    with pytest.raises(ValueError, match="run_node: operator is 'Gemm'; expected one of Softmax, LogSoftmax"):
        door.run_node("Gemm", {})
    x = normal(1, 3, 8)
    with pytest.raises(
        ValueError, match=r"Attention: Q has shape \(1, 3, 8\); expected .* \(which is None\)"
    ):
        door.run_node("Attention", {"Q": x, "K": x, "V": x})
    made = model(
        [helper.make_node("RotaryEmbedding", ["x", "c", "c"], ["y"], num_heads=3)], {"x": x, "c": x}, ["y"]
    )
    with pytest.raises(ValueError, match=r"RotaryEmbedding: X has shape \(1, 3, 8\).* \(which is 3\)"):
        door.evaluator(made).run(None, {"x": x, "c": x})


def test_inputs_and_attributes_that_are_unknown_missing_or_do_not_go_together():
    run, x = door.run_node, normal(1, 2, 3, 4)
    qkv = {"Q": x, "K": x, "V": x}
    with pytest.raises(TypeError, match=r"run_node: Softmax has no input 'x'; expected some of input$"):
        run("Softmax", {"x": x})
    with pytest.raises(TypeError, match="run_node: Softmax needs the input 'input'"):
        run("Softmax", {"input": None})
    with pytest.raises(
        TypeError, match="run_node: Attention has no input 'mask'; expected some of Q, K, V, attn_mask"
    ):
        run("Attention", {**qkv, "mask": np.ones((3, 3), bool)})
    with pytest.raises(
        TypeError, match=r"run_node: Attention has no attribute 'causal'; expected some of .*is_causal"
    ):
        run("Attention", qkv, {"causal": 1})
    np.testing.assert_array_equal(
        run("Attention", {**qkv, "attn_mask": None})["Y"], npkernels.attention(x, x, x)
    )
    with pytest.raises(ValueError, match="Attention: only one of past_key and past_value came"):
        run("Attention", {**qkv, "past_key": x})
    with pytest.raises(ValueError, match="Attention: past_key came together with nonpad_kv_seqlen"):
        run("Attention", {**qkv, "past_key": x, "past_value": x, "nonpad_kv_seqlen": np.array([3])})
    for shape in ((3, 4), ()):
        with pytest.raises(
            ValueError, match=rf"Attention: attn_mask has shape {re.escape(str(shape))}; expected"
        ):
            run("Attention", {**qkv, "attn_mask": np.ones(shape, bool)})
    made = model([helper.make_node("Softmax", ["x"], ["y"], axis=4)], {"x": x}, ["y"], opset=11)
    with pytest.raises(ValueError, match="Softmax: axis is 4; expected one of the 4 of the input"):
        door.evaluator(made).run(None, {"x": x})


def test_npkernels_alone_imports_no_onnx():
    code = "import sys, npkernels; print('onnx' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "False", done.stderr


def test_the_page_runs():
    page = pathlib.Path(__file__).parents[1] / "docs" / "onnx.md"
    (block,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(block, str(page), "exec"), {})
