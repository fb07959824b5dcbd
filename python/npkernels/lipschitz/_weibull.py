"""The reverse Weibull law of maxima of bounded samples, fitted by maximum likelihood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npkernels._arrays import Array


@dataclass(frozen=True)
class WeibullFit:
    """``P(max <= s) = exp(-((location - s) / scale)^shape)``, and how far the maxima are from it at most (`ks`)."""

    shape: float
    location: float
    scale: float
    ks: float


def fit_maxima(maxima: Array) -> WeibullFit:
    """Fit by maximum likelihood, with shape >= 1: below 1 the likelihood has no maximum.

    The location is searched on a grid of gaps above the largest, from a thousandth to thirty times the spread; for each
    the likelihood in shape has one maximum, which bisection finds.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> fit = fit_maxima(7 - 0.5 * rng.weibull(2.0, 2000))
    >>> round(fit.location, 1), round(fit.shape, 0)
    (7.0, 2.0)
    """
    top = float(maxima.max())
    if not np.isfinite(top):  # a gradient was not a number, or beyond all
        return WeibullFit(np.nan, top, np.nan, np.nan)
    spread = float(np.ptp(maxima))
    if not spread > 1e-9 * abs(top):
        return WeibullFit(np.inf, top, 0.0, 0.0)
    best, answer = -np.inf, (1.0, top, spread)
    for gap in spread * np.geomspace(1e-3, 30, 120):
        y = top + gap - maxima
        shape, scale = _shape_and_scale(y)
        z = y / scale
        likelihood = float(np.sum(np.log(shape / scale) + (shape - 1) * np.log(z) - z**shape))
        if likelihood > best:
            best, answer = likelihood, (shape, top + gap, scale)
    shape, location, scale = map(float, answer)
    ranks = np.arange(len(maxima) + 1) / len(maxima)
    law = np.exp(-(((location - np.sort(maxima)) / scale) ** shape))
    ks = float(max(np.abs(law - ranks[1:]).max(), np.abs(law - ranks[:-1]).max()))
    return WeibullFit(shape, location, scale, ks)


def _shape_and_scale(y: Array) -> tuple[float, float]:
    """The k >= 1 with ``sum y^k log y / sum y^k - 1 / k = mean log y``, and its scale; y > 0 and not all equal."""
    unit = y / y.max()
    logs = np.log(unit)

    def excess(k: float) -> float:
        powers = unit**k
        return float((powers * logs).sum() / powers.sum() - 1 / k - logs.mean())

    low, high = 1.0, 2.0
    while excess(high) < 0 and high < 1e6:
        low, high = high, 2 * high
    if excess(1.0) < 0:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    else:
        low = 1.0
    return low, float(y.max() * np.mean(unit**low) ** (1 / low))
