"""One ordinary call of every public kernel function, of any row length and dtype, for tests that vary all else."""

from __future__ import annotations

import dataclasses
import inspect

import ml_dtypes
import numpy as np

import npkernels

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
MAPS = ("softmax", "log_softmax", "logsumexp", "entropy")
VJPS = ("softmax_vjp", "log_softmax_vjp")
JVPS = ("softmax_jvp", "log_softmax_jvp", "logsumexp_jvp")
ROTARY = ("rotary_embedding", "rotary_embedding_vjp")
ATTENTION = ("attention", "attention_vjp", "attention_jvp", "attention_weights")
VARLEN = ("attention_varlen", "attention_varlen_vjp")
LAYER = ("multi_head_attention", "multi_head_attention_vjp")
NAMES = (
    *MAPS,
    *VJPS,
    *JVPS,
    "logsumexp_vjp",
    "token_log_probs",
    "token_log_probs_vjp",
    "cross_entropy",
    "nll_loss",
    "perplexity",
    *ATTENTION,
    *VARLEN,
    *LAYER,
    "merge_attention",
    *ROTARY,
)


@dataclasses.dataclass
class Call:
    name: str
    args: tuple
    kwargs: dict
    outs: tuple  # (shape, dtype) of each array that `out` takes; empty for a function without `out`

    def __call__(self, **more):
        return getattr(npkernels, self.name)(*self.args, **self.kwargs, **more)

    def inputs(self):
        """All arrays that go in."""
        for value in (*self.args, *self.kwargs.values()):
            yield from (
                v for v in (value if isinstance(value, list) else [value]) if isinstance(v, np.ndarray)
            )

    def mapped(self, change):
        """The same call with another array in place of each."""

        def new(value):
            if isinstance(value, list):
                return [new(v) for v in value]
            return change(value) if isinstance(value, np.ndarray) else value

        args, kwargs = tuple(new(a) for a in self.args), {k: new(v) for k, v in self.kwargs.items()}
        return dataclasses.replace(self, args=args, kwargs=kwargs)

    def new_out(self, make=np.zeros):
        """Something to pass as `out`."""
        arrays = tuple(make(shape, dtype) for shape, dtype in self.outs)
        return arrays if len(arrays) > 1 else arrays[0]


def make(name, n, dtype, rows=3, masked=True, seed=0):
    """Rows of length n (keys and head size for attention), with a mask where the function takes one."""
    call = _make(name, n, dtype, rows, masked, seed)
    takes_out = "out" in inspect.signature(getattr(npkernels, name)).parameters
    return call if takes_out else dataclasses.replace(call, outs=())


def _make(name, n, dtype, rows, masked, seed):
    dtype = DTYPES[dtype] if isinstance(dtype, str) else np.dtype(dtype)
    rng = np.random.default_rng(seed)
    row = np.dtype(np.float64 if dtype == np.float64 else np.float32)

    def normal(*shape, dtype=dtype):
        return rng.standard_normal(shape).astype(dtype)

    mask = rng.random((rows, n)) < 0.8
    options = {"mask": mask} if masked else {}
    ids = rng.integers(0, n, rows)
    whole, per_row = ((rows, n), dtype), ((rows,), row)
    if name in ("softmax", "log_softmax"):
        return Call(name, (normal(rows, n),), options, (whole,))
    if name in MAPS:
        return Call(name, (normal(rows, n),), options, (per_row,))
    if name in VJPS:
        return Call(name, (normal(rows, n), -abs(normal(rows, n))), options, (whole,))
    if name in JVPS:
        out = per_row if name == "logsumexp_jvp" else whole
        return Call(name, (normal(rows, n), normal(rows, n)), options, (out, out))
    if name == "logsumexp_vjp":
        return Call(
            name, (normal(rows, dtype=row), normal(rows, n), normal(rows, dtype=row)), options, (whole,)
        )
    if name == "token_log_probs":
        return Call(name, (normal(rows, n), ids), options, ())
    if name == "token_log_probs_vjp":
        statistics = {"dentropy": normal(rows, dtype=row), "entropy": normal(rows, dtype=row)}
        args = (normal(rows, dtype=row), normal(rows, n), ids, normal(rows, dtype=row) + 9)
        return Call(name, args, options | statistics, (whole,))
    if name in ("cross_entropy", "nll_loss"):
        options = {"weight": abs(normal(n, dtype=row)), "return_grad": True}
        options |= {"label_smoothing": 0.1} if name == "cross_entropy" else {}
        return Call(name, (normal(rows, n), ids), options, (whole,))
    if name == "perplexity":
        return Call(name, (-abs(normal(rows, n)),), options, ())
    if name == "merge_attention":
        args = ([normal(rows, n) for _ in range(3)], [normal(rows, dtype=row) for _ in range(3)])
        return Call(name, args, {}, (whole,))
    if name in ROTARY:
        half = n // 2
        tables = {
            "cos": normal(8, half, dtype=row),
            "sin": normal(8, half, dtype=row),
            "rotary_dim": 2 * half,
        }
        return Call(name, (normal(2, rows, n), rng.integers(0, 8, rows)), tables, (((2, rows, n), dtype),))
    heads, keys, dim = 2, n, min(n, 129)
    if name in LAYER:
        size = 8
        x, width = normal(2, rows, n), 2 * heads * size
        weights = (normal(n, width), normal(n, width // 2), normal(n, width // 2), normal(width, n))
        options = {"heads": 2 * heads, "kv_heads": heads}
        options |= {"mask": rng.random((rows, rows)) < 0.8, "bo": normal(n)} if masked else {}
        if name == "multi_head_attention":
            return Call(name, (x, *weights), options, ((x.shape, dtype),))
        return Call(name, (normal(*x.shape), x, *weights), options, ())
    if name in VARLEN:
        q, k, v = normal(rows, 2 * heads, dim), normal(keys, heads, dim), normal(keys, heads, dim)
        starts = (np.array([0, 1, rows]), np.array([0, keys // 2, keys]))
        lse = normal(2 * heads, rows, dtype=row) + row.type(9)
    else:
        q, k, v = normal(1, 2 * heads, rows, dim), normal(1, heads, keys, dim), normal(1, heads, keys, dim)
        starts, lse = (), normal(1, 2 * heads, rows, dtype=row) + row.type(9)
    options = {"sinks": normal(2 * heads, dtype=row)} if masked else {}
    if masked and name in ATTENTION:
        options |= {"mask": mask, "bias": normal(2 * heads, 1, keys)}
    like_q, like_k = (q.shape, dtype), (k.shape, dtype)
    if name == "attention_weights":
        return Call(name, (q, k), options, (((1, 2 * heads, rows, keys), dtype),))
    if name.endswith("_vjp"):
        options |= {"dlse": normal(*lse.shape, dtype=row), "want_dsinks": True} if masked else {}
        options |= {"want_dbias": True} if "bias" in options else {}
        args = (normal(*q.shape), q, k, v, normal(*q.shape), lse, *starts)
        return Call(name, args, options, (like_q, like_k, like_k))
    if name == "attention_jvp":
        tangents = (normal(*x.shape) for x in (q, k, v))
        return Call(name, (q, k, v, *tangents), options, (like_q, like_q))
    return Call(name, (q, k, v, *starts), options, (like_q,))


def flat(result):
    """The arrays of any result, in order."""
    if dataclasses.is_dataclass(result):
        result = dataclasses.astuple(result)
    return [np.asarray(r) for r in (result if isinstance(result, tuple) else (result,)) if r is not None]


def assert_same_bits(a, b):
    for one, other in zip(flat(a), flat(b), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()
