"""libnpkernels through ctypes: npkernels.h as structures, and calls that take NumPy arrays."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

import npkernels

OK, NULL_POINTER, BAD_SHAPE, BAD_DTYPE, BAD_STRIDES, BAD_AXIS, BAD_VALUE, BAD_INDEX, OVERLAP, NO_MEMORY = (
    range(10)
)
DTYPES = [np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.bool_, np.int64)]
MEAN, SUM, NONE = range(3)
TOP_LEFT, BOTTOM_RIGHT = 1, 2


class NpkArray(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


ArrayPointer = ctypes.POINTER(NpkArray)


def describe(a: np.ndarray, **changes: Any) -> NpkArray:
    """The descriptor of an array, with fields changed: shape and strides as sequences or None."""
    shape, strides = changes.pop("shape", a.shape), changes.pop("strides", a.strides)
    numbers = [None if v is None else (ctypes.c_int64 * max(1, len(v)))(*v) for v in (shape, strides)]
    pointers = [None if n is None else ctypes.cast(n, ctypes.POINTER(ctypes.c_int64)) for n in numbers]
    made = NpkArray(a.ctypes.data, pointers[0], pointers[1], a.ndim, DTYPES.index(a.dtype))
    made.kept = a, numbers  # the memory lives as long as the descriptor
    for name, value in changes.items():
        setattr(made, name, value)
    return made


class TokenStats(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        *((name, ArrayPointer) for name in ("log_prob", "lse", "entropy", "sum_p2", "top1", "rank")),
    )


class CrossEntropyOptions(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("weight", ArrayPointer),
        ("ignore_index", ctypes.c_int64),
        ("label_smoothing", ctypes.c_double),
        ("reduction", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


class AttentionOptions(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("scale", ctypes.c_double),
        ("causal", ctypes.c_int32),
        ("windowed", ctypes.c_int32),
        *(
            (name, ArrayPointer)
            for name in ("q_offset", "mask", "bias", "kv_lengths", "alibi_slopes", "sinks")
        ),
        ("window_left", ctypes.c_int64),
        ("window_right", ctypes.c_int64),
        ("softcap", ctypes.c_double),
        ("dropout_p", ctypes.c_double),
        ("dropout_seed", ctypes.c_uint64),
    )


class AdvantageOptions(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("eps", ctypes.c_double),
        *(
            (name, ctypes.c_int32)
            for name in ("baseline", "scale", "ddof", "lone_reward", "over_mean", "reserved")
        ),
    )
    defaults: ClassVar[dict[str, float]] = {"eps": 1e-4, "ddof": 1}


class PolicyOptions(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        *((name, ArrayPointer) for name in ("mask", "cu_seqlens", "ref_logp", "sampler_logp", "entropy")),
        *(
            (name, ctypes.c_int32)
            for name in ("surrogate", "sequence_level", "aggregate", "kl", "importance", "want_entropy")
        ),
        *((name, ctypes.c_double) for name in ("clip_low", "clip_high", "delta", "dual_clip")),
        *((name, ctypes.c_double) for name in ("tau_positive", "tau_negative", "max_length", "total_tokens")),
        *((name, ctypes.c_double) for name in ("beta", "kl_inner", "kl_outer", "importance_cap")),
    )
    defaults: ClassVar[dict[str, float]] = {
        "aggregate": 3,
        "kl": 2,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "tau_positive": 1.0,
        "tau_negative": 1.05,
        "importance_cap": 3.0,
    }


class PolicyMetrics(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("loss", ctypes.c_double),
        ("tokens", ctypes.c_int64),
        ("sequences", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("ratio", "clip_low", "clip_high", "old_kl")),
        *((name, ctypes.c_double) for name in ("kl", "importance", "entropy")),
    )


class ReturnOptions(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        *((name, ArrayPointer) for name in ("mask", "dones", "cu_seqlens", "last_value", "gammas", "lams")),
    )


class StepOptions(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        *((name, ctypes.c_int32) for name in ("norm", "targeted", "bounded", "reserved")),
        ("low", ctypes.c_double),
        ("high", ctypes.c_double),
        *((name, ArrayPointer) for name in ("lows", "highs", "mask", "step_lengths", "radii")),
    )


def struct(kind: type[ctypes.Structure], **fields: Any) -> ctypes.Structure:
    """A structure of options, begun as its macro does; arrays become descriptors."""
    fields = {"size": ctypes.sizeof(kind), **getattr(kind, "defaults", {}), **fields}
    kept = {name: describe(v) if isinstance(v, np.ndarray) else v for name, v in fields.items()}
    made = kind(**{n: ctypes.pointer(v) if isinstance(v, NpkArray) else v for n, v in kept.items()})
    made.kept = kept
    return made


library = ctypes.CDLL(str(Path(npkernels.get_include()).parent / "libnpkernels.so"))
for name in ("npk_status_text", "npk_bad_argument", "npk_isa", "npk_version"):
    getattr(library, name).restype = ctypes.c_char_p
library.npk_compiled_isas.restype = ctypes.POINTER(ctypes.c_char_p)


def call(function: str, *args: Any) -> int:
    """Status of npk_<function>: arrays, structures and None go as pointers, numbers as int or double."""
    return int(getattr(library, f"npk_{function}")(*(_argument(a) for a in args)))


def _argument(a: Any) -> Any:
    if isinstance(a, np.ndarray):
        return ctypes.byref(describe(a))
    if isinstance(a, ctypes.Structure):
        return ctypes.byref(a)
    return ctypes.c_double(a) if isinstance(a, float) else a


def many(arrays: list[np.ndarray]) -> ctypes.Array[NpkArray]:
    """Descriptors behind one another, as merge_attention takes them."""
    described = [describe(a) for a in arrays]
    made = (NpkArray * len(arrays))(*described)
    made.kept = described
    return made


def bad_argument() -> str:
    """The name of the argument that the last call refused."""
    return str(library.npk_bad_argument().decode())
