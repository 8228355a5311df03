"""The sentences of a report: what a run reached, how it came about, and how its clients fare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fednas_core.base.units import count, duration, macs, percent
from fednas_core.show.panel import finite
from fednas_core.show.read import RunData
from fednas_core.show.search import going_on, searches
from fednas_core.show.searched import made
from fednas_core.show.tested import MOST_TIERS, by_tier, images, last, spread_of, tested

Row = Mapping[str, Any]

SEARCHED = {"fitness": " by a fitness, without measuring,", "accuracy": " by accuracy measured on validation images"}
"""How the networks of a supernet were found, in words."""


def headline(run: RunData) -> tuple[str, str]:
    """Return the result in one sentence, and how it came about in another."""
    method = _method(run)
    how = f"{number(run.done, 'round')} over {number(clients_of(run), 'client')}"
    if run.result is None:
        reached = f"; its clients' training accuracy is {percent(run.rounds[-1]['accuracy'])}" if run.rounds else ""
        now = going_on(run.rounds[-1]) if run.rounds else ""
        return f"{method} has trained for {how}{reached}", f"Where it is: {now}." if now else ""
    if stays(run):
        return _personal(run, method, how)
    reached = listed(f"{m['device']} " + together(f"{percent(_best(m))} at {macs(m['macs'])}") for m in run.models)
    if not reached:
        return f"{method} trained for {how} and chose no model", "No trained network keeps any of the budgets."
    split = "test" if all(finite(m["test_accuracy"]) for m in run.models) else "validation"
    what = "a network for each of " + number(len(run.models), "device") if len(run.models) > 1 else "one network"
    if searches(run.rounds):
        story = f"{made(run.rounds, method, how)} The search left {what}. "
    else:
        by = SEARCHED.get(str((run.result or {}).get("search")), "")
        story = f"One supernet was trained with {method} for {how}, who kept their images; it was searched{by} and "
        story += f"left {what}. "
    story += f"Accuracies are those on the {split} set."
    handed = _handed(run)
    if run.settings.get("personal.arch") and handed:
        story += f" Each client keeps to an architecture of its own, which does on its own images: {_spread(handed)}."
    return reached, story


def _personal(run: RunData, method: str, how: str) -> tuple[str, str]:
    """Tell a finished run whose networks are complete on the clients only."""
    handed = _handed(run)
    story = (
        f"{method} trained the shared layers for {how}. Their images never left the clients, nor did {stays(run)}: no "
        "complete network exists on the server. "
    )
    if handed:
        held_out = all(row.get("held_out") for row in handed)
        which = " that it never trained on" if held_out else ", also trained on"
        story += f"Accuracies are those of each client's own model on images of its own{which}."
        return _spread(handed), story
    _, rows = last(run.rounds)
    if not rows:
        return f"{method} trained for {how}; no client tested a network", story
    reached = listed(f"{row['name']} {percent(row['clients']['mean'])}" for row in rows)
    story += f"Accuracies are those at the last evaluation, {images(rows)}."
    return f"{reached} on average over the clients", story


def stays(run: RunData) -> str:
    """Return in words which layers of a finished run never left the clients, '' if none."""
    parts = (run.result or {}).get("personal") or ()
    return listed("the head" if part == "head" else str(part) for part in parts)


def clients_story(rows: Sequence[Row]) -> str:
    """Return the spread over the clients in a few sentences: mean, worst tenth, budgets, and who went without."""
    handed = [row for row in rows if not row.get("reason")]
    if not handed:
        return "No client could be handed a model."
    text = f"{number(len(handed), 'client')} of {len(rows)} run a model of their own"
    known = tested(handed)
    if not known:
        return f"{text}; none has images to spare from training, so that nobody knows how accurate they are there."
    if len(known) < len(handed):
        text += f", of which {len(handed) - len(known)} had no image to spare from training to test it on"
    trained = any(not row.get("held_out") for row in known)
    where = ", on images they trained on (data.holdout keeps some apart)," if trained else ""
    found = spread_of([row["accuracy"] for row in known])
    text += (
        f": accuracy there{where} "
        f"{percent(found['mean'])} on average, {percent(found['worst_decile'])} over the worst tenth, "
        f"with a standard deviation of {100 * found['std']:.1f} points."
    )
    tiers = by_tier((budget(row["budget"]), row["accuracy"]) for row in known)
    if 1 < len(tiers) <= MOST_TIERS:
        told = (f"{name} {percent(one['mean'])} ({percent(one['worst_decile'])})" for name, one in tiers.items())
        text += f" By budget, the worst tenth in brackets: {listed(map(together, told))}."
    return text


def _handed(run: RunData) -> list[Row]:
    """Return the rows of the clients that run a model and know how accurate it is."""
    return tested([row for row in (run.result or {}).get("clients") or () if not row.get("reason")])


def _spread(handed: Sequence[Row]) -> str:
    found = spread_of([row["accuracy"] for row in handed])
    mean, worst = (together(percent(found[key])) for key in ("mean", "worst_decile"))
    return f"{mean} on average over {number(found['clients'], 'client')}, {worst} over the worst tenth"


def _method(run: RunData) -> str:
    return str((run.result or {}).get("method") or run.settings.get("method", "This run"))


def _best(model: Row) -> Any:
    """Return the accuracy to quote: on the test set, or the validation split where there is none."""
    return model["test_accuracy"] if finite(model["test_accuracy"]) else model["validation_accuracy"]


def clients_of(run: RunData) -> int:
    """Return how many clients took part."""
    return len({c["client"] for e in run.rounds for c in e["clients"]} | {client for _, client, _ in run.failures})


def budget(told: object) -> str:
    """Return a budget as it is told; a number, as older runs hold, means MACs."""
    return f"{count(told)} MACs" if isinstance(told, int | float) else str(told)


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
