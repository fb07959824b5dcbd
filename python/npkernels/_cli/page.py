"""Measurements as one page that needs nothing else: tables, a roofline and bars, the pictures inside."""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from npkernels._cli import report
from npkernels._cli.bench import Outcome, Run

COLOURS = {"npkernels": "#1b6ca8", "numpy": "#8a8d91", "torch": "#d1495b", "scipy": "#e0a030"}
MARKERS = {"softmax": "o", "attention": "s", "grpo": "^", "perturb": "D"}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; }
.words td, .words th, td.name, th.name { text-align: left; white-space: normal; }
img { max-width: 100%; }
"""


def html(run: Run) -> str:
    """Give the whole page."""
    head, *rows = report.rows(run)
    figures = _table([["", *head], *([str(i), *row] for i, row in enumerate(rows, 1))], "")
    about = _table(
        [*([k, v] for k, v in run.about.items()), ["limits", run.limits.text()]], "words", head=False
    )
    body = [
        "<h1>npkernels: measurements</h1>",
        about,
        "<h2>Times</h2>",
        "<p>Time: the median of calls that were interleaved with those of the others. Other libraries: their time as "
        "a multiple of it; above 1 npkernels is faster. Rate: bytes read and written once each, or operations of the "
        "allowed pairs, over the time.</p>",
        figures,
    ]
    bounded = [o for o in run.outcomes if o.workload.limit != "none"]
    if bounded:
        body += [
            "<h2>Beside the limits of the machine</h2>",
            "<p>Numbers as in the table. Filled: npkernels; hollow: the fastest other library. The lines are what the "
            "machine can do: kernels that only read are under the slope of reading, the others under that of copying. "
            "An array that fits into the cache may be above.</p>",
            _image(_roofline(run), "operations per second over operations per byte"),
        ]
    body += [
        "<h2>Beside other libraries</h2>",
        _image(_bars(run.outcomes), "time of other libraries as a multiple of that of npkernels"),
    ]
    start = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>npkernels: measurements</title>'
    )
    return f"{start}<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"


def _table(rows: Iterable[Sequence[str]], kind: str, head: bool = True) -> str:
    lines = []
    for i, row in enumerate(rows):
        tag = "th" if head and i == 0 else "td"
        cells = (f"<{tag}{_name(cell, j)}>{escape(cell)}</{tag}>" for j, cell in enumerate(row))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<table class="{kind}">\n' + "\n".join(lines) + "\n</table>"


def _name(cell: str, column: int) -> str:
    return ' class="name"' if column == 1 else ""


def _image(figure: Any, text: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'


def _figure(width: float, height: float) -> Any:
    return importlib.import_module("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def _roofline(run: Run) -> Any:
    """Operations per second over operations per byte, with the roofs of the machine."""
    figure = _figure(10, 6)
    axes = figure.add_subplot()
    bounded = [(i, o) for i, o in enumerate(run.outcomes, 1) if o.workload.limit != "none"]
    intensity = [o.workload.flops / o.workload.bytes for _, o in bounded]
    left, right = min(intensity) / 3, max(max(intensity) * 3, 100.0)
    top = run.limits.multiply_adds
    copy = run.limits.of("copy")
    for name, bandwidth, style in (("read", run.limits.read, ":"), ("copy", copy, "--")):
        knee = min(max(top / bandwidth, left), right)
        slope = [x * bandwidth / 1e9 for x in (left, knee)]
        axes.plot([left, knee], slope, f"k{style}", lw=1, label=f"{name}, {bandwidth / 1e9:.0f} GB/s")
    knee = min(top / max(copy, run.limits.read), right)
    axes.plot(
        [knee, right], [top / 1e9] * 2, "k-", lw=1, label=f"float32 multiply-adds, {top / 1e9:.0f} GFLOP/s"
    )
    for (number, outcome), x in zip(bounded, intensity, strict=True):
        y = outcome.workload.flops / outcome.seconds() / 1e9
        marker = MARKERS[outcome.workload.family]
        axes.plot(x, y, marker, color=COLOURS["npkernels"], ms=8)
        axes.annotate(str(number), (x, y), xytext=(7, 3), textcoords="offset points", fontsize=9)
        other = min((outcome.seconds(name) for name in outcome.times if name != "npkernels"), default=None)
        if other is not None:
            axes.plot(
                x, outcome.workload.flops / other / 1e9, marker, mfc="none", color=COLOURS["torch"], ms=7
            )
    axes.set(xscale="log", yscale="log", xlim=(left, right), xlabel="operations per byte", ylabel="GFLOP/s")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right")
    return figure


def _bars(outcomes: Sequence[Outcome]) -> Any:
    """The other libraries' times as multiples of ours."""
    others = list(dict.fromkeys(name for o in outcomes for name in o.times if name != "npkernels"))
    figure = _figure(10, 1.2 + 0.6 * len(outcomes))
    axes = figure.add_subplot()
    height = 0.8 / max(len(others), 1)
    for i, name in enumerate(others):
        bars = [(row + i * height, o.ratio(name)) for row, o in enumerate(outcomes) if name in o.times]
        places, ratios = zip(*bars, strict=True)
        drawn = axes.barh(places, ratios, height, color=COLOURS.get(name), label=name)
        axes.bar_label(drawn, [f"{ratio:.1f}" for ratio in ratios], padding=2, fontsize=8)
    axes.axvline(1, color="k", lw=1)
    centre = 0.4 - height / 2
    axes.set_yticks([row + centre for row in range(len(outcomes))], [o.workload.name for o in outcomes])
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set(xscale="log", xlabel="times npkernels (log scale); right of the line npkernels is faster")
    axes.legend(loc="best")
    return figure
