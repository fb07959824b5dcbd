"""The node cases of the onnx package, against the kernels and against the reference."""

import pathlib
from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_allclose

import npkernels

pytest.importorskip("onnx")

from onnx_adapter import Arrays, Case, asks_for_scores, collect, run

CASES = collect()
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
NAMESPACES = {"kernels": npkernels, "reference": npkernels.reference}

# How many cases onnx 1.23 makes. Another number is not wrong, but it has to be looked at.
COUNTS = {
    "Softmax": 7,
    "LogSoftmax": 7,
    "NegativeLogLikelihoodLoss": 18,
    "SoftmaxCrossEntropyLoss": 34,
    "RotaryEmbedding": 8,
    "Attention": 93,
}

# These run and give their main output, but not one more that they ask for: the scores before the softmax.
WITHOUT_SCORES = [
    "attention_3d_with_past_and_present_qk_matmul",
    "attention_3d_with_past_and_present_qk_matmul_bias",
    "attention_3d_with_past_and_present_qk_matmul_softcap",
    "attention_4d_with_past_and_present_qk_matmul",
    "attention_4d_with_past_and_present_qk_matmul_bias",
    "attention_4d_with_past_and_present_qk_matmul_bias_3d_mask",
    "attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
    "attention_4d_with_past_and_present_qk_matmul_bias_4d_mask",
    "attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
    "attention_4d_with_qk_matmul",
    "attention_4d_with_qk_matmul_bias",
    "attention_4d_with_qk_matmul_softcap",
]
API = pathlib.Path(__file__).parents[1] / "docs" / "api.md"


def test_every_case_is_collected():
    assert Counter(case.operator for case in CASES) == COUNTS
    assert len({case.name for case in CASES}) == sum(COUNTS.values()) == 167


def test_what_is_left_out_is_listed():
    assert sorted(case.name for case in CASES if asks_for_scores(case)) == WITHOUT_SCORES
    page = API.read_text()
    assert [name for name in WITHOUT_SCORES if f"`{name}`" not in page] == []


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(namespace: str, case: Case):
    if namespace == "reference":
        check(case, run(npkernels.reference, case), narrow=False)
        return
    for isa in npkernels.available_isas():
        with npkernels.use_isa(isa):
            check(case, run(npkernels, case), narrow=True)


def check(case: Case, got: Arrays, narrow: bool) -> None:
    """Compare all outputs that can be given; `narrow` results have the type that ONNX gives them."""
    unknown = set(case.outputs) - set(got)
    assert unknown == ({"qk_matmul_output"} if case.name in WITHOUT_SCORES else set())
    for name in set(case.outputs) - unknown:
        value, expected = np.asarray(got[name]), case.outputs[name]
        assert value.shape == expected.shape, name
        assert value.dtype == expected.dtype or not narrow, name
        # The expected outputs are NumPy's in the type of the inputs: up to 1.7 eps of the largest entry from
        # the reference. The kernels may be as far off the other way.
        largest = np.abs(expected.astype(np.float64)).max(initial=0)
        tolerance = 4 * EPS[expected.dtype.name] * largest
        assert_allclose(
            value.astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance, err_msg=name
        )
