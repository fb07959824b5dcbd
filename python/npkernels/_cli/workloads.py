"""What is measured: the kernels at the shapes of real models.

A workload knows how to make its inputs, how to call the kernel and the plain NumPy formula, what the limit of the
machine is for it, and which rows of the answer are compared with the reference. Other libraries' calls are in `peers`.

Bytes are those that must be read and written, each once. Floating-point operations count an exponential or logarithm as
one; those of attention are the multiplications and additions of its two matrix products over the allowed pairs.

Letters: B batch, H heads, S sequence, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import numpy as np

import npkernels
from npkernels import TokenStats, reference
from npkernels._arrays import Array
from npkernels._cli import cases, gate, plain

Inputs = dict[str, Any]
Call = Callable[[], Any]
Limit = Literal["multiply-adds", "read", "copy", "none"]
STATS = ("entropy", "lse")
TOLERANCE = {
    2: 0.05,
    4: 1e-3,
    8: 1e-9,
}  # of another library, by bytes of an entry: enough to see that it computes the same


@dataclass(frozen=True)
class Workload:
    """One kernel at one size.

    Attributes
    ----------
    kernel, family, dtype, size : str
        What is called, and on what.
    limit : str
        What of the machine bounds it; "none" where all is in cache and a call is mostly overhead.
    flops, bytes : float
        Floating-point operations, and bytes read and written.
    quick : bool
        Whether a quick run has it.
    make : callable
        Random numbers -> inputs.
    ours, numpy : callable
        Inputs -> the call of the kernel, and of the plain formula; None where that would need gigabytes.
    rows : callable
        Inputs -> positional and keyword arguments with which the reference computes the rows that are compared.
    part : callable
        A result -> the same rows of it, as the reference arranges them.
    options : dict
        What the calls of other libraries need to know.
    """

    kernel: str
    family: str
    dtype: str
    size: str
    limit: Limit
    flops: float
    bytes: float
    quick: bool
    make: Callable[[np.random.Generator], Inputs]
    ours: Callable[[Inputs], Call]
    numpy: Callable[[Inputs], Call] | None
    rows: Callable[[Inputs], tuple[Sequence[Any], dict[str, Any]]]
    part: Callable[[Any], Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Kernel, dtype and size."""
        return f"{self.kernel} {self.dtype} {self.size}"

    def inputs(self) -> Inputs:
        """Make the inputs, the same in every run."""
        return self.make(np.random.default_rng(sum(self.name.encode())))

    def verify(self, inputs: Inputs, result: Any) -> None:
        """Raise AssertionError unless the kernel's result passes the accuracy gate."""
        args, kwargs = self.rows(inputs)
        gate.assert_passes(self.part(result), self.kernel, *args, **kwargs)

    def verify_peer(self, inputs: Inputs, result: Any) -> None:
        """Raise AssertionError unless another library's result means the same."""
        args, kwargs = self.rows(inputs)
        wanted = gate.arrays(attrgetter(self.kernel)(reference)(*args, **kwargs))
        tolerance = TOLERANCE[cases.itemsize(self.dtype)]
        for (place, want), (_, got) in zip(wanted, gate.arrays(self.part(result)), strict=True):
            error = np.abs(got.astype(np.float64) - want).max()
            if not error <= tolerance * np.abs(want).max():
                raise AssertionError(
                    f"{self.name}{place}: off by {error:.3g}; the largest is {np.abs(want).max():.3g}"
                )


def as_numpy(x: Any) -> Array:
    """NumPy's view of an array; a bfloat16 tensor of PyTorch as float32."""
    if hasattr(x, "detach"):
        x = x.detach()
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return np.asarray(x)


def some(n: int) -> Array:
    """Places of up to 4 of n rows: the first, the last, and between."""
    return np.unique(np.linspace(0, n - 1, 4).astype(np.int64))


def _normal(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "float32", scale: float = 1.0
) -> Array:
    x = rng.standard_normal(shape, dtype=np.float32)
    x *= np.float32(scale)
    return x.astype(cases.dtypes()[dtype], copy=False)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def softmax(kernel: str, shape: tuple[int, ...], *, quick: bool = False) -> Workload:
    """Softmax or log_softmax of rows, written to `out`: compare, subtract, exp, add, multiply."""
    entries = float(np.prod(shape))
    ours, numpy = getattr(npkernels, kernel), getattr(plain, kernel)

    def call(inputs: Inputs) -> Call:
        x = inputs["x"]
        out = np.empty_like(x)
        return lambda: ours(x, out=out)

    def part(result: Any) -> Array:
        y = np.atleast_2d(as_numpy(result))
        return y[some(len(y))]

    return Workload(
        kernel=kernel,
        family="softmax",
        dtype="float32",
        size=_size(shape),
        limit="copy" if entries > 1 << 20 else "none",
        flops=5 * entries,
        bytes=8 * entries,
        quick=quick,
        make=lambda rng: {"x": _normal(rng, shape, scale=3.0)},
        ours=call,
        numpy=lambda inputs: lambda: numpy(inputs["x"]),
        rows=lambda inputs: ((part(inputs["x"]),), {}),
        part=part,
    )


def _tokens(rng: np.random.Generator, shape: tuple[int, int], dtype: str) -> Inputs:
    return {"logits": _normal(rng, shape, dtype, 3.0), "ids": rng.integers(0, shape[1], shape[0])}


def token_log_probs(shape: tuple[int, int], dtype: str, *, quick: bool = False) -> Workload:
    """Log-probability, entropy and lse of tokens: compare, subtract, exp, add, multiply and add."""
    places = some(shape[0])

    def part(result: TokenStats[Any]) -> TokenStats[Any]:
        log_prob, entropy, lse = (as_numpy(x)[places] for x in (result.log_prob, result.entropy, result.lse))
        return TokenStats(log_prob=log_prob, entropy=entropy, lse=lse)

    return Workload(
        kernel="token_log_probs",
        family="softmax",
        dtype=dtype,
        size=_size(shape),
        limit="read",
        flops=6.0 * shape[0] * shape[1],
        bytes=float(cases.itemsize(dtype) * shape[0] * shape[1]),
        quick=quick,
        make=lambda rng: _tokens(rng, shape, dtype),
        ours=lambda inputs: lambda: npkernels.token_log_probs(inputs["logits"], inputs["ids"], stats=STATS),
        numpy=lambda inputs: lambda: plain.token_log_probs(inputs["logits"], inputs["ids"], stats=STATS),
        rows=lambda inputs: ((inputs["logits"][places], inputs["ids"][places]), {"stats": STATS}),
        part=part,
    )


def token_log_probs_vjp(shape: tuple[int, int], dtype: str, *, quick: bool = False) -> Workload:
    """Gradient of tokens' log-probabilities, in place: subtract, exp, multiply.

    Only the first call of ours sees the logits; the others see gradients, which cost the same.
    """
    places = some(shape[0])

    def make(rng: np.random.Generator) -> Inputs:
        inputs = _tokens(rng, shape, dtype)
        lse = npkernels.token_log_probs(inputs["logits"], inputs["ids"], stats=("lse",)).lse
        assert lse is not None
        return {"dlogp": _normal(rng, shape[:1]), **inputs, "lse": lse}

    def call(inputs: Inputs) -> Call:
        dlogp, ids, lse = inputs["dlogp"], inputs["ids"], inputs["lse"]
        logits = inputs["logits"].copy()
        return lambda: npkernels.token_log_probs_vjp(dlogp, logits, ids, lse, out=logits)

    return Workload(
        kernel="token_log_probs_vjp",
        family="softmax",
        dtype=dtype,
        size=f"{_size(shape)} in place",
        limit="copy",
        flops=3.0 * shape[0] * shape[1],
        bytes=2.0 * cases.itemsize(dtype) * shape[0] * shape[1],
        quick=quick,
        make=make,
        ours=call,
        numpy=lambda inputs: lambda: plain.token_log_probs_vjp(**inputs),
        rows=lambda inputs: ([inputs[name][places] for name in ("dlogp", "logits", "ids", "lse")], {}),
        part=lambda result: as_numpy(result)[places],
    )


def cross_entropy(shape: tuple[int, int], *, quick: bool = False) -> Workload:
    """Mean loss and gradient: compare, subtract, exp, add, then subtract, exp, multiply."""

    def make(rng: np.random.Generator) -> Inputs:
        inputs = _tokens(rng, shape, "float32")
        return {"logits": inputs["logits"], "targets": inputs["ids"]}

    return Workload(
        kernel="cross_entropy",
        family="softmax",
        dtype="float32",
        size=f"{_size(shape)} with gradient",
        limit="copy",
        flops=7.0 * shape[0] * shape[1],
        bytes=8.0 * shape[0] * shape[1],
        quick=quick,
        make=make,
        ours=lambda inputs: lambda: npkernels.cross_entropy(**inputs, return_grad=True),
        numpy=lambda inputs: lambda: plain.cross_entropy(**inputs, return_grad=True),
        rows=lambda inputs: ((inputs["logits"], inputs["targets"]), {"return_grad": True}),
        part=lambda result: tuple(map(as_numpy, result)),
    )


def rotary(batch: int, heads: int, length: int, dim: int, *, quick: bool = False) -> Workload:
    """Rotary embedding with given cosines and sines: three multiplications or additions an entry."""
    places = some(length)
    entries = float(batch * heads * length * dim)

    def make(rng: np.random.Generator) -> Inputs:
        angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(dim // 2) * 2.0 / dim)
        tables = {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}
        return {"x": _normal(rng, (batch, heads, length, dim)), **tables}

    def call(inputs: Inputs) -> Call:
        out = np.empty_like(inputs["x"])
        return lambda: npkernels.rotary_embedding(**inputs, out=out)

    def rows(inputs: Inputs) -> tuple[Sequence[Any], dict[str, Any]]:
        return (inputs["x"][:, :, places],), {name: inputs[name][places] for name in ("cos", "sin")}

    return Workload(
        kernel="rotary_embedding",
        family="attention",
        dtype="float32",
        size=_size((batch, heads, length, dim)),
        limit="copy",
        flops=3 * entries,
        bytes=8 * entries + 4.0 * length * dim,
        quick=quick,
        make=make,
        ours=call,
        numpy=lambda inputs: lambda: plain.rotary_embedding(**inputs),
        rows=rows,
        part=lambda result: as_numpy(result)[:, :, places],
    )


def workloads() -> list[Workload]:
    """Give all workloads; those of bfloat16 only if ml_dtypes is installed."""
    from npkernels._cli import workloads_grpo
    from npkernels._cli.workloads_attention import of_attention
    from npkernels._cli.workloads_perturb import perturb_workloads

    vocabulary = (256, 151_936)  # of Qwen
    listed = [
        softmax("softmax", (10,), quick=True),
        softmax("softmax", (64, 64), quick=True),
        softmax("softmax", (4096, 1024), quick=True),
        softmax("softmax", (512, 32_000)),
        softmax("log_softmax", (4096, 1024), quick=True),
        softmax("log_softmax", (512, 32_000)),
        token_log_probs(vocabulary, "float32", quick=True),
        token_log_probs(vocabulary, "bfloat16"),
        token_log_probs_vjp(vocabulary, "float32", quick=True),
        token_log_probs_vjp(vocabulary, "bfloat16"),
        cross_entropy((512, 32_000), quick=True),
        *of_attention(),
        rotary(1, 32, 2048, 128, quick=True),
        *workloads_grpo.listed(),
        *perturb_workloads(),
    ]
    return [w for w in listed if w.dtype in cases.dtypes()]
