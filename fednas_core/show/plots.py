"""The plots of a report, one small panel each. Every function returns finished SVG text, "" where there is no data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fednas_core.base.metrics import Metric
from fednas_core.runs.record import ModelRow, Point, RoundEvent, Single
from fednas_core.show.panel import (
    DASHES,
    GRID,
    MARKERS,
    PAPER,
    SERIES,
    SOFT,
    Panel,
    finite,
    metric_label,
    scale,
    short,
)
from fednas_core.show.tested import last, singles, tiers_of

LAST_ROUNDS = 5
WORST = (0, (1, 1.2))
"""The dashes of a worst tenth."""
NAMED = 3
"""So many clients, those of least accuracy, are named in a plot."""


def against_macs(points: Sequence[Point], models: Sequence[ModelRow], metric: Metric, title: str) -> str:
    """Plot searched networks against their MACs, the chosen ones and their budgets marked."""
    return _against("macs", "MACs of one image", lambda one: one.macs, points, models, metric, title)


def against_params(points: Sequence[Point], models: Sequence[ModelRow], metric: Metric, title: str) -> str:
    """Plot searched networks against their parameters, the chosen ones marked."""
    return _against("params", "parameters", lambda one: one.params, points, models, metric, title)


def _against(
    name: str,
    words: str,
    cost: Callable[[Point | ModelRow], int],
    points: Sequence[Point],
    models: Sequence[ModelRow],
    metric: Metric,
    title: str,
) -> str:
    """Plot the metric of networks against `cost`, on an axis named by `words`."""
    shown, chosen = [], []
    for point in points:
        value = metric.of(point.validation)
        if finite(value) and cost(point) > 0:
            shown.append((cost(point), value, point.on_frontier))
    for i, model in enumerate(models):
        value = metric.of(model.validation)
        if finite(value) and cost(model) > 0:
            chosen.append((i, model, value))
    costs = [one for one, _, _ in shown] + [cost(model) for _, model, _ in chosen]
    if not costs:
        return ""
    factor, _, word = scale(max(costs))
    panel = Panel(f"{metric.name}-{name}")
    for on in (False, True):
        some = sorted((one / factor, value) for one, value, there in shown if there is on)
        if some:
            x, y = zip(*some, strict=True)
            told, alpha, area = ("on the frontier", 0.9, 13) if on else ("searched, not on it", 0.35, 9)
            panel.axes.scatter(x, y, color=SOFT, linewidths=0, alpha=alpha, s=area, label=told)
            if on and name == "macs":
                panel.axes.plot(x, y, color=SOFT, linewidth=0.9)
    panel.axes.margins(x=0.06, y=0.12)
    if max(costs) > 12 * min(costs):
        panel.log_axis()
    panel.label(f"{word} {words}", title)
    panel.axes.update_datalim([(cost(model) / factor, value) for _, model, value in chosen])
    panel.axes.autoscale_view()
    panel.metric_axis(metric)
    for i, model, value in chosen:
        budget = model.budget_macs / factor if name == "macs" and model.budget_macs is not None else 0.0
        panel.mark(cost(model) / factor, value, f"{short(model.device)}: {metric.text(value)}", i, budget)
    return panel.svg("lower right")


def learning_curves(rounds: Sequence[RoundEvent], metric: Metric | None) -> str:
    """Plot a metric (None: the loss) of the evaluated networks on the validation split, of clients in training."""
    if not rounds:
        return ""
    curves: dict[str, list[tuple[int, float]]] = {}
    for event in rounds:
        for row in event.evaluation or ():
            value = metric.of(row.metrics) if metric else row.loss
            if finite(value):
                curves.setdefault(row.name, []).append((event.round, value))
    panel = Panel(f"learning-{metric.name if metric else 'loss'}")
    numbers = [event.round for event in rounds]
    found = [metric.of(event.metrics) if metric else event.loss for event in rounds]
    values = [value if finite(value) else np.nan for value in found]
    alone = "." if len(rounds) == 1 else None
    panel.axes.plot(numbers, values, color=SOFT, linewidth=1.0, alpha=0.8, label="clients, training", marker=alone)
    for i, (name, curve) in enumerate(curves.items()):
        n = i % len(SERIES)
        x, y = zip(*curve, strict=True)
        marker = MARKERS[n] if len(x) <= 40 else None
        panel.axes.plot(x, y, color=SERIES[n], linestyle=DASHES[n], marker=marker, markersize=4, label=short(name))
    panel.label("round", metric_label(metric) if metric else "Cross-entropy loss")
    panel.round_axis(numbers)
    if metric:
        panel.metric_axis(metric)
        return panel.svg("lower right")
    panel.axes.set_ylim(bottom=0)
    return panel.svg("upper right")


def traffic(rounds: Sequence[RoundEvent]) -> str:
    """Plot bytes of each round: up above the zero line, down below."""
    if not rounds:
        return ""
    numbers = [event.round for event in rounds]
    up = np.array([event.bytes_up for event in rounds], dtype=float)
    down = np.array([event.bytes_down for event in rounds], dtype=float)
    factor, prefix, _ = scale(max(up.max(), down.max()))
    panel = Panel("traffic")
    panel.steps(numbers, up / factor, SERIES[0], "up: clients to server")
    panel.steps(numbers, -down / factor, SERIES[4], "down: server to clients")
    panel.axes.axhline(0, color=SOFT, linewidth=0.6)
    panel.axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    panel.label("round", f"Payload, {prefix}B a round")
    panel.round_axis(numbers)
    panel.axes.margins(y=0.25)
    return panel.svg("upper right", columns=2)


def compute(rounds: Sequence[RoundEvent]) -> str:
    """Plot the clients' multiply-accumulates of each round, forward and backward."""
    if not rounds:
        return ""
    numbers = [event.round for event in rounds]
    macs = np.array([event.client_macs for event in rounds], dtype=float)
    factor, _, word = scale(macs.max())
    panel = Panel("compute")
    panel.steps(numbers, macs / factor, SERIES[2], "")
    panel.label("round", f"All clients' compute, {word} MACs a round")
    panel.round_axis(numbers)
    return panel.svg()


def spread_over_rounds(rounds: Sequence[RoundEvent], metric: Metric) -> str:
    """Plot, for each round, range, middle half and median of what clients come to in training."""
    rows = []
    for event in rounds:
        found = [metric.of(row.metrics) for row in event.clients]
        values = [value for value in found if finite(value)]
        if values:
            rows.append((event.round, values))
    if not rows:
        return ""
    x = [number for number, _ in rows]
    low, q1, median, q3, high = np.array([np.percentile(values, (0, 25, 50, 75, 100)) for _, values in rows]).T
    panel = Panel("spread-rounds")
    panel.axes.fill_between(x, low, high, color=SERIES[0], alpha=0.15, linewidth=0, label="all clients")
    panel.axes.fill_between(x, q1, q3, color=SERIES[0], alpha=0.3, linewidth=0, label="middle half of them")
    panel.axes.plot(x, median, color=SERIES[0], label="median", marker="o" if len(x) == 1 else None)
    panel.label("round", metric_label(metric, f"Training {metric.title.lower()} of single clients"))
    panel.round_axis([event.round for event in rounds])
    panel.metric_axis(metric)
    return panel.svg("lower right")


def spread_over_clients(rounds: Sequence[RoundEvent], metric: Metric) -> str:
    """Plot what each client comes to in training (mean and range of its last rounds) against its examples."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for event in rounds[-LAST_ROUNDS:]:
        for row in event.clients:
            value = metric.of(row.metrics)
            if finite(value):
                seen.setdefault(row.client, []).append((row.examples, value))
    if not seen:
        return ""
    panel = Panel("spread-clients")
    names = sorted(seen)
    examples, means, low, high = [], [], [], []
    for name in names:
        values = [value for _, value in seen[name]]
        examples.append(seen[name][-1][0])
        means.append(float(np.mean(values)))
        low.append(min(values))
        high.append(max(values))
    panel.axes.vlines(examples, low, high, color=SERIES[0], alpha=0.35, linewidth=2)
    panel.axes.plot(examples, means, "o", color=SERIES[0], markersize=4, alpha=0.9)
    worst = sorted(zip(means, examples, names, strict=True), key=lambda one: (metric.rank(one[0]), *one[1:]))
    for mean, x, name in worst[:NAMED]:
        if mean < 1 or not metric.unit:
            at = {"xytext": (5, 3), "textcoords": "offset points", "color": SOFT, "size": 7}
            panel.axes.annotate(short(name, 9), (x, mean), **at)
    span = f"last {LAST_ROUNDS} rounds" if len(rounds) >= LAST_ROUNDS else "all rounds"
    panel.label("training examples on the client", metric_label(metric, f"Training {metric.title.lower()}, {span}"))
    panel.axes.set_xlim(0, 1.12 * panel.axes.dataLim.x1)
    panel.metric_axis(metric)
    return panel.svg()


def trial_curves(rounds: Sequence[RoundEvent], metric: Metric) -> str:
    """Plot the clients' mean and worst tenth on their own images, of each followed network over the rounds."""
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for event in rounds:
        for row in event.evaluation or ():
            if row.clients:
                point = (event.round, row.clients.spread.mean, row.clients.spread.worst_decile)
                curves.setdefault(row.name, []).append(point)
    if not curves:
        return ""
    panel = Panel("trial-curves")
    for i, (name, curve) in enumerate(curves.items()):
        n = i % len(SERIES)
        x, mean, worst = zip(*curve, strict=True)
        look = {"color": SERIES[n], "marker": MARKERS[n] if len(x) <= 40 else None, "markersize": 4}
        panel.axes.plot(x, mean, label=short(name), **look)
        panel.axes.plot(x, worst, linestyle=WORST, markerfacecolor=PAPER, **look)
    panel.axes.plot([], [], color=SOFT, linestyle=WORST, label="worst tenth")
    panel.label("round", f"Clients' mean (filled) and worst tenth{', %' * bool(metric.unit)}")
    panel.round_axis([event.round for event in rounds])
    panel.metric_axis(metric)
    return panel.svg("lower right")


def ranked(found: Mapping[str, Single], metric: Metric) -> list[tuple[str, float]]:
    """Return clients and their values from worst to best."""
    known = []
    for name, one in found.items():
        value = metric.of(one.metrics)
        if value is not None:
            known.append((name, value))
    return sorted(known, key=lambda item: (metric.rank(item[1]), item[0]))


def trial_clients(rounds: Sequence[RoundEvent], metric: Metric) -> str:
    """Plot each client's value in the last trial, of its largest network, from worst to best, coloured by tier."""
    number, rows = last(rounds)
    found = singles(rows)
    if not found:
        return ""
    panel = Panel("trial-clients")
    order, tiers = ranked(found, metric), tiers_of(found.values())
    size = 5 if len(order) <= 40 else 3
    for i, tier in enumerate(tiers or [""]):
        n = i % len(SERIES)
        some = [(x, y) for x, (name, y) in enumerate(order, 1) if not tiers or found[name].tier == tier]
        x, y = zip(*some, strict=True)
        panel.axes.plot(x, y, MARKERS[n], color=SERIES[n], markersize=size, label=short(tier or "a client"))
    tenth = -(-len(order) // 10)
    panel.axes.axvspan(0.5, tenth + 0.5, color=GRID, alpha=0.6, linewidth=0, zorder=0, label="worst tenth")
    title = f"{metric.title} of single clients after round {number}"
    panel.label("clients, from worst to best", metric_label(metric, title))
    panel.round_axis([1, len(order)])
    panel.metric_axis(metric)
    return panel.svg("lower right")
