"""What a report says, in the words and units it says it: the run's data made ready for the templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from fednas_core.base.units import MISSING, count, duration, few, macs, milliseconds, percent, size
from fednas_core.show import plots, searched, treeplot
from fednas_core.show.panel import SERIES, finite
from fednas_core.show.read import RunData
from fednas_core.show.search import searches
from fednas_core.show.story import budget, clients_of, clients_story, headline, listed, spent, stays
from fednas_core.show.tested import TERMS, TRAINED_ON, Table, by_clients, by_network, history, images, last, singles

MOST_REASONS = 50
MOST_CLIENTS = 100
EVALUATIONS = "Networks that are followed: on the server's validation images; where clients tested them, on theirs."
FILES = (("card", "card.md"), ("ONNX", "model.onnx"), ("weights", "weights.safetensors"))


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
    headline: str
    story: str
    notes: tuple[str, ...]
    tiles: tuple[tuple[str, str], ...]
    time: str
    models: tuple[Mapping[str, Any], ...]
    clients: tuple[Mapping[str, Any], ...]
    more_clients: int
    clients_story: str
    supernet: str
    evaluations: Table | None
    failures: tuple[Mapping[str, str], ...]
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
    failures = _failures(run)
    handed = (run.result or {}).get("clients") or []
    versions = run.versions or (run.result or {}).get("versions", {})
    return View(
        id=_id(run),
        headline=reached,
        story=story,
        notes=run.notes,
        tiles=_tiles(run),
        time=spent(run.seconds),
        models=tuple(_model(run, i, model) for i, model in enumerate(run.models)),
        clients=tuple(map(_client, handed[:MOST_CLIENTS])),
        more_clients=max(0, len(handed) - MOST_CLIENTS),
        clients_story=clients_story(handed) if handed else "",
        supernet=_supernet(run),
        evaluations=history(run.rounds),
        failures=failures[:MOST_REASONS],
        more_failures=max(0, len(failures) - MOST_REASONS),
        settings=tuple((key, _text(value)) for key, value in run.settings.items()),
        versions=tuple((key, _text(value)) for key, value in versions.items()),
        sections=_sections(run),
    )


def _id(run: RunData) -> str:
    return str((run.result or {}).get("run") or run.folder.resolve().name)


def _tiles(run: RunData) -> tuple[tuple[str, str], ...]:
    return (
        ("Rounds", str(run.done)),
        ("Clients", str(clients_of(run))),
        ("Sent up", size(run.total("bytes_up"))),
        ("Sent down", size(run.total("bytes_down"))),
        ("Compute, MACs", count(run.total("client_macs"))),
        ("Time", duration(sum(run.seconds.values()))),
        ("Failures", str(len(run.failures))),
    )


def _model(run: RunData, number: int, model: Mapping[str, Any]) -> dict[str, Any]:
    device, error = str(model["device"]), model.get("export_max_abs_error")
    paths = [(name, f"models/{device}/{file}") for name, file in FILES]
    inside = "/" not in device and "\\" not in device and "\0" not in device and device not in ("", ".", "..")
    return {
        "device": device,
        "colour": number % len(SERIES),
        "test": percent(model["test_accuracy"]),
        "validation": percent(model["validation_accuracy"]),
        "budget": budget(model["budget"]),
        "macs": count(model["macs"]),
        "params": count(model["params"]),
        "bytes": size(model["bytes"]),
        "latency": milliseconds(model.get("latency_ms")),
        "error": MISSING if error is None else f"{error:.1e}",
        "arch": json.dumps(model["arch"], separators=(",", ":")),
        "files": [(name, quote(path)) for name, path in paths if inside and (run.folder / path).is_file()],
    }


def _client(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a client: the model it was handed and how it does on the device, or why it has none."""
    cells = {"client": str(row["client"]), "budget": budget(row["budget"]), "reason": str(row.get("reason") or "")}
    held_out = bool(row.get("held_out"))
    if cells["reason"]:
        return cells | dict.fromkeys(("accuracy", "tested", "macs", "bytes", "latency"), MISSING) | {"held_out": False}
    return cells | {
        "held_out": held_out,
        "accuracy": percent(row["accuracy"]) + ("" if held_out else f" {TRAINED_ON}"),
        "tested": f"{row['tested']} {'held out' if held_out else 'of its training'}" if row.get("tested") else MISSING,
        "macs": count(row["macs"]),
        "bytes": size(row["bytes"]),
        "latency": milliseconds(row.get("latency_ms")),
        "reason": "stored there" if row.get("stored") else "",
    }


def _supernet(run: RunData) -> str:
    """Return a sentence on the supernet or the search's start, from whichever of its numbers the result holds."""
    found = (run.result or {}).get("supernet") or {}
    which = "The network that the search started from" if searches(run.rounds) else "The supernet's largest network"
    says = (
        ("macs", macs, ""),
        ("params", count, " parameters"),
        ("validation_accuracy", percent, " on the validation split"),
        ("test_accuracy", percent, " on the test set"),
    )
    facts = [say(found[key]) + unit for key, say, unit in says if finite(found.get(key))]
    return f"{which}: {listed(facts)}." if facts else ""


def _failures(run: RunData) -> tuple[Mapping[str, str], ...]:
    """Return failures grouped by reason, the most frequent first."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for number, client, reason in run.failures:
        groups.setdefault(reason, []).append((number, client))
    return tuple(
        {
            "reason": reason,
            "clients": few(dict.fromkeys(client for _, client in rows)),
            "rounds": few(dict.fromkeys(str(number) for number, _ in rows)),
            "times": str(len(rows)),
        }
        for reason, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def _sections(run: RunData) -> tuple[Section, ...]:
    """Return the sections that have something to show."""
    sections = (_own_images(run), _contest(run), _search(run), _learning(run), *_training(run.rounds))
    shown = (replace(s, plots=tuple(plot for plot in s.plots if plot[1])) for s in sections)
    return tuple(section for section in shown if section.plots)


def _contest(run: RunData) -> Section:
    """Return how networks competed, if they did."""
    if not searches(run.rounds):
        return Section("", "", ())
    return Section(
        "The search",
        searched.told(run.rounds),
        (
            ("Candidates' accuracy over the iterations", treeplot.search_tree(run.rounds)),
            ("Rewards over the iterations", treeplot.reward_curves(run.rounds)),
        ),
        searched.candidates(run.rounds),
        searched.terms(run.rounds),
        wide=True,
    )


def _search(run: RunData) -> Section:
    points, models = run.frontier or (), run.models
    if stays(run):
        text = (
            "Every network the search looked at: the mean over the clients whose budget allows it, on images of theirs."
        )
        title = "Clients' mean accuracy, %"
        points = points if len(points) > 1 else ()
    else:
        which = searched.kept(run.rounds) if searches(run.rounds) else "Every network the search looked at"
        text = f"{which}. On the validation split; the chosen ones are large. Dotted lines: the budgets."
        title = "Validation accuracy, %"
    return Section(
        "Accuracy against cost",
        text,
        (
            (f"{title} against MACs", plots.accuracy_against("macs", points, models, title)),
            (f"{title} against parameters", plots.accuracy_against("params", points, models, title)),
        ),
    )


def _learning(run: RunData) -> Section:
    _, rows = last(run.rounds)
    alone = bool(rows) and all(map(by_clients, rows))
    whose = "the clients' own validation images (mean over clients)" if alone else "the server's validation split"
    who = " 'leader' is whichever network leads the search at that time." if searches(run.rounds) else ""
    return Section(
        "Learning",
        f"Networks that are followed, on {whose}, and the mean of the clients on their own training examples (of "
        f"whatever network each of them trained). Losses are cross-entropies of the labels, not smoothed.{who}",
        (
            ("Accuracy over rounds", plots.learning_curves("accuracy", run.rounds)),
            ("Loss over rounds", plots.learning_curves("loss", run.rounds)),
        ),
    )


def _own_images(run: RunData) -> Section:
    """Return what the clients found that tested networks themselves, of networks, tiers and single clients."""
    number, rows = last(run.rounds)
    if not rows:
        return Section("", "", ())
    found = singles(rows)
    limited = any(row["clients"]["clients"] < len(found) for row in rows)
    who = "each of which tested what its budget allows," if limited else "each of which tested every network"
    worst = sorted((one["accuracy"], name) for name, one in found.items())[: plots.NAMED]
    text = (
        f"After round {number}: {len(found)} clients, {who if len(rows) > 1 else 'which tested the network'} "
        f"{images(rows)}. {TERMS} "
    )
    text += f"Worst off: {listed(f'{name} {percent(accuracy)}' for accuracy, name in worst)}."
    if stays(run):
        text += f" What stays on a client, {stays(run)}, is its own in each network."
    if any(row["macs"] is None for row in rows):
        text += " Network 'own': each client's own architecture."
    return Section(
        "Accuracy on each client's own images",
        text,
        (
            ("Mean and worst tenth of the clients over rounds", plots.trial_curves(run.rounds)),
            ("Accuracy of single clients", plots.trial_clients(run.rounds)),
        ),
        by_network(rows),
        "Single clients: of the networks that a client tested, the largest." if len(rows) > 1 else "",
    )


def _training(rounds: Sequence[Mapping[str, Any]]) -> tuple[Section, ...]:
    """Return what rounds cost and how training went on single clients."""
    return (
        Section(
            "Traffic and compute",
            "What all clients of a round sent, received and computed together.",
            (("Bytes per round", plots.traffic(rounds)), ("Client compute per round", plots.compute(rounds))),
        ),
        Section(
            "Spread over clients in training",
            "Accuracy of each client on its own training examples, in its last local epoch. Dots: means over the last "
            f"{plots.LAST_ROUNDS} rounds; bars: from the worst to the best of them.",
            (
                ("Clients' accuracy over rounds", plots.spread_over_rounds(rounds)),
                ("Clients' accuracy against their number of examples", plots.spread_over_clients(rounds)),
            ),
        ),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
