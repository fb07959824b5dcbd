"""Every kernel x dtype x instruction set on awkward inputs, within the accuracy gate.

The cases are those of `python -m npkernels check`: lengths 1, W-1, W, W+1, 2W-1 of every vector width, primes, rows
longer than a chunk, views, masks with anything behind them, special values, arrays that are written past the cache.
"""

import numpy as np
import pytest

import npkernels
from npkernels._cli import cases, check, gate

KERNELS = {name: make for family in cases.families().values() for name, make in family.items()}
PAIRS = [
    pytest.param(name, dtype, id=f"{name}-{dtype.name}")
    for name in KERNELS
    for dtype in cases.dtypes().values()
]


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_within_the_gate_on_every_isa(name, dtype):
    seen = 0
    for case in KERNELS[name](cases.Inputs(name, dtype, seed=1)):
        expectation = gate.expect(name, *case.args, **case.kwargs)
        for isa in npkernels.available_isas():
            with npkernels.use_isa(isa):
                result = check.call(name, case)
            for verdict in expectation.judge(result):
                assert verdict.passed, f"{isa}, {case.label}: {verdict.text}"
            seen += 1
    assert seen >= 10 * len(npkernels.available_isas())


def test_every_public_kernel_has_cases():
    compared = {
        *npkernels.reference.__all__,
        *(f"perturb.{name}" for name in npkernels.reference.perturb.__all__),
    }
    assert compared == set(KERNELS)


def test_the_gate_turns_red_for_a_wrong_kernel(monkeypatch):
    right = npkernels._core.softmax

    def wrong(*args):
        result = right(*args)
        result.reshape(-1)[-1] *= 1 + 1e-5
        return result

    x = np.linspace(-1, 1, 17, dtype=np.float32)
    gate.assert_passes(npkernels.softmax(x), "softmax", x)
    monkeypatch.setattr(npkernels._core, "softmax", wrong)
    with pytest.raises(AssertionError, match="softmax"):
        gate.assert_passes(npkernels.softmax(x), "softmax", x)
