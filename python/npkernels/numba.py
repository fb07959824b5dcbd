"""The kernels inside functions that Numba compiles (nopython mode): arrays in, results into arrays of the caller.

>>> import numba, numpy as np
>>> import npkernels.numba as nkn
>>> @numba.njit(nogil=True)
... def largest(x):
...     y = np.empty_like(x)
...     nkn.softmax(x, y, -1, 0.5)  # axis, temperature
...     return y.max()
>>> largest(np.zeros((2, 4)))
0.25

Arrays of one call are all float32 or all float64, of any strides where docs/c-api.md does not ask for contiguous ones;
ids are int64. What does not fit, or is read-only and would be written to, raises ValueError and leaves the outputs as
they were; what is no such array, and a float where an integer belongs, is Numba's TypingError when the call is
compiled. Each function is compiled when it is first called, about a second; code that calls it can be cached
(``cache=True``), and it with the code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from npkernels._clibrary import PARAMETERS, TEXTS, get_address
from npkernels._party import party

__all__ = [
    "address",
    "attention",
    "describe",
    "discounted_returns",
    "gae",
    "group_advantages",
    "group_advantages_by_id",
    "log_softmax",
    "logsumexp",
    "pgd_step",
    "project",
    "random_in_ball",
    "sign_step",
    "softmax",
    "token_log_probs",
]

_numba: Any = party("npkernels.numba", "numba", "0.59", "npkernels[numba]")
_extending: Any = importlib.import_module("numba.extending")
_llvm: Any = importlib.import_module("llvmlite.binding")

F = TypeVar("F", bound=Callable[..., Any])
_types: Any = _numba.types
_KINDS = {  # pointers are passed as the numbers that they are
    "p": _types.int64,
    "i": _types.int32,
    "l": _types.int64,
    "u": _types.uint64,
    "d": _types.float64,
}
_CODES = {_types.float32: 0, _types.float64: 1, _types.boolean: 4, _types.int64: 5}  # npk_dtype
_OPEN = np.inf


def _compiled(function: F) -> F:
    compiled: F = _numba.njit(nogil=True)(function)
    return compiled


def _linked(name: str) -> Any:
    """A C function by its name, which LLVM finds in this process."""
    _llvm.add_symbol(name, get_address(name))
    result = _types.CPointer(_types.uint8) if name in TEXTS else _types.int32
    return _types.ExternalFunction(name, result(*(_KINDS[p] for p in PARAMETERS[name])))


_softmax, _log_softmax, _logsumexp = (
    _linked(name) for name in ("npk_softmax", "npk_log_softmax", "npk_logsumexp")
)
_token_log_probs, _attention = _linked("npk_token_log_probs"), _linked("npk_attention")
_advantages, _returns = _linked("npk_group_advantages"), _linked("npk_discounted_returns")
_gae, _sign, _project = _linked("npk_gae"), _linked("npk_sign_step"), _linked("npk_project")
_pgd, _ball = _linked("npk_pgd_step"), _linked("npk_random_in_ball")
_status_text, _bad_argument = _linked("npk_status_text"), _linked("npk_bad_argument")


def _code(x: Any) -> int:
    raise NotImplementedError("known to Numba only")


def _code_of(x: Any) -> Any:
    if not isinstance(x, _types.Array) or x.dtype not in _CODES:
        raise _numba.core.errors.TypingError(
            f"npkernels.numba: {x} is not an array of float32, float64, int64 or bool"
        )
    code = _CODES[x.dtype] + (0 if x.mutable else 16)

    def implementation(x: Any) -> Any:
        return code

    return implementation


_extending.overload(_code)(_code_of)


def _whole(n: Any) -> Any:
    raise NotImplementedError("known to Numba only")


def _whole_of(n: Any) -> Any:
    if not isinstance(n, _types.Integer | _types.Boolean):
        raise _numba.core.errors.TypingError(
            f"npkernels.numba: {n} came where an integer is expected (axis, causal, norm, size, key ...)"
        )

    def implementation(n: Any) -> Any:
        return n

    return implementation


_extending.overload(_whole)(_whole_of)


@_compiled
def _int32(n: Any) -> Any:
    """An integer that C takes as an int, or that shares eight bytes with another; nothing is cut."""
    whole = np.int64(_whole(n))
    if whole < -(2**31) or whole >= 2**31:
        raise ValueError("npkernels.numba: an integer (axis, causal, norm ...) is out of range")
    return whole


@_compiled
def describe(x: Any) -> Any:
    """Describe an array as C has it: an int64 array whose memory is an ``npk_array``, with shape and strides behind it.

    For calling other functions of `npkernels.h` from compiled code: hand on ``describe(x).ctypes.data``, and keep both
    arrays alive until after the call.
    """
    code = _code(x)  # and whether it is read-only
    d = np.empty(5 + 2 * x.ndim, np.int64)
    first = address(d) + 32
    d[0] = np.int64(x.ctypes.data)
    d[1] = first
    d[2] = first + 8 * x.ndim
    d[3] = x.ndim + ((code & 15) << 32)  # two int32
    d[4 + 2 * x.ndim] = code >> 4
    for i in range(x.ndim):
        d[4 + i] = x.shape[i]
        d[4 + x.ndim + i] = x.strides[i]
    return d


@_compiled
def address(x: Any) -> Any:
    """Where the memory of an array begins."""
    return np.int64(x.ctypes.data)


@_compiled
def _target(d: Any) -> Any:
    """Where the description of an array that is written to begins."""
    if d[len(d) - 1] != 0:
        raise ValueError(
            "npkernels.numba: an array for results is read-only; expected one that can be written to"
        )
    return address(d)


@_compiled
def _text(p: Any) -> Any:
    text, i = "", 0
    while p[i] != 0:
        text += chr(p[i])
        i += 1
    return text


@_compiled
def _refuse(function: Any, status: Any) -> None:
    raise ValueError(function + ": " + _text(_bad_argument()) + " " + _text(_status_text(status)))


@_compiled
def _done(function: Any, status: Any, used: Any) -> None:
    """Raise what a status means. `used`: the arrays of the call, which must live until here."""
    if status != 0:
        name = (
            function if status > 0 else "npkernels"
        )  # a string of no fixed value, so that the next is compiled once
        _refuse(name, status)


@_compiled
def softmax(x: Any, y: Any, axis: int = -1, temperature: float = 1.0) -> None:
    """``y = softmax(x / temperature)`` along the axis; y may be x."""
    dx, dy = describe(x), describe(y)
    _done("softmax", _softmax(address(dx), _int32(axis), temperature, 0, _target(dy)), (x, y, dx, dy))


@_compiled
def log_softmax(x: Any, y: Any, axis: int = -1, temperature: float = 1.0) -> None:
    """``y = log(softmax(x / temperature))``; y may be x."""
    dx, dy = describe(x), describe(y)
    _done("log_softmax", _log_softmax(address(dx), _int32(axis), temperature, 0, _target(dy)), (x, y, dx, dy))


@_compiled
def logsumexp(x: Any, lse: Any, axis: int = -1, temperature: float = 1.0) -> None:
    """``lse = log(sum(exp(x / temperature)))`` of each row of a matrix or more; lse is contiguous."""
    dx, dl = describe(x), describe(lse)
    _done(
        "logsumexp", _logsumexp(address(dx), _int32(axis), temperature, 0, _target(dl), 0), (x, lse, dx, dl)
    )


@_compiled
def token_log_probs(
    logits: Any, ids: Any, log_prob: Any, lse: Any, entropy: Any, temperature: float = 1.0
) -> None:
    """Log-probability of the id, lse and entropy (nats) of each row, in one read of logits (..., V)."""
    dx, di, dp = describe(logits), describe(ids), describe(log_prob)
    dl, dh = describe(lse), describe(entropy)
    stats = np.array([56, _target(dp), _target(dl), _target(dh), 0, 0, 0])  # npk_token_stats
    status = _token_log_probs(address(dx), address(di), temperature, 0, address(stats))
    _done("token_log_probs", status, (logits, ids, log_prob, lse, entropy, dx, di, dp, dl, dh, stats))


@_compiled
def attention(q: Any, k: Any, v: Any, out: Any, lse: Any, causal: int = 0, scale: float = 0.0) -> None:
    """``out = softmax(scale q k^T) v``.

    q (B, Hq, S, D), k (B, Hkv, K, D), v (B, Hkv, K, Dv), out (B, Hq, S, Dv), lse (B, Hq, S); or all without B, or
    without B and H. causal: 0, 1 (query i attends to keys 0 .. i) or 2 (to keys 0 .. i + K - S). scale 0 is
    1 / sqrt(D).
    """
    dq, dk, dv, do, dl = describe(q), describe(k), describe(v), describe(out), describe(lse)
    options = np.zeros(14, np.int64)  # npk_attention_options
    options[0], options[2] = 112, _int32(causal)
    options[9] = options[10] = -1
    options.view(np.float64)[1] = scale
    status = _attention(address(dq), address(dk), address(dv), address(options), _target(do), _target(dl))
    _done("attention", status, (q, k, v, out, lse, dq, dk, dv, do, dl, options))


@_compiled
def _advantage_options(eps: float, baseline: int, scale: int, ddof: int) -> Any:
    options = np.zeros(5, np.int64)  # npk_advantage_options
    options[0], options[3] = 40, _int32(ddof)
    options[2] = _int32(baseline) + (_int32(scale) << 32)
    options.view(np.float64)[1] = eps
    return options


@_compiled
def group_advantages(
    rewards: Any, size: int, a: Any, eps: float = 1e-4, baseline: int = 0, scale: int = 0, ddof: int = 1
) -> None:
    """``a = (r - baseline) / (deviation + eps)`` of groups of `size` consecutive rewards (B,); a may be rewards.

    baseline: 0 mean, 1 leave one out, 2 none; scale: 0 group, 1 batch, 2 none.
    """
    dr, da, options = describe(rewards), describe(a), _advantage_options(eps, baseline, scale, ddof)
    status = _advantages(address(dr), _whole(size), 0, address(options), _target(da), 0, 0, 0)
    _done("group_advantages", status, (rewards, a, dr, da, options))


@_compiled
def group_advantages_by_id(
    rewards: Any, ids: Any, a: Any, eps: float = 1e-4, baseline: int = 0, scale: int = 0, ddof: int = 1
) -> None:
    """The same of the groups of equal ids (B,), int64 of any values in any order."""
    dr, di, da = describe(rewards), describe(ids), describe(a)
    options = _advantage_options(eps, baseline, scale, ddof)
    status = _advantages(address(dr), 0, address(di), address(options), _target(da), 0, 0, 0)
    _done("group_advantages", status, (rewards, ids, a, dr, di, da, options))


@_compiled
def discounted_returns(rewards: Any, gamma: float, returns: Any) -> None:
    """``returns[t] = rewards[t] + gamma returns[t + 1]`` along the last axis; contiguous arrays."""
    dr, do = describe(rewards), describe(returns)
    _done("discounted_returns", _returns(address(dr), gamma, 0, _target(do)), (rewards, returns, dr, do))


@_compiled
def gae(rewards: Any, values: Any, gamma: float, lam: float, advantages: Any, returns: Any) -> None:
    """``A_t = r_t + gamma V_{t+1} - V_t + gamma lam A_{t+1}``, ``returns = A + V``; contiguous arrays."""
    dr, dv, da, do = describe(rewards), describe(values), describe(advantages), describe(returns)
    status = _gae(address(dr), address(dv), gamma, lam, 0, _target(da), _target(do))
    _done("gae", status, (rewards, values, advantages, returns, dr, dv, da, do))


@_compiled
def _step_options(norm: int, low: float, high: float) -> Any:
    options = np.zeros(10, np.int64)  # npk_step_options
    options[0], options[1], options[2] = 80, _int32(norm), 1
    options.view(np.float64)[3] = low
    options.view(np.float64)[4] = high
    return options


@_compiled
def sign_step(x: Any, grad: Any, eps: float, y: Any, low: float = -_OPEN, high: float = _OPEN) -> None:
    """``y = clip(x + eps sign(grad), low, high)``; y may be x or grad."""
    dx, dg, dy, options = describe(x), describe(grad), describe(y), _step_options(0, low, high)
    status = _sign(address(dx), address(dg), eps, address(options), _target(dy), 0)
    _done("sign_step", status, (x, grad, y, dx, dg, dy, options))


@_compiled
def project(
    x: Any, center: Any, eps: float, y: Any, norm: int = 0, low: float = -_OPEN, high: float = _OPEN
) -> None:
    """Write the nearest point of the ball around each sample of center to y. norm: 0 for "inf", 1 or 2."""
    dx, dc, dy, options = describe(x), describe(center), describe(y), _step_options(norm, low, high)
    status = _project(address(dx), address(dc), eps, address(options), _target(dy))
    _done("project", status, (x, center, y, dx, dc, dy, options))


@_compiled
def pgd_step(
    x: Any,
    center: Any,
    grad: Any,
    step: float,
    eps: float,
    y: Any,
    norm: int = 0,
    low: float = -_OPEN,
    high: float = _OPEN,
) -> None:
    """Write a step along the steepest direction, projected onto the ball, to y; y may be x, center or grad."""
    dx, dc, dg, dy = describe(x), describe(center), describe(grad), describe(y)
    options = _step_options(norm, low, high)
    status = _pgd(address(dx), address(dc), address(dg), step, eps, address(options), _target(dy), 0)
    _done("pgd_step", status, (x, center, grad, y, dx, dc, dg, dy, options))


@_compiled
def random_in_ball(
    center: Any, eps: float, key: int, y: Any, norm: int = 0, low: float = -_OPEN, high: float = _OPEN
) -> None:
    """Write a point of the ball around each sample to y, uniform, a function of the key and the place alone."""
    dc, dy, options = describe(center), describe(y), _step_options(norm, low, high)
    status = _ball(address(dc), eps, np.uint64(_whole(key)), address(options), _target(dy))
    _done("random_in_ball", status, (center, y, dc, dy, options))
