"""What must hold around the numbers: memory limits, threads, forks, instruction sets, the GIL, leaks."""

import ctypes
import dataclasses
import mmap
import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import npkernels

ISAS = npkernels.available_isas()
PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Guarded:
    """Arrays between two pages that nobody may touch; `at_end` puts them against the last one, else the first."""

    def __init__(self, at_end):
        self.at_end = at_end
        self.maps = []

    def copy(self, x):
        x = np.ascontiguousarray(x)
        size = max(1, -(-x.nbytes // PAGE)) * PAGE
        memory = mmap.mmap(-1, size + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (start, start + PAGE + size):
            assert LIBC.mprotect(page, PAGE, 0) == 0
        self.maps.append(memory)
        offset = PAGE + (size - x.nbytes if self.at_end else 0)
        result = np.frombuffer(memory, x.dtype, x.size, offset).reshape(x.shape)
        result[...] = x
        return result


def dtypes():
    found = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)]
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return [*found, np.dtype(ml_dtypes.bfloat16)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at_end", [True, False])
def test_no_kernel_touches_memory_beside_its_arrays(isa, at_end):
    rng = np.random.default_rng(0)
    with npkernels.use_isa(isa):
        for dtype in dtypes():
            for n in (1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 1023, 1024, 1025):
                memory = Guarded(at_end)
                guard = memory.copy
                x, dx, out = (guard(rng.standard_normal((3, n)).astype(dtype)) for _ in range(3))
                mask = guard(rng.random((3, n)) < 0.7)
                ids = guard(rng.integers(0, n, 3))
                for options in ({}, {"mask": mask}, {"temperature": 0.5}, {"axis": 0}):
                    y = npkernels.softmax(x, out=out, **options)
                    npkernels.softmax_vjp(dx, y, out=out, **options)
                    npkernels.log_softmax_vjp(dx, npkernels.log_softmax(x, out=out, **options), **options)
                    lse = npkernels.logsumexp(x, **options)
                    npkernels.logsumexp_vjp(lse, x, lse, out=out, **options)
                    npkernels.softmax_jvp(x, dx, out=(guard(x), out), **options)
                    npkernels.entropy(x, **options)
                stats = npkernels.token_log_probs(x, ids, mask=mask)
                npkernels.token_log_probs_vjp(stats.log_prob, x, ids, stats.lse, mask=mask, out=out)
                npkernels.cross_entropy(x, ids, label_smoothing=0.1, return_grad=True, out=out)
                npkernels.rotary_embedding(x[:, : n // 2 * 2], out=out[:, : n // 2 * 2])
                npkernels.merge_attention([x, dx], [np.zeros(3), np.ones(3)], out=out)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at_end", [True, False])
def test_attention_touches_no_memory_beside_its_arrays(isa, at_end):
    rng = np.random.default_rng(0)
    with npkernels.use_isa(isa):
        for dtype in dtypes():
            row = np.float64 if dtype == np.float64 else np.float32
            for S, K, D, Dv in [
                (1, 1, 1, 1),
                (47, 129, 7, 9),
                (49, 127, 17, 3),
                (3, 5, 64, 8),
                (17, 257, 16, 31),
                (1, 300, 24, 33),
            ]:
                memory = Guarded(at_end)
                guard = memory.copy

                def numbers(*shape, guard=guard, dtype=dtype):
                    return guard(rng.standard_normal(shape).astype(dtype))

                q, k, v = numbers(2, 2, S, D), numbers(2, 2, K, D), numbers(2, 2, K, Dv)
                out, dout = numbers(2, 2, S, Dv), numbers(2, 2, S, Dv)
                everything = {
                    "mask": guard(rng.random((2, 2, S, K)) < 0.8),
                    "bias": numbers(S, K),
                    "causal": "bottom_right",
                    "softcap": 2.0,
                    "alibi_slopes": numbers(2, 2, dtype=row),
                    "sinks": numbers(2, dtype=row),
                    "kv_lengths": guard(np.array([K, K // 2])),
                }
                window = {"window": (20, 3), "q_offset": guard(np.array([K // 2, -1]))}
                one_byte = {"mask": guard(everything["mask"][:1, :1, :, :1])}
                dropout = {"dropout_p": 0.3, "dropout_seed": 1}
                npkernels.attention(q, k, v, out=out)
                for options in ({}, everything, window, one_byte, dropout):
                    o, lse = (guard(x) for x in npkernels.attention(q, k, v, **options, return_lse=True))
                    wanted = {"want_dbias": True, "want_dsinks": True} if options is everything else {}
                    npkernels.attention_vjp(dout, q, k, v, o, lse, dlse=lse, **options, **wanted)
                    if options is not dropout:
                        npkernels.attention_jvp(q, k, v, q, k, v, **options)
                        npkernels.attention_weights(q, k, **options)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at_end", [True, False])
def test_packed_sequences_touch_no_memory_beside_their_arrays(isa, at_end):
    rng = np.random.default_rng(0)
    with npkernels.use_isa(isa):
        for dtype in dtypes():
            for lengths_q, lengths_k in [([1], [1]), ([47, 3, 0], [129, 1, 5]), ([1, 1, 1], [300, 17, 31])]:
                guard = Guarded(at_end).copy
                cu_q, cu_k = (guard(np.cumsum([0, *n]).astype(np.int32)) for n in (lengths_q, lengths_k))
                shapes = ((sum(lengths_q), 4, 17), (sum(lengths_k), 2, 17), (sum(lengths_k), 2, 9))
                q, k, v = (guard(rng.standard_normal(shape).astype(dtype)) for shape in shapes)
                for options in ({}, {"causal": "bottom_right", "window": (9, -1)}):
                    o, lse = (
                        guard(x)
                        for x in npkernels.attention_varlen(q, k, v, cu_q, cu_k, **options, return_lse=True)
                    )
                    npkernels.attention_varlen_vjp(o, q, k, v, o, lse, cu_q, cu_k, **options)


def leaves(grads):
    return [getattr(grads, f.name) for f in dataclasses.fields(grads) if getattr(grads, f.name) is not None]


def work():
    """A call of each kernel that is large enough for several threads, as bytes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((37, 5003)).astype(np.float32)
    ids = rng.integers(0, 5003, 37)
    q, k, v = rng.standard_normal((3, 1, 3, 300, 32)).astype(np.float32)
    t = npkernels.token_log_probs(x, ids)
    out, lse = npkernels.attention(q, k, v, causal=True, return_lse=True)
    one, one_lse = npkernels.attention(q[:, :1], k[:, :1], v[:, :1], return_lse=True)
    few, few_lse = npkernels.attention(q[:, :, :1], k, v, return_lse=True)
    cu, packed = np.array([0, 7, 130, 131, 300]), [y[0].swapaxes(0, 1) for y in (q, k, v)]
    varlen, varlen_lse = npkernels.attention_varlen(*packed, cu, cu, causal=True, return_lse=True)
    weights = rng.standard_normal((4, 32, 32)).astype(np.float32)
    results = [
        npkernels.softmax(x),
        npkernels.log_softmax(x, axis=0),
        npkernels.logsumexp(x),
        npkernels.entropy(x),
        *npkernels.softmax_jvp(x, x),
        npkernels.softmax_vjp(x, x),
        t.log_prob,
        t.sum_p2,
        npkernels.token_log_probs_vjp(t.entropy, x, ids, t.lse),
        *npkernels.cross_entropy(x, ids, label_smoothing=0.1, return_grad=True),
        out,
        lse,
        npkernels.attention(q, k, v, dropout_p=0.2, dropout_seed=1, window=(40, 3)),
        *leaves(npkernels.attention_vjp(out, q, k, v, out, lse, causal=True)),
        *leaves(npkernels.attention_vjp(one, q[:, :1], k[:, :1], v[:, :1], one, one_lse)),
        *leaves(npkernels.attention_vjp(few, q[:, :, :1], k, v, few, few_lse, dropout_p=0.2, dropout_seed=1)),
        *npkernels.attention_jvp(q, k, v, k, v, q, softcap=3.0),
        npkernels.attention(q[:, :, :1], k, v),
        npkernels.attention_weights(q, k),
        varlen,
        *leaves(npkernels.attention_varlen_vjp(varlen, *packed, varlen, varlen_lse, cu, cu, causal=True)),
        npkernels.multi_head_attention(q[0], *weights, heads=4, causal=True),
        *leaves(npkernels.multi_head_attention_vjp(v[0], q[0], *weights, heads=4, causal=True)),
        npkernels.rotary_embedding(q),
        *npkernels.merge_attention([q, k], [q[..., 0], k[..., 0]]),
    ]
    return b"".join(np.asarray(r).tobytes() for r in results)


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_any_number_of_threads(isa):
    with npkernels.use_isa(isa):
        seen = set()
        for n in (1, 2, 3, 5):
            with npkernels.num_threads(n):
                seen.add(work())
            npkernels.set_num_threads(n)
            seen.add(work())
        npkernels.set_num_threads(None)
        assert len(seen) == 1


EVERY_CASE = '''
import hashlib
import numpy as np, npkernels
from npkernels._cli import cases, check, gate

def digest(name, case):
    found = hashlib.sha256()
    for _, array in gate.arrays(check.call(name, case)):  # a NaN is a NaN, whatever its sign
        found.update(np.where(array == array, array, array.dtype.type(0)).tobytes())
        found.update((array == array).tobytes())
    return found.hexdigest()

def poison():
    """Leave NaN in what NumPy keeps of small arrays, and in what the threads keep for many queries and for few."""
    small = [np.full(size, 255, np.uint8) for size in range(1, 1024) for _ in range(2)]
    for queries in (48, 1):
        q, k = np.full((2, 1, queries, 96), np.nan, np.float32), np.full((2, 1, 130, 96), np.nan, np.float32)
        lse = np.full((2, 1, queries), np.nan, np.float32)
        npkernels.attention(q, k, k)
        npkernels.attention_vjp(q, q, k, k, q, lse)
        npkernels.attention_jvp(q, k, k, q, k, k)

for name, make in cases.families()["attention"].items():
    for case in make(cases.Inputs(name, np.dtype(np.float32), 0)):
        first = digest(name, case)
        poison()
        print(name, case.label, sep=": ", end="\\n" if digest(name, case) == first else ": other bits\\n")
'''


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_whatever_the_memory_held_before(isa):
    """glibc fills what it hands out with the complement of MALLOC_PERTURB_, here with large numbers."""
    lines = run(EVERY_CASE, NPKERNELS_ISA=isa, NPKERNELS_NUM_THREADS="2", MALLOC_PERTURB_="128").splitlines()
    assert len(lines) > 700
    assert [line for line in lines if line.endswith("other bits")] == []


def test_many_python_threads_at_once():
    expected = work()
    results = []
    threads = [threading.Thread(target=lambda: results.append(work() == expected)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
    assert results == [True] * 8


def child_of_fork(queue):
    queue.put((npkernels.get_num_threads(), work()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_works_and_never_hangs(method):
    npkernels.set_num_threads(2)
    try:
        expected = work()  # the parent's threads exist now
    finally:
        npkernels.set_num_threads(None)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=child_of_fork, args=(queue,), daemon=True)
    child.start()
    threads, result = queue.get(timeout=120)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert result == expected
    assert threads == 1 or method == "spawn"


def run(code, **environment):
    """Run Python code in a fresh process; returns its output."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NPKERNELS_", "OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


THREADS = "import npkernels; print(npkernels.get_num_threads())"


def test_thread_counts_from_outside():
    assert run(THREADS, NPKERNELS_NUM_THREADS="3") == "3"
    assert run(THREADS, OMP_NUM_THREADS="3") == "3"
    assert run(THREADS, OMP_NUM_THREADS="3", NPKERNELS_NUM_THREADS="2") == "2"
    many = run(THREADS.replace("print", "npkernels.set_num_threads(5); print"), NPKERNELS_NUM_THREADS="2")
    assert many == "5"
    for bad in ("0", "-1", "two", "", "1e3", "\u0663", "9" * 5000):
        assert "NPKERNELS_NUM_THREADS" in run(THREADS, NPKERNELS_NUM_THREADS=bad)
    assert int(run(THREADS)) <= len(os.sched_getaffinity(0))
    assert run("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + THREADS) == "1"


def test_threadpoolctl_sees_and_limits_the_threads():
    pytest.importorskip("threadpoolctl")
    code = (
        "import npkernels, threadpoolctl\n"
        "npkernels.set_num_threads(4)\n"
        "apis = {p['internal_api'] for p in threadpoolctl.threadpool_info()}\n"
        "with threadpoolctl.threadpool_limits(1):\n"
        "    inside = npkernels.get_num_threads()\n"
        "print('openmp' in apis, inside, npkernels.get_num_threads())"
    )
    assert run(code, OMP_NUM_THREADS="2") == "True 1 4"


def test_instruction_set_from_outside():
    code = "import npkernels; print(npkernels.isa())"
    for isa in ISAS:
        assert run(code, NPKERNELS_ISA=isa) == isa
    message = run(code, NPKERNELS_ISA="avx1024")
    assert message.startswith("ImportError: NPKERNELS_ISA: 'avx1024'")
    assert all(isa in message for isa in ISAS)


def test_checks_from_outside():
    code = "import npkernels; print(npkernels._checked.enabled())"
    for value, expected in {"1": "True", "0": "False", "": "False"}.items():
        assert run(code, NPKERNELS_CHECK=value) == expected
    for bad in ("no", "false", "2"):
        assert run(code, NPKERNELS_CHECK=bad).startswith(f"ImportError: NPKERNELS_CHECK: {bad!r} cannot")


def test_the_environment_is_left_as_it_was():
    code = "import os; before = dict(os.environ); import npkernels; print(before == dict(os.environ))"
    assert run(code) == "True"
    assert run(code, OMP_WAIT_POLICY="passive") == "True"


SCRATCH = """
import resource, sys
import numpy as np, npkernels
try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = np.float16
def peak():
    return next(int(l.split()[1]) * 1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))
def reset():
    open('/proc/self/clear_refs', 'w').write('5')
x = np.ones((16, 300001), np.float32)
h = np.ones((16, 300001), bfloat16)
s = np.ones((300001, 16), np.float32)
q = np.ones((1, 1, 8192, 64), np.float32)
out, hout, sout, qout = (np.ones_like(a) for a in (x, h, s, q))
ids = np.zeros(16, np.int64)
lse = np.full(16, 12.0)
mask = np.ones(300001, bool)
calls = {
    'softmax': lambda: npkernels.softmax(x, out=out),
    'in place': lambda: npkernels.log_softmax(out, out=out),
    'bfloat16': lambda: npkernels.softmax(h, out=hout),
    'strided': lambda: npkernels.softmax(s, axis=0, out=sout),
    'mask': lambda: npkernels.softmax(x, mask=mask, out=out),
    'tokens': lambda: npkernels.token_log_probs(x, ids),
    'tokens vjp': lambda: npkernels.token_log_probs_vjp(lse, x, ids, lse, out=out),
    'loss': lambda: npkernels.cross_entropy(x, ids, return_grad=True, out=out),
    'attention': lambda: npkernels.attention(q, q, q, causal=True, out=qout),
    'attention dropout': lambda: npkernels.attention(q, q, q, dropout_p=0.1, dropout_seed=1, window=(64, 0), out=qout),
}
tops = np.zeros((1, 1, 8192), np.float32)
grads = {
    'attention vjp': lambda: npkernels.attention_vjp(q, q, q, q, q, tops, causal=True),
    'attention jvp': lambda: npkernels.attention_jvp(q, q, q, q, q, q, causal=True),
}
for call in (calls | grads).values():
    call()
for name, call in (calls | grads).items():
    reset()
    before = peak()
    call()
    print(name, peak() - before)
"""


def test_no_kernel_needs_more_than_a_megabyte_per_thread():
    lines = run(SCRATCH, NPKERNELS_NUM_THREADS="2").splitlines()
    used = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in lines}
    assert len(used) == 12
    # The derivatives give new arrays of 2 MB each, and the gradients hold sums of dk and dv for each of up to 4 runs of
    # queries; all scores would take 256 MB.
    grads = {name: used.pop(name) for name in ("attention vjp", "attention jvp")}
    assert {name: size for name, size in grads.items() if size > (6 + 4 * 4 + 2) * 2**20} == {}
    assert {name: size for name, size in used.items() if size > 2 * 2**20} == {}


def test_nothing_leaks():
    code = """
import sys
import numpy as np, npkernels
def rss():
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS'))
x = np.ones((8, 2000), np.float32)
q = np.ones((1, 2, 100, 16), np.float32)
cu = np.array([0, 1, 2])
def calls():
    for _ in range(300):
        npkernels.softmax(x)
        npkernels.softmax_jvp(x, x)
        npkernels.token_log_probs(x, [0] * 8)
        out, lse = npkernels.attention(q, q, q, causal=True, return_lse=True)
        npkernels.attention_vjp(out, q, q, q, out, lse, causal=True)
        npkernels.attention_jvp(q, q, q, q, q, q)
        npkernels.attention_varlen(q[0], q[0], q[0], cu, cu)
        for bad in (
            lambda: npkernels.softmax(x, axis=7),
            lambda: npkernels.token_log_probs(x, [2000] * 8),
            lambda: npkernels.attention_vjp(q, q, q, q, q, q),
            lambda: npkernels.attention_varlen(q[0], q[0], q[0], cu[::-1], cu),
        ):
            try:
                bad()
            except (ValueError, IndexError):
                pass
calls()
before, references = rss(), (sys.getrefcount(x), sys.getrefcount(q))
for _ in range(4):
    calls()
print(rss() - before < 2000, references == (sys.getrefcount(x), sys.getrefcount(q)))
"""
    assert run(code) == "True True"


def test_inputs_are_never_changed_and_may_be_read_only():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 300)).astype(np.float32)
    before = x.copy()
    x.flags.writeable = False
    q = x.reshape(1, 5, 15, 20)
    ids = np.arange(5)
    ids.flags.writeable = False
    npkernels.softmax(x, temperature=2.0)
    npkernels.softmax_jvp(x, x)
    npkernels.cross_entropy(x, ids, return_grad=True)
    npkernels.token_log_probs(x, ids)
    out, lse = npkernels.attention(q, q, q, causal=True, return_lse=True)
    out.flags.writeable = lse.flags.writeable = False
    npkernels.attention_vjp(q, q, q, q, out, lse, causal=True)
    npkernels.attention_jvp(q, q, q, q, q, q)
    npkernels.attention_weights(q, q)
    cu = np.array([0, 5])
    cu.flags.writeable = False
    npkernels.attention_varlen(q[0], q[0], q[0], cu, cu)
    npkernels.attention_varlen_vjp(q[0], q[0], q[0], q[0], q[0], q[0, ..., 0].T, cu, cu)
    npkernels.rotary_embedding(q)
    assert np.array_equal(x, before)


def test_the_gil_is_released():
    q = np.ones((1, 4, 4096, 64), np.float32)
    done = threading.Event()
    steps = 0

    def call():
        npkernels.attention(q, q, q)
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    while not done.is_set():
        steps += 1
    thread.join()
    assert steps > 100
