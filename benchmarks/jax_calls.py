"""What calls of npkernels.jax cost under jit, beside JAX's own: prints a table of medians, measured in turns.

python benchmarks/jax_calls.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import npkernels
import npkernels.jax as nkj

ROUNDS = 9


def seconds(call: Callable[[], Any]) -> float:
    """Time one of the calls that make at least 20 ms."""
    count, elapsed = 1, 0.0
    while True:
        start = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(call())
        elapsed = time.perf_counter() - start
        if elapsed > 0.02:
            return elapsed / count
        count *= 4


def in_turns(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Give the median time of each, A B C A B C."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: statistics.median(t) for name, t in times.items()}


def softmax(*shape: int) -> dict[str, Callable[[], Any]]:
    """Of an array of JAX, and the kernel alone on one of NumPy."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    y = jnp.asarray(x)
    ours, theirs = jax.jit(nkj.softmax), jax.jit(jax.nn.softmax)
    np.testing.assert_allclose(ours(y), theirs(y), rtol=1e-5, atol=1e-7)
    return {
        "npkernels.jax": lambda: ours(y),
        "jax.nn": lambda: theirs(y),
        "npkernels": lambda: npkernels.softmax(x),
    }


def attention(derivative: bool) -> dict[str, Callable[[], Any]]:
    """Causal, (1, 8, 1024, 64); JAX has the heads behind the positions."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 8, 1024, 64), np.float32)) for _ in range(3))
    swapped = [x.swapaxes(1, 2) for x in (q, k, v)]
    ours: Any = lambda q, k, v: nkj.attention(q, k, v, causal=True)  # noqa: E731
    theirs: Any = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
    if derivative:
        ours, theirs = (jax.grad(lambda *x, f=f: f(*x).sum(), argnums=(0, 1, 2)) for f in (ours, theirs))
    ours, theirs = jax.jit(ours), jax.jit(theirs)
    for a, b in zip(jax.tree.leaves(ours(q, k, v)), jax.tree.leaves(theirs(*swapped)), strict=True):
        np.testing.assert_allclose(a, b.swapaxes(1, 2), rtol=1e-3, atol=1e-4)
    return {"npkernels.jax": lambda: ours(q, k, v), "jax.nn": lambda: theirs(*swapped)}


def main() -> None:
    """Print the table."""
    print(f"JAX {jax.__version__}, npkernels on {npkernels.isa()}, float32; milliseconds")
    for name, calls in {
        "softmax (4, 8)": softmax(4, 8),
        "softmax (1024, 4096)": softmax(1024, 4096),
        "causal attention (1, 8, 1024, 64)": attention(False),
        "its gradients": attention(True),
    }.items():
        times = "   ".join(f"{who} {1e3 * t:.3g}" for who, t in in_turns(calls).items())
        print(f"{name:36}{times}")


if __name__ == "__main__":
    main()
