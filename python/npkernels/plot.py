"""Pictures: which query looks at which key, and how steep a function is. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array, choice, floating, number, shape_error
from npkernels._party import party
from npkernels._plot_anisotropy import anisotropy

__all__ = ["anisotropy", "attention"]

ArrayLike = npt.ArrayLike

MOST_LABELS = 48  # along an axis; of longer sequences every n-th token is named
FORBIDDEN, WRONG = "#e4e4e4", "#d1495b"  # weights of exactly 0, and NaN


def attention(
    weights: ArrayLike,
    tokens: Sequence[str] | None = None,
    *,
    keys: Sequence[str] | None = None,
    view: str = "heads",
    heads: Sequence[int] | None = None,
    threshold: float = 0.05,
    title: str | None = None,
) -> Any:
    """Draw the weights that `npkernels.attention_weights` gives.

    Parameters
    ----------
    weights : array_like (S, K), (H, S, K) or (1, H, S, K)
        Weights of queries S and keys K. One entry of a batch: ``weights[b]``.
    tokens : sequence of str, optional
        The text of the keys; if there are more keys than queries, the queries are the last of them (decoding). Default:
        their numbers.
    keys : sequence of str, optional
        The text of the keys where they are not the same tokens (cross-attention); `tokens` is then that of the queries.
    view : "heads" or "tokens"
        "heads": one panel per head, queries downwards, keys across, all on one scale; grey is a weight of exactly 0
        (forbidden), red is NaN. "tokens": queries on the left, keys on the right, and lines as strong as the weights,
        in the colour of their head and side by side.
    heads : sequence of int, optional
        Which heads, in this order; default all.
    threshold : float
        In the view of tokens, weights below this share of the largest have no line.
    title : str, optional
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure
        Not attached to any window; ``figure.savefig("attention.png")`` writes it, notebooks show it.

    Raises
    ------
    ImportError
        Without matplotlib.
    TypeError, ValueError
        If an argument has the wrong dtype, shape or value.

    Examples
    --------
    >>> import numpy as np, npkernels.plot
    >>> q = np.eye(3)
    >>> weights = npkernels.attention_weights(q, 4 * q, causal=True)
    >>> figure = npkernels.plot.attention(weights, ["to", "be", "or"])  # doctest: +SKIP
    >>> figure.savefig("attention.png")  # doctest: +SKIP
    """
    function = "plot.attention"
    w, numbers = _chosen_heads(function, weights, heads)
    rows, columns = _labels(function, tokens, keys, w.shape[1], w.shape[2])
    choice(function, "view", view, ("heads", "tokens"))
    share = number(function, "threshold", threshold)
    if not 0 <= share <= 1:
        raise ValueError(f"{function}: threshold is {threshold!r}; expected a share from 0 to 1")
    if view == "heads":
        figure = _draw_heads(w, numbers, rows, columns)
    else:
        figure = _draw_tokens(w, numbers, rows, columns, share)
    if title is not None:
        figure.suptitle(title, parse_math=False)
    return figure


def _chosen_heads(function: str, weights: Any, heads: Any) -> tuple[Array, list[int]]:
    """Weights (H, S, K) as float64, and the numbers of the heads."""
    w = floating(function, "weights", weights)
    if w.ndim == 4 and w.shape[0] == 1:
        w = w[0]
    if w.ndim == 2:
        w = w[None]
    if w.ndim != 3:
        shape_error(
            function, "weights", w.shape, "(S, K), (H, S, K) or (1, H, S, K); of a batch pass weights[b]"
        )
    if 0 in w.shape:
        shape_error(function, "weights", w.shape, "at least one head, query and key")
    count = w.shape[0]
    try:
        numbers = list(range(count)) if heads is None else [operator.index(h) for h in heads]
    except TypeError:
        raise TypeError(f"{function}: heads is {heads!r}; expected a sequence of integers") from None
    if not numbers or not all(-count <= h < count for h in numbers):
        raise ValueError(f"{function}: heads is {heads!r}; expected numbers from 0 to {count - 1}")
    return w[numbers].astype(np.float64), [h % count for h in numbers]


def _labels(function: str, tokens: Any, keys: Any, count: int, key_count: int) -> tuple[list[str], list[str]]:
    """Text of the queries and of the keys."""
    last = key_count - count  # where the queries begin, if they are the last of the keys
    if tokens is None and keys is None:
        first = max(last, 0)
        return [str(first + i) for i in range(count)], [str(j) for j in range(key_count)]
    for name, given in (("tokens", tokens), ("keys", keys)):
        if isinstance(given, str) or not (given is None or isinstance(given, Iterable)):
            raise TypeError(
                f"{function}: {name} is a {type(given).__name__}; expected a sequence of str, one for each token"
            )
    if keys is None:
        text = [_shown(t) for t in tokens]
        if len(text) != key_count or last < 0:
            raise ValueError(
                f"{function}: tokens has {len(text)} entries, weights have {count} queries and {key_count} keys; "
                "expected one per key, or one per query with the others as keys="
            )
        return text[last:], text
    columns = [_shown(t) for t in keys]
    rows = [str(i) for i in range(count)] if tokens is None else [_shown(t) for t in tokens]
    for name, text, expected in (("tokens", rows, count), ("keys", columns, key_count)):
        if len(text) != expected:
            raise ValueError(f"{function}: {name} has {len(text)} entries; expected {expected}")
    return rows, columns


def _shown(token: Any) -> str:
    """One line of text that can be seen: the spaces and line ends of tokens have signs of their own."""
    text = str(token).replace("\n", "↵").replace("\t", "⇥")
    return text.replace(" ", "␣") if not text.strip() else text


def _matplotlib(name: str) -> Any:
    return party("npkernels.plot", f"matplotlib.{name}", "3.8", "npkernels[plot]")


def _ticks(labels: list[str]) -> list[int]:
    """Which labels there is room for: every one, or every 2nd, 5th, 10th, ..."""
    steps = (m * 10**e for e in range(10) for m in (1, 2, 5))
    return list(range(0, len(labels), next(n for n in steps if len(labels) <= n * MOST_LABELS)))


def _draw_heads(w: Array, numbers: list[int], rows: list[str], columns: list[str]) -> Any:
    across = min(len(w), math.ceil(math.sqrt(len(w) * 1.3)))
    down = math.ceil(len(w) / across)
    width, height = (min(max(0.22 * len(text), 2.2), 9.0) for text in (columns, rows))
    room = 0.07 * max(len(t) for t in [*rows, *columns])  # for the text beside the outer panels
    size = (across * width + room + 1.2, down * (height + 0.3) + room + 0.6)
    figure = _matplotlib("figure").Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    shades = ["#f3f7fb", "#7fb2d9", "#1b6ca8", "#0b2e4f"]
    colours = _matplotlib("colors").LinearSegmentedColormap.from_list("weights", shades)
    colours = colours.with_extremes(under=FORBIDDEN, bad=WRONG)
    largest = float(np.nanmax(w, initial=0.0)) or 1.0
    image = None
    for panel, head, picture in zip(panels.flat, numbers, w, strict=False):
        image = panel.imshow(
            picture,
            cmap=colours,
            vmin=np.nextafter(0, 1),
            vmax=largest,
            aspect="auto",
            interpolation="nearest",
        )
        panel.set_title(f"head {head}", fontsize=9)
        panel.tick_params(length=0, labelsize=7)
        for side in panel.spines.values():
            side.set_visible(False)
    for panel in panels.flat[len(w) :]:
        panel.set_visible(False)
    for panel in panels[:, 0]:
        panel.set_yticks(_ticks(rows), [rows[i] for i in _ticks(rows)], parse_math=False)
    for panel in panels[-1]:
        panel.set_xticks(
            _ticks(columns), [columns[j] for j in _ticks(columns)], rotation=90, parse_math=False
        )
    for i in range(across):  # where the last row is not full, the panel above it bears the text
        lowest = max(j for j in range(down) if j * across + i < len(w))
        panels[lowest, i].tick_params(labelbottom=True)
    figure.supxlabel("keys", fontsize=9)
    figure.supylabel("queries", fontsize=9)
    bar = figure.colorbar(image, ax=panels, shrink=0.6, pad=0.02)
    bar.set_label("weight", fontsize=9)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    return figure


def _draw_tokens(w: Array, numbers: list[int], rows: list[str], columns: list[str], threshold: float) -> Any:
    longest = max(len(rows), len(columns))
    room = [0.085 * max(len(t) for t in text) + 0.3 for text in (rows, columns)]
    size = (room[0] + 3.2 + room[1] + 0.9, min(max(0.22 * longest, 1.6), 40.0) + 0.8)
    figure = _matplotlib("figure").Figure(figsize=size, layout="constrained")
    panel = figure.subplots()
    shown = np.nan_to_num(w)
    largest = float(shown.max()) or 1.0
    palette = _palette(len(w))
    left, right = (
        np.arange(len(text)) + longest - len(text) for text in (rows, columns)
    )  # the ends side by side
    lanes = (
        0.6 * (np.arange(len(w)) - (len(w) - 1) / 2) / len(w)
    )  # within a token's height: no head hides another
    for head, weights, colour, lane in zip(numbers, shown, palette, lanes, strict=True):
        i, j = np.nonzero((weights > 0) & (weights >= threshold * largest))
        ends = np.empty((len(i), 2, 2))  # from (0, query) to (1, key)
        ends[:, 0, 0], ends[:, 0, 1], ends[:, 1, 0], ends[:, 1, 1] = 0, left[i] + lane, 1, right[j] + lane
        strength = np.empty((len(i), 4))
        strength[:, :3], strength[:, 3] = colour, weights[i, j] / largest
        width = 1.6 if len(w) < 4 else 1.1
        lines = _matplotlib("collections").LineCollection(ends, colors=strength, linewidths=width)
        lines.set_label(f"head {head}")
        panel.add_collection(lines)
    sides = ((0, -0.02, left, rows, "queries", "right"), (1, 0.02, right, columns, "keys", "left"))
    for x, gap, places, labels, name, side in sides:
        panel.text(x + gap, places[0] - 1.1, name, ha=side, va="center", fontsize=8, color="#666666")
        for n in _ticks(labels):
            panel.text(x + gap, places[n], labels[n], ha=side, va="center", fontsize=8, parse_math=False)
    panel.set_xlim(-room[0] / 3.2, 1 + room[1] / 3.2)
    panel.set_ylim(longest - 0.4, -1.7)
    panel.axis("off")
    if len(w) > 1:
        line = _matplotlib("lines").Line2D
        named = zip(numbers, palette, strict=True)
        handles = [line([], [], color=c, linewidth=2, label=f"head {h}") for h, c in named]
        figure.legend(handles=handles, loc="outside right upper", fontsize=7, frameon=False)
    return figure


def _palette(count: int) -> Array:
    """Colours (count, 3) that stay apart for any kind of colour vision, as far as their number allows."""
    if count <= 8:  # Okabe and Ito, "Color universal design", 2008
        names = ("0072B2", "D55E00", "009E73", "CC79A7", "E69F00", "56B4E9", "000000", "8C8C00")
        return np.array([[int(n[k : k + 2], 16) / 255 for k in (0, 2, 4)] for n in names[:count]])
    rainbow = _matplotlib("colors").hsv_to_rgb
    hues = np.arange(count) / count
    colours: Array = rainbow(np.stack([hues, np.full(count, 0.9), np.full(count, 0.75)], axis=-1))
    return colours
