"""What calls of npkernels.jax cost under jit, beside JAX's own: prints a table of medians, measured in turns.

python benchmarks/jax_calls.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import npkernels
import npkernels.jax as nkj
from npkernels._cli.bench import interleave

Calls = dict[str, Callable[[], Any]]


def softmax(*shape: int) -> Calls:
    """Of an array of JAX, and the kernel alone on one of NumPy."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    y = jnp.asarray(x)
    ours, theirs = jax.jit(nkj.softmax), jax.jit(jax.nn.softmax)
    np.testing.assert_allclose(ours(y), theirs(y), rtol=1e-5, atol=1e-7)
    return {
        "npkernels.jax": lambda: ours(y).block_until_ready(),
        "jax.nn": lambda: theirs(y).block_until_ready(),
        "npkernels": lambda: npkernels.softmax(x),
    }


def attention(derivative: bool) -> Calls:
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
    return {
        "npkernels.jax": lambda: jax.block_until_ready(ours(q, k, v)),
        "jax.nn": lambda: jax.block_until_ready(theirs(*swapped)),
    }


def main() -> None:
    """Print the table."""
    print(f"JAX {jax.__version__}, npkernels on {npkernels.isa()}, float32; milliseconds")
    for name, calls in {
        "softmax (4, 8)": softmax(4, 8),
        "softmax (1024, 4096)": softmax(1024, 4096),
        "causal attention (1, 8, 1024, 64)": attention(False),
        "its gradients": attention(True),
    }.items():
        turns = interleave(calls, seconds=2.0).items()
        times = "   ".join(f"{who} {1e3 * statistics.median(t):.3g}" for who, t in turns)
        print(f"{name:36}{times}")


if __name__ == "__main__":
    main()
