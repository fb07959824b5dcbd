"""ONNX node test cases, and how an ONNX node is said in npkernels.

The functions that run a node take the namespace that they call, `npkernels` or `npkernels.reference`: both
answer the same cases.
"""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

# operator -> the module of onnx.backend.test.case.node that makes its cases, its inputs, its outputs
OPERATORS = {
    "Softmax": ("softmax", ["input"], ["output"]),
    "LogSoftmax": ("logsoftmax", ["input"], ["output"]),
    "NegativeLogLikelihoodLoss": ("negativeloglikelihoodloss", ["input", "target", "weight"], ["loss"]),
    "SoftmaxCrossEntropyLoss": (
        "softmax_cross_entropy_loss",
        ["scores", "labels", "weights"],
        ["output", "log_prob"],
    ),
    "RotaryEmbedding": ("rotaryembedding", ["X", "cos_cache", "sin_cache", "position_ids"], ["Y"]),
    "Attention": (
        "attention",
        ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"],
        ["Y", "present_key", "present_value", "qk_matmul_output"],
    ),
}


@dataclass(frozen=True)
class Case:
    """One node with its inputs and expected outputs, by the names of the operator's schema."""

    name: str
    operator: str
    attributes: dict[str, Any]
    inputs: Arrays
    outputs: Arrays


def collect() -> list[Case]:
    """The cases of `OPERATORS` that the installed onnx package makes.

    Its case modules hand every case to `expect` when they are executed. They are executed here privately,
    with an `expect` that keeps what it is given.
    """
    import onnx
    from onnx.backend.test.case import node as cases

    found: list[Case] = []

    def by_name(names: list[str], used: list[str], values: list[Array]) -> Arrays:
        """Values are given for the names in use only; an empty name is an argument that is left out."""
        present = [name for name, use in zip(names, used, strict=False) if use]
        return dict(zip(present, values, strict=True))

    def plain(attribute: Any) -> Any:
        return attribute.decode() if isinstance(attribute, bytes) else attribute

    def keep(node: Any, inputs: list[Array], outputs: list[Array], name: str, **_: Any) -> None:
        input_names, output_names = OPERATORS[node.op_type][1:]
        found.append(
            Case(
                name.removeprefix("test_"),
                node.op_type,
                {a.name: plain(onnx.helper.get_attribute_value(a)) for a in node.attribute},
                by_name(input_names, list(node.input), inputs),
                by_name(output_names, list(node.output), outputs),
            )
        )

    with mock.patch.object(cases, "expect", keep), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the expected outputs are made with infinities
        for module, _, _ in OPERATORS.values():
            spec = importlib.util.find_spec(f"{cases.__name__}.{module}")
            assert spec is not None
            assert spec.loader is not None
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return found


# What `qk_matmul_output_mode` asks for: the scores after the product, with the mask, after the softcap, or the weights.
# The scores are never stored, so nothing here gives them; see "ONNX" in docs/api.md.
WEIGHTS = 3


def asks_for_scores(case: Case) -> bool:
    """Whether one of the outputs is an intermediate result that npkernels does not have."""
    return "qk_matmul_output" in case.outputs and case.attributes.get("qk_matmul_output_mode", 0) != WEIGHTS


# --- the nodes


def softmax(npk: ModuleType, inputs: Arrays, axis: int = -1) -> Arrays:
    return {"output": npk.softmax(inputs["input"], axis)}


def log_softmax(npk: ModuleType, inputs: Arrays, axis: int = -1) -> Arrays:
    return {"output": npk.log_softmax(inputs["input"], axis)}


def negative_log_likelihood_loss(npk: ModuleType, inputs: Arrays, **attributes: Any) -> Arrays:
    """ONNX's attributes are named as here; the classes are on axis 1."""
    x, target, weight = inputs["input"], inputs["target"], inputs.get("weight")
    return {"loss": npk.nll_loss(x, target, axis=1, weight=weight, **attributes)}


def softmax_cross_entropy_loss(npk: ModuleType, inputs: Arrays, **attributes: Any) -> Arrays:
    x, target, weight = inputs["scores"], inputs["labels"], inputs.get("weights")
    loss = npk.cross_entropy(x, target, axis=1, weight=weight, **attributes)
    return {"output": loss, "log_prob": npk.log_softmax(x, axis=1)}


def split_heads(x: Array, heads: int | None) -> Array:
    """(B, S, H * D) -> (B, H, S, D), a view; 4-D arrays are like that already."""
    if x.ndim == 4:
        return x
    assert heads is not None
    view: Array = x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
    return view


def join_heads(x: Array) -> Array:
    """(B, H, S, D) -> (B, S, H * D)."""
    batch, heads, length, size = x.shape
    joined: Array = x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
    return joined


def rotary_embedding(
    npk: ModuleType,
    inputs: Arrays,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Arrays:
    y = npk.rotary_embedding(
        split_heads(inputs["X"], num_heads),
        inputs.get("position_ids"),
        cos=inputs["cos_cache"],
        sin=inputs["sin_cache"],
        interleaved=bool(interleaved),
        rotary_dim=rotary_embedding_dim or None,
    )
    return {"Y": y if inputs["X"].ndim == 4 else join_heads(y)}


def attention(
    npk: ModuleType,
    inputs: Arrays,
    is_causal: int = 0,
    scale: float | None = None,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> Arrays:
    """A cache of past keys is put in front of the keys; queries then stand behind it.

    `nonpad_kv_seqlen` are the lengths of the keys; the last query then stands at the last of them.
    `softmax_precision` needs nothing: the softmax of 16-bit inputs is in float32 anyway.
    """
    q = split_heads(inputs["Q"], q_num_heads)
    k, v = (split_heads(inputs[name], kv_num_heads) for name in "KV")
    options: dict[str, Any] = {
        "scale": scale,
        "softcap": softcap,
        "window": (left_window_size, right_window_size),
    }
    if is_causal:
        options["causal"] = "top_left"
    if "past_key" in inputs:
        options["q_offset"] = inputs["past_key"].shape[2]
        k = np.concatenate([inputs["past_key"], k], axis=2)
        v = np.concatenate([inputs["past_value"], v], axis=2)
    if "nonpad_kv_seqlen" in inputs:
        options["kv_lengths"] = inputs["nonpad_kv_seqlen"]
        options["q_offset"] = inputs["nonpad_kv_seqlen"] - q.shape[2]
    if "attn_mask" in inputs:  # may have fewer columns than there are keys: the rest is not attended to
        given = inputs["attn_mask"]
        name, rest = ("mask", False) if given.dtype == np.bool_ else ("bias", -np.inf)
        missing = [(0, 0)] * (given.ndim - 1) + [(0, k.shape[2] - given.shape[-1])]
        options[name] = np.pad(given, missing, constant_values=rest)

    y = npk.attention(q, k, v, **options)
    outputs = {
        "Y": y if inputs["Q"].ndim == 4 else join_heads(y),
        "present_key": k,
        "present_value": v,
    }
    if qk_matmul_output_mode == WEIGHTS:
        outputs["qk_matmul_output"] = npk.attention_weights(q, k, **options)
    return outputs


NODES: dict[str, Callable[..., Arrays]] = {
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "NegativeLogLikelihoodLoss": negative_log_likelihood_loss,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy_loss,
    "RotaryEmbedding": rotary_embedding,
    "Attention": attention,
}


def run(npk: ModuleType, case: Case) -> Arrays:
    """What the namespace gives for the case, by output name; it may be more than the case asks for."""
    return NODES[case.operator](npk, case.inputs, **case.attributes)
