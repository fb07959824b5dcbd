"""The picture of an anisotropy report."""

from __future__ import annotations

from typing import Any

import numpy as np

from npkernels._arrays import Array
from npkernels._party import party
from npkernels.lipschitz import Anisotropy

COLORS = {
    "natural": "#2f7d4f",
    "random": "#7a7a7a",
    "tangent": "#3b6fb6",
    "normal": "#b07d2b",
    "adversarial": "#b5342f",
}


def anisotropy(report: Anisotropy, *, ax: Any = None, title: str | None = None) -> Any:
    """Draw the slopes of `npkernels.lipschitz.anisotropy` by class of direction, on a logarithmic axis.

    Parameters
    ----------
    report : Anisotropy
        What `anisotropy` returned.
    ax : matplotlib Axes, optional
        Where to draw; a new figure without it.
    title : str, optional
        Above the picture: say what the slopes are of.

    Returns
    -------
    matplotlib Axes
        What was drawn on. Slopes of 0 have no place on the axis, nor those that are not finite; the labels count them.

    Raises
    ------
    ImportError
        Without matplotlib.
    TypeError
        If report is something else.

    Examples
    --------
    >>> import numpy as np, npkernels.plot
    >>> data = np.random.default_rng(0).random((30, 3))
    >>> report = npkernels.lipschitz.anisotropy(np.sin, np.cos, data[:5], data, 0.1)
    >>> axes = npkernels.plot.anisotropy(report, title="sine")  # doctest: +SKIP
    >>> axes.figure.savefig("anisotropy.png")  # doctest: +SKIP
    """
    if not isinstance(report, Anisotropy):
        raise TypeError(
            f"plot.anisotropy: report is a {type(report).__name__}; expected what lipschitz.anisotropy returned"
        )
    if ax is None:
        pyplot = party("npkernels.plot", "matplotlib.pyplot", "3.8", "npkernels[plot]")
        ax = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")[1]
    rng = np.random.default_rng(0)
    for row, (kind, slopes) in enumerate(report.slopes.items()):
        shown = slopes[(slopes > 0) & np.isfinite(slopes)]
        height = row + 0.5 * (rng.random(len(shown)) - 0.5)
        ax.scatter(shown, height, s=5, alpha=0.25, color=COLORS[kind], linewidths=0, rasterized=True)
        if len(shown):
            middle = float(np.median(shown))
            ax.plot([middle, middle], [row - 0.36, row + 0.36], color="black", linewidth=1.5)
            ax.annotate(f"{middle:.2g}", (middle, row - 0.38), ha="center", va="bottom", fontsize=8)
    labels = [_label(kind, slopes) for kind, slopes in report.slopes.items()]
    ax.set(
        xscale="log", yticks=range(len(labels)), yticklabels=labels, xlabel="slope |f(x + d) - f(x)| / |d|"
    )
    ax.invert_yaxis()
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    if title:
        ax.set_title(title, loc="left", fontsize=10)
    return ax


def _label(kind: str, slopes: Array) -> str:
    missing = [f"{n} of 0" for n in [int((slopes == 0).sum())] if n]
    missing += [f"{n} not finite" for n in [int((~np.isfinite(slopes)).sum())] if n]
    return f"{kind} ({', '.join(missing)})" if missing else kind
