"""The options of a policy loss, checked, and the numbers that the kernels take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npkernels._arrays import choice, number
from npkernels._grpo_types import AGGREGATES, IMPORTANCES, KLS, LEVELS, LOSSES
from npkernels._sequences import Layout

SURROGATES = ("clip", "cap", "range", "gate", "geometric", "log")  # as grpo.h numbers them
INF = np.inf


@dataclass(frozen=True)
class Options:
    """What a policy loss is made of."""

    surrogate: str
    sequence_level: bool
    aggregate: str
    max_length: float
    total_tokens: float | None
    clip: tuple[float, float]
    delta: float
    dual_clip: float
    tau: tuple[float, float]
    kl: str
    beta: float
    kl_clamp: tuple[float, float]
    of_sequence: bool
    truncates: bool
    importance_cap: float

    def numbers(self) -> tuple[Any, ...]:
        """In the order of bind_policy.cpp."""
        return (
            SURROGATES.index(self.surrogate),
            int(self.sequence_level),
            AGGREGATES.index(self.aggregate),
            self.max_length,
            -1.0 if self.total_tokens is None else self.total_tokens,
            *self.clip,
            self.delta,
            self.dual_clip,
            *self.tau,
            KLS.index(self.kl),
            self.beta,
            *self.kl_clamp,
            int(self.of_sequence),
            int(self.truncates),
            self.importance_cap,
        )


def options_of(
    function: str,
    loss: str,
    level: str | None,
    aggregate: str | None,
    clip: Any,
    kl: str,
    beta: float,
    kl_clamp: Any,
    dual_clip: float | None,
    delta: float | None,
    tau: Any,
    max_length: int | None,
    total_tokens: float | None,
    importance: Any,
    layout: Layout,
    sampler: bool,
    ref: bool,
) -> Options:
    """Check the options of a loss by name; what would be ignored is an error."""
    choice(function, "loss", loss, tuple(LOSSES))
    about = LOSSES[loss]
    if level is not None:
        choice(function, "level", level, LEVELS)
        if about.surrogate in ("geometric", "log") and level != about.level:
            raise ValueError(f"{function}: level is {level!r}; loss {loss!r} has only {about.level!r}")
    if aggregate is not None:
        choice(function, "aggregate", aggregate, AGGREGATES)
    chosen = aggregate or about.aggregate
    choice(function, "kl", kl, KLS)
    b = number(function, "beta", beta)
    if not np.isfinite(b):
        raise ValueError(f"{function}: beta is {beta!r}; expected a finite number")
    if b != 0 and not ref:
        raise ValueError(f"{function}: beta is {beta!r}, but ref_logp is None; the KL term needs it")
    if importance is not None and not sampler:
        raise ValueError(
            f"{function}: importance is {importance!r}, but sampler_logp is None; it corrects for that"
        )
    used = {
        "dual_clip": (dual_clip, about.surrogate == "clip", f"loss {loss!r}"),
        "delta": (delta, about.surrogate == "clip", f"loss {loss!r}"),
        "tau": (tau, about.surrogate == "gate", f"loss {loss!r}"),
        "max_length": (max_length, chosen == "seq-mean-token-sum-norm", f"aggregate {chosen!r}"),
        "total_tokens": (total_tokens, chosen == "token-mean", f"aggregate {chosen!r}"),
    }
    for name, (value, uses, what) in used.items():
        if value is not None and not uses:
            raise ValueError(f"{function}: {name} is {value!r}, but {what} does not use it; leave it out")
    mode, cap = ("sequence-mask", 3.0) if importance is None else _importance(function, importance)
    return Options(
        surrogate=about.surrogate,
        sequence_level=(level or about.level) == "sequence",
        aggregate=chosen,
        max_length=_above(function, "max_length", max_length, 0, max(layout.longest(), 1)),
        total_tokens=None if total_tokens is None else _above(function, "total_tokens", total_tokens, 0, 1),
        clip=pair(function, "clip", clip),
        delta=_above(function, "delta", delta, 0, INF),
        dual_clip=_above(function, "dual_clip", dual_clip, 1, INF),
        tau=(1.0, 1.05) if tau is None else pair(function, "tau", tau, positive=True),
        kl=kl,
        beta=b,
        kl_clamp=(INF, INF) if kl_clamp is None else pair(function, "kl_clamp", kl_clamp),
        of_sequence=mode.startswith("sequence"),
        truncates=mode.endswith("truncate"),
        importance_cap=cap,
    )


def pair(function: str, name: str, value: Any, *, positive: bool = False) -> tuple[float, float]:
    """Two numbers >= 0 (inf is fine), or > 0."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) != 2:
        raise TypeError(f"{function}: {name} is {value!r}; expected two numbers")
    low, high = (number(function, name, v) for v in value)
    least = "> 0" if positive else ">= 0"
    for v in (low, high):
        if not (v > 0 or (v == 0 and not positive)):
            raise ValueError(f"{function}: {name} is {value!r}; expected two numbers {least}")
    return low, high


def _above(function: str, name: str, value: Any, bound: float, default: float) -> float:
    if value is None:
        return float(default)
    v = number(function, name, value)
    if not bound < v < INF:
        raise ValueError(f"{function}: {name} is {value!r}; expected a finite number above {bound}")
    return v


def _importance(function: str, importance: Any) -> tuple[str, float]:
    if isinstance(importance, str) or not isinstance(importance, Sequence) or len(importance) != 2:
        raise TypeError(f"{function}: importance is {importance!r}; expected (mode, largest ratio)")
    mode, cap = importance
    choice(function, "importance", mode, IMPORTANCES)
    most = number(function, "importance", cap)
    if not most > 0:
        raise ValueError(
            f"{function}: importance is {importance!r}; expected a largest ratio above 0 (inf: none)"
        )
    return mode, most
