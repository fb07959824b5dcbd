"""Small outside projects, built with nothing but what the installed package holds."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import npkernels

HERE = Path(__file__).parent
SOURCES = HERE / "consumers"
INCLUDE = Path(npkernels.get_include())
LIBRARY = INCLUDE.parent
LINK = [f"-I{INCLUDE}", f"-L{LIBRARY}", f"-Wl,-rpath,{LIBRARY}", "-lnpkernels", "-lm"]


def run(*command, cwd=None):
    """Run a command and return what it printed; its whole output is in the error if it fails."""
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def compiler(variable, name):
    """The command of a C or C++ compiler."""
    found = shutil.which(os.environ.get(variable, name))
    if found is None:
        pytest.skip(f"no compiler: neither ${variable} nor {name} is a command")
    return found


def cmake():
    """CMake's command, or that of the Python package."""
    found = shutil.which("cmake")
    return [found] if found else [sys.executable, "-m", "cmake"]


@pytest.mark.parametrize("language", ["c", "cpp"])
def test_cmake_project(language, tmp_path):
    chosen = (
        f"C_COMPILER={compiler('CC', 'cc')}" if language == "c" else f"CXX_COMPILER={compiler('CXX', 'c++')}"
    )
    options = [f"-Dnpkernels_DIR={npkernels.get_cmake_dir()}", f"-DCMAKE_{chosen}"]
    run(*cmake(), "-S", SOURCES / language, "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Release", *options)
    run(*cmake(), "--build", tmp_path)
    assert "agree with plain loops" in run(tmp_path / "consumer")


@pytest.mark.parametrize("standard", ["c99", "c17"])
def test_c_with_flags_alone(standard, tmp_path):
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-O1"]
    source, program = SOURCES / "c/main.c", tmp_path / "consumer"
    run(compiler("CC", "cc"), f"-std={standard}", *strict, source, "-o", program, *LINK)
    assert npkernels.__version__ in run(program)


def test_cpp_with_flags_alone(tmp_path):
    strict = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1"]
    command, program = compiler("CXX", "c++"), tmp_path / "consumer"
    run(command, *strict, SOURCES / "cpp/main.cpp", "-o", program, *LINK)
    assert run(program).splitlines()[-1].startswith(npkernels.available_isas()[-1])
    # The C header in C++, beside the C++ headers.
    both = tmp_path / "both.cpp"
    both.write_text(
        "".join(f'#include "npkernels/{h.name}"\n' for h in sorted((INCLUDE / "npkernels").iterdir()))
    )
    run(command, *strict, "-fsyntax-only", both, f"-I{INCLUDE}")


def test_c_examples_of_the_guide(tmp_path):
    """The C and C++ programs of docs/c-api.md compile and print what the guide says."""
    text = (HERE.parent / "docs/c-api.md").read_text()
    programs = re.findall(r"```(c|cpp)\n(.*?)```\n\nprints\n\n```text\n(.*?)```", text, re.S)
    assert [language for language, _, _ in programs] == ["c", "c", "cpp"]
    for i, (language, source, printed) in enumerate(programs):
        path, program = tmp_path / f"main{i}.{language}", tmp_path / f"program{i}"
        path.write_text(source)
        command = (
            [compiler("CC", "cc"), "-std=c99"] if language == "c" else [compiler("CXX", "c++"), "-std=c++17"]
        )
        run(*command, "-Wall", "-Wextra", "-Werror", path, "-o", program, *LINK)
        assert run(program) == printed


# --- Cython


@pytest.fixture(scope="module")
def cython_project(tmp_path_factory):
    """The directory of the Cython project, built in place."""
    compiler("CC", "cc")
    folder = tmp_path_factory.mktemp("cython") / "project"
    shutil.copytree(SOURCES / "cython", folder)
    run("env", "CFLAGS=-O1", sys.executable, "setup.py", "build_ext", "--inplace", cwd=folder)
    return folder


@pytest.fixture
def rowwise(cython_project, monkeypatch):
    monkeypatch.syspath_prepend(cython_project)
    return importlib.import_module("rowwise.memoryviews")


def test_cython_example_of_the_guide(tmp_path, monkeypatch):
    compiler("CC", "cc")
    (source,) = re.findall(r"```cython\n(.*?)```", (HERE.parent / "docs/c-api.md").read_text(), re.S)
    (tmp_path / "guide_rows.pyx").write_text(source)
    run(
        "env",
        "CFLAGS=-O1",
        sys.executable,
        "-m",
        "Cython.Build.Cythonize",
        "-i",
        "-3",
        "guide_rows.pyx",
        cwd=tmp_path,
    )
    monkeypatch.syspath_prepend(tmp_path)
    x, y = normal(3, 4), np.empty((3, 4))
    importlib.import_module("guide_rows").rows(x, y)
    assert_array_equal(y, npkernels.softmax(x, temperature=0.7))


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng((seed, *shape)).normal(0, 2, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cython_rows(rowwise, dtype):
    x = normal(6, 10, dtype=dtype)
    x.flags.writeable = False
    y = np.zeros((5, 3), dtype)
    rowwise.softmax_rows(x[:3, ::2], y.T, 0.5)
    assert_array_equal(y.T, npkernels.softmax(x[:3, ::2], temperature=0.5))

    row = np.empty(10, dtype)
    assert_array_equal(rowwise.softmax_first_row(x, row), npkernels.logsumexp(x[0]))
    assert_array_equal(row, npkernels.softmax(x[0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cython_row_functions(rowwise, dtype):
    x, dy, ids = normal(4, 9, dtype=dtype), normal(4, 9, dtype=dtype, seed=1), np.array([0, 8, 3, 3])
    maps, rows = np.empty((4, 4, 9), dtype), np.empty((5, 4), dtype)
    rowwise.every_row_function(x, dy, ids, maps, rows)
    log_y, t = npkernels.log_softmax(x), npkernels.token_log_probs(x, ids)
    assert_array_equal(maps[0], log_y)
    assert_array_equal(maps[1], npkernels.softmax_vjp(dy, npkernels.softmax(x)))
    assert_array_equal(maps[2], npkernels.log_softmax_vjp(dy, log_y))
    assert_array_equal(maps[3], npkernels.token_log_probs_vjp(t.log_prob, x, ids, t.lse))
    assert_array_equal(rows, [t.log_prob, t.lse, t.entropy, npkernels.logsumexp(x), npkernels.entropy(x)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cython_attention(rowwise, dtype):
    q, k, v = (
        normal(2, 3, 4, 8, dtype=dtype),
        normal(2, 2, 5, 8, dtype=dtype),
        normal(2, 2, 5, 6, dtype=dtype),
    )
    q = q.transpose(0, 2, 1, 3)  # (B, Hq, S, D)
    out, lse = np.empty((2, 4, 3, 6), dtype), np.empty((2, 4, 3), dtype)
    rowwise.attend(q, k, v, out, lse)
    wanted = npkernels.attention(q, k, v, causal="bottom_right", return_lse=True)
    assert_array_equal(out, wanted[0])
    assert_array_equal(lse, wanted[1])

    rowwise.attend_head(q[0, 0], k[0, 0], v[0, 0], out[0, 0], lse[0, 0], 0.25)
    assert_array_equal(out[0, 0], npkernels.attention(q[0, 0], k[0, 0], v[0, 0], scale=0.25))

    angle = normal(3, 2, dtype=dtype)
    y = np.empty_like(q)
    rowwise.rotate(q, np.cos(angle), np.sin(angle), y)
    kwargs = {"cos": np.cos(angle), "sin": np.sin(angle), "interleaved": True, "rotary_dim": 4}
    assert_array_equal(y, npkernels.rotary_embedding(q, **kwargs))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cython_attention_gradients(rowwise, dtype):
    q, k, v = (
        normal(2, 4, 3, 8, dtype=dtype),
        normal(2, 2, 5, 8, dtype=dtype),
        normal(2, 2, 5, 6, dtype=dtype),
    )
    q = np.ascontiguousarray(q.swapaxes(1, 2)).swapaxes(1, 2)  # (B, Hq, S, D) of a (B, S, Hq, D) array
    out, lse = npkernels.attention(q, k, v, causal="bottom_right", return_lse=True)
    dout, results = normal(*out.shape, dtype=dtype, seed=1), [np.empty_like(a) for a in (q, k, v, out, out)]
    rowwise.attention_gradients(dout, q, k, v, out, lse, *results)
    g = npkernels.attention_vjp(dout, q, k, v, out, lse, causal="bottom_right")
    wanted = [g.dq, g.dk, g.dv, *npkernels.attention_jvp(q, k, v, g.dq, g.dk, g.dv, causal="bottom_right")]
    for got, expected in zip(results, wanted, strict=True):
        assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cython_grpo(rowwise, dtype):
    rewards, ids, a = normal(12, dtype=dtype), np.array([7, -3, 7, -3] * 3), np.empty((2, 12), dtype)
    rowwise.advantages(rewards, ids, a)
    options = {"eps": 1e-6, "baseline": "leave_one_out", "scale": "none", "ddof": 0}
    assert_array_equal(a[0], npkernels.group_advantages(rewards, 4).advantages)
    assert_array_equal(a[1], npkernels.group_advantages(rewards, ids, **options).advantages)

    logp, old, logits = (normal(*s, dtype=dtype, seed=2) for s in ((12, 5), (12, 5), (12, 5, 7)))
    chosen = np.random.default_rng(0).integers(0, 7, (12, 5))
    dlogp, dlogits = np.empty_like(logp), np.empty_like(logits)
    losses = rowwise.losses(logp, old, a[0], dlogp, logits, chosen, dlogits)
    first = npkernels.policy_loss(logp, old, a[0], clip=(0.1, 0.3), aggregate="token-mean")
    second = npkernels.token_policy_loss(logits, chosen, old, a[0], loss="gspo")
    assert_array_equal(dlogp, first.dlogp)
    assert_array_equal(dlogits, second.dlogits)
    assert_allclose(losses, (first.loss, second.loss), rtol=1e-6)

    results = np.empty((3, 12, 5), dtype)
    rowwise.along_time(logp, old, 0.9, 0.8, results)
    assert_array_equal(results[0], npkernels.discounted_returns(logp, 0.9))
    assert_array_equal(results[1:], npkernels.gae(logp, old, gamma=0.9, lam=0.8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cython_steps(rowwise, dtype):
    x, center, grad = (normal(3, 16, dtype=dtype, seed=s)[:, ::2] for s in range(3))
    results = np.empty((4, 3, 8), dtype)
    rowwise.steps(x, center, grad, results)
    perturb = npkernels.perturb
    assert_array_equal(results[0], perturb.sign_step(x, grad, 0.1))
    assert_array_equal(results[1], perturb.project(x, center, 0.3, norm=1))
    assert_array_equal(results[2], perturb.pgd_step(x, center, grad, 0.1, 0.3, norm=2, bounds=(-5.0, 5.0)))
    assert_array_equal(results[3], perturb.random_in_ball(center, 0.3, norm=2, rng=7))
    with pytest.raises(ValueError, match=r"^project: center has a shape that does not fit$"):
        rowwise.steps(x, center[:2], grad, results)


def test_cython_with_a_masked_step(rowwise):
    direct = importlib.import_module("rowwise.direct")
    x, grad, mask = normal(3, 8, dtype=np.float32), normal(3, 8, dtype=np.float32, seed=1), normal(3, 8) > 0
    grad[0, :2] = np.nan
    wanted, nans = npkernels.perturb.sign_step(x, grad, 0.5, mask=mask, return_nan_count=True)
    assert direct.masked_sign_step(x, grad, mask.view(np.uint8), 0.5) == nans
    assert_array_equal(x, wanted)


def test_cython_softmax_agrees_with_plain_loops(rowwise):
    x, y = normal(3, 7), np.empty((3, 7))
    rowwise.softmax_rows(x, y, 2.0)
    for r in range(3):
        total = sum(np.exp(x[r, i] / 2.0) for i in range(7))
        assert_allclose(y[r], [np.exp(x[r, i] / 2.0) / total for i in range(7)], rtol=1e-14)


def test_cython_errors_name_function_and_argument(rowwise):
    x, y = normal(3, 7), np.full((3, 7), 42.0)
    with pytest.raises(ValueError, match=r"^softmax: temperature is out of range$"):
        rowwise.softmax_rows(x, y, -1.0)
    with pytest.raises(ValueError, match=r"^softmax: y has a shape that does not fit$"):
        rowwise.softmax_rows(x, y[:2], 1.0)
    with pytest.raises(ValueError, match=r"^softmax: y shares memory with another argument$"):
        rowwise.softmax_rows(y[:2], y[1:], 1.0)
    with pytest.raises(IndexError, match=r"^token_log_probs: ids holds an index that is out of range$"):
        rowwise.every_row_function(x, x, np.array([0, 1, 7]), np.empty((4, 3, 7)), np.empty((5, 3)))
    assert (y == 42).all()


def test_cython_shares_the_settings(rowwise):
    before = npkernels.get_num_threads()
    try:
        assert rowwise.threads(3) == npkernels.get_num_threads() == 3
    finally:
        npkernels.set_num_threads(None)
    assert npkernels.get_num_threads() == before
    with pytest.raises(ValueError, match="set_num_threads: n is out of range"):
        rowwise.threads(-1)


def test_cython_with_the_c_functions(rowwise):
    direct = importlib.import_module("rowwise.direct")
    assert direct.version() == npkernels.__version__
    x = normal(4, 5).astype(np.float16)
    y = np.empty_like(x)
    direct.softmax_float16(x.view(np.uint16), y.view(np.uint16), 0)
    assert_array_equal(y, npkernels.softmax(x, axis=0))
    with pytest.raises(ValueError, match="axis is out of bounds"):
        direct.softmax_float16(x.view(np.uint16), y.view(np.uint16), 2)
