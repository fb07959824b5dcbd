"""What the measurements were taken on, and what it can do at most."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from npkernels import _core
from npkernels._cli import peers
from npkernels._cli.workloads import Limit
from npkernels._config import config


@dataclass(frozen=True)
class Limits:
    """Most operations (float32 multiply-adds, two each) and most bytes (read + written) per second."""

    multiply_adds: float
    read: float
    copy: float
    stream_copy: float

    def of(self, limit: Limit) -> float:
        """What bounds a workload; a copy may go through the cache or past it."""
        return {
            "multiply-adds": self.multiply_adds,
            "read": self.read,
            "copy": max(self.copy, self.stream_copy),
            "none": float("inf"),
        }[limit]

    def best(self, other: Limits) -> Limits:
        """Give the better figure of two probes, each."""
        return Limits(*map(max, zip(vars(self).values(), vars(other).values(), strict=True)))

    def text(self) -> str:
        """Say them in one line."""
        reads, copies = f"read {self.read / 1e9:.1f} GB/s", f"copy {self.copy / 1e9:.1f} GB/s"
        streams = f"copy past the cache {self.stream_copy / 1e9:.1f} GB/s (read + written)"
        return f"float32 multiply-adds {self.multiply_adds / 1e9:.0f} GFLOP/s, {reads}, {copies}, {streams}"


def probe(quick: bool) -> Limits:
    """Measure the limits with the instruction set and threads in use."""
    flops = float(_core.peak_flops(10))
    read, copy, stream = _core.peak_bandwidth((128 if quick else 512) << 20, 10)
    return Limits(flops, float(read), float(copy), float(stream))


def describe(names: Sequence[str]) -> dict[str, str]:
    """Give what a figure has to be read with: processor, instruction set, threads, versions."""
    known = config()
    versions = ", ".join(f"{name} {version}" for name, version in peers.versions(names).items())
    return {
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} usable",
        "instruction set": known["ISA in use"],
        "threads": known["threads"],
        "npkernels": f"{known['npkernels']}, {known['compiler']}",
        "python": platform.python_version(),
        "libraries": versions,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load at the start": ", ".join(f"{x:.1f}" for x in os.getloadavg())
        if hasattr(os, "getloadavg")
        else "unknown",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = dict(part.split(":", 1) for part in lines if ":" in part)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    if "model name" not in names:
        return platform.processor() or platform.machine()
    model = f"family {names['cpu family']} model {names['model']}" if "cpu family" in names else ""
    return f"{names['model name']} ({model})" if model else names["model name"]
