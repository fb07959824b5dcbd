"""Long sequences: extra memory that does not grow with S x K, as the peak of a process of its own."""

import subprocess
import sys

import pytest

CODE = """
import sys
import numpy as np, npkernels

def peak():
    return next(int(l.split()[1]) * 1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))

name, S, D = sys.argv[1], int(sys.argv[2]), 64
rng = np.random.default_rng(0)
x = [rng.standard_normal((1, 1, S, D), dtype=np.float32) for _ in range(7)]
lse = np.full((1, 1, S), 10, np.float32)
calls = {
    'forward': (lambda q, k, v: npkernels.attention(q, k, v, causal=True), 3, 1),
    'backward': (lambda q, k, v, o, d: npkernels.attention_vjp(d, q, k, v, o, lse, causal=True), 5, 3),
    'jvp': (lambda *a: npkernels.attention_jvp(*a, causal=True), 6, 2),
}
call, inputs, outputs = calls[name]
small = [a[:, :, :600].copy() for a in x]
if name == 'backward':
    npkernels.attention_vjp(small[0], *small[1:4], small[4], lse[..., :600].copy(), causal=True)
else:
    call(*small[:inputs])  # threads and code are there now
open('/proc/self/clear_refs', 'w').write('5')
before = peak()
result = call(*x[:inputs])
print((inputs + outputs) * x[0].nbytes, outputs * x[0].nbytes, peak() - before)
"""


def measure(name, length):
    """Bytes of inputs and outputs, of the outputs alone, and what the call added to the peak of the process."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, name, str(length)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [int(n) for n in done.stdout.split()]


@pytest.mark.parametrize("name", ["forward", "backward", "jvp"])
def test_beside_inputs_and_outputs_at_most_twice_their_size(name):
    arrays, outputs, added = measure(name, 16384)
    assert added - outputs <= 2 * arrays


if __name__ == "__main__":  # the figures of docs/performance.md
    for name in ("forward", "backward", "jvp"):
        arrays, outputs, added = measure(name, 16384)
        print(
            f"{name}: inputs and outputs {arrays / 2**20:.1f} MiB, beside them {(added - outputs) / 2**20:.1f} MiB"
        )
