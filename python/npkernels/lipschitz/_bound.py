"""The result of every estimate of a Lipschitz constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["lower", "upper", "estimate"]


@dataclass(frozen=True, eq=False)
class Bound:
    """A number that bounds or estimates a Lipschitz constant; ``float(bound)`` is the largest value.

    Attributes
    ----------
    value : float or array (B,)
        The bound; one for each sample where there are samples. Arrays are of the kind that came in.
    kind : "lower", "upper" or "estimate"
        What the constant is certain to be: at least the value, at most, or neither. What is exact up to rounding is
        called "upper".
    direction : array or None
        The input direction that attains the value, of length 1, or the perturbation that did.
    residual : float or None
        Of an iteration: how far the direction is from a singular one, ``|A^T A v - s^2 v| / s^2``. There is a singular
        value within ``residual * value``, and if it is the largest, the value is off by about the square of that. None
        where nothing was iterated.
    details : dict
        What else is known: slopes, quantiles, fits; of an iteration how many ``iterations`` there were, and whether it
        ``converged``.
    """

    value: Any
    kind: Kind
    direction: Any = None
    residual: float | None = None
    details: Any = None

    def __float__(self) -> float:
        """The value, or the largest of several."""
        return float(np.max(np.asarray(self.value), initial=0))
