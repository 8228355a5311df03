"""One plot of a report: an inline SVG whose colours and font are the page's, light or dark.

Colours are Okabe and Ito's (a darker purple for thin lines), which people with any colour vision can tell apart;
markers and dashes repeat what colour says.
"""

from __future__ import annotations

import importlib
import io
import math
import re
from collections.abc import Sequence
from typing import Any, TypeGuard

from fednas_core.base.errors import MissingExtraError
from fednas_core.base.metrics import Metric

SIZE, WIDE = (4.8, 3.0), (9.9, 3.9)
"""Inches of a panel, and of one as wide as the page: there its text of 8 points is about 11 pixels high."""
INK, SOFT, GRID, PAPER = "#1d2127", "#5d6570", "#dfe2e6", "#fdfdfc"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (6, 1.2, 1, 1.2)), (0, (1, 1)), (0, (8, 2)), (0, (2, 2)))
VARIABLES = {INK: "--ink", SOFT: "--soft", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--series-{i}" for i, colour in enumerate(SERIES)
}
STYLE = {
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
}
SCALES = ((1e12, "T", "trillion"), (1e9, "G", "billion"), (1e6, "M", "million"), (1e3, "k", "thousand"))


class Panel:
    """An empty plot to draw on (`axes`), with the few axes that reports need; `svg` finishes it."""

    def __init__(self, name: str, size: tuple[float, float] = SIZE) -> None:
        """Make a panel of this size; `name` is unique on its page. Needs matplotlib (extra 'report')."""
        try:
            self._matplotlib = importlib.import_module("matplotlib")
            figures = importlib.import_module("matplotlib.figure")
        except ModuleNotFoundError as error:
            raise MissingExtraError("matplotlib", "report", "drawing a report") from error
        self._style = {**STYLE, "svg.hashsalt": name}
        with self._matplotlib.rc_context(self._style):
            self._figure = figures.Figure(figsize=size, layout="constrained")
            self.axes = self._figure.add_subplot()

    def svg(self, legend: str = "", columns: int = 1) -> str:
        """Return the plot as an ``<svg>`` element, with a legend at this place: ``lower right`` etc. or ``above``."""
        buffer = io.StringIO()
        with self._matplotlib.rc_context(self._style):
            if legend:
                frame = {"frameon": True, "facecolor": PAPER, "framealpha": 0.85, "edgecolor": "none"}
                place = {"loc": "lower right", "bbox_to_anchor": (1, 1)} if legend == "above" else {"loc": legend}
                self.axes.legend(ncols=columns, handlelength=2.4, borderaxespad=0.2, **place, **frame)
            self._figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return inline(buffer.getvalue())

    def label(self, x: str, y: str) -> None:
        """Name the axes; the name of the vertical one stands above it, to be read without turning the head."""
        self.axes.set_xlabel(x)
        self.axes.set_title(y, loc="left", fontsize=8, color=SOFT)

    def metric_axis(self, metric: Metric) -> None:
        """Write shares on the vertical axis in per cent, and end it a little above 100 where it comes that far."""
        if not metric.unit:
            return
        self.axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}" if value <= 1 else "")
        low, high = self.axes.get_ylim()
        self.axes.set_ylim(max(low, -0.02), min(high, 1.0 + 0.03 * (1.0 - max(low, 0.0))))

    def round_axis(self, rounds: Sequence[int]) -> None:
        """Number the horizontal axis by whole rounds."""
        ticker = importlib.import_module("matplotlib.ticker")
        self.axes.xaxis.set_major_locator(ticker.MaxNLocator("auto", integer=True, min_n_ticks=1))
        pad = max(0.6, 0.02 * (rounds[-1] - rounds[0]))
        self.axes.set_xlim(rounds[0] - pad, rounds[-1] + pad)

    def log_axis(self) -> None:
        """Make the horizontal axis logarithmic, with plain numbers at 1, 2 and 5."""
        ticker = importlib.import_module("matplotlib.ticker")
        self.axes.set_xscale("log")
        self.axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        self.axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        self.axes.xaxis.set_minor_formatter(ticker.NullFormatter())

    def steps(self, rounds: Sequence[int], heights: Any, colour: str, name: str) -> None:
        """Draw one bar a round."""
        bars = {"color": colour, "alpha": 0.85, "label": name}
        if len(rounds) <= 100:
            self.axes.bar(rounds, heights, width=0.72, linewidth=0, **bars)
        else:
            self.axes.fill_between(rounds, heights, step="mid", linewidth=0, **bars)

    def mark(self, x: float, y: float, name: str, number: int, budget: float) -> None:
        """Mark a chosen network in colour and marker of device `number`, and its budget by a dotted line."""
        n = number % len(SERIES)
        look = {"marker": MARKERS[n], "color": SERIES[n], "edgecolors": PAPER, "linewidths": 1}
        self.axes.scatter([x], [y], s=58, zorder=5, label=name, **look)
        low, high = self.axes.get_xlim()
        if low < budget < high:
            self.axes.axvline(budget, color=SERIES[n], linewidth=1, linestyle=(0, (1, 2)), zorder=1)


def inline(svg: str) -> str:
    """Return an SVG file as an element of a page: no prologue, no ids in common, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    for attribute in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {attribute}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--sans)", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def scale(largest: float) -> tuple[float, str, str]:
    """Return (factor, prefix, word) to write numbers up to `largest` with: ``(1e6, "M", "million")``."""
    return next((row for row in SCALES if largest >= row[0]), (1.0, "", ""))


def metric_label(metric: Metric, words: str = "{}") -> str:
    """Return the name of an axis of a metric: `words` with its title, and its unit."""
    return words.format(metric.title) + (f", {metric.unit}" if metric.unit else "")


def finite(value: object) -> TypeGuard[float]:
    """Whether `value` is a number that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def short(name: str, length: int = 18) -> str:
    """Return a name in one line of at most `length` characters, fit for a legend."""
    line = " ".join(str(name).split())
    line = line if len(line) <= length else line[: length - 1] + "…"
    return f" {line}" if line.startswith("_") else line
