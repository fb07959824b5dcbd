"""The node test cases of the onnx package, run by `npkernels.onnx`."""

import importlib.util
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import numpy.typing as npt

from npkernels.onnx import run_node

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

# operator -> the module of onnx.backend.test.case.node that makes its cases
OPERATORS = {
    "Softmax": "softmax",
    "LogSoftmax": "logsoftmax",
    "NegativeLogLikelihoodLoss": "negativeloglikelihoodloss",
    "SoftmaxCrossEntropyLoss": "softmax_cross_entropy_loss",
    "RotaryEmbedding": "rotaryembedding",
    "Attention": "attention",
}
WEIGHTS = 3  # the mode of `qk_matmul_output` that npkernels gives; the others are scores before the softmax


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
        schema = onnx.defs.get_schema(node.op_type)
        input_names, output_names = ([p.name for p in side] for side in (schema.inputs, schema.outputs))
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
        for module in OPERATORS.values():
            spec = importlib.util.find_spec(f"{cases.__name__}.{module}")
            assert spec is not None
            assert spec.loader is not None
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return found


def asks_for_scores(case: Case) -> bool:
    """Whether one of the outputs is an intermediate result that npkernels does not have."""
    return "qk_matmul_output" in case.outputs and case.attributes.get("qk_matmul_output_mode", 0) != WEIGHTS


def run(npk: ModuleType, case: Case) -> Arrays:
    """What the namespace gives for the case, by output name; it may be more than the case asks for."""
    return run_node(case.operator, case.inputs, case.attributes, kernels=npk)
