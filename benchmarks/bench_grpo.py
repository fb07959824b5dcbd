"""The GRPO family beside NumPy and the peers that are installed."""

import pytest

import side_by_side


@pytest.mark.benchmark(min_rounds=3, max_time=0.5, warmup=False)
@pytest.mark.parametrize(("workload", "library"), side_by_side.pairs("grpo"))
def test_grpo(benchmark, workload, library):
    side_by_side.run(benchmark, workload, library)
