"""How an ONNX node is said in npkernels, by the names of the operator's inputs, attributes and outputs.

The functions take the namespace that they call, `npkernels` or `npkernels.reference`: both give the same.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

# What `qk_matmul_output_mode` asks for: the scores after the product, with the mask, after the softcap, or the weights.
# The scores are never stored, so nothing here gives them; see docs/onnx.md.
WEIGHTS = 3


def softmax(npk: ModuleType, inputs: Arrays, axis: int = -1) -> Arrays:
    """Softmax, of opset 13 and later."""
    return {"output": npk.softmax(inputs["input"], axis)}


def log_softmax(npk: ModuleType, inputs: Arrays, axis: int = -1) -> Arrays:
    """LogSoftmax, of opset 13 and later."""
    return {"output": npk.log_softmax(inputs["input"], axis)}


def negative_log_likelihood_loss(npk: ModuleType, inputs: Arrays, **attributes: Any) -> Arrays:
    """NegativeLogLikelihoodLoss: its attributes are named as here; the classes are on axis 1."""
    x, target, weight = inputs["input"], inputs["target"], inputs.get("weight")
    return {"loss": _rounded(npk.nll_loss(x, target, axis=1, weight=weight, **attributes), x)}


def softmax_cross_entropy_loss(npk: ModuleType, inputs: Arrays, **attributes: Any) -> Arrays:
    """SoftmaxCrossEntropyLoss, and the log-probabilities."""
    x, target, weight = inputs["scores"], inputs["labels"], inputs.get("weights")
    loss = npk.cross_entropy(x, target, axis=1, weight=weight, **attributes)
    return {"output": _rounded(loss, x), "log_prob": npk.log_softmax(x, axis=1)}


def _rounded(loss: Any, x: Array) -> Any:
    """Losses of 16-bit numbers are float32 here, and of the type of the input in ONNX."""
    return np.asarray(loss).astype(x.dtype) if x.dtype.itemsize == 2 else loss


def _as(dtype: np.dtype[Any], bias: Array) -> Array:
    """A mask of numbers in the type of Q: what is finite stays finite, as the least float32 in the place of -inf."""
    with np.errstate(over="ignore"):
        cast: Array = bias.astype(dtype)
    lost = np.isinf(cast) & np.isfinite(bias)
    if lost.any():
        most = np.nextafter(dtype.type(np.inf), dtype.type(0))
        cast[lost] = np.where(bias[lost] > 0, most, -most)
    return cast


def split_heads(operator: str, name: str, x: Array, heads: int | None) -> Array:
    """(B, S, H * D) -> (B, H, S, D), a view; 4-D arrays are like that already."""
    if x.ndim == 4:
        return x
    if x.ndim != 3 or not heads or x.shape[2] % heads:
        raise ValueError(
            f"{operator}: {name} has shape {x.shape}; expected (B, H, S, D), or (B, S, H * D) and the number of "
            f"heads as an attribute (which is {heads})"
        )
    view: Array = x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(0, 2, 1, 3)
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
    """RotaryEmbedding, of opset 23 and later."""
    y = npk.rotary_embedding(
        split_heads("RotaryEmbedding", "X", inputs["X"], num_heads),
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
    """Attention, of opset 23 to 25.

    A cache of past keys is put in front of the keys; queries then stand behind it. `nonpad_kv_seqlen` are the lengths
    of the keys; the last query then stands at the last of them. `softmax_precision` needs nothing: the softmax of
    16-bit inputs is in float32 anyway.
    """
    q = split_heads("Attention", "Q", inputs["Q"], q_num_heads)
    k, v = (split_heads("Attention", name, inputs[name], kv_num_heads) for name in "KV")
    options: dict[str, Any] = {
        "scale": scale,
        "softcap": softcap,
        "window": (left_window_size, right_window_size),
    }
    if is_causal:
        options["causal"] = "top_left"
    if ("past_key" in inputs) != ("past_value" in inputs):
        raise ValueError("Attention: only one of past_key and past_value came; expected both or neither")
    if "past_key" in inputs and "nonpad_kv_seqlen" in inputs:
        raise ValueError("Attention: past_key came together with nonpad_kv_seqlen; expected one of them")
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
        if name == "bias":
            given = _as(q.dtype, given)
        if given.ndim == 0 or given.shape[-1] > k.shape[2]:
            raise ValueError(
                f"Attention: attn_mask has shape {given.shape}; expected (..., {q.shape[2]}, {k.shape[2]}), or "
                "fewer columns"
            )
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
