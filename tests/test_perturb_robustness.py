"""Around the numbers of steps and projections: memory limits, threads, forks, scratch, leaks, the GIL."""

import threading

import ml_dtypes
import numpy as np
import pytest

import npkernels
from npkernels import perturb
from test_robustness import Guarded, run

ISAS = npkernels.available_isas()
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def every(x, c, g, mask, low, eps, out):
    """A call of each kernel with each norm and option."""
    perturb.sign_step(x, g, eps, bounds=(low, 1), mask=mask, return_nan_count=True, out=out)
    for norm in ("inf", 2, 1):
        radius = eps if norm == "inf" else 0.3
        for options in ({}, {"bounds": (-9, 9)}, {"mask": mask, "bounds": (low - 9, 9.0)}):
            perturb.steepest_step(x, g, radius, norm=norm, **options, out=out)
            perturb.project(x, c, radius, norm=norm, **options, out=out)
            perturb.pgd_step(x, c, g, radius, radius, norm=norm, **options, out=out)
        perturb.random_in_ball(c, radius, norm=norm, rng=1, out=out)
    perturb.momentum(x, g, mask=mask, out=out)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at_end", [True, False])
def test_no_kernel_touches_memory_beside_its_arrays(isa, at_end):
    rng = np.random.default_rng(0)
    with npkernels.use_isa(isa):
        for dtype in DTYPES:
            compute = np.float64 if dtype == np.float64 else np.float32
            for n in (1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 1023, 1025):
                guard = Guarded(at_end).copy
                x, c, g, out = (guard(rng.random((3, n)).astype(dtype)) for _ in range(4))
                mask, low, eps = (
                    guard(a) for a in (rng.random((3, n)) < 0.7, -rng.random(n), rng.random((3, n)))
                )
                every(x, c, g, mask, guard(low.astype(compute)), guard(eps.astype(compute)), out)


def work():
    """A call of each kernel that is large enough for several threads, as bytes."""
    rng = np.random.default_rng(0)
    x, c, g = rng.random((3, 37, 5003)).astype(np.float32)
    results = []
    for norm in ("inf", 2, 1):
        results += [
            perturb.steepest_step(x, g, 0.1, norm=norm),
            perturb.project(x, c, 0.3, norm=norm, bounds=(0, 1)),
            *perturb.pgd_step(x, c, g, 0.1, 0.3, norm=norm, return_nan_count=True),
            perturb.random_in_ball(c, 0.3, norm=norm, rng=5),
        ]
    results += [perturb.momentum(x, g), perturb.sign_step(x.T, g.T, 0.1)]
    return b"".join(np.asarray(r).tobytes() for r in results)


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_any_number_of_threads(isa):
    with npkernels.use_isa(isa):
        seen = set()
        for n in (1, 2, 3, 5):
            npkernels.set_num_threads(n)
            seen.add(work())
        npkernels.set_num_threads(None)
        assert len(seen) == 1


def test_many_python_threads_at_once():
    expected, results = work(), []
    threads = [threading.Thread(target=lambda: results.append(work() == expected)) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
    assert results == [True] * 6


SCRATCH = """
import numpy as np
from npkernels import perturb
def peak():
    return next(int(l.split()[1]) * 1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))
x, c, g, out = (np.random.default_rng(i).random((4, 1000001)) for i in range(4))
calls = [lambda norm=norm, f=f: f(norm) for norm in ('inf', 2, 1) for f in (
    lambda n: perturb.project(x, c, 0.5, norm=n, bounds=(0, 1), out=out),
    lambda n: perturb.pgd_step(x, c, g, 0.1, 0.5, norm=n, out=out),
    lambda n: perturb.random_in_ball(c, 0.5, norm=n, rng=1, out=out))]
calls += [lambda: perturb.momentum(x, g, out=out), lambda: perturb.sign_step(x, g, 0.1, bounds=(0, 1), out=out)]
for call in calls:
    call()
worst = 0
for call in calls:
    open('/proc/self/clear_refs', 'w').write('5')
    before = peak()
    call()
    worst = max(worst, peak() - before)
print(worst)
"""


def test_no_kernel_needs_more_than_a_megabyte_per_thread():
    assert int(run(SCRATCH, NPKERNELS_NUM_THREADS="2")) <= 2 * 2**20


def test_nothing_leaks():
    code = """
import sys
import numpy as np
from npkernels import perturb
def rss():
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS'))
x = np.ones((8, 2000), np.float32)
mask, low = np.ones((8, 1), bool), np.zeros(2000)
def calls():
    for _ in range(300):
        perturb.sign_step(x, x, 0.1, bounds=(low, 1), mask=mask, return_nan_count=True)
        perturb.pgd_step(x, x, x, np.ones(8), 0.1, norm=1)
        perturb.random_in_ball(x, 1.0, rng=1)
        for bad in (lambda: perturb.project(x, x[1:], 1), lambda: perturb.project(x, x, 1, bounds=(2, 3))):
            try:
                bad()
            except ValueError:
                pass
calls()
before, references = rss(), [sys.getrefcount(a) for a in (x, mask, low)]
for _ in range(4):
    calls()
print(rss() - before < 2000, references == [sys.getrefcount(a) for a in (x, mask, low)])
"""
    assert run(code) == "True True"


def test_inputs_may_be_read_only_and_never_change():
    arrays = [*np.random.default_rng(0).random((3, 4, 50))]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    x, c, g = arrays
    every(x, c, g, np.ones(50, bool), np.zeros(50), np.ones((4, 1)), None)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


def test_the_gil_is_released():
    x = np.random.default_rng(0).random((2, 3_000_000))
    done, steps = threading.Event(), 0

    def call():
        perturb.project(x, 0 * x, 5.0, norm=1)
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    while not done.is_set():
        steps += 1
    thread.join()
    assert steps > 100
