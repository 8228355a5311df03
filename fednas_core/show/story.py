"""The sentences of a report: what a run reached, how it came about, and how its clients fare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fednas_core.base.metrics import Metric
from fednas_core.base.units import duration, macs
from fednas_core.runs.record import HandedOver, ModelRow, OwnModel, Spread
from fednas_core.show.panel import finite
from fednas_core.show.read import RunData
from fednas_core.show.search import searches
from fednas_core.show.searched import made
from fednas_core.show.stage import going_on
from fednas_core.show.tested import MOST_TIERS, by_tier, deviation, images, last

SEARCHED = {"fitness": " by a fitness, without measuring,", "accuracy": " by accuracy measured on validation images"}
"""How the networks of a supernet were found, in words."""


def headline(run: RunData) -> tuple[str, str]:
    """Return the result in one sentence, and how it came about in another."""
    method, metric = _method(run), run.metric
    how = f"{number(run.done, 'round')} over {number(clients_of(run), 'client')}"
    if run.result is None:
        return _unfinished(run, f"{method} has trained for {how}")
    if run.result.personal:
        return _personal(run, method, how)
    reached = listed(
        f"{m.device} " + together(f"{metric.text(_best(m, metric))} at {macs(m.macs)}") for m in run.models
    )
    if not reached:
        return f"{method} trained for {how} and chose no model", "No trained network keeps any of the budgets."
    split = "test" if all(finite(metric.of(m.test)) for m in run.models) else "validation"
    what = "a network for each of " + number(len(run.models), "device") if len(run.models) > 1 else "one network"
    if searches(run.rounds):
        story = f"{made(run.rounds, method, how)} The search left {what}. "
    else:
        by = SEARCHED.get(str(run.result.search), "")
        story = f"One supernet was trained with {method} for {how}, who kept their images; it was searched{by} and "
        story += f"left {what}. "
    story += f"{metric.plural} are those on the {split} set."
    handed = known_of(run.result.clients, metric)
    if run.settings.get("personal.arch") and handed:
        story += " Each client keeps to an architecture of its own, which does on its own images: "
        story += f"{_spread(handed, metric)}."
    return reached, story


def _unfinished(run: RunData, trained: str) -> tuple[str, str]:
    """Tell how far a run has come."""
    if not run.rounds:
        return trained, ""
    latest, metric = run.rounds[-1], run.metric
    value = metric.text(metric.of(latest.metrics))
    now = going_on(latest, metric)
    reached = f"{trained}; its clients' training {metric.title.lower()} is {value}"
    return reached, f"Where it is: {now}." if now else ""


def _personal(run: RunData, method: str, how: str) -> tuple[str, str]:
    """Tell a finished run whose networks are complete on the clients only."""
    metric, plural = run.metric, run.metric.plural
    handed = known_of(run.result.clients if run.result else (), metric)
    story = (
        f"{method} trained the shared layers for {how}. Their images never left the clients, nor did {stays(run)}: no "
        "complete network exists on the server. "
    )
    if handed:
        which = " that it never trained on" if all(model.held_out for _, model in handed) else ", also trained on"
        story += f"{plural} are those of each client's own model on images of its own{which}."
        return _spread(handed, metric), story
    _, rows = last(run.rounds)
    if not rows:
        return f"{method} trained for {how}; no client tested a network", story
    reached = listed(f"{row.name} {metric.text(row.clients.spread.mean)}" for row in rows if row.clients)
    story += f"{plural} are those at the last evaluation, {images(rows)}."
    return f"{reached} on average over the clients", story


def stays(run: RunData) -> str:
    """Return in words which layers of a finished run never left the clients, '' if none."""
    parts = run.result.personal if run.result else ()
    return listed("the head" if part == "head" else part for part in parts)


def clients_story(rows: Sequence[HandedOver], metric: Metric) -> str:
    """Return the spread over the clients in a few sentences: mean, worst tenth, budgets, and who went without."""
    handed = [row for row in rows if row.model]
    if not handed:
        return "No client could be handed a model."
    text = f"{number(len(handed), 'client')} of {len(rows)} run a model of their own"
    known = known_of(rows, metric)
    if not known:
        return f"{text}; none has images to spare from training, so that nobody knows how accurate they are there."
    if len(known) < len(handed):
        text += f", of which {len(handed) - len(known)} had no image to spare from training to test it on"
    trained = any(not model.held_out for _, model in known)
    where = ", on images they trained on (data.holdout keeps some apart)," if trained else ""
    found = spread_of(known, metric)
    text += (
        f": {metric.title.lower()} there{where} "
        f"{metric.text(found.mean)} on average, {metric.text(found.worst_decile)} over the worst tenth, "
        f"with a standard deviation of {deviation(found, metric)}{' points' * bool(metric.unit)}."
    )
    tiers = tiers_of(known, metric)
    if tiers:
        told = [f"{name} {metric.text(one.mean)} ({metric.text(one.worst_decile)})" for name, one in tiers.items()]
        text += f" By budget, the worst tenth in brackets: {listed(map(together, told))}."
    return text


Known = Sequence[tuple[HandedOver, OwnModel]]
"""Clients that run a model and know how good it is there."""


def known_of(rows: Sequence[HandedOver], metric: Metric) -> Known:
    """Return the clients that run a model and know how good it is there."""
    return [(row, row.model) for row in rows if row.model and metric.of(row.model.metrics) is not None]


def spread_of(known: Known, metric: Metric) -> Spread:
    """Return how clients' own models do there."""
    return Spread.of([value for _, value in _values(known, metric)], metric)


def tiers_of(known: Known, metric: Metric) -> dict[str, Spread]:
    """Return how clients' own models do, by budget; nothing where there is one budget only, or too many."""
    tiers = by_tier(_values(known, metric), metric)
    return tiers if 1 < len(tiers) <= MOST_TIERS else {}


def _values(known: Known, metric: Metric) -> list[tuple[str, float]]:
    """Return budget and value of each client."""
    found = []
    for row, model in known:
        value = metric.of(model.metrics)
        if value is not None:
            found.append((row.budget, value))
    return found


def _spread(known: Known, metric: Metric) -> str:
    found = spread_of(known, metric)
    mean, worst = together(metric.text(found.mean)), together(metric.text(found.worst_decile))
    return f"{mean} on average over {number(found.clients, 'client')}, {worst} over the worst tenth"


def _method(run: RunData) -> str:
    return (run.result.method if run.result else "") or str(run.settings.get("method", "This run"))


def _best(model: ModelRow, metric: Metric) -> float | None:
    """Return the value to quote: on the test set, or the validation split where there is none."""
    tested = metric.of(model.test)
    return tested if finite(tested) else metric.of(model.validation)


def clients_of(run: RunData) -> int:
    """Return how many clients took part."""
    names = {client for _, client, _ in run.failures}
    for event in run.rounds:
        names |= {row.client for row in event.clients}
    return len(names)


def spent(seconds: Mapping[str, float]) -> str:
    """Return a run's time and where it went, e.g. ``1 min 46 s: start 5.2 s, training 1 min 22 s``."""
    told = [f"{phase} {duration(value)}" for phase, value in seconds.items() if phase != "total" and value]
    whole = sum(value for phase, value in seconds.items() if phase != "total")
    return f"{duration(whole)}: {', '.join(told)}"


def number(value: int, noun: str) -> str:
    """Return e.g. ``1 round`` or ``3 rounds``."""
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"


def listed(items: Iterable[str]) -> str:
    """Return ``a, b and c``."""
    *head, tail = list(items) or [""]
    return f"{', '.join(head)} and {tail}" if head else tail


def together(text: str) -> str:
    """Return text that is not broken over two lines."""
    return text.replace(" ", "\u00a0")
