"""npkernels.numba: the answers of the Python functions from compiled code, errors, caching, the example."""

import ctypes
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import npkernels
from npkernels import perturb

numba = pytest.importorskip("numba")
nkn = pytest.importorskip("npkernels.numba")
HERE = Path(__file__).parent


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng((seed, *shape)).normal(0, 2, shape).astype(dtype)


@numba.njit(nogil=True)
def rows(x, y, lse, axis, temperature):
    nkn.log_softmax(x, y, axis, temperature)
    nkn.logsumexp(x, lse, axis, temperature)
    z = np.empty_like(x)
    nkn.softmax(x, z, axis, temperature)
    return z


@numba.njit(nogil=True)
def of_tokens(logits, ids, q, k, v, out, lse):
    log_prob, norm, entropy = (
        np.empty(len(ids), logits.dtype),
        np.empty(len(ids), logits.dtype),
        np.empty(len(ids), logits.dtype),
    )
    nkn.token_log_probs(logits, ids, log_prob, norm, entropy, 0.5)
    nkn.attention(q, k, v, out, lse, 2, 0.25)
    return log_prob, norm, entropy


@numba.njit(nogil=True)
def of_groups(rewards, ids, r, v):
    by_size, by_id = np.empty_like(rewards), np.empty_like(rewards)
    returns, advantages, targets = np.empty_like(r), np.empty_like(r), np.empty_like(r)
    nkn.group_advantages(rewards, 4, by_size)
    nkn.group_advantages_by_id(rewards, ids, by_id, 1e-6, 1, 2, 0)
    nkn.discounted_returns(r, 0.9, returns)
    nkn.gae(r, v, 0.9, 0.8, advantages, targets)
    return by_size, by_id, returns, advantages, targets


@numba.njit(nogil=True)
def of_samples(x, c, g, norm):
    s, p, q, r = np.empty_like(x), np.empty_like(x), np.empty_like(x), np.empty_like(x)
    nkn.sign_step(x, g, 0.1, s, -1.0, 1.0)
    nkn.project(x, c, 0.3, p, norm, -9.0, 9.0)
    nkn.pgd_step(x, c, g, 0.1, 0.3, q, norm, -9.0, 9.0)
    nkn.random_in_ball(c, 0.3, 2**63 + 5, r, norm)
    return s, p, q, r


def test_rows():
    dtype = np.float64  # float32 is compiled below
    x = normal(4, 6, 10, dtype=dtype)[:, ::-2, ::2].transpose(1, 0, 2)  # strides of either sign
    y, lse = np.zeros((3, 4, 5), dtype), np.empty((3, 5), dtype)
    z = rows(x, y, lse, 1, 0.7)
    assert_array_equal(y, npkernels.log_softmax(x, 1, temperature=0.7))
    assert_array_equal(z, npkernels.softmax(x, 1, temperature=0.7))
    assert_array_equal(lse, npkernels.logsumexp(x, 1, temperature=0.7))


def test_tokens_and_attention():
    dtype = np.float32
    logits, ids = normal(5, 20, dtype=dtype), np.array([0, 19, 3, 3, 7])
    q, k, v = (
        normal(2, 4, 3, 8, dtype=dtype),
        normal(2, 2, 5, 8, dtype=dtype),
        normal(2, 2, 5, 6, dtype=dtype),
    )
    out, lse = np.empty((2, 4, 3, 6), dtype), np.empty((2, 4, 3), dtype)
    told = of_tokens(logits, ids, q, k, v, out, lse)
    t = npkernels.token_log_probs(logits, ids, temperature=0.5)
    for got, wanted in zip(told, (t.log_prob, t.lse, t.entropy), strict=True):
        assert_array_equal(got, wanted)
    wanted = npkernels.attention(q, k, v, causal="bottom_right", scale=0.25, return_lse=True)
    assert_array_equal(out, wanted[0])
    assert_array_equal(lse, wanted[1])


def test_groups_and_returns():
    rewards, ids = normal(12), np.array([7, -3, 7, -3] * 3)
    r, v = normal(3, 9), normal(3, 9, seed=1)
    by_size, by_id, *returns = of_groups(rewards, ids, r, v)
    assert_array_equal(by_size, npkernels.group_advantages(rewards, 4).advantages)
    options = {"eps": 1e-6, "baseline": "leave_one_out", "scale": "none", "ddof": 0}
    assert_array_equal(by_id, npkernels.group_advantages(rewards, ids, **options).advantages)
    expected = npkernels.discounted_returns(r, 0.9), *npkernels.gae(r, v, gamma=0.9, lam=0.8)
    for got, wanted in zip(returns, expected, strict=True):
        assert_array_equal(got, wanted)


@pytest.mark.parametrize("norm", ["inf", 1, 2])
def test_steps(norm):
    x, c, g = (normal(3, 8, dtype=np.float32, seed=s) for s in range(3))
    s, p, q, r = of_samples(x, c, g, 0 if norm == "inf" else norm)
    assert_array_equal(s, perturb.sign_step(x, g, 0.1, bounds=(-1, 1)))
    assert_array_equal(p, perturb.project(x, c, 0.3, norm=norm, bounds=(-9, 9)))
    assert_array_equal(q, perturb.pgd_step(x, c, g, 0.1, 0.3, norm=norm, bounds=(-9, 9)))
    assert_array_equal(r, perturb.random_in_ball(c, 0.3, norm=norm, rng=2**63 + 5))


def test_many_calls_in_a_parallel_loop():
    @numba.njit(parallel=True)
    def each(x, y):
        for i in numba.prange(len(x)):
            nkn.softmax(x[i], y[i])

    x = normal(500, 3, 7)
    y = np.empty_like(x)
    each(x, y)
    assert_array_equal(y, npkernels.softmax(x))
    with pytest.raises(SystemError) as caught:
        each(x, y[:, :2])
    assert str(caught.value.__cause__) == "softmax: y has a shape that does not fit"


def test_all_threads_of_a_parallel_loop_take_the_setting_of_the_process():
    threads = ctypes.CFUNCTYPE(ctypes.c_int)(npkernels.get_address("npk_num_threads"))

    @numba.njit(parallel=True)
    def each(n):
        for i in numba.prange(len(n)):
            n[i] = threads()

    n = np.zeros(8, np.int64)
    npkernels.set_num_threads(1)
    try:
        each(n)
    finally:
        npkernels.set_num_threads(None)
    assert (n == 1).all()


def test_errors_name_function_and_argument():
    x = normal(4, 6, 10)[:, ::-2, ::2].transpose(1, 0, 2)  # the types that test_rows has compiled
    y, lse = np.full((3, 4, 5), 42.0), np.full((3, 5), 42.0)
    with pytest.raises(ValueError, match=r"^log_softmax: temperature is out of range$"):
        rows(x, y, lse, 1, -1.0)
    with pytest.raises(ValueError, match=r"^log_softmax: y has a shape that does not fit$"):
        rows(x, y[:2], lse, 1, 1.0)
    with pytest.raises(ValueError, match=r"^log_softmax: axis is out of bounds$"):
        rows(x, y, lse, 3, 1.0)
    with pytest.raises(ValueError, match=r"^logsumexp: lse has a shape that does not fit$"):
        rows(x, np.empty_like(y), lse[:2], 1, 1.0)
    assert (y == 42).all()
    assert (lse == 42).all()
    x, c, g = (normal(3, 8, dtype=np.float32, seed=s) for s in range(3))
    with pytest.raises(ValueError, match=r"^project: center lies|^project: center is out of range$"):
        of_samples(x, c + 99, g, 0)
    with pytest.raises(numba.core.errors.TypingError, match="is not an array of float32, float64"):
        nkn.describe(x.astype(np.int16))
    with pytest.raises(numba.core.errors.TypingError, match="is not an array of float32, float64"):
        nkn.describe((1.0, 2.0))


def test_integers_are_not_cut():
    x, y = normal(2, 3), np.full((2, 3), 42.0)
    numbers, lse = normal(4), np.full((1, 1, 2), 42.0)
    error = numba.core.errors.TypingError
    with pytest.raises(error, match="float64 came where an integer is expected"):
        nkn.softmax(x, y, 0.7)  # a temperature in the place of the axis
    with pytest.raises(error, match="float64 came where an integer is expected"):
        nkn.group_advantages(numbers, 2.5, np.empty(4))
    with pytest.raises(error, match="float64 came where an integer is expected"):
        nkn.random_in_ball(x, 0.1, 5.5, y)
    with pytest.raises(error, match="unicode_type came where an integer is expected"):
        nkn.pgd_step(x, x, x, 0.1, 0.3, y, "inf")
    for beyond in (2**32 + 1, -(2**32)):  # its lower half is a number that fits
        with pytest.raises(ValueError, match=r"an integer \(axis, causal, norm \.\.\.\) is out of range"):
            nkn.softmax(x, y, beyond)
        with pytest.raises(ValueError, match="is out of range"):
            nkn.pgd_step(x, x, x, 0.1, 0.3, y, beyond)
        with pytest.raises(ValueError, match="is out of range"):
            nkn.attention(x[None, None], x[None, None], x[None, None], y[None, None], lse, beyond)
        with pytest.raises(ValueError, match="is out of range"):
            nkn.group_advantages(numbers, 2, y.ravel()[:4], 1e-4, beyond)
    assert (y == 42).all()
    assert (lse == 42).all()
    nkn.softmax(x, y, np.int8(-1))
    assert_array_equal(y, npkernels.softmax(x))


def test_read_only_arrays_are_read_and_not_written():
    x, y = np.zeros((2, 3)), np.full((2, 3), 42.0)
    for a in (x, y):
        a.flags.writeable = False
    with pytest.raises(
        ValueError, match=r"an array for results is read-only; expected one that can be written"
    ):
        nkn.softmax(x, y)
    assert (y == 42).all()
    out = np.empty((2, 3))
    nkn.softmax(x, out)
    assert_array_equal(out, npkernels.softmax(x))


CACHED = """
import numba, numpy as np, npkernels.numba as nkn

@numba.njit(cache=True)
def half(x, y):
    nkn.softmax(x, y)
    return y[0]

if __name__ == "__main__":
    print(half(np.zeros(2), np.empty(2)), sum(half.stats.cache_hits.values()))
"""


def test_compiled_code_can_be_cached(tmp_path):
    (tmp_path / "cached.py").write_text(CACHED)
    said = [
        subprocess.run(
            [sys.executable, "cached.py"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert said == ["0.5 0\n", "0.5 1\n"]


def test_the_example_project(capsys):
    runpy.run_path(str(HERE / "consumers/numba/main.py"), run_name="__main__")
    assert "agree" in capsys.readouterr().out


def test_the_example_of_the_guide(capsys):
    (source,) = re.findall(r"```python numba\n(.*?)```", (HERE.parent / "docs/c-api.md").read_text(), re.S)
    exec(compile(source, "guide", "exec"), {})
    assert capsys.readouterr().out == "[0.5 0.5]\n"


def test_an_address_in_compiled_code():
    number = ctypes.c_int64  # a pointer, as Numba has it
    softmax = ctypes.CFUNCTYPE(ctypes.c_int, number, ctypes.c_int, ctypes.c_double, number, number)(
        npkernels.get_address("npk_softmax")
    )

    @numba.njit
    def call(x, y):
        dx, dy = nkn.describe(x), nkn.describe(y)
        status = softmax(nkn.address(dx), -1, 1.0, 0, nkn.address(dy))
        return status, x[0, 0] + y[0, 0] + dx[0] + dy[0]  # all of them live until here

    x = normal(2, 3)
    y = np.empty_like(x)
    assert call(x, y)[0] == 0
    assert_array_equal(y, npkernels.softmax(x))
    assert call(x, y[:1])[0] == 2  # NPK_BAD_SHAPE
