"""Limits of others hold for npkernels' threads: threadpoolctl, joblib's workers, Dask's workers, thread pools."""

import json
import os
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

import npkernels

threadpoolctl = pytest.importorskip("threadpoolctl")
pytest.importorskip("joblib")
pytest.importorskip("distributed")

OWN = [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "openmp"]
LIMIT = next(n for n in (2, 3) if n not in OWN)  # OpenMP's own number is no limit
MANY = 7
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "threads.md"


def run(code, tmp_path, **environment):
    """What a script prints, as JSON; without the limits that this process may be under."""
    script = tmp_path / "script.py"
    script.write_text(code)
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    path = {"PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run(
        [sys.executable, str(script)], env={**clean, **path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def many():
    npkernels.set_num_threads(MANY)
    yield
    npkernels.set_num_threads(None)


# --- threadpoolctl


def test_threadpoolctl_lists_the_library_that_npkernels_uses(many):
    found = [lib for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "openmp"]
    assert any("gomp" in lib["prefix"] or "omp" in lib["prefix"] for lib in found)


@pytest.mark.parametrize("limits", [LIMIT, {"openmp": LIMIT}])
def test_threadpoolctl_limits_the_calling_thread(many, limits):
    with threadpoolctl.threadpool_limits(limits):
        assert npkernels.get_num_threads() == LIMIT
        with npkernels.num_threads(5):  # a limit holds on top of another
            assert npkernels.get_num_threads() == LIMIT
        with npkernels.num_threads(1):
            assert npkernels.get_num_threads() == 1
    assert npkernels.get_num_threads() == MANY
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert npkernels.get_num_threads() == MANY


def test_a_controller_and_a_decorator_of_threadpoolctl(many):
    controller = threadpoolctl.ThreadpoolController()
    with controller.limit(limits=LIMIT):
        assert npkernels.get_num_threads() == LIMIT

    @controller.wrap(limits=1, user_api="openmp")
    def inside():
        return npkernels.get_num_threads()

    assert inside() == 1


# --- many Python threads at once


def test_limits_of_a_thread_are_its_own(many):
    barrier = Barrier(3, timeout=20)

    def count(limit):
        if limit is None:
            barrier.wait()
            return npkernels.get_num_threads()
        with limit:
            barrier.wait()
            return npkernels.get_num_threads()

    with ThreadPoolExecutor(3) as pool:
        limits = [npkernels.num_threads(1), threadpoolctl.threadpool_limits(1), None]
        first, _, last = pool.map(count, limits)
    assert (first, last) == (1, MANY)


def test_threadpoolctl_in_a_worker_thread_limits_that_thread(many):
    def count():
        with threadpoolctl.threadpool_limits(LIMIT):
            return npkernels.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(count).result() == LIMIT
        assert pool.submit(npkernels.get_num_threads).result() == MANY


@pytest.mark.parametrize("threads", [1, 2])
def test_a_pool_of_threads_gets_the_same_bits(threads):
    rng = np.random.default_rng(0)
    tasks = [
        tuple(rng.standard_normal((1, 4, 96, 32), dtype=np.float32) for _ in range(3)) for _ in range(16)
    ]
    logits = rng.standard_normal((64, 5000), dtype=np.float32)

    def work(qkv):
        with npkernels.num_threads(threads):
            out, lse = npkernels.attention(*qkv, causal=True, return_lse=True)
            grads = npkernels.attention_vjp(out, *qkv, out, lse, causal=True)
            return out, grads.dq, grads.dk, grads.dv, npkernels.softmax(logits)

    alone = [work(task) for task in tasks]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, tasks))
    for results, expected in zip(together, alone, strict=True):
        assert all(np.array_equal(r, e) for r, e in zip(results, expected, strict=True))


# --- joblib

JOBLIB = """
import json
import joblib

def count(_):
    import npkernels
    return npkernels.get_num_threads(), npkernels._core.num_threads_source()

if __name__ == "__main__":
    {before}
    with joblib.parallel_config({config}):
        counts = joblib.Parallel(n_jobs=2)(joblib.delayed(count)(i) for i in range(4))
    print(json.dumps([sorted(set(n for n, _ in counts)), counts[0][1]]))
"""


def test_joblib_limits_its_processes(tmp_path):
    code = JOBLIB.format(before="", config="'loky', inner_max_num_threads=3")
    assert run(code, tmp_path) == [[3], "OMP_NUM_THREADS"]
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert run(JOBLIB.format(before="", config="'loky'"), tmp_path)[0] == [share]


def test_an_own_variable_wins_over_joblibs(tmp_path):
    code = JOBLIB.format(before="", config="'loky', inner_max_num_threads=3")
    assert run(code, tmp_path, NPKERNELS_NUM_THREADS="5") == [[5], "NPKERNELS_NUM_THREADS"]


def test_joblibs_threads_take_the_process_setting(tmp_path):
    setting = "import npkernels; npkernels.set_num_threads(2)"
    assert run(JOBLIB.format(before=setting, config="'threading'"), tmp_path) == [[2], "set_num_threads"]


# --- Dask

DASK = """
import json
from dask.distributed import Client, LocalCluster

def count():
    import npkernels
    return npkernels.get_num_threads(), npkernels._core.num_threads_source()

if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, {options}) as cluster:
        with Client(cluster) as client:
            print(json.dumps(client.submit(count).result()))
"""


def test_dask_limits_its_processes(tmp_path):
    assert run(DASK.format(options="processes=True"), tmp_path) == [1, "OMP_NUM_THREADS"]


def test_dasks_configuration_sets_another_number(tmp_path):
    code = "import dask\ndask.config.set({'distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS': 3})\n"
    assert run(code + DASK.format(options="processes=True"), tmp_path)[0] == 3


def test_dasks_threads_take_the_process_setting(tmp_path):
    code = "import npkernels\nnpkernels.set_num_threads(2)\n"
    assert run(code + DASK.format(options="processes=False"), tmp_path) == [2, "set_num_threads"]


BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.findall(r"import (\w+)", block)[0])
def test_the_page_runs(block, tmp_path):
    assert run(block + "\nprint(0)", tmp_path) == 0
