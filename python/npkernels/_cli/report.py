"""Measurements as a table for people and as JSON for machines."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from npkernels._cli.bench import Outcome, Run

SCHEMA = "npkernels-bench/1"


def text(run: Run) -> str:
    """Give the machine, its limits, and one line per workload."""
    width = max(map(len, run.about))
    lines = [f"{key:<{width}}  {value}" for key, value in run.about.items()]
    lines += [f"{'limits':<{width}}  {run.limits.text()}", "", table(rows(run))]
    lines += [
        "",
        *means(run),
        "time: median of interleaved calls; other libraries: their time as a multiple of it",
    ]
    return "\n".join(lines)


def rows(run: Run) -> list[list[str]]:
    """Give a head and a row per workload."""
    others = list(dict.fromkeys(name for o in run.outcomes for name in o.times if name != "npkernels"))
    head = ["workload", "npkernels", *others, "rate", "of the limit"]
    return [head, *(_row(o, others, run) for o in run.outcomes)]


def _row(outcome: Outcome, others: Sequence[str], run: Run) -> list[str]:
    share = outcome.share(run.limits)
    ratios = [f"{outcome.ratio(name):.2f} x" if name in outcome.times else "-" for name in others]
    limit = "-" if share is None else f"{100 * share:.0f} % of {outcome.workload.limit}"
    return [outcome.workload.name, duration(outcome.seconds()), *ratios, rate(outcome), limit]


def means(run: Run) -> list[str]:
    """Give the geometric means of the ratios of each kernel and dtype that has several large workloads."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in run.outcomes:
        if outcome.workload.limit != "none":
            groups.setdefault(f"{outcome.workload.kernel} {outcome.workload.dtype}", []).append(outcome)
    lines = []
    for group, outcomes in groups.items():
        for name in dict.fromkeys(name for o in outcomes for name in o.times if name != "npkernels"):
            ratios = [o.ratio(name) for o in outcomes if name in o.times]
            if len(ratios) > 2:
                mean = statistics.geometric_mean(ratios)
                lines.append(f"geometric mean of {len(ratios)} {group}, {name}: {mean:.2f} x")
    return [*lines, ""] if lines else []


def duration(seconds: float) -> str:
    """Give a time in the unit that suits it.

    Examples
    --------
    >>> duration(0.0123), duration(4.5e-6)
    ('12.3 ms', '4.50 us')
    """
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("us", 1e-6)
    return f"{seconds / scale:#.3g} {unit}".replace(". ", " ")


def rate(outcome: Outcome) -> str:
    """Give what the kernel did per second."""
    unit = "GFLOP/s" if outcome.workload.limit == "multiply-adds" else "GB/s"
    return f"{outcome.rate / 1e9:.1f} {unit}"


def table(cells: Sequence[Sequence[str]], left: int = 1) -> str:
    """Line up rows of text; all but the first columns to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    align: list[Callable[[str, int], str]] = [
        str.ljust if i < left else str.rjust for i in range(len(widths))
    ]
    return "\n".join(
        "  ".join(a(cell, w) for a, cell, w in zip(align, row, widths, strict=True)).rstrip() for row in cells
    )


def as_json(run: Run) -> dict[str, Any]:
    """Give all figures in SI units, as JSON takes them."""
    return {
        "schema": SCHEMA,
        "machine": dict(run.about),
        "limits": vars(run.limits),
        "workloads": [_workload(outcome, run) for outcome in run.outcomes],
    }


def _workload(outcome: Outcome, run: Run) -> dict[str, Any]:
    w = outcome.workload
    return {
        "name": w.name,
        "family": w.family,
        "kernel": w.kernel,
        "dtype": w.dtype,
        "size": w.size,
        "flops": w.flops,
        "bytes": w.bytes,
        "limit": w.limit,
        "rate": outcome.rate,
        "share_of_limit": outcome.share(run.limits),
        "contenders": {
            name: {
                "seconds": outcome.seconds(name),
                "best": min(times),
                "rounds": len(times),
                "ratio": outcome.ratio(name),
            }
            for name, times in outcome.times.items()
        },
    }
