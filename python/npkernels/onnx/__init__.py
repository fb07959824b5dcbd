"""npkernels in ONNX: the operators that `onnx.reference.ReferenceEvaluator` runs through the kernels.

Needs onnx, the extra `onnx`. See docs/onnx.md.
"""

from npkernels.onnx._operators import OPERATORS, evaluator, run_node

__all__ = ["OPERATORS", "evaluator", "run_node"]
