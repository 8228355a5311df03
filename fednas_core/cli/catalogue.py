"""Commands that say what there is: methods, search spaces, presets and settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fednas_core.base.errors import ConfigError
from fednas_core.cli.settings import deviations
from fednas_core.cli.settings import presets as all_presets
from fednas_core.cli.show import Json, guard, millions, print_json, print_table

if TYPE_CHECKING:
    from fednas_core.base.settings import Setting


@guard
def methods(as_json: Json = False) -> None:
    """List the methods: published systems that train a network."""
    from fednas_core.methods.catalogue import METHODS

    rows = [(name, entry.title, entry.source) for name, entry in METHODS.items()]
    if as_json:
        print_json([{"name": name, "title": title, "source": source} for name, title, source in rows])
    else:
        print_table(("method", "what it does", "source"), rows)


@guard
def spaces(as_json: Json = False) -> None:
    """List the search spaces, from the smallest to the largest network of each."""
    from fednas_core.spaces.capabilities import elastic
    from fednas_core.spaces.registry import load, names

    rows: list[dict[str, Any]] = []
    for name in names():
        space = elastic(load(name))
        costs = {"smallest": space.cost(space.smallest).to_json(), "largest": space.cost(space.largest).to_json()}
        rows.append({"name": space.name, **costs, "size": space.size})
    if as_json:
        print_json(rows)
        return
    head = ("space", "smallest MACs", "largest MACs", "smallest parameters", "largest parameters", "architectures")
    print_table(
        head,
        [
            (
                str(row["name"]),
                *(millions(row[end][cost]) for cost in ("macs", "params") for end in ("smallest", "largest")),
                f"{row['size']:.3g}",
            )
            for row in rows
        ],
    )


@guard
def presets(as_json: Json = False) -> None:
    """List the presets, for --config and `flwr run --run-config`, and what they do not have from the original.

    The head of a preset's file in fednas_core/methods/presets/ says what differs besides settings.
    """
    rows = all_presets()
    marked = {name: deviations(name) for name, _ in rows}
    if as_json:
        print_json([{"name": name, "about": about, "differs": list(map(asdict, marked[name]))} for name, about in rows])
        return
    print_table(("preset", "settings of"), rows)
    for name, found in marked.items():
        if found:
            print(f"\n{name}: not the original's")
            told = [(one.key, one.here, one.published or "not stated", one.why) for one in found]
            print_table(("setting", "here", "published", ""), told)


@guard
def settings(
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="A section such as data, a setting, or a word of either.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the settings with their types or choices, defaults and meanings."""
    from fednas_core.base.settings import describe

    rows = describe()
    if text is not None:
        rows = _named(rows, text.lower())
        if not rows:
            raise ConfigError(f"no setting has {text!r} in its name or meaning; fednas settings lists them all")
    if as_json:
        print_json([{**asdict(row), "type": row.type} for row in rows])
        return
    head = ("setting", "allowed", "default", "meaning")
    print_table(head, [(s.key, s.allowed, json.dumps(s.default, ensure_ascii=False), s.help) for s in rows])


def _named(rows: Sequence[Setting], text: str) -> list[Setting]:
    """Return the settings of a section, or else those that have a text in their name, or else in their meaning."""
    section = [row for row in rows if row.key.startswith(f"{text}.")]
    return section or [row for row in rows if text in row.key] or [row for row in rows if text in row.help.lower()]
