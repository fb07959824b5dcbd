"""The node cases of the onnx package, against the kernels and against the reference."""

from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_allclose

import npkernels

pytest.importorskip("onnx")

from onnx_adapter import FEATURES, Arrays, Case, cannot_give, collect, needs, run

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

# Cases that need what is not there, by what that is. Each line ends the day its option begins:
# test_the_tables_tell_what_is_missing fails as soon as one of these can be run, or another one cannot.
SIXTEEN_BIT = {
    "float16": [
        "attention_24_qk_matmul_output_mode3_softmax_precision",
        "attention_4d_causal_fp16",
        "attention_4d_fp16",
        "attention_4d_gqa_causal_nonpad_decode_fp16",
        "attention_4d_gqa_with_past_and_present_fp16",
    ],
    "bfloat16": [
        "attention_3d_causal_bf16",
        "attention_4d_attn_mask_causal_bf16",
        "attention_4d_causal_bf16",
        "attention_4d_causal_padded_kv_bf16",
        "attention_4d_padded_kv_bf16",
    ],
    "float16 + window": ["attention_local_window_ext_cache_float16_mask"],
}
OPTIONS = {
    "softcap": [
        "attention_3d_diff_heads_sizes_softcap",
        "attention_3d_gqa_softcap",
        "attention_3d_softcap",
        "attention_3d_with_past_and_present_qk_matmul_softcap",
        "attention_4d_diff_heads_sizes_softcap",
        "attention_4d_gqa_softcap",
        "attention_4d_softcap",
        "attention_4d_softcap_neginf_mask",
        "attention_4d_softcap_neginf_mask_poison",
        "attention_4d_with_qk_matmul_softcap",
    ],
    "window": [
        "attention_3d_local_window",
        "attention_bidirectional_window",
        "attention_local_window",
        "attention_local_window_ext_cache_rank2_mask",
        "attention_local_window_ext_cache_rank3_head_mask",
        "attention_local_window_ext_cache_rank4_batch_mask",
        "attention_local_window_rank1_boolean_mask",
        "attention_local_window_with_past",
    ],
    "softcap + window": ["attention_local_window_gqa_rank4_mask"],
}
CANNOT_RUN = {
    "kernels": SIXTEEN_BIT | OPTIONS,
    "reference": OPTIONS
    | {"window": sorted([*OPTIONS["window"], "attention_local_window_ext_cache_float16_mask"])},
}
# These run, but for one output: nothing here gives the scores before the softmax.
CANNOT_GIVE = {
    "the scores": [
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
}


def names_in(table: dict[str, list[str]]) -> set[str]:
    return {name for names in table.values() for name in names}


def test_every_case_is_collected():
    assert Counter(case.operator for case in CASES) == COUNTS
    assert len({case.name for case in CASES}) == sum(COUNTS.values()) == 167


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_tables_tell_what_is_missing(namespace):
    lacking = {feature for feature, is_there in FEATURES.items() if not is_there(NAMESPACES[namespace])}

    def by_feature(wanted):
        table: dict[str, list[str]] = {}
        for case in CASES:
            missing = wanted(case) & lacking
            if missing:
                table.setdefault(" + ".join(sorted(missing)), []).append(case.name)
        return {feature: sorted(names) for feature, names in table.items()}

    assert by_feature(needs) == CANNOT_RUN[namespace]
    assert by_feature(cannot_give) == CANNOT_GIVE


def runs() -> list[object]:
    return [
        pytest.param(namespace, case, id=f"{namespace}-{case.name}")
        for namespace in NAMESPACES
        for case in CASES
        if case.name not in names_in(CANNOT_RUN[namespace])
    ]


def test_what_is_not_listed_is_run():
    assert len(runs()) == (167 - 30) + (167 - 20)


@pytest.mark.parametrize(("namespace", "case"), runs())
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
    assert unknown == ({"qk_matmul_output"} if case.name in names_in(CANNOT_GIVE) else set())
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
