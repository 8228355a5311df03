"""What a report says, in the words and units it says it: the run's data made ready for the templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fednas_core.export.units import MISSING, count, duration, few, macs, milliseconds, percent, size
from fednas_core.report import plots
from fednas_core.report.panel import SERIES, finite
from fednas_core.report.read import RunData

MOST_REASONS = 50
MOST_CLIENTS = 100
FILES = (("card", "card.md"), ("ONNX", "model.onnx"), ("weights", "weights.safetensors"))


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: plots as (description, SVG)."""

    title: str
    text: str
    plots: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class View:
    """Everything the templates show, as text: tables are sequences of rows or of name and value."""

    id: str
    headline: str
    story: str
    notes: tuple[str, ...]
    tiles: tuple[tuple[str, str], ...]
    models: tuple[Mapping[str, Any], ...]
    clients: tuple[Mapping[str, str], ...]
    more_clients: int
    clients_story: str
    supernet: str
    evaluated: tuple[str, ...]
    evaluations: tuple[tuple[int, tuple[str, ...]], ...]
    failures: tuple[Mapping[str, str], ...]
    more_failures: int
    settings: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]


def view_of(run: RunData) -> View:
    """Return what the report of `run` says, plots included (needs the extra 'report')."""
    headline, story = _headline(run)
    failures = _failures(run)
    evaluated, evaluations = _evaluations(run)
    handed = (run.result or {}).get("clients") or []
    versions = run.versions or (run.result or {}).get("versions", {})
    return View(
        id=_id(run),
        headline=headline,
        story=story,
        notes=run.notes,
        tiles=_tiles(run),
        models=tuple(_model(run, i, model) for i, model in enumerate(run.models)),
        clients=tuple(map(_client, handed[:MOST_CLIENTS])),
        more_clients=max(0, len(handed) - MOST_CLIENTS),
        clients_story=_clients_story(handed) if handed else "",
        supernet=_supernet((run.result or {}).get("supernet") or {}),
        evaluated=evaluated,
        evaluations=evaluations,
        failures=failures[:MOST_REASONS],
        more_failures=max(0, len(failures) - MOST_REASONS),
        settings=tuple((key, _text(value)) for key, value in run.settings.items()),
        versions=tuple((key, _text(value)) for key, value in versions.items()),
        sections=_sections(run),
    )


def _id(run: RunData) -> str:
    return str((run.result or {}).get("run") or run.folder.resolve().name)


def _headline(run: RunData) -> tuple[str, str]:
    """Return the result in one sentence, and how it came about in another."""
    method = str((run.result or {}).get("method") or run.settings.get("method", "This run"))
    how = f"{_number(len(run.rounds), 'round')} over {_number(_clients(run), 'client')}"
    if run.result is None:
        last = f"; its clients' training accuracy is {percent(run.rounds[-1]['accuracy'])}" if run.rounds else ""
        return f"{method} has trained for {how}{last}", ""
    reached = _list(f"{m['device']} " + _together(f"{percent(_best(m))} at {macs(m['macs'])}") for m in run.models)
    if not reached:
        return f"{method} trained for {how} and chose no model", ""
    split = "test" if all(finite(m["test_accuracy"]) for m in run.models) else "validation"
    what = "a network for each of " + _number(len(run.models), "device") if len(run.models) > 1 else "one network"
    story = (
        f"One supernet was trained with {method} for {how}, who kept their images; it was searched and left {what}. "
        f"Accuracies are those on the {split} set."
    )
    return reached, story


def _best(model: Mapping[str, Any]) -> Any:
    """Return the accuracy to quote: on the test set, or the validation split where there is none."""
    return model["test_accuracy"] if finite(model["test_accuracy"]) else model["validation_accuracy"]


def _clients(run: RunData) -> int:
    return len({c["client"] for e in run.rounds for c in e["clients"]} | {client for _, client, _ in run.failures})


def _tiles(run: RunData) -> tuple[tuple[str, str], ...]:
    return (
        ("Rounds", str(len(run.rounds))),
        ("Clients", str(_clients(run))),
        ("Sent up", size(run.total("bytes_up"))),
        ("Sent down", size(run.total("bytes_down"))),
        ("Compute, MACs", count(run.total("client_macs"))),
        ("Time", duration(run.total("seconds"))),
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
        "budget": _budget(model["budget"]),
        "macs": count(model["macs"]),
        "params": count(model["params"]),
        "bytes": size(model["bytes"]),
        "latency": milliseconds(model.get("latency_ms")),
        "error": MISSING if error is None else f"{error:.1e}",
        "arch": json.dumps(model["arch"], separators=(",", ":")),
        "files": [(name, quote(path)) for name, path in paths if inside and (run.folder / path).is_file()],
    }


def _budget(told: object) -> str:
    """Return a budget as it is told; a number, as older runs hold, means MACs."""
    return f"{count(told)} MACs" if isinstance(told, int | float) else str(told)


def _client(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the row of a client: the model it was handed and how it does on the device, or why it has none."""
    cells = {"client": str(row["client"]), "budget": _budget(row["budget"]), "reason": str(row.get("reason") or "")}
    if cells["reason"]:
        return cells | dict.fromkeys(("accuracy", "tested", "macs", "bytes", "latency"), MISSING)
    where = "held out" if row.get("held_out") else "of its training"
    return cells | {
        "accuracy": percent(row["accuracy"]),
        "tested": f"{row.get('tested', 0)} {where}",
        "macs": count(row["macs"]),
        "bytes": size(row["bytes"]),
        "latency": milliseconds(row.get("latency_ms")),
        "reason": "stored there" if row.get("stored") else "",
    }


def _clients_story(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the spread over the clients in a sentence: mean, worst tenth, and who went without."""
    reached = sorted(float(row["accuracy"]) for row in rows if not row.get("reason"))
    if not reached:
        return "No client could be handed a model."
    trained = any(not row.get("reason") and not row.get("held_out") for row in rows)
    where = ", on images they trained on (data.holdout keeps some apart)," if trained else ""
    worst = reached[: max(1, len(reached) // 10)]
    text = (
        f"{_number(len(reached), 'client')} of {len(rows)} run a model of their own: accuracy there{where} "
        f"{percent(sum(reached) / len(reached))} on average, {percent(sum(worst) / len(worst))} over the worst tenth."
    )
    return text


def _supernet(found: Mapping[str, Any]) -> str:
    """Return a sentence on the supernet, from whichever of its numbers the result holds."""
    says = (
        ("macs", macs, ""),
        ("params", count, " parameters"),
        ("validation_accuracy", percent, " on the validation split"),
        ("test_accuracy", percent, " on the test set"),
    )
    facts = [say(found[key]) + unit for key, say, unit in says if finite(found.get(key))]
    return f"The supernet's largest network: {_list(facts)}." if facts else ""


def _evaluations(run: RunData) -> tuple[tuple[str, ...], tuple[tuple[int, tuple[str, ...]], ...]]:
    """Return the evaluated networks' names and, for each evaluated round, their validation accuracies."""
    names = tuple(dict.fromkeys(str(row["name"]) for e in run.rounds for row in e.get("evaluation") or ()))
    rows = []
    for event in run.rounds:
        if event.get("evaluation"):
            found = {str(row["name"]): percent(row["accuracy"]) for row in event["evaluation"]}
            rows.append((event["round"], tuple(found.get(name, MISSING) for name in names)))
    return names, tuple(rows)


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
    """Return the sections that have a plot to show."""
    rounds, points, models = run.rounds, run.frontier or (), run.models
    sections = (
        Section(
            "Accuracy against cost",
            "Every network the search looked at, on the validation split; the chosen ones are large. Dotted lines: "
            "the budgets.",
            (
                ("Validation accuracy against MACs", plots.accuracy_against("macs", points, models)),
                ("Validation accuracy against parameters", plots.accuracy_against("params", points, models)),
            ),
        ),
        Section(
            "Learning",
            "Networks of each budget on the server's validation split, and the mean of the clients on their own "
            "training examples (of whatever network each of them trained).",
            (
                ("Accuracy over rounds", plots.learning_curves("accuracy", rounds)),
                ("Loss over rounds", plots.learning_curves("loss", rounds)),
            ),
        ),
        Section(
            "Traffic and compute",
            "What all clients of a round sent, received and computed together.",
            (("Bytes per round", plots.traffic(rounds)), ("Client compute per round", plots.compute(rounds))),
        ),
        Section(
            "Spread over clients",
            "Accuracy of each client on its own training examples, in its last local epoch. Dots: means over the last "
            f"{plots.LAST_ROUNDS} rounds; bars: from the worst to the best of them.",
            (
                ("Clients' accuracy over rounds", plots.spread_over_rounds(rounds)),
                ("Clients' accuracy against their number of examples", plots.spread_over_clients(rounds)),
            ),
        ),
    )
    shown = (Section(s.title, s.text, tuple(plot for plot in s.plots if plot[1])) for s in sections)
    return tuple(section for section in shown if section.plots)


def _number(value: int, noun: str) -> str:
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"


def _list(items: Any) -> str:
    """Return ``a, b and c``."""
    *head, last = list(items) or [""]
    return f"{', '.join(head)} and {last}" if head else last


def _together(text: str) -> str:
    """Return text that is not broken over two lines."""
    return text.replace(" ", "\u00a0")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
