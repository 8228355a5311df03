"""What a round was to a search, in a few words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fednas_core.base.metrics import Metric
from fednas_core.base.units import count, macs, milliseconds, size
from fednas_core.methods.story import Rewarded, Scored, Story, Takes
from fednas_core.runs.record import RoundEvent

AMOUNTS: Mapping[str, Callable[[float], str]] = {
    "macs": macs,
    "params": lambda value: f"{count(value)} params",
    "bytes": size,
    "ms": milliseconds,
}
"""How an amount of each resource is written."""


def going_on(event: RoundEvent, metric: Metric) -> str:
    """Return in a few words what a round was to the search, e.g. ``iteration 2, round 1/3: 5 candidates``."""
    told = event.search
    if not told:
        return ""
    where = f"{told.round}/{told.of}"
    if told.stage == "finish":
        return f"finish {told.finishing} {where}"
    if told.stage == "start":
        tested = [f", {metric.brief(metric.of(test.metrics))} where tested" for test in told.tests or ()]
        return f"start {where}{''.join(tested)}"
    iteration = f"iteration {told.iteration}"
    if told.outcome:
        return f"{iteration}: {_result(told)}"
    if told.dropped:
        return f"{iteration}, round {where}: {len(told.dropped)} of {len(told.alive)} dropped"
    trained = {str(row.network) for row in event.clients} & set(told.alive)
    if len(trained) < len(told.alive):
        which = next(iter(trained)) if len(trained) == 1 else str(len(trained))
        return f"{iteration}, {where} rounds done: {which} of {len(told.alive)} trained"
    return f"{iteration}, round {where}: {len(told.alive)} candidate{'s' * (len(told.alive) != 1)}"


def _result(told: Story) -> str:
    """Return what came of an iteration, in the terms of its kind of search."""
    if told.outcome is None or told.outcome.winner is None:
        return "no candidate was trained and tested"
    leader = told.outcome.leader
    match told.own:
        case Rewarded(rewards=(*_, last)):
            return f"reward mean {last.mean:.2g} best {last.best:.2g}"
        case Scored(score=score):
            return f"leader {leader}, score {score:.3f}"
        case Takes(resource=resource, takes=takes):
            return f"winner {leader} at {AMOUNTS[resource](takes)}"
    return f"winner {leader}"
