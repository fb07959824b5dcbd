"""The perturbation family beside NumPy and the installed peers, and attention's Jacobian norm beside attention."""

import numpy as np
import pytest

import npkernels
import side_by_side
from npkernels._cli.workloads_perturb import attention_norm


@pytest.mark.benchmark(min_rounds=3, max_time=0.5, warmup=False)
@pytest.mark.parametrize(("workload", "library"), side_by_side.pairs("perturb"))
def test_perturb(benchmark, workload, library):
    side_by_side.run(benchmark, workload, library)


@pytest.mark.benchmark(group="attention_jacobian_norm 1x8x512x64", min_rounds=3, max_time=1.0, warmup=False)
@pytest.mark.parametrize("what", ["norm", "one forward pass"])
def test_attention_jacobian_norm(benchmark, what):
    if what == "norm":
        value, iterations = benchmark(attention_norm, 1, 8, 512, 64)
        benchmark.extra_info.update(iterations=iterations)
        exact = npkernels.lipschitz.attention_jacobian_norm(
            *np.random.default_rng(0).standard_normal((3, 1, 8, 512, 64), dtype=np.float32), tol=2e-6
        )
        assert abs(value / float(exact) - 1) < 1e-4
    else:
        q, k, v = np.random.default_rng(0).standard_normal((3, 1, 8, 512, 64), dtype=np.float32)
        benchmark(npkernels.attention, q, k, v)
