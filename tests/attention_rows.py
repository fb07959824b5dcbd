"""Every pair of options of attention, layouts and dtypes included, as arrays and keyword arguments."""

import ml_dtypes
import numpy as np

from npkernels._cli import attention_calls
from npkernels._cli.cases import Inputs
from npkernels._cli.pairwise import pairwise

OPTIONS = {
    "heads": [(1, 1), (3, 3), (4, 2), (6, 1), (8, 1)],
    "lengths": [(1, 1), (1, 300), (7, 5), (48, 48), (49, 127), (97, 129), (130, 31)],
    "dims": [(1, 1), (8, 8), (17, 5), (64, 64), (40, 96), (129, 7)],
    "layout": ["bhsd", "bshd", "reversed", "3d", "2d"],
    "dtype": [np.dtype(d) for d in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)],
    **attention_calls.OPTIONS,
}
ROWS = pairwise(OPTIONS)
B = 2


def build(row, seed=0):
    """(q, k, v) and the options of one row."""
    make = Inputs("attention", row["dtype"], seed)
    (q_heads, k_heads), (S, K), (D, Dv) = row["heads"], row["lengths"], row["dims"]
    q, k, v = (laid_out(make, row, *sizes) for sizes in ((q_heads, S, D), (k_heads, K, D), (k_heads, K, Dv)))
    options = attention_calls.mixture(make, (B, q_heads, k_heads, S, K, D, Dv), row)
    axes = {"3d": 3, "2d": 2}.get(row["layout"], 4)
    return (q, k, v), fewer_axes(options, axes)


def laid_out(make, row, heads, length, dim):
    """Normal numbers (B, H, length, dim) in the memory order, or with the axes, that the row asks for."""
    if row["layout"] == "bshd":
        return make.normal((B, length, heads, dim)).transpose(0, 2, 1, 3)
    x = make.normal((B, heads, length, dim))
    return {"reversed": x[:, ::-1, ::-1], "3d": x[0], "2d": x[0, 0]}.get(row["layout"], x)


def fewer_axes(options, axes):
    """The options of the first batch (3 axes), and of its first head (2)."""
    if axes == 4:
        return options
    for name in ("q_offset", "kv_lengths"):
        if np.ndim(options.get(name, 0)) == 1:
            options[name] = options[name][:1]
    for name in ("mask", "bias"):
        if name in options:
            x = options[name]
            options[name] = x[0] if x.ndim == 4 else x
            if axes == 2 and options[name].ndim == 3:
                options[name] = options[name][0]
    if "alibi_slopes" in options and options["alibi_slopes"].ndim == 2:
        options["alibi_slopes"] = options["alibi_slopes"][:1]
    if axes == 2:
        for name in ("alibi_slopes", "sinks"):
            if name in options:
                options[name] = options[name][..., :1]
    return options


def without_dropout(options):
    return {name: value for name, value in options.items() if not name.startswith("dropout")}


def label(row):
    return ", ".join(f"{name} {value}" for name, value in row.items() if value)
