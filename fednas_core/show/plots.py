"""The plots of a report, one small panel each. Every function returns finished SVG text, "" where there is no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fednas_core.show.panel import DASHES, GRID, MARKERS, PAPER, SERIES, SOFT, Panel, finite, scale, short
from fednas_core.show.tested import last, singles, tiers_of

Event = Mapping[str, Any]
LAST_ROUNDS = 5
WORST = (0, (1, 1.2))
"""The dashes of a worst tenth."""
NAMED = 3
"""So many clients, those of least accuracy, are named in a plot."""


def accuracy_against(
    cost: str, points: Sequence[Event], models: Sequence[Event], title: str = "Validation accuracy, %"
) -> str:
    """Plot the accuracy of searched networks against `cost` ('macs' or 'params'), the chosen ones marked."""
    shown = [p for p in points if finite(p["validation_accuracy"]) and p[cost] > 0]
    chosen = [(i, m) for i, m in enumerate(models) if finite(m["validation_accuracy"]) and m[cost] > 0]
    costs = [p[cost] for p in (*shown, *(m for _, m in chosen))]
    if not costs:
        return ""
    factor, _, word = scale(max(costs))
    panel = Panel(f"accuracy-{cost}")
    for on in (False, True):
        some = sorted((p[cost] / factor, p["validation_accuracy"]) for p in shown if bool(p["on_frontier"]) is on)
        if some:
            x, y = zip(*some, strict=True)
            name, alpha, area = ("on the frontier", 0.9, 13) if on else ("searched, not on it", 0.35, 9)
            panel.axes.scatter(x, y, color=SOFT, linewidths=0, alpha=alpha, s=area, label=name)
            if on and cost == "macs":
                panel.axes.plot(x, y, color=SOFT, linewidth=0.9)
    panel.axes.margins(x=0.06, y=0.12)
    if max(costs) > 12 * min(costs):
        panel.log_axis()
    panel.label(f"{word} {'MACs of one image' if cost == 'macs' else 'parameters'}", title)
    panel.axes.update_datalim([(model[cost] / factor, model["validation_accuracy"]) for _, model in chosen])
    panel.axes.autoscale_view()
    panel.percent_axis()
    for i, model in chosen:
        told = model.get("budget_macs", model["budget"])
        budget = told / factor if cost == "macs" and finite(told) else 0.0
        panel.mark(model[cost] / factor, model["validation_accuracy"], model["device"], i, budget)
    return panel.svg("lower right")


def learning_curves(key: str, rounds: Sequence[Event]) -> str:
    """Plot `key` ('accuracy' or 'loss'): of the evaluated networks on the validation split, of clients in training."""
    if not rounds:
        return ""
    curves: dict[str, list[tuple[int, float]]] = {}
    for event in rounds:
        for row in event.get("evaluation") or ():
            if finite(row.get(key)):
                curves.setdefault(str(row["name"]), []).append((event["round"], row[key]))
    panel = Panel(f"learning-{key}")
    numbers = [event["round"] for event in rounds]
    values = [event[key] if finite(event[key]) else np.nan for event in rounds]
    alone = "." if len(rounds) == 1 else None
    panel.axes.plot(numbers, values, color=SOFT, linewidth=1.0, alpha=0.8, label="clients, training", marker=alone)
    for i, (name, curve) in enumerate(curves.items()):
        n = i % len(SERIES)
        x, y = zip(*curve, strict=True)
        style = {"color": SERIES[n], "linestyle": DASHES[n], "marker": MARKERS[n] if len(x) <= 40 else None}
        panel.axes.plot(x, y, markersize=4, label=short(name), **style)
    panel.label("round", "Accuracy, %" if key == "accuracy" else "Cross-entropy loss")
    panel.round_axis(numbers)
    if key == "accuracy":
        panel.percent_axis()
        return panel.svg("lower right")
    panel.axes.set_ylim(bottom=0)
    return panel.svg("upper right")


def traffic(rounds: Sequence[Event]) -> str:
    """Plot bytes of each round: up above the zero line, down below."""
    if not rounds:
        return ""
    numbers = [event["round"] for event in rounds]
    up, down = (np.array([event[key] for event in rounds], dtype=float) for key in ("bytes_up", "bytes_down"))
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


def compute(rounds: Sequence[Event]) -> str:
    """Plot the clients' multiply-accumulates of each round, forward and backward."""
    if not rounds:
        return ""
    numbers = [event["round"] for event in rounds]
    macs = np.array([event["client_macs"] for event in rounds], dtype=float)
    factor, _, word = scale(macs.max())
    panel = Panel("compute")
    panel.steps(numbers, macs / factor, SERIES[2], "")
    panel.label("round", f"All clients' compute, {word} MACs a round")
    panel.round_axis(numbers)
    return panel.svg()


def spread_over_rounds(rounds: Sequence[Event]) -> str:
    """Plot, for each round, range, middle half and median of the clients' training accuracy."""
    found = [(e["round"], [c["accuracy"] for c in e["clients"] if finite(c.get("accuracy"))]) for e in rounds]
    rows = [(number, values) for number, values in found if values]
    if not rows:
        return ""
    x = [number for number, _ in rows]
    low, q1, median, q3, high = np.array([np.percentile(values, (0, 25, 50, 75, 100)) for _, values in rows]).T
    panel = Panel("spread-rounds")
    panel.axes.fill_between(x, low, high, color=SERIES[0], alpha=0.15, linewidth=0, label="all clients")
    panel.axes.fill_between(x, q1, q3, color=SERIES[0], alpha=0.3, linewidth=0, label="middle half of them")
    panel.axes.plot(x, median, color=SERIES[0], label="median", marker="o" if len(x) == 1 else None)
    panel.label("round", "Training accuracy of single clients, %")
    panel.round_axis([event["round"] for event in rounds])
    panel.percent_axis()
    return panel.svg("lower right")


def spread_over_clients(rounds: Sequence[Event]) -> str:
    """Plot each client's training accuracy (mean and range of its last rounds) against its number of examples."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for event in rounds[-LAST_ROUNDS:]:
        for client in event["clients"]:
            if finite(client.get("accuracy")):
                seen.setdefault(str(client["client"]), []).append((client["examples"], client["accuracy"]))
    if not seen:
        return ""
    panel = Panel("spread-clients")
    accuracies = {name: [accuracy for _, accuracy in values] for name, values in sorted(seen.items())}
    examples = [seen[name][-1][0] for name in accuracies]
    means = [float(np.mean(values)) for values in accuracies.values()]
    ends = [min(values) for values in accuracies.values()], [max(values) for values in accuracies.values()]
    panel.axes.vlines(examples, *ends, color=SERIES[0], alpha=0.35, linewidth=2)
    panel.axes.plot(examples, means, "o", color=SERIES[0], markersize=4, alpha=0.9)
    for mean, x, name in sorted(zip(means, examples, accuracies, strict=True))[:NAMED]:
        if mean < 1:
            at = {"xytext": (5, 3), "textcoords": "offset points", "color": SOFT, "size": 7}
            panel.axes.annotate(short(name, 9), (x, mean), **at)
    span = f"last {LAST_ROUNDS} rounds" if len(rounds) >= LAST_ROUNDS else "all rounds"
    panel.label("training examples on the client", f"Training accuracy, {span}, %")
    panel.axes.set_xlim(0, 1.12 * panel.axes.dataLim.x1)
    panel.percent_axis()
    return panel.svg()


def trial_curves(rounds: Sequence[Event]) -> str:
    """Plot the clients' mean and worst tenth on their own images, of each followed network over the rounds."""
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for event in rounds:
        for row in event.get("evaluation") or ():
            if row.get("clients"):
                point = (event["round"], row["clients"]["mean"], row["clients"]["worst_decile"])
                curves.setdefault(str(row["name"]), []).append(point)
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
    panel.label("round", "Clients' mean (filled) and worst tenth, %")
    panel.round_axis([event["round"] for event in rounds])
    panel.percent_axis()
    return panel.svg("lower right")


def trial_clients(rounds: Sequence[Event]) -> str:
    """Plot each client's accuracy in the last trial, of its largest network, from worst to best, coloured by tier."""
    number, rows = last(rounds)
    found = sorted(singles(rows).items(), key=lambda item: (item[1]["accuracy"], item[0]))
    if not found:
        return ""
    panel = Panel("trial-clients")
    tiers = tiers_of(one for _, one in found)
    size = 5 if len(found) <= 40 else 3
    for i, tier in enumerate(tiers or [""]):
        n = i % len(SERIES)
        some = [(x, one["accuracy"]) for x, (_, one) in enumerate(found, 1) if not tiers or one["tier"] == tier]
        x, y = zip(*some, strict=True)
        panel.axes.plot(x, y, MARKERS[n], color=SERIES[n], markersize=size, label=short(tier or "a client"))
    tenth = -(-len(found) // 10)
    panel.axes.axvspan(0.5, tenth + 0.5, color=GRID, alpha=0.6, linewidth=0, zorder=0, label="worst tenth")
    panel.label("clients, from worst to best", f"Accuracy of single clients after round {number}, %")
    panel.round_axis([1, len(found)])
    panel.percent_axis()
    return panel.svg("lower right")
