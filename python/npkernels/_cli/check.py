"""`python -m npkernels check`: every kernel x dtype x instruction set x awkward input against the reference."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np

import npkernels
from npkernels import _cached_attention
from npkernels._arrays import Array
from npkernels._cli import cases, gate, report
from npkernels._cli.progress import progress


@dataclass
class Cell:
    """The worst of one kernel and dtype on one instruction set (ISA)."""

    ulp: float = 0.0
    share: float = 0.0
    failures: list[tuple[float, str]] = field(default_factory=list)  # how bad, and what

    def add(self, case: cases.Case, verdict: gate.Verdict) -> None:
        """Take note of one verdict."""
        self.ulp = max(self.ulp, verdict.error_in_ulp)
        self.share = max(self.share, verdict.share)
        if not verdict.passed:
            place = f"{verdict.place} " if verdict.place else ""
            self.failures.append((verdict.share, f"{case.label}: {place}{verdict.text}"))

    def add_error(self, case: cases.Case, error: Exception) -> None:
        """Take note of a call that raised."""
        self.ulp = np.inf
        self.failures.append((np.inf, f"{case.label}: {type(error).__name__}: {error}"))

    @property
    def worst(self) -> str:
        """What is most wrong."""
        return max(self.failures)[1]

    def __str__(self) -> str:
        size = f"{self.ulp:.2f} ulp {100 * self.share:3.0f} %" if np.isfinite(self.ulp) else "wrong"
        return f"FAIL {size}" if self.failures else size


@dataclass
class Row:
    """One line of the table."""

    kernel: str
    dtype: str
    cells: dict[str, Cell]
    cases: int = 0


def run(kernels: Mapping[str, cases.Cases], isas: Sequence[str], seed: int) -> list[Row]:
    """Check these kernels on these instruction sets."""
    plan = [(kernel, make, dtype) for kernel, make in kernels.items() for dtype in cases.dtypes().values()]
    steps = progress(plan, "check", lambda step: f"{step[0]} {step[2].name}")
    return [_row(kernel, make, dtype, isas, seed) for kernel, make, dtype in steps]


def _row(kernel: str, make: cases.Cases, dtype: np.dtype[Any], isas: Sequence[str], seed: int) -> Row:
    row = Row(kernel, dtype.name, {isa: Cell() for isa in isas})
    for case in make(cases.Inputs(kernel, dtype, seed)):
        row.cases += 1
        expectation = gate.expect(kernel, *case.args, **case.kwargs)
        for isa, cell in row.cells.items():
            with npkernels.use_isa(isa):
                try:
                    result = call(kernel, case)
                except Exception as error:  # a kernel that raises is one finding among others
                    cell.add_error(case, error)
                    continue
            for verdict in expectation.judge(result):
                cell.add(case, verdict)
    return row


def call(kernel: str, case: cases.Case) -> Any:
    """Call the kernel with a case's arguments; in place if the case says so."""
    args, kwargs = case.args, case.kwargs
    if case.inplace is not None:
        target = _copy(case.args[case.inplace])
        args = (*args[: case.inplace], target, *args[case.inplace + 1 :])
        kwargs = {**kwargs, "out": target}
    return function(kernel)(*args, **kwargs)


def function(kernel: str) -> Callable[..., Any]:
    """The kernel's public function, or what a method of `KVCache` calls."""
    found: Callable[..., Any] = attrgetter(kernel)(
        _cached_attention if kernel == "cached_attention" else npkernels
    )
    return found


def _copy(x: Array) -> Array:
    """A copy that lies in memory as x does; strides must not be negative."""
    extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True)) // x.itemsize
    buffer = np.empty(max(extent, 0), x.dtype)
    copy: Array = np.lib.stride_tricks.as_strided(buffer, x.shape, x.strides)
    copy[...] = x
    return copy


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Run the command and return its exit status: 1 if a kernel is wrong."""
    available = npkernels.available_isas()
    isas = list(dict.fromkeys(options.isa or available))
    for isa in isas:
        if isa not in available:
            parser.error(f"argument --isa: {isa!r} cannot be used; this CPU runs {', '.join(available)}")
    known = {
        kernel: make
        for family, kernels in cases.families().items()
        if options.family in (None, family)
        for kernel, make in kernels.items()
    }
    for kernel in options.kernel or ():
        if kernel not in known:
            parser.error(f"argument --kernel: {kernel!r} is not known; expected some of {', '.join(known)}")
    if options.kernel:
        known = {kernel: known[kernel] for kernel in options.kernel}
    start = time.perf_counter()
    rows = run(known, isas, options.seed)
    print(table(rows, isas))
    if "bfloat16" not in cases.dtypes():
        print("\nbfloat16 was not checked: it needs ml_dtypes (pip install 'npkernels[bfloat16]')")
    return _conclude(rows, time.perf_counter() - start)


def table(rows: Sequence[Row], isas: Sequence[str]) -> str:
    """Give one line per kernel and dtype: the largest error in ulp, and as a share of its allowance."""
    head = ["kernel", "dtype", "cases", *isas]
    lines = [[r.kernel, r.dtype, str(r.cases), *(str(r.cells[isa]) for isa in isas)] for r in rows]
    return report.table([head, *lines], left=2)


def _conclude(rows: Sequence[Row], seconds: float) -> int:
    calls = sum(row.cases * len(row.cells) for row in rows)
    print(
        f"\n{calls} calls in {seconds:.0f} s; largest errors, in ulp of the largest entry and of their allowance"
    )
    failed = [(row, isa, cell) for row in rows for isa, cell in row.cells.items() if cell.failures]
    if not failed:
        print("every result is within its allowance (2 x the error of plain NumPy + 2 ulp)")
        return 0
    print(f"{sum(len(cell.failures) for _, _, cell in failed)} results are wrong; the worst of each:")
    same: dict[str, list[str]] = {}
    for row, isa, cell in failed:
        same.setdefault(f"{len(cell.failures)} of {row.kernel} {row.dtype}, {cell.worst}", []).append(isa)
    for text, isas in same.items():
        print(f"{', '.join(isas)}: {text}")
    return 1
