"""`python -m npkernels bench`: every kernel beside NumPy and its peers, and beside the limit of the machine."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import npkernels
from npkernels._cli import machine, peers
from npkernels._cli.progress import progress
from npkernels._cli.workloads import Call, Workload, workloads

BATCH = 0.01  # seconds: shorter calls are timed many at a time
SETTLE = 0.005  # seconds for the threads of the library before to fall asleep
SETTLE_BLAS = 0.12  # those of NumPy's OpenBLAS look for new work that long, and take half of two cores


@dataclass(frozen=True)
class Outcome:
    """The times of one workload: seconds a call, of each contender, one for each round."""

    workload: Workload
    times: Mapping[str, Sequence[float]]

    def seconds(self, name: str = "npkernels") -> float:
        """Give the median time of a call."""
        return statistics.median(self.times[name])

    def ratio(self, name: str) -> float:
        """How many times as long as ours the call of another takes."""
        return self.seconds(name) / self.seconds()

    @property
    def rate(self) -> float:
        """Operations or bytes per second, whichever the workload's limit is about."""
        work = self.workload.flops if self.workload.limit == "multiply-adds" else self.workload.bytes
        return work / self.seconds()

    def share(self, limits: machine.Limits) -> float | None:
        """What part of the machine's limit the kernel reaches; None where it has no such limit."""
        return None if self.workload.limit == "none" else self.rate / limits.of(self.workload.limit)


@dataclass(frozen=True)
class Run:
    """All that was measured."""

    about: Mapping[str, str]
    limits: machine.Limits
    outcomes: Sequence[Outcome]


def measure(workload: Workload, names: Sequence[str], seconds: float) -> Outcome:
    """Check the answers of all contenders, then time them in turns: A B C A B C."""
    inputs = workload.inputs()
    calls = {name: peers.verified_call(name, workload, inputs) for name in peers.able(workload, names)}
    return Outcome(workload, interleave(calls, seconds))


def interleave(
    calls: Mapping[str, Call], seconds: float, least: int = 3, most: int = 25
) -> dict[str, list[float]]:
    """Time the calls in turns, `least` to `most` rounds, until the seconds are over."""
    single = {name: min(_time(call, 1) for _ in range(2)) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    before = [*calls][-1]  # who was called last
    with _no_garbage_collection():
        for done in range(most):
            if done >= least and time.perf_counter() - start > seconds:
                break
            for name, call in calls.items():
                time.sleep(SETTLE_BLAS if before == "numpy" else SETTLE)
                before = name
                if single[name] < 2 * BATCH:
                    call()  # brings its code and data back into the cache, and its threads to life
                times[name].append(_time(call, max(1, math.ceil(BATCH / single[name]))))
    return times


def _time(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in repeat(None, calls):
        call()
    return (time.perf_counter() - start) / calls


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run(chosen: Sequence[Workload], names: Sequence[str], threads: int, quick: bool) -> Run:
    """Probe the machine, measure the workloads, and probe again: the better figures are the limits."""
    with peers.threads(threads, names) as told:
        about = machine.describe(names)
        if not told:
            about["threads"] += "; NumPy uses its own number (threadpoolctl is not installed)"
        before = machine.probe(quick)
        seconds = 1.0 if quick else 6.0
        outcomes = [measure(w, names, seconds) for w in progress(chosen, "bench", lambda w: w.name)]
        return Run(about, before.best(machine.probe(quick)), outcomes)


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    try:
        names = peers.choose(options.against)
    except ValueError as error:
        parser.error(f"argument --against: {error}")
    for name in ("html", "json"):  # before the minutes that the measurements take
        if problem := _problem(getattr(options, name)):
            parser.error(f"argument --{name}: {problem}")
    if options.html and options.json and Path(options.html).resolve() == Path(options.json).resolve():
        parser.error("argument --html: the file is that of --json")
    if options.html and importlib.util.find_spec("matplotlib") is None:
        parser.error("argument --html: the plots need matplotlib (pip install 'npkernels[plot]')")
    chosen = [
        w
        for w in workloads()
        if options.family in (None, w.family) and options.only in w.name and (w.quick or not options.quick)
    ]
    if not chosen:
        parser.error(f"argument --only: {_none_chosen(options)}")
    if options.threads is not None:
        try:
            npkernels.set_num_threads(options.threads)
        except ValueError as error:
            parser.error(f"argument --threads: {error}")
    from npkernels._cli import report

    measured = run(chosen, names, npkernels.get_num_threads(), options.quick)
    failed = False
    for name in ("json", "html"):  # before the table, which somebody may have stopped reading
        if file := getattr(options, name):
            try:
                Path(file).write_text(_report(name, measured), encoding="utf-8")
            except OSError as error:
                print(f"bench: {file!r} could not be written: {error.strerror}", file=sys.stderr)
                failed = True
    print(report.text(measured))
    return int(failed)


def _problem(file: str | None) -> str:
    """Why a report cannot be written to a file, as far as that can be known before; empty if it can."""
    if file is None:
        return ""
    path = Path(file)
    if not file or path.is_dir():
        return (
            f"{file!r} is a folder; expected the name of a file" if file else "the name of the file is empty"
        )
    if not path.parent.is_dir():
        return f"there is no folder {str(path.parent)!r}"
    return (
        "" if os.access(path if path.exists() else path.parent, os.W_OK) else f"{file!r} cannot be written to"
    )


def _none_chosen(options: argparse.Namespace) -> str:
    """Say that no workload is left, and which there are."""
    family = f" of the family {options.family}" if options.family else ""
    known = [w for w in workloads() if options.family in (None, w.family)]
    if any(options.only in w.name for w in known):
        return f"no quick workload{family} has {options.only!r} in its name; there is one without --quick"
    kernels = ", ".join(dict.fromkeys(w.kernel for w in known))
    return (
        f"no workload{family} has {options.only!r} in its name; a name is like {known[0].name!r}, and the kernels "
        f"are {kernels}"
    )


def _report(kind: str, measured: Run) -> str:
    if kind == "html":
        from npkernels._cli import page

        return page.html(measured)
    from npkernels._cli import report

    return json.dumps(report.as_json(measured), indent=1) + "\n"
