"""What an attack gives, and what is left of it if a callable raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class AttackResult:
    """Perturbed samples, and what is known about each.

    Attributes
    ----------
    x : array (B, ...)
        The perturbed samples: where an attack succeeded as they were then, else the best by loss, else the last.
    success : array of bool (B,) or None
        What `success` said of x; None if there was no such callable.
    step : array of int64 (B,) or None
        After how many steps a sample succeeded first (0: it was never right), counted through all restarts; -1 for
        never.
    distance : array (B,)
        Norm of x less the clean sample.
    norm : "inf", 2 or 1
        The norm that distance and ball are measured by.
    loss : array (B,) or None
        Loss at x, if `grad_fn` gives losses; NaN where it gave NaN alone, or was interrupted before it saw x.
    steps : int
        How many steps were taken, of all restarts.
    nan_count : int
        How many entries of the gradients that they followed were NaN.
    """

    x: Any
    success: Any
    step: Any
    distance: Any
    norm: Any
    loss: Any
    steps: int
    nan_count: int


class AttackError(RuntimeError):
    """A callable raised during an attack: `result` is what was found before, the cause is what it raised."""

    def __init__(self, message: str, result: AttackResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> Any:
        """Come whole out of another process."""
        return type(self), (*self.args, self.result)
