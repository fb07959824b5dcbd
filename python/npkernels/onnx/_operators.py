"""The operators as classes for onnx's evaluator."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

import npkernels
from npkernels._party import party
from npkernels.onnx._nodes import NODES, WEIGHTS, Array, Arrays

OLDEST = "1.19.0"  # the first whose evaluator has the operator Attention of opset 24
onnx, _reference, op_run, ops = (
    party("npkernels.onnx", name, OLDEST, "npkernels[onnx]")
    for name in ("onnx", "onnx.reference", "onnx.reference.op_run", "onnx.reference.ops")
)
_ReferenceEvaluator: Any = _reference.ReferenceEvaluator


def run_node(
    operator: str,
    inputs: Mapping[str, npt.ArrayLike],
    attributes: Mapping[str, Any] | None = None,
    *,
    kernels: ModuleType = npkernels,
) -> Arrays:
    """Run one ONNX operator through the kernels.

    Parameters
    ----------
    operator : str
        "Softmax", "LogSoftmax" (opset 13 and later), "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss",
        "RotaryEmbedding" (23 and later) or "Attention" (23 to 25).
    inputs : mapping of array_like
        By the names of the operator's schema; optional ones may be missing, or None.
    attributes : mapping, optional
        Those that are given, by name; the others have their defaults.
    kernels : module
        `npkernels`, or `npkernels.reference`.

    Returns
    -------
    dict of ndarray
        All outputs that there are, by name. "qk_matmul_output" of Attention only with `qk_matmul_output_mode` 3.

    Raises
    ------
    TypeError, ValueError
        If the operator is not one of these, or has no input or attribute of that name, or one is missing or does not
        fit.

    Examples
    --------
    >>> import numpy as np, npkernels.onnx
    >>> npkernels.onnx.run_node("Softmax", {"input": np.zeros((1, 2))}, {"axis": -1})
    {'output': array([[0.5, 0.5]])}
    """
    if operator not in NODES:
        raise ValueError(f"run_node: operator is {operator!r}; expected one of {', '.join(NODES)}")
    schema, options = onnx.defs.get_schema(operator), dict(attributes or {})
    _known(f"run_node: {operator}", "input", inputs, [p.name for p in schema.inputs])
    _known(f"run_node: {operator}", "attribute", options, schema.attributes)
    arrays = {name: np.asarray(value) for name, value in inputs.items() if value is not None}
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for parameter in schema.inputs:
        if parameter.option != optional and parameter.name not in arrays:
            raise TypeError(f"run_node: {operator} needs the input {parameter.name!r}")
    return NODES[operator](kernels, arrays, **options)


def _known(what: str, kind: str, given: Iterable[str], names: Collection[str]) -> None:
    for name in given:
        if name not in names:
            raise TypeError(f"{what} has no {kind} {name!r}; expected some of {', '.join(names)}")


def _run(self: Any, *inputs: Array | None, operator: str, **attributes: Any) -> tuple[Array, ...]:
    """What an operator does in onnx's evaluator: `self` is its node, missing inputs are None, as are attributes."""
    given = {name: value for name, value in attributes.items() if value is not None}
    version = self.run_params["opsets"].get("", onnx.defs.onnx_opset_version())
    if operator in ("Softmax", "LogSoftmax") and version < 13:
        return (_two_dimensional(self, operator, inputs[0], given),)
    if _asks_for_scores(self, operator, given):
        theirs = ops.load_op("", operator, version)(self.onnx_node, self.run_params)
        result: tuple[Array, ...] = theirs._run(*inputs, **attributes)
        return result
    schema = onnx.defs.get_schema(operator)
    names = [parameter.name for parameter in schema.inputs]
    arrays = {name: x for name, x in zip(names, inputs, strict=False) if x is not None}
    outputs = NODES[operator](npkernels, arrays, **given)
    return tuple(np.asarray(outputs[p.name]) for p in schema.outputs if p.name in outputs)


def _asks_for_scores(self: Any, operator: str, given: Mapping[str, Any]) -> bool:
    """Whether an output is wanted that the kernels never have: the scores before the softmax."""
    asked = operator == "Attention" and len(self.output) > 3 and self.output[3] != ""
    return asked and given.get("qk_matmul_output_mode", 0) != WEIGHTS


def _two_dimensional(self: Any, operator: str, x: Any, given: Mapping[str, Any]) -> Array:
    """Softmax before opset 13: over all axes from `axis` on, by default 1."""
    axis = given["axis"] if any(a.name == "axis" for a in self.onnx_node.attribute) else 1
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{operator}: axis is {axis}; expected one of the {x.ndim} of the input")
    axis %= x.ndim
    rows = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    y: Array = NODES[operator](npkernels, {"input": rows})["output"].reshape(x.shape)
    return y


OPERATORS: tuple[type, ...] = tuple(
    type(
        name,
        (op_run.OpRun,),
        {"op_domain": "", "_run": functools.partialmethod(_run, operator=name), "__module__": __name__},
    )
    for name in NODES
)
"""Classes for the argument `new_ops` of `onnx.reference.ReferenceEvaluator`, named as the operators."""


class _Evaluator(_ReferenceEvaluator):  # type: ignore[misc]
    """onnx's evaluator with `OPERATORS`. It makes others of its own class for a model's functions and subgraphs."""

    def __init__(self, proto: Any, *, new_ops: Sequence[type] | None = None, **options: Any) -> None:
        super().__init__(proto, new_ops=[*(new_ops or ()), *OPERATORS], **options)


def evaluator(model: Any, *, new_ops: Sequence[type] = (), **options: Any) -> Any:
    """Make an evaluator of a model that runs `OPERATORS` through the kernels, and everything else as onnx does.

    Parameters
    ----------
    model : onnx.ModelProto, str, bytes, ...
        What `onnx.reference.ReferenceEvaluator` takes.
    new_ops : sequence of type
        Further operators; they come before these.
    **options
        As for `onnx.reference.ReferenceEvaluator`.

    Returns
    -------
    onnx.reference.ReferenceEvaluator

    Examples
    --------
    >>> import numpy as np, npkernels.onnx
    >>> import onnx
    >>> x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 2]) for name in "xy")
    >>> graph = onnx.helper.make_graph([onnx.helper.make_node("Softmax", ["x"], ["y"])], "g", [x], [y])
    >>> model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
    >>> npkernels.onnx.evaluator(model).run(None, {"x": np.zeros((1, 2), np.float32)})
    [array([[0.5, 0.5]], dtype=float32)]
    """
    return _Evaluator(model, new_ops=new_ops, **options)
