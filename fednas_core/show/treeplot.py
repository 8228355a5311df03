"""The plots of a search: its tree over the iterations, and the rewards of a policy that learns."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence

from fednas_core.base.metrics import Metric
from fednas_core.base.units import count
from fednas_core.methods.story import Story
from fednas_core.runs.record import RoundEvent
from fednas_core.show.panel import INK, MARKERS, PAPER, SERIES, SOFT, WIDE, Panel, metric_label
from fednas_core.show.search import START, Candidate, leaders, rewards, searches, tree_of

Points = list[tuple[float, float]]

MOST_NAMED = 26
"""Networks that are named along the path."""
LOW = (WIDE[0], 2.4)
LOOKS: Mapping[str, tuple[str, dict[str, object]]] = {
    "dropped": ("dropped early", {"marker": "x", "s": 13, "linewidths": 1.0, "color": SOFT, "alpha": 0.55}),
    "lost": ("lost", {"marker": "o", "s": 14, "linewidths": 0.9, "facecolors": PAPER, "edgecolors": SOFT}),
    "running": ("in the race", {"marker": "o", "s": 14, "linewidths": 0, "color": SOFT}),
}


def search_tree(rounds: Sequence[RoundEvent], metric: Metric) -> str:
    """Plot what every candidate came to at its tests over the iterations, those that led joined by a bold line.

    Where a candidate comes from the last iteration's winner, its line starts there; it ends where it was dropped.
    """
    rows, path = tree_of(rounds), leaders(rounds)
    curves = _curves(rounds, rows, metric)
    if len(curves) < 2:
        return ""
    panel = Panel("search-tree", WIDE)
    for outcome, (name, look) in LOOKS.items():
        some = [row for row in rows if row.outcome == outcome and row.network in curves]
        for row in some:
            x, y = zip(*curves[row.network], strict=True)
            panel.axes.plot(x, y, color=SOFT, linewidth=0.8, alpha=0.22 if outcome == "dropped" else 0.4, zorder=2)
        ends = [curves[row.network][-1] for row in some]
        if ends:
            panel.axes.scatter(*zip(*ends, strict=True), label=name, zorder=3, **look)
    _path(panel, [(row, curves[row.network]) for row in _ordered(rows, path) if row.network in curves])
    panel.label("iteration", metric_label(metric, "{} where tested"))
    _iterations(panel, max(row.iteration for row in rows))
    panel.axes.margins(y=0.16)
    panel.metric_axis(metric)
    return panel.svg("above", columns=4)


def reward_curves(rounds: Sequence[RoundEvent]) -> str:
    """Plot mean and best reward of each iteration's students; nothing where there are no rewards."""
    found = rewards(rounds)
    if not found:
        return ""
    panel = Panel("search-rewards", LOW)
    x = [row.iteration for row in found]
    curves = {
        "best of the iteration": [row.best for row in found],
        "mean of the iteration": [row.mean for row in found],
    }
    for i, (name, y) in enumerate(curves.items()):
        look = {"color": SERIES[i], "marker": MARKERS[i], "markersize": 4, "linewidth": 1.0 + 0.6 * i}
        panel.axes.plot(x, y, label=name, **look)
    panel.label("iteration", "Reward")
    panel.axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    _iterations(panel, x[-1])
    return panel.svg("above", columns=2)


def _curves(rounds: Sequence[RoundEvent], rows: Sequence[Candidate], metric: Metric) -> dict[str, Points]:
    """Return of each network that was tested iterations and values, from its parent's last test on."""
    at = {event.round: _place(told) for event, told in searches(rounds)}
    own: dict[str, Points] = {}
    for row in rows:
        values = [(at[test.round], metric.of(test.metrics)) for test in row.tests]
        own[row.network] = [(x, y) for x, y in values if y is not None]
    chained = any(row.parent not in ("", START) for row in rows) or all(row.iteration <= 1 for row in rows)
    curves = {}
    for row in rows:
        before = own.get(row.parent, [])[-1:] if chained else []
        near = [point for point in before if math.isclose(point[0], row.iteration - 1)]
        if own[row.network]:
            curves[row.network] = near + own[row.network]
    return curves


def _place(told: Story) -> float:
    """Return where a round lies on the axis of iterations; the start's last one at 0."""
    if told.stage == "compete":
        return float(told.iteration - 1 + told.round / told.of)
    return 0.0 if told.stage == START else float(told.iteration)


def _ordered(rows: Sequence[Candidate], path: Sequence[str]) -> list[Candidate]:
    known = {row.network: row for row in rows}
    return [known[label] for label in path if label in known]


def _path(panel: Panel, led: Sequence[tuple[Candidate, Points]]) -> None:
    """Draw the networks that led one after the other, with their names and MACs."""
    line: Points = []
    for _, curve in led:
        line += curve
    ends = [curve[-1] for _, curve in led]
    if not ends:
        return
    panel.axes.plot(*zip(*line, strict=True), color=SERIES[0], linewidth=2.0, zorder=4)
    look = {"marker": "o", "s": 38, "color": SERIES[0], "edgecolors": PAPER, "linewidths": 1}
    panel.axes.scatter(*zip(*ends, strict=True), zorder=5, label="won", **look)
    for row, (x, y) in list(zip((row for row, _ in led), ends, strict=True))[:: math.ceil(len(led) / MOST_NAMED)]:
        place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "va": "bottom", "size": 7}
        place["color"] = INK
        place["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
        panel.axes.annotate(f"{row.network}\n{count(row.macs)}", (x, y), linespacing=1.1, zorder=6, **place)


def _iterations(panel: Panel, last: int) -> None:
    """Number the horizontal axis by iterations; what was before them is the start."""
    ticker = importlib.import_module("matplotlib.ticker")
    panel.axes.xaxis.set_major_locator(ticker.MaxNLocator(26, integer=True, min_n_ticks=1))
    panel.axes.xaxis.set_major_formatter(lambda value, _: START if value == 0 else f"{value:g}")
    panel.axes.set_xlim(-0.03 * max(4, last), last + 0.03 * max(4, last))
