"""The benchmark of one workload in one library; a workload's libraries form a group."""

from typing import Any

import pytest

import npkernels
from npkernels._cli import peers
from npkernels._cli.workloads import Workload, workloads


def pairs(family: str) -> list[Any]:
    """Every workload of a family with every library that can do it."""
    return [
        pytest.param(workload, library, id=f"{workload.name}-{library}")
        for workload in workloads()
        if workload.family == family
        for library in peers.able(workload, peers.installed())
    ]


def run(benchmark: Any, workload: Workload, library: str) -> None:
    """Compare the library's answer with the reference, then time it on as many threads as npkernels has."""
    benchmark.group = workload.name
    benchmark.extra_info.update(isa=npkernels.isa(), threads=npkernels.get_num_threads())
    benchmark.extra_info.update(flops=workload.flops, bytes=workload.bytes)
    inputs = workload.inputs()
    with peers.threads(npkernels.get_num_threads(), [library] if library in peers.PEERS else []):
        call = peers.verified_call(library, workload, inputs)
        benchmark(call)
