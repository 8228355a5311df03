"""What a report says, in the words and units it says it: the run's data made ready for the templates."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from fednas_core.base.units import count, duration, macs, size
from fednas_core.show import plots, searched, treeplot
from fednas_core.show.cells import ClientCells, FailureCells, ModelCells, client_cells, failure_cells, model_cells
from fednas_core.show.panel import metric_label
from fednas_core.show.read import RunData
from fednas_core.show.search import searches
from fednas_core.show.story import clients_of, clients_story, headline, listed, spent, stays
from fednas_core.show.tested import TERMS, Table, by_clients, by_network, history, images, last, singles

MOST_REASONS = 50
MOST_CLIENTS = 100
EVALUATIONS = "Networks that are followed: on the server's validation images; where clients tested them, on theirs."


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: plots as (description, SVG), a table, and words on the plots alone.

    Plots that are `wide` stand below each other, and below them the table, of which then the caption tells.
    """

    title: str
    text: str
    plots: tuple[tuple[str, str], ...]
    table: Table | None = None
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """Everything the templates show, as text: tables are sequences of rows or of name and value."""

    id: str
    metric: str
    headline: str
    story: str
    notes: tuple[str, ...]
    tiles: tuple[tuple[str, str], ...]
    time: str
    models: tuple[ModelCells, ...]
    clients: tuple[ClientCells, ...]
    more_clients: int
    clients_story: str
    supernet: str
    evaluations: Table | None
    failures: tuple[FailureCells, ...]
    more_failures: int
    settings: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]

    @property
    def tables(self) -> tuple[tuple[str, str, Table], ...]:
        """The tables of sections and evaluations as (title, text, table)."""
        found = [(s.title, f"{s.text} {s.caption}" if s.wide else s.text, s.table) for s in self.sections if s.table]
        if self.evaluations:
            found.append(("Evaluations over rounds", EVALUATIONS, self.evaluations))
        return tuple(found)


def view_of(run: RunData) -> View:
    """Return what the report of `run` says, plots included (needs the extra 'report')."""
    reached, story = headline(run)
    failures = failure_cells(run)
    handed = run.result.clients if run.result else ()
    versions = run.versions or (run.result.versions if run.result else {})
    return View(
        id=_id(run),
        metric=run.metric.title.lower(),
        headline=reached,
        story=story,
        notes=run.notes,
        tiles=_tiles(run),
        time=spent(run.seconds),
        models=tuple(model_cells(run, i, model) for i, model in enumerate(run.models)),
        clients=tuple(client_cells(row, run.metric) for row in handed[:MOST_CLIENTS]),
        more_clients=max(0, len(handed) - MOST_CLIENTS),
        clients_story=clients_story(handed, run.metric) if handed else "",
        supernet=_supernet(run),
        evaluations=history(run.rounds, run.metric),
        failures=failures[:MOST_REASONS],
        more_failures=max(0, len(failures) - MOST_REASONS),
        settings=tuple((key, _text(value)) for key, value in run.settings.items()),
        versions=tuple((key, _text(value)) for key, value in versions.items()),
        sections=_sections(run),
    )


def _id(run: RunData) -> str:
    return (run.result.run if run.result else "") or run.folder.resolve().name


def _tiles(run: RunData) -> tuple[tuple[str, str], ...]:
    rounds = run.rounds
    return (
        ("Rounds", str(run.done)),
        ("Clients", str(clients_of(run))),
        ("Sent up", size(sum(event.bytes_up for event in rounds))),
        ("Sent down", size(sum(event.bytes_down for event in rounds))),
        ("Compute, MACs", count(sum(event.client_macs for event in rounds))),
        ("Time", duration(sum(run.seconds.values()))),
        ("Failures", str(len(run.failures))),
    )


def _supernet(run: RunData) -> str:
    """Return a sentence on the supernet or the search's start."""
    if run.result is None:
        return ""
    found = run.result.supernet
    which = "The network that the search started from" if searches(run.rounds) else "The supernet's largest network"
    return f"{which}: {macs(found.macs)} and {count(found.params)} parameters."


def _sections(run: RunData) -> tuple[Section, ...]:
    """Return the sections that have something to show."""
    sections = (_own_images(run), _contest(run), _search(run), _learning(run), *_training(run))
    shown = []
    for section in sections:
        drawn = tuple(plot for plot in section.plots if plot[1])
        if drawn:
            shown.append(replace(section, plots=drawn))
    return tuple(shown)


def _contest(run: RunData) -> Section:
    """Return how networks competed, if they did."""
    if not searches(run.rounds):
        return Section("", "", ())
    metric = run.metric
    return Section(
        "The search",
        searched.told(run.rounds),
        (
            (f"Candidates' {metric.title.lower()} over the iterations", treeplot.search_tree(run.rounds, metric)),
            ("Rewards over the iterations", treeplot.reward_curves(run.rounds)),
        ),
        searched.candidates(run.rounds, metric),
        searched.terms(run.rounds, metric),
        wide=True,
    )


def _search(run: RunData) -> Section:
    points, models, metric = run.frontier or (), run.models, run.metric
    if stays(run):
        text = (
            "Every network the search looked at: the mean over the clients whose budget allows it, on images of theirs."
        )
        title = metric_label(metric, f"Clients' mean {metric.title.lower()}")
        points = points if len(points) > 1 else ()
    else:
        which = searched.kept(run.rounds) if searches(run.rounds) else "Every network the search looked at"
        text = f"{which}. On the validation split; the chosen ones are large. Dotted lines: the budgets."
        title = metric_label(metric, f"Validation {metric.title.lower()}")
    return Section(
        f"{metric.title} against cost",
        text,
        (
            (f"{title} against MACs", plots.against_macs(points, models, metric, title)),
            (f"{title} against parameters", plots.against_params(points, models, metric, title)),
        ),
    )


def _learning(run: RunData) -> Section:
    metric, (_, rows) = run.metric, last(run.rounds)
    alone = bool(rows) and all(by_clients(row, metric) for row in rows)
    whose = "the clients' own validation images (mean over clients)" if alone else "the server's validation split"
    who = " 'leader' is whichever network leads the search at that time." if searches(run.rounds) else ""
    return Section(
        "Learning",
        f"Networks that are followed, on {whose}, and the mean of the clients on their own training examples (of "
        f"whatever network each of them trained). Losses are cross-entropies of the labels, not smoothed.{who}",
        (
            (f"{metric.title} over rounds", plots.learning_curves(run.rounds, metric)),
            ("Loss over rounds", plots.learning_curves(run.rounds, None)),
        ),
    )


def _own_images(run: RunData) -> Section:
    """Return what the clients found that tested networks themselves, of networks, tiers and single clients."""
    metric, (number, rows) = run.metric, last(run.rounds)
    if not rows:
        return Section("", "", ())
    found = singles(rows)
    limited = any(row.clients.spread.clients < len(found) for row in rows if row.clients)
    who = "each of which tested what its budget allows," if limited else "each of which tested every network"
    text = (
        f"After round {number}: {len(found)} clients, {who if len(rows) > 1 else 'which tested the network'} "
        f"{images(rows)}. {TERMS} "
    )
    worst = [f"{name} {metric.text(value)}" for name, value in plots.ranked(found, metric)[: plots.NAMED]]
    text += f"Worst off: {listed(worst)}."
    if stays(run):
        text += f" What stays on a client, {stays(run)}, is its own in each network."
    if any(row.macs is None for row in rows):
        text += " Network 'own': each client's own architecture."
    return Section(
        f"{metric.title} on each client's own images",
        text,
        (
            ("Mean and worst tenth of the clients over rounds", plots.trial_curves(run.rounds, metric)),
            (f"{metric.title} of single clients", plots.trial_clients(run.rounds, metric)),
        ),
        by_network(rows, metric),
        "Single clients: of the networks that a client tested, the largest." if len(rows) > 1 else "",
    )


def _training(run: RunData) -> tuple[Section, ...]:
    """Return what rounds cost and how training went on single clients."""
    rounds, metric = run.rounds, run.metric
    name = metric.title.lower()
    return (
        Section(
            "Traffic and compute",
            "What all clients of a round sent, received and computed together.",
            (("Bytes per round", plots.traffic(rounds)), ("Client compute per round", plots.compute(rounds))),
        ),
        Section(
            "Spread over clients in training",
            f"{metric.title} of each client on its own training examples, in its last local epoch. Dots: means over "
            f"the last {plots.LAST_ROUNDS} rounds; bars: from the worst to the best of them.",
            (
                (f"Clients' {name} over rounds", plots.spread_over_rounds(rounds, metric)),
                (f"Clients' {name} against their number of examples", plots.spread_over_clients(rounds, metric)),
            ),
        ),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
