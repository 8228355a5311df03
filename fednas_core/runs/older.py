"""Records of format 1, brought to the present one: what they lack is added as what it was then.

Their metric is the accuracy and not named, the kind of a search follows from the settings, and some fields came while
the format had no version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fednas_core.base.units import macs

Object = Mapping[str, object]
Upgrade = Callable[[Object], Object]


def search(table: Object) -> str:
    """Return the kind of the search that settings ask for, flat or in tables as a run's ``config.toml`` holds them."""
    found = table.get("settings", table)
    settings = found if isinstance(found, Mapping) else {}
    if settings.get("method") == "ddc":
        return "ddc"
    return str(settings.get("fednas.search", "netadapt")) if settings.get("method") == "fednas" else ""


def event(found: Object) -> Object:
    """Return an event as it is recorded now."""
    clients = _each(found.get("clients"), {"role": "", "tier": ""})
    upgraded = {"update_norm": None, **found, "clients": clients}
    story = found.get("search")
    if isinstance(story, Mapping) and story.get("winner") and not story.get("family"):
        upgraded["search"] = {**story, "family": [story.get("leader") or story["winner"]]}
    return upgraded


def point(found: Object) -> Object:
    """Return a judged network as it is recorded now."""
    return {"arch": {}, "bytes": 0, "fitness": None, **found}


def result(found: Object) -> Object:
    """Return a result as it is recorded now."""
    models = _each(found.get("models"), {"budget_macs": None, "latency_ms": None, "export_max_abs_error": None})
    clients = _each(found.get("clients", []), {"failed": False})
    if isinstance(models, list):
        models = [_budgeted(row) for row in models]
    if isinstance(clients, list):
        clients = [_budgeted(_handed(row)) for row in clients]
    added: Object = {"personal": [], "search": None, "unrecorded": 0, "seconds": {}}
    upgraded = {**added, **found, "models": models, "clients": clients}
    supernet = found.get("supernet")
    if isinstance(supernet, Mapping):
        upgraded["supernet"] = {"space": "", "norm": "", "bytes": 0, **supernet}
    return upgraded


def _handed(row: object) -> object:
    """Return a client's row with all that is told of a model, if it has one."""
    if not isinstance(row, Mapping) or row.get("reason"):
        return row
    added: Object = {"arch": {}, "larger_accuracy": None, "latency_ms": None}
    return {**added, "tested": 0, "held_out": False, "stored": False, **row}


def _budgeted(row: object) -> object:
    """Return a row whose budget is a text: a number of MACs has become one."""
    if not isinstance(row, Mapping) or not isinstance(row.get("budget"), int | float):
        return row
    return {**row, "budget": macs(row["budget"]), "budget_macs": row["budget"]}


def _each(rows: object, added: Object) -> object:
    """Return rows with what they lack; what is no list of objects stays as it is, for whoever checks it."""
    if not isinstance(rows, list):
        return rows
    return [{**added, **row} if isinstance(row, Mapping) else row for row in rows]
